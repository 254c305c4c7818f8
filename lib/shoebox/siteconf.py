"""The settings of site.conf, for commands that use them: those that no run needs are looked at here, not by sh-run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import amounts, host, imports, nodecache, paths, site
from .fail import Fail

if TYPE_CHECKING:
    from .site import Part

_AMOUNTS = {
    **dict.fromkeys(("grace", "expire", "turn-limit"), amounts.parse_span),
    **dict.fromkeys(("import-size", "pull-size"), amounts.parse_size),
}
_MOST = 64  # conversions at once


def one(key: str) -> str:
    """Return a setting of site.conf, "" if it is not made. Raises Fail for any that cannot be understood."""
    return own().one(key)


def own() -> Part:
    """Read site.conf. Raises Fail."""
    path = f"{paths.SITE}/{site.FILE}"
    part = site.parse(host.text(path) or "", path)
    check(part)
    return part


def check(part: Part) -> None:
    """Raise Fail for the first setting that site.parse has taken as it stands, and that cannot be understood."""
    for key, (value, where) in part.settings.items():
        if key == "import" and (wrong := imports.check(value)):
            raise Fail(f"cannot use {where!r}", wrong)
        if key == "account" and not all(map(_is_account, value.split("@", 1))):
            raise Fail(
                f"cannot use {where!r}", f"{value!r} is no account", "write USER, for sudo, or USER@HOST, for ssh"
            )
        if key == "conversions" and value not in map(str, range(1, _MOST + 1)):
            todo = f"give one from 1 to {_MOST}"
            raise Fail(f"cannot use {where!r}", f"{value!r} is no number of images at once", todo)
        if key == "node-cache-size":
            nodecache.limits(value, where)
        if key in _AMOUNTS:
            try:
                _AMOUNTS[key](value)
            except Fail as error:
                raise Fail(f"cannot use {where!r}", str(error)) from error


def _is_account(word: str) -> bool:
    return bool(word) and set(word) <= site.NAME and word[0] != "-"

"""A user's own image, offered to the site's account: its name, its readers, its config, and its tree as a tar."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import account, image, naming, readers, reference, request, sources, store
from .fail import USAGE, Fail
from .meter import meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .sources import Source

_SPOOL = "/tmp"  # noqa: S108 - what is put there has no name
_MOST = 1 << 60  # bytes: it is ours, and the account has a limit
_PIECE = 1 << 20  # bytes


def stage(
    word: str,
    name: str,
    users: Iterable[str],
    groups: Iterable[str],
    hear: Callable[[str, str], None],
    *,
    quiet: bool,
) -> list[str]:
    """Have the account make an image of ours for its store, for these to read, too; return its paths. Raises Fail.

    word: what sh-run takes; name: what it is to be called there, "" for a name of ours that it has.
    """
    path = store.find(word, os.environ)
    if os.path.isdir(path):
        raise Fail(f"cannot use {word!r}", "it is a directory", "make an image of it with sh-flatten")
    called = name or _own_name(word, path)
    source = sources.unsquashed(path, os.environ.get("TMPDIR") or _SPOOL, _MOST)
    may = readers.of(path).crossing() if source.private else ([], [])
    asked = request.Request(
        request.IMPORT,
        (str(naming.own(called)),),
        users=_checked(*may[0], *users),
        groups=_checked(*may[1], *groups),
        private=source.private,
    )
    return account.ask(account.which(), asked, hear, send=lambda: _frames(source, called, quiet=quiet))


def remove(name: str) -> list[str]:
    """Have the account remove an image that we brought in; return what it removed. Raises Fail."""
    asked = request.Request(request.REMOVE, (str(naming.own(name)),))
    return account.ask(account.which(), asked, account.ignore)


def _own_name(word: str, path: str) -> str:
    """Return the name of ours that an image has: that by which it was asked for, if it has several. Raises Fail."""
    prefix = f"{naming.prefix()}/"
    with image.opened(path, quiet=True) as opened:
        names = [store.called(stem) for stem in opened.stems]
    names = [name for name in names if name.startswith(prefix)]
    if not names:
        why = "it has no name that could be yours there"
        raise Fail(f"cannot bring in {word!r}", why, f"give one with --name {prefix}NAME[:TAG]", USAGE)
    asked = str(reference.parse(word)) if word.startswith(prefix) else ""
    return asked if asked in names else names[0]


def _checked(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(request.check_name, names)))


def _frames(source: Source, label: str, *, quiet: bool) -> Iterator[bytes | memoryview]:
    """Yield what has to be sent of a source. Its tree is as the reader gives it: the account judges every name."""
    with meter(0, label, quiet) as advance, source.layers[0].open() as tree:

        def pieces() -> Iterator[bytes]:
            while piece := tree.read(_PIECE):
                yield piece
                advance(len(piece))

        yield from request.frames([[source.config] if source.config else [], pieces()])

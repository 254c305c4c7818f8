"""Imports: what a user's own files may be called, and who may bring them into the site's store. Pure."""

from __future__ import annotations

from .fail import USAGE, Fail
from .reference import IMPORTS, Reference, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

ALL, NONE = "all", "none"


def prefix(user: str, uid: int) -> str:
    """Return what names of a user's imports begin with: localhost/USER, the uid where that cannot stand in a name."""
    try:
        fits = parse(f"{IMPORTS}/{user}/x").repository == f"{user}/x" and "/" not in user and not user.isdecimal()
    except Fail:
        fits = False
    return f"{IMPORTS}/{user}" if fits else f"{IMPORTS}/{uid}"


def name(text: str, user: str, uid: int) -> Reference:
    """Read the name that a user gives to a file of his own: localhost/USER/NAME[:TAG]. Raises Fail for any other.

    user: his login name, "" if there is none.
    """
    own = prefix(user, uid)
    todo = f"write {own}/NAME[:TAG]"
    try:
        found = parse(text)
    except Fail as error:
        raise Fail(str(error), todo=todo, status=USAGE) from error
    inside = found.registry == IMPORTS and found.repository.startswith(f"{own[len(IMPORTS) + 1 :]}/")
    if found.short or found.digest or not inside:
        raise Fail(f"not a name for your own file: {text!r}", todo=todo, status=USAGE)
    return found


def check(rule: str) -> str:
    """Return what is wrong with a site's `import` setting, "" if nothing is."""
    words = rule.replace(",", " ").split()
    if not words:
        return f"it names nobody: write {ALL}, {NONE}, or USER and @GROUP, with commas or blanks between"
    if len(words) > 1 and (ALL in words or NONE in words):
        return f"{ALL!r} and {NONE!r} stand alone"
    odd = [word for word in words if not word.removeprefix("@") or set(word[1:]) & set("@:/") or word[0] in "-:/"]
    return f"{odd[0]!r} is neither USER nor @GROUP" if odd else ""


def may(rule: str, user: str, groups: Collection[str]) -> bool:
    """Tell whether a user, by login name, may import; groups: his, by name. rule: the setting, "" if it is not made."""
    words = rule.replace(",", " ").split()
    if words in ([], [ALL]):
        return True
    return words != [NONE] and (user in words or any(f"@{group}" in words for group in groups))

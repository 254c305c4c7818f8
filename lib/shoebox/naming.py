"""What whoever runs us may call an image that comes from no registry."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

from . import imports, reference, siteconf
from .fail import Fail

if TYPE_CHECKING:
    from .reference import Reference


def own(text: str) -> Reference:
    """Read the name that we give to a file of our own: localhost/USER/NAME[:TAG]. Raises Fail for any other.

    The site's image account may give any user's: it does so for them, and has asked who they are.
    """
    user, uid = _login(), os.getuid()
    registry, _, rest = text.partition("/")
    if user and registry == reference.IMPORTS and user == _account():
        whose = rest.partition("/")[0]
        user, uid = ("", int(whose)) if whose.isdecimal() else (whose, -1)
    return imports.name(text, user, uid)


def prefix() -> str:
    """Return what our own names begin with."""
    return imports.prefix(_login(), os.getuid())


def _login() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def _account() -> str:
    """Return the login name of the site's image account, "" if there is none."""
    try:
        return siteconf.one("account").partition("@")[0]
    except Fail:  # what it says is not for us to judge, and nobody's name then
        return ""

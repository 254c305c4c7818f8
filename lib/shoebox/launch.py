"""What the launchers of the login-node commands do first: ask for Python 3.11, and find the Python packages.

The launchers run Python without its site module (-I -S), so the packages come from one place only: beside ours when
installed, from .venv in the source tree. Runs on Python 3.9, to say that it is too old.
"""

from __future__ import annotations

import _signal
import os
import sys

from .fail import FAILED, say

NEEDED = (3, 11)


def command(name: str) -> str:
    """Return the path of a command of ours."""
    return os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../bin", name)


def ready() -> None:
    """Put the packages on sys.path, or end with one line and status 1.

    And let us know of our children: a caller that ignores SIGCHLD has us ignore it, and all that failed end with 0.
    """
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    why = packages()
    if why:
        say(why)
        os._exit(FAILED)


def packages() -> str:
    """Put the packages on sys.path; return why that cannot be, or ""."""
    lib = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    major, minor = sys.version_info[:2]
    venv = os.path.join(os.path.dirname(lib), f".venv/lib/python{major}.{minor}/site-packages")
    found = [place for place in (os.path.join(lib, "site-packages"), venv) if os.path.isdir(place)]
    if (major, minor) < NEEDED:
        return (
            f"needs Python 3.11 or newer, and '{sys.executable}' is {major}.{minor}: make install with another PYTHON="
        )
    if not found:
        return "its Python packages are not there: run make install, or in a source tree make .venv"
    sys.path.append(found[0])
    return ""

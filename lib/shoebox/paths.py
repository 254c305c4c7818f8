"""Where things lie: the user's cache, the stores, the site's files. Pure: the environment in, paths out."""

from __future__ import annotations

import os

from .fail import USAGE, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Places that are the image's own business: never covered because the user happens to stand in them.
_SYSTEM = frozenset(("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr"))
_TOPS = frozenset(("/", "/home", "/media", "/mnt", "/opt", "/run", "/srv", "/var"))
SITE = "/etc/shoebox"  # `make install SYSCONFDIR=` sets it
NODE = ""  # where processes of a node meet before $XDG_RUNTIME_DIR is tried; `make install NODEDIR=` sets it
IMAGES = (".sqfs", ".sif", ".sqsh", ".squashfs")  # what ends in one of these is a path; the last two are other tools'
CDI = "/etc/cdi:/var/run/cdi"  # where specifications of devices lie; what the last says counts
BIN = "/usr/local/bin"  # where our commands are; `make install PREFIX=` sets it
HELPER = "/usr/libexec/shoebox/sh-mount"  # `make install-setuid HELPER=` sets it


def cache(env: Mapping[str, str]) -> str:
    """Return the user's cache: SHOEBOX_CACHE, else ${XDG_CACHE_HOME:-~/.cache}/shoebox."""
    if env.get("SHOEBOX_CACHE"):
        return os.path.abspath(env["SHOEBOX_CACHE"])
    base = env.get("XDG_CACHE_HOME", "")
    return os.path.join(base if base.startswith("/") else os.path.expanduser("~/.cache"), "shoebox")


def images(env: Mapping[str, str]) -> str:
    """Return the user's own store, where sh-flatten puts images."""
    return os.path.join(cache(env), "images")


def stores(env: Mapping[str, str]) -> list[str]:
    """Return the stores to search, in order: SHOEBOX_PATH, else the user's own."""
    listed = [os.path.abspath(d) for d in env.get("SHOEBOX_PATH", "").split(":") if d]
    return listed or [images(env)]


def user_config(env: Mapping[str, str]) -> str:
    """Return the directory of the user's own configuration."""
    base = env.get("XDG_CONFIG_HOME", "")
    return os.path.join(base if base.startswith("/") else os.path.expanduser("~/.config"), "shoebox")


def node_local(env: Mapping[str, str]) -> list[str]:
    """Return the directories in which a private one on this node may be, in the order to try."""
    listed = (NODE, env.get("XDG_RUNTIME_DIR", ""), "/dev/shm", "/tmp")  # noqa: S108 - checked by those who use it
    return [path for path in listed if path.startswith("/")]


def under(path: str, top: str) -> bool:
    """Tell whether path is top or lies below it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def plain_target(text: str, what: str) -> str:
    """Return a path of the inside as a mount's target, without `.` and doubled slashes. Raises Fail: what, and why."""
    if not text.startswith("/") or ".." in text.split("/"):
        raise Fail(what, f"{text!r} is not an absolute path without '..'", status=USAGE)
    plain = "/" + os.path.normpath(text).lstrip("/")
    if plain == "/":
        raise Fail(what, "the root is the image", status=USAGE)
    return plain


def shared(path: str) -> bool:
    """Tell whether a path of the host may be shown inside: not the root, and not of the image's own system."""
    return path.startswith("/") and path != "/" and path.split("/")[1] not in _SYSTEM


def wants_cwd(path: str) -> bool:
    """Tell whether a current directory is one to show inside."""
    return shared(path) and path not in _TOPS


def pmix(env: Mapping[str, str]) -> list[str]:
    """Return the directories through which PMIx gives data to its clients, those not below others of them.

    Slurm makes one for each step, as pmix.JOB.STEP; what all of them are in lets steps share a container.
    """
    names = [name for name in env if name.startswith("PMIX_") and name.endswith(("_TMPDIR", "_BASE_PATH"))]
    places = [os.path.normpath(env[name]) for name in names if env[name].startswith("/")]
    tops = {path.partition("/pmix.")[0] for path in places} - {"/", ""}
    return sorted(path for path in tops if not any(under(path, other) for other in tops if other != path))

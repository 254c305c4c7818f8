"""sh-gateway: what the image account does for a user who asks it for an image."""

from __future__ import annotations

import os
import pwd
import resource
import signal
import sys

from . import fail, host, launch, linux, request, usage
from .fail import Fail

USAGE = """
usage: sh-gateway [--for USER]

Make an image for a user who may not write to the site's store, and put it there.
Sudo or sshd starts this, as the account that the store belongs to, and
sh-pull --for-site speaks with it through standard input and output.

      --for USER  who asks: for the forced command of a user's key
"""

_SETTINGS = "environment"  # in the account's ~/.config/shoebox: NAME=VALUE lines
_LIMITS = {
    "the size of files": resource.RLIMIT_FSIZE,
    "processor time": resource.RLIMIT_CPU,
    "memory": resource.RLIMIT_AS,
    "data": resource.RLIMIT_DATA,
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(argv: list[str]) -> int:
    """Do what the words say, and then what is asked; return the exit status."""
    options = usage.parse(USAGE, argv)
    if options.operands:
        raise Fail(f"unknown word {options.operands[0]!r}", todo="see -h", status=fail.USAGE)
    _alone()
    who = _who(options.one("for"))
    env = _environment()
    if dict(os.environ) != env:
        os.chdir("/")
        script = launch.command("sh-gateway")
        os.execve(sys.executable, [sys.executable, "-IS", script, "--for", who], env)  # noqa: S606 - our own words
    # Credentials are in our memory alone: no core of it, and nobody of the same account looks into it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.umask(0o077)
    fail.stop_on_signals()
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # for queue.py, which may have to end us with all that we started
    from . import peer, serve  # noqa: PLC0415 - not before: OpenSSL obeys the environment as soon as it is loaded

    with peer.relayed():
        return serve.user(who)


def _alone() -> None:
    """Take over nothing from who starts us that decides how we end, or how our children do. Raises Fail.

    sudo hands on which signals its caller ignores or blocks, and his limits: by these he could have the account take
    half an image for a whole one, or not see that he has hung up.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python ignores
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):  # who is stopped keeps others waiting
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for what, limit in _LIMITS.items():
        hard = resource.getrlimit(limit)[1]
        if hard != resource.RLIM_INFINITY:
            raise Fail("cannot make images", f"whoever asks has a hard limit on {what}", "see sh-gateway(8), 'By sudo'")
        resource.setrlimit(limit, (hard, hard))


def _who(given: str) -> str:
    """Return the name of the user who asks. given: by --for. Raises Fail."""
    by_sudo = os.environ.get("SUDO_UID", "")
    if given and by_sudo:
        raise Fail("'--for' is for sshd", 'end the line in sudoers with sh-gateway ""', status=fail.USAGE)
    if given:
        return request.check_name(given)
    if not (by_sudo.isascii() and by_sudo.isdigit()):
        raise Fail("nobody asks", "neither sudo nor '--for' says who", "see sh-gateway(8)", fail.USAGE)
    try:
        return pwd.getpwuid(int(by_sudo)).pw_name
    except (KeyError, OverflowError):
        raise Fail(f"no user has the number {by_sudo[:20]}") from None


def _environment() -> dict[str, str]:
    """Return an environment that comes from the account alone. Raises Fail."""
    me = pwd.getpwuid(os.geteuid())
    env = {"HOME": me.pw_dir, "USER": me.pw_name, "LOGNAME": me.pw_name, "PATH": _PATH}
    path = os.path.join(me.pw_dir, ".config", "shoebox", _SETTINGS)
    for number, line in enumerate((host.text(path) or "").split("\n"), 1):
        name, equals, value = line.strip().partition("=")
        if name and not name.startswith("#"):
            if not equals or not name.replace("_", "a").isalnum():
                raise Fail(f"cannot use '{path}:{number}'", "it is no NAME=VALUE")
            env[name] = value
    return env | {"LC_ALL": "C.UTF-8"}  # or Python itself sets LC_CTYPE, and we begin anew for ever

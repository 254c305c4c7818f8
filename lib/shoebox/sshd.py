"""The user's own sshd in a container of its own: the keys, and who ends it. Effects; Python 3.9.

    sh-run --- guard --- sh-run, which becomes sshd in the container --- sessions

The first two stay outside, do the same, and end with each other and with whoever started them; then they kill all that
came from the sshd, and remove its keys. As subreapers, prctl(2), they are the parents of daemons too. So one of them
has to be left when all else is killed, and sshd itself ends with its guard.
"""

from __future__ import annotations

import _signal
import os
import subprocess
import sys
from _socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from fcntl import ioctl

from . import host, libraries, linux, paths, site, sshconf
from .facts import Wish
from .fail import NOT_RUN, USAGE, Fail, Stopped
from .join import born

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from .plan import Plan
    from .sshconf import Sshd
    from .usage import Options

_ENDING = {_signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT}
_SESSIONS = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec/ssh", "/usr/libexec")
_PAUSE = 0.05  # seconds between looks whether sshd is ready
_UNFIT = ("entrypoint", "explain", "join")  # options


def begin(options: Options, words: list[str], env: dict[str, str]) -> Sshd:
    """Make the keys and fork. Return in the child, which is to become sshd; the others stay until the end.

    Raises Fail or OSError before that.
    """
    what = "cannot start an sshd"
    unfit = [f"--{name}" for name in _UNFIT if options.flag(name)]
    unfit += ["--writable=DIR"] if any("/" in value for value in options.all("writable")) else []
    unfit += ["a COMMAND"] if words else []
    if unfit:
        raise Fail(what, f"it goes without {unfit[0]}", status=USAGE)
    if not os.getuid():
        raise Fail(what, "as root, sshd wants rights that nobody has in a container", "be an ordinary user")
    program, maker = host.tool(("sshd",), env), host.tool(("ssh-keygen",), env)
    if not program or not maker:
        raise Fail(what, f"{'ssh-keygen' if program else 'sshd'} is not installed on this node")
    own = site.load(paths.SITE, site.NONE, host.text) if os.path.exists(f"{paths.SITE}/{site.FILE}") else None
    listen = _listen(options.one("sshd"), own.sshd_interface if own else "")
    person = host.person(env)
    top = _top(env)
    _sweep(top)
    sessions = _sessions()
    wishes = _wishes(program, sessions)
    settings = [(key, f"{sshconf.PROGRAMS}/{name}") for key, name in sshconf.SESSIONS.items() if name in sessions]
    settings += own.sshd_options if own else ()
    folder = os.path.join(top, f"{_node()}_{os.getpid()}_{born('self')}")
    os.mkdir(folder, 0o700)
    sshd = sshconf.Sshd(folder, person.name, host.shell(env), wishes, listen, settings)
    sshd.wishes.append(Wish(folder, sshconf.INSIDE, "--sshd", asked=True))
    try:
        _furnish(sshd, maker)
        _fork(sshd)
    except (Fail, OSError):
        _remove(folder)
        raise
    return sshd


def configure(sshd: Sshd, plan: Plan) -> None:
    """Write sshd's configuration, for a container that is planned. Raises OSError."""
    _write(f"{sshd.folder}/sshd_config", sshconf.server(sshd, plan.command.variables))


def tie(sshd: Sshd) -> None:
    """Have the kernel end us with our guard: to be done last, for gaining rights undoes it. See prctl(2)."""
    linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != sshd.guard:
        os.kill(os.getpid(), _signal.SIGKILL)


def _listen(port: str, interface: str) -> tuple[str, int]:
    """Return the address and the port to listen on; without a port a free one. Raises Fail."""
    if port and not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise Fail(f"cannot listen on port {port!r}", "it is not a number from 1 to 65535", status=USAGE)
    address = "127.0.0.1"
    tried = socket(AF_INET, SOCK_STREAM)
    try:
        if interface:
            asked = os.fsencode(interface)[:15].ljust(40, b"\0")  # struct ifreq
            address = ".".join(map(str, ioctl(tried, linux.SIOCGIFADDR, asked)[20:24]))
        tried.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        tried.bind((address, int(port or 0)))
        return address, int(tried.getsockname()[1])
    except OSError as error:
        where = f"port {port} of {address}" if port and address else f"interface {interface!r}"
        raise Fail(f"cannot listen on {where}", error) from error
    finally:
        tried.close()


def _top(env: dict[str, str]) -> str:
    """Return the directory of all the user's sshds, which all nodes see. Raises Fail."""
    top = os.path.join(paths.cache(env), "ssh")
    try:
        os.makedirs(top, 0o700, exist_ok=True)
        about = os.stat(top)
    except OSError as error:
        raise Fail(f"cannot keep keys in {top!r}", error, "name another place with SHOEBOX_CACHE") from error
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise Fail(f"cannot keep keys in {top!r}", "it is not yours alone", f"chmod go= {top}")
    return top


def _node() -> str:
    """Return what tells this node, and its view of processes, from others."""
    return f"{os.uname().nodename}_{os.stat('/proc/self/ns/pid').st_ino}"


def _sweep(top: str) -> None:
    """Remove what those left on this node that were killed with all their guards."""
    for name in os.listdir(top):
        node, _, began = name.rpartition("_")
        node, _, pid = node.rpartition("_")
        if node == _node() and born(pid) != began:
            _remove(os.path.join(top, name))


def _remove(folder: str) -> None:
    """Remove a directory of ours, which somebody else may be doing too."""
    try:
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    except OSError:
        return


def _sessions() -> dict[str, str]:
    """Return what sshd executes for each connection, by name, and where it lies; nothing for an old sshd."""
    places = [(name, f"{place}/{name}") for place in _SESSIONS for name in sshconf.SESSIONS.values()]
    return {name: path for name, path in reversed(places) if os.access(path, os.X_OK)}


def _wishes(program: str, sessions: Mapping[str, str]) -> list[Wish]:
    """Return mounts for the host's sshd with all that it needs. Raises Fail or OSError."""
    programs = (program, *sessions.values())
    try:
        needed = {path for one in programs for path in libraries.linked([one], {}).values()}
        return sshconf.programs(program, libraries.linker(), sorted(needed - {"", *programs}), sessions)
    except (OSError, ValueError) as error:
        raise Fail(f"cannot use {program!r}", f"its libraries are not known: {error}") from error


def _furnish(sshd: Sshd, maker: str) -> None:
    """Make the keys, and what ssh is to know. Raises Fail or OSError."""
    for name in ("host", "key"):
        words = [maker, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", f"{sshd.folder}/{name}"]
        made = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if made.returncode:
            raise Fail("cannot make keys", os.fsdecode(made.stderr).strip())
    with open(f"{sshd.folder}/host.pub", encoding="ascii") as file:
        _write(f"{sshd.folder}/known_hosts", f"{sshconf.alias(sshd)} {file.read()}")
    _write(f"{sshd.folder}/config", sshconf.client(sshd, os.uname().nodename))
    top = os.path.dirname(sshd.folder)
    _write(f"{top}/config.{os.path.basename(sshd.folder)}", f'Include "{top}/*/config"\n')
    os.rename(f"{top}/config.{os.path.basename(sshd.folder)}", f"{top}/config")


def _write(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(os.fsencode(text))


def _fork(sshd: Sshd) -> None:
    """Become the child of a guard, and it that of another; those stay."""
    ours = {*_ENDING, _signal.SIGCHLD}
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ours)
    about_children = _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    for told in ("", f"ssh -F {sshd.folder}/config {os.uname().nodename}"):
        parent = os.getppid()
        linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGTERM)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        if sshd.guard not in (0, parent):
            os.kill(os.getpid(), _signal.SIGTERM)
        sshd.guard = os.getpid()
        child = os.fork()
        if child:
            _stay(child, sshd.folder, told, ours)
    _signal.signal(_signal.SIGCHLD, about_children)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def _stay(child: int, folder: str, told: str, ours: set[int]) -> NoReturn:
    """Wait for the end of a child, or a signal that asks for it; then end all else, and as it did.

    told: what to say when sshd is ready, or "".
    """
    status = NOT_RUN
    try:
        while True:
            happened = _signal.sigtimedwait(ours, _PAUSE) if told else _signal.sigwaitinfo(ours)
            if told and os.path.exists(f"{folder}/pid"):
                print(told, flush=True)
                told = ""
            if happened and happened.si_signo in _ENDING:
                raise Stopped(happened.si_signo)
            if happened and (ended := _reap(child)) is not None:
                status = ended
                break
    finally:
        _end_all()
        _remove(folder)
    sys.stderr.flush()
    os._exit(status if status >= 0 else 128 - status)


def _reap(child: int) -> int | None:
    """Bury the dead; return the status of one of them, if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        if pid == child:
            found = os.waitstatus_to_exitcode(status)


def _end_all() -> None:
    """Kill our children until there are none: those of the killed become ours."""
    us = str(os.getpid())
    while True:
        for name in os.listdir("/proc"):
            if name.isdecimal() and host.stat(f"/proc/{name}/stat")[1:2] == [us]:
                os.kill(int(name), _signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return

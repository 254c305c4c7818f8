"""Texts for an sshd in a container, and for the ssh that is to find it: sshd_config(5), ssh_config(5). Pure."""

from __future__ import annotations

from .facts import Wish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .environment import Variable

INSIDE = "/.shoebox/ssh"  # where the directory of an sshd shows
PROGRAMS = "/.shoebox/sshd"  # where the host's sshd and its libraries show
LOADER, SSHD = f"{PROGRAMS}/loader", f"{PROGRAMS}/sshd"
# What sshd executes for each connection, from OpenSSH 9.8 and 10.0 on; and where we show the one that it means.
SESSIONS = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}
_SCRIPT = '#!/bin/sh\nexec {loader} --library-path {place} {place}/{name}.elf "$@"\n'
# What a session has from sshd or from ssh, and what a shell makes for itself.
_SESSION = ("DISPLAY", "LOGNAME", "MAIL", "OLDPWD", "PWD", "SHELL", "SHLVL", "SHOEBOX_STEP", "TERM", "USER", "_")


class Sshd:
    """An sshd to be: its directory on the host, the words to execute, mounts for it, the user's name and shell.

    listen: address and port; options: (name, value), which come first; guard: the process that it must not outlive.
    """

    __slots__ = ("folder", "guard", "listen", "name", "options", "shell", "wishes")

    def __init__(
        self,
        folder: str,
        name: str,
        shell: str,
        wishes: list[Wish],
        listen: tuple[str, int],
        options: Sequence[tuple[str, str]],
    ) -> None:
        """Hold the parts."""
        self.folder = folder
        self.name = name
        self.shell = shell
        self.wishes = wishes
        self.listen = listen
        self.options = options
        self.guard = 0

    @property
    def words(self) -> list[str]:
        """The words to execute: by the host's loader, so that the image's libraries do not matter.

        -r: without that, sshd before 9.8 would execute itself anew for each connection, and not by the loader.
        """
        alone = [] if any(name in SESSIONS for name, _ in self.options) else ["-r"]
        return [LOADER, "--library-path", PROGRAMS, SSHD, *alone, "-D", "-e", "-f", f"{INSIDE}/sshd_config"]


def programs(program: str, loader: str, libraries: Iterable[str], sessions: Mapping[str, str]) -> list[Wish]:
    """Return mounts for an sshd. sessions: of SESSIONS, where the host has each."""
    places = [(loader, LOADER), (program, SSHD), *((path, f"{PROGRAMS}/{name}.elf") for name, path in sessions.items())]
    places += [(path, f"{PROGRAMS}/{path.rpartition('/')[2]}") for path in libraries]
    scripts = {name: _SCRIPT.format(loader=LOADER, place=PROGRAMS, name=name).encode() for name in sessions}
    return [
        *(Wish(source, target, "--sshd", readonly=True, asked=True) for source, target in places),
        *(Wish("", f"{PROGRAMS}/{name}", "--sshd", asked=True, content=text) for name, text in scripts.items()),
    ]


def server(sshd: Sshd, variables: Iterable[Variable]) -> str:
    """Return the sshd_config: only this user, only with the key; sessions get these variables.

    The first value for a keyword counts, so the site's options come first. Modes are not checked (StrictModes), since
    the directories above look like somebody else's from inside; those that lead to the keys are checked outside.
    """
    address, port = sshd.listen
    lines = [f"{name} {value}" for name, value in sshd.options]
    lines += [
        f"ListenAddress {address}:{port}",
        f"HostKey {INSIDE}/host",
        f"AuthorizedKeysFile {INSIDE}/key.pub",
        f"PidFile {INSIDE}/pid",
        f"AllowUsers {_quoted(sshd.name)}",
        "AuthenticationMethods publickey",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "StrictModes no",
        "UsePAM no",
        "PermitUserRC no",
        "PrintMotd no",
        "Subsystem sftp internal-sftp",
        "LogLevel ERROR",
    ]
    given = [_quoted(f"{v.name}={v.value}") for v in variables if v.value is not None and _is_for_sessions(v)]
    return "\n".join([*lines, *(["SetEnv " + " ".join(given)] if given else []), ""])


def client(sshd: Sshd, node: str) -> str:
    """Return an ssh_config by which `ssh NODE` reaches the sshd, and nobody who pretends to be it."""
    address, port = sshd.listen
    folder = sshd.folder.replace("%", "%%")
    lines = [
        f"HostName {address}",
        f"Port {port}",
        f"User {_quoted(sshd.name)}",
        f"IdentityFile {_quoted(folder + '/key')}",
        "IdentitiesOnly yes",
        "PreferredAuthentications publickey",
        f"HostKeyAlias {alias(sshd)}",
        f"UserKnownHostsFile {_quoted(folder + '/known_hosts')}",
        "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
    ]
    names = dict.fromkeys((node, node.partition(".")[0]))
    return "\n    ".join([f"Host {' '.join(names)}", *lines]) + "\n"


def alias(sshd: Sshd) -> str:
    """Return the name that the host key is known by."""
    return "shoebox-" + sshd.folder.rpartition("/")[2]


def _is_for_sessions(variable: Variable) -> bool:
    """Tell whether a variable is to be set in sessions, and can be: a configuration has lines."""
    name, value = variable.name, variable.value or ""
    return (
        name not in _SESSION and not name.startswith("SSH_") and "\n" not in name + value and "\r" not in name + value
    )


def _quoted(text: str) -> str:
    """Return a word as both configurations read it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

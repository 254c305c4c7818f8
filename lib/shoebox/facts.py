"""What a plan is made from: what was asked for, what is outside, what is in the image. Records only."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .cdi import Devices
    from .environment import Rule, Setting
    from .identity import Person
    from .nodecache import Cache
    from .site import Site
    from .sshconf import Sshd
    from .usage import Options

DIRECTORY, FILE, MISSING = "directory", "file", ""  # a FILE is whatever is not a directory


class Caller:
    """Who runs us, as seen before anything is changed.

    cwd: "" if it is gone. kept: the descriptors that stay open for a PMI. proc: the host's /proc/self, open.
    filtered: there is a terminal that a program of ours could type on.
    """

    __slots__ = ("cwd", "env", "filtered", "kept", "proc")

    def __init__(self, env: dict[str, str], cwd: str, kept: list[int], proc: int, *, filtered: bool) -> None:
        """Hold the parts."""
        self.env = env
        self.cwd = cwd
        self.kept = kept
        self.proc = proc
        self.filtered = filtered


class Request:
    """What was asked for: the options, the image's name, the words after it, what --env and --env-file set.

    Then what follows from that on this machine: what the site says, the devices wanted, an sshd to be, node caches by
    the words that ask for them; what two ask for is one.
    """

    __slots__ = ("caches", "command", "devices", "image", "options", "settings", "site", "sshd")

    def __init__(
        self,
        options: Options,
        command: Sequence[str] = (),
        settings: Sequence[Setting] = (),
        site: Site | None = None,
        devices: Devices | None = None,
        image: str = "",
    ) -> None:
        """Hold the parts."""
        self.image = image
        self.sshd: Sshd | None = None
        self.caches: dict[str, Cache] = {}
        self.devices = devices
        self.options = options
        self.command = command
        self.settings = settings
        self.site = site

    @property
    def rules(self) -> list[Rule]:
        """What devices and the site want of the environment; the site has the last word."""
        return [*(self.devices.rules if self.devices else ()), *(self.site.rules if self.site else ())]


class Peers:
    """The other ranks: why they share a container, or nobody does; the words they must agree on; pids to join now."""

    __slots__ = ("pids", "why", "words")

    def __init__(self, why: str, words: list[str], pids: list[int]) -> None:
        """Hold the parts."""
        self.why = why
        self.words = words
        self.pids = pids


class Host:
    """What is outside.

    home: the home directory with its symbolic links followed. cwd: "" if it is gone. terminal: a program could type
    for our caller. descriptors: those that stay open for a PMI.
    """

    __slots__ = ("cwd", "descriptors", "env", "home", "person", "terminal")

    def __init__(
        self,
        env: dict[str, str],
        person: Person,
        *,
        home: str = "",
        cwd: str = "",
        terminal: bool = False,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Hold the parts."""
        self.env = env
        self.person = person
        self.home = home or person.home
        self.cwd = cwd
        self.terminal = terminal
        self.descriptors = descriptors


class Wish:
    """A mount that somebody wants.

    asked: by the user or the site, so it must not fail, unless it is optional. Instead of a source of the host's it may
    have the content of a file that we make, or a node cache.
    """

    __slots__ = ("asked", "cache", "content", "optional", "readonly", "source", "target", "why")

    def __init__(
        self,
        source: str,
        target: str,
        why: str,
        *,
        readonly: bool = False,
        asked: bool = False,
        optional: bool = False,
        content: bytes = b"",
        cache: Cache | None = None,
    ) -> None:
        """Hold the parts."""
        self.cache = cache
        self.source = source
        self.target = target
        self.why = why
        self.readonly = readonly
        self.asked = asked
        self.optional = optional
        self.content = content


class Look:
    """What the image has at a path: its kind, the path with no symbolic link left in it, and what is wrong there.

    Where a link leads to nothing, real is where it leads.
    """

    __slots__ = ("kind", "problem", "real")

    def __init__(self, real: str, kind: str, problem: str = "") -> None:
        """Hold the parts."""
        self.real = real
        self.kind = kind
        self.problem = problem


class Facts:
    """What was seen: in the image, by path asked; on the host, by path; and the image's passwd(5) and group(5).

    A host path's kind may be a phrase that says what is wrong. notes: what could not be read, a phrase each.
    """

    __slots__ = ("group", "host", "image", "notes", "passwd")

    def __init__(
        self,
        image: dict[str, Look],
        host: dict[str, str],
        passwd: bytes = b"",
        group: bytes = b"",
        notes: Sequence[str] = (),
    ) -> None:
        """Hold the parts."""
        self.image = image
        self.host = host
        self.passwd = passwd
        self.group = group
        self.notes = notes

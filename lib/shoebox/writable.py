"""The kinds of --writable: what is asked, the form in which a directory keeps changes, and who has it. Pure.

A directory DIR that keeps changes has these, all plain:

    upper/ work/    as overlay's upper directory takes them, or
    changes.tar     as a layer of an image (OCI image-spec, layer.md): where overlay refuses DIR's file system
    image           which image they belong to
    lock            a symbolic link that leads nowhere: its text says who has DIR. It appears with its text, and for one
                    only, on any file system.
"""

from __future__ import annotations

from .fail import USAGE, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY, OVERLAY, TAR = "memory", "overlay", "tar"  # forms
UPPER, WORK, CHANGES, IMAGE, LOCK, NEXT = "upper", "work", "changes.tar", "image", "lock", "lock.next"
FREE, HELD, UNKNOWN = "free", "held", "unknown"  # what a lock is
_NODE, _BOOT, _SPACE, _PID, _START, _SINCE, _FORM, _STEP = range(8)


class Writable:
    """What may be written: its form, "" where that is still to be seen; DIR or ""; the most bytes, as tmpfs(5) reads
    them, "" for half of the memory; and why it is so.
    """

    __slots__ = ("directory", "form", "size", "why")

    def __init__(self, form: str, directory: str = "", size: str = "", why: str = "--writable") -> None:
        """Hold the parts."""
        self.form = form
        self.directory = directory
        self.size = size
        self.why = why


class Owner:
    """Who has a directory: the node, its boot and pid namespace; the process and when it began, in clock ticks from
    boot; since when it has it, in seconds since 1970; the form; and the step that shares its container, or "".
    """

    __slots__ = ("form", "pid", "place", "since", "start", "step")

    def __init__(
        self, place: tuple[str, str, str], process: tuple[int, str], since: int, form: str, step: str = ""
    ) -> None:
        """Hold the parts; place: the node, the boot, the pid namespace. process: its pid and start."""
        self.place = place
        self.pid, self.start = process
        self.since = since
        self.form = form
        self.step = step

    def pack(self) -> str:
        """Write a lock's text."""
        return ":".join((*self.place, str(self.pid), self.start, str(self.since), self.form, self.step))


def asked(text: str) -> Writable:
    """Read the value of --writable: SIZE, DIR or DIR:SIZE; what has a slash is a DIR. Raises Fail."""
    directory, colon, size = text.partition(":") if "/" in text else ("", "", text)
    if directory and set(":/") & set(size):
        raise Fail(f"cannot use --writable={text}", "a directory's name may have no ':' here", status=USAGE)
    if (colon and not size) or (size and not (size[:-1] if size[-1] in "kmgKMG%" else size).isdecimal()):
        why = "a size is a number with k, m, g or %"
        raise Fail(f"cannot use --writable={text}", why, "write a directory with a slash: ./DIR", status=USAGE)
    return Writable("" if directory else MEMORY, directory, size)


def form(there: set[str], refused: Callable[[], str]) -> tuple[str, str]:
    """Return the form in which a directory keeps changes, and why: what it has stays as it is.

    there: what the directory has. refused: tells why overlay refuses its file system, "" if it does not; asked only
    where nothing is kept yet. Raises Fail.
    """
    if UPPER in there and CHANGES in there:
        why = f"it has changes as {UPPER!r} and as {CHANGES!r}, and only you know which count"
        raise Fail("cannot tell what to use", why, "move one of them away")
    if UPPER in there:
        return OVERLAY, f"it has {UPPER!r}"
    if CHANGES in there:
        return TAR, f"it has {CHANGES!r}, and stays with it"
    why = refused()
    return (TAR, f"overlay refuses its file system: {why}") if why else (OVERLAY, "overlay takes its file system")


def read_lock(text: str) -> Owner | None:
    """Read a lock's text, None if it is none of ours."""
    words = text.split(":")
    if len(words) != _STEP + 1 or not words[_PID].isdecimal() or not words[_SINCE].isdecimal():
        return None
    place = (words[_NODE], words[_BOOT], words[_SPACE])
    process = int(words[_PID]), words[_START]
    return Owner(place, process, int(words[_SINCE]), words[_FORM], words[_STEP])


def judge(owner: Owner, here: tuple[str, str, str], born: Callable[[int], str]) -> str:
    """Tell whether a lock counts: HELD, FREE as its owner has ended, or UNKNOWN from here.

    born: tells when a process of this pid namespace began, "" if there is none.
    """
    if owner.place[_NODE] != here[_NODE]:
        return UNKNOWN
    if owner.place[_BOOT] != here[_BOOT]:
        return FREE
    if owner.place[_SPACE] != here[_SPACE]:
        return UNKNOWN
    return HELD if owner.start and born(owner.pid) == owner.start else FREE


def record(digest: str, shape: str, path: str) -> str:
    """Write which image changes belong to. digest: of its manifest, or of itself, or "" if nobody knows.

    shape: in hex, of a squashfs its superblock, of a directory its path. path: for people.
    """
    return f"digest {digest}\nshape {shape}\npath {path}\n"


def belongs(recorded: str, digest: str, shape: str) -> bool:
    """Tell whether changes belong to an image: by the digests where both are known, else by the shape."""
    known = dict(line.partition(" ")[::2] for line in recorded.split("\n")[:2])
    if known.get("digest") and digest:
        return known["digest"] == digest
    return known.get("shape") == shape


def recorded_path(recorded: str) -> str:
    """Return the path of the image that changes belong to, for people."""
    return recorded.partition("\npath ")[2].rstrip("\n")

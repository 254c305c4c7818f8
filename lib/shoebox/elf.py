"""ELF: what a library calls itself, which others it needs, in which versions, and which it has. Pure: bytes to values.

See elf(5), and the Linux Standard Base, core, "Symbol Versioning". Little-endian 64-bit files only: those of the
machines that we run on.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Read = Callable[[int, int], bytes]  # offset and length to bytes, fewer at the file's end

HEAD = 20  # bytes: what `machine` wants
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_LOAD, _DYNAMIC, _INTERP = 1, 2, 3  # p_type
_NEEDED, _STRTAB, _STRSZ, _SONAME = 1, 5, 10, 14  # d_tag
_VERDEF, _VERNEED = 0x6FFFFFFC, 0x6FFFFFFE
_MOST = 4 << 20  # bytes of names; honest libraries have some ten thousands
_LIST = 32 << 10  # bytes of a list of versions; that of glibc, the longest, has two thousands
_ENTRY = 8  # bytes of the smallest entry of such a list


class Library:
    """What a library says.

    soname: "" without one. needs: file to versions needed of it. defines: versions. linked_to: the names of others.
    """

    __slots__ = ("defines", "linked_to", "needs", "soname")

    def __init__(
        self, soname: str, needs: dict[str, set[str]], defines: set[str], linked_to: Sequence[str] = ()
    ) -> None:
        """Hold the parts."""
        self.soname = soname
        self.linked_to = linked_to
        self.needs = needs
        self.defines = defines


def machine(head: bytes) -> int:
    """Return e_machine of a file's first HEAD bytes, -1 if it is no ELF file of the kind we read."""
    return int.from_bytes(head[18:20], "little") if head.startswith(_MAGIC) and len(head) >= HEAD else -1


def read(at: Read) -> Library:
    """Read a library's dynamic section. Raises ValueError if it is no library, or a damaged one."""
    headers = _headers(at)
    dynamic = next((header for header in headers if _number(header, 0, 4) == _DYNAMIC), None)
    if dynamic is None:
        raise ValueError("it has no dynamic section")
    loads = [header for header in headers if _number(header, 0, 4) == _LOAD]
    data = at(_number(dynamic, 8, 8), min(_number(dynamic, 32, 8), _MOST))
    listed = [(_number(data, start, 8), _number(data, start + 8, 8)) for start in range(0, len(data) - 15, 16)]
    tags = dict(listed)
    texts = at(_offset(loads, tags.get(_STRTAB, -1)), min(tags.get(_STRSZ, 0), _MOST))

    def versions(tag: int) -> bytes:
        return at(_offset(loads, tags[tag]), _LIST) if tag in tags else b""

    return Library(
        _text(texts, tags[_SONAME]) if _SONAME in tags else "",
        {_text(texts, file): {_text(texts, name) for name in names} for file, names in _needed(versions(_VERNEED))},
        {_text(texts, name) for name in _defined(versions(_VERDEF))},
        [_text(texts, value) for tag, value in listed if tag == _NEEDED],
    )


def interpreter(at: Read) -> str:
    """Return the path of the dynamic linker that a program wants, "" if it wants none. Raises ValueError."""
    header = next((header for header in _headers(at) if _number(header, 0, 4) == _INTERP), None)
    return _text(at(_number(header, 8, 8), _number(header, 32, 8)), 0) if header else ""


def _headers(at: Read) -> list[bytes]:
    """Return the program headers."""
    head = at(0, 64)
    if machine(head) < 0 or len(head) < 64:
        raise ValueError("it is no 64-bit ELF file")
    table, size, count = _number(head, 32, 8), _number(head, 54, 2), _number(head, 56, 2)
    data = at(table, size * count)
    return [data[start : start + 56] for start in range(0, len(data) - 55, size or 56)]


def _needed(data: bytes) -> Iterator[tuple[int, list[int]]]:
    """Yield (vn_file, vna_name of each) of a list of Elf64_Verneed."""
    for start in _chain(data, 0, 12) if data else ():
        names = _chain(data, start + _number(data, start + 8, 4), 12)
        yield _number(data, start + 4, 4), [_number(data, name + 8, 4) for name in names]


def _defined(data: bytes) -> Iterator[int]:
    """Yield vda_name of the first of each of a list of Elf64_Verdef."""
    for start in _chain(data, 0, 16) if data else ():
        yield _number(data, start + _number(data, start + 12, 4), 4)


def _chain(data: bytes, start: int, following: int) -> Iterator[int]:
    """Yield where the entries of a list begin; each has, at `following`, how far the next is, 0 being the end."""
    while True:
        yield start
        step = _number(data, start + following, 4)
        if not step:
            return
        if step < _ENTRY:
            raise ValueError("the entries of a list in it overlap")
        start += step


def _offset(loads: list[bytes], address: int) -> int:
    """Return where in the file an address of memory comes from."""
    for header in loads:
        begin = _number(header, 16, 8)
        if begin <= address < begin + _number(header, 32, 8):
            return address - begin + _number(header, 8, 8)
    raise ValueError("an address in it leads nowhere")


def _text(texts: bytes, start: int) -> str:
    text, end, _ = texts[start : start + 4096].partition(b"\0")
    if not end:
        raise ValueError("a name in it is cut off")
    return text.decode("utf-8", "surrogateescape")


def _number(data: bytes, start: int, size: int) -> int:
    if start + size > len(data):
        raise ValueError("it is cut off")
    return int.from_bytes(data[start : start + size], "little")

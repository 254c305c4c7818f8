"""Sidecars: the JSON beside an image, saying where it came from and how to run it. Pure: values in, values out.

sh-run reads one at every start, so `json` (which imports re: 6 ms) stays out: its scanner in C is used as it is.
The config inside is the OCI image config, image-spec's config.md; what is odd in it never stops an image from running.
"""

from __future__ import annotations

from .fail import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

SCHEMA = 1
BEGINNING = b'{"schema":'  # of every sidecar: another program's JSON of that name is none
MOST = 16 << 20  # bytes; no honest sidecar comes near
_DIGITS = 18  # of an integer: all of 64 bits, and int() of more takes time that grows with their square
_HEX = frozenset("0123456789abcdef")
_BLANKS = " \t\r\n"


class Sidecar:
    """What is known of an image: reference, manifest and platform are None where nobody knew.

    sha256 (hex digits) and size (bytes) are the squashfs's; writer is what made it; lost says what the writer could
    not keep; signed holds signatures and whose they are, {} if there is none; config is the OCI image config, or {}.
    """

    __slots__ = (
        "config",
        "lost",
        "manifest",
        "platform",
        "readable",
        "reference",
        "sha256",
        "signed",
        "size",
        "writer",
    )

    def __init__(
        self,
        config: Mapping[str, object],
        *,
        reference: str | None = None,
        manifest: str | None = None,
        platform: str | None = None,
        sha256: str = "",
        size: int = 0,
        writer: Mapping[str, object] | None = None,
        readable: bool = False,
        lost: Sequence[str] = (),
        signed: Mapping[str, object] | None = None,
    ) -> None:
        """Hold the parts."""
        self.config = config
        self.reference = reference
        self.manifest = manifest
        self.platform = platform
        self.sha256 = sha256
        self.size = size
        self.writer = writer or {}
        self.readable = readable
        self.lost = lost
        self.signed = signed or {}

    @property
    def hex(self) -> str:
        """The digits in the image's file name: the manifest's digest, or the squashfs's own."""
        return self.manifest[len("sha256:") :] if self.manifest else self.sha256

    @property
    def env(self) -> dict[str, str]:
        """The environment, the last of equal names; an entry without `=`, or one that exec cannot pass, is none."""
        listed = self._run("Env")
        pairs = [entry.partition("=") for entry in listed if _passable(entry)] if isinstance(listed, list) else []
        return {name: value for name, equals, value in pairs if name and equals}

    @property
    def entrypoint(self) -> list[str]:
        """The Entrypoint, [] without one."""
        return _argv(self._run("Entrypoint"))

    @property
    def cmd(self) -> list[str]:
        """The Cmd, [] without one."""
        return _argv(self._run("Cmd"))

    @property
    def working_dir(self) -> str:
        """The WorkingDir, "" without one."""
        value = self._run("WorkingDir")
        return value if isinstance(value, str) and _passable(value) else ""

    def _run(self, key: str) -> object:
        section = self.config.get("config")
        return section.get(key) if isinstance(section, dict) else None


def load(data: bytes, name: str) -> Sidecar:
    """Read a sidecar; name is its path, for the error. Raises Fail if it is not one that dump could have written."""
    top = _object(data, name)
    if "schema" not in top:
        raise _wrong(name, "it is not a sidecar: it has no schema")
    if top["schema"] != SCHEMA:
        raise _wrong(name, f"its schema is {top['schema']!r:.40}, not {SCHEMA}", "a newer Shoebox may have written it")
    squashfs, writer, settings, lost = (top.get(key) for key in ("squashfs", "writer", "settings", "lost"))
    if not (isinstance(squashfs, dict) and isinstance(writer, dict) and isinstance(settings, dict)):
        raise _wrong(name, "squashfs, writer or settings is not an object")
    config = top.get("config")
    if not (config is None or isinstance(config, dict)) or not isinstance(lost, list):
        raise _wrong(name, "config or lost is of the wrong type")
    signed = top.get("signed")
    if not (signed is None or isinstance(signed, dict)):
        raise _wrong(name, "signed is not an object")
    sha256, size, readable = squashfs.get("sha256"), squashfs.get("size"), settings.get("readable")
    if not (isinstance(sha256, str) and _is_sha256("sha256:" + sha256)):
        raise _wrong(name, "squashfs.sha256 is not 64 hex digits")
    if type(size) is not int or size < 0 or type(readable) is not bool:
        raise _wrong(name, "squashfs.size or settings.readable is of the wrong type")
    manifest = _text(top, "manifest", name)
    if manifest is not None and not _is_sha256(manifest):
        raise _wrong(name, "manifest is not a sha256 digest")
    return Sidecar(
        config or {},
        reference=_text(top, "reference", name),
        manifest=manifest,
        platform=_text(top, "platform", name),
        sha256=sha256,
        size=size,
        writer=writer,
        readable=readable,
        lost=[str(item) for item in lost],
        signed=signed,
    )


def config_only(data: bytes, name: str) -> Sidecar:
    """Read a bare OCI image config, as /.shoebox/config.json in an image is: a record with nothing but the config."""
    return Sidecar(_object(data, name))


def dump(
    *,
    sha256: str,
    size: int,
    config: bytes | None = None,
    reference: str | None = None,
    manifest: str | None = None,
    platform: str | None = None,
    writer: Mapping[str, object] | None = None,
    readable: bool = False,
    lost: Sequence[str] = (),
    signed: Mapping[str, object] | None = None,
) -> bytes:
    """Write a sidecar; the same values give the same bytes, and load reads them.

    config: the OCI image config, whose text is kept as it is. Raises Fail if that is not a JSON object.
    """
    import json  # noqa: PLC0415 - only sh-run, which writes none, has to be quick

    if config is not None:
        _object(config, "the image's config")

    def line(values: Mapping[str, object]) -> bytes:
        return json.dumps(values, sort_keys=True, separators=(",", ":"))[1:-1].encode() + b",\n"

    # The first line is all that `sh-stage -d host:dir` reads of the sidecar over there, with head(1): see `first_line`.
    data = (
        first_line(sha256, size)
        + b"\n"
        + line({"reference": reference, "manifest": manifest, "platform": platform})
        + line({"writer": writer or {}, "settings": {"readable": readable}, "lost": list(lost)})
        + (line({"signed": signed}) if signed else b"")
        + b'"config":'
        + (config if config is not None else b"null")
        + b"}\n"
    )
    load(data, "the image's sidecar")
    return data


def first_line(sha256: str, size: int) -> bytes:
    """Return the first line of a sidecar, which names the squashfs's content and nothing else."""
    return b'{"schema":%d,"squashfs":{"sha256":"%s","size":%d},' % (SCHEMA, sha256.encode(), size)


def _wrong(name: str, why: str, todo: str = "") -> Fail:
    return Fail(f"cannot use {name!r}", why, todo)


def _text(top: Mapping[str, object], key: str, name: str) -> str | None:
    value = top.get(key)
    if not (value is None or (isinstance(value, str) and _passable(value))):
        raise _wrong(name, f"{key} is not text")
    return value


def _is_sha256(digest: str) -> bool:
    return digest.startswith("sha256:") and len(digest) == 71 and _HEX.issuperset(digest[7:])


def _passable(value: object) -> bool:
    """Tell whether exec can pass it: text without NUL, and without what no UTF-8 can be (JSON's lone surrogates)."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _argv(value: object) -> list[str]:
    """Read Entrypoint or Cmd, which old images write as one string; half a command is none."""
    words = [value] if isinstance(value, str) else value
    return list(words) if isinstance(words, list) and all(_passable(word) for word in words) else []


def _object(data: bytes, name: str) -> dict[str, object]:
    """Parse JSON that has to be an object. Raises Fail."""
    if len(data) > MOST:
        raise _wrong(name, f"it is longer than {MOST >> 20} MiB")
    try:
        value = _json(data.decode().strip(_BLANKS))
    except RecursionError:
        raise _wrong(name, "it is not JSON that we read: it nests too deeply") from None
    except StopIteration as error:
        raise _wrong(name, f"it is not JSON: no value stands at character {error.value}") from None
    except ValueError as error:
        raise _wrong(name, f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _wrong(name, "it is not a JSON object")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS + 1:
        raise ValueError("a number is too long")
    return int(digits)


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


class _Context:
    """What the C scanner asks of a JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = staticmethod(_integer)
    parse_constant = staticmethod(_constant)


def _json(text: str) -> object:
    """Parse one JSON value that is the whole text. Raises ValueError, StopIteration or RecursionError."""
    try:
        from _json import make_scanner  # noqa: PLC0415 - a private module of CPython: it may be gone one day

        value, end = make_scanner(_Context)(text, 0)  # type: ignore[arg-type] # it asks for attributes, not for a class
    except (ImportError, SystemError):  # the latter at a syntax error, as long as nobody has imported json.decoder
        import json  # noqa: PLC0415

        return json.loads(text, parse_int=_integer, parse_constant=_constant)
    if end != len(text):
        raise ValueError(f"something follows it at character {end}")
    return value

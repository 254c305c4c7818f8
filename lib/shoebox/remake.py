"""An image and what was changed in it, as the layers of a new one: what sh-flatten --changes reads. Effects."""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import changes, fail, host, join, sources, store, upper, writable
from .fail import Fail
from .merge import Layer
from .streams import Slice
from .writable import CHANGES, HELD, IMAGE, LOCK, OVERLAY, UPPER

if TYPE_CHECKING:
    from .sources import Source


@dataclass(frozen=True)
class _Base:
    """The image that was changed: how to read it, and what tells it from others (writable.record)."""

    source: Source
    digest: str
    shape: str


def read(name: str, directory: str, spool: str, limit: int) -> Source:
    """Return the image that a name and the directory with its changes make together; it has no name of its own.

    name: what sh-run takes, or sources.read. spool, limit: as for that. Raises Fail, OSError.
    """
    base = _base(name, spool, limit)
    recorded = host.text(os.path.join(directory, IMAGE))
    if recorded is not None and not writable.belongs(recorded, base.digest, base.shape):
        why = f"the changes are those of another image, {writable.recorded_path(recorded)!r}"
        raise Fail(f"cannot add {directory!r} to {name!r}", why, "name that one")
    layer, size = _changes(directory, spool)
    source = base.source
    return replace(source, layers=(*source.layers, layer), size=source.size + size, manifest=None, reference=None)


def _base(name: str, spool: str, limit: int) -> _Base:
    scheme, colon, rest = name.partition(":")
    path = rest if colon and scheme in sources.IMAGES else name if os.path.exists(name) else ""
    if scheme in sources.LAYERED or name == "-":
        source = sources.read(name, spool, limit)
        return _Base(source, source.manifest or "", "")
    path = os.path.realpath(path or store.find(name, os.environ))
    if os.path.isdir(path):
        return _Base(sources.read(path, spool, limit), "", os.fsencode(path).hex())
    _, offset = host.image(path)
    known = store.read_sidecar(path)
    digest = (known.manifest or f"sha256:{known.sha256}") if known else ""
    return _Base(sources.unsquashed(path, spool, limit), digest, changes.superblock(path, offset))


def _changes(directory: str, spool: str) -> tuple[Layer, int]:
    """Return the changes that a directory keeps, and their size in bytes."""
    _look_at_lock(directory)
    there = {name for name in (UPPER, CHANGES) if os.path.lexists(os.path.join(directory, name))}
    if len(there) != 1:
        why = "there are none" if not there else f"there are {UPPER!r} and {CHANGES!r}"
        raise Fail(f"cannot read changes in {directory!r}", why, "name the directory of sh-run --writable=DIR")
    path = os.path.join(directory, *there)
    try:
        if CHANGES in there:
            return Layer(repr(path), lambda: open(path, "rb")), os.path.getsize(path)
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
    spooled = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 - it stays open as long as the image is read
    try:
        about = os.fstat(root)
        odd = upper.pack(root, spooled, (about.st_uid, about.st_gid))
    except OSError as error:
        raise Fail(f"cannot read all of {path!r}", error) from error
    finally:
        os.close(root)
    if odd:
        fail.say(f"warning: left out {odd[0]!r} and all else whose name begins with '.wh.', {len(odd)} in all")
    spooled.flush()
    size = spooled.tell()
    return Layer(repr(path), lambda: io.BufferedReader(Slice(spooled.fileno(), 0, size), 1 << 17)), size


def _look_at_lock(directory: str) -> None:
    """Tell of a run that has the directory, as far as that can be known from here. Raises Fail if it is sure."""
    try:
        owner = writable.read_lock(os.readlink(os.path.join(directory, LOCK)))
    except OSError:  # nobody has it
        return
    verdict = writable.judge(owner, changes.here(), join.born) if owner else ""
    if not owner or verdict == writable.FREE:
        return
    who = f"process {owner.pid} on {owner.place[0]}"
    if verdict == HELD and owner.form == OVERLAY:
        raise Fail(f"cannot read changes in {directory!r}", f"{who} is making some", "wait for its end")
    fail.say(f"warning: {who} has {directory!r}, or had it last: what it may be changing now is not in the image")

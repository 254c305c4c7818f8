"""Blobs that no image needs leave the cache, beside pulls that may be at work there.

A layout directory goes first, then what no layout needs. Whatever goes is renamed, then looked at again, and put back
if a pull has come to rely on it; a pull, for its part, renews what it finds, publishes its layout, and then looks
whether all blobs are still there. So either it sees that one has gone, and fetches it again, or we see its layout.
No locks: it holds between nodes, and what a kill leaves, the next one finishes.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from . import layout, oci
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Iterator

_YOUNG = 24 * 3600  # seconds: what was pulled or flattened so lately may be on its way into a store
_BLOB = re.compile(r"[0-9a-f]{64}")
_AWAY = re.compile(r"\.([0-9a-f]{64})\.away")
_AWAY_LAYOUT = re.compile(r"\.(.+)\.away-[0-9a-f]{8}")


def drop(cache: str, images: set[str], age: float | None, *, dry: bool) -> tuple[int, int]:
    """Remove layouts and blobs that nobody needs; return how many blobs, and their bytes.

    images: hex digits of the manifests of images that are in stores: their layouts stay. age: seconds after which
    these go too, if they have not been pulled or flattened in all that time. Raises Fail if a layout cannot be read:
    what it needs nobody knows.
    """
    shared = os.path.join(cache, "oci", "blobs", "sha256")
    if not os.path.isdir(shared):
        return 0, 0
    now = time.time()
    if not dry:
        _mend_layouts(cache, now - _YOUNG)
    needed: set[str] = set()
    for where in _layouts(cache):
        digests, manifests = _closure(where)
        made = bool(manifests & images)
        limit = 0.0 if made and age is None else now - max(_YOUNG, age or 0 if made else 0)
        if not _older(os.path.join(where, "index.json"), limit) or not (dry or _drop_layout(where, limit)):
            needed |= digests
    going = [name for name in _old_blobs(shared, now - _YOUNG) if name not in needed]
    if dry:
        return len(going), sum(os.lstat(os.path.join(shared, name)).st_size for name in going)
    for name in going:
        with suppress(FileNotFoundError, PermissionError):  # another one was quicker; it is not ours
            os.rename(os.path.join(shared, name), os.path.join(shared, f".{name}.away"))
    return _finish(cache, shared, now - _YOUNG)


def _finish(cache: str, shared: str, limit: float) -> tuple[int, int]:
    """Delete the blobs that are away, or put them back: their list first, and then what layouts need. Raises Fail."""
    away = [name[1:65] for name in os.listdir(shared) if _AWAY.fullmatch(name)]
    needed: set[str] = set()
    try:
        for where in _layouts(cache, limit) if away else ():
            needed |= _closure(where)[0]
    except Fail:
        needed.update(away)
        raise
    finally:
        count = size = 0
        for digits in away:
            with suppress(FileNotFoundError, PermissionError):
                path = os.path.join(shared, f".{digits}.away")
                about = os.lstat(path)
                if digits in needed or about.st_mtime > limit:
                    _back(shared, digits)
                else:
                    os.unlink(path)
                    count, size = count + 1, size + about.st_size
    return count, size


def _layouts(cache: str, limit: float = 0) -> Iterator[str]:
    """Yield the layout directories of references; with a limit, those too that are away and will be put back."""
    top = os.path.join(cache, "oci")
    for where, folders, files in os.walk(top):
        if "index.json" in files:
            yield where
        away = [name for name in folders if _AWAY_LAYOUT.fullmatch(name)] if limit else []
        for path in [os.path.join(where, name) for name in away]:
            if not _older(os.path.join(path, "index.json"), limit):
                yield path
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (where != top or name != "blobs"))


def _closure(where: str) -> tuple[set[str], set[str]]:
    """Return the hex digits of all blobs that a layout needs, and of the manifests among them. Raises Fail."""
    index = os.path.join(where, "index.json")
    digests: set[str] = set()
    manifests: set[str] = set()
    try:
        with open(index, "rb") as file:
            todo = [oci.parse_manifest(file.read(oci.MAX_DOCUMENT + 1), oci.OCI_INDEX)]
        while todo:
            found = todo.pop()
            if isinstance(found, oci.Manifest):
                digests |= {blob.hex for blob in (found.config, *found.layers)}
                continue
            entries = {one.hex: one for entry in found.manifests for one in (entry, oci.original(entry))}
            for digits in entries.keys() - manifests:
                manifests.add(digits)
                data = _document(os.path.join(where, "blobs", "sha256"), entries[digits])
                todo.append(oci.parse_manifest(data, entries[digits].media_type))
    except (FileNotFoundError, Fail) as error:
        if not os.path.lexists(index):  # another one has dropped all of it
            return set(), set()
        remedy = "pull it again, or remove it"
        raise Fail(f"cannot tell what {where!r} needs, so no blob goes", str(error), remedy) from error
    return digests | manifests, manifests


def _document(shared: str, descriptor: oci.Descriptor) -> bytes:
    """Read a document that a layout needs; if it is away, put it back. Raises Fail."""
    try:
        return layout.read_document(shared, descriptor)
    except Fail:
        with suppress(FileNotFoundError):
            _back(shared, descriptor.hex)
        return layout.read_document(shared, descriptor)


def _back(shared: str, digits: str) -> None:
    os.rename(os.path.join(shared, f".{digits}.away"), os.path.join(shared, digits))


def _older(path: str, limit: float) -> bool:
    """Tell whether a file is there, ours to remove, and older than a time."""
    try:
        about = os.lstat(path)
    except FileNotFoundError:
        return False
    return about.st_mtime < limit and os.geteuid() in (0, about.st_uid)


def _old_blobs(shared: str, limit: float) -> list[str]:
    return [n for n in os.listdir(shared) if _BLOB.fullmatch(n) and _older(os.path.join(shared, n), limit)]


def _drop_layout(where: str, limit: float) -> bool:
    """Remove a layout directory as a whole, unless it is renewed before nobody can find it any more; tell."""
    parent, name = os.path.split(where)
    away = os.path.join(parent, f".{name}.away-{os.urandom(4).hex()}")
    try:
        os.rename(where, away)
    except FileNotFoundError:
        return True
    return _end_layout(away, where, limit)


def _end_layout(away: str, where: str, limit: float) -> bool:
    if _older(os.path.join(away, "index.json"), limit) or not os.path.lexists(os.path.join(away, "index.json")):
        shutil.rmtree(away, ignore_errors=True)
        return True
    try:
        os.rename(away, where)
    except OSError:  # a pull has made a new one
        shutil.rmtree(away, ignore_errors=True)
    return False


def _mend_layouts(cache: str, limit: float) -> None:
    """Finish with layouts that a kill has left away."""
    for where, folders, _ in os.walk(os.path.join(cache, "oci")):
        for name in folders:
            if known := _AWAY_LAYOUT.fullmatch(name):
                _end_layout(os.path.join(where, name), os.path.join(where, known[1]), limit)

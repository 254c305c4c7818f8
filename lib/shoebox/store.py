"""Stores: directories that hold each image once, by digest, with its sidecar beside it and its names as symlinks.

    sha256-HEX.sqfs  sha256-HEX.json  docker.io/library/debian/12.sqfs -> ../../../sha256-HEX.sqfs

Here they are read, by sh-run too, so it imports little; publish.py fills them.
"""

from __future__ import annotations

import errno
import os

from . import paths, reference
from .fail import USAGE, Fail
from .sidecar import BEGINNING, MOST, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .reference import Reference
    from .sidecar import Sidecar

_SHORTEST = 12  # digits of a digest that may stand for all


def image_file(digits: str) -> str:
    """Return the file name of the image with this digest."""
    return f"sha256-{digits}.sqfs"


def sidecar_file(image: str) -> str:
    """Return the path or name of the sidecar beside an image that ends in .sqfs."""
    return f"{image[: -len('.sqfs')]}.json"


def find(name: str, env: Mapping[str, str]) -> str:
    """Return what locate does, every symlink followed: a name that moves later changes nothing."""
    return os.path.realpath(locate(name, env))


def locate(name: str, env: Mapping[str, str]) -> str:
    """Return the path of the image that a user means, or of its name in a store.

    A name with a slash that exists, or that ends in one of paths.IMAGES, is a path (it may be a directory);
    `sha256:HEX` or Shifter's `id:HEX`, at least 12 digits, and references are looked up in the stores of SHOEBOX_PATH,
    in order. Raises Fail.
    """
    if name.endswith(paths.IMAGES) or ("/" in name and os.path.exists(name)):
        return name
    stores = paths.stores(env)
    if name.startswith("sha256:") or (name.startswith("id:") and _is_digits(name[len("id:") :])):
        return _find_digest(name, stores)
    refused = None
    for wanted in _meant(name, env):
        files = [f"{wanted.stem}.sqfs"] + ([image_file(wanted.digest[7:])] if wanted.digest else [])
        for path in [os.path.join(store, file) for store in stores for file in files]:
            try:
                os.stat(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    refused = Fail(f"cannot use {path!r}", error)
            else:
                return path
    raise refused or _absent(name, stores, env)


def read_sidecar(image: str) -> Sidecar | None:
    """Return what is known of the image at this path, None if no sidecar lies beside it. Raises Fail, OSError."""
    text = sidecar_text(image)
    return None if text is None else load(text, sidecar_file(image))


def sidecar_text(image: str) -> bytes | None:
    """Return the sidecar beside the image at this path as it is, None if there is none. Raises OSError.

    A file of that name that does not begin like one is somebody's own; what is too long for load is not read whole.
    """
    data = _beside(sidecar_file(image)) if image.endswith(".sqfs") else None
    return data if data and data.startswith(BEGINNING) else None


def shifter_text(image: str) -> bytes | None:
    """Return the .meta that Shifter's gateway writes beside an image, None if there is none. Raises OSError."""
    end = ".squashfs"
    data = _beside(f"{image[: -len(end)]}.meta") if image.endswith(end) else None
    return data if data and b"\nFORMAT:" in b"\n" + data else None


def _beside(path: str) -> bytes | None:
    """Return a file's bytes, or one more than MOST of them; None if there is no such file. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    except FileNotFoundError:
        return None
    try:
        size = min(os.fstat(fd).st_size, MOST) + 1
        data = os.read(fd, size)
        while len(data) < size and (more := os.read(fd, size - len(data))):
            data += more
    finally:
        os.close(fd)
    return data


def names(store: str, told: Callable[[OSError], None], under: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, what it links to or "") of all that lies where names lie, sorted; both paths are from the store.

    told: what to do about a directory that cannot be read.
    """
    try:
        with os.scandir(os.path.join(store, under)) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        told(error)
        return
    for entry in entries:
        path = os.path.join(under, entry.name)
        if entry.name.startswith("."):  # ours, or a file server's .snapshot
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from names(store, told, path)
        elif entry.is_symlink() and under:
            try:
                meant = os.readlink(entry.path)
            except FileNotFoundError:  # removed at this moment
                continue
            yield path, os.path.normpath(os.path.join(under, meant))
        elif under:
            yield path, ""


def called(stem: str) -> str:
    """Return the reference that a stem in a store stands for."""
    repository, _, last = stem.rpartition("/")
    return f"{repository}@sha256:{last[8:]}" if last.startswith("@sha256-") else f"{repository}:{last}"


def holds(store: str, known: Sidecar) -> str:
    """Return the path of the image in the store if its content is the one known (sha256 and size), else ""."""
    path = os.path.join(store, image_file(known.hex))
    try:
        there = read_sidecar(path)
        same = there is not None and there.sha256 == known.sha256 and os.stat(path).st_size == known.size
    except (Fail, FileNotFoundError):  # half of a pair, or a damaged sidecar: to be made anew
        return ""
    return path if same else ""


def writable(store: str) -> bool:
    """Tell whether we could put an image into the store, or make the store if there is none."""
    while not os.path.lexists(store) and store != os.path.dirname(store):
        store = os.path.dirname(store)
    return os.path.isdir(store) and os.access(store, os.W_OK | os.X_OK)


def target(env: Mapping[str, str]) -> str:
    """Return the first store of SHOEBOX_PATH, other than the user's own, that we can write to; "" if there is none."""
    own = os.path.realpath(paths.images(env))
    return next((s for s in paths.stores(env) if os.path.realpath(s) != own and writable(s)), "")


def _meant(name: str, env: Mapping[str, str]) -> list[Reference]:
    """Return the references that a name may stand for, more than one only if a registries.toml has a search order."""
    wanted = reference.parse(name)
    tables = [os.path.join(where, "registries.toml") for where in (paths.SITE, paths.user_config(env))]
    if not wanted.short or not any(map(os.path.exists, tables)):
        return [wanted]
    from . import registries  # noqa: PLC0415 - reading TOML costs milliseconds

    return list(registries.candidates(name, env))


def _is_digits(text: str) -> bool:
    """Tell whether this may stand for a digest."""
    return _SHORTEST <= len(text) <= 64 and not set(text) - set("0123456789abcdef")


def _find_digest(name: str, stores: list[str]) -> str:
    digits = name.partition(":")[2]
    if not _is_digits(digits):
        why = f"a digest is {_SHORTEST} to 64 lower-case hex digits"
        raise Fail(f"not a digest: {name!r}", why, "see sh-images", status=USAGE)
    hits: dict[str, str] = {}
    for store in stores:
        try:
            full = [image_file(digits), f"{digits}.squashfs"]
            files = full if len(digits) == 64 else os.listdir(store)
        except OSError:  # a store that is not there holds nothing
            continue
        for file in files:
            path = os.path.join(store, file)
            ours = file.startswith(f"sha256-{digits}") and file.endswith(".sqfs")
            if (ours or (file.startswith(digits) and file.endswith(".squashfs"))) and os.path.exists(path):
                hits.setdefault(file, path)
    if len(hits) > 1:
        raise Fail(
            f"{name!r} may be any of {len(hits)} images", ", ".join(sorted(hits)), "give more digits", status=USAGE
        )
    if not hits:
        raise Fail(f"no image {name!r} in {_told(stores)}", todo="sh-images lists what is there")
    return next(iter(hits.values()))


def _absent(name: str, stores: list[str], env: Mapping[str, str]) -> Fail:
    # Of such a name it is somebody's own file: see imports.py.
    todo = f"sh-flatten --name {name} FILE" if name.startswith("localhost/") else f"sh-pull {name} | sh-flatten"
    todo += " | sh-stage"
    if os.path.exists(name):
        todo = f"write './{name}' if you mean what is here, or {todo}"
    own = paths.images(env)
    if own not in stores and not any(map(writable, stores)):
        todo += f", with {own!r} added to SHOEBOX_PATH"
    return Fail(f"no image {name!r} in {_told(stores)}", todo=todo)


def _told(stores: list[str]) -> str:
    return ", ".join(map(repr, stores))

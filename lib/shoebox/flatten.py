"""sh-flatten: layers merged into one squashfs image, with its sidecar, straight into a store."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from . import (
    amounts,
    fail,
    image,
    naming,
    oci,
    paths,
    publish,
    remake,
    sidecar,
    signatures,
    sources,
    squashfs,
    store,
    systems,
    trust,
    unpack,
    usage,
)
from .fail import Fail
from .merge import Layer, Merge, NeedsIndex, note
from .meter import meter
from .readers import OWNER, UMASK, hidden
from .superblock import COMPRESSORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .reference import Reference
    from .sources import Source

USAGE = """
usage: sh-flatten [options] [NAME...]

Make one squashfs image of each NAME, and print its path. A NAME is what sh-pull prints (oci:DIR:NAME),
oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], squashfs:FILE, sif:FILE, or a root file system: a directory,
or a tar (- is stdin); of regular files, a squashfs and a SIF file need no word before them.
Without operands, names are read from stdin, one a line.

  -o, --output FILE        write the image here, and its sidecar beside it
  -d, --store DIR          put the image into this store (default: images in $SHOEBOX_CACHE)
      --name REFERENCE     call it localhost/USER/NAME[:TAG], in the store too
      --config FILE        give it this config (Env, Entrypoint and so on, in OCI's JSON): a tar, a directory
      --tar                write the merged layers to stdout, as a tar, and make no image
      --changes DIR        lay over the image NAME, one that sh-run takes, what sh-run --writable=DIR kept
  -c, --compressor NAME    zstd, gzip, lz4, xz or lzo (default: zstd)
      --system NAME        compress as systems.toml says for this system
  -l, --level N            compression level (default: zstd 3, gzip 6, lzo 8)
  -j, --jobs N             processors to compress with (default: those we may use)
      --readable           give everyone the owner's right to read, search and execute
      --max-size SIZE      refuse what unpacks to more; K, M, G or T may follow (default: 500G)
  -q, --quiet              no progress on a terminal
  -h, --help               print this, and end
      --version            print the version, and end
"""
CONFIG = ".shoebox/config.json"  # within the image: a copy of its config, for the day when no sidecar lies beside it


@dataclass(frozen=True)
class Job:
    """What the words on the command line ask for, the same for every name."""

    settings: squashfs.Settings
    readable: bool
    limit: int
    quiet: bool
    output: str
    store: str
    changes: str
    name: Reference | None
    config: bytes | None
    site: trust.Site | None


def run(argv: list[str]) -> int:
    """Do what sh-flatten's words say; return its exit status."""
    options = usage.parse(USAGE, argv)
    output, place = options.one("output"), options.one("store")
    if output and place:
        raise Fail("'--output' and '--store' exclude each other", status=fail.USAGE)
    if output and len(options.operands) != 1:
        raise Fail("'--output' takes exactly one NAME", f"{len(options.operands)} given", status=fail.USAGE)
    system = systems.asked(options, "compressor", os.environ)
    compressor = system.compressor if system else options.one("compressor")
    job = Job(
        squashfs.settings(compressor or COMPRESSORS[0], options.one("level"), options.one("jobs")),
        options.flag("readable"),
        amounts.parse_size(options.one("max-size", "500G")),
        options.flag("quiet"),
        output,
        os.path.abspath(place) if place else paths.images(os.environ),
        options.one("changes"),
        naming.own(options.one("name")) if options.flag("name") else None,
        _config(options.one("config")) if options.flag("config") else None,
        trust.site(),
    )
    for only in ("changes", "name", "config"):
        if options.flag(only) and len(options.operands) != 1:
            raise Fail(f"'--{only}' takes exactly one NAME", f"{len(options.operands)} given", status=fail.USAGE)
    fail.stop_on_signals()
    if options.flag("tar"):
        return _tar(job, options)
    writer = squashfs.find()
    act = _into_file if output else _into_store
    return fail.each(usage.names(options, "NAME"), lambda name: act(name, job, writer))


def _config(path: str) -> bytes:
    """Read a config for what has none. Raises Fail."""
    try:
        with open(path, "rb") as file:
            data = file.read(oci.MAX_DOCUMENT + 1)
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
    if len(data) > oci.MAX_DOCUMENT:
        raise Fail(f"cannot use {path!r}", "it is too large for a config")
    return oci.without_layers(data)


def _tar(job: Job, options: usage.Options) -> int:
    """Write the merged tar of one source to stdout."""
    if len(options.operands) != 1 or job.output:
        raise Fail("'--tar' takes exactly one NAME, and no '--output'", status=fail.USAGE)
    if sys.stdout.isatty():
        raise Fail("will not write a tar to a terminal", todo="redirect stdout", status=fail.USAGE)
    source = _source(options.operands[0], job, _spool())
    out = sys.stdout.buffer
    _signed(source, job)
    with _merge(source, job) as (merge, layers):
        merge.with_index(layers, out.write)
        out.flush()
    return 0


def _source(name: str, job: Job, spool: str) -> Source:
    """Find out what there is to be flattened. spool: where a copy of it may be put, unlinked."""
    source = remake.read(name, job.changes, spool, job.limit) if job.changes else sources.read(name, spool, job.limit)
    if job.config is not None:
        if name.partition(":")[0] in sources.LAYERED or job.changes:
            raise Fail(f"cannot give {name!r} a config", "it has its own, with its layers", status=fail.USAGE)
        platform = str(oci.parse_config(job.config).platform) or None
        source = replace(source, config=job.config, platform=platform)
    return replace(source, reference=job.name) if job.name else source


def _spool() -> str:
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - what is put there has no name


def _into_store(name: str, job: Job, writer: squashfs.Writer) -> str:
    """Flatten one source into the store; return the image's path. What is there already is not made again."""
    publish.prepare(job.store)
    source = _source(name, job, job.store)
    stems = [source.reference.stem] if source.reference else []
    signed = _signed(source, job)
    who = OWNER if source.private else UMASK
    if source.manifest:
        who = publish.heirs(job.store, source.manifest.removeprefix("sha256:"), who)
    there = _made_before(source, job, writer)
    if there:
        path = os.path.join(job.store, store.image_file(there.hex))
        publish.narrow(path, who)
        if signed and signed != there.signed:
            text = _sidecar(source, there.size, there.sha256, there.writer, job, there.lost, signed)
            publish.refresh(path, text)
        publish.renew(path)
        for stem in stems:
            publish.name(job.store, stem, there.hex)
        if store.holds(job.store, there):  # sh-expire may have been retiring it
            return path
    part = publish.temporary(job.store)
    try:
        with hidden(who):
            beside = _write(source, job, writer, part, signed)
        return publish.image(job.store, part, beside, stems, who)
    finally:
        publish.discard(part)


def _made_before(source: Source, job: Job, writer: squashfs.Writer) -> sidecar.Sidecar | None:
    """Return the sidecar of the image that this job would make, if the store has it, made in the very same way."""
    if not source.manifest:
        return None
    path = os.path.join(job.store, store.image_file(source.manifest.removeprefix("sha256:")))
    try:
        known = store.read_sidecar(path)
    except Fail:  # damaged: to be made anew
        return None
    same = known and known.writer == writer.record(job.settings) and known.readable == job.readable
    return known if known and same and store.holds(job.store, known) and image.whole(path) else None


def _into_file(name: str, job: Job, writer: squashfs.Writer) -> str:
    """Flatten one source into a file of the user's choice, with its sidecar; return its path."""
    where = os.path.dirname(os.path.abspath(job.output))
    if not os.path.isdir(where):
        raise Fail(f"cannot write {job.output!r}", f"{where!r} is not a directory", status=fail.USAGE)
    if not job.output.endswith(".sqfs"):
        raise Fail(f"cannot write {job.output!r}", todo="give it a name that ends in .sqfs", status=fail.USAGE)
    known = store.sidecar_file(job.output)
    if os.path.lexists(known) and store.sidecar_text(job.output) is None:
        why = f"its sidecar would replace {known!r}, which is something else"
        raise Fail(f"cannot write {job.output!r}", why, "choose another name")
    publish.sweep(where)
    source = _source(name, job, where)
    signed = _signed(source, job)
    part, beside = publish.temporary(where), publish.temporary(where)
    try:
        with hidden(OWNER if source.private else UMASK):
            text = _write(source, job, writer, part, signed)
            with open(beside, "xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        # Never an image with another one's sidecar beside it: for a moment there is none, as for a mailed image.
        publish.discard(known)
        os.rename(part, job.output)
        os.rename(beside, known)
        publish.sync(where)
    finally:
        publish.discard(part)
        publish.discard(beside)
    return job.output


def _signed(source: Source, job: Job) -> Mapping[str, object]:
    """Return what the sidecar says of signatures: these, and whose the site's policy took. Raises Fail."""
    signers = job.site.admit(source.reference, source.manifest, source.signed) if job.site else []
    if not source.signed.signatures:
        return {}
    return {**signatures.record(source.signed), "verified": [asdict(signer) for signer in signers]}


def _write(source: Source, job: Job, writer: squashfs.Writer, part: str, signed: Mapping[str, object]) -> bytes:
    """Write the image to part, durably, and return its sidecar."""
    with _merge(source, job) as (merge, layers):
        lost = _with(writer)(merge, layers, job, writer, part)
    if not image.whole(part):  # whatever its writer says
        raise Fail(f"{writer.program} has made half an image", todo="try again", status=fail.LATER)
    for what in sorted(lost):
        fail.say(f"warning: {writer.program} {writer.version} cannot keep {what}: left out")
    size, digest = _digest(part)
    return _sidecar(source, size, digest, writer.record(job.settings), job, lost | merge.lost, signed)


def _sidecar(
    source: Source,
    size: int,
    digest: str,
    writer: Mapping[str, object],
    job: Job,
    lost: Iterable[str],
    signed: Mapping[str, object],
) -> bytes:
    return sidecar.dump(
        sha256=digest,
        size=size,
        config=source.config,
        reference=str(source.reference) if source.reference else None,
        manifest=source.manifest,
        platform=source.platform,
        writer=writer,
        readable=job.readable,
        lost=sorted(lost),
        signed=signed,
    )


@contextmanager
def _merge(source: Source, job: Job) -> Iterator[tuple[Merge, list[Layer]]]:
    """Yield a merge that shows its progress, and its layers with our copy of the config on top."""
    layers = list(source.layers)
    if source.config is not None:
        layers.append(note({CONFIG: source.config}, "the image's config"))
    with meter(source.size, "flatten", job.quiet) as advance:
        merge = Merge(job.limit, job.readable, advance)
        yield merge, layers
    if "POSIX ACLs" in merge.lost:
        fail.say("warning: this image has POSIX ACLs, which squashfs cannot hold: they are left out")


def _with(writer: squashfs.Writer) -> Callable[[Merge, list[Layer], Job, squashfs.Writer, str], set[str]]:
    """Return the way that suits a writer; each returns what it had to leave out."""
    return {
        squashfs.TAR2SQFS: _streamed,
        squashfs.MKSQUASHFS_TAR: _parents_first,
        squashfs.MKSQUASHFS: _unpacked,
    }[writer.program]


def _streamed(merge: Merge, layers: list[Layer], job: Job, writer: squashfs.Writer, part: str) -> set[str]:
    """For a writer that takes entries in any order: one pass if the layers allow it."""
    try:
        with squashfs.sink(writer, job.settings, part) as sink:
            merge.one_pass(layers, sink.write)
    except NeedsIndex:
        with squashfs.sink(writer, job.settings, part) as sink:
            merge.with_index(layers, sink.write)
    return set()


def _parents_first(merge: Merge, layers: list[Layer], job: Job, writer: squashfs.Writer, part: str) -> set[str]:
    """For a writer that wants parents first, and takes the root's mode on its command line."""
    tree = merge.index(layers)
    root = squashfs.Root(merge.root_mode(tree), merge.newest)
    with squashfs.sink(writer, job.settings, part, root) as sink:
        merge.by_index(tree, layers, sink.write)
    return {"the owner and the time of the root directory"} if tree.root.entry else set()


def _unpacked(merge: Merge, layers: list[Layer], job: Job, writer: squashfs.Writer, part: str) -> set[str]:
    """For a writer that knows no tar."""
    with unpack.Tree(part) as tree:
        tree.fill(lambda write: merge.with_index(layers, write))
        squashfs.pack(writer, job.settings, tree, merge.newest, part)
        return tree.lost


def _digest(path: str) -> tuple[int, str]:
    """See a file on the disk, and meanwhile hash it: its size in bytes, its sha256."""
    with open(path, "rb") as file:
        errors: list[OSError] = []

        def sync() -> None:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                errors.append(error)

        thread = threading.Thread(target=sync)
        thread.start()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        thread.join()
        if errors:
            raise Fail(f"cannot write {path!r}", errors[0], "free some space, or choose another place") from errors[0]
        return os.fstat(file.fileno()).st_size, digest

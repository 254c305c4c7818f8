"""What one image needs, from registries into the cache: manifest, config, layers, and a layout for them."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from . import fail, layout, lookup, oci, parts, platforms, registries, signatures, trust
from .fail import Fail
from .meter import meter
from .mirrors import Sources
from .registry import TRIES
from .web import Web

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .credentials import Finder
    from .lookup import Found
    from .platforms import Platform
    from .reference import Reference
    from .registry import Registry

_ROUNDS = 5  # of fetching what somebody removes meanwhile
_PROGRESS = 1 << 20  # bytes: a connection that broke after so many does not count as a failed try


@dataclass(frozen=True)
class Settings:
    """What holds for every name of one command line."""

    web: Web
    table: registries.Table
    find: Finder  # of credentials
    cache: str
    blobs: str
    wanted: Platform
    suffix: str  # of layout directories, for another platform than this machine's
    jobs: int
    quiet: bool
    site: trust.Site | None
    prove: bool  # that the registry has a blob for us, before a cached one is used
    given_up: set[str] = field(default_factory=set)  # mirrors that do not work


def prepare(
    cache: str,
    env: Mapping[str, str],
    find: Finder,
    wanted: Platform | None,
    jobs: int,
    *,
    quiet: bool,
    prove: bool = False,
) -> Settings:
    """Read the tables; wanted: a platform, this machine's by default. Raises Fail.

    prove: the cache has what others may have and we may not, so the registry is asked about each blob.
    """
    table = registries.read(env)
    native = platforms.native(os.uname().machine)
    return Settings(
        web=Web(table, env, jobs),
        table=table,
        find=find,
        cache=cache,
        blobs=layout.shared_blobs(cache),
        wanted=wanted or native,
        suffix="+" + str(wanted).replace("/", "-") if wanted and wanted != native else "",
        jobs=jobs,
        quiet=quiet,
        site=trust.site(),
        prove=prove,
    )


def image(settings: Settings, text: str) -> str:
    """Fetch the image that a name means; return the layout's name, `oci:DIR:NAME`. Raises Fail."""
    reference, sources = _choose(settings, registries.resolve(text, settings.table))
    return get(settings, reference, sources, lookup.resolve(sources, reference, settings.wanted))


def get(settings: Settings, reference: Reference, sources: Sources, found: Found) -> str:
    """Fetch what a manifest lists, and make its layout; return the layout's name, `oci:DIR:NAME`. Raises Fail."""
    descriptor = found.descriptor
    signed = _admit(settings.site, sources.own, reference, found) if settings.site else b""
    where = layout.directory(settings.cache, reference, settings.suffix)
    layout.prepare(settings.cache)
    needed = {blob.hex for blob in (descriptor, found.manifest.config, *found.manifest.layers)}
    private = layout.is_private(where) or sources.private(descriptor.digest)
    for _ in range(_ROUNDS):
        try:
            with layout.kept(settings.blobs, needed, private):
                config = _fetch_all(settings, sources, reference, descriptor, found.manifest)
        except Fail as error:
            if isinstance(error.__cause__, FileNotFoundError):  # of a blob that sh-expire is just putting back
                continue
            raise
        own = config.platform if config.platform.architecture else settings.wanted
        named = replace(descriptor, platform=descriptor.platform or own, annotations={})
        layout.publish(settings.cache, where, str(reference), named, found.data, signed, private)
        # From now on no sh-expire takes what we need; one that was at work before may have.
        if not layout.lacks(settings.blobs, needed):
            return f"oci:{where}:{reference}"
    raise Fail("its blobs disappear again and again", "somebody clears the cache", "try again", fail.LATER)


def _choose(settings: Settings, found: list[Reference]) -> tuple[Reference, Sources]:
    """Decide which registry a name means: of a search order, the first that has it; blocked ones are passed over."""
    found = [reference for reference in found if not settings.table.blocks(reference.registry)] or found[:1]
    for reference in found:
        sources = Sources(settings.web, settings.table, reference, settings.find, settings.given_up)
        if reference is found[-1] or sources.has(reference.digest or reference.tag):
            break
    return reference, sources


def _admit(site: trust.Site, registry: Registry, reference: Reference, found: Found) -> bytes:
    """Ask the site's policy, before any blob is fetched; return the signatures that it wanted, if any. Raises Fail."""
    bundle = lookup.signed(registry, found) if site.asks(reference) else signatures.NONE
    site.admit(reference, found.descriptor.digest, bundle)
    return signatures.dump(bundle) if bundle.signatures else b""


def _check_platform(descriptor: oci.Descriptor, config: oci.Config, wanted: Platform) -> None:
    """Refuse an image of another platform, which no index has chosen."""
    own = replace(config.platform, variant=wanted.variant)
    if descriptor.platform is None and own.architecture and not platforms.runs_on(own, wanted):
        todo = f"pull it with --platform={config.platform} if you mean it"
        raise Fail(f"it is for {config.platform}, not for {wanted}", todo=todo)


def _fetch_all(
    settings: Settings, sources: Sources, reference: Reference, descriptor: oci.Descriptor, manifest: oci.Manifest
) -> oci.Config:
    """Fetch config and layers, several at once, the largest first; return the config. The first failure stops all."""
    layers = {layer.digest: layer for layer in sorted(manifest.layers, key=lambda layer: -layer.size)}
    wanted = [manifest.config, *layers.values()]
    stop = threading.Event()
    pool = ThreadPoolExecutor(settings.table.jobs(reference.registry, settings.jobs))
    try:
        with meter(sum(blob.size for blob in wanted), str(reference), settings.quiet) as advance:
            tasks = [
                pool.submit(_fetch, settings.blobs, sources, blob, advance, stop, settings.prove) for blob in wanted
            ]
            for task in as_completed(tasks):
                task.result()
                if task is tasks[0]:
                    config = oci.parse_config(layout.read_document(settings.blobs, manifest.config))
                    _check_platform(descriptor, config, settings.wanted)
        return config
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _fetch(
    blobs: str,
    sources: Sources,
    descriptor: oci.Descriptor,
    advance: Callable[[int], None],
    stop: threading.Event,
    prove: bool = False,
) -> None:
    """Have one blob under its name, verified: what is there already, what an earlier pull left, and the rest."""
    layout.renew(os.path.join(blobs, descriptor.hex))
    state = layout.check_blob(blobs, descriptor)
    if state == "damaged":
        fail.say(f"the cached blob '{descriptor.digest}' is damaged: fetching it again")
    if prove and state == "good":
        sources.prove(descriptor)
    if state == "good":
        parts.forget(blobs, descriptor)
        advance(descriptor.size)
        return
    with parts.take(blobs, descriptor, partial(_go_on, stop)) as part:
        if layout.check_blob(blobs, descriptor) == "good":  # by another pull, while we waited
            if prove:
                sources.prove(descriptor)
            part.restart()
            advance(descriptor.size)
            return
        if prove and part.size:  # which may be all of it, by somebody else's pull
            sources.prove(descriptor)
        advance(part.size)
        sources.each(partial(_complete, descriptor, part, advance, stop))


def _complete(
    descriptor: oci.Descriptor,
    part: parts.Part,
    advance: Callable[[int], None],
    stop: threading.Event,
    source: Registry,
) -> None:
    """Fetch the rest of a blob from one source, and publish it. Raises Fail."""
    failures = 0
    while True:
        before = part.size
        try:
            _receive(source, descriptor, part, advance, stop)
        except ConnectionError as error:
            failures = 1 if part.size - before >= _PROGRESS else failures + 1
            if failures == TRIES:
                raise Fail(f"the connection breaks off ({error})", todo="pull again", status=fail.LATER) from error
            time.sleep(0.5 * failures)
            continue
        size = part.size
        if part.publish():
            return
        advance(-size)
        if not before:
            raise Fail(f"the registry sent something else for {descriptor.digest!r}")


def _receive(
    registry: Registry,
    descriptor: oci.Descriptor,
    part: parts.Part,
    advance: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Fetch what is missing. Raises ConnectionError when less came."""
    if part.size == descriptor.size:
        return
    start, pieces = registry.blob(descriptor, part.size)
    if start != part.size:
        advance(-part.size)
        part.restart()
    for piece in pieces:
        _go_on(stop)
        if part.size + len(piece) > descriptor.size:
            advance(-part.size)
            part.restart()
            raise Fail(f"the registry sent something else for {descriptor.digest!r}", "too many bytes")
        part.write(piece)
        advance(len(piece))
    if part.size < descriptor.size:
        raise ConnectionError(f"{part.size} of {descriptor.size} bytes came")


def _go_on(stop: threading.Event) -> None:
    """Leave a thread that nobody waits for any more; not by a Fail, which would have the next source asked."""
    if stop.is_set():
        raise CancelledError

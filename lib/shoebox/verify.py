"""sh-verify: hold images against their sidecars, the registry they came from, and the site's policy."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import (
    credentials,
    fail,
    image,
    launch,
    lookup,
    platforms,
    reference,
    registries,
    signatures,
    squashfs,
    store,
    trust,
    usage,
)
from .fail import FAILED, LATER, Fail
from .meter import meter
from .registry import Registry
from .web import Web

if TYPE_CHECKING:
    from .image import Image
    from .sidecar import Sidecar

USAGE = """
usage: sh-verify [-q] [--registry] [--rebuild] [IMAGE...]

Compare each image with its sidecar and with the site's policy, and print one line for
each: its path, a verdict, and what was seen. An IMAGE is what sh-run takes.
Without IMAGEs, read them from standard input, one a line.

      --registry   ask the registry: is the manifest there, does the name still lead to it
      --rebuild    fetch the image again, make it again as its sidecar says, and compare
  -q, --quiet      show no progress
"""
_VERDICTS = ("differs", "gone", "moved", "unknown")  # what else is wrong has failed


@dataclass(frozen=True)
class Settings:
    """What holds for every image of one command line."""

    registry: bool
    rebuild: bool
    quiet: bool
    site: trust.Site | None


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    fail.stop_on_signals()
    settings = Settings(options.flag("registry"), options.flag("rebuild"), options.flag("quiet"), trust.site())
    status = 0
    for word in usage.names(options, "IMAGE"):
        line, one = _judge(word, settings)
        sys.stdout.buffer.write(os.fsencode(line) + b"\n")
        sys.stdout.buffer.flush()
        status = fail.worst(status, one)
    return status


def _judge(word: str, settings: Settings) -> tuple[str, int]:
    """Return an image's line and its status."""
    path = word
    try:
        path = store.find(word, os.environ)
        return _line(path, f"good: {', '.join(_verify(path, settings))}"), 0
    except Fail as error:
        failure = error
    except OSError as error:
        failure = Fail("cannot read it", error)
    said = str(failure)
    if failure.status == LATER:
        said = f"unknown: {said}"
    elif said.partition(":")[0] not in _VERDICTS:
        said = f"failed: {said}"
    return _line(path, said), failure.status


def _line(path: str, said: str) -> str:
    """Return one line, whatever names and servers put into it."""
    text = f"{path}: {said}"
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else repr(c)[1:-1] for c in text)


def _verify(path: str, settings: Settings) -> list[str]:
    """Do the checks that are wanted, the cheapest first; return what each has seen. Raises Fail, OSError."""
    os.stat(path)
    if store.sidecar_text(path) is None:
        raise Fail("unknown", "no sidecar lies beside it: there is nothing to compare it with")
    with image.opened(path, quiet=settings.quiet) as found:
        _file(found, settings.quiet)
        known = found.known
        seen = ["as its sidecar says"]
        if settings.site:
            seen += _signed(settings.site, known)
        if settings.registry:
            seen.append(_registry(known))
        if settings.rebuild:
            seen.append(_rebuild(known, settings.quiet))
        return seen


def _file(found: Image, quiet: bool) -> None:
    """Hash the file, and hold it against the sidecar."""
    with meter(found.size, found.label, quiet) as advance:
        found.check(image.pour(found.fd, found.offset, found.size, None, advance))
    digits = os.path.basename(found.path).removeprefix("sha256-").removesuffix(".sqfs")
    if len(digits) == 64 and digits != found.known.hex:
        raise Fail("its sidecar is another image's", f"of sha256:{found.known.hex}")


def _signed(site: trust.Site, known: Sidecar) -> list[str]:
    """Ask the site's policy; return whose signatures it took."""
    named = reference.parse(known.reference) if known.reference else None
    signers = site.admit(named, known.manifest, signatures.read(known.signed))
    return [f"signed by {signer.key}" for signer in signers]


def _registry(known: Sidecar) -> str:
    """Ask the registry for the manifest by its digest, then where the name leads. Raises Fail."""
    named, manifest = _origin(known)
    source = _open(named)
    if not source.has(manifest):
        raise Fail("gone", f"{named.registry!r} does not have {manifest!r}, or not for us")
    if named.digest:
        return f"{named.registry} has its manifest"
    now = lookup.resolve(source, named, _platform(known)).descriptor.digest
    if now != manifest:
        raise Fail("moved", f"{str(named)!r} is {now} by now")
    return f"{str(named)!r} leads to it"


def _rebuild(known: Sidecar, quiet: bool) -> str:
    """Pull and flatten the image again, from nothing, as the sidecar says. Raises Fail."""
    named, manifest = _origin(known)
    words, here = _flatten_words(known)
    if here != dict(known.writer):
        wrong = sorted(key for key in {*here, *known.writer} if here.get(key) != known.writer.get(key))
        listed = ", ".join(f"{key} {known.writer.get(key)!r:.60}, here {here.get(key)!r:.60}" for key in wrong)
        raise Fail("unknown", f"it cannot be rebuilt here: its writer is another: {listed}")
    with tempfile.TemporaryDirectory(prefix="sh-verify-") as room:
        env = {**os.environ, "SHOEBOX_CACHE": f"{room}/cache"}
        platform = [f"--platform={known.platform}"] if known.platform else []
        silent = ["--quiet"] * quiet
        exact = f"{named.registry}/{named.repository}@{manifest}"
        name = _run([launch.command("sh-pull"), *silent, *platform, exact], env)
        made = _run([launch.command("sh-flatten"), *silent, *words, f"--output={room}/rebuilt.sqfs", name], env)
        sha256 = (store.read_sidecar(made) or known).sha256
    if sha256 != known.sha256:
        raise Fail("differs", f"rebuilt from {manifest}, its sha256 is {sha256}, and should be {known.sha256}")
    return "rebuilt bit for bit"


def _flatten_words(known: Sidecar) -> tuple[list[str], dict[str, object]]:
    """Return sh-flatten's options for the image, and what a sidecar written here would say of the writer."""
    compressor, level = known.writer.get("compressor"), known.writer.get("level")
    how = [f"--compressor={compressor}", *([f"--level={level}"] if level else [])]
    settings = squashfs.settings(str(compressor), str(level or ""), "")
    return [*how, *(["--readable"] if known.readable else [])], squashfs.find().record(settings)


def _run(words: list[str], env: dict[str, str]) -> str:
    """Run another command of ours, whose stderr is ours; return what it prints. Raises Fail."""
    done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        status = LATER if done.returncode == LATER else FAILED
        raise Fail("it cannot be rebuilt", f"{os.path.basename(words[0])} says why on stderr", status=status)
    return os.fsdecode(done.stdout).removesuffix("\n")


def _origin(known: Sidecar) -> tuple[reference.Reference, str]:
    if not (known.reference and known.manifest):
        raise Fail("unknown", "its sidecar names no registry that it came from")
    return reference.parse(known.reference), known.manifest


def _open(named: reference.Reference) -> Registry:
    table = registries.read(os.environ)
    return Registry(
        Web(table, os.environ, 1), table.place(named.registry), named.repository, credentials.finder(os.environ)
    )


def _platform(known: Sidecar) -> platforms.Platform:
    return platforms.parse_platform(known.platform) if known.platform else platforms.native(os.uname().machine)

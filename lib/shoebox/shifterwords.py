"""What Shifter's words and variables mean: images, volumes, `#!` lines. Pure.

As src/{shifter,ImageData,VolumeMap}.c and wlm_integration/slurm of github.com/NERSC/shifter read them.
"""

from __future__ import annotations

from .fail import USAGE, Fail
from .paths import IMAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_TYPES = ("docker", "custom", "id", "local")


def image(text: str) -> tuple[str, str]:
    """Return an image's type and what follows it: docker's is the default, and paths and digests tell theirs."""
    kind, colon, rest = text.partition(":")
    if colon and kind in _TYPES and not rest.startswith("//"):
        return kind, rest
    if kind == "sha256":
        return "id", rest
    return "local" if text.startswith(("/", "./", "../")) or text.endswith(IMAGES) else "docker", text


def name(text: str) -> str:
    """Return an image as sh-run takes it: custom images are found by name, as docker's are."""
    kind, rest = image(text)
    return f"id:{rest}" if kind == "id" else rest


def wanted(given: str, env: Mapping[str, str]) -> tuple[str, str]:
    """Return the image to run in, and what it was asked for as. given: --image's, or "". Raises Fail.

    What a job was submitted with stays what its tag meant then, also for who repeats --image. Else --image counts
    before the variables.
    """
    kind, tag, request = (variable(env, f"SHIFTER_{part}") for part in ("IMAGETYPE", "IMAGE", "IMAGEREQUEST"))
    submitted = f"id:{tag}" if kind == "id" and tag else env.get("SHOEBOX_IMAGE", "")
    if given:
        return (submitted if submitted and image(given) == image(request) else given), given
    found = f"{kind}:{tag}" if kind and tag else variable(env, "SHIFTER") or submitted
    if not found:
        raise Fail("no image given", todo="name one with --image, or submit the job with one", status=USAGE)
    return found, request if request and found == submitted else found


def told(text: str) -> tuple[str, str]:
    """Return an image as Shifter tells it inside: what was submitted by us is a path in a store, to Shifter an id."""
    kind, rest = image(text)
    digits = rest.rpartition("/sha256-")[2].removesuffix(".sqfs")
    stored = kind == "local" and len(digits) == 64 and not set(digits) - set("0123456789abcdef")
    return ("id", digits) if stored else (kind, rest)


def variable(env: Mapping[str, str], called: str) -> str:
    """Return a variable's value, or what Slurm made of it for prologs and the like, or ""."""
    return env.get(called) or env.get(f"SLURM_SPANK_{called}", "")


def volumes(texts: Iterable[str]) -> Iterator[str]:
    """Yield volumes as sh-run takes them, of SRC:DST[:FLAG...] with `;` between them. Raises Fail."""
    for text in texts:
        for one in filter(None, (part.strip('"') for part in text.split(";"))):
            source, *rest = one.split(":")
            flags = [flag if flag.lower().startswith("pernodecache") else flag.lower() for flag in rest[1:]]
            yield ":".join([source, *rest[:1], *flags])


def unpacked(argv: Sequence[str], script: str) -> list[str]:
    """Return the words as a script's `#!` line means them: the kernel gives them as one, if any, then the script."""
    if script and list(argv[1:2]) == [script]:
        return [*argv[0].split(), *argv[1:]]
    return list(argv)

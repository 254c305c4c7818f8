"""shifterimg: Shifter's words for images, said to sh-pull, sh-flatten, sh-stage and sh-images."""

from __future__ import annotations

import json
import os
import subprocess
import time

from . import registries, shifterwords, store, usage
from .fail import FAILED, Fail
from .fail import USAGE as WRONG

USAGE = """
usage: shifterimg [-v] pull IMAGE
       shifterimg lookup IMAGE
       shifterimg images
       shifterimg login [REGISTRY]

Get an image from a registry into a store, print an image's identifier, list the
images that the stores hold, or log in at a registry, as Shifter does. An IMAGE is a reference, or docker:REFERENCE.

  -v, --verbose    end what pull prints with an empty line, which scripts count on
  -h, --help       print this
"""
_STEPS = ("sh-pull", "sh-flatten", "sh-stage")
_LATER = ("pullnb", "expire", "autoexpire")
_SYSTEM = "local"  # Shifter's name for a cluster: there is but one


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv, stop_at_operand=True, loose=True)
    mode, *operands = options.operands or [""]
    if mode in _LATER:
        raise Fail(f"cannot do {mode!r}", "that is not there yet", "there are pull, lookup, images and login")
    if mode == "images" and not operands:
        return _images()
    if mode == "login" and len(operands) < 2:
        return _login(operands[0] if operands else "default")
    if mode not in ("pull", "lookup") or len(operands) != 1:
        raise Fail(
            "no mode given" if not mode else f"cannot do {' '.join(options.operands)!r}", todo="see -h", status=WRONG
        )
    if mode == "lookup":
        print(_identifier(store.find(shifterwords.name(operands[0]), os.environ)))
        return 0
    return _pull(operands[0], options.flag("verbose"))


def _pull(image: str, verbose: bool) -> int:
    """Get an image into the store that sh-stage chooses; say how it went, as Shifter does in the end."""
    kind, word = shifterwords.image(image)
    if kind != "docker":
        raise Fail(f"cannot pull {image!r}", "only docker's images come from registries", status=WRONG)
    told = f"docker:{word}"
    status = 0
    for step in _STEPS:
        done = subprocess.run([_beside(step), word], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            status = FAILED
            break
        word = os.fsdecode(done.stdout).removesuffix("\n")
    print(
        f"{_when(time.time())} Pulling Image: {told}, status: {'FAILURE' if status else 'READY'}",
        end="\n\n" if verbose else "\n",
    )
    return status


def _login(location: str) -> int:
    """Ask for a name and a password, and keep them. location: a registry, or `default` for the first of the search."""
    first = registries.read(os.environ).search[:1] if location == "default" else [location]
    done = subprocess.run([_beside("sh-login"), *first], check=False)
    return FAILED if done.returncode else 0


def _images() -> int:
    """List the images that have a name."""
    done = subprocess.run([_beside("sh-images"), "--json"], stdout=subprocess.PIPE, check=False)
    named = [(_familiar(row["name"]), row) for row in json.loads(done.stdout) if row["name"]]
    for name, row in sorted(named, key=lambda pair: pair[0]):
        hexes = row["digest"].partition(":")[2]
        print(f"{_SYSTEM:10} {'docker':10} {'READY':8} {hexes[:10]}   {_when(row['created'])} {name:30}")
    return FAILED if done.returncode else 0


def _identifier(path: str) -> str:
    """Return the digits by which a store knows an image. Raises Fail."""
    digits = os.path.basename(path).removeprefix("sha256-").rpartition(".")[0]
    if len(digits) != 64:
        raise Fail(f"no identifier for {path!r}", "it is not in a store")
    return digits


def _familiar(name: str) -> str:
    """Return a name as people write it."""
    return name.removeprefix("docker.io/").removeprefix("library/")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def _beside(command: str) -> str:
    """Return the path of another command of ours."""
    return os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../bin", command)

"""shifterimg: Shifter's words for images, said to sh-pull, sh-flatten, sh-stage, sh-images, sh-rm and sh-expire."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from . import account, background, fail, launch, paths, readers, registries, shifterwords, siteconf, store, usage
from .fail import FAILED, Fail, say, told

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = """
usage: shifterimg [-v] [-u USERS] [-g GROUPS] pull|pullnb IMAGE
       shifterimg lookup|expire IMAGE
       shifterimg images|autoexpire
       shifterimg login [REGISTRY]

Get an image from a registry into a store, print an image's identifier, remove an image, list the
images that the stores hold, remove those that nobody uses, or log in at a registry, as Shifter does.
An IMAGE is a reference, or docker:REFERENCE. pullnb does not wait: it tells how far the pull is.

  -u, --user USERS...      with pull: only these users, and its owner, can use the image
  -g, --group GROUPS...    with pull: only these groups, and its owner
  -v, --verbose            a line for each state of a pull, then an empty one, which scripts count on
  -h, --help               print this
"""
_STEPS = (("PULLING", "sh-pull"), ("CONVERSION", "sh-flatten"), ("TRANSFER", "sh-stage"))
_PULLING = "Pulling Image:"
_HEARD = {"queue": "PENDING", "pull": "PULLING", "flatten": "CONVERSION", "stage": "TRANSFER"}  # of the image account
_BEGUN, _READY, _FAILURE = "INIT", "READY", "FAILURE"
_FRESH = 300  # seconds in which a pull is not repeated, imagemanager.json's PullUpdateTimeout
_SYSTEM = "local"  # Shifter's name for a cluster: there is but one


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv, stop_at_operand=True, loose=True)
    mode, *operands = options.operands or [""]
    acts: dict[tuple[str, int], Callable[[], int]] = {
        ("pull", 1): lambda: _pull(operands[0], options),
        ("pullnb", 1): lambda: _pullnb(operands[0], options),
        ("lookup", 1): lambda: _lookup(operands[0]),
        ("expire", 1): lambda: _expire(operands[0]),
        ("images", 0): _images,
        ("autoexpire", 0): _autoexpire,
        ("login", 0): lambda: _login("default"),
        ("login", 1): lambda: _login(operands[0]),
    }
    act = acts.get((mode, len(operands)))
    if not act:
        what = f"cannot do {' '.join(options.operands)!r}" if mode else "no mode given"
        raise Fail(what, todo="see -h", status=fail.USAGE)
    if (options.flag("user") or options.flag("group")) and mode not in ("pull", "pullnb"):
        raise Fail(f"'--user' and '--group' do not go with {mode!r}", todo="see -h", status=fail.USAGE)
    return act()


def _pull(image: str, options: usage.Options) -> int:
    """Get an image into the site's store, or the one that sh-stage chooses; say how it went, as Shifter does."""
    word = _reference(image)
    tell = partial(_tell, f"docker:{word}")
    try:
        way = _by_account if siteconf.one("account") else _by_ourselves
        status = way(word, options, tell if options.flag("verbose") else _silent)
    except BrokenPipeError:  # nobody listens any more
        raise
    except (Fail, OSError) as error:
        say(str(error if isinstance(error, Fail) else told(error)))
        status = FAILED
    tell(_FAILURE if status else _READY)
    if options.flag("verbose"):
        print()
    return status


def _by_ourselves(word: str, options: usage.Options, tell: Callable[[str], None]) -> int:
    """Do what the three commands do."""
    for state, step in _STEPS:
        tell(state)
        who = _readers(options) if step == "sh-stage" else []
        done = subprocess.run([launch.command(step), *who, word], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            return FAILED
        word = os.fsdecode(done.stdout).removesuffix("\n")
    return 0


def _by_account(word: str, options: usage.Options, tell: Callable[[str], None]) -> int:
    """Have the site's image account do it."""
    users, groups = (readers.names(options.all(key)) for key in ("user", "group"))

    def hear(said: str, _rest: str) -> None:
        if said in _HEARD:
            tell(_HEARD[said])

    account.image(word, None, users, groups, hear)
    return 0


def _silent(_state: str) -> None:
    """Tell nothing."""


def _pullnb(image: str, options: usage.Options) -> int:
    """Do what pull does, and do not wait: the same again tells how far it is, and fails once it has ended."""
    word = _reference(image)
    argv = [launch.command("shifterimg"), "-v", *_readers(options), "pull", word]
    where = os.path.join(paths.cache(os.environ), "pulls")
    said, at_work = background.log(where, "\0".join(argv[1:]), argv, _FRESH)
    lines = [line for line in said if line and _PULLING not in line]
    states = [line.rpartition(" ")[2] for line in said if _PULLING in line]
    for line in lines:
        print(line, file=sys.stderr)
    _tell(f"docker:{word}", states[-1] if states else _BEGUN)
    return 0 if at_work else FAILED


def _reference(image: str) -> str:
    """Return what an image is called in a registry. Raises Fail."""
    kind, word = shifterwords.image(image)
    if kind != "docker":
        raise Fail(f"cannot pull {image!r}", "only docker's images come from registries", status=fail.USAGE)
    return word


def _readers(options: usage.Options) -> list[str]:
    """Return who may use the image, in our commands' words."""
    return [f"--{key}={value}" for key in ("user", "group") for value in options.all(key)]


def _tell(image: str, state: str) -> None:
    print(f"{_when(time.time())} {_PULLING} {image}, status: {state}", flush=True)


def _lookup(image: str) -> int:
    print(_identifier(store.find(shifterwords.name(image), os.environ)))
    return 0


def _expire(image: str) -> int:
    """Remove an image, or its name if it has others; what it prints is not Shifter's."""
    done = subprocess.run([launch.command("sh-rm"), shifterwords.name(image)], stdout=subprocess.DEVNULL, check=False)
    return FAILED if done.returncode else 0


def _autoexpire() -> int:
    """Remove what nobody has used for as long as the site says, from every store that we may write to."""
    age = siteconf.one("expire")
    if not age:
        raise Fail("no images expire by themselves here", "site.conf sets no 'expire'", "see sh-expire --age")
    stores = [path for path in paths.stores(os.environ) if os.path.isdir(path) and store.writable(path)]
    done = subprocess.run(
        [launch.command("sh-expire"), f"--age={age}", *stores], stdout=subprocess.DEVNULL, check=False
    )
    return FAILED if done.returncode else 0


def _login(location: str) -> int:
    """Ask for a name and a password, and keep them. location: a registry, or `default` for the first of the search."""
    first = registries.read(os.environ).search[:1] if location == "default" else [location]
    done = subprocess.run([launch.command("sh-login"), *first], check=False)
    return FAILED if done.returncode else 0


def _images() -> int:
    """List the images that have a name."""
    done = subprocess.run([launch.command("sh-images"), "--json"], stdout=subprocess.PIPE, check=False)
    named = [(_familiar(row["name"]), row) for row in json.loads(done.stdout) if row["name"]]
    for name, row in sorted(named, key=lambda pair: pair[0]):
        hexes = row["digest"].partition(":")[2]
        print(f"{_SYSTEM:10} {'docker':10} {_READY:8} {hexes[:10]}   {_when(row['created'])} {name:30}")
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

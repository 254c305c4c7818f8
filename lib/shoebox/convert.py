"""sh-convert: make site.conf and modules of Shifter's udiRoot.conf, registries.toml of its imagemanager.json."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from . import fail, imagemanager, registries, site, siteconf, udiroot, usage
from .fail import Fail, say

if TYPE_CHECKING:
    from collections.abc import Mapping

USAGE = """
usage: sh-convert [-d DIR] FILE

Convert Shifter's udiRoot.conf into site.conf, or the registries of its imagemanager.json into registries.toml, and
print that. What cannot be carried over is told on standard error: a line for each key, with the reason or what there
is instead.

  -d, --directory DIR    write DIR/site.conf and DIR/modules.d/NAME.conf, or DIR/registries.toml, instead,
                         where none is, and print their names
"""


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    if len(options.operands) != 1:
        raise Fail("one FILE is needed", todo="see -h", status=fail.USAGE)
    path = options.operands[0]
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
    if imagemanager.is_one(text):
        return _registries(options, text)
    made = udiroot.convert(text)
    if not made.site.partition("\n\n")[2] and not made.modules:
        say(f"warning: nothing in {path!r} is for site.conf")
    files = {site.FILE: made.site}
    files |= {f"{site.MODULES}/{name}{site.SUFFIX}": text for name, text in made.modules.items()}
    for name, text in files.items():
        siteconf.check(site.parse(text, name, "" if name == site.FILE else name))
    for key, why in made.left:
        say(f"{key}: {why}")
    if options.flag("directory"):
        _write(options.one("directory"), files)
        return 0
    sys.stdout.buffer.write(os.fsencode(made.site))
    if made.modules:
        say(f"warning: left out are the modules {', '.join(made.modules)}: write them with -d")
    return 0


def _registries(options: usage.Options, text: str) -> int:
    """Convert an imagemanager.json."""
    made, left = imagemanager.convert(text)
    for key, why in left:
        say(f"{key}: {why}")
    if options.flag("directory"):
        _write(options.one("directory"), {registries.FILE: made})
    else:
        sys.stdout.buffer.write(os.fsencode(made))
    return 0


def _write(directory: str, files: Mapping[str, str]) -> None:
    """Write the files, or none of them if one of these names is taken. Raises Fail."""
    taken = [name for name in files if os.path.lexists(os.path.join(directory, name))]
    if taken:
        raise Fail(f"cannot write {os.path.join(directory, taken[0])!r}", "it is there", "choose another directory")
    for name, text in files.items():
        path = os.path.join(directory, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "x", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError as error:
            raise Fail(f"cannot write {path!r}", error) from error
        print(path, flush=True)

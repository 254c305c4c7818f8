"""sh-rm: remove images, or names of theirs, from stores; keep them from being removed."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from . import account, fail, offer, publish, removal, store, usage
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from .removal import Found

USAGE = """
usage: sh-rm [--name | --pin | --unpin] [IMAGE...]
       sh-rm --for-site [IMAGE...]

Remove your images from stores, and print the path of each. An IMAGE is what sh-run
takes. By one of several names, only the name is removed; by its last name, its
digest or its path, the image, with all its names. Jobs that run from it go on.
Without IMAGEs, read them from standard input, one a line.

      --name           remove the name, and let the image stay
      --pin            remove nothing; sh-expire and sh-rm keep the image from now on
      --unpin          no longer
      --for-site       have the site's image account remove what you brought into its store
                       by sh-stage --for-site; an IMAGE is its name, localhost/USER/NAME[:TAG]
"""
_ACTS = ("name", "pin", "unpin", "for-site")


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    asked = [act for act in _ACTS if options.flag(act)]
    if len(asked) > 1:
        raise Fail(f"'--{asked[0]}' and '--{asked[1]}' do not go together", todo="see -h", status=fail.USAGE)
    acts: dict[str, Callable[[str, Found, str], str]] = {"pin": _pin, "unpin": _unpin, "name": partial(_remove, True)}
    fail.stop_on_signals()
    os.umask(os.umask(0o022) | 0o002)
    if options.flag("for-site"):
        account.which()
        return fail.each(usage.names(options, "IMAGE"), lambda name: "\n".join(offer.remove(name)))
    act = acts[asked[0]] if asked else partial(_remove, False)
    return fail.each(usage.names(options, "IMAGE"), lambda word: _do(word, act))


def _do(word: str, act: Callable[[str, Found, str], str]) -> str:
    """Find out which image of which store is meant, and by which name, and act on it."""
    path = os.path.abspath(store.locate(word, os.environ))
    image = os.path.realpath(path)
    where, file = os.path.split(image)
    if not removal.digits_of(file):
        raise Fail(f"cannot remove {word!r}", "it is not an image in a store", "rm(1) removes files")
    link = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) if os.path.islink(path) else ""
    link = os.path.relpath(link, where) if link else ""
    found = next((one for one in removal.look(where) if one.digits == removal.digits_of(file)), None)
    if not found:
        raise Fail(f"no image {word!r} in {where!r}")
    try:
        return act(where, found, link if link in found.links else "")
    except PermissionError as error:
        raise Fail(f"cannot change {where!r}", error, "ask who it belongs to") from error


def _remove(only_name: bool, where: str, image: Found, link: str) -> str:
    path = os.path.join(where, store.image_file(image.digits))
    if link and (only_name or len(image.links) > 1):
        path = os.path.join(where, link)
        removal.check_own(path, store.called(link.removesuffix(".sqfs")))
        removal.unname(where, link, lambda meant: meant == store.image_file(image.digits))
        return path
    if only_name:
        raise Fail(f"cannot remove {path!r}", "--name needs a name, and this is the image itself", status=fail.USAGE)
    removal.check_own(path, path)
    if image.pinned:
        raise Fail(f"cannot remove {path!r}", "it is pinned", "sh-rm --unpin first")
    removal.remove(where, image)
    return path


def _pin(where: str, image: Found, _link: str) -> str:
    removal.pin(where, image.digits)
    return os.path.join(where, store.image_file(image.digits))


def _unpin(where: str, image: Found, _link: str) -> str:
    path = os.path.join(where, store.image_file(image.digits))
    publish.discard(publish.pin_file(path))
    return path

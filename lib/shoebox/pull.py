"""sh-pull: fetch images from registries into OCI layouts that share their blobs."""

from __future__ import annotations

import os
from functools import partial

from . import credentials, fail, fetch, paths, platforms, usage
from .fail import Fail

USAGE = """
usage: sh-pull [-q] [-j N] [-p OS/ARCH[/VARIANT]] [REF...]

Fetch images from registries and print the name of each, oci:DIR:NAME, for sh-flatten.
Without REFs, read them from standard input, one a line.

  -j, --jobs N             fetch so many blobs at once (default: 4)
  -p, --platform PLATFORM  OS/ARCH[/VARIANT] to fetch instead of this machine's own
  -q, --quiet              show no progress
"""


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    jobs = options.one("jobs", "4")
    if not (jobs.isascii() and jobs.isdigit() and 1 <= int(jobs) <= 64):
        raise Fail(f"not a number of jobs: {jobs!r}", todo="give one from 1 to 64", status=fail.USAGE)
    wanted = platforms.parse_platform(options.one("platform")) if options.flag("platform") else None
    os.umask(os.umask(0o022) | 0o002)  # a cache that anybody may write to is nobody's
    fail.stop_on_signals()
    cache, find = paths.cache(os.environ), credentials.finder(os.environ)
    settings = fetch.prepare(cache, os.environ, find, wanted, int(jobs), quiet=options.flag("quiet"))
    return fail.each(usage.names(options, "REF"), partial(pull, settings))


def pull(settings: fetch.Settings, text: str) -> str:
    """Fetch one image and return its name, `oci:DIR:NAME`."""
    try:
        return fetch.image(settings, text)
    except Fail as error:
        if error.status == fail.USAGE:
            raise
        raise Fail(f"cannot pull {text!r}", str(error), status=error.status) from error

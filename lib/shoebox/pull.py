"""sh-pull: fetch images from registries into OCI layouts that share their blobs."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from . import account, credentials, fail, fetch, paths, platforms, readers, systems, usage
from .fail import Fail

if TYPE_CHECKING:
    from .platforms import Platform

USAGE = """
usage: sh-pull [-q] [-j N] [-p OS/ARCH[/VARIANT] | --system NAME] [REF...]
       sh-pull [-q] --for-site [--user NAME...] [--group NAME...] [-p PLATFORM] [REF...]

Fetch images from registries and print the name of each, oci:DIR:NAME, for sh-flatten.
With --for-site, have the site's image account make them, and print each one's path.
Without REFs, read them from standard input, one a line.

  -j, --jobs N             fetch so many blobs at once (default: 4)
  -p, --platform PLATFORM  OS/ARCH[/VARIANT] to fetch instead of this machine's own
      --system NAME        fetch for this system, as systems.toml tells its platform
  -q, --quiet              show no progress
      --for-site           ask the account that site.conf names; its store gets the image
      --user NAME,...      who may read the image besides you, if not everybody may
      --group NAME,...     which groups may
"""


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    jobs = options.one("jobs", "4")
    if not (jobs.isascii() and jobs.isdigit() and 1 <= int(jobs) <= 64):
        raise Fail(f"not a number of jobs: {jobs!r}", todo="give one from 1 to 64", status=fail.USAGE)
    wanted = _wanted(options)
    fail.stop_on_signals()
    if options.flag("for-site"):
        return _for_site(options, wanted)
    for other in ("user", "group"):
        if options.flag(other):
            raise Fail(f"'--{other}' goes with '--for-site'", todo="else say it to sh-stage", status=fail.USAGE)
    os.umask(os.umask(0o022) | 0o002)  # a cache that anybody may write to is nobody's
    cache, find = paths.cache(os.environ), credentials.finder(os.environ)
    settings = fetch.prepare(cache, os.environ, find, wanted, int(jobs), quiet=options.flag("quiet"))
    return fail.each(usage.names(options, "REF"), partial(pull, settings))


def _wanted(options: usage.Options) -> Platform | None:
    """Return the platform that is asked for, None for this machine's. Raises Fail."""
    if system := systems.asked(options, "platform", os.environ):
        return system.platform
    return platforms.parse_platform(options.one("platform")) if options.flag("platform") else None


def pull(settings: fetch.Settings, text: str) -> str:
    """Fetch one image and return its name, `oci:DIR:NAME`."""
    try:
        return fetch.image(settings, text)
    except Fail as error:
        if error.status == fail.USAGE:
            raise
        raise Fail(f"cannot pull {text!r}", str(error), status=error.status) from error
    except OSError as error:
        told = fail.told(error)
        raise Fail(f"cannot pull {text!r}", str(told), status=told.status) from error


def _for_site(options: usage.Options, wanted: Platform | None) -> int:
    """Have the image account do it."""
    if options.flag("jobs"):
        raise Fail("'--jobs' and '--for-site' do not go together", todo="see -h", status=fail.USAGE)
    account.which()
    users, groups = readers.names(options.all("user")), readers.names(options.all("group"))

    def ask(text: str) -> str:
        hear = account.ignore if options.flag("quiet") else partial(account.show, text)
        return "\n".join(account.image(text, wanted, users, groups, hear))

    return fail.each(usage.names(options, "REF"), ask)

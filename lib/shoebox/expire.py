"""sh-expire: remove images that nobody uses, by age, by quota, by name; and blobs that no image needs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import amounts, blobs, expiry, fail, paths, publish, removal, site, siteconf, store, usage, uses
from .fail import Fail, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .removal import Found

USAGE = """
usage: sh-expire [-n] [-q] [--age TIME] [--quota SIZE] [--match PATTERN] [--keep PATTERN]
                 [--grace TIME] [--usage DIR] [--blobs] [DIR...]

Remove your images from these stores, or from your own, as the options say, and print
the path of each, with the reason on standard error. Pinned ones stay; see sh-rm. What
is removed waits in .retired until no job can be using it; then it is deleted here.

      --age TIME       those that have not been used for so long, as in 30d
      --quota SIZE     until yours take no more than this, those with the oldest use
      --match PATTERN...  only those all names of which match (`-`: without a name);
                       without --age and --quota, all of those
      --keep PATTERN...  none that has a name that matches
      --grace TIME     delete what was removed so long ago (default: site.conf's grace, 14d)
      --usage DIR      the lines that runs have left (default: site.conf's usage; without,
                       the time when the file was last read counts)
      --blobs          also what sh-pull keeps of images that are in none of the stores
  -n, --dry-run        remove nothing, and say what would be
  -q, --quiet          give no reasons
"""

_GRACE = "14d"  # few sites let a job run longer, and who does says so in site.conf


@dataclass(frozen=True)
class Settings:
    """What holds for every store; grace in seconds; used: by digest; None where atime must do."""

    rules: expiry.Rules
    grace: float
    used: Mapping[str, float] | None
    dry: bool
    quiet: bool


def run(argv: list[str]) -> int:
    """Do what the words say; return the exit status."""
    options = usage.parse(USAGE, argv)
    own = siteconf.own()
    rules = expiry.Rules(
        amounts.parse_span(options.one("age")) if options.flag("age") else None,
        amounts.parse_size(options.one("quota")) if options.flag("quota") else None,
        tuple(options.all("match")),
        tuple(options.all("keep")),
    )
    grace = amounts.parse_span(options.one("grace") or own.one("grace") or _GRACE)
    where = options.one("usage") or own.one("usage")
    settings = Settings(rules, grace, _lines(where), options.flag("dry-run"), options.flag("quiet"))
    os.umask(os.umask(0o022) | 0o002)
    fail.stop_on_signals()
    wheres = [os.path.abspath(operand) for operand in options.operands] or [paths.images(os.environ)]
    if not options.operands and not os.path.isdir(wheres[0]):  # nothing was ever made
        wheres = []
    status = 0
    for store_dir in wheres:
        try:
            status = fail.worst(status, _expire(store_dir, settings))
        except OSError as error:
            told = Fail(f"cannot expire {store_dir!r}", error)
            say(str(told))
            status = fail.worst(status, told.status)
    if options.flag("blobs"):
        _blobs(wheres, settings)
    return status


def _lines(where: str) -> Mapping[str, float] | None:
    """Return when each image was last used, by digest, as runs have left it; None if the site has no such lines."""
    if not where.startswith("/"):
        if where and where != site.NONE:
            say(f"runs tell syslog of their images ({where!r}), which is not read: the files' times of access count")
        return None
    try:
        return uses.last_uses(where)
    except OSError as error:  # nothing is known, so that everything would look old
        raise Fail(f"cannot read what runs left in {where!r}", error, "name what can be read with --usage") from error


def _expire(where: str, settings: Settings) -> int:
    """Do it for one store; return the exit status."""
    if not settings.dry:
        removal.tidy(where)
    images = {image.digits: image for image in removal.look(where)}
    going, excess = expiry.decide(
        [_held(image, settings.used) for image in images.values()], settings.rules, time.time()
    )
    for held, reason in going:
        image = images[held.digits]
        path = os.path.join(where, store.image_file(image.digits))
        if not settings.dry and not removal.remove(where, image, unless_wanted=True):
            continue
        if not settings.quiet:
            what = held.names[0] if held.names else path
            say(f"{'would remove' if settings.dry else 'removed'} {what!r}: {reason}")
        print(path, flush=True)
    count, size = removal.delete(where, time.time() - settings.grace, dry=settings.dry)
    if count and not settings.quiet:
        what = f"{'would delete' if settings.dry else 'deleted'} {count} image{'s' * (count > 1)} in"
        since = amounts.told_span(settings.grace)
        say(f"{what} {os.path.join(where, publish.RETIRED)!r}: removed {since} ago; {amounts.told_size(size)}")
    if excess:
        say(f"{where!r} is {amounts.told_size(excess)} over the quota: the rest is pinned, kept or of other names")
        return fail.FAILED
    return 0


def _held(image: Found, used: Mapping[str, float] | None) -> expiry.Held:
    """Put together what the rules are about."""
    seen = image.atime if used is None else used.get(f"sha256:{image.digits}", 0)
    return expiry.Held(
        image.digits,
        image.size,
        image.staged,
        max(image.staged, seen),
        tuple(store.called(link.removesuffix(".sqfs")) for link in image.links),
        image.pinned,
        os.geteuid() in (0, image.uid),
    )


def _blobs(wheres: list[str], settings: Settings) -> None:
    """Drop what the stores do not need from the user's cache."""
    needed = {image.digits for where in wheres for image in removal.look(where)}
    count, size = blobs.drop(paths.cache(os.environ), needed, settings.rules.age, dry=settings.dry)
    if count and not settings.quiet:
        say(f"{'would delete' if settings.dry else 'deleted'} {count} blobs: {amounts.told_size(size)}")

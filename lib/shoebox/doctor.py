"""sh-doctor: look, judge, print. Python 3.9 and nothing else, but for --net."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING

from . import checkup, fail, host, look, paths, site, siteconf, systems, usage
from .checkup import Check, Verdict
from .facts import MISSING
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .identity import Person

USAGE = """\
usage: sh-doctor [--json] [--net]

Tell what this node can do for sh-run, which way sh-run will take, and for each lack the line that mends it.

      --json     print an object
      --net      ask the registries too
  -h, --help     print this
"""


def run(argv: list[str]) -> int:
    """Print what there is to say of this node; return 0 if sh-run can run images here, else 1. Raises Fail."""
    options = usage.parse(USAGE, argv)
    if options.operands:
        raise Fail(f"unexpected operand {options.operands[0]!r}", todo="see -h", status=fail.USAGE)
    env = host.environ()
    decided, wrong = _site(env, host.person(env))
    node = look.around(env, decided)
    checks = [*checkup.checks(node), *wrong, *_settings(), *_modules(), *_systems(env)]
    if options.flag("net"):
        checks += _registries(env)
    fatal = [check for check in wrong if not check.ok]
    verdict = Verdict("", f"sh-run stops: {fatal[0].why}") if fatal else checkup.verdict(node)
    print(_as_json(checks, verdict) if options.flag("json") else _as_text(checks, verdict))
    return 0 if verdict.way else 1


def _site(env: dict[str, str], person: Person) -> tuple[site.Site | None, list[Check]]:
    """Return what sh-run will make of the site's files, and what is to be said of them."""
    path = f"{paths.SITE}/{site.FILE}"
    try:
        decided = site.load(paths.SITE, env.get("SHOEBOX_MODULE", ""), host.text)
        wanted = decided.wishes(person) if decided else []
    except Fail as error:
        return None, [Check(site.FILE, False, *_parted(error))]
    found = []
    for wish in wanted:
        kind = host.kind(wish.source)
        if kind == MISSING and not wish.optional:
            mend = "make it, or write nofail among the options of its line"
            found.append(Check(site.FILE, False, f"{wish.why}: there is no {wish.source!r}", mend))
    found += [
        Check(site.FILE, False, f"others may write {name!r}", f"chmod go-w {name}")
        for name in (paths.SITE, path)
        if os.path.exists(name) and os.stat(name).st_mode & 0o022
    ]
    modules = f", with the modules {', '.join(decided.modules)}" if decided and decided.modules else ""
    there = f"{path} is understood{modules}" if os.path.exists(path) else f"there is no {path}"
    return decided, found or [Check(site.FILE, True, there)]


def _settings() -> Iterator[Check]:
    """Look at what no run needs, if site.conf is understood otherwise."""
    path = f"{paths.SITE}/{site.FILE}"
    try:
        part = site.parse(host.text(path) or "", path)
    except Fail:  # _site has told
        return
    try:
        siteconf.check(part)
    except Fail as error:
        yield Check("settings", False, *_parted(error))


def _modules() -> Iterator[Check]:
    """Read every module, in use or not."""
    try:
        names = sorted(os.listdir(f"{paths.SITE}/{site.MODULES}"))
    except OSError:
        return
    for file in names:
        name, dot, rest = file.partition(site.SUFFIX)
        path = f"{paths.SITE}/{site.MODULES}/{file}"
        if not dot or rest or not site.is_name(name) or name == site.NONE:
            yield Check(f"module {name}", False, f"{path} can be no module", "name it NAME.conf")
            continue
        try:
            part = site.parse(host.text(path) or "", path, name)
        except Fail as error:
            yield Check(f"module {name}", False, *_parted(error))
        else:
            against = f", conflicts with {', '.join(part.words('conflicts'))}" if part.words("conflicts") else ""
            yield Check(f"module {name}", True, (part.one("description") or "it is understood") + against)


def _systems(env: dict[str, str]) -> Iterator[Check]:
    """Read the table of systems, if there is one, and look for what it needs."""
    if not any(os.path.exists(f"{where}/{systems.FILE}") for where in (paths.SITE, paths.user_config(env))):
        return
    try:
        table = systems.read(env)
    except Fail as error:
        yield Check(systems.FILE, False, *_parted(error))
        return
    far = [one for one in table.values() if any(place.host for place in one.places)]
    for program in sorted({"ssh" for _ in far} | {systems.RSYNC for one in far if one.by == systems.RSYNC}):
        if not shutil.which(program, path=env.get("PATH")):
            yield Check(systems.FILE, False, f"there is no {program}", f"install {program}")
    yield Check(systems.FILE, True, f"it is understood: {', '.join(table) or 'no systems'}")


def _registries(env: dict[str, str]) -> Iterator[Check]:
    """Ask every registry of the table whether it is there."""
    from . import launch  # noqa: PLC0415 - what follows is for a newer Python

    why = launch.packages()
    if why:
        yield Check("registries", False, why, "ask from a login node")
        return
    from . import registries, web  # noqa: PLC0415

    try:
        table = registries.read(env)
    except Fail as error:
        yield Check("registries.toml", False, *_parted(error))
        return
    through = web.Web(table, env, 1)
    for name in table.hosts():
        try:
            places = [(f"registry {name}", table.place(name))]
            places += [(f"mirror {place.netloc}", place) for place in table.mirrors(name)]
        except Fail as error:
            yield Check(f"registry {name}", False, *_parted(error))
            continue
        for what, place in places:
            try:
                url = f"{place.url}/v2/"
                answer = through.ask("GET", url, {}, "")
                web.read(answer, web.SMALL)
            except Fail as error:
                yield Check(what, False, *_parted(error))
            except web.BROKEN as error:
                yield Check(what, False, *_parted(web.told(error, url)))
            else:
                good = answer.status_code in (200, 401, 403)
                mend = "" if good else "check its url in registries.toml"
                yield Check(what, good, f"{url} answers with status {answer.status_code}", mend)


def _parted(error: Fail) -> tuple[str, str]:
    """Return what went wrong, and the remedy."""
    text = str(error)
    return (text[: -len(error.todo) - 2], error.todo) if error.todo else (text, "mend that line")


def _as_text(checks: list[Check], verdict: Verdict) -> str:
    lines = []
    for check in checks:
        why = f"{check.why} -> {check.mend}" if check.mend else check.why
        lines.append(f"{'ok' if check.ok else 'lack':5} {check.name:24} {why}")
    lines.append(f"{'way':5} {verdict.way or 'none':24} {verdict.why}")
    return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def _as_json(checks: list[Check], verdict: Verdict) -> str:
    found = {"healthy": bool(verdict.way), "way": verdict.way or None, "why": verdict.why}
    return json.dumps({**found, "checks": [asdict(check) for check in checks]}, indent=2)

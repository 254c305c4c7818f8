"""The image account, whose processes are killed at random while its users ask for images."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import drills
from fixtures.front import Fault, Front, misbehaving
from fixtures.gateway import Site, site, until
from fixtures.installed import Shell
from fixtures.nodes import account

pytestmark = pytest.mark.root
SIZE = 200_000
PATIENCE = 600.0  # seconds for one request


@pytest.fixture
def there(prefix: Path) -> Iterator[Site]:
    """Return a site with an image account and four users."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(site(prefix))
        for _ in range(4 - len(made.people)):
            name = stack.enter_context(account(made.top / "x", "user"))
            (made.top / name).mkdir(mode=0o700)
            shutil.chown(made.top / name, name, name)
            made.people.append(name)
        yield made


def by_ssh(there: Site, tmp_path: Path) -> dict[str, str]:
    """Let everybody reach the account by a key of his own; return the PATH of each."""
    paths = {}
    for who in there.people:
        where = tmp_path / who
        where.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", where / "key"], check=True)
        forced = f'restrict,command="{there.gateway} --for {who}" {(where / "key.pub").read_text().strip()}\n'
        (there.top / f"authorized-{who}").write_text(forced)
        paths[who] = there.ssh(where, who, f"AuthorizedKeysFile {there.top}/authorized-{who}\n")
    there.conf(f"account = {there.account}@far")
    return paths


def start(there: Site, who: str, ref: str, path: str) -> subprocess.Popen[str]:
    """Have a user ask for an image."""
    words = there.words(who)
    words["env"] |= {"PATH": path} if path else {}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(["sh-pull", "--for-site", ref], text=True, **words, **pipes)


def done(one: subprocess.Popen[str], figures: drills.Figures, there: Site) -> str:
    """Wait for a request; what it says is clear, however it ends. Returns the image's path, or ""."""
    out, said = one.communicate(timeout=PATIENCE)
    assert "Traceback" not in said, said
    assert all(line.startswith("sh-pull: ") for line in said.splitlines()), said
    figures.rounds += 1
    if one.returncode:
        assert one.returncode in (1, 75), said
        last = said.splitlines()[-1]
        assert last.startswith("sh-pull: cannot ") or "breaks off" in last or "cannot help: it failed" in last, said
        assert out == ""
        figures.failures += 1
        return ""
    assert Path(out.strip()).parent == there.store
    return out.strip()


def kill_for(
    seconds: float, there: Site, ask: list[tuple[str, str, str]], dice: random.Random, figures: drills.Figures
) -> None:
    """Keep users asking, and kill one of the account's processes after the other."""
    over = time.monotonic() + seconds
    running: list[subprocess.Popen[str]] = []
    while time.monotonic() < over:
        while len(running) < 6:
            running.append(start(there, *dice.choice(ask)))
        time.sleep(dice.uniform(0.1, 0.8))
        if found := there.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(found), signal.SIGKILL)
                figures.kills += 1
        for one in [one for one in running if one.poll() is not None]:
            running.remove(one)
            done(one, figures, there)
    for one in running:
        done(one, figures, there)


@pytest.mark.parametrize("way", ["sudo", "ssh"])
def test_the_accounts_processes_are_killed_at_random(
    there: Site, cmd: Shell, tmp_path: Path, drill: drills.Drill, way: str
) -> None:
    paths = by_ssh(there, tmp_path) if way == "ssh" else {}
    count = 12
    made = [drills.build(number, SIZE) for number in range(count)]
    for number, one in enumerate(made):
        there.push(f"public/image{number}", one)
    with misbehaving(there.back, lambda asked: Fault(pace=0.02 if asked.blob else 0)) as front:
        there.know(front.host)
        cache = there.home / ".cache/shoebox/from" / front.host.replace(":", "+")
        refs = [f"{front.host}/public/image{number}:1" for number in range(count)]
        ask = [(who, ref, paths.get(who, "")) for who in there.people for ref in refs]
        with drills.watching(tmp_path / "stop", cache, there.store) as seen:
            front.on_ask = rest = drills.Rest(lambda _uid: cache, front)
            kill_for(drill.length(5, 150), there, ask, drill.dice, drill.figures)
            before = drill.figures.failures
            last = ask if drill.full else [ask[n % 4 * count + n] for n in range(count)]  # each image, by one of them
            for number in range(0, len(last), 4):
                for one in [start(there, *words) for words in last[number : number + 4]]:
                    assert done(one, drill.figures, there)
            assert drill.figures.failures == before
            until(lambda: not there.processes())
        check(there, cache, front, rest, refs, made)
        assert seen[0].temporary == []
        drill.figures.count(front)
        drill.figures.saw(seen[0])


def check(there: Site, cache: Path, front: Front, rest: drills.Rest, refs: list[str], made: list[drills.Image]) -> None:
    """Check that all is there, once, and nothing else."""
    names = [path for path in there.store.rglob("*") if path.is_symlink()]
    assert len(names) == len(refs)
    for number in range(len(refs)):
        [found] = [path for path in names if path.parts[-2:] == (f"image{number}", "1.sqfs")]
        drills.check_image(found.resolve(), number, SIZE)
    drills.has_blobs(cache, *made)
    assert rest.again == []
    left = (there.home / ".cache/shoebox/queue").iterdir()
    assert [path for path in left if not path.name.startswith(".")] == []  # who makes a ticket may be killed: a day

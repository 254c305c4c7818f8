"""The image account, and users who mean it ill. Real sudo, real users."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.gateway import Site, site, until
from fixtures.images import image, tar, to_layout
from fixtures.registry import PASSWORD, USER, Answer, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fixtures.installed import Shell

pytestmark = pytest.mark.root

# Ignores signals, and has limits on the size of files: a soft and a hard one.
WRAPPED = """
import os, resource, signal, sys
ignored, *limits = sys.argv[1:4]
for name in filter(None, ignored.split(",")):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, tuple(map(int, limits)))
os.execvp(sys.argv[4], sys.argv[4:])
"""
NO = resource.RLIM_INFINITY


def wrapped(ignored: str = "", soft: int = NO, hard: int = NO) -> list[str]:
    return ["/usr/bin/python3", "-c", WRAPPED, ignored, str(soft), str(hard)]


@pytest.fixture(scope="module")
def there(prefix: Path) -> Iterator[Site]:
    with site(prefix) as made:
        yield made


def content(word: str, size: int = 100_000):
    return image(tar({"hello": word.encode(), "more": random.Random(word).randbytes(size)}))


def link(there: Site, name: str) -> Path:
    (found,) = [path for path in there.store.rglob("1.sqfs") if path.parent.name == name]
    return found


def request(name: str) -> bytes:
    return f"shoebox 1 pull reference={name}\n".encode()


class Caller:
    """Somebody who starts the gateway himself, and reads nothing until rest(): it can say `room` lines, up to 4."""

    def __init__(self, there: Site, who: str, name: str, *by: str, room: int = 0, creds: object = None) -> None:
        self._out, out = os.pipe()
        if room:  # each write(2) has a page, pipe(2)
            fcntl.fcntl(out, fcntl.F_SETFL, os.O_DIRECT)
            fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4 * 4096)
            for _ in range(4 - room):
                os.write(out, b"\n")
        pipe = subprocess.PIPE
        self.child = there.start(who, *by, *there.sudo, stdin=pipe, stdout=out, stderr=pipe, text=False, bufsize=0)
        os.close(out)
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write(request(name) + (json.dumps(creds).encode() + b"\n" if creds else b""))

    def rest(self) -> tuple[str, str]:
        """Return stdout and stderr, to the end."""
        text = b""
        while piece := os.read(self._out, 65536):
            text += piece
        os.close(self._out)
        self.child.stdin.close()
        errors = self.child.stderr.read().decode()
        self.child.stderr.close()
        self.child.wait(60)
        return text.lstrip(b"\n").decode(), errors


def queue(there: Site) -> list[Path]:
    return list((there.home / ".cache/shoebox/queue").glob("[0-9]*"))


def states(there: Site) -> list[str]:
    found = []
    for path in queue(there):
        with contextlib.suppress(FileNotFoundError):
            found.append(json.loads(path.read_text())["state"])
    return found


def test_who_could_have_a_tag_once_is_not_given_what_it_means_by_now(there: Site) -> None:
    jane, bob = there.people
    there.log_in(jane)
    name = there.push("private/app", content("old"))
    before = len(there.gate.server.seen)
    creds = {"username": USER, "password": PASSWORD}
    his = Caller(there, bob, name, room=len(("shoebox", "credentials", "pull")), creds=creds)
    until(lambda: list((there.home / ".cache/shoebox/from").rglob("index.json")))
    lost = {seen.authorization for seen in there.gate.server.seen[before:] if seen.authorization}

    def lie(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        return Answer(403, b"{}") if seen.authorization in lost else ask()

    there.push("private/app", content("new"))
    with there.gate.lying(lie):  # what he has had until now is not taken any more
        done = there.pull(jane, name)
        assert done.returncode == 0, done.stderr
        said, _ = his.rest()
    assert there.run(bob, "cat", done.stdout.strip()).returncode == 1, said
    assert "made" not in said


def test_a_slow_request_that_began_first_does_not_take_a_name_back(there: Site) -> None:
    jane, bob = there.people
    name = there.push("public/roll", content("roll old"))
    slow = Caller(there, bob, name, room=1)
    until(lambda: states(there))
    there.push("public/roll", content("roll new"))
    new = there.pull(jane, name).stdout.strip()
    assert str(link(there, "roll").resolve()) == new
    said, _ = slow.rest()
    assert str(link(there, "roll").resolve()) == new, said
    assert f"made {new}\n" in said


def test_a_callers_signals_and_limits_give_no_half_image(there: Site) -> None:
    jane, bob = there.people
    name = there.push("public/half", content("half", 700_000))
    by = wrapped("SIGCHLD,SIGTERM,SIGHUP,SIGALRM", soft=60)
    said, _ = Caller(there, bob, name, *by).rest()
    assert "made " in said
    path = link(there, "half")
    assert subprocess.run(["unsquashfs", "-q", "-d", there.top / "half", path], check=False).returncode == 0
    out, err = Caller(there, jane, name, *wrapped(hard=100_000_000, soft=100_000_000)).rest()
    assert (out, err.count("\n")) == ("", 1)
    assert "hard limit on the size of files" in err


def test_a_damaged_image_in_the_accounts_cache_is_made_anew(there: Site) -> None:
    jane, _ = there.people
    name = there.push("public/damaged", content("damaged", 700_000))
    path = Path(there.pull(jane, name).stdout.strip())
    (cached,) = there.home.rglob(f"images/{path.name}")
    sidecar = cached.with_suffix(".json")
    whole = cached.read_bytes()
    short = whole[: len(whole) // 2]
    text = sidecar.read_text().replace(sha256(whole).hexdigest(), sha256(short).hexdigest())
    assert str(len(whole)) in text
    sidecar.write_text(text.replace(str(len(whole)), str(len(short))))
    cached.write_bytes(short)
    for file in (path, path.with_suffix(".json")):
        file.unlink()
    done = there.pull(jane, name)
    assert (done.returncode, done.stdout.strip()) == (0, str(path)), done
    assert path.read_bytes() == whole


def test_sh_flatten_sees_that_its_writer_failed_though_the_caller_ignores_sigchld(cmd: Shell, tmp_path: Path) -> None:
    layout = to_layout(tmp_path / "layout", x=content("full", 700_000))
    script = (
        f"mount -t tmpfs -o size=112k none {tmp_path}/disk && mkdir {tmp_path}/disk/s; "
        f"{' '.join(wrapped('SIGCHLD')[:1])} {tmp_path}/wrap.py SIGCHLD -1 -1 sh-flatten -d {tmp_path}/disk/s "
        f"oci:{layout}:x; echo $?; ls {tmp_path}/disk/s"
    )
    (tmp_path / "wrap.py").write_text(WRAPPED)
    (tmp_path / "disk").mkdir()
    done = cmd("unshare", "-m", "sh", "-c", script)
    assert done.stdout == "75\n", done


HANG_UPS = ["TERM is ignored", "there is more to read", "stdin does not block"]


@pytest.mark.parametrize("how", HANG_UPS)
def test_a_hang_up_is_noticed_though(there: Site, how: str) -> None:
    _, bob = there.people
    kind = f"public/gone{HANG_UPS.index(how)}"
    name = there.push(kind, content(how))
    there.gate.closed.add(kind)
    stdin, theirs = os.pipe()
    os.set_blocking(stdin, how != HANG_UPS[2])
    by = wrapped("SIGTERM,SIGHUP") if how == HANG_UPS[0] else []
    null = subprocess.DEVNULL
    child = there.start(bob, *by, *there.sudo, stdin=stdin, stdout=null, stderr=null)
    os.close(stdin)
    try:
        os.write(theirs, request(name))
        until(lambda: there.gate.got(kind))
        if how == HANG_UPS[1]:
            os.write(theirs, b"x\n" * 75_000)  # more than it takes at once, less than it and the pipe hold
        os.close(theirs)
        until(lambda: not there.processes(), "it goes on", 20)
    finally:
        there.gate.open(kind)
        child.wait(60)


@pytest.fixture
def one_at_a_time(there: Site) -> Iterator[None]:
    there.conf(f"account = {there.account}\nconversions = 1")
    yield
    there.conf(f"account = {there.account}")


def test_who_is_stopped_with_a_turn_is_killed_in_the_end(there: Site, one_at_a_time: None) -> None:
    """By a signal here; users have the freezer of a control group of their own."""
    jane, bob = there.people
    names = [there.push(f"public/stop{n}", content(f"stop{n}")) for n in range(2)]
    there.gate.closed.add("public/stop0")
    his = Caller(there, bob, names[0])
    until(lambda: there.gate.got("public/stop0"))
    stopped = there.processes()
    for pid in stopped:
        ignored = int(Path(f"/proc/{pid}/status").read_text().partition("SigIgn:\t")[2].split()[0], 16)
        assert ignored & 1 << signal.SIGTSTP - 1, "a key would do"
        os.kill(pid, signal.SIGSTOP)
    (ticket,) = queue(there)
    log = there.top / "log"
    pull = there.start(jane, "sh-pull", "--for-site", names[1], stderr=log.open("w"))
    until(lambda: "place 1" in log.read_text())
    os.utime(ticket, (0, time.time() - 7 * 3600))
    assert pull.wait(60) == 0, log.read_text()
    until(lambda: not set(stopped) & set(there.processes()))
    there.gate.open("public/stop0")
    his.child.send_signal(signal.SIGCONT)  # sudo stops with what it started
    his.rest()

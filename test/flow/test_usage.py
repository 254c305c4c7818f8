"""The line that each run leaves where the site wants one, and what sh-stats makes of the lines."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import time
import zlib

import pytest
from fixtures.rootfs import until

from shoebox import charts, linux

LAUNCHER = """\
#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {lib!r})
from shoebox import paths
paths.SITE = {site!r}
if {run}:
    from shoebox import record
    record.LOG = {log!r}
from shoebox.fail import main
from shoebox.{module} import run
main(run{own})
"""
DIGEST = "sha256:" + "ab" * 32
STEP = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}
LINE = rf"\d{{10}} {os.getuid()} {DIGEST} %s {re.escape(os.uname().nodename)} (fuse|kernel|unpack|setuid)"


class Place:
    """A shell, a site's files, and the directory where runs leave lines."""

    def __init__(self, cmd, top):
        self.cmd, self.site, self.log = cmd, top / "site", top / "log"
        self.syslog = top / "syslog"

    def wants(self, usage):
        (self.site / "site.conf").write_text(f"[settings]\nusage = {usage}\n")

    @property
    def file(self):
        return self.log / f"{os.getuid()}.log"

    def lines(self, count):
        """Return the lines, once there are so many."""
        assert until(lambda: self.file.exists() and self.file.read_text().count("\n") >= count)
        time.sleep(0.3)  # for one too many
        return self.file.read_text().splitlines()


@pytest.fixture
def at(cmd, prefix, box, tmp_path):
    place = Place(cmd, tmp_path)
    for path in (place.site, tmp_path / "bin", tmp_path / "store", place.log):
        path.mkdir()
    place.log.chmod(0o1777)
    lib = str(next(prefix.glob("lib/shoebox/*/lib")))
    for name, own in (("run", ", 125"), ("stats", "")):
        launcher = tmp_path / f"bin/sh-{name}"
        text = LAUNCHER.format(
            lib=lib, site=str(place.site), module=name, own=own, log=str(place.syslog), run=name == "run"
        )
        launcher.write_text(text)
        launcher.chmod(0o755)
    shutil.copy(box, tmp_path / f"store/sha256-{DIGEST[7:]}.sqfs")
    cmd.env.update(PATH=f"{tmp_path}/bin:{cmd.env['PATH']}", SHOEBOX_PATH=str(tmp_path / "store"))
    place.wants(place.log)
    return place


def test_a_run_leaves_a_line_in_a_file_of_the_users_own(at):
    at.cmd.ok("sh-run", DIGEST, "true")
    (line,) = at.lines(1)
    assert re.fullmatch(LINE % "-", line)
    assert stat.S_IMODE(at.file.stat().st_mode) == 0o600
    at.cmd.ok("sh-run", "/", "true")
    assert at.lines(2)[1].split()[2:] == ["-", "-", os.uname().nodename, "bind"]


def test_a_step_leaves_one_line_on_a_node_whatever_its_ranks_do(at):
    def ranks(*words, **env):
        script = f"for i in 0 1 2 3 4 5; do SLURM_LOCALID=$i sh-run {' '.join(words)} {DIGEST} true & done; wait"
        at.cmd.ok("sh", "-c", script, **STEP | env)

    ranks()
    ranks()  # one after another in a step
    assert [re.fullmatch(LINE % r"4711\.0", line) is not None for line in at.lines(1)] == [True]
    ranks(SLURM_STEP_ID="1")
    assert [line.split()[3] for line in at.lines(2)] == ["4711.0", "4711.1"]
    ranks("--no-join", SLURM_STEP_ID="2")
    assert [line.split()[3] for line in at.lines(3)] == ["4711.0", "4711.1", "4711.2"]


def test_a_line_is_one_line_whatever_the_names_hold(at):
    at.cmd.ok("sh-run", DIGEST, "true", SLURM_JOB_ID="1\n2 <b>%é", SLURM_STEP_ID="0 0")
    (line,) = at.lines(1)
    assert line.split()[3] == "1%0A2%20%3Cb%3E%25%C3%A9.0%200"


def test_nothing_is_left_and_nothing_imported_where_the_site_wants_nothing(at, tmp_path):
    strace = ["strace", "-f", "-o", tmp_path / "trace", "-e", "trace=open,openat,connect"]
    if at.cmd(*strace, "true").returncode:
        pytest.skip("strace cannot trace here")
    launcher = tmp_path / "bin/sh-run"
    launcher.write_text(re.sub(r"(?m)^if True:\n( .*\n)+", "", launcher.read_text()))
    for text in (None, "", "[settings]\nusage = none\n", "[settings]\nway = fuse\n"):
        if text is None:
            (at.site / "site.conf").unlink()
        else:
            (at.site / "site.conf").write_text(text)
        at.cmd.ok(*strace, "sh-run", "/", "true")
        assert not re.search(r"shoebox/(record|uses)\b|/record\.|/dev/log", (tmp_path / "trace").read_text())
        assert not list(at.log.iterdir())
    at.wants(at.log)
    at.cmd.ok(*strace, "sh-run", "/", "true")
    assert re.search(r"/record\.", (tmp_path / "trace").read_text())  # so it would have been seen


def test_explain_tells_of_the_line_and_leaves_none(at):
    assert re.search(rf"^usage +{at.file} +# site.conf", at.cmd.ok("sh-run", "--explain", DIGEST, "true"), re.MULTILINE)
    assert json.loads(at.cmd.ok("sh-run", "--explain=json", DIGEST, "true"))["usage"] == str(at.log)
    assert not list(at.log.iterdir())


def test_a_wrong_place_is_an_error_of_its_line(at):
    at.wants("here")
    done = at.cmd("sh-run", DIGEST, "true")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert f"{at.site}/site.conf:2" in done.stderr


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "link", "no directory"])
def test_what_is_no_plain_file_of_the_users_is_left_alone(at, kind, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    if kind == "symlink":
        at.file.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(at.file)
    elif kind == "directory":
        at.file.mkdir()
    elif kind == "link":
        os.link(victim, at.file)
    else:
        at.log.rmdir()
    done = at.cmd("sh-run", DIGEST, "echo", "done")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    time.sleep(0.5)  # in which it would be written
    assert victim.read_text() == "precious\n"


def test_syslog_gets_the_line_and_nobody_waits_for_it(at):
    at.wants("local3")
    assert at.cmd("sh-run", DIGEST, "true").returncode == 0  # nobody listens
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(at.syslog))
        daemon.settimeout(10)
        at.cmd.ok("sh-run", DIGEST, "true", **STEP)
        said = daemon.recv(4096).decode()
        assert re.fullmatch(rf"<158>\w{{3}} [ \d]\d [\d:]{{8}} sh-run\[\d+\]: {LINE % '4711[.]0'}", said)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:  # a daemon that hangs
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                fill(other, str(at.syslog))
        assert at.cmd("sh-run", DIGEST, "true", timeout=20).returncode == 0
    assert not list(at.log.iterdir())


def fill(wire, path):
    for _ in range(100_000):
        wire.sendto(b"x" * 1000, path)


@pytest.mark.root
@pytest.mark.parametrize("how", ["full", "readonly", "hung"])
def test_a_file_system_that_is_full_or_read_only_or_hangs_does_not_matter(at, how):
    """One that hangs: FUSE, and nobody answers."""
    options = {"full": "size=4k,mode=1777", "readonly": "size=1m,mode=1777,ro", "hung": ""}[how]
    device = -1
    if how == "hung":
        device = os.open("/dev/fuse", os.O_RDWR)
        said = {"source": "hung", "fd": str(device), "rootmode": "40000", "user_id": "0", "group_id": "0"}
        mount = linux.new_mount("fuse", {**said, "allow_other": ""}, 0)
        where = os.open(at.log, os.O_PATH)
        linux.move_mount(mount, where, "")
        os.close(where)
        os.close(mount)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", at.log], check=True)
    try:
        if how == "full":
            (at.log / "all").write_bytes(bytes(4096))
        begun = time.monotonic()
        done = at.cmd("sh-run", DIGEST, "echo", "done", timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
        if how == "hung":
            assert time.monotonic() - begun < 8, "it waited"
            stuck = writers()
            assert len(stuck) == 1
            for fd in (0, 1, 2):
                assert os.readlink(f"/proc/{stuck[0]}/fd/{fd}") == "/dev/null"
            assert os.getsid(stuck[0]) == stuck[0]
            assert until(lambda: not writers(), 30), "it does not end by itself"
    finally:
        if device >= 0:
            os.close(device)
        subprocess.run(["umount", "-l", at.log], check=True)


def writers():
    """Return the processes that are stuck in a write of a line: sh-run's, whose parent is not."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if b"sh-run\0" + DIGEST.encode() in file.read():
                    found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.root
def test_a_line_is_believed_for_whose_file_it_is_in(at, prefix, tmp_path):
    now = int(time.time())
    nobody = pwd.getpwnam("nobody").pw_uid
    other = "sha256:" + "cd" * 32
    (at.log / f"{nobody}.log").write_text(f"{now} 0 {DIGEST} - n1 fuse\n")
    os.chown(at.log / f"{nobody}.log", nobody, nobody)
    (at.log / "4711.log").write_text(f"{now} 4711 {other} - n1 fuse\n")  # of root's making
    os.symlink(tmp_path / "x", at.log / "4712.log")
    os.mkfifo(at.log / "4713.log")
    done = at.cmd("sh-stats", "--json", at.log)
    said = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(use["uid"], use["image"]) for use in said["uses"]] == [(nobody, DIGEST)]
    assert said["users"][0]["name"] == "nobody"
    assert done.stderr.count("\n") == 3
    for name in ("4711", "4712", "4713"):
        assert f"{name}.log" in done.stderr
    # who may not list the directory has his own
    with tempfile.TemporaryDirectory() as top:  # where nobody may go
        os.chmod(top, 0o755)
        shutil.move(at.log, f"{top}/log")
        os.chmod(f"{top}/log", 0o3733)
        as_nobody = ("setpriv", "--reuid", str(nobody), "--regid", str(nobody), "--clear-groups")
        words = (*as_nobody, prefix / "bin/sh-stats", "--json", f"{top}/log")
        said = json.loads(at.cmd.ok(*words, cwd=top, HOME=top, SHOEBOX_PATH=None, SHOEBOX_CACHE=None))
        assert [use["uid"] for use in said["uses"]] == [nobody]


def filled(at, *images):
    """Write lines of three months."""
    lines = []
    for month, count in ((9, 5), (10, 40), (11, 12)):
        when = int(time.mktime((2025, month, 15, 12, 0, 0, 0, 0, -1)))
        lines += [f"{when + number} 0 {images[number % len(images)]} 7.0 n{number} fuse\n" for number in range(count)]
    at.file.write_text("".join(lines))


def test_sh_stats_reports_by_month_image_and_user(at, tmp_path):
    own = "sha256:" + "00" * 32
    filled(at, DIGEST, own, "-")
    with at.file.open("a") as file:
        file.write("9999999999 0 - - n1 fuse\n<b>\n")
    (tmp_path / "store/docker.io/library/box").mkdir(parents=True)
    (tmp_path / "store/docker.io/library/box/1.sqfs").symlink_to(f"../../../sha256-{DIGEST[7:]}.sqfs")
    done = at.cmd("sh-stats")
    me = pwd.getpwuid(os.getuid()).pw_name
    assert done.stderr == f"sh-stats: '{at.file}' has 2 lines that no run leaves\n"
    tables = [[line.split() for line in table.splitlines()] for table in done.stdout.split("\n\n")]
    assert tables[0] == [
        ["MONTH", "USES", "USERS", "IMAGES"],
        ["2025-09", "5", "1", "2"],
        ["2025-10", "40", "1", "2"],
        ["2025-11", "12", "1", "2"],
    ]
    assert ["docker.io/library/box:1", "20", "1", "2025-11-15"] in tables[1]
    assert [own, "19", "1", "2025-11-15"] in tables[1]
    assert tables[2][1] == [me, "57", "2", "2025-11-15"]
    said = json.loads(at.cmd.ok("sh-stats", "--json", at.log))
    assert sum(use["uses"] for use in said["uses"]) == 57
    assert (said["images"][0]["name"], said["images"][0]["id"]) == ("docker.io/library/box:1", DIGEST)


def test_sh_stats_reads_what_the_journal_has_and_believes_journald_about_whose_it_is(at):
    text = f"1763204400 0 {DIGEST} - n1 fuse"
    entries = [{"_UID": "4711", "MESSAGE": text}, {"MESSAGE": text}, {"_UID": "1", "MESSAGE": [1, 2]}, [], 7]
    stdin = "".join(f"{json.dumps(entry)}\n" for entry in entries) + "{\n"
    said = json.loads(at.cmd.ok("sh-stats", "--json", "-", stdin=stdin))
    assert [(use["uid"], use["uses"]) for use in said["uses"]] == [(4711, 1)]


def test_sh_stats_says_where_the_lines_are_if_they_are_not_there(at):
    at.wants("local3")
    done = at.cmd("sh-stats")
    assert (done.returncode, "syslog, local3" in done.stderr) == (2, True)
    at.wants("none")
    assert at.cmd("sh-stats").returncode == 2
    assert at.cmd("sh-stats", "/nowhere").returncode == 1


def pixels(png):
    """Return the pixels of a PNG of 8 bits a sample (PNG specification, 7 and 9), as bytes for each."""
    data, at, packed = png.read_bytes(), 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    size = {2: 3, 6: 4}[colour]
    assert depth == 8
    raw, stride = zlib.decompress(packed), width * size
    above, found = bytearray(stride), []
    for row in range(height):
        kind, line = raw[row * (stride + 1)], bytearray(raw[row * (stride + 1) + 1 : (row + 1) * (stride + 1)])
        for x in range(stride):
            a, b, c = (line[x - size] if x >= size else 0), above[x], (above[x - size] if x >= size else 0)
            nearest = min((a, b, c), key=lambda value: abs(a + b - c - value))
            line[x] = (line[x] + (0, a, b, (a + b) // 2, nearest)[kind]) & 255
        found += [bytes(line[x : x + 3]) for x in range(0, stride, size)]
        above = line
    return found


def browse(at, page, *words):
    """Have Debian's chromium show a page; return what it prints, and what the page had it ask for, hosts unknown.

    What the browser wants for itself is another matter: 101845102 is the annotation of blink_resource_loader.
    """
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    quiet += ["--host-resolver-rules=MAP * ~NOTFOUND", "--no-proxy-server", f"--user-data-dir={page.parent}/profile"]
    log = page.with_name("net.json")
    words = (*quiet, f"--log-net-log={log}", *words, f"file://{page}")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # it has a socket there, whose path may not be long: unix(7)
        out = at.cmd.ok("chromium", *words, timeout=120, TMPDIR=short)
    return out, re.findall(r'"traffic_annotation":101845102,"url":"([^"]*)"', log.read_text())


def test_the_page_shows_its_charts_in_a_browser_and_fetches_nothing(at, tmp_path):
    filled(at, DIGEST, "sha256:" + "00" * 32)
    page = tmp_path / "page.html"
    page.write_text(at.cmd.ok("sh-stats", "--html"))
    assert not re.search(r"(?i)<script|https?:|src=|href=|url\(|@import", page.read_text())
    dom, asked = browse(at, page, "--dump-dom")
    assert asked == []
    assert dom.count("<rect ") == 3 + 2 + 1  # months, images, users
    assert "<title>Use of images</title>" in dom
    shot = tmp_path / "shot.png"
    browse(at, page, "--window-size=800,900", f"--screenshot={shot}")
    assert pixels(shot).count(bytes.fromhex(charts.BAR[1:])) > 20_000


def test_names_in_the_page_are_text_whatever_they_hold(at, tmp_path):
    evil = "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=document.title='owned'>"
    page = tmp_path / "page.html"
    page.write_text(f"<title>x</title>{evil}")
    dom, asked = browse(at, page, "--dump-dom")
    assert ("<title>owned</title>" in dom, asked) == (True, ["http://127.0.0.1:9/x"])  # so it would be seen
    for columns in (False, True):
        bars = [(evil, evil, 3), (f'" {evil}', "", 2), ("\x1b\udcff&amp;", "", 0)]
        page.write_text(charts.page("Use", evil, [charts.Chart(evil, bars, columns=columns)]))
        dom, asked = browse(at, page, "--dump-dom")
        assert ("<title>Use</title>" in dom, asked) == (True, [])
        assert not re.search("<script|<img", dom)
        assert dom.count("<rect ") == 3

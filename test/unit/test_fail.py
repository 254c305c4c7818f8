"""Errors: one line each, the right status, and a signal's own death."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
from fixtures.installed import TREE

from shoebox import fail
from shoebox.fail import FAILED, LATER, NOT_EXECUTABLE, NOT_FOUND, NOT_RUN, USAGE, Fail


def ends(body: str, *, own: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
    """Run fail.main with an act(argv) of these statements, in a process called sh-x."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(TREE / "lib")!r})
sys.argv[0] = "/bin/sh-x"
from shoebox import fail
from shoebox.fail import Fail
def act(argv):
{lines}
fail.main(act, {own})
"""
    words = [sys.executable, "-IS", "-c", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(words, text=True, check=False, **pipes | options)


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (("cannot read 'x'",), "cannot read 'x'"),
        (("cannot read 'x'", "it is odd"), "cannot read 'x': it is odd"),
        (("cannot read 'x'", "", "see -h"), "cannot read 'x': see -h"),
        (
            ("cannot read 'x'", OSError(errno.EACCES, "Permission denied"), "ask"),
            "cannot read 'x': Permission denied: ask",
        ),
        (("cannot read 'x'", OSError("odd")), "cannot read 'x': odd"),
    ],
)
def test_a_failure_is_what_why_and_what_to_do(parts, line):
    assert str(Fail(*parts)) == line


@pytest.mark.parametrize(
    ("why", "given", "status"),
    [
        ("", 0, FAILED),
        ("", USAGE, USAGE),
        (OSError(errno.EACCES, "x"), 0, FAILED),
        (OSError(errno.ENOSPC, "x"), 0, LATER),
        (OSError(errno.EDQUOT, "x"), 0, LATER),
        (OSError(errno.EHOSTUNREACH, "x"), 0, LATER),
        (OSError(errno.ENOSPC, "x"), FAILED, FAILED),
        (OSError("x"), 0, FAILED),
    ],
)
def test_full_disks_and_lost_networks_may_work_later(why, given, status):
    assert Fail("x", why, status=given).status == status


@pytest.mark.parametrize(
    ("first", "second", "worse"),
    [(0, 0, 0), (0, LATER, LATER), (LATER, FAILED, FAILED), (FAILED, USAGE, USAGE), (USAGE, LATER, USAGE), (0, 99, 99)],
)
def test_of_several_the_gravest_status_is_told(first, second, worse):
    assert fail.worst(first, second) == fail.worst(second, first) == worse


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("return 0", 0, ""),
        ("return 7", 7, ""),
        ("raise Fail('cannot', 'why')", 1, "sh-x: cannot: why\n"),
        ("raise Fail('cannot', status=75)", 75, "sh-x: cannot\n"),
        ("raise Fail('a\\nb\\x1b[31mc\\u2028\\udcff')", 1, "sh-x: a\\nb\\x1b[31mc\\u2028\\udcff\n"),
        ("raise Fail('caf\\xe9')", 1, "sh-x: caf\xe9\n"),
        ("open('/none/x')", 1, "sh-x: cannot use '/none/x': No such file or directory\n"),
        ("raise OSError(28, 'No space left on device')", 75, "sh-x: the system says: No space left on device\n"),
    ],
)
def test_a_command_ends_with_its_status_and_one_line(body, status, line):
    done = ends(body, env={"LANG": "C.UTF-8"})
    assert (done.returncode, done.stdout, done.stderr) == (status, "", line)


@pytest.mark.parametrize(
    ("given", "status"),
    [(FAILED, NOT_RUN), (USAGE, NOT_RUN), (LATER, NOT_RUN), (NOT_FOUND, 127), (NOT_EXECUTABLE, 126)],
)
def test_sh_runs_own_failures_have_a_status_of_their_own(given, status):
    assert ends(f"raise Fail('x', status={given})", own=NOT_RUN).returncode == status
    assert ends("open('/none/x')", own=NOT_RUN).returncode == NOT_RUN


def test_a_bug_shows_its_traceback():
    done = ends("return {}['x']")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_unwinds_and_then_kills_as_that_signal_does(signum):
    body = f"""
fail.stop_on_signals()
try:
    os.kill(os.getpid(), {int(signum)})
    signal.pause()
finally:
    print("tidied", flush=True)
"""
    done = ends(body)
    assert (done.returncode, done.stdout, done.stderr) == (-signum, "tidied\n", "")


def test_a_signal_that_the_parent_ignores_stays_ignored():
    body = "fail.stop_on_signals()\nos.kill(os.getpid(), signal.SIGHUP)\nreturn 0"
    assert ends(body, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)).returncode == 0


def test_when_the_reader_has_gone_we_end_as_other_filters_do():
    read, write = os.pipe()
    os.close(read)
    done = ends("return fail.each(['x'], str)", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full"])
def test_without_stderr_the_status_must_do(how):
    script = f"import sys; sys.path.insert(0, {str(TREE / 'lib')!r}); from shoebox import fail\n"
    script += "def act(argv): raise fail.Fail('x', status=75)\nfail.main(act)"
    done = subprocess.run(["sh", "-c", f'"$0" -IS -c "$1" {how}', sys.executable, script], check=False)
    assert done.returncode == 75


def test_each_prints_what_was_made_and_a_failure_does_not_stop_the_rest(capfdbinary):
    def act(name):
        if name == "later":
            raise Fail("cannot", status=LATER)
        if name == "gone":
            raise FileNotFoundError(2, "No such file", "/x")
        return f"/made/{name}"

    assert fail.each(["a", "later", "gone", "b\udcff"], act) == FAILED
    out, err = capfdbinary.readouterr()
    assert out == b"/made/a\n/made/b\xff\n"
    assert [line.partition(b": ")[2] for line in err.splitlines()] == [b"cannot", b"cannot use '/x': No such file"]
    assert fail.each(["a", "later"], act) == LATER
    assert fail.each([], act) == 0


def test_each_does_not_hide_a_bug():
    with pytest.raises(KeyError):
        fail.each(["x"], lambda name: {}[name])


def test_of_a_link_that_cannot_be_made_its_own_path_is_told() -> None:
    with pytest.raises(OSError) as caught:
        os.symlink("../target", "/nonexistent/link")
    assert str(fail.told(caught.value)) == "cannot use '/nonexistent/link': No such file or directory"


def test_of_an_open_file_no_number_is_told() -> None:
    with pytest.raises(OSError) as caught:
        os.stat(1 << 20)
    assert str(fail.told(caught.value)) == "the system says: Bad file descriptor"

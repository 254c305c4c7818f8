"""sh-run --enter and --sshd: into a container that runs."""

from __future__ import annotations

import os
import pty
import pwd
import re
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from fixtures.rootfs import make_tree, one_line, servers, squash, until, words_of

SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
SPACES = "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt"
READY = f"{SPACES}; exec sleep 60"
# Types a character on its terminal, for whoever uses that afterwards.
TYPE = """
import fcntl, termios
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"x")
except OSError as error:
    print("errno", error.errno)
else:
    print("typed")
"""
ordinary = pytest.mark.skipif(os.getuid() == 0, reason="sshd in a container is for ordinary users: make test runs this")


@pytest.fixture
def run(cmd):
    """Return a function that starts a container; it returns the process and the namespaces that it is in."""
    started = []

    def start(*words, script=READY, **env):
        process = cmd.start("sh-run", *words, "sh", "-c", script, env=cmd.env | env)
        started.append(process)
        there = [process.stdout.readline().decode().strip() for _ in range(2)]
        assert all(there), process.communicate(timeout=20)[1]
        return process, there

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("way", ["fuse", "unpack", "directory"])
def test_a_container_is_entered_by_a_process_by_its_job_and_by_its_step(cmd, run, box, tree, way):
    words = [tree] if way == "directory" else ["--mount", way, box]
    process, there = run(*words, **SLURM)
    for name in (str(process.pid), "77", "77.0"):
        assert cmd.ok("sh-run", "--enter", name, "sh", "-c", SPACES).split() == there
    assert cmd.ok("sh-run", "--enter", "77", "--", "cat", "/etc/os-release") == "NAME=box"


def test_the_environment_is_the_containers_but_for_the_terminal(cmd, run, box):
    run("--env", "A=1\n2", "--workdir", "/etc", box, PMIX_RANK="3", PMI_FD="9", TERM="theirs", **SLURM)
    ours = {"TERM": "ours", "LD_X": "1", "B": "ours", "PATH": cmd.env["PATH"], "SHELL": "/bin/none"}
    out = cmd.ok("sh-run", "--enter", "77", "env", "-0", **ours)
    seen = dict(field.partition("=")[::2] for field in out.split("\0") if field)
    image = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SHOEBOX_RUNTIME": "1"}
    assert seen == image | SLURM | seen | {"A": "1\n2", "TERM": "ours", "HOME": str(cmd.home), "PWD": str(cmd.home)}
    assert not {"PMIX_RANK", "PMI_FD", "LD_X", "B"} & seen.keys()
    assert cmd.ok("sh-run", "--enter", "77", "--env", "B", "--env=A=3", "sh", "-c", "echo $B $A", **ours) == "ours 3"


def test_the_directory_is_ours_if_it_is_inside_else_theirs(cmd, run, box):
    run("--workdir", "/etc", box, **SLURM)
    assert cmd.ok("sh-run", "--enter", "77", "pwd") == str(cmd.home)
    assert cmd.ok("sh-run", "--enter", "77", "pwd", cwd=Path("/opt")) == "/etc"
    assert cmd.ok("sh-run", "--enter", "77", "--workdir", "/var", "pwd") == "/var"
    assert one_line(cmd("sh-run", "--enter", "77", "--workdir", "/none", "pwd"), "no such directory inside")


def test_without_a_command_it_is_the_users_shell_or_one_that_the_image_has(cmd, run, box):
    run(box, **SLURM)
    for shell, got in (("/bin/ash", "/bin/ash"), ("/bin/nosuch", "/bin/sh")):
        assert cmd.ok("sh-run", "--enter", "77", stdin="echo $0 $SHELL\n", SHELL=shell) == f"{got} {got}"
    assert cmd("sh-run", "--enter", "77", stdin="exit 7\n").returncode == 7


@pytest.mark.parametrize(
    ("words", "status"),
    [(("sh", "-c", "exit 9"), 9), (("sh", "-c", "kill -9 $$"), -9), (("nosuch",), 127), (("/etc/passwd",), 126)],
)
def test_the_status_is_the_commands(cmd, run, box, words, status):
    run(box, **SLURM)
    assert cmd("sh-run", "--enter", "77", *words).returncode == status


@pytest.mark.evil(66)
def test_who_enters_is_as_confined_as_those_inside(cmd, run, box):
    run(box, **SLURM)
    status = cmd.ok("sh-run", "--enter", "77", "cat", "/proc/self/status")
    assert "NoNewPrivs:\t1" in status
    assert os.getuid() == 0 or "CapEff:\t0000000000000000" in status
    assert cmd.ok("sh-run", "--enter", "77", "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]  # 3 is ls's own
    assert cmd("sh-run", "--enter", "77", "umount", "/proc").returncode != 0


def test_the_terminals_signals_reach_the_command_and_stopping_works(cmd, run, box):
    run(box, **SLURM)
    typist = Path(__file__).parent.parent / "fixtures/typist.py"
    script = "trap 'echo got' INT; echo ready; read x; echo $x; read x; echo $x"
    out = cmd.ok("/usr/bin/python3", typist, "sh-run", "--enter", "77", "sh", "-c", script, timeout=60)
    seen = ["ready", "got", "stopped", "second", "second", "end 0"]  # what is typed is shown
    assert re.findall(r"ready|got|stopped|second|end 0", out) == seen, out


@pytest.mark.evil(66)
def test_who_enters_cannot_type_on_the_callers_terminal(cmd, run):
    process, _ = run("/", **SLURM)
    leader, follower = pty.openpty()
    python = ("/usr/bin/python3", "-IS", "-c", TYPE)
    for prefix, said in (((), "typed\n"), (("sh-run", "--enter", str(process.pid)), "errno 1\n")):
        words = ["setsid", "--ctty", "--wait", *prefix, *python]
        done = subprocess.run(words, stdin=follower, capture_output=True, text=True, env=cmd.env, check=False)
        assert done.stdout == said, done.stderr
    os.close(leader)
    os.close(follower)


def test_of_several_containers_one_has_to_be_named(cmd, run, box, tree):
    first, there = run(box, **SLURM)
    second, _ = run(tree, **SLURM)
    third, elsewhere = run(box, **SLURM | {"SLURM_STEP_ID": "1"})
    done = cmd("sh-run", "--enter", "77", "true")
    parts = (f"process {first.pid} (77.0 sleep)", f"process {second.pid} (77.0 sleep)", f"process {third.pid} (77.1")
    assert one_line(done, "there are several", *parts)
    assert one_line(cmd("sh-run", "--enter", "77.0", "true"), "there are several")
    assert cmd.ok("sh-run", "--enter", "77.1", "sh", "-c", SPACES).split() == elsewhere
    assert cmd.ok("sh-run", "--enter", str(first.pid), "sh", "-c", SPACES).split() == there


def test_ranks_that_share_a_container_are_one_and_the_first_ones_variables_count(cmd, run, box):
    _, there = run("--env", "A=first", box, **SLURM)
    _, also_there = run("--env", "A=second", box, **SLURM)
    assert also_there == there
    assert cmd.ok("sh-run", "--enter", "77", "sh", "-c", f"{SPACES}; echo $A").split() == [*there, "first"]


def test_a_container_lasts_as_long_as_who_entered_it(cmd, run, box):
    process, _ = run(box, **SLURM)
    with cmd.start("sh-run", "--enter", "77", "sh", "-c", "echo in; read x; cat /etc/os-release") as late:
        assert late.stdout.readline() == b"in\n"
        process.kill()
        process.wait()
        assert len(servers(box)) == 1
        assert late.communicate(b"\n", timeout=20)[0] == b"NAME=box\n"
    assert until(lambda: not servers(box))


STRANGERS = {
    "nobody": ("no job", "true"),
    "outside": ("is in no container", "exec sleep 60"),
    "a user namespace": ("not sh-run's", "exec unshare -Ur sleep 60"),
    "two namespaces": ("not sh-run's", "exec unshare -Urm sleep 60"),
    "two stacked": ("not sh-run's", "exec unshare -Ur unshare -Urm sleep 60"),
    "as sh-run's": ("the environment that sh-run gives", "exec unshare -Urm unshare -U sleep 60"),
}


@pytest.mark.parametrize("how", STRANGERS)
@pytest.mark.evil(68)
def test_what_is_no_container_of_sh_runs_is_not_entered(cmd, how):
    said, script = STRANGERS[how]
    with cmd.start("sh", "-c", f"echo there; {script}", env=cmd.env | SLURM) as process:
        process.stdout.readline()
        if how == "nobody":
            process.wait()
        else:
            assert until(lambda: words_of().get(process.pid, [b""])[0] == b"sleep")
        for name in (str(process.pid), "77"):
            assert one_line(cmd("sh-run", "--enter", name, "true"), f"cannot enter '{name}': ", said)
        process.kill()


@pytest.mark.evil(68)
def test_another_users_process_is_not_entered(cmd):
    assert one_line(cmd("sh-run", "--enter", "1", "true"), "process 1 ", "no job of this name")


@pytest.mark.evil(68)
def test_who_has_left_a_container_for_other_namespaces_is_not_followed(cmd, run, box):
    first, there = run(box, **SLURM)
    words = ("sh-run", "--enter", str(first.pid), "unshare", "-U", "-m", "sh", "-c", "echo out; exec sleep 60")
    with cmd.start(*words) as process:
        assert process.stdout.readline() == b"out\n"
        assert one_line(cmd("sh-run", "--enter", str(process.pid), "true"), "not sh-run's")
        assert cmd.ok("sh-run", "--enter", "77", "sh", "-c", SPACES).split() == there
        process.kill()


def test_from_inside_nothing_is_entered(cmd, run, prefix):
    process, _ = run("/", **SLURM)
    inside = ("sh-run", "--no-join", "/", prefix / "bin/sh-run", "--enter", str(process.pid), "true")
    assert one_line(cmd(*inside), "cannot be looked at from here")


def test_options_that_make_a_container_and_words_that_name_none_are_refused(cmd):
    done = cmd("sh-run", "--writable", "--enter", "77", "true")
    assert one_line(done, "cannot use --writable with --enter")
    for words in ((), ("77.9",), ("",), ("-1",), ("x" * 5000,)):
        assert cmd("sh-run", "--enter", *words).returncode == 125


NODE = os.uname().nodename


@pytest.fixture
def sshd(cmd):
    """Return a function that starts an sshd; it returns its process, and the words for ssh that it has printed."""
    started = []

    def start(*words, **env):
        process = cmd.start("sh-run", *words, env=cmd.env | env)
        started.append(process)
        line = process.stdout.readline().decode()
        assert line.startswith("ssh "), process.communicate(timeout=20)[1]
        return process, shlex.split(line)

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=20)


def keys(cmd):
    """Return the directories of keys that are there."""
    return [path for path in (Path(cmd.env["SHOEBOX_CACHE"]) / "ssh").glob("*") if path.is_dir()]


def name():
    return pwd.getpwuid(os.getuid()).pw_name


@ordinary
def test_ssh_lands_in_the_container_with_its_environment(cmd, sshd, box):
    odd = {"A": 'a "b" \\c\\ \'d\' #e %f  g\t\\"', "E": "", "LD_X": "1", **SLURM}
    _, ssh = sshd("--sshd", "--env", "B=2", box, **odd)
    out = cmd.ok(*ssh, "env -0; cat /etc/os-release")
    seen = dict(field.partition("=")[::2] for field in out.split("\0"))
    assert out.endswith("NAME=box")
    assert seen["A"] == odd["A"]
    assert seen == seen | SLURM | {"B": "2", "E": "", "HOME": str(cmd.home), "SHOEBOX_RUNTIME": "1", "USER": name()}
    assert seen["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert "LD_X" not in seen
    status = cmd.ok(*ssh, "cat /proc/self/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status


@ordinary
def test_a_session_at_a_terminal_and_its_status(cmd, sshd, box, tmp_path):
    tree = make_tree(tmp_path / "tree")
    # What has ended sshds elsewhere: the group tty, whose number means nothing inside, and a locked account.
    (tree / "etc/group").write_text(f"root:x:0:\ntty:x:5:\nours:x:{os.getgid()}:\n")
    (tree / "etc/passwd").write_text(f"root:x:0:0::/:/bin/sh\n{name()}:x:{os.getuid()}:{os.getgid()}::/:/bin/nosuch\n")
    (tree / "etc/shadow").write_text(f"{name()}:!:1::::::\n")
    _, ssh = sshd("--sshd", squash(tree, tmp_path / "tty.sqfs"), SHELL="/bin/ash")
    done = cmd(*ssh, "-tt", "test -t 0 && tty && echo $SHELL && stat -c %a $(tty); exit 7")
    assert done.stdout.split()[0].startswith("/dev/pts/")
    assert done.stdout.split()[1:] == ["/bin/ash", "600"]
    assert done.returncode == 7


@ordinary
def test_files_ports_and_agents_go_through(cmd, sshd, box, tmp_path):
    _, ssh = sshd("--sshd", box)
    (cmd.home / "data").write_text("data\n")
    cmd.ok("scp", *ssh[1:-1], "data", f"{NODE}:/tmp/../{cmd.home}/copied")
    assert (cmd.home / "copied").read_text() == "data\n"
    assert "data" in cmd.ok("sftp", *ssh[1:-1], "-b", "-", NODE, stdin=f"ls {cmd.home}\n")
    with socket.socket() as far:
        far.bind(("127.0.0.1", 0))
        far.listen()
        port = far.getsockname()[1]
        with cmd.start(*ssh[:-1], "-W", f"127.0.0.1:{port}", NODE) as forwarded:
            talk, _ = far.accept()
            talk.sendall(b"through\n")
            talk.close()
            assert forwarded.communicate(timeout=20)[0] == b"through\n"
    script = (
        f'eval $(ssh-agent) >/dev/null; {shlex.join([*ssh[:-1], "-A", NODE])} "test -S \\$SSH_AUTH_SOCK && echo yes"'
    )
    assert cmd.ok("sh", "-c", f"{script}; kill $SSH_AGENT_PID") == "yes"


@ordinary
def test_one_file_names_all_that_run_and_the_users_own_is_not_touched(cmd, sshd, box):
    sshd("--sshd", box)
    whole = Path(cmd.env["SHOEBOX_CACHE"]) / "ssh/config"
    assert cmd.ok("ssh", "-F", whole, NODE, "cat /etc/os-release") == "NAME=box"
    assert not (cmd.home / ".ssh").exists()


@ordinary
@pytest.mark.parametrize("how", ["TERM", "INT", "HUP", "guard", "inner", "sshd", "caller"])
def test_whatever_ends_it_nothing_stays(cmd, sshd, box, how):
    if how == "caller":  # who started it is killed, and cannot pass anything on
        script = ("sh", "-c", f"sh-run --sshd {box}; true")
        process = cmd.start(*script)
        ssh = shlex.split(process.stdout.readline().decode())
    else:
        process, ssh = sshd("--sshd", box)
    before = tree(process.pid)
    out = cmd.ok(*ssh, "setsid sh -c 'exec sleep 500' >/dev/null 2>&1 </dev/null & echo $!")
    with cmd.start(*ssh, "-tt", "echo in; sleep 500") as session:
        assert session.stdout.readline().strip() == b"in"
        daemon = int(out)
        assert until(lambda: words_of()[daemon][0] == b"sleep")
        started = tree(process.pid)
        assert daemon in started
        assert len(keys(cmd)) == 1
        guards = [pid for pid in before if b"--sshd" in words_of()[pid]]
        (listener,) = [pid for pid in before if words_of()[pid][0].startswith((b"/.shoebox", b"sshd"))]
        victim = {"inner": guards[-1], "sshd": listener}.get(how, process.pid)
        os.kill(victim, getattr(signal, f"SIG{how}", signal.SIGKILL))
        assert session.wait(20) == 255
        assert until(lambda: not any(alive(pid) for pid in started))
        assert until(lambda: not keys(cmd))
    process.communicate(timeout=20)


def tree(pid):
    """Return a process and all that came from it."""
    found = [pid]
    for at in found:
        children = Path(f"/proc/{at}/task/{at}/children").read_text()
        found += map(int, children.split())
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@ordinary
def test_all_killed_at_once_leave_keys_that_open_nothing_and_the_next_run_removes(cmd, sshd, box):
    process, _ = sshd("--sshd", box)
    for pid in tree(process.pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in reversed(tree(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    old = keys(cmd)
    assert len(old) == 1
    sshd("--sshd", box)
    assert len(keys(cmd)) == 1
    assert keys(cmd) != old


@ordinary
@pytest.mark.evil(68)
def test_nobody_gets_in_without_the_key(cmd, sshd, box, tmp_path):
    _, ssh = sshd("--sshd", box)
    options = Path(ssh[2]).read_text()
    port = re.search("Port (.*)", options)[1]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    plain = ["ssh", "-F", "none", "-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    for more in (["-i", tmp_path / "other"], ["-o", "PubkeyAuthentication=no"], ["-l", "root"]):
        done = cmd(*plain, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", *more, "127.0.0.1", "true")
        assert done.returncode == 255
        assert "Permission denied (publickey)" in done.stderr
    key = Path(ssh[2]).with_name("key")
    assert cmd.ok(*plain, "-i", key, "127.0.0.1", "cat /etc/os-release") == "NAME=box"
    for folder in (key.parent, key.parent.parent):
        assert folder.stat().st_mode & 0o077 == 0


@ordinary
@pytest.mark.evil(68)
def test_ssh_refuses_somebody_else_behind_the_port(cmd, sshd, box):
    first, ssh = sshd("--sshd", box)
    config = Path(ssh[2]).read_text()
    known, key = Path(ssh[2]).with_name("known_hosts").read_text(), Path(ssh[2]).with_name("key").read_text()
    port = re.search("Port (.*)", config)[1]
    first.terminate()
    first.wait(20)
    second, _ = sshd(f"--sshd={port}", box)
    folder = Path(ssh[2]).parent
    folder.mkdir(mode=0o700)
    for name_, text in (("config", config), ("known_hosts", known), ("key", key)):
        (folder / name_).write_text(text)
        (folder / name_).chmod(0o600)
    done = cmd(*ssh, "true")
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
    assert second.poll() is None


@ordinary
def test_a_site_chooses_the_interface_and_what_sessions_may(cmd, sshd, box, prefix, tmp_path):
    (tmp_path / "bin").mkdir()
    launcher = (prefix / "bin/sh-run").read_text()
    lib = next(prefix.glob("lib/shoebox/*/lib"))
    launcher = launcher.replace('os.path.realpath(__file__ + "/../../lib")', repr(str(lib)))
    place = f"from shoebox import paths\npaths.SITE = {str(tmp_path)!r}\nmain(run"
    (tmp_path / "bin/sh-run").write_text(launcher.replace("main(run", place))
    (tmp_path / "bin/sh-run").chmod(0o755)
    cmd.env["PATH"] = f"{tmp_path}/bin:{cmd.env['PATH']}"
    allowed = "AllowTcpForwarding=no Ciphers=aes256-ctr,aes128-ctr"
    (tmp_path / "site.conf").write_text(f"[settings]\nsshd-interface = lo\nsshd-options = {allowed}\n")
    _, ssh = sshd("--sshd", box)
    assert "HostName 127.0.0.1\n" in Path(ssh[2]).read_text()
    assert cmd.ok(*ssh, "cat /etc/os-release") == "NAME=box"
    assert "no matching cipher" in cmd(*ssh[:-1], "-o", "Ciphers=aes192-ctr", NODE).stderr
    done = cmd(*ssh[:-1], "-W", "127.0.0.1:9", NODE)
    assert "administratively prohibited" in done.stderr
    (tmp_path / "site.conf").write_text("[settings]\nsshd-interface = nosuch0\n")
    assert one_line(cmd("sh-run", "--sshd", box), "cannot listen on interface 'nosuch0'")


@ordinary
def test_what_cannot_be_is_one_line_and_leaves_nothing(cmd, box):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert one_line(cmd("sh-run", f"--sshd={port}", box), f"port {port}", "Address already in use")
    for words, said in (
        (("--sshd=x", box), "cannot listen on port 'x'"),
        (("--sshd=70000", box), "cannot listen on port '70000'"),
        (("--sshd", box, "true"), "without a COMMAND"),
        (("--sshd", "--explain", box), "without --explain"),
        (("--sshd", "--writable=./d", box), "without --writable=DIR"),
        (("--sshd", "no-such:1"), "no image 'no-such:1'"),
    ):
        assert one_line(cmd("sh-run", *words), said)
    assert keys(cmd) == []
    (Path(cmd.env["SHOEBOX_CACHE"]) / "ssh").chmod(0o777)
    assert one_line(cmd("sh-run", "--sshd", box), "it is not yours alone")


@pytest.mark.root
def test_root_is_told_that_sshd_is_for_others(cmd, box):
    assert one_line(cmd("sh-run", "--sshd", box), "as root")

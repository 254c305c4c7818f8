"""Into the containers of a job: sh-run --enter in a step that overlaps and at a login, and --sshd on the nodes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures.nodes import account
from fixtures.rootfs import one_line, servers, until
from fixtures.slurm import plugin

pytestmark = pytest.mark.root

SPACES = "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt"


@pytest.fixture(scope="module")
def built(up):
    """Compile the plugin where all nodes have it; return its path there."""
    return plugin(up.where, folder="into")


@pytest.fixture(params=["alone", "plugin"])
def either(request, slurm, built):
    """Return the cluster, without the plugin and with it."""
    (slurm.where / "plugstack.conf").write_text(f"required {built}\n" if request.param == "plugin" else "")
    return slurm


def running(slurm, image, *words, script="sleep 100"):
    """Start a job with a step in a container on the first node; return it and the container's namespaces."""
    ready = slurm.home / "ready"
    ready.unlink(missing_ok=True)
    inside = f"{{ {SPACES}; echo .; }} >{ready}; {script}"
    job = slurm.submit(f"srun -n1 {shlex.join(['sh-run', *words, image, 'sh', '-c', inside])}", "-n4", "-w", "n1")
    assert until(lambda: ready.exists() and ready.read_text().endswith(".\n"), 30), slurm.logs()
    return job, ready.read_text().split()[:2]


def on(slurm, node, *words, env=None):
    """Run a command as the user at a login on a node."""
    inside = ["nsenter", f"--target={slurm.nodes[node].first}", "--net", "--uts", "--ipc", "--mount", "--pid"]
    become = ["setpriv", "--reuid", slurm.user, "--regid", slurm.user, "--init-groups", "env", "-C", slurm.home]
    words = [*inside, *become, *words]
    return subprocess.run(words, env=slurm.env | (env or {}), capture_output=True, text=True, check=False, timeout=60)


def test_a_step_that_overlaps_enters_the_container_of_a_job(either, image):
    job, there = running(either, image, "--env", "A=inside")
    step = ("srun", "--overlap", f"--jobid={job}", "-n1")
    show = ("sh", "-c", f"{SPACES}; echo $A $SLURM_STEP_ID; cat /etc/os-release")
    for name in (job, f"{job}.0"):
        assert either.ok(*step, "sh-run", "--enter", name, *show).split() == [*there, "inside", "0", "NAME=box"]
    typed = f"{shlex.join(step)} --pty sh-run --enter {job}"
    done = either("script", "-qec", typed, "/dev/null", stdin="tty; cat /etc/os-release; exit 3\n", TERM="dumb")
    assert "NAME=box" in done.stdout
    assert "/dev/pts/" in done.stdout
    assert done.returncode == 3


def test_a_login_on_the_node_enters_it(either, image):
    job, there = running(either, image)
    done = on(either, "n1", "sh-run", "--enter", job, "sh", "-c", f"{SPACES}; echo $SLURM_JOB_ID; pwd")
    assert done.stdout.split() == [*there, job, str(either.home)], done.stderr
    assert one_line(on(either, "n2", "sh-run", "--enter", job, "true"), "on this node")
    assert one_line(on(either, "n1", "sh-run", "--enter", f"{job}.batch", "true"), "is in no container")


def test_a_task_of_an_array_and_the_batch_script_itself(slurm, image):
    script = f"exec sh-run {image} sh -c 'touch up-$SLURM_ARRAY_TASK_ID; exec sleep 100'"
    job = slurm.submit(script, "--array=3-4", "-w", "n1")
    assert until(lambda: len(list(slurm.home.glob("up-*"))) == 2, 30)
    for task in "34":
        words = ("sh-run", "--enter", f"{job}_{task}.batch", "sh", "-c", "echo $SLURM_ARRAY_TASK_ID")
        assert on(slurm, "n1", *words).stdout.strip() == task
    assert one_line(on(slurm, "n1", "sh-run", "--enter", job, "true"), "there are several")


def test_a_container_that_a_step_has_left_for_who_entered_ends_with_that(either, image):
    job, _ = running(either, image)
    late = f"touch {either.home}/in; while [ ! -e {either.home}/go ]; do sleep 0.05; done; cat /etc/os-release"
    for name in ("in", "go"):
        (either.home / name).unlink(missing_ok=True)
    words = ["nsenter", f"--target={either.nodes['n1'].first}", "--net", "--uts", "--ipc", "--mount", "--pid"]
    words += ["setpriv", "--reuid", either.user, "--regid", either.user, "--init-groups"]
    words += ["sh-run", "--enter", job, "sh", "-c", late]
    with subprocess.Popen(words, env=either.env, stdout=subprocess.PIPE, text=True) as process:
        assert until((either.home / "in").exists)
        either.ok("scancel", job)
        assert until(lambda: not either.queued(job), 30)
        (either.home / "go").touch()
        assert process.communicate(timeout=20)[0] == "NAME=box\n"
    assert either.clean()
    assert servers(either.where / "store/box.sqfs") == []


@pytest.fixture
def reachable(slurm, prefix):
    """Return the cluster, of a site that lets sshds listen on the nodes' own interface."""
    site = slurm.where / "site"
    site.mkdir(exist_ok=True)
    (site / "site.conf").write_text("[settings]\nsshd-interface = box\n")
    lib = f"{slurm.where}/shoebox/{next(prefix.glob('lib/shoebox/*/lib')).relative_to(prefix)}"
    launcher = re.sub(r"(?m)^sys\.path.*", f"sys.path.insert(0, {lib!r})", (prefix / "bin/sh-run").read_text())
    place = f"from shoebox import paths\npaths.SITE = {str(site)!r}\nmain(run"
    (site / "sh-run").write_text(launcher.replace("main(run", place))
    (site / "sh-run").chmod(0o755)
    return slurm


def started(slurm, image, nodes=2):
    """Start a job that has nothing but sshds; return it, and the words for ssh to each node."""
    out = slurm.home / "lines"
    out.unlink(missing_ok=True)
    script = f"srun --ntasks-per-node=1 {slurm.where}/site/sh-run --sshd {image}"
    job = slurm.submit(script, f"-N{nodes}", "--exclusive", "-o", out)
    assert until(lambda: out.exists() and out.read_text().count("ssh ") == nodes, 30), out.read_text()
    return job, {line.split()[-1]: line.split() for line in out.read_text().splitlines()}


def folders(slurm):
    return [path for path in (slurm.home / ".cache/shoebox/ssh").glob("*") if path.is_dir()]


def test_ssh_to_a_node_lands_in_the_container_of_the_job_there(reachable, image):
    job, lines = started(reachable, image)
    assert sorted(lines) == ["n1", "n2"]
    show = "hostname; cat /etc/os-release; echo $SLURM_JOB_ID $SLURM_PROCID"
    for rank, (node, words) in enumerate(sorted(lines.items())):
        assert reachable.ok(*words, show).split() == [node, "NAME=box", job, str(rank)]
    whole = ("ssh", "-F", reachable.home / ".cache/shoebox/ssh/config")
    assert reachable.ok(*whole, "n2", "hostname") == "n2"
    there = f"ssh -F {whole[2]} n2 hostname"  # from one node to the other, as MPI's launchers do
    assert on(reachable, "n1", "sh", "-c", there).stdout == "n2\n"


@pytest.mark.parametrize("how", ["scancel", "KILL", "stepd"])
def test_however_the_step_ends_no_sshd_no_session_and_no_key_stays(reachable, image, how):
    job, lines = started(reachable, image, 1)
    reachable.ok(*lines["n1"], "setsid sh -c 'exec sleep 500' >/dev/null 2>&1 </dev/null &")
    with reachable.start(*lines["n1"], "-tt", "echo in; sleep 500") as session:
        assert session.stdout.readline().strip() == "in"
        if how == "stepd":
            reachable.kill("slurmstepd")
        else:
            reachable.ok("scancel", *(("-s", "KILL", f"{job}.0") if how == "KILL" else (job,)))
        assert session.wait(30) == 255
        reachable("scancel", job)
        assert until(lambda: not reachable.queued(job), 30)
        assert reachable.clean(), reachable.left()
        assert servers(reachable.where / "store/box.sqfs") == []
    if how != "KILL":  # nobody was left to remove them, and nobody has use for them
        assert until(lambda: not folders(reachable))


def test_another_user_reaches_neither_the_keys_nor_the_sshd(reachable, image, tmp_path):
    _, lines = started(reachable, image, 1)
    config = Path(lines["n1"][2])
    port = re.search("Port (.*)", config.read_text())[1]
    home = reachable.where / "other"
    with account(home, "slurm") as name:
        home.mkdir(mode=0o700)
        shutil.chown(home, name)
        for path in (config, config.with_name("key"), config.with_name("sshd_config"), config.with_name("host")):
            done = reachable("cat", path, user=name)
            assert "Permission denied" in done.stderr
        key = home / "key"
        assert reachable("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key, user=name).returncode == 0
        plain = ["ssh", "-F", "none", "-p", port, "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"]
        plain += ["-o", f"UserKnownHostsFile={home}/known", "-i", key]
        for login in (reachable.user, name, "root"):
            done = reachable(*plain, "-l", login, "n1", "true", user=name, HOME=str(home))
            assert done.returncode == 255
            assert "Permission denied (publickey)" in done.stderr
        assert reachable.ok(*lines["n1"], "cat /etc/os-release") == "NAME=box"
        pids = [line.split()[2] for line in reachable.left() if "process" in line]
        for pid in pids:
            done = reachable("sh-run", "--enter", pid, "true", user=name, HOME=str(home))
            assert done.returncode == 125
        assert pids

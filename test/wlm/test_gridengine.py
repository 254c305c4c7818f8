"""A real Grid Engine: jobs, array jobs, parallel environments, what a JSV and an epilog do; as an ordinary user."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from fixtures.rootfs import servers, until

pytestmark = pytest.mark.root

WHERE = "echo $(hostname) $(readlink /proc/self/ns/user) $(readlink /proc/self/ns/mnt)"
# Processes that end too early are not there for the others to join. Each node numbers its own.
TOGETHER = ">$1/$(hostname).$$; while [ $(ls $1 | wc -l) -lt $2 ]; do sleep 0.02; done"


@pytest.fixture
def run(grid):
    """Return the words that begin a command in the image. A job's PATH is the execution daemon's, not the user's."""
    return f"{grid.where}/shoebox/bin/sh-run {grid.where}/store/box.sqfs"


@pytest.fixture
def jsv(grid, prefix):
    """Have the site's verifier in the cell's sge_request."""
    request = grid.where / "default/common/sge_request"
    request.write_text(f"-jsv {prefix}/share/shoebox/wlm/gridengine/jsv\n")
    yield
    request.unlink()


@pytest.fixture
def epilog(grid, prefix):
    """Have the site's epilog in the queue."""
    grid.configure("queue", "all.q", epilog=f"{prefix}/share/shoebox/wlm/epilog")
    yield
    grid.configure("queue", "all.q", epilog="NONE")


def place(grid, name):
    """Make a directory of the user's."""
    (grid.home / name).mkdir()
    shutil.chown(grid.home / name, grid.user)
    return grid.home / name


def keys(grid):
    """Return the files in which processes meet, on all nodes."""
    return [path for name in grid.nodes for path in grid.root(name).glob("dev/shm/shoebox-*/*") if path.is_file()]


def status(grid, job):
    """Return the status and what else qacct knows of a job that has ended."""
    done = None

    def known():
        nonlocal done
        done = grid("qacct", "-j", job)
        return done.returncode == 0

    assert until(known, 60), done.stderr
    return {words[0]: words[1] for line in done.stdout.splitlines() if len(words := line.split()) > 1}


def test_a_job_runs_in_the_image_as_the_user_and_leaves_nothing(grid, run):
    assert grid.script(f"{run} sh -c 'cat /etc/os-release; id -u; pwd'").split() == [
        "NAME=box",
        grid("id", "-u").stdout.strip(),
        str(grid.home),
    ]


def test_the_batch_script_itself_is_in_the_image(grid, image):
    words = ("-b", "y", "-cwd", "-j", "y", "-sync", "y", "-o", grid.home / "whole", "-v", f"SHOEBOX_IMAGE={image}")
    done = grid("qsub", *words, grid.where / "shoebox/bin/sh-run", "cat", "/etc/os-release")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (grid.home / "whole").read_text() == "NAME=box\n"


def test_processes_of_a_job_on_a_node_share_one_container(grid, run):
    inside = f"{run} sh -c '{TOGETHER}; {WHERE}' x {place(grid, 'met')} 4"
    lines = grid.script(f"for i in 1 2 3 4; do {inside} & done; wait", "-pe", "one", "4").splitlines()
    assert (len(lines), len(set(lines))) == (4, 1)


def test_ranks_that_qrsh_starts_share_a_container_on_each_node(grid, run):
    """As mpirun does it: one qrsh a node, whose children are the ranks."""
    inside = f"{run} sh -c '{TOGETHER}; {WHERE}' x {place(grid, 'ranks')} 8"
    daemon = grid.home / "daemon"
    daemon.write_text(f"#!/bin/sh\nfor i in 1 2 3 4; do {inside} & done; wait\n")
    daemon.chmod(0o755)
    script = f"for node in n1 n2; do qrsh -V -inherit $node {daemon} & done; wait"
    lines = grid.script(script, "-pe", "many", "8").splitlines()
    assert sorted(line.split()[0] for line in lines) == ["n1"] * 4 + ["n2"] * 4
    assert len(set(lines)) == 2


@pytest.mark.parametrize("mpirun", ["mpirun.openmpi", "mpirun.mpich"])
def test_the_ranks_of_an_mpirun_share_a_container_on_each_node(grid, run, mpirun):
    """It learns from Grid Engine where its ranks go, and starts them by qrsh -inherit."""
    if not shutil.which(mpirun):
        pytest.skip(f"{mpirun} is not installed")
    inside = f"{run} sh -c '{TOGETHER}; {WHERE}' x $where 8"
    # Debian's MPICH hangs now and then where its ranks are on two nodes; programs outside of containers do, too.
    tries = f"for where in {place(grid, mpirun)} {place(grid, f'{mpirun}-again')}; do timeout 40 {mpirun} -n 8 {inside}"
    lines = grid.script(f"{tries} >$where.said && break; done; cat $where.said", "-pe", "many", "8").splitlines()
    assert sorted(line.split()[0] for line in lines) == ["n1"] * 4 + ["n2"] * 4, lines
    assert len(set(lines)) == 2


def test_a_task_of_qrsh_does_not_end_the_container_of_another(grid, run):
    """Grid Engine kills all that a task has started, what serves its image included, when that task ends."""
    task = grid.home / "task"
    task.write_text(f"#!/bin/sh\nexec {run} sh -c '{WHERE}; >$1; while [ ! -e $2 ]; do sleep 0.1; done; ls /' x $@\n")
    task.chmod(0o755)
    first, second, over = (grid.home / name for name in ("first", "second", "over"))
    script = f"""
    qrsh -V -inherit n1 {task} {first} {second} >{over}.1 &
    while [ ! -e {first} ]; do sleep 0.1; done
    qrsh -V -inherit n1 {task} {second} {over} >{over}.2 &
    wait %1; >{over}; wait"""
    assert grid.script(script, "-pe", "many", "4") == ""
    said = [(grid.home / f"over.{number}").read_text().splitlines() for number in (1, 2)]
    assert said[0][0] != said[1][0]
    assert said[0][1:] == said[1][1:] != []


def test_tasks_of_an_array_job_have_containers_of_their_own(grid, run):
    inside = f"{TOGETHER}; echo $SGE_TASK_ID $(readlink /proc/self/ns/user)"
    script = f"{run} sh -c '{inside}' x {place(grid, 'tasks')} 3"
    job = grid.submit(script, "-t", "1-3", "-o", f"{grid.home}/array-$TASK_ID")
    grid.wait(job)
    lines = [(grid.home / f"array-{number}").read_text().split() for number in (1, 2, 3)]
    assert [number for number, _ in lines] == ["1", "2", "3"]
    assert len({space for _, space in lines}) == 3


@pytest.mark.parametrize(("inside", "wanted"), [("exit 0", "0"), ("exit 7", "7"), ("kill -9 $$", "137")])
def test_statuses_are_in_the_accounting(grid, run, inside, wanted):
    job = grid.submit(f"exec {run} sh -c '{inside}'", "-o", "/dev/null")
    assert status(grid, job)["exit_status"] == wanted


def test_an_image_that_is_not_there_is_status_125(grid, run):
    job = grid.submit(f"exec {run.split()[0]} no/such:1 true", "-o", grid.home / "absent")
    assert status(grid, job)["exit_status"] == "125"
    assert "sh-pull no/such:1" in (grid.home / "absent").read_text()


def running(grid, run, name):
    """Submit a job whose four processes are in the image and do not heed TERM; return it when they run."""
    ready = grid.home / name
    inside = f'{run} sh -c "trap : TERM; echo >>{ready}; while :; do sleep 1; done"'
    job = grid.submit(f"for i in 1 2 3 4; do {inside} & done; wait", "-pe", "one", "4", "-o", "/dev/null")
    assert until(lambda: ready.exists() and ready.read_text().count("\n") == 4, 60), grid.logs()
    assert servers(grid.where / "store/box.sqfs")
    return job


def test_qdel_leaves_nothing(grid, run):
    job = running(grid, run, "deleted")
    assert grid("qdel", job).returncode == 0
    grid.wait(job)
    assert grid.clean(30), grid.left()
    assert servers(grid.where / "store/box.sqfs") == []


def test_a_running_job_is_entered_by_its_id(grid, run):
    job = running(grid, run, "entered")
    (node,) = {line.partition(":")[0] for line in grid.left() if "squashfuse" in line}
    inside = f"{run.split()[0]} --enter {job} sh -c 'cat /etc/os-release; echo $JOB_ID'"
    assert grid.script(inside, "-q", f"all.q@{node}") == f"NAME=box\n{job}\n"
    grid("qdel", job)
    grid.wait(job)


def test_what_a_job_started_in_the_background_ends_with_it(grid, run):
    background = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo started"
    assert grid.script(f"{run} sh -c '{background}'") == "started\n"
    assert grid.clean(30), grid.left()


def test_all_processes_killed_leave_nothing_and_the_epilog_sweeps_their_files(grid, run, epilog):
    job = running(grid, run, "killed")
    assert keys(grid)
    for line in grid.left():
        words = line.split()
        if words[1] == "process" and words[3] != "sge_shepherd":
            try:
                os.kill(int(words[2]), signal.SIGKILL)
            except ProcessLookupError:
                continue
    grid.wait(job)
    assert grid.clean(30), grid.left()
    ran = {status(grid, job)["hostname"]}
    assert [path for name in ran for path in grid.root(name).glob("dev/shm/shoebox-*/*")] == []


def test_the_epilog_leaves_another_jobs_container_alone(grid, run, epilog):
    job = running(grid, run, "beside")
    before = keys(grid)
    for name in grid.nodes:
        grid.script("true", "-q", f"all.q@{name}")
    assert len([path for path in before if path.exists()]) == 1
    grid("qdel", job)
    grid.wait(job)
    assert until(lambda: not keys(grid), 30)


def test_the_verifier_resolves_a_name_once(grid, image, jsv):
    store = grid.where / "store"
    (store / "docker.io/library/app").mkdir(parents=True)
    name = store / "docker.io/library/app/1.sqfs"
    for digest in ("a", "b"):
        shutil.copy(image, store / f"sha256-{digest * 64}.sqfs")
    name.symlink_to("../../../sha256-" + "a" * 64 + ".sqfs")
    job = grid.submit("echo $SHOEBOX_IMAGE", "-h", "-v", "SHOEBOX_IMAGE=app:1", "-o", grid.home / "resolved")
    name.unlink()
    name.symlink_to("../../../sha256-" + "b" * 64 + ".sqfs")
    assert grid("qrls", job).returncode == 0
    grid.wait(job)
    assert (grid.home / "resolved").read_text() == f"{store}/sha256-{'a' * 64}.sqfs\n"


def test_the_verifier_reads_what_stands_in_the_script(grid, run, image, jsv):
    given = f"#$ -v SHOEBOX_IMAGE={grid.where}/store/./box.sqfs"
    text = grid.script(f"{given}\necho $SHOEBOX_IMAGE; {run.split()[0]} cat /etc/os-release")
    assert text == f"{image}\nNAME=box\n"


def test_the_verifier_lets_other_jobs_alone(grid, jsv):
    assert grid.script("printf '%s\\n' \"$OTHER\"", "-v", "OTHER=a b\\n$c") == "a b\\n$c\n"


@pytest.mark.parametrize(
    "hostile",
    [
        "no/such:1",
        "x;id",
        "$(id)",
        "`id`",
        "a\nRESULT STATE ACCEPT",
        "a\\nRESULT STATE ACCEPT",
        "\\",
        "--help",
        "-",
        "\x01",
    ],
)
def test_the_verifier_refuses_what_is_no_image(grid, jsv, hostile):
    done = grid("qsub", "-terse", "-b", "y", "-o", "/dev/null", "-j", "y", "-v", f"SHOEBOX_IMAGE={hostile}", "true")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("Unable to run job: sh-run: ")


def test_an_image_whose_path_cannot_be_passed_on_is_refused(grid, jsv, image):
    odd = grid.where / "store" / "back\\slash.sqfs"
    shutil.copy(image, odd)
    (grid.where / "store/plain.sqfs").symlink_to(odd)
    done = grid("qsub", "-b", "y", "-o", "/dev/null", "-v", f"SHOEBOX_IMAGE={grid.where}/store/plain.sqfs", "true")
    assert done.returncode == 1
    assert "a control character or backslash" in done.stderr

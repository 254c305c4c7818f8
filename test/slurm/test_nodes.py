"""sh-stage --nodes: an image on the nodes of a job, for as long as the job lasts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures import slurm as real
from fixtures.rootfs import sif, until

from shoebox import sidecar

pytestmark = pytest.mark.root

OWN = "from this node's own copy"
WAY = "--explain {} true | grep ^way"
NODE = re.compile(r"node (\w+)")


@pytest.fixture
def app(slurm, image):
    """Return the path of an image in the store, which is the test's own."""
    path = slurm.where / "store/app.sqfs"
    shutil.copy(image, path)
    shutil.chown(path, slurm.user)
    yield path
    path.chmod(0o644)
    for left in (path, path.with_suffix(".json")):
        left.unlink(missing_ok=True)


@pytest.fixture
def large(app):
    """Return an image that takes sbcast a while."""
    with app.open("ab") as file:
        for _ in range(150):
            file.write(os.urandom(1 << 20))
    return app


@pytest.fixture(autouse=True)
def rooms(slurm):
    """See that a test leaves what it found in the nodes' memory, less notes of sh-run's."""
    before = {name: used(slurm, name) for name in slurm.nodes}
    yield
    assert until(lambda: all(used(slurm, name) < before[name] + (64 << 10) for name in slurm.nodes), 15)


def used(slurm, name):
    """Return how many bytes are taken of a node's /dev/shm."""
    room = os.statvfs(slurm.root(name) / "dev/shm")
    return (room.f_blocks - room.f_bfree) * room.f_frsize


def files(slurm, *names):
    """Return what lies in the user's own directories on nodes."""
    return [path for name in names or slurm.nodes for path in slurm.root(name).glob("dev/shm/shoebox-*/*")]


def sweep(slurm):
    for path in files(slurm):
        path.unlink()


def alloc(slurm, script, *words, **env):
    """Run a script in a shell of salloc's."""
    return slurm("salloc", "-Q", *(words or ("-N3",)), "sh", "-c", script, **env)


def one_line(done, *parts, status=75):
    assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
    assert done.stderr.startswith("sh-stage: ")
    assert [part for part in parts if part not in done.stderr] == []
    return done.stderr


def test_the_ranks_of_all_nodes_run_from_their_nodes_copy(slurm, app):
    before = used(slurm, "n2")
    show = f"srun -N3 sh-run --explain {app} true | grep ^way; srun -Q -N3 sh-run {app} cat /etc/os-release"
    # Nobody may read the image any more: what runs, runs from copies.
    done = alloc(slurm, f"sh-stage --nodes {app} && sh-stage --nodes {app} && chmod 0 {app} && {show}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == [str(app)] * 2
    assert [OWN in line for line in lines[2:5]] == [True] * 3
    assert lines[5:] == ["NAME=box"] * 3
    assert until(lambda: used(slurm, "n2") <= before + (64 << 10))


def test_a_batch_job_ends_as_it_would_without_and_leaves_no_file(slurm, app):
    sweep(slurm)
    script = f"sh-stage --nodes {app} && squeue -h -s -o %j -j $SLURM_JOB_ID | sort && sh-run {WAY.format(app)}"
    out = slurm.home / "ended"
    job = slurm.submit(f"{script}\nexit 0", "-N2", "-o", out)
    assert until(lambda: not slurm.queued(job), 60)
    lines = out.read_text().splitlines()
    assert lines[:3] == [str(app), "batch", "sh-stage"]
    assert OWN in lines[3]
    assert until(lambda: "JobState=COMPLETED" in slurm.ok("scontrol", "show", "job", job))
    assert "DerivedExitCode=0:0" in slurm.ok("scontrol", "show", "job", "-d", job)
    assert slurm.clean()
    assert files(slurm) == []


def test_the_sidecar_goes_with_the_copy(slurm, app):
    data = app.read_bytes()
    config = b'{"config":{"Env":["FROM=sidecar"],"Cmd":["sh","-c","echo $FROM"]}}'
    text = sidecar.dump(
        sha256=subprocess.check_output(["sha256sum", app], text=True)[:64], size=len(data), config=config
    )
    app.with_suffix(".json").write_bytes(text)
    script = f"sh-stage --nodes {app} && mv {app.with_suffix('.json')} {app}.away && srun -N2 sh-run {app}"
    done = alloc(slurm, script, "-N2")
    Path(f"{app}.away").unlink()
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["sidecar"] * 2), done.stderr


def test_an_image_that_was_replaced_is_another_one(slurm, app):
    again = f"cp {app} {app}.new && mv {app}.new {app} && srun sh-run {WAY.format(app)}"
    done = alloc(slurm, f"sh-stage --nodes {app} && {again}", "-N2")
    assert done.returncode == 0
    assert OWN not in done.stdout


def test_a_sif_file_and_the_way_unpack(slurm, app):
    packed = sif(app, app.with_suffix(".sif"))
    packed.chmod(0o644)
    unpacked = f"srun -N2 sh-run --mount=unpack {packed} cat /etc/os-release"
    show = f"chmod 0 {packed}; {unpacked}; srun sh-run {WAY.format(packed)}"
    shutil.chown(packed, slurm.user)
    done = alloc(slurm, f"sh-stage --nodes {packed} && {show}", "-N2")
    packed.unlink()
    assert done.stdout.splitlines()[1:3] == ["NAME=box"] * 2, done.stderr
    assert done.stdout.count(OWN) == 2


def test_all_components_of_a_heterogeneous_job(slurm, app):
    script = f"sh-stage --nodes {app} && srun --het-group=0,1 sh-run {WAY.format(app)}"
    done = alloc(slurm, script, "-N1", ":", "-N2")
    assert (done.returncode, done.stdout.count(OWN)) == (0, 3), done.stderr


def test_variables_that_are_options_of_srun_do_not_matter(slurm, app):
    env = {
        "SLURM_LABELIO": "1",
        "SLURM_STDOUTMODE": "none",
        "SLURM_DISTRIBUTION": "plane=4",
        "SLURM_NTASKS_PER_NODE": "4",
    }
    show = f"unset {' '.join(env)}; srun -N2 -n2 sh-run {WAY.format(app)}"
    done = alloc(slurm, f"sh-stage --nodes {app} && {show}", "-N2", "-n8", **env)
    assert (done.returncode, done.stdout.count(OWN)) == (0, 2), done.stderr


def test_another_directory_and_one_that_is_not_there(slurm, app):
    done = alloc(slurm, f"sh-stage --nodes=/tmp {app} && srun -N2 sh-run {WAY.format(app)}; srun ls -A /tmp", "-N2")
    assert done.stdout.count(OWN) == 2
    assert ".shoebox" not in done.stdout
    (slurm.root("n1") / "tmp/n1").mkdir(mode=0o777)
    (slurm.root("n1") / "tmp/n1").chmod(0o777)
    done = alloc(slurm, f"sh-stage --nodes=/tmp/n1 {app}; echo $?; srun sh-run {WAY.format(app)}", "-N2")
    assert (done.stdout.splitlines()[0], OWN in done.stdout) == ("75", False)
    assert re.fullmatch(rf"sh-stage: cannot stage '{app}' on node n2: cannot use '/tmp/n1': No such .*\n", done.stderr)


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["--nodes"], "SLURM_JOB_ID is not set", 2),
        (["--nodes=tmp"], "must begin with a slash", 2),
        (["--nodes="], "must begin with a slash", 2),
        (["--nodes", "-d", "/tmp/x"], "do not go together", 2),
    ],
)
def test_outside_of_a_job_and_with_wrong_words_there_is_one_clear_line(slurm, app, words, said, status):
    one_line(slurm("sh-stage", *words, app), said, status=status)


def test_in_a_job_step_there_is_one_clear_line(slurm, app):
    done = slurm("srun", "-n1", "sh-stage", "--nodes", app)
    assert "sh-stage: cannot use --nodes in a job step" in done.stderr
    assert done.returncode == 2


def test_a_disk_that_is_full_is_named_with_its_node(slurm, app):
    full = "mkdir /run/full && mount -t tmpfs -o mode=1777,size={} none /run/full"
    for name, size in (("n1", "100m"), ("n2", "64k"), ("n3", "100m")):
        inside = ["nsenter", "-t", str(slurm.nodes[name].first), "-m", "sh", "-c"]
        subprocess.run([*inside, full.format(size)], check=True)
    try:
        one_line(
            alloc(slurm, f"sh-stage --nodes=/run/full {app}"), "on node n2", "no space in '/run/full'", "--nodes=DIR"
        )
        assert [list(slurm.root(name).glob("run/full/*")) for name in slurm.nodes] == [[], [], []]
    finally:
        for name in slurm.nodes:
            inside = ["nsenter", "-t", str(slurm.nodes[name].first), "-m", "sh", "-c"]
            subprocess.run([*inside, "umount /run/full && rmdir /run/full"], check=True)


def test_a_copy_that_is_not_what_the_sidecar_says_is_not_kept(slurm, app):
    text = sidecar.dump(sha256="0" * 64, size=app.stat().st_size)
    app.with_suffix(".json").write_bytes(text)
    one_line(alloc(slurm, f"sh-stage --nodes {app}", "-N2"), "on node n", "the copy is damaged", "0" * 64)


def test_a_directory_of_somebody_elses_is_never_used(slurm, app):
    uid = slurm.home.stat().st_uid
    sweep(slurm)
    place = slurm.root("n2") / f"dev/shm/shoebox-{uid}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o777)
    try:
        # n2 falls back on /tmp, as sh-run would; sbcast has one path for all nodes.
        one_line(alloc(slurm, f"sh-stage --nodes {app}", "-N2"), "has another place for files", status=1)
        assert list(place.iterdir()) == []
    finally:
        place.rmdir()


def test_two_jobs_of_a_user_on_a_node_have_a_copy_each(slurm, app):
    first = slurm.submit(f"sh-stage --nodes {app} && touch one; sleep 100", "-N1", "-w", "n1")
    assert until((slurm.home / "one").exists, 30)
    script = (
        f"sh-stage --nodes {app} && touch two; while ! [ -e three ]; do sleep 0.1; done; sh-run {WAY.format(app)} >four"
    )
    second = slurm.submit(script, "-N1", "-w", "n1")
    assert until((slurm.home / "two").exists, 30)
    slurm.ok("scancel", first)
    assert until(lambda: not slurm.queued(first), 30)
    (slurm.home / "three").touch()
    assert until(lambda: not slurm.queued(second), 30)
    assert OWN in (slurm.home / "four").read_text()


def test_the_same_image_staged_by_two_at_once(slurm, app):
    script = f"sh-stage --nodes {app} & sh-stage --nodes {app}; wait; srun -N2 sh-run {WAY.format(app)}"
    done = alloc(slurm, script, "-N2")
    assert (done.stderr, done.stdout.count(f"{app}\n"), done.stdout.count(OWN)) == ("", 2, 2)


def staged(slurm, app):
    """Start a job that has staged, and waits; return its id."""
    ready = slurm.home / "ready"
    ready.unlink(missing_ok=True)
    job = slurm.submit(f"sh-stage --nodes {app} && touch {ready}; sleep 100", "-N2")
    assert until(ready.exists, 30), slurm.logs()
    return job


@pytest.mark.parametrize("how", ["scancel", "kill", "stepd", "keepers"])
def test_however_the_job_ends_the_copies_are_gone(slurm, large, how):
    sweep(slurm)
    before = used(slurm, "n1"), used(slurm, "n2")
    job = staged(slurm, large)
    assert used(slurm, "n1") > before[0] + (100 << 20)
    if how == "kill":
        slurm("scancel", "-s", "KILL", job)
    elif how == "stepd":
        slurm.kill("slurmstepd")
    elif how == "keepers":
        slurm.kill("python3")
    assert until(lambda: how not in ("stepd", "keepers") or used(slurm, "n1") < before[0] + (1 << 20), 15)
    slurm("scancel", job)
    if how == "stepd":
        slurm.kill("sleep")
    assert until(lambda: not slurm.queued(job), 30)
    assert slurm.clean()
    assert until(lambda: used(slurm, "n2") < before[1] + (64 << 10))
    if how in ("scancel", "stepd"):
        assert files(slurm) == []
    slurm.ok("srun", "-N2", "-n2", "sh-run", slurm.where / "store/box.sqfs", "true")
    assert [path for path in files(slurm) if path.read_bytes().startswith(b"copy")] == []  # swept, if any was left


def test_a_keeper_that_is_killed_costs_the_copy_and_no_run(slurm, app):
    job = staged(slurm, app)
    slurm.kill("python3")
    done = slurm("srun", f"--jobid={job}", "--overlap", "-N1", "-n1", "sh-run", app, "cat", "/etc/os-release")
    assert (done.returncode, done.stdout) == (0, "NAME=box\n"), done.stderr
    slurm("scancel", job)


def coming_in(slurm):
    return len([path for path in files(slurm) if path.name.startswith("incoming-")]) >= 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, "scancel"])
def test_ended_in_the_middle_it_leaves_nothing(slurm, large, how):
    sweep(slurm)
    before = used(slurm, "n1")
    known = stages()
    allocated = slurm.start(
        "salloc", "-QK", "-N2", "sh", "-c", f"echo $SLURM_JOB_ID; sh-stage -q --nodes {large}; exec sleep 100"
    )
    job = allocated.stdout.readline().strip()
    assert until(lambda: stages() - known, 20)
    pid = min(stages() - known)  # between fork and exec, a child of it is one too
    assert until(lambda: coming_in(slurm), 20), slurm.logs()
    if how == "scancel":
        slurm.ok("scancel", job)
        allocated.wait(30)
    else:
        os.kill(pid, how)
    assert until(lambda: used(slurm, "n1") < before + (1 << 20), 20)
    if how not in ("scancel", signal.SIGKILL):
        assert until(lambda: not coming_in(slurm), 20)
    slurm("scancel", job)
    allocated.communicate(timeout=30)
    assert slurm.clean()
    assert files(slurm) == []


def stages():
    """Return the processes that are sh-stage."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"sh-stage\0-q\0--nodes" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found


def test_a_node_that_dies_meanwhile_is_named(prefix, box, tmp_path):
    with real.cluster(prefix, ("m1", "m2")) as up:
        image = up.where / "store/box.sqfs"
        shutil.copy(box, image)
        with image.open("ab") as file:
            for _ in range(100):
                file.write(os.urandom(1 << 20))
        with up.start("salloc", "-Q", "-N2", "sh-stage", "--nodes", image) as process:
            assert until(lambda: coming_in(up), 20), up.logs()
            (slurmd,) = [line for line in up.nodes["m2"].before if line.endswith(" slurmd")]
            os.kill(int(slurmd.split()[1]), signal.SIGKILL)
            began = time.monotonic()
            _, err = process.communicate(timeout=120)
        assert process.returncode != 0
        lines = [line for line in err.splitlines() if line.startswith("sh-stage: ")]
        assert len(lines) == 1, err
        assert "m2" in lines[0], err
        assert time.monotonic() - began < 60
        assert until(lambda: files(up, "m1") == [], 20)

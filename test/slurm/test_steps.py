"""sh-run in srun lines, without any plugin: on real nodes, as an ordinary user."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest
from fixtures.rootfs import servers, until

pytestmark = pytest.mark.root

FOUR_EACH = ("-N2", "--ntasks-per-node=4")
WHERE = "echo $(hostname) $(readlink /proc/self/ns/user) $(readlink /proc/self/ns/mnt) $SLURM_PROCID"
# Ranks that end too early are not there for the others to join.
TOGETHER = "mkdir -p there && >there/$SLURM_PROCID; while [ $(ls there | wc -l) -lt %d ]; do sleep 0.02; done"


def ranks(text):
    """Return node -> the (user, mount) namespaces of its ranks, and the ranks, of the lines that WHERE prints."""
    nodes, seen = {}, []
    for line in text.splitlines():
        node, user, mounts, rank = line.split()
        nodes.setdefault(node, []).append((user, mounts))
        seen.append(int(rank))
    return nodes, sorted(seen)


def test_the_ranks_of_a_node_share_one_container(slurm, image):
    nodes, seen = ranks(slurm.ok("srun", *FOUR_EACH, "sh-run", image, "sh", "-c", f"{TOGETHER % 8}; {WHERE}"))
    assert seen == list(range(8))
    assert {node: len(spaces) for node, spaces in nodes.items()} == {"n1": 4, "n2": 4}
    assert [len(set(spaces)) for spaces in nodes.values()] == [1, 1]
    assert set(nodes["n1"]).isdisjoint(nodes["n2"])


def test_unlike_numbers_of_ranks_on_the_nodes(slurm, image):
    text = slurm.ok("srun", "-N3", "-n6", "-m", "plane=4", "-O", "sh-run", image, "sh", "-c", WHERE)
    assert sorted(Counter(line.split()[0] for line in text.splitlines()).values()) != [2, 2, 2]
    assert ranks(text)[1] == list(range(6))


def test_components_of_a_heterogeneous_job_run_different_images(slurm, image):
    copy = slurm.where / "store/other.sqfs"
    copy.write_bytes((slurm.where / "store/box.sqfs").read_bytes())
    line = ("-N1", "-n1", "sh-run", image, "sh", "-c", WHERE, ":", "-N1", "-n3", "sh-run", copy, "sh", "-c", WHERE)
    nodes, _ = ranks(slurm.ok("srun", "-Q", *line))
    assert sorted(len(spaces) for spaces in nodes.values()) == [1, 3]


def test_the_uid_groups_and_the_directory_are_the_users(slurm, image):
    outside = slurm.ok("srun", "sh", "-c", "id -u; id -g; pwd; umask; echo $SLURM_JOB_NUM_NODES")
    assert (
        slurm.ok("srun", "sh-run", image, "sh", "-c", "id -u; id -g; pwd; umask; echo $SLURM_JOB_NUM_NODES") == outside
    )


def test_a_batch_script_starts_steps(slurm, image):
    text = slurm.script(f"cat /etc/os-release | head -1; srun sh-run {image} cat /etc/os-release", "-N2", "-n2")
    assert text.splitlines()[1:] == ["NAME=box", "NAME=box"]


def test_a_batch_script_is_one_command_inside(slurm, image):
    assert slurm.script(f"#!/usr/bin/env -S sh-run --image {image} sh\ncat /etc/os-release\n") == "NAME=box\n"


def test_a_job_array(slurm, image):
    job = slurm.submit(
        f"srun sh-run {image} sh -c 'echo $SLURM_ARRAY_TASK_ID'", "--array=1-4", "-o", slurm.home / "a-%a"
    )
    assert until(lambda: not slurm.queued(job), 60)
    assert [(slurm.home / f"a-{number}").read_text() for number in range(1, 5)] == [f"{n}\n" for n in range(1, 5)]


def test_overlapping_steps_have_containers_of_their_own(slurm, image):
    met = "mkdir -p both && >both/$SLURM_STEP_ID.$SLURM_PROCID; while [ $(ls both | wc -l) -lt 4 ]; do sleep 0.02; done"
    step = f"srun --overlap -N1 -n2 sh-run {image} sh -c '{met}; {WHERE}'"
    text = slurm("salloc", "-Q", "-N1", "-n2", "sh", "-c", f"{step} & {step} & wait").stdout
    nodes, _ = ranks(text)
    assert [len(spaces) for spaces in nodes.values()] == [4]
    assert [len(set(spaces)) for spaces in nodes.values()] == [2]


def test_salloc_gives_a_shell_that_starts_steps(slurm, image):
    done = slurm("salloc", "-Q", "-N2", "sh", stdin=f"srun sh-run {image} cat /etc/os-release\nexit 3\n")
    assert (done.stdout, done.returncode) == ("NAME=box\nNAME=box\n", 3)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)])
def test_statuses_go_through_srun(slurm, image, script, status):
    done = slurm("srun", "sh-run", image, "sh", "-c", script)
    assert done.returncode == status
    assert done.stdout == ""


def test_our_own_statuses_go_through_srun(slurm, image):
    assert slurm("srun", "-n2", "sh-run", image, "nosuch").returncode == 127
    assert slurm("srun", "-n2", "sh-run", image, "/etc/hosts").returncode == 126
    done = slurm("srun", "-n2", "sh-run", "nosuch:1", "true")
    assert done.returncode == 125
    assert done.stderr.count("sh-run: no image 'nosuch:1'") == 2


def test_stdin_and_stdout_go_through(slurm, image):
    text = "".join(f"{number}\n" for number in range(20000))
    assert slurm.ok("srun", "sh-run", image, "cat", stdin=text) == text.removesuffix("\n")


def test_signals_reach_the_command(slurm, image):
    trap = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.05; done"
    with slurm.start("srun", "-J", "sig", "sh-run", image, "sh", "-c", trap) as process:
        assert process.stdout.readline() == "ready\n"
        slurm.ok("scancel", "-s", "USR1", "-n", "sig")
        assert process.stdout.read() == "got\n"
        assert process.wait(20) == 5


def test_ctrl_c_at_srun_ends_all_ranks(slurm, image):
    with slurm.start("srun", "-N2", "-n4", "sh-run", image, "sh", "-c", "echo ready; sleep 60") as process:
        assert [process.stdout.readline() for _ in range(4)] == ["ready\n"] * 4
        for _ in range(2):  # the first one asks
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        process.communicate(timeout=20)
    assert slurm.clean()


def running(slurm, image, *words):
    """Start a batch job whose ranks run on both nodes; return it when they do."""
    ready = slurm.home / "ready"
    ready.unlink(missing_ok=True)
    inside = f"echo >>{ready}; sleep 100"
    job = slurm.submit(f"srun sh-run {' '.join(words)} {image} sh -c '{inside}'", "-N2", "-n4")
    assert until(lambda: ready.exists() and ready.read_text().count("\n") == 4, 30), slurm.logs()
    assert len(served(slurm)) == 2
    return job


def served(slurm):
    return servers(slurm.where / "store/box.sqfs")


def test_scancel_leaves_nothing_on_any_node(slurm, image):
    job = running(slurm, image)
    slurm.ok("scancel", job)
    assert until(lambda: not slurm.queued(job), 30)
    assert slurm.clean()
    assert served(slurm) == []
    keys = [key for name in ("n1", "n2") for key in keys_of(slurm, name)]
    slurm.ok("srun", "-N2", "-n2", "sh-run", image, "true")
    assert not [key for key in keys if key.exists()]


def keys_of(slurm, name):
    """Return the files in which ranks meet on a node, where we see them."""
    return [path for path in slurm.root(name).glob("dev/shm/shoebox-*/*") if path.is_file()]


def test_slurmstepd_killed_leaves_nothing(slurm, image):
    job = running(slurm, image)
    slurm.kill("slurmstepd")  # after which the tasks are nobody's, with proctrack/linuxproc
    slurm("scancel", job)
    assert until(lambda: slurm.kill("sleep") or slurm.clean(0.2), 30)


def test_all_ranks_killed_leave_nothing(slurm, image):
    job = running(slurm, image)

    def ended():
        slurm.kill("sleep")  # a rank that has said that it is ready may be a moment from its sleep
        return not slurm.queued(job)

    assert until(ended, 30)
    assert slurm.clean()


def test_what_the_server_serves_outlives_a_rank_and_ends_with_the_last(slurm, image):
    script = "[ $SLURM_LOCALID = 0 ] || { sleep 1; cat /etc/os-release; }"
    assert slurm.ok("srun", "-N1", "-n2", "sh-run", image, "sh", "-c", script) == "NAME=box"
    assert until(lambda: not served(slurm), 5)


def test_a_hundred_steps_leave_nothing(slurm, image):
    loop = f"for i in $(seq 100); do srun -Q sh-run {image} true || exit; done"
    done = slurm("salloc", "-Q", "-N1", "-n2", "sh", "-c", loop, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert slurm.clean()
    assert sum(len(keys_of(slurm, name)) for name in slurm.nodes) <= len(slurm.nodes)


def test_many_ranks_at_once(slurm, image):
    done = slurm("srun", "-Q", "-N2", "-n64", "sh-run", image, "sh", "-c", WHERE, timeout=120)
    nodes, seen = ranks(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert seen == list(range(64))
    assert [len(spaces) for spaces in nodes.values()] == [32, 32]

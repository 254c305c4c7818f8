"""srun with many ranks: each in the image, beside each outside. A real Slurm needs root to be started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench.measure import Room
from fixtures import slurm as real
from fixtures.installed import make_install

Beside = Callable[..., None]

RANKS = 32
ROUNDS = 9


@pytest.fixture(scope="module")
def cluster(room: Room, tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Cluster]:
    """Return a cluster of two nodes, with the image in its store."""
    if os.geteuid():
        pytest.skip("only root can start a Slurm")
    if why := real.why_not():
        pytest.fail(why)
    prefix = tmp_path_factory.mktemp("slurm") / "prefix"
    make_install(prefix)
    for place in (prefix, *prefix.parents[:3]):
        place.chmod(0o755)

    def more(where: Path) -> None:  # when slurmd starts it looks whether there is a prolog
        (where / "plugstack.conf").write_text(f"required {real.plugin(where)}\n")

    with real.cluster(prefix, ("n1", "n2"), more=more, PrologFlags="NoHold") as made:
        yield made


@pytest.fixture(scope="module")
def small(cluster: real.Cluster, tree: Path) -> Path:
    """Return a small image, in the cluster's store."""
    path = cluster.where / "store/small.sqfs"
    words = ["mksquashfs", tree, path, "-comp", "zstd", "-noappend", "-quiet", "-all-root"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return path


def work(cluster: real.Cluster, *words: object) -> Callable[[Path], None]:
    """Return what runs a command on the cluster's login node, whatever Slurm says of busy nodes meanwhile."""

    def run(_: Path) -> None:
        done = cluster(*words)
        assert done.returncode == 0, done.stderr

    return run


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(("plugged", "target"), [(True, 1.3), (False, 2.0)])
def test_srun_of_many_ranks_beside_the_same_outside(
    beside: Beside, cluster: real.Cluster, small: Path, *, nodes: int, plugged: bool, target: float
) -> None:
    plugin = f"required {cluster.where}/plugin/spank_shoebox.so\n" if plugged else ""
    (cluster.where / "plugstack.conf").write_text(plugin)
    srun = ("srun", f"-N{nodes}", f"-n{RANKS}")

    with_ = "with the plugin" if plugged else "without the plugin"
    where = "one node" if nodes == 1 else "two nodes"
    beside(
        f"srun -n{RANKS} sh-run IMG true, {with_} : srun true, {where}",
        target,
        work(cluster, *srun, "sh-run", small, "true"),
        work(cluster, *srun, "true"),
        ROUNDS,
    )


def test_steps_of_a_job_beside_the_same_outside(beside: Beside, cluster: real.Cluster, small: Path) -> None:
    (cluster.where / "plugstack.conf").write_text(f"required {cluster.where}/plugin/spank_shoebox.so\n")
    job = ("salloc", "-Q", "-N1", f"-n{RANKS}", "sh", "-c")
    ours, theirs = ("; ".join([f"srun -n{RANKS} {command}"] * 10) for command in (f"sh-run {small} true", "true"))
    name = f"10 steps of srun -n{RANKS} sh-run IMG true in a job : of srun true"
    beside(name, 1.3, work(cluster, *job, ours), work(cluster, *job, theirs), ROUNDS // 2)

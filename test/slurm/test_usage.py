"""The line that a step leaves on each of its nodes, with Slurm's plugin and without."""

from __future__ import annotations

import re
import shutil

import pytest
from fixtures import slurm as real
from fixtures.rootfs import until

pytestmark = pytest.mark.root

DIGEST = "sha256:" + "cd" * 32


@pytest.fixture(scope="module")
def up(prefix, box):
    """Return a cluster whose daemons knew the plugin when they began: so it keeps containers for jobs."""
    if why := real.why_not():
        pytest.skip(why)

    def more(where):
        (where / "plugstack.conf").write_text(f"required {real.plugin(where)}\n")

    with real.cluster(prefix, ("n1", "n2"), more=more, PrologFlags="NoHold") as made:
        shutil.copy(box, made.where / "store/box.sqfs")
        yield made


@pytest.fixture
def slurm(up):
    yield up
    up("scancel", "-u", up.user)
    assert up.clean(), f"left behind: {up.left()}"


@pytest.fixture
def log(slurm, prefix, image):
    """Return a directory where runs leave lines, as the site.conf of all nodes says."""
    where = slurm.where / "log"
    where.mkdir()
    where.chmod(0o1777)
    named = slurm.where / f"store/sha256-{DIGEST[7:]}.sqfs"
    shutil.copy(image, named)
    # The commands look below their prefix, which nodes do not see if it is in our /tmp.
    places = [slurm.root(name) / str(prefix)[1:] / "etc" for name in slurm.nodes]
    made = [next(path for path in (place, *place.parents) if path.parent.exists()) for place in places]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / "site.conf").write_text(f"[settings]\nusage = {where}\n")
    yield where
    for place, top in zip(places, made, strict=True):
        (place / "site.conf").unlink(missing_ok=True)
        if str(prefix).startswith("/tmp/"):
            shutil.rmtree(top, ignore_errors=True)
    shutil.rmtree(where)
    named.unlink()


def lines(log, count):
    """Return the fields of all lines, once there are so many: job, node, way."""

    def all_of_them():
        return sorted(line.split() for path in log.iterdir() for line in path.read_text().splitlines())

    assert until(lambda: len(all_of_them()) >= count), all_of_them()
    assert {line[2] for line in all_of_them()} == {DIGEST}
    return [line[3:] for line in all_of_them()]


def numbers(said):
    """Replace jobs' numbers by their order."""
    jobs = sorted({int(line[0].partition(".")[0]) for line in said})
    return sorted([re.sub(r"^\d+", lambda found: str(jobs.index(int(found[0]))), job), *rest] for job, *rest in said)


def test_a_step_leaves_a_line_on_each_node(slurm, log):
    alone = ("sh", "-c", 'exec sh-run "$@"', "sh")  # which the plugin does not know
    slurm.ok("srun", "-Q", "-N2", "--ntasks-per-node=3", *alone, DIGEST, "sleep", "1")
    said = lines(log, 2)
    assert numbers(said) == [["0.0", "n1", "fuse"], ["0.0", "n2", "fuse"]]
    slurm.ok("srun", "-Q", "-N1", "-wn1", "-n3", *alone, "--no-join", DIGEST, "sleep", "1")
    assert numbers(lines(log, 3))[2:] == [["1.0", "n1", "fuse"]]


def test_with_the_plugin_too_and_so_does_a_step_that_finds_the_jobs_container(slurm, log):
    script = (
        f"for i in 1 2; do srun -Q -n3 sh-run {DIGEST} sleep 1; done; srun -Q -n3 sh-run --no-home {DIGEST} sleep 1"
    )
    slurm.ok("salloc", "-Q", "-N1", "-n3", "-wn1", "sh", "-c", script)
    assert numbers(lines(log, 3)) == [["0.0", "n1", "fuse"], ["0.1", "n1", "kept"], ["0.2", "n1", "fuse"]]

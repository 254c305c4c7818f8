"""MPI in images, over two nodes: Open MPI and MPICH, by srun and mpirun; the host's; Slurm's clients inside."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures import mpi
from fixtures import slurm as real
from fixtures.installed import TREE
from fixtures.nodes import need
from fixtures.rootfs import make_tree, squash

pytestmark = pytest.mark.root

TWO_EACH = ("-N2", "--ntasks-per-node=2")
BY = {"openmpi": "--mpi=pmix", "mpich": "--mpi=pmi2"}
PMI = {BY["mpich"]: "pmi2", "mpirun.mpich": "pmi1"}  # MPICH's, by the word that says who starts it
YIELD = {"OMPI_MCA_mpi_yield_when_idle": "1"}  # there are fewer processors here than ranks


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """Return a root file system for each family."""
    need(mpi.why_not())
    where = tmp_path_factory.mktemp("mpi")
    return {family: mpi.make(where / family, family) for family in mpi.FAMILIES}


@pytest.fixture(scope="session")
def programs(up, trees):
    """Return the tests' program for each family, where all nodes have it, to run outside."""
    made = {family: up.where / f"store/mpi.{family}" for family in trees}
    for family, tree in trees.items():
        shutil.copy(tree / mpi.PROGRAM[1:], made[family])
    return made


@pytest.fixture(scope="session")
def images(up, trees):
    """Return an image for each family, which all nodes see."""
    return {family: str(squash(tree, up.where / f"store/{family}.sqfs")) for family, tree in trees.items()}


@pytest.fixture
def site(slurm, prefix):
    """Return what writes a file of the site's, on the nodes too, whose /tmp may hide it; all go afterwards."""
    made = []

    def write(name, text):
        for root in (Path("/"), *map(slurm.root, slurm.nodes)):
            path = root / str(prefix)[1:] / "etc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            made.append(path)

    yield write
    for path in made:
        path.unlink(missing_ok=True)


def ranks(slurm, *words, **env):
    """Run what prints a line for each rank, which must do so silently otherwise; return what each of four says."""
    pmi = next((PMI[word] for word in words if word in PMI), None)
    mpich = {"WITHOUT_FINALIZE": pmi} if pmi else {}
    quiet = ("srun", "-Q", *words[1:]) if words[0] == "srun" else words  # the job before may still be ending
    done = slurm(*quiet, **YIELD, **mpich, **env)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}\n{slurm.logs()}"
    assert "PMIX ERROR" not in done.stdout
    said = dict(re.findall(r"^rank (\d) of 4 (.*)$", done.stdout, re.MULTILINE))
    assert sorted(said) == ["0", "1", "2", "3"], done.stdout  # an MPI without its PMI is so many worlds of one
    return said


@pytest.mark.parametrize("family", mpi.FAMILIES)
@pytest.mark.parametrize("how", ["alone", "plugged"])
def test_srun_makes_one_world_whose_ranks_read_each_others_memory(slurm, images, family, how, request):
    if how == "plugged":
        request.getfixturevalue("plugged")
    words = ("srun", BY[family], *TWO_EACH, "sh-run", images[family], mpi.PROGRAM)
    assert [line.split()[:2] for line in ranks(slurm, *words, "hello").values()] == [["sum", "10"]] * 4
    assert set(ranks(slurm, *words, "cma").values()) == {"read 8 right 1"}


def test_mpich_without_its_pmi_is_so_many_worlds_of_one(slurm, images):
    done = slurm("srun", "--mpi=pmix", *TWO_EACH, "sh-run", images["mpich"], mpi.PROGRAM, "hello")
    assert done.stdout.count("rank 0 of 1 ") == 4  # why `ranks` looks at the size


@pytest.mark.parametrize("family", mpi.FAMILIES)
def test_mpirun_starts_ranks_on_both_nodes_through_srun(slurm, images, family):
    words = ("salloc", "-Q", *TWO_EACH, f"mpirun.{family}", "sh-run", images[family], mpi.PROGRAM)
    assert {line.split()[-1] for line in ranks(slurm, *words, "hello").values()} == {"n1", "n2"}
    assert set(ranks(slurm, *words, "cma").values()) == {"read 8 right 1"}


@pytest.mark.parametrize("family", mpi.FAMILIES)
@pytest.mark.parametrize("how", ["alone", "plugged"])
def test_the_hosts_library_takes_the_place_of_the_images(slurm, images, family, how, request):
    if how == "plugged":
        request.getfixturevalue("plugged")
    run = ("srun", BY[family], *TWO_EACH, "sh-run")
    for words, env, there in (
        (("--mpi=host",), {}, True),
        ((), {"SHOEBOX_MPI": "host"}, True),
        (("--mpi=image",), {"SHOEBOX_MPI": "host"}, False),
        (("--mpi",), {}, False),
    ):
        said = ranks(slurm, *run, *words, images[family], mpi.PROGRAM, "where", **env)
        assert all(("from /.shoebox/mpi/" in line) == there for line in said.values()), said
    assert set(ranks(slurm, *run, "--mpi=host", images[family], mpi.PROGRAM, "cma").values()) == {"read 8 right 1"}


def test_open_mpis_plugins_and_parameters_are_the_hosts(slurm, images, trees, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(trees["openmpi"], tree, symlinks=True)
    plugins = next(tree.glob("usr/lib/*/openmpi/lib/openmpi*/mca_btl_self.so"), None) or pytest.fail("no plugins")
    shutil.rmtree(plugins.parent)
    (tree / ".shoebox").mkdir()
    (tree / ".shoebox/config.json").write_text(json.dumps({"config": {"Env": ["OPAL_PREFIX=/opt/moved"]}}))
    image = squash(tree, slurm.where / "store/bare-openmpi.sqfs")
    words = ("srun", BY["openmpi"], *TWO_EACH, "sh-run")
    assert "rank 0 of 4" not in slurm(*words, image, mpi.PROGRAM, "hello", **YIELD).stdout
    assert ranks(slurm, *words, "--mpi=host", image, mpi.PROGRAM, "hello")


STUB = '#include <stdlib.h>\n#include <stdio.h>\n#define F(n) int n(void) { puts("stub"); exit(3); }\n'


def library_of(family):
    """Return the host's library of a family."""
    text = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    return re.search(
        {"mpich": r"=> (.*/libmpich\.so\.12)$", "openmpi": r"=> (.*/libmpi\.so\.40)$"}[family], text, re.MULTILINE
    )[1]


def stub(tree, version, major="12"):
    """Make a root file system whose MPI is a name only, in a place that the program's RPATH names."""
    make_tree(tree)
    mpi.put(tree, *mpi.glibc())
    for name in ("lib", "lib64"):
        if not (tree / name).exists():
            (tree / name).symlink_to(f"usr/{name}")
    opt = tree / "opt/mpi/lib"
    opt.mkdir(parents=True)
    (tree / "app").mkdir()
    shown = subprocess.run(["mpicc.mpich", "-show"], check=True, capture_output=True, text=True).stdout.split()
    headers = [word for word in shown if word.startswith("-I")]
    called = sorted(set(re.findall(r"\b(MPI_[A-Z][a-z_]+)\(", mpi.SOURCE.read_text())))
    library = opt / f"libmpi.so.{version}"
    (tree / "stub.c").write_text(STUB + "\n".join(f"F({name})" for name in called))
    flags = ["-shared", "-fPIC", f"-Wl,-soname,libmpi.so.{major}"]
    subprocess.run(["gcc", *flags, "-o", library, tree / "stub.c"], check=True)
    (opt / f"libmpi.so.{major}").symlink_to(library.name)
    path = ["-Wl,--disable-new-dtags,-rpath,/opt/mpi/lib", "-ldl"]
    subprocess.run(["gcc", "-w", *headers, "-o", tree / "app/mpi", mpi.SOURCE, library, *path], check=True)
    return tree


def verdict(slurm, image):
    plan = json.loads(slurm.ok("sh-run", "--explain=json", "--mpi=host", image, "true"))
    return " ".join(line["why"] for line in plan["mpi"]), plan["warnings"]


def test_a_program_for_another_mpi_of_the_same_abi_finds_the_hosts_whatever_its_rpath(slurm, tmp_path):
    image = squash(stub(tmp_path / "stub", "12.1.8"), slurm.where / "store/stub.sqfs")
    words = ("srun", BY["mpich"], *TWO_EACH, "sh-run")
    assert "stub" in slurm(*words, image, mpi.PROGRAM, "hello").stdout
    said = ranks(slurm, *words, "--mpi=host", image, mpi.PROGRAM, "where")
    assert all("from /opt/mpi/lib/libmpi.so.12 is MPICH" in line for line in said.values()), said
    why, warnings = verdict(slurm, image)
    assert re.fullmatch(
        r"the image has MPICH, ABI 12\.1\.8, the host MPICH, ABI 12\.[\d.]+: the same major, not older", why
    )
    assert warnings == []


def test_an_older_host_is_told_and_what_cannot_work_is_refused_in_one_line(slurm, images, image, site):
    newer = stub(slurm.where / "store/newer", "12.99.0")
    why, warnings = verdict(slurm, newer)
    assert "ABI 12.99.0" in why
    assert "but older" in why
    assert warnings == [why]
    other = stub(slurm.where / "store/other", "13.0.0", "13")
    site("site.conf", "[settings]\nmpi = /nowhere\n")
    cases = [
        (image, "no MPI was found in the image"),
        (images["openmpi"], "there is none: the site names none that is"),
    ]
    check_refused(slurm, cases)
    site("site.conf", f"[settings]\nmpi = {library_of('mpich')}\n")
    old = old_glibc(shutil.copytree(newer, newer.with_name("old"), symlinks=True))
    cases = [
        (images["openmpi"], "the image has Open MPI, ABI 40.30.4, the host MPICH, ABI 12."),
        (other, "the image has MPICH, ABI 13.0.0, the host MPICH, ABI 12."),
        (old, " of libc.so.6, and the image has an older glibc"),
    ]
    check_refused(slurm, cases)
    plan = json.loads(slurm.ok("sh-run", "--explain=json", "--mpi=auto", other, "true"))
    assert plan["mpi"][0]["name"] == "the image's"
    assert slurm.ok("sh-run", "--mpi", "--explain", images["mpich"], "true").count("/.shoebox/mpi/libmpi.so.12")
    assert slurm("sh-run", "--mpi=some", image, "true").returncode == 125


def check_refused(slurm, cases):
    for image, said in cases:
        done = slurm("sh-run", "--mpi=host", image, "true")
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), (image, done.stderr)
        assert done.stderr.startswith("sh-run: cannot use the host's MPI: "), done.stderr
        assert said in done.stderr


def old_glibc(tree):
    """Put a C library into a root file system that has the name and a version of long ago."""
    script = tree / "map"
    script.write_text("GLIBC_2.2.5 { global: f; };\n")
    (tree / "f.c").write_text("void f(void) {}\n")
    place = next(path for path in tree.rglob("libc.so.6"))
    real_place = tree / os.path.realpath(place)[1:] if place.is_symlink() and not place.exists() else place
    words = ["-shared", "-nostdlib", "-fPIC", "-Wl,-soname,libc.so.6", f"-Wl,--version-script={script}"]
    real_place.unlink()
    subprocess.run(["gcc", *words, "-o", real_place, tree / "f.c"], check=True)
    return tree


@pytest.mark.parametrize("how", ["alone", "plugged"])
def test_where_pmix_meets_its_clients_is_inside_wherever_the_site_has_it(prefix, trees, how):
    def prepare(where):
        if how == "plugged":
            (where / "plugstack.conf").write_text(f"required {real.plugin(where)}\n")

    with real.cluster(prefix, ("n1",), more=prepare, SlurmdSpoolDir="/mnt/spool") as slurm:
        image = squash(trees["openmpi"], slurm.where / "store/openmpi.sqfs")
        words = ("srun", BY["openmpi"], "-N1", "-n4", "sh-run")
        script = 'cd "$PMIX_SERVER_TMPDIR" && >mine && ls -d $PWD/pmix_dstor*'
        assert "/mnt/spool/pmix." in slurm.ok("srun", "-Q", *words[1:], image, "sh", "-c", script)
        for mode in ("image", "host"):
            assert ranks(slurm, *words, f"--mpi={mode}", image, mpi.PROGRAM, "hello")
        keys = list(slurm.root("n1").glob("dev/shm/shoebox-*/*"))
        assert bool(keys) == (how == "alone")  # plugged, no rank has run sh-run by itself


def test_srun_and_squeue_work_inside_with_the_module_that_ships(slurm, images, site):
    text = (TREE / "doc/examples/modules.d/slurm.conf").read_text()
    # of a real site's file, only the socket's place is another here
    text = text.replace(
        "/run/munge                                /run/munge  ", "/run/shoebox-munge /run/shoebox-munge "
    )
    site("modules.d/slurm.conf", text)
    script = 'squeue -h -o "%T %u"; srun -n2 --overlap sh -c "echo on \\$SLURM_PROCID of \\$SLURM_STEP_NUM_TASKS"'
    words = ("sbatch", "--wait", "-n2", "-N1", "-o", slurm.home / "inside.out")
    line = f"exec sh-run --module slurm {images['mpich']} sh -c '{script}'"
    done = slurm(*words, "--wrap", line)
    out = Path(slurm.home / "inside.out").read_text()
    assert done.returncode == 0, out
    assert sorted(out.split("\n")) == ["", "RUNNING " + slurm.user, "on 0 of 2", "on 1 of 2"]

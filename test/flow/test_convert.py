"""sh-convert: a udiRoot.conf becomes files that sh-run obeys."""

from __future__ import annotations

import json

import pytest

from shoebox import site

UDIROOT = """\
# udiRoot.conf, as Shifter's udiRoot.conf.example has it, with some modules
udiMount=/var/udiMount
imagePath=/images
siteFs=/home:/home;\\
    {here}/scratch:/scratch:slave:rec
siteEnv=SHIFTER_RUNTIME=1
siteEnvAppend=PATH=/opt/udiImage/bin
imageGateway=http://imagegwapi:5000
defaultModules=mpich
module_mpich_siteEnvPrepend=LD_LIBRARY_PATH=/opt/mpich/lib
module_mpich_roothook=/etc/hook.sh
"""


@pytest.fixture
def udiroot(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/file").write_text("scratch\n")
    (tmp_path / "udiRoot.conf").write_text(UDIROOT.format(here=tmp_path))
    return tmp_path / "udiRoot.conf"


def test_site_conf_is_printed_and_what_stays_behind_is_named(cmd, udiroot):
    done = cmd("sh-convert", udiroot)
    assert done.returncode == 0
    part = site.parse(done.stdout, "site.conf")
    assert [entry.target for entry in part.mounts] == ["/home", "/scratch"]
    assert part.words("modules") == ["mpich"]
    told = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert told == ["udiMount", "imagePath", "imageGateway", "module_mpich_roothook", "warning"]
    assert done.stderr.endswith("warning: left out are the modules mpich: write them with -d\n")


def test_with_d_files_are_written_and_none_is_written_over(cmd, udiroot, tmp_path):
    want = [f"{tmp_path}/etc/site.conf", f"{tmp_path}/etc/modules.d/mpich.conf"]
    assert cmd.ok("sh-convert", "-d", tmp_path / "etc", udiroot).splitlines() == want
    (tmp_path / "etc/site.conf").unlink()
    before = (tmp_path / "etc/modules.d/mpich.conf").read_bytes()
    done = cmd("sh-convert", "-d", tmp_path / "etc", udiroot)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"sh-convert: cannot write '{want[1]}': it is there: choose another directory\n")
    assert not (tmp_path / "etc/site.conf").exists()
    assert (tmp_path / "etc/modules.d/mpich.conf").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ((), 2, "one FILE is needed: see -h"),
        (("a", "b"), 2, "one FILE is needed: see -h"),
        (("no-such.conf",), 1, "cannot read 'no-such.conf': No such file or directory"),
        (("/",), 1, "cannot read '/': Is a directory"),
    ],
)
def test_what_it_cannot_do_is_one_line(cmd, words, status, told):
    done = cmd("sh-convert", *words)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"sh-convert: {told}\n")


def test_a_file_that_is_no_udiroot_conf_converts_to_nothing_and_says_so(cmd, tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\0[mounts]\n")
    done = cmd("sh-convert", tmp_path / "x")
    assert done.returncode == 0
    assert done.stderr == f"sh-convert: warning: nothing in '{tmp_path}/x' is for site.conf\n"


def test_an_imagemanager_json_becomes_a_table_that_sh_pull_obeys(cmd, tmp_path):
    locations = {"r.test": {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"}}
    (tmp_path / "imagemanager.json").write_text(json.dumps({"WorkerThreads": 8, "Locations": locations}))
    where = cmd.home / ".config/shoebox"
    done = cmd("sh-convert", "-d", where, tmp_path / "imagemanager.json")
    assert (done.returncode, done.stdout) == (0, f"{where}/registries.toml\n")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["WorkerThreads", "Locations.r.test.url"]
    assert cmd("sh-convert", tmp_path / "imagemanager.json").stdout == (where / "registries.toml").read_text()
    assert "'quay.io' is blocked" in cmd("sh-pull", "quay.io/a").stderr
    assert "cannot reach '127.0.0.1:1'" in cmd("sh-pull", "r.test/a").stderr
    done = cmd("sh-convert", "-d", where, tmp_path / "imagemanager.json")
    assert (done.returncode, done.stdout) == (1, "")

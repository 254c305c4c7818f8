"""sh-run with a site's files: mounts, environment, modules, and what volumes may not be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fixtures.installed import TREE
from fixtures.rootfs import one_line

LAUNCHER = """\
#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {lib!r})
from shoebox import paths
paths.SITE = {site!r}
from shoebox.fail import main
from shoebox.{module} import run
main(run{own})
"""


@pytest.fixture
def at(cmd, prefix, tmp_path):
    """Return a shell whose sh-run and sh-doctor have a site of the test's own, and that site's directory."""
    place = tmp_path / "site"
    (place / "modules.d").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    lib = str(next(prefix.glob("lib/shoebox/*/lib")))
    for name, own in (("run", ", 125"), ("doctor", "")):
        launcher = tmp_path / f"bin/sh-{name}"
        launcher.write_text(LAUNCHER.format(lib=lib, site=str(place), module=name, own=own))
        launcher.chmod(0o755)
    cmd.env["PATH"] = f"{tmp_path}/bin:{cmd.env['PATH']}"
    return cmd, place


def test_a_site_mounts_and_sets_what_it_says_for_everybody(at, box, tmp_path):
    cmd, place = at
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("data\n")
    (place / "site.conf").write_text(
        f"[mounts]\n{tmp_path}/data /site/data none bind,ro 0 0\n/none /none none bind,nofail\n"
        "$HOME /site/home none bind\n[environment]\nSITE=a b\nprepend PATH=/site/bin\nunset EDITOR\n"
    )
    (cmd.home / "mine").write_text("home\n")
    out = cmd.ok(
        "sh-run", box, "sh", "-c", "cat /site/data/file /site/home/mine; echo $SITE $PATH ${EDITOR-no}", EDITOR="vi"
    )
    assert out.splitlines()[:2] == ["data", "home"]
    assert out.splitlines()[2].startswith("a b /site/bin:/")
    assert out.endswith(" no")
    assert "Read-only" in cmd("sh-run", box, "touch", "/site/data/new").stderr
    assert cmd.ok("sh-run", "--env", "SITE=mine", box, "sh", "-c", "echo $SITE") == "mine"
    plan = json.loads(cmd.ok("sh-run", "--explain=json", box))
    assert {m["destination"]: m["why"] for m in plan["mounts"]}["/site/data"] == "site.conf, line 2"
    assert "/none" in [skip["what"] for skip in plan["skipped"]]
    assert plan["env"]["SITE"] == {"value": "a b", "why": "site.conf, line 6"}
    assert plan["unset"]["EDITOR"] == "site.conf, line 8"


def test_a_mount_of_the_site_that_cannot_be_is_an_error_that_names_its_line(at, box):
    cmd, place = at
    (place / "site.conf").write_text("[mounts]\n\n/no/such /x none bind\n")
    done = cmd("sh-run", box, "true")
    assert one_line(done, "'/no/such'", "see site.conf, line 3")
    assert done.returncode == 125


def test_a_wrong_line_stops_sh_run_and_names_the_file_and_line(at, box):
    cmd, place = at
    (place / "site.conf").write_text("[mounts]\n/a /b ext4 ro\n")
    assert one_line(cmd("sh-run", box, "true"), f"{place}/site.conf:2", "ext4")
    done = cmd("sh-doctor")
    assert done.returncode == 1
    assert f"lack  site.conf                cannot use '{place}/site.conf:2'" in done.stdout
    assert "way   none" in done.stdout


def test_modules_are_used_by_default_by_option_by_variable_or_not_at_all(at, box):
    cmd, place = at
    (place / "site.conf").write_text("[settings]\nmodules = a\n")
    for name in "abc":
        (place / f"modules.d/{name}.conf").write_text(
            f"[environment]\nappend M={name}\n[settings]\ndescription = {name}!\n"
        )
    (place / "modules.d/c.conf").write_text("[settings]\nconflicts = a\n")
    show = (box, "sh", "-c", "echo $M")
    assert cmd.ok("sh-run", *show) == "a"
    assert cmd.ok("sh-run", "--module", "b,a", *show) == "b:a"
    assert cmd.ok("sh-run", "--module", "b", "--module", "a", *show) == "b:a"
    assert cmd.ok("sh-run", *show, SHOEBOX_MODULE="b") == "b"
    assert cmd.ok("sh-run", "--module=a", *show, SHOEBOX_MODULE="b") == "a"
    assert cmd.ok("sh-run", "--module=none", *show) == ""
    assert one_line(cmd("sh-run", "--module=a,c", *show), "'c' conflicts with it")
    assert one_line(cmd("sh-run", "--module=d", *show), "no such module: 'd'")
    listed = cmd.ok("sh-doctor")
    assert "module b                 b!" in listed
    assert "conflicts with a" in listed


def test_volumes_that_the_site_denies_are_refused_by_every_name(at, box, tmp_path):
    cmd, place = at
    (tmp_path / "secret/sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("secret")
    (place / "site.conf").write_text(f"[settings]\ndeny-volume = {tmp_path}/secret /etc\n")
    for volume in (
        f"{tmp_path}/secret/sub:/x",
        f"{tmp_path}/link:/x",
        f"{tmp_path}:/x",
        f"{cmd.home}:/etc/x",
        f"{cmd.home}:/away",
    ):
        done = cmd("sh-run", "-v", volume, box, "true")
        assert one_line(done, "is not for volumes at this site"), volume
    cmd.ok("sh-run", "-v", f"{cmd.home}:/x", box, "true")


def test_a_site_may_prefer_the_kernel_and_gets_fuse_where_there_is_no_helper(at, box):
    cmd, place = at
    (place / "site.conf").write_text("[settings]\nway = kernel\n")
    plan = json.loads(cmd.ok("sh-run", "--explain=json", box))
    assert plan["way"]["name"] in ("fuse", "kernel")
    assert "kernel" in plan["way"]["why"] or "the site" in plan["way"]["why"]


def test_without_a_site_nothing_of_it_is_read_or_imported(cmd, box, tmp_path):
    log = tmp_path / "trace"
    strace = ("strace", "-e", "trace=%file", "-o", log)
    if cmd("strace", "-o", "/dev/null", "true").returncode:
        pytest.skip("strace cannot trace here")
    cmd.ok(*strace, "sh-run", box, "true")
    lines = log.read_text().splitlines()
    assert sum("site.conf" in line for line in lines) == 1
    assert not any("shoebox/site." in line or "modules.d" in line for line in lines)


def test_the_examples_are_understood_and_have_an_effect(at, box):
    cmd, place = at
    examples = TREE / "doc/examples"
    (place / "site.conf").write_bytes((examples / "site.conf").read_bytes())
    for module in (examples / "modules.d").iterdir():
        text = Path(module).read_text().replace("/opt/site/mpich  /opt", f"{place}  /opt")  # a directory that is there
        (place / "modules.d" / module.name).write_text(text)
    out = cmd.ok("sh-doctor")
    assert f"ok    site.conf                {place}/site.conf is understood, with the modules scratch" in out
    assert "ok    module mpich" in out
    text = cmd.ok("sh", "-c", 'sh-run --module mpich --explain "$0" | grep -e site.conf -e module', box)
    assert re.search(r"^env +SITE_NAME=example +# site.conf, line ", text, re.MULTILINE)
    assert "# module mpich, line " in text

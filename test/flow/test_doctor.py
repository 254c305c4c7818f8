"""sh-doctor: on this node as it is, and with things taken from it, in a mount or user namespace of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from fixtures.registry import registry  # noqa: F401

CAN = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0
PLACES = ("/etc/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d", "/run/modprobe.d")
namespaced = pytest.mark.skipif(not CAN, reason="no user namespaces here")


def report(cmd, *words, before="true", **env):
    """Run sh-doctor where a shell has done something as root of a new user and mount namespace."""
    script = f'set -e; {before}; exec sh-doctor --json "$@"'
    done = cmd("unshare", "-rm", "sh", "-c", script, "sh", *words, **env)
    assert not done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["healthy"] else 1)
    return found, {check["name"]: check for check in found["checks"]}


def test_it_tells_the_way_that_sh_run_takes(cmd, box):
    done = cmd("sh-doctor", "--json")
    found = json.loads(done.stdout)
    run = cmd("sh-run", "--explain=json", box)
    if found["healthy"]:
        assert json.loads(run.stdout)["way"]["name"] == found["way"]
    assert done.returncode == (0 if run.returncode == 0 else 1)
    assert not done.stderr


def test_every_lack_has_a_line_that_mends_it_and_each_stands_on_a_line(cmd):
    found = json.loads(cmd("sh-doctor", "--json").stdout)
    assert all(check["mend"] for check in found["checks"] if not check["ok"])
    lines = cmd("sh-doctor").stdout.splitlines()
    assert len(lines) == len(found["checks"]) + 1
    assert {line.split()[0] for line in lines} <= {"ok", "lack", "way"}


def test_wrong_words_are_told(cmd):
    done = cmd("sh-doctor", "x")
    assert (done.returncode, done.stderr) == (2, "sh-doctor: unexpected operand 'x': see -h\n")


@pytest.mark.root  # the site's files are root's
def test_a_setting_that_no_run_needs_is_read_here_and_stops_none(cmd, prefix):
    conf = prefix / "etc/site.conf"
    conf.parent.mkdir(exist_ok=True)
    conf.write_text("[settings]\ngrace = soon\n")
    try:
        found = json.loads(cmd("sh-doctor", "--json").stdout)
    finally:
        conf.unlink()
    (told,) = [check for check in found["checks"] if check["name"] == "settings"]
    assert not told["ok"]
    assert told["why"].startswith(f"cannot use '{conf}:2'")
    assert "sh-run stops" not in found["why"]


def test_the_table_of_systems_is_read_if_there_is_one(cmd):
    table = cmd.home / ".config/shoebox/systems.toml"
    table.parent.mkdir(parents=True)
    told = []
    for text in ("", '[system.a]\nstore = "h:/x"\nby = "rsync"', "[system.a]"):
        table.write_text(text)
        found = json.loads(cmd("sh-doctor", "--json").stdout)
        told += [(one["ok"], one["why"]) for one in found["checks"] if one["name"] == "systems.toml"]
    assert told[:2] == [(True, "it is understood: no systems"), (True, "it is understood: a")]
    assert told[2][0] is False
    assert "'store' of 'a' is no DIR or HOST:DIR" in told[2][1]


@namespaced
def test_no_user_namespaces(cmd):
    found, checks = report(cmd, before="echo 0 >/proc/sys/user/max_user_namespaces")
    assert not found["healthy"]
    assert found["way"] is None
    assert not checks["user namespaces"]["ok"]
    assert "see user.max_user_namespaces" in checks["user namespaces"]["why"]
    assert "user.max_user_namespaces=15000" in checks["user namespaces"]["mend"]
    assert not checks["FUSE mount"]["ok"]


@namespaced
def test_no_fuse_device(cmd):
    found, checks = report(cmd, before="mount -t tmpfs none /dev && : >/dev/null")
    assert checks["/dev/fuse"]["mend"].endswith("modprobe fuse")
    if shutil.which("unsquashfs"):
        assert found["way"] == "unpack"
        assert "not fuse: /dev/fuse: No such file or directory" in found["why"]


@namespaced
def test_no_squashfuse_and_an_old_one(cmd, tmp_path):
    real = shutil.which("squashfuse_ll", path=cmd.env["PATH"]) or pytest.skip("no squashfuse_ll here")
    (tmp_path / "old").write_text("#!/bin/sh\necho squashfuse 0.1.103\nexit 1\n")
    (tmp_path / "old").chmod(0o755)
    found, checks = report(cmd, before=f"mount --bind {tmp_path}/old {real}")
    assert not checks["squashfuse's threads"]["ok"]
    assert "0.1.103" in checks["FUSE mount"]["why"] or "status 1" in checks["FUSE mount"]["why"]
    assert found["way"] != "fuse"


@namespaced
def test_a_module_kept_away_and_a_directory_without_exec(cmd, tmp_path):
    (tmp_path / "cis.conf").write_text("# hardened\ninstall squashfs /bin/true\n")
    where = next(filter(os.path.isdir, PLACES), None) or pytest.skip("no modprobe.d here")
    before = (
        f"mount -t tmpfs none {where}; cp {tmp_path}/cis.conf {where}/; "
        f"grep -v squashfs /proc/filesystems >{where}/fs; mount --bind {where}/fs /proc/filesystems; "
        "mount -t tmpfs -o ro none /sys; mount -t tmpfs -o noexec none $HOME"
    )
    _, checks = report(cmd, before=before)
    assert checks["kernel's squashfs"]["why"].startswith(f"{os.path.realpath(where)}/cis.conf:2")
    assert not checks[f"directory {cmd.home}"]["ok"]


@namespaced
def test_an_image_that_squashfuse_cannot_read_is_named(cmd, box, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(box, store / f"sha256-{'0' * 64}.sqfs")
    _, checks = report(cmd, SHOEBOX_PATH=str(store))
    assert checks["FUSE mount"]["ok"] or str(store) in checks["FUSE mount"]["why"]


def test_the_registries_of_the_table_are_asked(cmd, registry):  # noqa: F811
    config = cmd.home / ".config/shoebox"
    config.mkdir(parents=True)
    (config / "registries.toml").write_text(
        f'search = ["there.test"]\n[registry."there.test"]\nurl = "{registry.url}"\nmirrors = ["http://127.0.0.1:2"]\n'
        '[registry."docker.io"]\nurl = "http://127.0.0.1:1"\n'
    )
    checks = {c["name"]: c for c in json.loads(cmd("sh-doctor", "--net", "--json").stdout)["checks"]}
    assert checks["registry there.test"]["ok"], checks
    assert not checks["registry docker.io"]["ok"]
    assert not checks["mirror 127.0.0.1:2"]["ok"]
    assert checks["registry docker.io"]["mend"]

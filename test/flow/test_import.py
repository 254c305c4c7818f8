"""A user's own images under a name of his: found, listed, removed; other tools' formats; what the site lets in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures import layers as odd
from fixtures.layers import file
from fixtures.rootfs import make_tree, sif, squash

from shoebox.imports import prefix


def own(cmd) -> str:
    """Return what names of ours begin with."""
    return prefix(cmd.ok("id", "-un"), os.getuid())


def known(path: str) -> dict[str, object]:
    """Read the JSON beside an image."""
    return json.loads(Path(path).with_suffix(".json").read_text())


def run(cmd, *words: object, **env: str) -> str:
    """Run something in an image, and return what it prints."""
    return cmd.ok("sh-run", *words, **env)


def test_a_file_with_a_name_is_staged_found_listed_and_removed_by_it(cmd, box, tmp_path):
    name = f"{own(cmd)}/box:1"
    store = {"SHOEBOX_PATH": str(tmp_path / "store")}
    done = cmd("sh-run", name, "true", **store)
    assert f"sh-flatten --name {name} FILE | sh-stage" in done.stderr
    made = cmd.ok("sh-flatten", "--name", name, box)
    assert (known(made)["reference"], known(made)["manifest"]) == (name, None)
    staged = cmd.ok("sh-stage", "-d", tmp_path / "store", made)
    assert (tmp_path / "store" / f"{own(cmd)}/box/1.sqfs").resolve() == Path(staged)
    assert run(cmd, name, "cat", "/etc/os-release", **store) == "NAME=box"
    assert json.loads(cmd.ok("sh-images", "--json", **store))[0]["name"] == name
    assert cmd.ok("sh-verify", name, **store) == f"{staged}: good: as its sidecar says"
    assert cmd.ok("sh-rm", name, **store) == staged
    assert cmd("sh-run", name, "true", **store).returncode == 125


@pytest.mark.parametrize("name", ["docker.io/library/debian:12", "debian:12", "localhost/nobody-else/x:1", ""])
def test_nobody_calls_his_file_what_it_is_not(cmd, box, name):
    done = cmd("sh-flatten", "--name", name, box)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.endswith(f": write {own(cmd)}/NAME[:TAG]\n")
    assert not os.path.exists(cmd.env["SHOEBOX_CACHE"])


def test_a_name_is_for_one_image_and_for_any_kind_of_source(cmd, box, tmp_path):
    assert cmd("sh-flatten", "--name", f"{own(cmd)}/x", box, box).returncode == 2
    layout = odd.layout(tmp_path / "layout", odd.layer(file("a")), name="docker.io/library/app:1")
    made = cmd.ok("sh-flatten", "--name", f"{own(cmd)}/app:1", layout)
    assert known(made)["reference"] == f"{own(cmd)}/app:1"
    assert not (Path(made).parent / "docker.io").exists()
    out = cmd.ok("sh-flatten", "--name", f"{own(cmd)}/x", "-o", "x.sqfs", box)
    staged = cmd.ok("sh-stage", "-d", tmp_path / "store", f"./{out}")
    assert (tmp_path / "store" / f"{own(cmd)}/x/latest.sqfs").resolve() == Path(staged)


@pytest.mark.root  # the site's files are root's
def test_the_sites_policy_has_a_word_for_users_own_files(cmd, prefix, box):
    policy = prefix / "etc/policy.json"
    policy.parent.mkdir(exist_ok=True)
    accept, reject = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
    try:
        policy.write_text(json.dumps({"default": accept, "transports": {"docker": {"localhost": reject}}}))
        done = cmd("sh-flatten", "--name", f"{own(cmd)}/x:1", box)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"'{own(cmd)}/x:1' is refused by '{policy}': nothing of that name is let in" in done.stderr
        assert cmd("sh-flatten", box).returncode == 0
        policy.write_text(json.dumps({"default": reject, "transports": {"docker": {own(cmd): accept}}}))
        assert cmd("sh-flatten", "--name", f"{own(cmd)}/x:1", box).returncode == 0
        assert "an image without a name is refused" in cmd("sh-flatten", box).stderr
    finally:
        policy.unlink()


def test_a_tar_gets_the_config_that_it_is_given(cmd, tmp_path):
    config = {"architecture": "arm64", "os": "linux", "config": {"Env": ["OWN=a b"]}, "history": [{}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tree = make_tree(tmp_path / "tree")
    words = ["sh-flatten", "--config", tmp_path / "config.json"]
    made = cmd.ok(*words, tree)
    assert (known(made)["config"], known(made)["platform"]) == ({k: config[k] for k in list(config)[:3]}, "linux/arm64")
    assert run(cmd, made, "sh", "-c", "echo $OWN") == "a b"
    again = cmd.ok(*words, squash(tree, tmp_path / "x.sqfs"))
    assert known(again)["config"] == known(made)["config"]
    layout = odd.layout(tmp_path / "layout", odd.layer(file("a")), name="docker.io/library/app:1")
    assert "it has its own, with its layers" in cmd(*words, layout).stderr
    assert cmd(*words, tree, tree).returncode == 2
    for wrong in ("[]", '{"config": {"Env": "x"}}', "x" * (5 << 20)):
        (tmp_path / "config.json").write_text(wrong)
        done = cmd(*words, tree)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)


# Other tools' images


def test_a_sif_that_was_written_anew_runs_as_before(cmd, tmp_path):
    tree = make_tree(tmp_path / "tree")
    (tree / ".singularity.d/env").mkdir(parents=True)
    (tree / ".singularity.d/env/90-environment.sh").write_text("export OWN='a b'\n")
    (tree / ".singularity.d/runscript").write_text('#!/bin/sh\necho "runscript $OWN $*"\n')
    (tree / ".singularity.d/runscript").chmod(0o755)
    packed = sif(squash(tree, tmp_path / "x.sqfs"), tmp_path / "app.sif")
    assert run(cmd, cmd.ok("sh-flatten", packed)) == run(cmd, packed) == "runscript a b "


def test_an_image_of_charliecloud_that_was_written_anew_has_its_variables(cmd, tmp_path):
    tree = make_tree(tmp_path / "tree")
    (tree / "ch").mkdir()
    (tree / "ch/environment").write_text("OWN=$HOSTS:own\n")
    (tree / "ch/metadata.json").write_text('{"cwd": "/usr/lib"}')
    made = cmd.ok("sh-flatten", squash(tree, tmp_path / "x.sqfs"))
    assert run(cmd, made, "sh", "-c", "echo $OWN", HOSTS="host's") == "host's:own"


def test_an_image_of_enroot_that_was_written_anew_has_its_command_and_its_own_variables(cmd, tmp_path):
    tree = make_tree(tmp_path / "tree")
    (tree / "etc/environment").write_text('OWN="a b"\nFROM=${HOSTS}\n')
    (tree / "etc/rc").write_text('#!/bin/sh\necho "rc $OWN $*"\n')
    (tree / "etc/rc").chmod(0o755)
    image = squash(tree, tmp_path / "x.sqsh")
    done = cmd("sh-flatten", image)
    assert done.stderr == f"sh-flatten: warning: '{image}' makes variables of the host's, which are left out: FROM\n"
    made = done.stdout.strip()
    assert known(made)["config"]["config"] == {"Env": ["OWN=a b"], "Entrypoint": ["/bin/sh", "/etc/rc"]}
    assert run(cmd, made) == run(cmd, image) == "rc a b "
    os.rename(image, tmp_path / "x.sqfs")  # a name that tells nothing
    assert known(cmd.ok("sh-flatten", tmp_path / "x.sqfs"))["config"] is None


@pytest.mark.parametrize("mine", [True, False])
def test_an_image_of_shifters_store_is_for_those_that_its_meta_names(cmd, box, tmp_path, mine):
    image = tmp_path / f"{64 * 'a'}.squashfs"
    shutil.copy(box, image)
    user = os.getuid() if mine else 4711
    meta = f"FORMAT:squashfs\nENV:OWN=a b\nWORKDIR:/usr\nENTRY:/bin/env\nUSERACL:{user}\n"
    image.with_suffix(".meta").write_text(meta)
    done = cmd("sh-flatten", image)
    if mine:
        assert known(done.stdout.strip())["config"]["config"]["Env"] == ["OWN=a b"]
        assert "OWN=a b" in run(cmd, "--entrypoint", done.stdout.strip())
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "it is not for you: see USERACL and GROUPACL in its .meta" in done.stderr


@pytest.mark.parametrize("scheme", ["", "sif:"])
def test_changes_to_a_sif_make_an_image(cmd, box, tmp_path, scheme):
    packed = sif(box, tmp_path / "x.sif")
    cmd.ok("sh-run", f"--writable={tmp_path / 'changes'}", packed, "touch", "/etc/mine")
    made = cmd.ok("sh-flatten", "--changes", tmp_path / "changes", f"{scheme}{packed}")
    assert {"etc/mine", "etc/os-release"} <= odd.names(odd.tree(made))


# Stores that the kernel mounts from


@pytest.fixture
def trusted(prefix, tmp_path):
    """Make a store that mount.conf names."""
    conf = prefix / "etc/mount.conf"
    conf.parent.mkdir(exist_ok=True)
    conf.write_text(f"# ours\nstore {tmp_path}/trusted\nowner 4711\n")
    yield tmp_path / "trusted/images"
    conf.unlink()


def refused(cmd, trusted: Path, path: object, why: str, *words: object) -> None:
    done = cmd("sh-stage", "-d", trusted, path, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert f"refused '{path}': the kernel mounts from '{trusted}', and takes no foreign bytes: " in done.stderr
    assert done.stderr.endswith(f"{why}: sh-flatten squashfs:{path} | sh-stage -d {trusted}\n")
    assert not list(trusted.glob("sha256*"))


@pytest.mark.root  # the site's files are root's
def test_a_store_of_the_kernels_takes_what_sh_flatten_made_and_nothing_byte_for_byte(cmd, box, tmp_path, trusted):
    why = "it has no sidecar of yours that says that sh-flatten made it"
    refused(cmd, trusted, box, why)
    refused(cmd, trusted, sif(box, tmp_path / "x.sif"), why)
    plain = cmd.ok("sh-stage", "-d", tmp_path / "plain", box)  # has a sidecar, but nobody wrote it
    refused(cmd, trusted, plain, why)
    os.symlink(tmp_path / "trusted", tmp_path / "other")  # by another name it is the same store
    refused(cmd, tmp_path / "other/images", box, why)
    made = cmd.ok("sh-flatten", f"squashfs:{box}")
    staged = cmd.ok("sh-stage", "-d", trusted, made)
    assert staged == str(trusted / os.path.basename(made))
    assert cmd.ok("sh-stage", "-d", tmp_path / "trusted", staged)  # from one to another


@pytest.mark.root  # the site's files are root's
def test_nor_what_others_can_write_to(cmd, box, trusted):
    made = cmd.ok("sh-flatten", box)
    os.chmod(made, 0o664)
    refused(cmd, trusted, made, "others can write to it")


@pytest.mark.root
def test_nor_what_is_another_users_whatever_lies_beside_it(cmd, box, trusted, tmp_path):
    made = cmd.ok("sh-flatten", box)
    os.chown(made, 60123, -1)
    refused(cmd, trusted, made, "it is another user's")
    os.chown(made, 0, -1)
    os.chown(Path(made).with_suffix(".json"), 60123, -1)
    refused(cmd, trusted, made, "it has no sidecar of yours that says that sh-flatten made it")
    os.chown(Path(made).with_suffix(".json"), 0, -1)
    staged = cmd.ok("sh-stage", "-d", trusted, made)
    for uid, status in ((4711, 0), (60123, 1)):  # mount.conf trusts one of them already
        os.chown(staged, uid, -1)
        shutil.rmtree(tmp_path / "trusted/more", ignore_errors=True)
        assert cmd("sh-stage", "-d", tmp_path / "trusted/more", staged).returncode == status


@pytest.mark.root  # the site's files are root's
def test_a_mount_conf_that_cannot_be_read_stops_staging(cmd, prefix, box, trusted):
    (prefix / "etc/mount.conf").unlink()
    (prefix / "etc/mount.conf").mkdir()
    done = cmd("sh-stage", "-d", trusted, box)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    (prefix / "etc/mount.conf").rmdir()
    (prefix / "etc/mount.conf").write_text("")
    assert cmd.ok("sh-stage", "-d", trusted, box)


def test_root_or_not_the_reader_has_no_privilege_to_use(cmd, box, tmp_path):
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=mount,fsopen,move_mount,open_tree,ioctl", "-o", trace, "sh-flatten", box],
        env=cmd.env,
        check=True,
        capture_output=True,
    )
    calls = [line for line in trace.read_text().splitlines() if "mount(" in line or "fsopen" in line or "LOOP_" in line]
    assert calls == []

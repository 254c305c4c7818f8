"""Images of other tools run as they are: Charliecloud's made by itself, the others laid out as their sources do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from fixtures.rootfs import make_tree, one_line, sif, squash

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}

# What `apptainer build x.sif docker://...` writes: internal/pkg/build/sources/{base_environment,conveyorPacker_oci}.go.
DOCKER_SH = """\
#!/bin/sh
export PATH="/usr/local/bin:/usr/bin:/bin"
export APP_HOME="${APP_HOME:-"/opt/app"}"
export JAVA_HOME="${JAVA_HOME:-"/usr/lib/jvm"}"
"""
BASE_SH = """\
#!/bin/sh
if [ -z "$LD_LIBRARY_PATH" ]; then
    LD_LIBRARY_PATH="/.singularity.d/libs"
else
    LD_LIBRARY_PATH="$LD_LIBRARY_PATH:/.singularity.d/libs"
fi
PS1="Singularity> "
export LD_LIBRARY_PATH PS1
"""
RUNSCRIPT = '#!/bin/sh\necho "runscript of $SINGULARITY_NAME with $#: $*"\n'


def singularity_tree(where):
    tree = make_tree(where)
    made = tree / ".singularity.d"
    (made / "env").mkdir(parents=True)
    (made / "env/10-docker2singularity.sh").write_text(DOCKER_SH)
    (made / "env/90-environment.sh").write_text("#!/bin/sh\nexport PATH=/usr/games:$PATH OWN='a b'\n")
    (made / "env/99-base.sh").write_text(BASE_SH)
    (made / "runscript").write_text(RUNSCRIPT)
    (made / "runscript").chmod(0o755)
    (tree / "singularity").symlink_to(".singularity.d/runscript")
    (tree / "environment").symlink_to(".singularity.d/env/90-environment.sh")
    return tree


@pytest.fixture(scope="module")
def singularity(tmp_path_factory):
    where = tmp_path_factory.mktemp("singularity")
    return sif(squash(singularity_tree(where / "tree"), where / "x.sqfs"), where / "app.sif")


def variables(done):
    return dict(pair.partition("=")[::2] for pair in done.split("\0") if pair)


def test_a_sif_without_a_command_runs_its_runscript(cmd, singularity):
    assert cmd.ok("sh-run", singularity) == "runscript of app.sif with 0: "
    assert cmd.ok("sh-run", "--entrypoint", singularity, "a b", "c") == "runscript of app.sif with 2: a b c"


def test_a_sif_that_was_staged_runs_as_before_though_its_sidecar_knows_nothing_of_that(cmd, singularity, tmp_path):
    staged = cmd.ok("sh-stage", "-d", tmp_path / "store", singularity)
    assert json.loads(Path(staged).with_suffix(".json").read_text())["config"] is None
    assert cmd.ok("sh-run", staged).startswith("runscript of ")


def test_a_command_in_a_sif_has_the_images_environment(cmd, singularity):
    host = {"JAVA_HOME": "/host/java", "LD_LIBRARY_PATH": "/host/lib", "MINE": "it's\n$me"}
    got = variables(cmd.ok("sh-run", singularity, "env", "-0", **host))
    assert got["PATH"] == "/usr/games:/usr/local/bin:/usr/bin:/bin"
    assert (got["APP_HOME"], got["JAVA_HOME"], got["OWN"]) == ("/opt/app", "/usr/lib/jvm", "a b")
    assert got["LD_LIBRARY_PATH"] == "/.singularity.d/libs"
    assert (got["MINE"], got["HOME"], got["SHOEBOX_RUNTIME"]) == ("it's\n$me", cmd.env["HOME"], "1")
    assert got["APPTAINER_CONTAINER"] == got["SINGULARITY_CONTAINER"] == str(singularity)


def test_what_the_user_sets_wins_over_the_images_scripts(cmd, singularity):
    words = ["--env", "JAVA_HOME", "--env", "OWN=x", "--env", "PATH=/bin", singularity]
    got = variables(cmd.ok("sh-run", *words, "env", "-0", JAVA_HOME="/host/java"))
    assert (got["JAVA_HOME"], got["OWN"], got["PATH"]) == ("/host/java", "x", "/bin")
    got = variables(cmd.ok("sh-run", "--clearenv", singularity, "env", "-0", MINE="x"))
    assert (got["APP_HOME"], got.get("MINE")) == ("/opt/app", None)


def test_the_commands_status_and_errors_are_as_ever(cmd, singularity):
    assert cmd("sh-run", singularity, "sh", "-c", "exit 7").returncode == 7
    for words, status in ((["no-such"], 127), (["/bin/plain"], 126)):
        done = cmd("sh-run", singularity, *words)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
        assert done.stderr.startswith("sh-run: ")
    assert cmd.ok("sh-run", singularity, "cat", stdin="through\n") == "through"


def test_explain_tells_which_tool_made_the_image_and_what_runs_before_the_command(cmd, singularity):
    text = cmd.ok("sh-run", "--explain", singularity, "true")
    assert [line.split()[:2] for line in text.splitlines() if line.startswith(("format", "prefix"))] == [
        ["format", "singularity"],
        ["prefix", "/bin/sh"],
    ]
    plan = json.loads(cmd.ok("sh-run", "--explain=json", singularity, "true", MINE="s3cret"))
    assert plan["format"] == {"name": "singularity", "why": "it has /.singularity.d"}
    assert plan["prefix"][:2] == ["/bin/sh", "-c"]
    assert "/.singularity.d/env/*.sh" in plan["prefix"][2]
    assert "s3cret" not in plan["prefix"][2]
    assert plan["args"]["words"] == ["true"]


def test_a_rank_that_joins_has_the_same_and_opens_no_more(cmd, singularity):
    first = cmd.start("sh-run", singularity, "sh", "-c", "echo up; read x", env=cmd.env | SLURM)
    assert first.stdout.readline() == b"up\n"
    try:
        trace = cmd.home / "trace"
        words = ["strace", "-f", "-e", "trace=openat,openat2", "-o", trace, "sh-run", singularity, "env", "-0"]
        got = variables(cmd.ok(*words, **SLURM, JAVA_HOME="/host", MINE="x"))
        assert (got["JAVA_HOME"], got["OWN"], got["MINE"]) == ("/usr/lib/jvm", "a b", "x")
        assert cmd.ok("sh-run", singularity, **SLURM) == "runscript of app.sif with 0: "
        opened = trace.read_text()
        assert "app.sif" not in opened
        for module in ("foreign", "holder", "sif"):
            assert f"/{module}." not in opened
    finally:
        first.communicate(b"\n")


def test_a_sandbox_is_the_same_and_so_is_an_image_from_before_2_3(cmd, tmp_path):
    sandbox = singularity_tree(tmp_path / "sandbox")
    assert cmd.ok("sh-run", sandbox) == "runscript of sandbox with 0: "
    old = make_tree(tmp_path / "old")
    (old / "environment").write_text("export OWN=old\n")
    (old / "singularity").write_text('#!/bin/sh\necho "old $OWN $1"\n')
    (old / "singularity").chmod(0o755)
    assert cmd.ok("sh-run", old) == "old old "
    assert cmd.ok("sh-run", old, "sh", "-c", "echo $OWN") == "old"


def test_a_sif_without_a_shell_runs_a_command_and_says_what_is_missing(cmd, tmp_path):
    tree = singularity_tree(tmp_path / "tree")
    (tree / "bin/sh").unlink()
    done = cmd("sh-run", tree, "echo", "up")
    assert done.stdout == "up\n"
    assert "warning: the image's /.singularity.d/env/*.sh are not sourced: it has no shell" in done.stderr


@pytest.mark.parametrize(
    ("data_type", "filesystem", "told"),
    [
        (0x4004, 2, "its system partition is ext3, not a squashfs"),
        (0x4004, 5, "its system partition is an encrypted squashfs"),
        (0x400A, 0, "it is an OCI-SIF: layers, and no file system of the whole: sh-pull it from its registry"),
    ],
)
def test_a_sif_that_has_no_squashfs_is_one_line(cmd, box, tmp_path, data_type, filesystem, told):
    assert one_line(cmd("sh-run", sif(box, tmp_path / "x.sif", data_type, filesystem), "true"), told)


@pytest.mark.skipif(not shutil.which("ch-convert"), reason="Charliecloud is not installed")
@pytest.mark.parametrize("kind", ["dir", "squash"])
def test_what_charliecloud_converts_has_its_environment(cmd, tmp_path, kind):
    tree = make_tree(tmp_path / "tree")
    (tree / "ch").mkdir()
    # As ch-image's metadata_save (Charliecloud 0.31, image.py) writes both.
    (tree / "ch/environment").write_text("A=it is\nB='quoted'\nPATH=/opt/bin:$PATH\n")
    (tree / "ch/metadata.json").write_text('{\n  "cwd": "/usr/lib",\n  "env": {"A": "it is"}\n}\n')
    for name in ("mnt", "opt"):
        (tree / name).mkdir(exist_ok=True)
    tar, image = tmp_path / "image.tar.gz", tmp_path / {"dir": "image", "squash": "image.squashfs"}[kind]
    subprocess.run(["tar", "-czf", tar, "-C", tree, "."], check=True)
    subprocess.run(["ch-convert", "-i", "tar", "-o", kind, tar, image], check=True, capture_output=True)
    got = variables(cmd.ok("sh-run", image, "env", "-0", PATH=f"{cmd.env['PATH']}:/host/bin"))
    default = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert (got["A"], got["B"], got["PATH"]) == ("it is", "quoted", f"/opt/bin:{default}")
    assert cmd.ok("sh-run", "--no-home", image, "pwd", cwd="/usr/share") == "/usr/lib"
    assert "charliecloud" in cmd.ok("sh-run", "--explain", image, "true")


# What `enroot import` writes into an image: NVIDIA/enroot's src/docker.sh, docker::configure.
ENROOT = {
    "etc/environment": "PATH=/usr/local/bin:/usr/bin:/bin\nAPP=a b\nWHERE=${PLACE}\n",
    "etc/fstab": "${ENROOT_ROOTFS}/data /data none x-create=dir,bind,rw,nosuid,nodev\n",
    "etc/rc.local": "# This file is sourced by /etc/rc when the container starts.\n",
    "etc/rc": """\
mkdir -p "/srv" 2> /dev/null
cd "/usr/lib" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec 'echo' "$@"
else
    exec 'echo' 'from' 'rc'
fi
""",
}


def test_an_enroot_image_has_its_environment_and_its_script(cmd, tmp_path):
    tree = make_tree(tmp_path / "tree")
    for name, text in ENROOT.items():
        (tree / name).write_text(text)
    image = squash(tree, tmp_path / "nvidia+app+1.sqsh")
    assert cmd.ok("sh-run", image) == "from rc"
    assert cmd.ok("sh-run", "nvidia+app+1.sqsh", cwd=tmp_path) == "from rc"
    assert cmd.ok("sh-run", "--entrypoint", image, "a", "b c") == "a b c"
    assert cmd.ok("sh-run", image, "sh", "-c", "echo $APP,$WHERE", PLACE="here") == "a b,here"
    assert "enroot" in cmd.ok("sh-run", "--explain", image)
    shutil.copy(image, tmp_path / "plain.sqfs")
    assert cmd.ok("sh-run", tmp_path / "plain.sqfs", "sh", "-c", "echo $APP,") == ","


# What Shifter's gateway writes: imagegw/shifter_imagegw/converters.py, writemeta.
META = "FORMAT: squashfs\nENTRY: ['/bin/echo', 'entry']\nWORKDIR: /usr/lib\n{acl}ENV: PATH=/usr/bin:/bin\nENV: A=b: c\n"
ID = "8b7cbd4b7ad7bf4c3b4a2c3a8f1dbf3f0a9a3b7e6d5c4b3a29181706f5e4d3c2"


@pytest.fixture
def shifter_store(box, tmp_path):
    """Return a store of Shifter's with one image, and a function that says whose it is."""
    store = tmp_path / "images"
    store.mkdir()
    shutil.copy(box, store / f"{ID}.squashfs")

    def belongs(acl=""):
        (store / f"{ID}.meta").write_text(META.format(acl=acl))
        return store

    belongs()
    return belongs


def test_a_shifter_sites_own_store_serves_its_images(cmd, shifter_store):
    store = shifter_store()
    image = store / f"{ID}.squashfs"
    assert cmd.ok("sh-run", image) == "entry"
    assert cmd.ok("sh-run", image, "sh", "-c", "echo $A $PATH") == "b: c /usr/bin:/bin"
    assert cmd.ok("sh-run", "--no-home", image, "pwd", cwd="/usr/share") == "/usr/lib"
    env = {"SHOEBOX_PATH": str(store)}
    for name in (f"id:{ID}", f"id:{ID[:12]}", f"sha256:{ID[:16]}"):
        assert cmd.ok("sh-run", name, "echo", "$x", **env) == "$x"
    assert "shifter" in cmd.ok("sh-run", "--explain", image)
    listed = cmd("sh-images", **env)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.splitlines()[1].split()[:2] == ["-", f"id:{ID[:12]}"]


def test_only_those_on_a_shifter_images_lists_may_run_it(cmd, shifter_store):
    uid, gid = os.getuid(), os.getgid()
    for mine in (f"USERACL: 1,{uid}\n", f"USERACL: 1\nGROUPACL: {gid},2\n"):
        image = shifter_store(mine) / f"{ID}.squashfs"
        assert cmd.ok("sh-run", image) == "entry"
    for others in ("USERACL: 4711\n", "GROUPACL: 4711\n", "USERACL: 4711\nGROUPACL: 4712\n"):
        image = shifter_store(others) / f"{ID}.squashfs"
        for words in ([image, "true"], ["--explain", image, "true"]):
            assert one_line(cmd("sh-run", *words), "it is not for you: see USERACL and GROUPACL in its .meta")


@pytest.mark.root
def test_a_supplementary_group_lets_in_and_an_unreadable_meta_does_not(cmd, shifter_store):
    store = shifter_store("USERACL: 1\nGROUPACL: 4242\n")
    with tempfile.TemporaryDirectory() as place:  # where others come in, as they do not into ours
        os.chmod(place, 0o755)
        image, meta = (shutil.copy(store / f"{ID}.{kind}", place) for kind in ("squashfs", "meta"))
        words, room = ["setpriv", "--reuid=65533", "--regid=65533"], {"cwd": "/", "HOME": "/nonexistent"}
        assert cmd.ok(*words, "--groups=4242", "sh-run", image, **room) == "entry"
        assert one_line(cmd(*words, "--clear-groups", "sh-run", image, **room), "it is not for you")
        os.chmod(meta, 0o600)
        assert one_line(cmd(*words, "--groups=4242", "sh-run", image, **room), f"'{meta}': Permission denied")

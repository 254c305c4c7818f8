"""sh-run: the environment and the words of the command (behaviours 45, 46, 62), and the plan as --explain shows it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess

import pytest
from fixtures.rootfs import make_tree, one_line, squash


def image_with(tmp_path, config, name="made"):
    """Make an image whose config travels in it."""
    where = make_tree(tmp_path / name)
    (where / ".shoebox").mkdir()
    text = config if isinstance(config, str) else json.dumps({"os": "linux", "config": config})
    (where / ".shoebox/config.json").write_text(text)
    return squash(where, tmp_path / f"{name}.sqfs")


def inside(cmd, *words, **env):
    """Return the environment of a command, as bytes: names to values."""
    done = subprocess.run(
        ["sh-run", *words, "env", "-0"],
        env={name: value for name, value in {**cmd.env, **env}.items() if value is not None},
        cwd=cmd.home,
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(pair.split(b"=", 1) for pair in done.stdout.split(b"\0") if pair)


ODD = {
    "QUOTES": 'it\'s "so" `so` $so \\so',
    "NEWLINES": "one\ntwo\n",
    "EMPTY": "",
    "BLANKS": "  a  ",
    "BYTES": "\udcff\udc80",
    "UTF8": "ä€𝄞",
    "EQUALS": "a=b=c",
    "odd.name-x": "1",
}


def test_the_hosts_variables_pass_exactly(cmd, box):
    seen = inside(cmd, box, **ODD)
    assert {name: seen[os.fsencode(name)] for name in ODD} == {name: os.fsencode(text) for name, text in ODD.items()}


def test_given_variables_are_exact_and_come_last(cmd, box):
    words = [word for name, text in ODD.items() for word in ("--env", f"{name}={text}")]
    seen = inside(cmd, *words, "--env", "HOME=/x", box, EMPTY="host")
    assert {name: seen[os.fsencode(name)] for name in ODD} == {name: os.fsencode(text) for name, text in ODD.items()}
    assert seen[b"HOME"] == b"/x"


FOREIGN = ["LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONPATH", "PERL5LIB", "R_LIBS", "R_LIBS_USER"]
FOREIGN += ["CONDA_PREFIX", "BASH_ENV", "ENV", "BASH_FUNC_ml%%", "LMOD_CMD", "MODULEPATH", "MODULESHOME"]


@pytest.mark.evil(62)
def test_what_breaks_containers_stays_outside_and_explain_names_each(cmd, box):
    # The one that this very shell would trip over is set to nothing.
    foreign = {name: "" if name == "LD_PRELOAD" else "/host" for name in FOREIGN}
    foreign |= {"PYTHONHOME": "/usr", "LD_LIBRARY_PATH": "/host"}
    seen = inside(cmd, box, **foreign, KEPT="1")
    assert [name for name in FOREIGN if name.encode() in seen] == []
    assert seen[b"KEPT"] == b"1"
    plan = json.loads(cmd.ok("sh-run", "--explain=json", box, **foreign))
    assert set(FOREIGN) <= set(plan["unset"])
    assert all(plan["unset"][name] for name in FOREIGN)
    text = cmd.ok("sh-run", "--explain", box, **foreign)
    assert [name for name in FOREIGN if f"unset     {name} " not in text] == []


def test_a_dropped_variable_passes_when_asked_for(cmd, box):
    assert inside(cmd, "--env", "PYTHONPATH", box, PYTHONPATH="/p")[b"PYTHONPATH"] == b"/p"
    assert b"NOT_THERE" not in inside(cmd, "--env", "NOT_THERE", box)


def test_tmpdir_is_kept_when_it_is_visible_inside(cmd, box, tmp_path):
    assert inside(cmd, box, TMPDIR=str(tmp_path))[b"TMPDIR"] == os.fsencode(tmp_path)
    for absent in ("/opt/none", "relative", ""):
        assert b"TMPDIR" not in inside(cmd, box, TMPDIR=absent)


def test_python_leaves_the_users_site_alone_unless_asked(cmd, box):
    assert inside(cmd, box)[b"PYTHONNOUSERSITE"] == b"1"
    assert inside(cmd, "--env", "PYTHONNOUSERSITE=", box)[b"PYTHONNOUSERSITE"] == b""


def test_no_variable_of_pythons_own_making_gets_in(cmd, box):
    seen = inside(cmd, box, LANG=None)
    assert b"LC_CTYPE" not in seen
    assert inside(cmd, box, LANG=None, LC_CTYPE="C.UTF-8")[b"LC_CTYPE"] == b"C.UTF-8"


def test_the_images_variables_come_over_the_hosts_but_home_stays(cmd, tmp_path):
    env = ["PATH=/bin:/opt/own", "WHO=image", "HOME=/root", "LD_LIBRARY_PATH=/opt/lib", "MULTI=a\nb", "U=ä", "WHO=last"]
    image = image_with(tmp_path, {"Env": env})
    seen = inside(cmd, image, WHO="host", PATH=cmd.env["PATH"])
    assert seen[b"WHO"] == b"last"
    assert seen[b"PATH"] == b"/bin:/opt/own"
    assert seen[b"LD_LIBRARY_PATH"] == b"/opt/lib"
    assert (seen[b"MULTI"], seen[b"U"]) == (b"a\nb", "ä".encode())
    assert seen[b"HOME"] == os.fsencode(cmd.home)


def test_clearenv_begins_with_nothing_of_the_hosts(cmd, tmp_path):
    image = image_with(tmp_path, {"Env": ["WHO=image"]})
    seen = inside(cmd, "--clearenv", "--env", "KEPT", image, KEPT="1", OTHER="1")
    assert seen.keys() == {b"WHO", b"KEPT", b"HOME", b"PATH", b"PWD", b"PYTHONNOUSERSITE", b"SHOEBOX_RUNTIME"}


def test_a_command_can_tell_that_it_runs_inside(cmd, box):
    assert inside(cmd, box)[b"SHOEBOX_RUNTIME"] == b"1"


def test_env_files_are_read_as_docker_reads_them_and_as_env_0_writes_them(cmd, box, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("# no\n\nA=1 # kept\nQ='kept'\nPASSED\nEMPTY=\n")
    seen = inside(cmd, "--env-file", plain, "--env", "Q=last", box, PASSED="host")
    assert (seen[b"A"], seen[b"Q"], seen[b"PASSED"], seen[b"EMPTY"]) == (b"1 # kept", b"last", b"host", b"")
    exact = tmp_path / "exact"
    exact.write_bytes(b"A=one\ntwo\0#B=\xff\0")
    seen = inside(cmd, "--env-file", exact, box)
    assert (seen[b"A"], seen[b"#B"]) == (b"one\ntwo", b"\xff")
    assert one_line(cmd("sh-run", "--env-file", tmp_path / "none", box, "true"), "none")
    plain.write_text("=1\n")
    assert one_line(cmd("sh-run", "--env-file", plain, box, "true"), "NAME=VALUE")


def test_path_is_searched_inside_in_the_commands_own_environment(cmd, box, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "own").write_text("#!/bin/sh\necho own\n")
    (tools / "own").chmod(0o755)
    assert one_line(cmd("sh-run", box, "own", PATH=f"{tools}:{cmd.env['PATH']}"), "'own'", status=127)
    assert cmd.ok("sh-run", "--env", f"PATH={tools}:/bin", box, "own") == "own"


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """Return an image with an Entrypoint and a Cmd."""
    config = {"Entrypoint": ["echo", "entry"], "Cmd": ["cmd", "a b"], "WorkingDir": "/usr/lib"}
    return image_with(tmp_path_factory.mktemp("worded"), config)


def test_without_a_command_the_images_entrypoint_and_cmd_run(cmd, worded):
    assert cmd.ok("sh-run", worded) == "entry cmd a b"


def test_a_command_runs_alone_unless_entrypoint_is_asked_for(cmd, worded, box):
    assert cmd.ok("sh-run", worded, "echo", "alone") == "alone"
    assert cmd.ok("sh-run", "--entrypoint", worded, "given") == "entry given"
    assert cmd.ok("sh-run", "--entrypoint", worded) == "entry cmd a b"
    assert cmd.ok("sh-run", "--entrypoint=printf", worded, "%s-", "x", "y") == "x-y-"
    assert one_line(cmd("sh-run", "--entrypoint", box, "true"), "the image has none")


def test_an_image_that_names_no_command_gives_a_shell(cmd, box):
    assert cmd("sh-run", box, stdin="echo $0\n").stdout == "/bin/sh\n"


def test_the_images_working_directory_counts_when_ours_is_not_inside(cmd, worded):
    assert cmd.ok("sh-run", worded, "pwd", cwd="/usr/share") == "/usr/lib"
    assert cmd.ok("sh-run", worded, "pwd") == str(cmd.home)


def test_a_sidecar_counts_before_the_config_in_the_image(cmd, tmp_path):
    image = image_with(tmp_path, {"Env": ["FROM=inside"]})
    data = image.read_bytes()
    about = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    sidecar = {"schema": 1, "squashfs": about, "writer": {}, "settings": {"readable": False}, "lost": []}
    image.with_suffix(".json").write_text(json.dumps({**sidecar, "config": {"config": {"Env": ["FROM=beside"]}}}))
    assert inside(cmd, image)[b"FROM"] == b"beside"
    image.with_suffix(".json").unlink()
    assert inside(cmd, image)[b"FROM"] == b"inside"


@pytest.mark.parametrize(
    "config",
    [
        {
            "Env": ["NOEQUALS", "=x", "NUL=a\0b", "\ud800=1", 7, None],
            "WorkingDir": "../../..",
            "Volumes": {"/../../x": {}},
        },
        {"Env": "A=1", "Entrypoint": {"a": 1}, "Cmd": 7, "WorkingDir": 7, "User": "root", "Labels": {"x": "$(id)"}},
        {"Entrypoint": [], "Cmd": None, "WorkingDir": "/proc/self/fd/7", "StopSignal": "SIGKILL"},
        {"WorkingDir": "/proc/self/cwd/etc"},
        {"WorkingDir": "a\0b"},
        [],
        None,
    ],
)
@pytest.mark.evil(62)
def test_a_hostile_config_changes_nothing_that_it_may_not_steer(cmd, tmp_path, box, config):
    image = image_with(tmp_path, config)
    hostile = json.loads(cmd.ok("sh-run", "--explain=json", image, "true", cwd="/usr/share"))
    plain = json.loads(cmd.ok("sh-run", "--explain=json", box, "true", cwd="/usr/share"))
    for part in ("mounts", "made", "env", "unset", "args", "ids", "descriptors"):
        assert hostile[part] == plain[part]
    assert cmd.ok("sh-run", "--quiet", image, "pwd", cwd="/usr/share") == "/"


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\xff", "[" * 5000, '{"config": ' + "9" * 5000 + "}"])
@pytest.mark.evil(62)
def test_a_config_that_is_not_json_is_told_in_a_warning_and_the_image_runs(cmd, tmp_path, text):
    image = image_with(tmp_path, text)
    done = cmd("sh-run", image, "true", timeout=20)
    assert done.returncode == 0
    assert done.stderr.count("\n") == (1 if text else 0)


def test_explain_prints_the_plan_that_is_carried_out_and_stops(cmd, box):
    done = cmd("sh-run", "--explain", "-v", "/etc:/some/where:ro", box, "touch", "/tmp/shoebox-never")
    assert (done.returncode, done.stderr) == (0, "")
    assert not os.path.exists("/tmp/shoebox-never")
    lines = done.stdout.splitlines()
    assert all(line.count(" # ") >= 1 and line.split(" # ")[-1] for line in lines)
    for begin in (
        "image ",
        "way ",
        "root ",
        "make      /some/where ",
        "mount     /etc -> /some/where ro ",
        "cwd ",
        "args ",
    ):
        assert [line for line in lines if line.startswith(begin)], begin
    plan = json.loads(cmd.ok("sh-run", "--explain=json", box, "echo", "a b"))
    assert plan["args"]["words"] == ["echo", "a b"]
    names = {os.fsencode(name) for name in json.loads(cmd.ok("sh-run", "--explain=json", box))["env"]}
    assert inside(cmd, box).keys() == names
    assert one_line(cmd("sh-run", "--explain=yaml", box), "'yaml'")

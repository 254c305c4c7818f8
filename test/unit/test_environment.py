"""environment: which variables a command inside gets."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as some

from shoebox import environment
from shoebox.fail import Fail


def build(host, image=None, settings=(), *, clear=False, visible=False):
    """Return the variables that get in, and those that stay out with the reason."""
    built = environment.build(
        host, image or {}, list(settings), clear=clear, fixed={"HOME": "/h"}, tmpdir_visible=visible
    )
    assert [v.name for v in built] == sorted(v.name for v in built)
    return {v.name: v.value for v in built if v.value is not None}, {v.name: v.why for v in built if v.value is None}


def test_the_last_of_host_image_own_and_settings_wins():
    got, _ = build({"A": "h", "B": "h", "C": "h", "HOME": "/r"}, {"B": "i", "C": "i"}, [("C", "s", "--env")])
    assert (got["A"], got["B"], got["C"], got["HOME"]) == ("h", "i", "s", "/h")


def test_the_path_is_the_images_or_the_default_and_never_the_hosts():
    assert build({"PATH": "/host"})[0]["PATH"] == environment.PATH
    assert build({"PATH": "/host"}, {"PATH": "/image"})[0]["PATH"] == "/image"
    assert build({"PATH": "/host"}, {}, [("PATH", None, "--env")])[0]["PATH"] == "/host"


@pytest.mark.parametrize(
    "name", ["LD_X", "PYTHONPATH", "CONDA_PREFIX", "BASH_FUNC_a%%", "MODULEPATH", "ENV", "R_LIBS_SITE"]
)
def test_what_breaks_containers_stays_out_with_a_reason_unless_the_image_or_the_user_sets_it(name):
    got, out = build({name: "1"})
    assert name not in got
    assert out[name]
    assert build({name: "1"}, {name: "2"})[0][name] == "2"
    assert build({name: "1"}, {}, [(name, None, "--env")])[0][name] == "1"


@pytest.mark.parametrize("name", ["LDFLAGS", "PYTHONSTARTUP", "ENVIRONMENT", "CONDA", "SLURM_JOB_ID", "R_HOME"])
def test_names_that_only_look_alike_get_in(name):
    assert build({name: "1"})[0][name] == "1"


def test_tmpdir_depends_on_whether_it_is_visible():
    assert "TMPDIR" in build({"TMPDIR": "/t"}, visible=True)[0]
    assert "TMPDIR" in build({"TMPDIR": "/t"})[1]


def test_clear_leaves_only_what_is_not_the_hosts():
    got, out = build({"A": "1", "LD_X": "1"}, {"B": "2"}, [("A", None, "--env")], clear=True)
    assert got.keys() == {"A", "B", "HOME", "PATH", "PYTHONNOUSERSITE"}
    assert out == {}


def test_a_setting_is_a_value_or_a_name_to_pass():
    assert environment.setting("A=1=2") == ("A", "1=2", "--env")
    assert environment.setting("A=") == ("A", "", "--env")
    assert environment.setting("A") == ("A", None, "--env")
    for wrong in ("=1", ""):
        with pytest.raises(Fail, match="NAME=VALUE"):
            environment.setting(wrong)


def test_a_file_with_a_nul_is_what_env_0_writes():
    text = "A=1\n2\0#B=3\0"
    assert [pair[:2] for pair in environment.read_file(text, "f")] == [("A", "1\n2"), ("#B", "3")]


VALUES = some.text(some.characters(blacklist_characters="\0\n", blacklist_categories=()), max_size=20)


@given(some.dictionaries(some.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.]{0,9}\Z"), VALUES))
def test_every_line_of_a_file_is_kept_to_the_character(pairs):
    text = "".join(f"{name}={value}\n" for name, value in pairs.items())
    assert {name: value for name, value, _ in environment.read_file(text, "f")} == pairs


SHELLS = (["bash"], ["dash"], ["busybox", "sh"])
NASTY = "a b\n'\"$(x) \\ *"


def sourced(tmp_path, shell, script, host=None, settings=(), rules=()):
    """Return the environment that a command gets behind a shell that sources a file."""
    (tmp_path / "a.sh").write_text(script)
    env = host or {}
    variables = environment.build(
        env, {"NAME": "image"}, settings, rules=rules, clear=False, fixed={"HOME": "/h"}, tmpdir_visible=False
    )
    ours = ["HOME", *(name for name, _, _ in settings)]
    text = environment.sourcing([f"{tmp_path}/*.sh", "/no/such/*"], variables, {*env} - {"NAME"}, rules, ours)
    words = [*shell, "-c", text, "sh-run", "/usr/bin/env", "-0"]
    inside = {v.name: v.value for v in variables if v.value is not None}
    done = subprocess.run(words, env=inside, executable=shutil.which(shell[0]), capture_output=True, check=True)
    assert done.stderr == b""
    return dict(pair.split("=", 1) for pair in done.stdout.decode().split("\0")[:-1])


@pytest.mark.parametrize("shell", SHELLS)
def test_an_images_scripts_set_what_the_host_has_too_and_see_nothing_of_it(tmp_path, shell):
    script = 'export A="${A:-image}" B="${NASTY:-}" C=$NAME PATH=/opt:$PATH EMPTY=\nD=unexported\n'
    got = sourced(
        tmp_path, shell, script, {"A": "host", "NASTY": NASTY, "D": "d", "EMPTY": "x", "UID": "7", "a.b": "1"}
    )
    assert (got["A"], got["B"], got["C"], got["EMPTY"]) == ("image", "", "image", "")
    assert got["NASTY"] == NASTY
    assert "D" not in got  # as with Apptainer: the script's own, and not for the command
    assert got["PATH"] == "/opt:" + environment.PATH
    assert not any(name.startswith("_sh_") for name in got)


@pytest.mark.parametrize("shell", SHELLS)
def test_what_the_user_and_the_site_say_comes_after_the_scripts(tmp_path, shell):
    script = "export A=image B=image HOME=/image L=/image U=image P=/image S=image\n"
    rules = [
        ("set", "S", NASTY.replace("\n", ""), "site"),
        ("prepend", "L", "/it's", "site"),
        ("append", "P", "/last", "site"),
        ("append", "NEW", "/new", "site"),
        ("unset", "U", "", "site"),
        ("prepend", "B", "/lost", "site"),
    ]
    settings = [("A", NASTY, "--env"), ("B", "", "--env"), ("a.b", "1", "--env")]
    got = sourced(tmp_path, shell, script, {"L": "/host"}, settings, rules)
    assert (got["A"], got["B"], got["HOME"]) == (NASTY, "", "/h")
    assert (got["S"], got["L"], got["P"], got["NEW"]) == (rules[0][2], "/it's:/image", "/image:/last", "/new")
    assert "U" not in got


@pytest.mark.parametrize("shell", SHELLS)
def test_what_a_script_has_kept_of_the_sites_is_not_put_there_twice(tmp_path, shell):
    rules = [("prepend", "PATH", "/site", "site"), ("append", "PATH", "/end", "site")]
    got = sourced(tmp_path, shell, "export PATH=/opt:$PATH\n", {}, [], rules)
    assert got["PATH"] == f"/opt:/site:{environment.PATH}:/end"


def test_no_value_stands_in_a_script_which_all_the_machine_may_read():
    variables = environment.build(
        {"A": "s3cret"}, {}, [("B", "s3cret", "--env")], clear=False, fixed={}, tmpdir_visible=False
    )
    assert "s3cret" not in environment.sourcing(["/x/*.sh"], variables, {"A"}, [], ["B"])

"""environment: which variables a command inside gets."""

from __future__ import annotations

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

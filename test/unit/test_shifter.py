"""shifter's words become sh-run's: a pure translation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import run, shifter, shifterwords, usage
from shoebox.fail import Fail

HEX = "0123456789abcdef" * 4


def said(argv: list[str], env: dict[str, str] | None = None, script: str = "") -> tuple[usage.Options, str, list[str]]:
    """Return what sh-run understands: options, image, command."""
    options = usage.parse(run.USAGE, shifter.translate(argv, env or {}, script), stop_at_operand=True)
    return options, *run._operands(options, {"SHOEBOX_IMAGE": "not this one"})


def environment(options: usage.Options) -> dict[str, str]:
    return dict(text.split("=", 1) for text in options.all("env"))


@pytest.mark.parametrize(
    "argv",
    [
        ["--image=a/b:1", "/app"],
        ["--image", "a/b:1", "/app"],
        ["-image", "a/b:1", "/app"],
        ["-image=a/b:1", "/app"],
        ["--im=docker:a/b:1", "--", "/app"],
        ["-i", "docker:a/b:1", "-v", "/app"],
        ["-ia/b:1", "/app"],
        ["-vi", "a/b:1", "/app"],
    ],
)
def test_an_image_is_given_in_every_spelling(argv):
    _, image, command = said(argv)
    assert (image, command) == ("a/b:1", ["/app"])


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("ubuntu:14.04", "docker", "ubuntu:14.04"),
        ("docker:host:5000/a/b:1", "docker", "host:5000/a/b:1"),
        ("docker://ubuntu", "docker", "docker://ubuntu"),
        ("custom:chos:v4", "custom", "chos:v4"),
        (f"id:{HEX}", "id", f"id:{HEX}"),
        (f"sha256:{HEX}", "id", f"id:{HEX}"),
        ("local:/", "local", "/"),
        ("/apps/a:b.sqfs", "local", "/apps/a:b.sqfs"),
        ("app.sif", "local", "app.sif"),
    ],
)
def test_types_of_images(text, kind, name):
    assert shifterwords.image(text)[0] == kind
    assert shifterwords.name(text) == name


JOB = {"SHIFTER_IMAGEREQUEST": "app:1", "SHIFTER_IMAGETYPE": "id", "SHIFTER_IMAGE": HEX}
OURS = {"SHIFTER_IMAGEREQUEST": "docker:app:1", "SHOEBOX_IMAGE": f"sha256:{HEX}"}


@pytest.mark.parametrize(
    ("given", "env", "image", "request_"),
    [
        ("", JOB, f"id:{HEX}", "app:1"),
        ("app:1", JOB, f"id:{HEX}", "app:1"),
        ("docker:app:1", JOB, f"id:{HEX}", "docker:app:1"),
        ("app:2", JOB, "app:2", "app:2"),
        ("", OURS, f"id:{HEX}", "docker:app:1"),
        ("app:1", OURS, f"id:{HEX}", "app:1"),
        ("other", OURS, "other", "other"),
        ("", JOB | {"SHIFTER_IMAGETYPE": "docker", "SHIFTER_IMAGE": "other"}, "other", "docker:other"),
        ("app:1", JOB | {"SHIFTER_IMAGETYPE": "docker", "SHIFTER_IMAGE": "other"}, "app:1", "app:1"),
        ("", {"SHIFTER": "docker:app:3"}, "app:3", "docker:app:3"),
        ("", {"SLURM_SPANK_SHIFTER_IMAGETYPE": "docker", "SLURM_SPANK_SHIFTER_IMAGE": "a"}, "a", "docker:a"),
        ("", {"SHIFTER_IMAGE": "a", "SHIFTER": "b"}, "b", "b"),
        ("", {"SHOEBOX_IMAGE": "/apps/a.sqfs"}, "/apps/a.sqfs", "/apps/a.sqfs"),
        (
            "",
            {"SHOEBOX_IMAGE": "/apps/a.sqfs", "SLURM_SPANK_SHIFTER_IMAGEREQUEST": "docker:app:1"},
            "/apps/a.sqfs",
            "docker:app:1",
        ),
        (
            "app:1",
            {"SHOEBOX_IMAGE": "/apps/a.sqfs", "SLURM_SPANK_SHIFTER_IMAGEREQUEST": "docker:app:1"},
            "/apps/a.sqfs",
            "app:1",
        ),
    ],
)
def test_the_image_of_the_job_stays_what_it_was_and_any_other_may_be_asked_for(given, env, image, request_):
    options, found, _ = said([f"--image={given}", "x"] if given else ["x"], env)
    assert found == image
    inside = environment(options)
    assert inside["SHIFTER_IMAGEREQUEST"] == request_
    assert inside["SHIFTER_RUNTIME"] == "1"
    again = said([f"--image={request_}", "x"], env | inside)
    assert again[1] == image
    assert said(["x"], env | inside)[1] == image


def test_what_the_plugin_submitted_is_an_id_to_who_asks_inside():
    path = f"/apps/sha256-{HEX}.sqfs"
    options, found, _ = said(["x"], {"SHOEBOX_IMAGE": path, "SLURM_SPANK_SHIFTER_IMAGEREQUEST": "app:1"})
    inside = environment(options)
    told = ["SHIFTER_IMAGETYPE", "SHIFTER_IMAGE", "SHIFTER_IMAGEREQUEST"]
    assert (found, [inside[name] for name in told]) == (path, ["id", HEX, "app:1"])


def test_without_an_image_there_is_one_line():
    with pytest.raises(Fail, match="no image given: name one with --image"):
        shifter.translate(["true"], {"SHIFTER_IMAGE": "a type is missing"})


def test_volumes_come_several_in_one_word_and_from_the_environment_if_none_is_given():
    env = {"SHIFTER_VOLUME": "/e:/e", "SHIFTER_IMAGETYPE": "docker", "SHIFTER_IMAGE": "a"}
    volumes = ["-V", "/a:/b:ro;/c:/d;", '--volume="/e:/f";/g:/h:RO']
    assert said([*volumes, "x"], env)[0].all("volume") == ["/a:/b:ro", "/c:/d", "/e:/f", "/g:/h:ro"]
    assert said(["x"], env)[0].all("volume") == ["/e:/e"]
    cache = "/x:/y:perNodeCache=size=200G,fstype=xfs"
    assert said([f"--volume={cache}:RO", "x"], env)[0].all("volume") == [f"{cache}:ro"]


def test_modules_come_from_the_environment_if_none_is_given():
    env = {"SHIFTER_MODULE": "mpich,gpu", "SHIFTER": "a"}
    assert said(["x"], env)[0].one("module") == "mpich,gpu"
    assert said(["--module=none", "x"], env)[0].all("module") == ["none"]
    assert not said(["x"], {"SHIFTER": "a"})[0].flag("module")


def test_the_users_variables_count_before_ours():
    words = ["-e", "A=1", "--env=B", "--env", "SHIFTER_RUNTIME=0", "--env-file=f", "-E", "-w", "/w", "-i", "a", "x"]
    options, _, _ = said(words)
    assert options.all("env")[-3:] == ["A=1", "B", "SHIFTER_RUNTIME=0"]
    assert options.all("env-file") == ["f"]
    assert options.flag("clearenv")
    assert options.one("workdir") == "/w"


def test_without_a_command_there_is_a_shell_and_with_entrypoint_the_images():
    assert said(["-i", "a"])[2] == ["/bin/sh"]
    assert said(["-i", "a"], {"SHELL": "/bin/zsh"})[2][0::3] == ["/bin/sh", "/bin/zsh"]
    options, _, command = said(["-i", "a", "--entrypoint"])
    assert (options.flag("entrypoint"), options.one("entrypoint"), command) == (True, "", [])
    options, _, command = said(["-i", "a", "--entry=/go", "x"])
    assert (options.one("entrypoint"), command) == ("/go", ["x"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/bin/bash", "./job"], ["/bin/bash", "./job"]),
        (["--image=a  -e B=c", "./job", "1 2"], ["--image=a", "-e", "B=c", "./job", "1 2"]),
        (["./job", "x y"], ["./job", "x y"]),
    ],
)
def test_an_interpreter_line_is_taken_apart(argv, words):
    assert shifterwords.unpacked(argv, "./job") == words


def test_a_command_line_that_no_script_made_is_left_as_it_is():
    argv = ["--env=A=b c", "./job"]
    assert shifterwords.unpacked(argv, "") == argv


def test_a_script_without_a_shell_gets_one_and_is_visible_where_it_lies():
    options, _, command = said(["-i", "a", "/spool/job", "x"], script="/spool/job")
    assert command == ["/bin/sh", "/spool/job", "x"]
    assert options.all("volume") == ["/spool/job:/spool/job:ro"]
    assert said(["-i", "a", "python3", "/spool/job"], script="/spool/job")[2] == ["python3", "/spool/job"]


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1), st.text("ab=;-", max_size=6))
def test_every_command_and_value_arrives_as_it_is(command, value):
    options, image, found = said(["-i", "a", "-e", f"V={value}", f"--workdir={value}", "--", *command])
    assert (image, found) == ("a", command)
    assert environment(options)["V"] == value
    assert options.one("workdir") == value

"""plan: what a container will be, from what was asked and what is there."""

from __future__ import annotations

import pytest

from shoebox import command as command_of
from shoebox import environment, helper, plan, usage
from shoebox.cdi import Devices, Link
from shoebox.facts import DIRECTORY, FILE, MISSING, Facts, Host, Look, Request, Wish
from shoebox.fail import Fail
from shoebox.identity import Person
from shoebox.run import USAGE
from shoebox.sidecar import Sidecar
from shoebox.source import NO_HELPER, Source, choose
from shoebox.writable import asked

IMAGE = {
    **dict.fromkeys(("/", "/proc", "/sys", "/dev", "/tmp", "/usr", "/usr/lib", "/mnt", "/data"), DIRECTORY),
    **dict.fromkeys(("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/resolv.conf"), FILE),
}
OUTSIDE = {
    **dict.fromkeys(("/proc", "/sys", "/dev", "/tmp", "/home/ann", "/home/ann/job", "/usr/share", "/data"), DIRECTORY),
    **dict.fromkeys(("/data/sub", "/scratch", "/scratch/ann", "/tmp/job", "/gpfs/ann"), DIRECTORY),
    **dict.fromkeys(("/etc/hosts", "/etc/resolv.conf", "/data/file"), FILE),
}


def decide(
    words="",
    *,
    image=None,
    outside=None,
    links=None,
    config=None,
    env=None,
    command=(),
    devices=None,
    way="fuse",
    **host,
):
    """Make a plan for ann, who stands in /home/ann/job. links: paths of the image to where they lead."""
    options = usage.parse(USAGE, [*words.split(), "IMAGE"], stop_at_operand=True)
    person = Person(1500, 1500, "ann", "users", host.pop("at_home", "/home/ann"))
    about = Host({"HOME": "/home/ann"} | (env or {}), person, **({"cwd": "/home/ann/job"} | host))
    known = command_of.config(Sidecar({"config": config or {}}))
    wanted = plan.wishes(Request(options, devices=devices), about)
    paths = [wish.target for wish in wanted] + plan.places(Request(options, devices=devices), about, known)
    there = IMAGE | (image or {})
    looks = {}
    for path in paths:
        real = (links or {}).get(path, path)
        kind = there.get(real, MISSING)
        looks[path] = Look(
            real, kind if kind in (DIRECTORY, FILE) else MISSING, "" if kind in (DIRECTORY, FILE) else kind
        )
    host_kinds = {path: (OUTSIDE | (outside or {})).get(path, MISSING) for path in plan.covered(paths, wanted, looks)}
    facts = Facts(looks, host_kinds, b"root:x:0:0:::\n", b"root:x:0:\n")
    request = Request(options, command, devices=devices)
    source = Source("/x.sqfs", "squashfs", 0, way, "test")
    writable = asked(options.one("writable")) if options.flag("writable") else None
    return plan.make(request, about, known, source, facts, wanted, writable)


def targets(made):
    return [mount.target for mount in made.mounts]


def test_the_defaults_come_first_and_in_order_then_our_files_then_the_volumes():
    made = decide("-v /data:/mnt", image={"/home/ann": DIRECTORY})
    assert targets(made) == [
        *("/proc", "/sys", "/dev", "/tmp", "/home/ann"),
        *("/etc/resolv.conf", "/etc/hosts", "/etc/passwd", "/etc/group", "/mnt"),
    ]
    assert made.made == []
    assert not made.overlay


def test_every_decision_has_a_reason():
    made = decide("-v /data:/mnt --writable", config={"Env": ["A=1"]}, env={"LD_PRELOAD": "x"})
    assert all(mount.why for mount in made.mounts)
    assert all(variable.why for variable in made.command.variables)
    assert all(why for _, why in made.skipped)
    assert made.command.cwd[1]
    assert made.command.args[1]


def test_what_the_image_lacks_is_made_and_that_takes_an_overlay():
    made = decide()
    assert made.made == [("/home/ann", DIRECTORY)]
    assert made.overlay


def test_what_is_visible_already_is_not_mounted_again():
    made = decide(cwd="/home/ann/job")
    assert ("/home/ann/job", "it is already visible there") in made.skipped
    assert "/tmp/job" not in targets(decide(cwd="/tmp/job"))
    assert "/scratch/ann" in targets(decide(cwd="/scratch/ann"))


def test_the_images_own_system_is_never_covered_by_where_the_user_stands():
    for path in ("/", "/usr", "/usr/share", "/opt", "/var", "/etc"):
        assert path not in targets(decide(cwd=path, outside={path: DIRECTORY}))


def test_a_volume_over_the_current_directory_is_the_users_word():
    assert targets(decide("-v /data:/scratch", cwd="/scratch/ann")).count("/scratch") == 1
    assert "/scratch/ann" not in targets(decide("-v /data:/scratch", cwd="/scratch/ann"))


def test_a_home_behind_a_link_is_mounted_by_both_names():
    assert {"/home/ann", "/gpfs/ann"} <= set(targets(decide(home="/gpfs/ann")))


def test_no_home_and_homes_that_are_none_are_left_out():
    assert "/home/ann" not in targets(decide("--no-home", cwd="/tmp/job"))
    for home in ("/", "/usr/sbin", "relative", ""):
        assert home not in targets(decide(at_home=home, cwd="/tmp/job"))
    assert ("/none", "there is no such file or directory on the host") in decide(at_home="/none").skipped


def test_a_target_goes_where_the_images_links_lead():
    made = decide("-v /data:/link", links={"/link": "/usr/lib"})
    assert (made.mounts[-1].target, made.mounts[-1].real) == ("/link", "/usr/lib")
    made = decide("-v /data:/link", links={"/link": "/usr/none"})
    assert ("/usr/none", DIRECTORY) in made.made


def test_a_mount_inside_an_earlier_one_has_to_find_its_target_on_the_host():
    made = decide("-v /data:/mnt -v /scratch:/mnt/sub")
    assert made.mounts[-1].real == "/mnt/sub"
    assert "/mnt/sub" not in [path for path, _ in made.made]
    with pytest.raises(Fail, match="no '/data/none' on the host"):
        decide("-v /data:/mnt -v /scratch:/mnt/none")


def test_a_mount_inside_one_that_a_link_leads_to_is_inside_too():
    with pytest.raises(Fail, match="no '/data/none' on the host"):
        decide("-v /data:/link -v /scratch:/usr/lib/none", links={"/link": "/usr/lib"})


@pytest.mark.parametrize(
    ("volume", "why"),
    [("/none:/mnt", "no such file"), ("/data:/etc/passwd", "a directory"), ("/data/file:/mnt", "a file")],
)
def test_a_volume_that_does_not_fit_fails(volume, why):
    with pytest.raises(Fail, match=why):
        decide(f"-v {volume}")


def test_a_default_that_does_not_fit_is_a_warning():
    made = decide(image={"/etc/hosts": DIRECTORY, "/tmp": "its links lead nowhere"})
    assert len(made.warnings) == 2
    assert {"/etc/hosts", "/tmp"}.isdisjoint(targets(made))


def test_the_current_directory_is_the_one_asked_for_ours_the_images_or_the_root():
    config = {"WorkingDir": "/usr/lib"}
    assert decide("--workdir /mnt", config=config).command.cwd[0] == "/mnt"
    assert decide(config=config).command.cwd[0] == "/home/ann/job"
    assert decide(config=config, cwd="/usr/share").command.cwd[0] == "/usr/lib"
    assert decide(config=config, cwd="").command.cwd[0] == "/usr/lib"
    made = decide(cwd="/usr/share")
    assert (made.command.cwd[0], len(made.warnings)) == ("/", 1)
    with pytest.raises(Fail, match="no such directory inside"):
        decide("--workdir /none")


@pytest.mark.parametrize(
    ("own", "becomes"),
    [("usr/lib", "/usr/lib"), ("../../usr/lib", "/usr/lib"), ("/proc/self/fd/7", "/"), ("//usr//lib/", "/usr/lib")],
)
def test_the_images_working_directory_stays_inside(own, becomes):
    made = decide(config={"WorkingDir": own}, cwd="", outside={"/proc/self/fd/7": DIRECTORY})
    assert made.command.cwd[0] == becomes


@pytest.mark.parametrize(
    ("words", "command", "args"),
    [
        ("", (), ["entry", "cmd"]),
        ("", ("a", "b"), ["a", "b"]),
        ("--entrypoint", (), ["entry", "cmd"]),
        ("--entrypoint", ("a",), ["entry", "a"]),
        ("--entrypoint=own", ("a",), ["own", "a"]),
    ],
)
def test_the_words_to_execute(words, command, args):
    assert decide(words, command=command, config={"Entrypoint": ["entry"], "Cmd": ["cmd"]}).command.args[0] == args


def test_without_any_command_there_is_a_shell():
    assert decide().command.args[0] == ["/bin/sh"]
    with pytest.raises(Fail, match="the image has none"):
        decide("--entrypoint")


def lacks(fuse="", kernel=NO_HELPER, unpack="", setuid=NO_HELPER):
    return {"fuse": fuse, "kernel": kernel, "unpack": unpack, "setuid": setuid}


def test_the_least_privilege_that_works_is_chosen():
    assert choose("", lacks())[0] == "fuse"
    why = "not fuse: no /dev/fuse; not kernel: sh-mount is not installed"
    assert choose("", lacks("no /dev/fuse")) == ("unpack", why)
    assert choose("", lacks(kernel=""))[0] == "fuse"
    assert choose("", lacks("no", "", setuid=""))[0] == "kernel"
    assert choose("", lacks(kernel=""), "kernel") == ("kernel", "the site prefers it")
    assert choose("", lacks(), "kernel") == (
        "fuse",
        f"user namespaces, /dev/fuse and squashfuse are there; not kernel: {NO_HELPER}",
    )
    assert choose("unpack", lacks()) == ("unpack", "--mount says so")
    assert choose("setuid", lacks(setuid="")) == ("setuid", "--mount says so")
    for way, why in (
        ("fuse", "no /dev/fuse"),
        ("kernel", "not installed"),
        ("setuid", "not installed"),
        ("magic", "no such way"),
    ):
        with pytest.raises(Fail, match=why):
            choose(way, lacks("no /dev/fuse"))
    with pytest.raises(Fail, match=r"no squashfuse.*no unsquashfs.*install squashfuse"):
        choose("", lacks("no squashfuse", unpack="no unsquashfs", setuid=""))


def test_a_plan_takes_the_settings_last():
    request = [environment.setting("HOME=/x"), environment.setting("A=1")]
    built = environment.build({"A": "host"}, {}, request, clear=False, fixed={"HOME": "/home"}, tmpdir_visible=True)
    assert {v.name: v.value for v in built}.items() >= {"HOME": "/x", "A": "1"}.items()


def test_the_words_before_a_command_reach_sh_mount_too():
    made = decide(command=["true"])
    made.command.prefix = ["/bin/sh", "-c", 'exec "$@"', "sh-run"]
    sent = helper.packed(made, {}).partition(b"\0\0")[0].split(b"\0")
    assert [word[1:] for word in sent if word.startswith(b"a")] == [b"/bin/sh", b"-c", b'exec "$@"', b"sh-run", b"true"]


def device(*links, **mounts):
    """Return devices that want links (path, text), and mounts of /drv/NAME at /usr/lib/NAME."""
    made = Devices()
    made.wishes = [Wish(f"/drv/{name}", f"/usr/lib/{name}", "cdi", asked=True) for name in mounts]
    made.links = [Link(path, to, "cdi") for path, to in links]
    made.rules = [("set", "VISIBLE", "0", "cdi")]
    return made


def test_a_devices_mounts_come_before_the_volumes_and_its_variables_count_over_the_images():
    made = decide("-v /data:/mnt", devices=device(a=1), outside={"/drv/a": FILE}, config={"Env": ["VISIBLE=all"]})
    assert targets(made)[-2:] == ["/usr/lib/a", "/mnt"]
    assert {v.name: v.value for v in made.command.variables}["VISIBLE"] == "0"
    with pytest.raises(Fail, match=r"cannot mount '/drv/a' at '/usr/lib/a': there is no .*: see cdi"):
        decide(devices=device(a=1))


def test_a_link_that_the_image_lacks_is_made_below_it():
    made = decide(devices=device(("/usr/lib/l", "a"), a=1), outside={"/drv/a": FILE}, image={"/home/ann": DIRECTORY})
    assert made.links == [("/usr/lib/l", "/usr/lib/a", "cdi")]
    assert made.overlay
    through = decide(devices=device(("/lib/l", "/usr/lib/a")), links={"/lib/l": "/usr/lib/l"})
    assert through.links == [("/usr/lib/l", "/usr/lib/a", "cdi")]


def test_what_the_image_has_in_place_of_a_link_is_covered_by_what_the_link_leads_to():
    there = {"/usr/lib/l": FILE, "/usr/lib/m": FILE}
    both = device(("/usr/lib/m", "l"), ("/usr/lib/l", "a"), a=1)
    made = decide(devices=both, outside={"/drv/a": FILE}, image=there)
    assert [(mount.source, mount.target) for mount in made.mounts[-2:]] == [
        ("/drv/a", "/usr/lib/m"),
        ("/drv/a", "/usr/lib/l"),
    ]
    assert made.links == []
    other = decide(devices=device(("/usr/lib/l", "elsewhere")), image=there)
    assert ("/usr/lib/l", "the image has a file there") in other.skipped


def test_a_link_that_leads_there_already_is_left_alone():
    made = decide(
        devices=device(("/usr/lib/l", "a"), a=1), outside={"/drv/a": FILE}, links={"/usr/lib/l": "/usr/lib/a"}
    )
    assert made.links == []
    assert ("/usr/lib/l", "it leads there already") in made.skipped


def test_a_link_that_cannot_be_made_is_a_warning():
    made = decide(devices=device(("/tmp/job/l", "a")))
    assert "would be in '/tmp/job/l' of the host" in made.warnings[0]
    made = decide(devices=device(("/usr/lib/l", "a")), way="setuid")
    assert [warning for warning in made.warnings if "link '/usr/lib/l': " in warning and "user namespace" in warning]

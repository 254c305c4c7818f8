"""cdi: names, specifications as nvidia-ctk writes them, which of several counts, and what becomes of their edits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import cdi
from shoebox.fail import Fail

LIBS = "/usr/lib/x86_64-linux-gnu"
HOOK = {"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook"}
# As `nvidia-ctk cdi generate` writes it, 1.17, shortened.
NVIDIA = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}, {"path": "/dev/dri/card1"}]}},
        {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1"}]}},
        {
            "name": "all",
            "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}, {"path": "/dev/nvidia1"}]},
        },
    ],
    "containerEdits": {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{"path": "/dev/nvidia-uvm"}, {"path": "/dev/nvidiactl"}],
        "hooks": [
            HOOK
            | {
                "args": [
                    *("nvidia-cdi-hook", "create-symlinks"),
                    *("--link", "../libnvidia-allocator.so.1::/usr/lib/x86_64-linux-gnu/gbm/nvidia-drm_gbm.so"),
                    *("--link", "libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so"),
                ]
            },
            HOOK | {"args": ["nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=570.133.20"]},
            HOOK | {"args": ["nvidia-cdi-hook", "update-ldcache", "--folder", LIBS, "--folder", f"{LIBS}/vdpau"]},
            HOOK | {"args": ["nvidia-cdi-hook", "disable-device-node-modification"]},
        ],
        "mounts": [
            {
                "containerPath": "/run/nvidia-persistenced/socket",
                "hostPath": "/run/nvidia-persistenced/socket",
                "options": ["ro", "nosuid", "nodev", "bind", "noexec"],
            },
            {
                "containerPath": f"{LIBS}/libcuda.so.570.133.20",
                "hostPath": f"{LIBS}/libcuda.so.570.133.20",
                "options": ["ro", "nosuid", "nodev", "bind"],
            },
        ],
    },
}
LETTERS = st.sampled_from("abzAZ")
WORDS = st.builds(
    lambda first, inner, last: first + inner + last,
    LETTERS,
    st.text("azAZ09_-.", max_size=5),
    st.sampled_from("azAZ09"),
)


def small(name="0", kind="x.org/c", path="/cdi/a.json", rank=0, **edits):
    return cdi.spec(
        {"cdiVersion": "0.6.0", "kind": kind, "devices": [{"name": name, "containerEdits": edits}]}, path, rank
    )


def edits(**given):
    return cdi.resolve(["x.org/c=0"], [small(**given)])


@given(WORDS, WORDS, st.one_of(WORDS, st.from_regex(r"\A[0-9]([a-z0-9_.:-]{0,5}[a-z0-9])?\Z")))
def test_a_qualified_name_is_taken_apart(vendor, group, name):
    assert cdi.parse(f"{vendor}/{group}={name}") == (f"{vendor}/{group}", name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "0", "nvidia.com/gpu", "nvidia.com=0", "/gpu=0", "nvidia.com/=0", "nvidia.com/gpu=", "1a/gpu=0", "a/1=0"),
        *("a-/b=0", "a/b-=0", "a/b=0-", "a/b=-0", "a/b/c=0", "a/b=0=1", "a b/c=0", "a/b=ä", "a/b=0\n", "a:b/c=0"),
        "/dev/nvidia0",
    ],
)
def test_other_names_are_wrong_usage(name):
    with pytest.raises(Fail, match="no such device") as caught:
        cdi.parse(name)
    assert caught.value.status == 2


@given(st.text())
def test_no_name_is_too_odd_to_be_answered(name):
    try:
        kind, device = cdi.parse(name)
    except Fail:
        return
    assert f"{kind}={device}" == name


def test_a_specification_of_nvidias_becomes_mounts_links_folders_and_variables():
    found = cdi.resolve(["nvidia.com/gpu=0"], [cdi.spec(NVIDIA, "/etc/cdi/nvidia.yaml", 0)])
    assert found.used == [("nvidia.com/gpu=0", "/etc/cdi/nvidia.yaml")]
    assert [node.path for node in found.nodes] == [
        *("/dev/nvidia-uvm", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dri/card1"),
    ]
    assert [node.own for node in found.nodes] == ["", "", "nvidia.com/gpu=0", "nvidia.com/gpu=0"]
    assert found.rules == [("set", "NVIDIA_VISIBLE_DEVICES", "void", "/etc/cdi/nvidia.yaml")]
    assert [(wish.target, wish.readonly, wish.asked) for wish in found.wishes] == [
        ("/run/nvidia-persistenced/socket", True, True),
        (f"{LIBS}/libcuda.so.570.133.20", True, True),
    ]
    assert [(link.path, link.to) for link in found.links] == [
        (f"{LIBS}/gbm/nvidia-drm_gbm.so", "../libnvidia-allocator.so.1"),
        (f"{LIBS}/libcuda.so", "libcuda.so.1"),
    ]
    assert found.folders == [LIBS, f"{LIBS}/vdpau"]
    assert found.compat == "570.133.20"
    assert {what for what, _ in found.skipped} == {
        "hook disable-device-node-modification",
        "noexec of /run/nvidia-persistenced/socket",
    }
    assert found.warnings == []


def test_edits_of_a_specification_are_made_once_and_those_of_each_device():
    spec = cdi.spec(NVIDIA, "/etc/cdi/nvidia.yaml", 0)
    found = cdi.resolve(["nvidia.com/gpu=1", "nvidia.com/gpu=0", "nvidia.com/gpu=1"], [spec])
    assert len(found.rules) == 1
    assert [node.path for node in found.nodes if node.own] == ["/dev/nvidia1", "/dev/nvidia0", "/dev/dri/card1"]


def test_all_is_a_device_if_there_is_one_of_that_name_and_else_every_one():
    assert [name for name, _ in cdi.resolve(["nvidia.com/gpu=all"], [cdi.spec(NVIDIA, "/n", 0)]).used] == [
        "nvidia.com/gpu=all"
    ]
    two = [small("b"), small("a", path="/cdi/b.json"), small("c", kind="x.org/other", path="/cdi/c.json")]
    assert cdi.resolve(["x.org/c=all"], two).used == [("x.org/c=a", "/cdi/b.json"), ("x.org/c=b", "/cdi/a.json")]


def test_a_later_directory_wins_and_two_of_one_directory_conflict():
    low, high = small(env=["A=low"]), small(env=["A=high"], path="/run/a.json", rank=1)
    for specs in ([low, high], [high, low]):
        assert cdi.resolve(["x.org/c=0"], specs).rules == [("set", "A", "high", "/run/a.json")]
    with pytest.raises(Fail, match=r"/run/a.json and /run/b.json both have it"):
        cdi.resolve(["x.org/c=0"], [low, high, small(path="/run/b.json", rank=1)])


def test_an_unknown_device_is_told_with_those_there_are_and_the_files_that_could_not_be_read():
    with pytest.raises(Fail, match=r"of x.org/c there are 0; cannot use .*/bad"):
        cdi.resolve(["x.org/c=1"], [small()], ["cannot use '/bad'"])
    with pytest.raises(Fail, match=r"no specification in /a or /b has devices of the kind nvidia.com/gpu: .*generate"):
        cdi.resolve(["nvidia.com/gpu=all"], [small()], where="/a or /b")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cdiVersion": "9.0.0"}, "cdiVersion '9.0.0': 0.3.0 to"),
        ({"cdiVersion": None}, "no cdiVersion"),
        ({"kind": "gpu"}, "not VENDOR/CLASS"),
        ({"kind": 7}, "kind is 7, which is no text"),
        ({"kind": None}, "kind is not there"),
        ({"devices": []}, "no devices"),
        ({"devices": {}}, "no list"),
        ({"devices": [{"name": 0}]}, "a device's name is 0"),
        ({"devices": [{"name": "a b"}]}, "'a b' is no device's name"),
        ({"devices": [{"name": "a"}, {"name": "a"}]}, "twice"),
    ],
)
def test_a_wrong_specification_is_refused_with_the_reason(change, why):
    with pytest.raises(Fail, match=why) as caught:
        cdi.spec(NVIDIA | change, "/etc/cdi/x.json", 0)
    assert "'/etc/cdi/x.json'" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"env": ["A"]}, "not NAME=VALUE"),
        ({"env": ["=A"]}, "not NAME=VALUE"),
        ({"env": "A=1"}, "no list"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "b"}]}, "not an absolute path"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/"}]}, "not an absolute path"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/b/../c"}]}, "not an absolute path"),
        ({"mounts": [{"containerPath": "/b"}]}, "hostPath is not there"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "tmpfs"}]}, "type 'tmpfs'"),
        ({"mounts": ["/a"]}, "no object"),
        ({"deviceNodes": [{"path": "dev/x"}]}, "not an absolute path"),
        ({"hooks": [{"args": []}]}, "path is not there"),
        ({"hooks": [HOOK | {"args": ["nvidia-cdi-hook", "create-symlinks", "--link", "/a"]}]}, "not TARGET::LINK"),
    ],
)
def test_wrong_edits_are_refused_when_they_are_wanted(change, why):
    with pytest.raises(Fail, match=why):
        edits(**change)


def test_a_node_of_another_name_outside_is_mounted():
    found = edits(deviceNodes=[{"path": "/dev/inside", "hostPath": "/dev/outside", "permissions": "r"}])
    assert [(node.path, node.wanted) for node in found.nodes] == [("/dev/outside", "r")]
    assert [(wish.source, wish.target) for wish in found.wishes] == [("/dev/outside", "/dev/inside")]


def test_what_cannot_be_is_named():
    found = edits(additionalGids=[44], intelRdt={"closID": "x"}, netDevices=[{"name": "eth1"}])
    assert [what for what, _ in found.skipped] == ["additionalGids", "intelRdt", "netDevices"]
    assert "not applied: 'later'" in edits(later=1).warnings[0]


def test_hooks_are_known_by_their_tool_and_word_and_others_are_left_out_with_a_warning():
    ctk = {"hookName": "createContainer", "path": "/usr/bin/nvidia-ctk"}
    found = edits(hooks=[ctk | {"args": ["nvidia-ctk", "hook", "update-ldcache", "--folder=/a,/b"]}])
    assert found.folders == ["/a", "/b"]
    for hook in (
        {"path": "/opt/hook", "args": ["hook", "update-ldcache", "--folder", "/a"]},
        HOOK | {"args": ["nvidia-cdi-hook", "some-day"]},
        HOOK,
    ):
        found = edits(hooks=[hook])
        assert found.folders == []
        assert [warning for warning in found.warnings if "is left out: no hook is run" in warning]

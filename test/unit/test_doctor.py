"""checkup and node: what is wrong with a node, how it is mended, and which way sh-run will take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoebox import checkup
from shoebox.checkup import checks, verdict
from shoebox.node import Helper, Mounted, Node, mount_of, network, numbers, read_blocks, read_mounts

READS = dict.fromkeys(checkup.COMPRESSORS, "")
GOOD = Node(
    "5.14.0-362.el9",
    sysctls={"user.max_user_namespaces": "96365"},
    tried={"namespaces": "", "overlay": ""},
    fuse=READS,
    unpack=READS,
    tools={"squashfuse_ll": ("/usr/bin/squashfuse_ll", "0.5.0"), "unsquashfs": ("/usr/bin/unsquashfs", "4.5")},
    modules=frozenset(("fuse", "overlay", "squashfs", "loop")),
    mounts=(Mounted("/", "ext4", ("rw",)), Mounted("/home", "nfs4", ("rw", "nosuid"))),
    helper_path="/usr/libexec/sh-mount",
    helper=Helper(0, 0o4755, executable=True),
    python={"Python": "/usr/bin/python3"},
    places=("/home/ann",),
    states={"/dev/shm": ""},
    needs={"zstd": "what sh-flatten makes"},
)
REFUSED = {"namespaces": "No space left on device"}


def lacks(**changes):
    """Return what a node lacks that is good but for these changes, name to check."""
    return {check.name: check for check in checks(replace(GOOD, **changes)) if not check.ok}


def way(**changes):
    return verdict(replace(GOOD, **changes)).way


def test_a_good_node_lacks_nothing_and_takes_fuse():
    assert lacks() == {}
    assert way() == "fuse"


@pytest.mark.parametrize(
    ("changes", "name", "mend"),
    [
        ({"release": "5.10.0-8"}, "kernel", "5.12"),
        ({"tried": REFUSED}, "user namespaces", "CONFIG_USER_NS"),
        ({"tried": REFUSED, "seccomp": True}, "user namespaces", "seccomp"),
        ({"tried": REFUSED, "selinux": "enforcing"}, "user namespaces", "ausearch"),
        ({"sysctls": {"user.max_user_namespaces": "0"}, "tried": REFUSED}, "user namespaces", "sysctl --system"),
        ({"sysctls": {"kernel.unprivileged_userns_clone": "0"}}, "kernel.unprivileged_userns_clone", "=1"),
        (
            {"sysctls": {"kernel.apparmor_restrict_unprivileged_userns": "1"}},
            "kernel.apparmor_restrict_unprivileged_userns",
            "AppArmor profile",
        ),
        ({"fuse_device": "No such file or directory"}, "/dev/fuse", "modprobe fuse"),
        ({"fuse_device": "Permission denied"}, "/dev/fuse", "chmod 666"),
        ({"tools": {"unsquashfs": GOOD.tools["unsquashfs"]}}, "squashfuse", "install"),
        ({"tools": {"squashfuse": ("/usr/bin/squashfuse", "")}}, "squashfuse", "squashfuse_ll"),
        ({"tools": {"squashfuse_ll": ("/x", "0.1.105")}}, "squashfuse's threads", "0.2.0"),
        ({"tools": {"squashfuse_ll": ("/x", "0.5.0")}}, "unsquashfs", "squashfs-tools"),
        ({"fuse": READS | {"zstd": "no zstd"}}, "FUSE mount", "sh-flatten -c gzip"),
        ({"fuse": dict.fromkeys(READS, "EPERM")}, "FUSE mount", "unpack"),
        ({"unpack": READS | {"zstd": "no zstd"}}, "unsquashfs", "built with it: zstd"),
        ({"tried": {"namespaces": "", "overlay": "No such device"}}, "overlay", "modprobe overlay"),
        ({"modules": frozenset(("fuse", "overlay", "loop"))}, "kernel's squashfs", "modprobe squashfs"),
        ({"blocks": {"squashfs": "/etc/modprobe.d/cis.conf:3"}}, "kernel's squashfs", "/etc/modprobe.d/cis.conf:3"),
        ({"config": "CONFIG_SQUASHFS=m\nCONFIG_SQUASHFS_XZ=y\n"}, "kernel's decompressors", "-c xz"),
        ({"helper": None}, "sh-mount", "make install-setuid"),
        ({"helper": Helper(0, 0o755, executable=True)}, "sh-mount", "chmod u+s"),
        ({"helper": Helper(1500, 0o4755, executable=True)}, "sh-mount", "chown root"),
        ({"helper": Helper(0, 0o4775, executable=True)}, "sh-mount", "chmod go-w"),
        ({"helper": Helper(0, 0o4750, executable=False)}, "sh-mount", "usermod"),
        ({"helper_path": "/home/sh-mount"}, "sh-mount", "elsewhere"),
        ({"caches": {"/scratch/.caches": "mkfs failed"}}, "node caches", "sh-mount(8)"),
        ({"asked": {"/store/x.sqfs": "others than its owner can write to it"}}, "sh-mount's policy", "sh-mount(8)"),
        ({"python": {"Python": "/home/ann/bin/python"}}, "Python", "on a disk of the node"),
        ({"mounts": (Mounted("/home", "xfs", ("noexec",)),)}, "directory /home/ann", "remount,exec /home"),
        ({"states": {"/dev/shm": "No such file or directory"}}, "node-local state", "chmod"),
    ],
)
def test_each_lack_has_the_line_that_mends_it(changes, name, mend):
    assert mend in lacks(**changes)[name].mend


def test_a_compressor_that_no_image_has_is_not_missed():
    assert lacks(fuse=READS | {"lzo": "no lzo"}) == {}
    assert "lzo" in lacks(fuse=READS | {"lzo": "no lzo"}, needs={"lzo": "/s/x.sqfs"})["FUSE mount"].why


def test_the_way_is_the_one_that_sh_run_takes():
    assert way(fuse_device="No such file or directory") == "kernel"
    assert way(fuse=dict.fromkeys(READS, "EPERM"), helper=None) == "unpack"
    assert way(tools={}, helper=None) == ""
    assert way(preferred="kernel") == "kernel"
    assert way(preferred="kernel", helper=None) == "fuse"
    assert way(tried=REFUSED) == "setuid"
    assert way(tried=REFUSED, helper=None) == ""


def test_mountinfo_is_read():
    text = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n30 22 0:40 /a /mnt/a\\040b rw,nosuid - nfs4 h:/ rw\n"
    found = read_mounts(text + "nonsense\n")
    assert found[1] == Mounted("/mnt/a b", "nfs4", ("rw", "nosuid"))
    assert mount_of("/mnt/a b/c", found).kind == "nfs4"
    assert mount_of("/mnt/a bc", found).kind == "ext4"


def test_the_later_of_two_mounts_in_one_place_counts():
    assert mount_of("/a/b", (Mounted("/a", "nfs", ()), Mounted("/a", "xfs", ()))).kind == "xfs"


def test_modprobe_lines_that_keep_modules_away():
    files = {
        "/m/a.conf": "install squashfs /bin/true\n# blacklist loop\nblacklist fuse\ninstall loop /sbin/modprobe x\n"
    }
    assert read_blocks(files, frozenset()) == {"squashfs": "/m/a.conf:1", "fuse": "/m/a.conf:3"}
    assert read_blocks(files, frozenset(("fuse",))) == {"squashfs": "/m/a.conf:1"}


def test_network_file_systems_and_versions():
    assert all(network(kind) for kind in ("nfs4", "lustre", "gpfs", "fuse.sshfs", "beegfs"))
    assert not any(network(kind) for kind in ("ext4", "xfs", "tmpfs", "overlay"))
    assert numbers("5.14.0-362.el9") == (5, 14, 0)
    assert numbers("rolling") == ()

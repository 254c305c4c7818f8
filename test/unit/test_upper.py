"""upper: an overlay's upper directory becomes a layer, and a layer one again."""

from __future__ import annotations

import io
import os
import stat
import tarfile

import pytest

from shoebox import upper, whiteout
from shoebox.fail import Fail

ODD = b"odd \xff\n\xc3\xa4"


@pytest.fixture
def tree(tmp_path):
    """Return an upper directory as the kernel leaves one."""
    top = tmp_path / "tree"
    (top / "d").mkdir(parents=True)
    (top / "d/file").write_bytes(b"content")
    (top / "d/file").chmod(0o4750)
    os.utime(top / "d/file", ns=(5, 1_600_000_000_123_456_789))
    os.link(top / "d/file", top / "d/second")
    os.mknod(top / "d/gone", stat.S_IFCHR)
    (top / "new").mkdir(mode=0o700)
    os.setxattr(top / "new", "user.overlay.opaque", b"y")
    os.setxattr(top / "d", "user.overlay.opaque", b"x")
    os.setxattr(top / "d/file", "user.overlay.origin", b"\0")
    os.setxattr(top / "d/file", "user.mine", b"\0\xff\n=")
    (top / "other").touch()
    os.setxattr(top / "other", "user.overlay.whiteout", b"y")
    (top / "link").symlink_to("/../" + "x" * 150)
    os.mkfifo(top / "fifo")
    (top / "barred").write_text("secret")
    (top / "barred").chmod(0)
    with open(os.fsencode(top) + b"/" + ODD, "wb"):
        os.utime(top, ns=(1, 1_500_000_000_000_000_001))
    return top


def packed(top, owner=None):
    """Return the layer of a directory, and what was left out."""
    out = io.BytesIO()
    fd = os.open(top, os.O_RDONLY)
    odd = upper.pack(fd, out, owner or (os.getuid(), os.getgid()))
    os.close(fd)
    return out.getvalue(), odd


def unpacked(data, where):
    """Make a directory of a layer."""
    where.mkdir()
    fd = os.open(where, os.O_RDONLY)
    try:
        upper.unpack(io.BytesIO(data), fd, "it")
    finally:
        os.close(fd)


def names(data):
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        return {member.name: member for member in archive}


def test_a_layer_has_whiteouts_by_their_names_and_nothing_of_overlays(tree):
    found = names(packed(tree)[0])
    odd = ODD.decode("utf-8", "surrogateescape")
    there = {".", "d", "d/file", "d/second", "d/.wh.gone", "new", "new/.wh..wh..opq", ".wh.other", "link", "fifo"}
    assert set(found) == there | {"barred", odd}
    assert next(iter(found)) == "."
    assert found["d/second"].islnk()
    assert found["d/second"].linkname == "d/file"
    assert {(member.uid, member.gid) for member in found.values()} == {(0, 0)}
    assert not [key for member in found.values() for key in member.pax_headers if "overlay" in key]
    assert (tree / "barred").stat().st_mode & 0o777 == 0


def test_there_and_back_it_is_the_same(tree, tmp_path):
    data, odd = packed(tree)
    assert odd == []
    back = tmp_path / "back"
    unpacked(data, back)
    assert packed(back)[0] == data
    assert os.getxattr(back / "d/file", "user.mine") == b"\0\xff\n="
    assert os.getxattr(back / "new", "user.overlay.opaque") == b"y"
    about = (back / "d/file").stat()
    assert (about.st_mode & 0o7777, about.st_nlink, about.st_mtime_ns) == (0o4750, 2, 1_600_000_000_123_456_789)
    assert stat.S_ISCHR((back / "d/gone").lstat().st_mode)
    assert back.stat().st_mtime_ns == 1_500_000_000_000_000_001


def test_a_name_that_means_a_whiteout_is_told_and_left_out(tmp_path):
    (tmp_path / "t/d").mkdir(parents=True)
    (tmp_path / "t/d/.wh.x").touch()
    data, odd = packed(tmp_path / "t")
    assert odd == ["d/.wh.x"]
    assert set(names(data)) == {".", "d"}


def test_a_socket_is_left_out_and_who_is_not_the_user_stays(tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(tmp_path)
        os.mkdir("t")
        bound.bind("t/s")
        found = names(packed("t", owner=(1, 1))[0])
    assert list(found) == ["."]
    assert (found["."].uid, found["."].gid) == (os.getuid(), os.getgid())


def layer(*members):
    """Return a tar of (name, type, linkname)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, link, 0o755
            archive.addfile(member)
    return out.getvalue()


FILE, DIRECTORY, SYMLINK, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
HOSTILE = [
    [("../x", FILE, "")],
    [("a/../../x", FILE, "")],
    [("a", SYMLINK, ".."), ("a/x", FILE, "")],
    [("a", SYMLINK, "/tmp"), ("a/.wh.x", FILE, "")],
    [("x", LINK, "../outside")],
    [("a", SYMLINK, ".."), ("x", LINK, "a/outside")],
    [("x", LINK, "nothing")],
]


@pytest.mark.parametrize("members", HOSTILE)
def test_a_hostile_layer_changes_nothing_outside(members, tmp_path):
    (tmp_path / "outside").write_text("mine")
    with pytest.raises((Fail, OSError)):
        unpacked(layer(*members), tmp_path / "t")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "t"]
    assert (tmp_path / "outside").stat().st_nlink == 1


@pytest.mark.parametrize("data", [b"x" * 2000, layer(("a", FILE, ""))[:700] + b"x" * 1024])
def test_what_is_no_tar_is_told(data, tmp_path):
    with pytest.raises(Fail, match="damaged"):
        unpacked(data, tmp_path / "t")


def test_the_layers_of_others_work_too(tmp_path):
    data = layer(
        *(("./etc/x", FILE, ""), (".wh.etc", FILE, ""), ("d", FILE, ""), ("d", DIRECTORY, ""), ("d/e/f", FILE, "")),
        *((".wh.g", FILE, ""), ("g/h", FILE, ""), ("g", DIRECTORY, ""), (".wh.k", FILE, ""), ("k", DIRECTORY, "")),
    )
    unpacked(data, tmp_path / "t")
    found = set(names(packed(tmp_path / "t")[0]))
    assert found >= {"etc/x", "etc/.wh..wh..opq", "d/e/f", "g/h", "k/.wh..wh..opq"}
    assert not {".wh.etc", ".wh.g", ".wh.k"} & found


def test_a_capability_set_inside_is_everybodys_in_the_image():
    third = bytes([1, 0, 0, 3]) + bytes(16) + (1000).to_bytes(4, "little")
    second = bytes([1, 0, 0, 2]) + bytes(16)
    assert whiteout.kept({"security.capability": third}) == {"security.capability": second}
    assert whiteout.kept({"security.capability": second}) == {"security.capability": second}
    assert whiteout.kept({"security.selinux": b"x", "trusted.x": b"x", "user.overlay.y": b"", "user.a": b"b"}) == {
        "user.a": b"b"
    }

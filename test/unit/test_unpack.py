"""Unpacking for a mksquashfs without tar input: a tree, and definitions of what only root could make."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from fixtures import layers as odd

from shoebox.fail import Fail
from shoebox.unpack import Tree


def filled(where: Path, plain: bytes, look=lambda tree: None) -> tuple[list[str], set[str]]:
    """Unpack a tar, let the test look at the tree, and return the definitions and what was lost."""
    with Tree(str(where / "out.sqfs")) as tree:
        tree.fill(lambda write: write(plain))
        look(tree)
        lines = os.fsdecode(Path(tree.definitions).read_bytes()).split("\n")[:-1]
    assert list(where.iterdir()) == []
    return lines, tree.lost


def ended(plain: bytes) -> bytes:
    """Cut an archive of tarfile's to the two blocks of zeros that our merge ends one with."""
    return plain[: len(plain.rstrip(b"\0")) + -len(plain.rstrip(b"\0")) % 512] + odd.END


def test_a_tree_has_content_links_and_times_and_the_definitions_the_rest(tmp_path):
    def look(tree: Tree) -> None:
        found = odd.unpacked(Path(tree.path))
        assert odd.names(found) == {"d", "d/f", "hard", "s", "p"}
        assert (found["d/f"].content, found["d/f"].mtime, found["d"].mtime) == (b"data", 5, 6)
        assert odd.groups(found) >= {frozenset({"d/f", "hard"})}
        assert (found["s"].link, found["p"].kind) == ("d/f", "fifo")
        assert stat.S_IMODE(os.stat(os.path.dirname(tree.path)).st_mode) == 0o700

    plain = odd.layer(
        odd.directory("./"),
        odd.directory("d", mode=0o2750, uid=1, gid=4_000_000_000, mtime=6),
        odd.file("d/f", "data", mode=0o4755, mtime=5),
        odd.symlink("s", "d/f", uid=3),
        odd.member("p", odd.tarfile.FIFOTYPE, mode=0o600),
        odd.member("n", odd.tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        odd.link("hard", "d/f"),
        odd.link("m", "n"),
    )
    lines, lost = filled(tmp_path, ended(plain), look)
    assert lines == [
        "d m 2750 1 4000000000",
        "d/f m 4755 0 0",
        "s m 777 3 0",
        "p m 600 0 0",
        "n c 666 0 0 1 3",
        "m c 666 0 0 1 3",
    ]
    owner = {"the owner of the root directory"} if os.geteuid() else set()
    assert lost == {"times of devices", "hard links of devices and symlinks"} | owner


def test_a_name_is_one_word_of_a_definition_whatever_is_in_it(tmp_path):
    lines, lost = filled(tmp_path, ended(odd.layer(odd.file('#a b\tc\rd\x0be\x0cf"g\\h'), odd.file("new\nline"))))
    assert lines == ['\\#a\\ b\\\tc\\\rd\\\x0be\\\x0cf\\"g\\\\h m 644 0 0']
    assert "owners and modes of files with a newline in their names" in lost


EVIL = {
    "a climbing name": odd.layer(odd.file("../evil")),
    "an absolute name": odd.layer(odd.file("/tmp/evil")),
    "dots alone": odd.layer(odd.directory("..")),
    "a name below a symlink": odd.layer(odd.symlink("s", ".."), odd.file("s/evil")),
    "a name below nothing": odd.layer(odd.file("d/evil")),
    "a link to a climbing name": odd.layer(odd.link("a", "../../../etc/passwd")),
    "a link below a symlink": odd.layer(odd.symlink("s", "/etc"), odd.link("a", "s/passwd")),
}


@pytest.mark.parametrize("case", EVIL)
def test_nothing_is_made_outside_the_tree(tmp_path, case):
    with pytest.raises(Fail, match="has no directory to lie in"):
        filled(tmp_path, ended(EVIL[case]))
    assert list(tmp_path.iterdir()) == []


CUT = {
    "a header that makes no sense": odd.layer(odd.file("a"))[:1024]
    + odd.raw_header(b"b", mode=b"zzz")
    + odd.raw_header(b"c")
    + odd.END,
    "half an archive": ended(odd.layer(odd.file("a", b"x" * 5000)))[:2048],
    "nothing": b"",
    "a sparse map of letters": odd.extension(
        b"x", odd.record("GNU.sparse.map", b"a,b") + odd.record("GNU.sparse.size", b"5")
    )
    + odd.raw_header(b"a")
    + odd.END,
}


@pytest.mark.parametrize("case", CUT)
def test_what_python_cannot_read_to_the_end_is_told_and_never_half_an_image(tmp_path, case):
    with pytest.raises(Fail, match=r"^cannot unpack the image: "):
        filled(tmp_path, CUT[case])
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_producer_is_the_one_that_is_told(tmp_path):
    def produce(write):
        write(ended(odd.layer(odd.file("a")))[:512])
        raise Fail("the layer is bad")

    with pytest.raises(Fail, match=r"^the layer is bad$"), Tree(str(tmp_path / "o")) as tree:
        tree.fill(produce)
    assert list(tmp_path.iterdir()) == []


def test_xattrs_are_kept_or_told_and_only_then_asked_for(tmp_path):
    def look(tree: Tree) -> None:
        assert os.getxattr(os.path.join(tree.path, "a"), "user.note") == b"\xff\0"
        assert tree.attributes

    try:
        os.setxattr(tmp_path, "user.note", b"")
    except OSError:
        pytest.skip("no xattrs here")
    marks = {"SCHILY.xattr.user.note": os.fsdecode(b"\xff\0"), "SCHILY.xattr.nonsense.x": "1"}
    _, lost = filled(tmp_path, ended(odd.pax(odd.file("a", pax_headers=marks))), look)
    assert "extended attributes nonsense.x" in lost
    filled(tmp_path, ended(odd.pax(odd.file("a"))), lambda tree: not tree.attributes or pytest.fail("asked for"))

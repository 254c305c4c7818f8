"""sh-flatten: what of its layers gets into an image (behaviours.md, "Merge"), with umoci as the oracle."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import pytest
import pyzstd
from fixtures import layers as odd
from fixtures.layers import directory, file, layer, link, opaque, pax, symlink, whiteout


@pytest.fixture
def flatten(cmd, tmp_path):
    return odd.Flatten(cmd, tmp_path)  # it compares with umoci whatever is not marked otherwise


# 1 to 5: whiteouts


def test_a_whiteout_in_the_root_hides_a_file(flatten):
    assert flatten.names(layer(file("a"), file("b")), layer(whiteout("a"))) == {"b"}


def test_a_whiteout_in_the_root_hides_a_tree(flatten):
    lower = layer(directory("dir"), directory("dir/sub"), file("dir/sub/f"), file("dirt"))
    assert flatten.names(lower, layer(whiteout("dir"))) == {"dirt"}


def test_an_opaque_root_leaves_that_layers_content_only(flatten):
    lower = layer(directory("./"), file("a"), directory("d"), file("d/b"))
    assert flatten.names(lower, layer(directory("./"), opaque(""), file("new"))) == {"new"}


def test_a_whiteout_hides_just_its_own_name(flatten):
    lower = layer(directory("w"), file("w/foo"), file("w/foobar"), file("foo"))
    assert flatten.names(lower, layer(directory("w"), whiteout("w/foo"))) == {"w", "w/foobar", "foo"}


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_directory_hides_what_is_below_wherever_its_marker_stands(flatten, first):
    lower = layer(directory("d"), file("d/old"), directory("d/deep"), file("d/deep/old"))
    marker, siblings = [opaque("d")], [file("d/new"), directory("d/deep")]
    upper = layer(directory("d"), *(marker + siblings if first else siblings + marker))
    assert odd.names(flatten(lower, upper)) == {"d", "d/new", "d/deep"}


def test_an_opaque_directory_in_place_of_a_symlink_leaves_what_that_led_to(flatten):
    lower = layer(directory("real"), file("real/f"), symlink("lib", "real"))
    upper = layer(directory("lib"), opaque("lib"), file("lib/new"))
    assert flatten.names(lower, upper) == {"real", "real/f", "lib", "lib/new"}


# 6 to 9


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_acts_on_lower_layers_only(flatten, first):
    new = [file("a", "new")]
    tree = flatten(layer(file("a", "old")), layer(*([whiteout("a"), *new] if first else [*new, whiteout("a")])))
    assert tree["a"].content == b"new"


def test_a_whiteout_of_what_is_not_there_does_nothing(flatten):
    tree = flatten(layer(directory("d"), file("d/a")), layer(whiteout("b"), whiteout("d/b"), whiteout("d/a/b")))
    assert odd.names(tree) == {"d", "d/a"}


def test_a_file_below_a_symlink_of_a_lower_layer_goes_where_that_leads(flatten):
    lower = layer(directory("usr"), directory("usr/bin", mode=0o711), symlink("bin", "usr/bin"))
    tree = flatten(lower, layer(file("bin/tool")))
    assert odd.names(tree) == {"bin", "usr", "usr/bin", "usr/bin/tool"}
    assert tree["usr/bin"].mode == 0o711


def test_a_directory_below_a_symlink_of_a_lower_layer_goes_where_that_leads(flatten):
    lower = layer(directory("usr"), directory("usr/lib"), symlink("lib", "usr/lib"))
    assert flatten.names(lower, layer(directory("lib/sub", mode=0o700), file("lib/sub/f"))) == {
        "lib",
        "usr",
        "usr/lib",
        "usr/lib/sub",
        "usr/lib/sub/f",
    }


@pytest.mark.evil(59)
def test_a_whiteout_below_a_symlink_of_a_lower_layer_hides_what_that_leads_to(flatten):
    lower = layer(directory("usr"), directory("usr/bin"), file("usr/bin/tool"), symlink("bin", "/usr/bin"))
    assert flatten.names(lower, layer(whiteout("bin/tool"))) == {"bin", "usr", "usr/bin"}


def test_what_aufs_kept_for_itself_is_absent(flatten):
    marks = [file(".wh..wh.aufs"), directory(".wh..wh.plnk"), file(".wh..wh.plnk/8.1"), directory(".wh..wh.orph")]
    # umoci leaves out .wh..wh.NAME, and has the directory back that lies above a name below it
    assert odd.names(flatten(layer(file("a"), *marks), umoci=False)) == {"a"}


@pytest.mark.evil(59)
def test_a_bare_whiteout_is_refused(flatten):
    assert "'.wh.' names nothing" in flatten.refuse(layer(file("a"), file(".wh.")))
    assert "names nothing" in flatten.refuse(layer(file("a"), file(".wh...")))


# 10 to 12: hard links


def test_a_hard_link_is_one_inode_with_two_names(flatten):
    tree = flatten(layer(file("a", mode=0o755), directory("d"), link("d/b", "a")))
    assert odd.groups(tree) >= {frozenset({"a", "d/b"})}
    said = subprocess.run(
        ["rdsquashfs", "--stat", "a", flatten.path], capture_output=True, text=True, check=True
    ).stdout
    assert "Hard link count: 2\n" in said


def test_a_hard_link_to_a_lower_layers_file_works(flatten):
    tree = flatten(layer(file("a")), layer(link("b", "a")))
    assert odd.groups(tree) >= {frozenset({"a", "b"})}


def test_a_hard_link_to_a_symlink_is_that_symlink(flatten):
    tree = flatten(layer(file("f"), symlink("s", "f"), link("t", "s")))
    assert (tree["t"].kind, tree["t"].link) == ("symlink", "f")
    assert odd.groups(tree) >= {frozenset({"s", "t"})}


def test_hard_links_to_hard_links_are_all_one_file(flatten):
    tree = flatten(layer(file("a"), link("b", "a")), layer(link("c", "b")), layer(link("0", "c")))
    assert odd.groups(tree) >= {frozenset({"a", "b", "c", "0"})}


def test_a_hard_link_keeps_its_content_when_its_target_is_hidden(flatten):
    tree = flatten(layer(file("a", "content")), layer(link("b", "a")), layer(whiteout("a")))
    assert odd.names(tree) == {"b"}
    assert tree["b"].content == b"content"


def test_a_hard_link_keeps_the_old_content_when_its_target_is_replaced(flatten):
    tree = flatten(layer(file("a", "old"), link("b", "a")), layer(file("a", "new")))
    assert (tree["a"].content, tree["b"].content) == (b"new", b"old")


@pytest.mark.evil(59)
def test_an_absolute_hard_link_is_to_what_is_inside(flatten):
    tree = flatten(layer(directory("etc"), file("etc/x"), link("y", "/etc/x")))
    assert odd.groups(tree) >= {frozenset({"etc/x", "y"})}


@pytest.mark.evil(59)
def test_an_escaping_hard_link_is_refused(flatten):
    for target in ("../../etc/passwd", "/../etc/passwd", "d/../../x"):
        assert "climbs out of its place" in flatten.refuse(layer(directory("d"), link("p", target)))


def test_a_hard_link_before_its_target_works(flatten):
    tree = flatten(layer(link("b", "a"), file("a")), umoci=False)  # umoci refuses it
    assert odd.groups(tree) >= {frozenset({"a", "b"})}


@pytest.mark.parametrize("target", ["nothing", "d", "d/nothing", "p", "d/f/x"])
@pytest.mark.evil(59)
def test_a_hard_link_to_nothing_a_directory_or_itself_is_refused(flatten, target):
    assert "the hard link 'p' is to" in flatten.refuse(layer(directory("d"), file("d/f"), link("p", target)))


@pytest.mark.evil(59)
def test_hard_links_in_a_circle_are_refused(flatten):
    assert "the hard link 'a' is to 'b'" in flatten.refuse(layer(link("a", "b"), link("b", "c"), link("c", "a")))


# 13: attributes

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep


KEPT = {"user.note": b"kept", "user.odd": b"\xff\0=\n", "security.capability": CAPABILITY}
DROPPED = dict.fromkeys(("security.ima", "security.evm", "trusted.overlay.opaque", "system.posix_acl_access"), b"x")
DROPPED |= {"security.selinux": b"host_t", "user.overlay.redirect": b"/etc"}


def attributes(marks: dict[str, bytes]) -> bytes:
    """Make a layer of everything that a file can be and have; marks: the extended attributes of one."""
    marks = {f"SCHILY.xattr.{key}": os.fsdecode(value) for key, value in marks.items()}
    return pax(
        directory("./", mode=0o750, uid=7, gid=8, mtime=1_500_000_000),
        file("suid", mode=0o6755, uid=1, gid=2, mtime=1_234_567_890),
        file("large-ids", uid=4_000_000_000, gid=4_000_000_001),
        directory("sticky", mode=0o1777, uid=3, mtime=1_111_111_111),
        odd.member("null", odd.tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        odd.member("disk", odd.tarfile.BLKTYPE, mode=0o660, gid=6, devmajor=259, devminor=70_000),
        odd.member("pipe", odd.tarfile.FIFOTYPE, mode=0o620),
        symlink("link", "suid", uid=5, gid=6),
        file("marked", pax_headers=marks),
        directory("marked-directory", pax_headers={"SCHILY.xattr.user.note": "d"}),
        file("old", mtime=0),
        file("split-second", mtime=1_300_000_000.75),
    )


def check_attributes(tree: odd.Tree) -> None:
    """Compare with what attributes() put in."""

    def of(name: str) -> tuple[object, ...]:
        node = tree[name]
        return node.kind, node.mode, node.uid, node.gid, node.mtime

    assert of("suid") == ("file", 0o6755, 1, 2, 1_234_567_890)
    assert of("large-ids") == ("file", 0o644, 4_000_000_000, 4_000_000_001, odd.EPOCH)
    assert of("sticky") == ("directory", 0o1777, 3, 0, 1_111_111_111)
    assert (*of("null")[:4], tree["null"].device) == ("character", 0o666, 0, 0, (1, 3))
    assert (*of("disk")[:4], tree["disk"].device) == ("block", 0o660, 0, 6, (259, 70_000))
    assert of("pipe") == ("fifo", 0o620, 0, 0, odd.EPOCH)
    assert (tree["link"].link, *of("link")[2:]) == ("suid", 5, 6, odd.EPOCH)
    assert of("old")[4] == 0
    assert of("split-second")[4] == 1_300_000_000
    assert of(".") == ("directory", 0o750, 7, 8, 1_500_000_000)
    assert (of("null")[4], of("disk")[4]) == (odd.EPOCH, odd.EPOCH)
    assert tree["marked-directory"].xattrs == {"user.note": b"d"}
    assert tree["marked"].xattrs == KEPT


def test_owners_modes_times_devices_and_xattrs_are_kept_and_the_hosts_own_labels_dropped(flatten):
    check_attributes(flatten(attributes(KEPT | DROPPED), umoci=False))  # umoci stops at trusted.*


@pytest.mark.root
def test_root_gets_the_same_from_umoci_attribute_by_attribute(flatten, tmp_path):
    tree = flatten(attributes(KEPT), layer(file("suid", mode=0o4711, uid=8), file("new/f", uid=9, gid=10)), umoci=False)
    image = flatten.name.removeprefix("oci:")
    subprocess.run(["umoci", "raw", "unpack", "--image", image, tmp_path / "root"], check=True, capture_output=True)
    oracle = odd.unpacked(tmp_path / "root")
    assert set(oracle) == set(tree)
    for name in odd.names(tree) - {"new"}:  # of a directory that is only implied, umoci takes the time of day
        ours, theirs = vars(tree[name]), vars(oracle[name])
        for key in ("kind", "mode", "uid", "gid", "mtime", "link", "content", "device"):
            assert ours[key] == theirs[key], (name, key)
        assert ours["xattrs"] == {key: value for key, value in theirs["xattrs"].items() if key in KEPT}, name


def test_attributes_survive_the_way_by_the_index_too(flatten):
    again = layer(file("twice"), file("twice"))
    check_attributes(flatten(attributes(KEPT | DROPPED), again, umoci=False))
    check_attributes(flatten(again, attributes(KEPT | DROPPED), umoci=False))


# 14 to 16: names that climb, and symlinks


@pytest.mark.parametrize("name", ["../../x", "..", "etc/../../x", "a/..", "./../x", "/../x", "..//x"])
@pytest.mark.parametrize("kind", [file, directory])
@pytest.mark.evil(59)
def test_a_name_that_climbs_is_refused(flatten, name, kind):
    assert "climbs out of its place: do not trust this image" in flatten.refuse(layer(file("good"), kind(name)))


@pytest.mark.evil(59)
def test_a_whiteout_that_climbs_is_refused(flatten):
    assert "climbs" in flatten.refuse(layer(file("../.wh.x")))


@pytest.mark.evil(59)
def test_an_absolute_name_and_odd_ways_to_write_one_are_inside(flatten):
    tree = flatten(layer(file("/etc/x"), file("./b/./c"), file(".//d//e"), directory("/f/")))
    assert odd.names(tree) == {"etc", "etc/x", "b", "b/c", "d", "d/e", "f"}


@pytest.mark.parametrize("target", ["/outside", "../../../../outside", "..", "/"])
@pytest.mark.parametrize("later", [True, False])
@pytest.mark.evil(59)
def test_a_file_through_a_symlink_that_climbs_stays_inside(flatten, target, later):
    start, rest = [directory("d"), symlink("d/s", target)], [file("d/s/x")]
    tree = flatten(*([layer(*start), layer(*rest)] if later else [layer(*start, *rest)]))
    assert odd.names(tree) == {"d", "d/s"} | ({"x"} if target in ("..", "/") else {"outside", "outside/x"})


def test_a_later_directory_takes_a_symlinks_place(flatten):
    lower = layer(directory("usr"), directory("usr/lib"), file("usr/lib/a"), symlink("lib", "usr/lib"))
    tree = flatten(lower, layer(directory("lib"), file("lib/b")))
    assert tree["lib"].kind == "directory"
    assert odd.names(tree) == {"usr", "usr/lib", "usr/lib/a", "lib", "lib/b"}


# 17, 18

THINGS = {
    "file": lambda: [file("x")],
    "directory": lambda: [directory("x"), file("x/inside")],
    "symlink": lambda: [symlink("x", "elsewhere")],
}


@pytest.mark.parametrize("same_layer", [True, False])
@pytest.mark.parametrize("old", THINGS)
@pytest.mark.parametrize("new", THINGS)
def test_whatever_replaces_whatever_the_last_wins(flatten, old, new, same_layer):
    below, above = THINGS[old](), THINGS[new]()
    tree = flatten(layer(*below, *above)) if same_layer else flatten(layer(*below), layer(*above))
    assert tree["x"].kind == new
    assert odd.names(tree) == ({"x", "x/inside"} if new == "directory" else {"x"})


def test_symlinks_to_themselves_and_to_nothing_are_kept(flatten):
    tree = flatten(
        layer(symlink("self", "self"), symlink("a", "b"), symlink("b", "a"), symlink("dangling", "no/where"))
    )
    assert {name: tree[name].link for name in odd.names(tree)} == {
        "self": "self",
        "a": "b",
        "b": "a",
        "dangling": "no/where",
    }


@pytest.mark.evil(59)
def test_a_file_below_symlinks_in_a_circle_is_refused(flatten):
    assert "too many symlinks on the way to 'a'" in flatten.refuse(
        layer(symlink("a", "b"), symlink("b", "a"), file("a/x"))
    )


# 19 to 21: names


def test_a_single_top_directory_stays_where_it_is(flatten):
    assert flatten.names(layer(directory("app"), file("app/run"))) == {"app", "app/run"}


NAMES = {
    "255 bytes": "n" * 255,
    "a newline": "a\nb",
    "blanks": " a  b ",
    "UTF-8": "žluťoučký-鼠",
    "no UTF-8": os.fsdecode(b"\xff\xfe\x80x"),
    "a backslash": "a\\b\\",
    "a leading dash": "-rf",
    "dots": "a..b",
    "more dots": "...",
    "quotes": "\"'`$(x)",
    "control bytes": "\x01\x1b[31m\x7f\r\t",
    "a hash": "#x",
    "a long path": "/".join(["d" * 100] * 5),
    "a very long path": "/".join(["d" * 200] * 19),
}


@pytest.mark.parametrize("form", [odd.tarfile.GNU_FORMAT, odd.tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_odd_names_are_kept_to_the_byte(flatten, form):
    members = [file(name, b"content of " + os.fsencode(name)) for name in NAMES.values()]
    tree = flatten(layer(*members, symlink("link", NAMES["no UTF-8"]), link("hard", NAMES["a newline"]), form=form))
    files = {name: node.content for name, node in tree.items() if node.kind == "file"}
    want = {name: b"content of " + os.fsencode(name) for name in NAMES.values()}
    assert files == want | {"hard": want[NAMES["a newline"]]}
    assert tree["link"].link == NAMES["no UTF-8"]


@pytest.mark.evil(59)
def test_names_that_squashfs_cannot_hold_are_refused(flatten):
    assert "has a component over 255 bytes" in flatten.refuse(layer(file("n" * 256)))
    assert "has a component over 255 bytes" in flatten.refuse(pax(file("d/" + "ž" * 128 + "/x")))
    assert "is longer than 4095 bytes" in flatten.refuse(layer(file("/".join(["d" * 200] * 21))))
    assert "has a target of 4096 bytes" in flatten.refuse(layer(symlink("s", "t" * 4096)))
    assert "has a target of 0 bytes" in flatten.refuse(layer(symlink("s", "")))


def test_a_symlink_to_the_longest_target_there_is_is_kept(flatten):
    assert flatten(layer(symlink("s", "t" * 4095)))["s"].link == "t" * 4095


def test_of_entries_with_one_name_the_last_wins_and_missing_parents_are_made(flatten):
    tree = flatten(layer(file("a", "1"), file("a", "2", mode=0o600), file("./a", "3", mode=0o640), file("d/e/f")))
    assert (tree["a"].content, tree["a"].mode) == (b"3", 0o640)
    assert odd.names(tree) == {"a", "d", "d/e", "d/e/f"}
    for name in ("d", "d/e"):
        assert (tree[name].mode, tree[name].uid, tree[name].mtime) == (0o755, 0, 0)


def test_a_directory_that_only_hidden_names_imply_is_there(flatten):
    assert flatten.names(layer(file("d/a")), layer(whiteout("d/a"))) == {"d"}
    assert flatten.names(layer(file("d/a")), layer(opaque("d"))) == {"d"}


# 22: layers


def test_an_empty_layer_changes_nothing(flatten):
    nothing = odd.Packed(gzip.compress(b""), b"")
    assert odd.names(flatten(layer(), layer(file("a")), nothing, layer())) == {"a"}


def test_an_image_of_no_layers_is_an_empty_root(flatten):
    assert odd.names(flatten()) == set()


def test_the_same_layer_again_after_a_deletion_brings_its_file_back(flatten):
    again = layer(file("a"), directory("d"), file("d/b"))
    assert flatten.names(again, layer(whiteout("a"), whiteout("d")), again) == {"a", "d", "d/b"}


def test_120_layers_are_merged(flatten):
    def nth(n: int) -> bytes:
        hidden = [whiteout(f"d/{n - 1}")] if n % 2 else []
        return layer(directory("d"), file(f"d/{n}"), file("same", str(n)), link(f"l{n}", f"d/{n}"), *hidden)

    tree = flatten(*map(nth, range(120)))
    assert tree["same"].content == b"119"
    assert odd.names(tree) == {"d", "same", *(f"l{n}" for n in range(120)), *(f"d/{n}" for n in range(1, 120, 2))}


# 23: formats


def test_long_names_and_targets_of_gnu_and_pax_are_read(flatten):
    long, target = "n" * 90 + "/" + "m" * 90, "t" * 300
    for form in (odd.tarfile.GNU_FORMAT, odd.tarfile.PAX_FORMAT):
        tree = flatten(layer(file(long), symlink("s" * 150, target), link("h" * 150, long), form=form))
        assert tree["s" * 150].link == target
        assert odd.groups(tree) >= {frozenset({long, "h" * 150})}
    ustar = layer(file("p" * 150 + "/" + "n" * 90), form=odd.tarfile.USTAR_FORMAT)
    assert "p" * 150 + "/" + "n" * 90 in flatten(ustar)


@pytest.mark.parametrize("words", [["--format=gnu"], *([f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))])
def test_sparse_files_come_out_whole_and_their_holes_take_no_room(flatten, tmp_path, words):
    hole = tmp_path / "root" / "hole"
    hole.parent.mkdir()
    with hole.open("wb") as out:
        for place in range(30):
            out.seek(place * 1_000_000)
            out.write(b"%d" % place)
        out.truncate(50_000_000)
    form = [] if words[0].startswith("--format") else ["--format=posix"]
    command = ["tar", "--create", "--sparse", *form, *words, "-C", hole.parent, "hole"]
    plain = subprocess.run(command, capture_output=True, check=True).stdout
    tree = flatten(plain, umoci=words != ["--format=gnu"])  # which it cannot read
    assert tree["hole"].content == hole.read_bytes()
    assert Path(flatten.path).stat().st_size < 100_000


def test_a_file_over_8_gib_is_kept(flatten, cmd):
    size = (8 << 30) + 5
    pairs = b"%d,3,%d,0" % (size - 3, size)
    records = {"GNU.sparse.size": b"%d" % size, "GNU.sparse.numblocks": b"2", "GNU.sparse.map": pairs}
    head = odd.extension(b"x", b"".join(odd.record(key, value) for key, value in records.items()))
    sparse = head + odd.raw_header(b"huge", size=b"%011o\0" % 3) + odd.padded(b"end") + odd.END
    name = odd.layout(flatten.where / "layout", sparse)
    made = cmd.ok("sh-flatten", name)
    said = cmd.ok("rdsquashfs", "--stat", "huge", made)
    assert f"File size: {size}\n" in said


# 24: compression


def test_gzip_zstd_and_plain_layers_may_be_mixed_and_come_in_several_members(flatten):
    one, two, three, four = (layer(file(name, name * 3000)) for name in "abcd")
    members = gzip.compress(two[:700]) + gzip.compress(b"") + gzip.compress(two[700:]) + bytes(512)
    skippable = bytes.fromhex("502a4d18") + (5).to_bytes(4, "little") + b"index"
    frames = skippable + pyzstd.compress(four[:600]) + skippable + pyzstd.compress(four[600:]) + skippable
    stack = [
        odd.Packed(one, one, ""),
        odd.Packed(members, two),
        odd.Packed(pyzstd.compress(three, 19), three, "+zstd"),
        odd.Packed(frames, four, "+zstd"),
        odd.Packed(gzip.compress(one), one, "+zstd"),  # what it is says the layer, not its media type
    ]
    tree = flatten(*stack, umoci=False)  # which knows no zstd
    assert {name: node.content for name, node in tree.items() if name != "."} == {n: n.encode() * 3000 for n in "abcd"}


# 25


def test_2000_whiteouts_over_20000_files_hide_just_those(flatten):
    lower = layer(*(file(f"d{n % 50}/f{n}", "x") for n in range(20_000)))
    upper = layer(*(whiteout(f"d{n % 50}/f{n}") for n in range(0, 20_000, 10)))
    assert odd.names(flatten(lower, upper, umoci=False)) - {f"d{n}" for n in range(50)} == {
        f"d{n % 50}/f{n}" for n in range(20_000) if n % 10
    }

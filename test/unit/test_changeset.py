"""The rules of changesets, one by one; test_merge.py has both ways of applying them agree on everything."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox.changeset import Inode, NeedsIndex, TopDown, Tree, ignored, judge, split, whiteout
from shoebox.fail import Fail
from shoebox.tarstream import DIRECTORY, LINK, REGULAR, SYMLINK


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a", b"a"),
        (b"./a", b"a"),
        (b"/a/b", b"a/b"),
        (b"//a", b"a"),
        (b"a/", b"a"),
        (b"a//b/./c/", b"a/b/c"),
        (b".", b""),
        (b"./", b""),
        (b"/", b""),
        (b"", b""),
        (b"a..b/..c/d..", b"a..b/..c/d.."),
        (b".hidden/.x", b".hidden/.x"),
        (b"-rf/\n/\xff", b"-rf/\n/\xff"),
        (b"n" * 255, b"n" * 255),
        (b"/".join([b"d" * 63] * 63), b"/".join([b"d" * 63] * 63)),
    ],
)
def test_a_name_is_judged_as_the_path_within_the_image(name, path):
    assert judge(name, "it") == path


@pytest.mark.parametrize("name", [b"..", b"../a", b"a/..", b"/..", b"a/../b", b"./..", b".//../x", b"a/../../b"])
def test_a_name_that_climbs_is_refused(name):
    with pytest.raises(Fail, match=r"^refused it: '.*' climbs out of its place"):
        judge(name, "it")


@pytest.mark.parametrize("name", [b"n" * 256, b"a/" + b"n" * 256 + b"/b", b"/".join([b"d" * 64] * 64)])
def test_a_name_that_squashfs_cannot_hold_is_refused(name):
    with pytest.raises(Fail, match=r"^cannot store it: "):
        judge(name, "it")


@given(st.binary(max_size=300))
def test_whatever_the_name_its_path_never_climbs_and_judging_again_changes_nothing(name):
    try:
        path = judge(name, "it")
    except Fail:
        return
    components = path.split(b"/") if path else []
    assert b".." not in components
    assert b"." not in components
    assert b"" not in components
    assert judge(path, "it") == path
    assert posixpath.normpath(b"/" + name).lstrip(b"/") == path


def test_a_whiteout_names_what_it_hides():
    assert whiteout(b".wh.a", "it") == b"a"
    assert whiteout(b".wh..a", "it") == b".a"
    assert whiteout(b".wh..wh.aufs", "it") == b""
    for bare in (b".wh.", b".wh..", b".wh..."):
        with pytest.raises(Fail, match="names nothing"):
            whiteout(bare, "it")


def test_what_lies_below_a_whiteouts_name_is_ignored():
    assert ignored(b".wh..wh.plnk/8.1")
    assert ignored(b"a/.wh.b/c")
    assert not ignored(b"a/.wh.b")
    assert not ignored(b"a.wh./b")


Entry = tuple[bytes, bytes] | tuple[bytes, bytes, bytes]


def top_down(*stack: list[Entry]) -> list[tuple[int, bytes]]:
    """Return (layer, path) of what gets through, the top layer first, and hard links at the end."""
    decide, through = TopDown(), []
    for number in reversed(range(len(stack))):
        decide.begin(number)
        for path, kind, *link in stack[number]:
            if decide.visit(path, kind, link[0] if link else b"", "it"):
                through.append((number, path))
    return through + [(-1, path) for path, _ in decide.targets()]


def test_one_pass_lets_the_topmost_of_a_name_through():
    lower = [(b"d", DIRECTORY), (b"d/a", REGULAR), (b"d/b", REGULAR), (b"c", LINK, b"d/b")]
    upper = [(b"d", DIRECTORY), (b"d/.wh.a", REGULAR), (b"e", SYMLINK, b"d")]
    assert top_down(lower, upper) == [(1, b"d"), (1, b"e"), (0, b"d/b"), (-1, b"c")]


UNDECIDABLE = {
    "a name twice in a layer": [[(b"a", REGULAR), (b"a", REGULAR)]],
    "a file below a file of its layer": [[(b"a", REGULAR), (b"a/b", REGULAR)]],
    "a file below a symlink of its layer": [[(b"a", SYMLINK, b"c"), (b"a/b", REGULAR)]],
    "a file below a symlink of a lower layer": [[(b"a", SYMLINK, b"c")], [(b"a/b", REGULAR)]],
    "a whiteout below a symlink of a lower layer": [[(b"a", SYMLINK, b"c")], [(b"a/.wh.b", REGULAR)]],
    "a symlink in the place of a directory of its layer": [[(b"a", DIRECTORY), (b"a", SYMLINK, b"c")]],
    "a hard link to replaced content": [[(b"a", REGULAR), (b"b", LINK, b"a")], [(b"a", REGULAR)]],
    "a hard link to hidden content": [[(b"a", REGULAR), (b"b", LINK, b"a")], [(b".wh.a", REGULAR)]],
    "a hard link to nothing": [[(b"b", LINK, b"a")]],
    "a hard link to itself": [[(b"b", LINK, b"b")]],
    "a hard link to a directory": [[(b"a", DIRECTORY), (b"b", LINK, b"a")]],
    "hard links in a circle": [[(b"a", LINK, b"b"), (b"b", LINK, b"a")]],
    "a hard link to what a higher layer has": [[(b"b", LINK, b"a")], [(b"a", REGULAR)]],
}


@pytest.mark.parametrize("case", UNDECIDABLE)
def test_one_pass_asks_for_the_index_where_it_cannot_decide(case):
    with pytest.raises(NeedsIndex):
        top_down(*UNDECIDABLE[case])


def test_a_root_that_is_no_directory_is_refused_by_both():
    with pytest.raises(Fail, match="root something else"):
        top_down([(b"", REGULAR)])
    with pytest.raises(Fail, match="root something else"):
        Tree().apply(0, [(b"", SYMLINK, b"a", None)], "it")


def tree(*stack: list[Entry]) -> dict[bytes, Inode]:
    """Apply layers to a tree, and return what it holds by path."""
    made = Tree()
    for number, entries in enumerate(stack):
        made.apply(number, [(path, kind, link[0] if link else b"", None) for path, kind, *link in entries], "it")
    return dict(made.names())


def test_a_tree_lists_parents_before_children_sorted():
    entries = [(b"b/c/d", REGULAR), (b"a", REGULAR), (b"b/a", REGULAR), (b"b", DIRECTORY)]
    assert list(tree(entries)) == [b"a", b"b", b"b/a", b"b/c", b"b/c/d"]


def test_a_hard_link_is_to_what_its_target_is_at_that_point():
    found = tree([(b"a", REGULAR), (b"b", LINK, b"a"), (b"a", REGULAR), (b"c", LINK, b"a")])
    assert found[b"b"].source == (0, 0)
    assert found[b"c"] is found[b"a"]
    assert found[b"a"].source == (0, 2)


def test_a_directory_of_the_layer_itself_is_not_followed_by_its_whiteouts():
    lower = [(b"real/f", REGULAR), (b"lib", SYMLINK, b"real")]
    for upper in (
        [(b"lib", DIRECTORY), (b"lib/.wh.f", REGULAR)],
        [(b"lib/.wh..wh..opq", REGULAR), (b"lib", DIRECTORY)],
    ):
        assert b"real/f" in tree(lower, upper)
    assert b"real/f" not in tree(lower, [(b"lib/.wh.f", REGULAR)])


def test_symlinks_that_make_a_path_longer_than_any_are_refused():
    deep = b"/".join([b"d" * 100] * 30)
    entries = [(b"s", SYMLINK, deep), (b"s/" + deep + b"/f", REGULAR)]
    with pytest.raises(Fail, match="longer than 4095 bytes"):
        tree(entries)


def test_a_path_of_2000_components_is_fine():
    deep = b"/".join([b"d"] * 2000)
    assert deep in tree([(deep, REGULAR)])
    assert top_down([(deep, REGULAR)]) == [(0, deep)]


def test_a_split_path_has_a_parent_and_a_base():
    assert split(b"a/b/c") == (b"a/b", b"c")
    assert split(b"a") == (b"", b"a")

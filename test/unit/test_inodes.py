"""Names and inodes, against a model of nested dicts."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox.inodes import ROOT, Tree

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
NAMES = st.sampled_from([b"a", b"b", b"c"])
WHERE = st.tuples(st.integers(0, 5), NAMES)
ACTS = st.sampled_from(["file", "directory", "link", "unlink", "rmdir", "rename", "noreplace", "exchange"])
ME = (0, 0)
REFUSED = (errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EPERM)


def new():
    return Tree(1000, 0o700, 0)


def listing(tree, inode):
    return {name: child for _, name, child in inode.entries.behind(2)}


def directories(tree):
    return [inode for inode in tree.inodes.values() if inode.entries is not None and inode.nlink]


def above(inode):
    while inode:
        yield inode
        inode = inode.entries.parent


@given(st.lists(st.tuples(ACTS, WHERE, WHERE), max_size=60))
def test_names_lead_where_they_should(steps):
    tree = new()
    model = {}  # (directory's number, name) -> number
    for now, (act, (one, name), (other, wanted)) in enumerate(steps):
        places = directories(tree)
        first, second = places[one % len(places)], places[other % len(places)]
        here, there = (first.number, name), (second.number, wanted)
        moved = tree.inodes.get(model.get(here, -1))
        if "link" not in act and moved and moved.entries is not None and moved in above(second):
            continue  # the kernel refuses loops
        target = tree.inodes.get(model.get(there, -1))
        if act == "exchange" and target and target.entries is not None and target in above(first):
            continue
        try:
            if act in ("file", "directory"):
                made = tree.make(first, name, FILE if act == "file" else DIRECTORY, ME, now)
                assert here not in model
                model[here] = made.number
            elif act == "link":
                tree.link(tree.inodes[model[here]], second, wanted, now)
                assert there not in model
                model[there] = model[here]
            elif act in ("unlink", "rmdir"):
                gone = tree.remove(first, name, now, directory=act == "rmdir")
                tree.forget(gone, 0)
                assert model.pop(here) == gone.number
            elif act == "exchange":
                tree.exchange((first, name), (second, wanted), now)
                model[here], model[there] = model[there], model[here]
            else:
                gone = tree.rename((first, name), (second, wanted), now, replace=act == "rename")
                assert act == "rename" or there not in model or model[here] == model[there]
                if model[here] != model.get(there):
                    model[there] = model.pop(here)
                if gone:
                    tree.forget(gone, 0)
        except KeyError:  # of the model: nothing there to link to
            assert here not in model
        except OSError as error:
            if error.errno not in REFUSED:
                raise
        seen = {
            (place.number, name): child.number
            for place in directories(tree)
            for name, child in listing(tree, place).items()
        }
        assert seen == model
        for inode in tree.inodes.values():
            led = sum(number == inode.number for number in model.values())
            below = sum(tree.inodes[n].entries is not None for (d, _), n in model.items() if d == inode.number)
            assert inode.nlink == (led if inode.entries is None else 2 + below)
            if inode.entries is not None and inode.number != ROOT:
                assert (inode.entries.parent.number, inode.number) in {(d, n) for (d, _), n in model.items()}
        assert set(tree.inodes) == set(model.values()) | {ROOT}


@given(st.lists(st.integers(0, 300)), st.integers(1, 50))
def test_a_reader_of_a_directory_sees_each_name_that_stays_once(removed, step):
    tree = new()
    root = tree[ROOT]
    for number in range(300):
        tree.make(root, b"%d" % number, FILE, ME, 0)
    seen, cookie, doomed = [], 2, list(removed)
    while True:
        chunk = [(at, name) for at, name, _ in root.entries.behind(cookie)][:step]
        if not chunk:
            break
        cookie = chunk[-1][0]
        seen += [name for _, name in chunk]
        for number in doomed[:5]:
            if tree.find(root, b"%d" % number):
                tree.remove(root, b"%d" % number, 0, directory=False)
        del doomed[:5]
    assert len(seen) == len(set(seen))
    assert {b"%d" % number for number in set(range(300)) - set(removed)} <= set(seen)


def test_an_inode_stays_until_nobody_knows_it():
    tree = new()
    inode = tree.make(tree[ROOT], b"a", FILE, ME, 0)
    inode.known = 2
    tree.remove(tree[ROOT], b"a", 0, directory=False)
    assert not tree.forget(inode, 1)
    assert inode.number in tree.inodes
    assert tree.forget(inode, 1)
    assert inode.number not in tree.inodes


def test_there_are_no_more_inodes_than_allowed():
    tree = Tree(3, 0o700, 0)
    tree.make(tree[ROOT], b"a", FILE, ME, 0)
    tree.make(tree[ROOT], b"b", FILE, ME, 0)
    with pytest.raises(OSError, match="No space"):
        tree.make(tree[ROOT], b"c", FILE, ME, 0)


@pytest.mark.parametrize(
    ("mode", "number"), [(stat.S_IFCHR | 0o666, errno.EPERM), (stat.S_IFBLK, errno.EPERM), (stat.S_IFIFO, 0)]
)
def test_there_are_no_devices(mode, number):
    tree = new()
    if not number:
        assert tree.make(tree[ROOT], b"a", mode, ME, 0).mode == mode
        return
    with pytest.raises(OSError, match=os.strerror(number)):
        tree.make(tree[ROOT], b"a", mode, ME, 0)


def test_a_set_group_id_directory_gives_its_group_and_directories_its_bit():
    tree = new()
    above = tree.make(tree[ROOT], b"d", DIRECTORY | stat.S_ISGID, (0, 7), 0)
    assert tree.make(above, b"f", FILE, ME, 0).gid == 7
    assert tree.make(above, b"e", DIRECTORY, ME, 0).mode & stat.S_ISGID

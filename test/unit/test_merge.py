"""The merge: one pass and index agree with each other, and with a plain reading of changeset's rules."""

from __future__ import annotations

import io
import posixpath
import tarfile
from dataclasses import dataclass, field

import pytest
from fixtures import layers as odd
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from shoebox.changeset import NeedsIndex
from shoebox.fail import Fail
from shoebox.merge import Layer, Merge, note

LIMIT = 1 << 30


def as_layers(*plain: bytes) -> list[Layer]:
    """Return layers of these bytes."""
    return [Layer(f"layer {n}", lambda data=data: io.BytesIO(data)) for n, data in enumerate(plain)]


def merged(way: str, *plain: bytes, **options: object) -> bytes:
    """Return the tar that Merge.one_pass or Merge.with_index makes."""
    out = io.BytesIO()
    getattr(Merge(LIMIT, **options), way)(as_layers(*plain), out.write)
    return out.getvalue()


def parents(path: str) -> list[str]:
    """Return the directories above a path, the nearest first."""
    above = posixpath.dirname(path)
    return [above, *parents(above)] if above else []


@dataclass(eq=False)
class Thing:
    """What a name means: a member's number, or None for a directory that is only implied."""

    kind: str
    number: int | None = None
    link: str = ""
    xattr: bytes = b""


class Refused(Exception):
    """An image that cannot be."""


@dataclass
class Plain:
    """The rules in changeset's docstring, word by word: a dict of paths, and slow.

    lenient: a hard link to nothing, or through symlinks in a circle, is refused only where it shows in the end.
    """

    lenient: bool = False
    at: dict[str, Thing] = field(default_factory=lambda: {"": Thing("directory")})

    def under(self, path: str) -> list[str]:
        """Return what lies below a path."""
        return [name for name in self.at if name != path and (not path or name.startswith(path + "/"))]

    def symlinks(self) -> set[str]:
        """Return the paths of symlinks."""
        return {path for path, thing in self.at.items() if thing.kind == "symlink"}

    def drop(self, path: str) -> None:
        """Remove a path and what lies below it."""
        for name in self.under(path):
            del self.at[name]
        self.at.pop(path, None)

    def where(self, directory: str, *, make: bool) -> str | None:
        """Return the directory that a path leads to."""
        todo, here, followed = [c for c in directory.split("/") if c], [], 0
        while todo:
            component = todo.pop(0)
            if component in ("", "."):
                continue
            if component == "..":
                here = here[:-1]
                continue
            path = "/".join([*here, component])
            thing = self.at.get(path)
            if thing and thing.kind == "symlink":
                followed += 1
                if followed > 40:
                    if self.lenient and not make:
                        return None
                    raise Refused
                here = [] if thing.link.startswith("/") else here
                todo = thing.link.split("/") + todo
                continue
            if not thing or thing.kind != "directory":
                if not make:
                    return None
                self.at[path] = Thing("directory")
            here.append(component)
        return "/".join(here)

    def put(self, path: str, thing: Thing) -> None:
        """Let a path mean a thing."""
        parent, base = posixpath.split(path)
        path = posixpath.join(self.where(parent, make=True), base) if path else path
        if path in self.at and not (thing.kind == "directory" == self.at[path].kind):
            self.drop(path)
        self.at[path] = thing

    def whiteout(self, parent: str, base: str, made: set[str]) -> None:
        """Hide something of the layers below."""
        for directory in sorted(made & {parent, *parents(parent)}):
            above, last = posixpath.split(directory)
            place = self.where(above, make=False)
            if place is not None and posixpath.join(place, last) in self.symlinks():
                return
        place = self.where(parent, make=False)
        if place is None:
            return
        if base == ".wh..wh..opq":
            for name in self.under(place):
                del self.at[name]
        elif not base.startswith(".wh..wh."):
            self.drop(posixpath.join(place, base[4:]))

    def link(self, path: str, target: str) -> bool:
        """Make a hard link, if its target is there."""
        parent, base = posixpath.split(target)
        place = self.where(parent, make=False)
        thing = None if place is None else self.at.get(posixpath.join(place, base))
        if thing is None or thing.kind == "directory":
            return False
        self.put(path, thing)
        return True

    def apply(self, members: list[odd.Member]) -> None:
        """Apply a layer."""
        names = [posixpath.normpath(made.name) for made, _ in members]
        names = ["" if name == "." else name for name in names]
        marks = [
            ".wh." in name and next(n for n, c in enumerate(name.split("/")) if c.startswith(".wh.")) for name in names
        ]
        for name, mark in zip(names, marks):
            if mark is not False and mark == name.count("/"):
                self.whiteout(*posixpath.split(name), {n for n, (made, _) in zip(names, members) if made.isdir()})
        later = []
        for (made, _), name, mark in zip(members, names, marks):
            if mark is not False:
                continue
            if made.islnk():
                target = posixpath.normpath(made.linkname)
                if not self.link(name, target):
                    later.append((name, target))
            else:
                kind = odd.KINDS[made.type]
                if not name and kind != "directory":
                    raise Refused
                self.put(name, Thing(kind, made.mtime, made.linkname if kind == "symlink" else ""))
        for name, target in later:
            if not self.link(name, target):
                if not self.lenient:
                    raise Refused
                self.put(name, Thing("nothing"))


def what(tree: odd.Tree) -> dict[str, tuple[object, ...]]:
    """Return what a merged tar means, for comparison: names, kinds, which member each is, which are one file."""
    first = {
        node.first: min(names) for node in tree.values() for names in [[n for n in tree if tree[n].first == node.first]]
    }
    return {
        name: (node.kind, node.mtime or None, node.link, first[node.first])
        for name, node in tree.items()
        if name != "."
    }


def expected(stack: list[list[odd.Member]], *, lenient: bool) -> dict[str, tuple[object, ...]] | str:
    """Return the same of the plain reading."""
    plain = Plain(lenient)
    try:
        for members in stack:
            plain.apply(members)
    except Refused:
        return "refused"
    found = {}
    for path, thing in plain.at.items():
        if thing.kind == "nothing":
            return "refused"
        if path:
            first = min(name for name, other in plain.at.items() if other is thing)
            found[path] = (thing.kind, thing.number, thing.link, first)
    return found


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.sampled_from(["a", "b", "/c", "a/b", "/b/c", "..", "../c", "../../a/../b", ".", "c/../a", "/", "a/"])
WHITEOUTS = st.builds(
    lambda path: posixpath.join(*posixpath.split(path)[:-1], ".wh." + posixpath.basename(path)), PATHS
)
SOME = st.one_of(
    st.builds(odd.file, PATHS),
    st.builds(odd.file, PATHS),
    st.builds(odd.directory, PATHS),
    st.builds(odd.directory, PATHS),
    st.builds(odd.symlink, PATHS, TARGETS),
    st.builds(odd.link, PATHS, PATHS),
    st.builds(odd.file, WHITEOUTS),
    st.builds(odd.opaque, st.one_of(st.just(""), PATHS)),
    st.sampled_from(
        [odd.directory("./"), odd.file(".wh..wh.aufs"), odd.file(".wh..wh.plnk/a"), odd.file("a/.wh..wh.orph/b")]
    ),
)
# As builders write them: parents with their own entries, no name twice. These mostly go in one pass.
TIDY = st.lists(
    st.one_of(
        st.builds(odd.file, PATHS),
        st.builds(odd.directory, PATHS),
        st.builds(odd.file, WHITEOUTS),
        st.builds(odd.opaque, PATHS),
        st.builds(odd.link, PATHS, PATHS),
    ),
    max_size=5,
    unique_by=lambda made: made[0].name,
).map(lambda members: with_parents(sorted(members, key=lambda made: made[0].name)))


def with_parents(members: list[odd.Member]) -> list[odd.Member]:
    """Put a directory before everything that lies in one."""
    out: dict[str, odd.Member] = {}
    for made in members:
        for parent in reversed(parents(made[0].name)):
            if parent not in out or not out[parent][0].isdir():
                out[parent] = odd.directory(parent)
        out.setdefault(made[0].name, made)
    return list(out.values())


STACKS = st.lists(st.one_of(TIDY, TIDY, st.lists(SOME, max_size=7)), min_size=1, max_size=4)


def numbered(stack: list[list[odd.Member]]) -> list[list[odd.Member]]:
    """Give every member a time of its own, so that we see which one it is that got into the image."""
    out = []
    for number, members in enumerate(stack):
        copies = []
        for n, (made, data) in enumerate(members):
            copy = tarfile.TarInfo.frombuf(made.tobuf(tarfile.GNU_FORMAT), "utf-8", "surrogateescape")
            copy.mtime = number * 100 + n + 1
            copies.append((copy, data))
        out.append(copies)
    return out


def outcome(way: str, plain: list[bytes]) -> dict[str, tuple[object, ...]] | str:
    """Return what a way makes of the layers."""
    try:
        return what(odd.tree_of_tar(merged(way, *plain)))
    except Fail:
        return "refused"
    except NeedsIndex:
        return "needs index"


@given(STACKS)
@settings(deadline=None, max_examples=250)
@example([[odd.directory("a"), odd.symlink("b", "a")], [odd.directory("b/c")]])
@example([[odd.directory("a"), odd.file("a/b")], [odd.file("a")], [odd.directory("a")]])  # what a file cut off
@example([[odd.symlink("a", "c"), odd.file("a/b")], [odd.file("a")]])  # through a symlink that is itself hidden
@example(
    [[odd.directory("c"), odd.symlink("a", "c")], [odd.file("a/b"), odd.directory("a")]]
)  # a parent after its child
@example([[odd.file("a/b")], [odd.file("a/.wh.b")]])  # a directory of nothing but hidden names
@example([[odd.file("a/b")], [odd.opaque("a")]])
@example([[odd.directory("c"), odd.file("c/b"), odd.symlink("a", "c")], [odd.directory("a"), odd.opaque("a")]])
@example([[odd.file("a")], [odd.directory("a")], [odd.file("a/b")]])
@example([[odd.link("b", "a"), odd.file("a")], [odd.file("c")]])
def test_both_ways_give_the_tree_that_the_rules_describe(stack):
    stack = numbered(stack)
    plain = [odd.layer(*members) for members in stack]
    with_index, one_pass = outcome("with_index", plain), outcome("one_pass", plain)
    event("one pass" if one_pass != "needs index" else "index")
    assert with_index == expected(stack, lenient=False)
    assert one_pass in ("needs index", expected(stack, lenient=True))  # what is hidden, it does not judge


@given(st.lists(TIDY, min_size=1, max_size=4))
@settings(deadline=None, max_examples=100)
def test_layers_as_builders_write_them_give_the_same_tree_both_ways(stack):
    stack = numbered(stack)
    plain = [odd.layer(*members) for members in stack]
    one_pass = outcome("one_pass", plain)
    event("one pass" if one_pass != "needs index" else "index")
    assert outcome("with_index", plain) == expected(stack, lenient=False)
    assert one_pass in ("needs index", expected(stack, lenient=True))


def test_layers_without_oddities_need_no_index():
    lower = [odd.directory("./"), odd.directory("d"), odd.file("d/a"), odd.link("d/b", "d/a"), odd.symlink("s", "d")]
    upper = [odd.directory("./"), odd.directory("d"), odd.whiteout("s"), odd.file("d/c"), odd.link("e", "d/a")]
    assert set(outcome("one_pass", [odd.layer(*lower), odd.layer(*upper)])) == {"d", "d/a", "d/b", "d/c", "e"}
    replaced = [[odd.file("d")], [odd.directory("d"), odd.file("d/a")], [odd.file("d/b")]]
    assert set(outcome("one_pass", [odd.layer(*members) for members in replaced])) == {"d", "d/a", "d/b"}


@pytest.mark.parametrize("way", ["one_pass", "with_index"])
def test_hard_links_come_last_after_what_they_are_to(way):
    out = merged(way, odd.layer(odd.file("z"), odd.link("a", "z"), odd.link("b", "a"), odd.directory("d")))
    assert set(odd.listed(out)[-2:]) <= {"a", "b", "z"}
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        seen = set()
        for member in archive:
            assert not member.islnk() or member.linkname in seen
            seen |= {member.name} - ({member.name} if member.islnk() else set())


def test_the_index_puts_parents_first():
    out = odd.listed(merged("with_index", odd.layer(odd.file("a/b/c"), odd.directory("a/b"), odd.directory("./"))))
    assert out == [".", "a", "a/b", "a/b/c"]


@pytest.mark.parametrize("way", ["one_pass", "with_index"])
def test_a_layer_of_another_digest_is_refused(way):
    data = odd.layer(odd.file("a"))
    layer = Layer("layer 1", lambda: io.BytesIO(data), "sha256:" + "0" * 64)
    with pytest.raises(
        Fail, match=r"^refused layer 1: its content is sha256:[0-9a-f]{64}, and the image's config promises"
    ):
        getattr(Merge(LIMIT), way)([layer], lambda _: None)


def test_a_layer_that_changes_between_the_two_readings_is_refused():
    versions = [odd.layer(odd.file("a")), odd.layer(odd.file("b"))]
    with pytest.raises(Fail, match="it changed while it was read") as caught:
        Merge(LIMIT).with_index([Layer("layer 1", lambda: io.BytesIO(versions.pop(0)))], lambda _: None)
    assert caught.value.status == 75


def test_the_limit_is_on_the_content_not_on_how_often_it_is_read():
    plain = odd.layer(odd.file("a", b"x" * 60_000), odd.file("a", b"x" * 30_000))
    merge = Merge(110_000)
    with pytest.raises(NeedsIndex):
        merge.one_pass(as_layers(plain), lambda _: None)
    merge.with_index(as_layers(plain), lambda _: None)
    for way in ("one_pass", "with_index"):
        with pytest.raises(Fail, match="more than 50000 bytes"):
            getattr(Merge(50_000), way)(as_layers(odd.layer(odd.file("a", b"x" * 60_000))), lambda _: None)


def test_a_sparse_file_counts_with_all_its_size():
    records = odd.record("GNU.sparse.size", b"%d" % ((8 << 60) - 1)) + odd.record("GNU.sparse.map", b"0,1")
    plain = odd.extension(b"x", records) + odd.raw_header(b"s", size=b"1") + odd.padded(b"x") + odd.END
    with pytest.raises(Fail, match="it holds more than 1073741824 bytes: see --max-size"):
        merged("one_pass", plain)


def test_progress_counts_every_byte_once_in_the_end():
    counts = []
    plain = odd.layer(odd.file("a", b"x" * 60_000), odd.file("a"))
    merge = Merge(LIMIT, read=counts.append)
    with pytest.raises(NeedsIndex):
        merge.one_pass(as_layers(plain), lambda _: None)
    merge.with_index(as_layers(plain), lambda _: None)
    assert sum(counts) == len(plain)


MARKS = {
    "SCHILY.xattr.user.a": True,
    "SCHILY.xattr.security.capability": True,
    "SCHILY.xattr.security.selinux": False,
    "SCHILY.xattr.security.ima": False,
    "SCHILY.xattr.security.evm": False,
    "SCHILY.xattr.trusted.overlay.opaque": False,
    "SCHILY.xattr.user.overlay.redirect": False,
    "SCHILY.xattr.system.nfs4_acl": False,
    "LIBARCHIVE.xattr.user.b": True,
    "LIBARCHIVE.xattr.security.%73elinux": False,
    "LIBARCHIVE.xattr.user%2eoverlay.x": False,
}


@pytest.mark.parametrize("way", ["one_pass", "with_index"])
def test_xattrs_that_belong_to_a_host_are_dropped(way):
    member = odd.file("a", pax_headers=dict.fromkeys(MARKS, "x"))
    folder = odd.directory("d", pax_headers=dict.fromkeys(MARKS, "x"))
    with tarfile.open(fileobj=io.BytesIO(merged(way, odd.pax(member, folder)))) as archive:
        kept = [set(member.pax_headers) for member in archive if member.name != "."]
    assert kept == [{key for key, stays in MARKS.items() if stays}] * 2


def test_acls_are_dropped_and_told():
    merge = Merge(LIMIT)
    out = io.BytesIO()
    merge.one_pass(as_layers(odd.pax(odd.file("a", pax_headers={"SCHILY.acl.access": "user::rw-"}))), out.write)
    assert merge.lost == {"POSIX ACLs"}
    assert b"SCHILY" not in out.getvalue()


@pytest.mark.parametrize("way", ["one_pass", "with_index"])
def test_readable_gives_everyone_the_owners_right_to_read_and_search(way):
    modes = {"a": (0o600, 0o644), "b": (0o700, 0o755), "c": (0o4710, 0o4755), "d": (0o200, 0o200), "e": (0o111, 0o111)}
    members = [odd.file(name, mode=old) for name, (old, _) in modes.items()]
    members += [odd.directory("root", mode=0o700), odd.file("t" * 150, mode=0o600), odd.symlink("s", "a", mode=0o700)]
    members += [odd.member("n", tarfile.CHRTYPE, mode=0o600), odd.directory("./", mode=0o711)]
    for plain in (odd.layer(*members), odd.pax(*members)):
        tree = odd.tree_of_tar(merged(way, plain, readable=True))
        assert {name: tree[name].mode for name in modes} == {name: new for name, (_, new) in modes.items()}
        assert [tree[n].mode for n in ("root", "t" * 150, "n", ".")] == [0o755, 0o644, 0o600, 0o755]


@pytest.mark.parametrize("way", ["one_pass", "with_index"])
def test_readable_opens_up_sparse_files_too(way):
    numbers = b"".join(b"%011o\0" % n for n in (0, 3))
    rest = bytes(41) + numbers + bytes(72) + b"\0" + b"%011o\0" % 3
    head = odd.raw_header(b"s", b"S", size=b"%011o\0" % 3, magic=b"ustar  \0", mode=b"0000600\0", rest=rest)
    tree = odd.tree_of_tar(merged(way, head + odd.padded(b"abc") + odd.END, readable=True))
    assert (tree["s"].mode, tree["s"].content) == (0o644, b"abc")


def test_the_latest_time_that_is_not_to_come_is_known_after_the_index():
    merge = Merge(LIMIT)
    merge.index(
        as_layers(odd.layer(odd.file("a", mtime=5), odd.file("b", mtime=7), odd.file("c", mtime=(1 << 32) - 1)))
    )
    assert merge.newest == 7


def test_readable_copes_with_modes_that_are_none():
    plain = odd.raw_header(b"a", mode=b"zzz") + odd.raw_header(b"b", mode=b"\x80" + b"\xff" * 7) + odd.END
    assert [n.mode for n in odd.tree_of_tar(merged("one_pass", plain[512:], readable=True)).values()] == [0o7777]
    assert merged("one_pass", plain, readable=True).startswith(b"a\0")


def test_times_that_squashfs_cannot_hold_become_the_nearest_that_it_can():
    times = {"a": (-5, 0), "b": (1 << 33, (1 << 32) - 1), "c": ((1 << 32) - 1, (1 << 32) - 1), "d": (7, 7)}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        plain = odd.layer(
            *(odd.file(n, mtime=t) for n, (t, _) in times.items()), odd.directory("e", mtime=-1), form=form
        )
        for way in ("one_pass", "with_index"):
            tree = odd.tree_of_tar(merged(way, plain))
            assert {n: tree[n].mtime for n in times} == {n: t for n, (_, t) in times.items()}
            assert tree["e"].mtime == 0


def test_a_note_is_a_layer_of_our_own_files():
    made = note({".shoebox/config.json": b"{}"}, "the note")
    with tarfile.open(fileobj=made.open()) as archive:
        found = [(m.name, m.mode, m.uid, m.mtime, m.size) for m in archive]
    assert found == [(".shoebox", 0o755, 0, 0, 0), (".shoebox/config.json", 0o644, 0, 0, 2)]


@pytest.mark.parametrize(
    "below", [odd.symlink(".shoebox", "../../etc"), odd.file(".shoebox"), odd.directory(".shoebox")]
)
def test_our_note_is_on_top_whatever_lies_below(below):
    lower = odd.layer(
        below, *([odd.file(".shoebox/config.json", "theirs")] if below[0].isdir() else []), odd.directory("etc")
    )
    top = [*as_layers(lower), note({".shoebox/config.json": b"ours"}, "the note")]
    for way in ("one_pass", "with_index"):
        out = io.BytesIO()
        getattr(Merge(LIMIT), way)(top, out.write)
        tree = odd.tree_of_tar(out.getvalue())
        assert odd.names(tree) == {".shoebox", ".shoebox/config.json", "etc"}
        assert tree[".shoebox/config.json"].content == b"ours"

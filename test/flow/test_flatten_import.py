"""Squashfs and SIF files of anybody's, read without privilege and written anew: the same tree, and nothing hostile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures import crafted
from fixtures import layers as odd
from fixtures.layers import directory, file, link, member, symlink
from fixtures.rootfs import sif

from shoebox import sources, unsquash
from shoebox.fail import Fail
from shoebox.merge import Merge, NeedsIndex
from shoebox.streams import Limits, Piped

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep
# What a squashfs can hold, of all kinds; xattrs as Python's tarfile writes them: text, with surrogates for odd bytes.
MEMBERS = (
    directory("bin", mode=0o755),
    file("bin/su", b"s" * 70_000, mode=0o6755),
    file("bin/ping", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": os.fsdecode(CAPABILITY)}),
    file("bin/marked", pax_headers={"SCHILY.xattr.user.mark": "a=b\nc"}),
    link("bin/su2", "bin/su"),
    directory("tmp", mode=0o1777),
    directory("home", mode=0o700, uid=1000, gid=100),
    file("home/f", mode=0o600, uid=4_000_000_000, gid=4_000_000_000),
    file("home/late", mtime=4_000_000_000),
    file("empty", member("x", b"0")[1]),
    file("large", bytes(range(256)) * 3000),
    file("holes", bytes(3_000_000) + b"end"),
    symlink("away", "/../../etc/shadow"),
    member("dev", b"5", mode=0o755),
    member("dev/null", b"3", mode=0o666, devmajor=1, devminor=3),
    member("dev/disk", b"4", mode=0o660, devmajor=8, devminor=300),
    member("fifo", b"6", mode=0o644),
    file(os.fsdecode(b"odd \xff\n\x1b[31m\\ name")),
    file("n" * 255),
    *(directory("/".join(["deep"] * n)) for n in range(1, 40)),
    file("/".join(["deep"] * 39) + "/leaf"),
)
MAKERS = {
    "tar2sqfs-zstd": ["tar2sqfs", "-q", "-s", "-c", "zstd", "OUT"],
    "tar2sqfs-lz4": ["tar2sqfs", "-q", "-s", "-c", "lz4", "-b", "4096", "OUT"],
    "mksquashfs-xz": ["mksquashfs", "-", "OUT", "-tar", "-comp", "xz", "-b", "1M", "-quiet", "-no-progress"],
    "mksquashfs-gzip": ["mksquashfs", "-", "OUT", "-tar", "-comp", "gzip", "-no-fragments", "-no-exports", "-quiet"],
    "mksquashfs-lzo": ["mksquashfs", "-", "OUT", "-tar", "-comp", "lzo", "-always-use-fragments", "-nopad", "-quiet"],
}


@pytest.fixture
def flatten(cmd, tmp_path):
    return odd.Flatten(cmd, tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Make a small tree."""
    where = tmp_path_factory.mktemp("small") / "tree"
    (where / "sub").mkdir(parents=True)
    (where / "abcd").write_text("x" * 5000)
    (where / "sub/wxyz").write_text("y")
    (where / "zz").write_text("")
    (where / "link").symlink_to("/target")
    return where


def image(where: Path, maker: str) -> Path:
    """Make a squashfs of MEMBERS."""
    words = [str(where / f"{maker}.sqfs") if word == "OUT" else word for word in MAKERS[maker]]
    subprocess.run(words, input=odd.pax(*MEMBERS), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return where / f"{maker}.sqfs"


def known(path: str) -> dict[str, object]:
    """Read the JSON beside an image."""
    return json.loads(Path(path).with_suffix(".json").read_text())


def seen(path: str | Path, where: Path) -> odd.Tree:
    """Let unsquashfs unpack an image, as root, and look at what it made."""
    shutil.rmtree(where, ignore_errors=True)
    words = ["unsquashfs", "-no-progress", "-quiet", "-strict-errors", "-d", where, path]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    found = odd.unpacked(where)
    shutil.rmtree(where)
    return found


@pytest.mark.root
@pytest.mark.parametrize("maker", MAKERS)
def test_what_comes_out_is_what_went_in_by_another_programs_eyes(cmd, tmp_path, maker):
    source = image(tmp_path, maker)
    made = cmd.ok("sh-flatten", source)
    before, after = seen(source, tmp_path / "seen"), seen(made, tmp_path / "seen")
    assert len(before) == len(MEMBERS) + 1
    assert before["bin/ping"].xattrs == {"security.capability": CAPABILITY}
    assert before["bin/su"].mode == 0o6755
    assert after == before
    assert odd.groups(after) == odd.groups(before)
    assert cmd.ok("sh-flatten", f"squashfs:{source}") == made


@pytest.mark.root
def test_a_tree_that_root_packed_is_kept_but_for_sockets_and_what_squashfs_should_not_bring(cmd, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_text("f")
    os.setxattr(tree / "f", "trusted.overlay.opaque", b"y")
    os.setxattr(tree / "f", "user.kept", b"1")
    os.mknod(tree / "sock", 0o140644)
    subprocess.run(["mksquashfs", tree, tmp_path / "a.sqfs", "-quiet", "-no-progress"], check=True, capture_output=True)
    done = cmd("sh-flatten", tmp_path / "a.sqfs")
    assert done.returncode == 0
    assert (
        done.stderr == f"sh-flatten: warning: sqfs2tar has left something out of '{tmp_path}/a.sqfs': Skipping ./sock\n"
    )
    found = seen(done.stdout.strip(), tmp_path / "seen")
    assert odd.names(found) == {"f"}
    assert found["f"].xattrs == {"user.kept": b"1"}


def test_a_sif_file_gives_the_tree_of_its_partition_also_through_a_pipe(cmd, tmp_path, small):
    plain = cmd.ok("sh-flatten", "-c", "gzip", crafted.plain(small, tmp_path / "x.sqfs"))
    packed = sif(tmp_path / "x.sqfs", tmp_path / "x.sif")
    for name in (packed, f"sif:{packed}", f"squashfs:{packed}"):
        assert cmd.ok("sh-flatten", "-c", "gzip", name) == plain
    for data, name in (
        (packed.read_bytes(), "sif:/dev/stdin"),
        ((tmp_path / "x.sqfs").read_bytes(), "squashfs:/dev/stdin"),
    ):
        words = ["sh-flatten", "-c", "gzip", name]
        done = subprocess.run(words, input=data, env=cmd.env, cwd=cmd.home, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{plain}\n".encode(), b"")
    assert not list(Path(plain).parent.glob(".part*"))


def test_an_image_of_ours_keeps_its_config_and_gets_no_name_that_it_claims(cmd, tmp_path):
    name = odd.layout(tmp_path / "layout", odd.layer(file("a")))
    first = cmd.ok("sh-flatten", "-o", "first.sqfs", name)
    text = json.loads((cmd.home / "first.json").read_text()) | {"reference": "docker.io/library/debian:12"}
    (cmd.home / "first.json").write_text(json.dumps(text, separators=(",", ":")))
    again = cmd.ok("sh-flatten", first)
    assert (known(again)["reference"], known(again)["manifest"]) == (None, None)
    assert known(again)["config"]["config"] == {"Env": ["PATH=/bin"], "Cmd": ["sh"]}
    (cmd.home / "first.json").unlink()  # as mailed: the copy in the image counts
    assert cmd.ok("sh-flatten", first) == again
    assert known(again)["platform"] == f"linux/{text['config']['architecture']}"
    assert odd.tree(again, config=True).keys() == odd.tree(cmd.home / "first.sqfs", config=True).keys()
    assert not list((Path(cmd.env["SHOEBOX_CACHE"]) / "images").rglob("docker.io"))


def test_what_not_everybody_may_read_is_private(cmd, tmp_path, small):
    path = crafted.plain(small, tmp_path / "x.squashfs")

    def private() -> bool:
        return sources.read(str(path), str(tmp_path), 1 << 30).private

    assert not private()
    path.chmod(0o640)
    assert private()
    made = Path(cmd.ok("sh-flatten", path))
    assert {made.stat().st_mode & 0o777, made.with_suffix(".json").stat().st_mode & 0o777} == {0o600}
    path.chmod(0o644)
    path.with_suffix(".meta").write_text("FORMAT:squashfs\nUSERACL:\n")
    assert not private()
    path.with_suffix(".meta").write_text(f"FORMAT:squashfs\nUSERACL:{os.getuid()}\n")
    assert private()


# What is hostile


@pytest.mark.parametrize(("was", "new"), [(b"abcd", b"../x"), (b"abcd", b"/etc"), (b"zz", b".."), (b"zz", b"./")])
def test_names_that_lead_out_are_refused(flatten, tmp_path, small, was, new):
    line = flatten.refuse_name(crafted.changed(crafted.plain(small, tmp_path / "x.sqfs"), was, new))
    assert f"cannot read all of '{tmp_path}/x.sqfs': sqfs2tar ended with status 1: " in line


def test_a_name_with_a_nul_ends_there_and_two_of_one_name_are_one(cmd, tmp_path, small):
    crafted.changed(crafted.plain(small, tmp_path / "x.sqfs"), b"abcd", b"zz\0\0")
    assert odd.names(odd.tree(cmd.ok("sh-flatten", tmp_path / "x.sqfs"))) == {"zz", "sub", "sub/wxyz", "link"}


def test_a_tree_larger_than_any_memory_is_refused_in_one_line(flatten, tmp_path):
    line = flatten.refuse_name(crafted.bomb(tmp_path))
    assert line == f"sh-flatten: refused '{tmp_path}/bomb.sqfs': sqfs2tar needs more than 512 MiB of memory for it"


def test_what_unpacks_to_more_than_max_size_is_refused(flatten, tmp_path):
    path = crafted.zeros(tmp_path, 200 << 20)
    line = flatten.refuse_name(path, words=["--max-size", "10M"])
    assert f"refused '{path}': it holds more than 10485760 bytes: see --max-size" in line
    done = subprocess.run(
        ["sh-flatten", "--max-size", "1K", "squashfs:/dev/stdin"],
        input=path.read_bytes(),
        env=flatten.cmd.env,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"it is larger than --max-size allows" in done.stderr


def test_a_reader_that_takes_for_ever_is_ended(tmp_path):
    stream = Piped(["sh", "-c", "while :; do :; done"], "'x'", limits=Limits(1 << 30, 1))
    with pytest.raises(Fail, match=r"^refused 'x': sh took more than 1 seconds of processor time for it$"):
        stream.read()
    stream.close()


def test_a_reader_may_say_what_it_likes_and_one_printable_line_of_it_is_told():
    script = "yes 'skipping \033[31m' | head -n 100000 >&2; printf 'last \\377\\033 one\\n' >&2; exit 3"
    stream = Piped(["sh", "-c", script], "'x'", limits=Limits(1 << 30, 10))
    with pytest.raises(Fail) as caught:
        stream.read()
    assert str(caught.value) == "cannot read all of 'x': sh ended with status 3: last \\xff\x1b one"
    stream.close()


@pytest.mark.parametrize("script", ["kill -9 $$", "exit 127", "echo half; exit 1"])
def test_a_reader_that_is_killed_or_stops_has_not_said_that_there_is_nothing(script):
    stream = Piped(["sh", "-c", script], "'x'", limits=Limits(1 << 30, 10), absent=1)
    with pytest.raises(Fail, match=r"^cannot read all of 'x': sh ended with status"):
        stream.readall()
    stream.close()


def test_an_image_does_not_lose_its_config_because_its_reader_was_killed(tmp_path, small, monkeypatch):
    path = crafted.plain(small, tmp_path / "x.sqfs")
    (tmp_path / "rdsquashfs").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "rdsquashfs").chmod(0o755)
    with path.open("rb") as image:
        opened = unsquash.Squashfs("'x'", image, Limits(1 << 30, 10), private=False)
        assert opened.text("/no/such/file") == b""
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(Fail, match=r"^cannot read all of 'x': rdsquashfs ended with status -9$"):
            opened.text("/no/such/file")


def test_without_its_reader_the_package_to_install_is_named(flatten, tmp_path, small):
    path = crafted.plain(small, tmp_path / "x.sqfs")
    writer = tmp_path / "bin"
    writer.mkdir()
    (writer / "tar2sqfs").symlink_to(shutil.which("tar2sqfs"))
    where = f"{flatten.cmd.env['PATH'].split(':')[0]}:{writer}"
    line = flatten.refuse_name(path, PATH=where)
    assert line.endswith(": No such file or directory: install squashfs-tools-ng")


@pytest.mark.parametrize("kept", [0, 5, 95, 96, 2000, -4096])
def test_what_is_cut_off_is_refused(flatten, tmp_path, small, kept):
    data = crafted.plain(small, tmp_path / "x.sqfs").read_bytes()
    (tmp_path / "x.sqfs").write_bytes(data[:kept])
    line = flatten.refuse_name(f"squashfs:{tmp_path}/x.sqfs")
    assert "x.sqfs': it is " in line


def test_the_wrong_compressor_and_damaged_content_are_refused(flatten, tmp_path, small):
    def made(*words):
        return crafted.plain(small, tmp_path / "x.sqfs", *words)

    zstd = made("-comp", "zstd", "-no-fragments")
    assert "sqfs2tar ended with status 1" in flatten.refuse_name(crafted.patched(zstd, 20, b"\x04\0"))
    assert "compressor 9 does not exist" in flatten.refuse_name(crafted.patched(zstd, 20, b"\x09\0"))
    damaged = crafted.patched(made("-comp", "zstd", "-no-fragments"), 98, b"\xff\xff\xff\xff\xff\xff")
    assert "sqfs2tar ended with status 1" in flatten.refuse_name(damaged)


def test_a_sif_that_lies_of_its_partition_is_refused(flatten, tmp_path, small):
    squashfs = crafted.plain(small, tmp_path / "x.sqfs")
    assert "cut off" in flatten.refuse_name(crafted.patched(sif(squashfs, tmp_path / "x.sif"), 4096 + 25, b"\xff" * 6))
    assert "its system partition is ext3" in flatten.refuse_name(sif(squashfs, tmp_path / "x.sif", filesystem=2))
    (tmp_path / "text").write_text("hello\n" * 100)
    line = flatten.refuse_name(sif(tmp_path / "text", tmp_path / "x.sif"))
    assert "it is not a squashfs" in line
    assert "it is not a squashfs" in flatten.refuse_name(f"squashfs:{tmp_path}/text")
    assert "Is a directory" in flatten.refuse_name(f"sif:{tmp_path}")
    assert "No such file" in flatten.refuse_name(f"squashfs:{tmp_path}/none")


def test_whatever_bytes_are_changed_it_is_read_or_refused(tmp_path, small):
    whole = crafted.plain(small, tmp_path / "x.sqfs", "-noD").read_bytes()
    chance = random.Random(5)
    refused = []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(whole) - 3000 if len(whole) > 9000 else 0, len(whole))] = chance.randrange(256)
        (tmp_path / "x.sqfs").write_bytes(data)
        try:
            source = sources.read(str(tmp_path / "x.sqfs"), str(tmp_path), 1 << 30)
            with contextlib.suppress(NeedsIndex):
                Merge(1 << 30).one_pass(list(source.layers), lambda _: None)
        except Fail as error:
            refused.append(str(error))
    assert refused
    assert not [line for line in refused if "\n" in line or len(line) > 1000]


def test_a_config_in_an_image_is_read_only_if_it_is_a_small_file(cmd, tmp_path):
    for number, odd_one in enumerate(
        (
            symlink(".shoebox/config.json", "/etc/passwd"),
            directory(".shoebox/config.json"),
            file(".shoebox/config.json", b"{" * 100_000),
            file(".shoebox/config.json", b" " * (40 << 20)),
        )
    ):
        path = tmp_path / f"{number}.sqfs"
        words = ["tar2sqfs", "-q", "-s", path]
        subprocess.run(words, input=odd.pax(directory(".shoebox"), odd_one), check=True, capture_output=True)
        assert known(cmd.ok("sh-flatten", path))["config"] is None

"""sh-flatten's writers: the same tree by each, the same bytes every time, little memory, nothing beside the image."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fixtures import images
from fixtures import layers as odd
from fixtures.layers import directory, file, layer, link, pax, symlink, whiteout
from fixtures.writers import WRITERS, path_for, session


@pytest.fixture
def flatten(cmd, tmp_path):
    return odd.Flatten(cmd, tmp_path)


def kitchen_sink() -> list[bytes]:
    """Make layers of about everything, an entry that needs the index included."""
    long = "/".join(["d" * 100] * 5)
    return [
        pax(
            directory("./", mode=0o751, mtime=1_500_000_000),
            directory("etc", mode=0o700, uid=1, gid=2, mtime=1_400_000_001),
            file("etc/shadow", mode=0o600, uid=0, gid=42, mtime=1_400_000_002),
            file("suid", mode=0o6755, uid=3, gid=4),
            file("large-ids", uid=4_000_000_000, gid=4_000_000_001),
            file("implied/by/this", mode=0o400),
            file("hidden"),
            file(long, b"x" * 300_000),
            symlink("link", "etc/shadow", uid=9),
            symlink("usr-bin", "usr/bin"),
            directory("usr/bin", mode=0o1775),
            link("hard", "suid"),
            link("a-link-before-its-file", "hard"),
            link("hard-symlink", "link"),
            odd.member("null", odd.tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3, uid=5),
            odd.member("disk", odd.tarfile.BLKTYPE, mode=0o640, devmajor=8, devminor=300, gid=6),
            odd.member("pipe", odd.tarfile.FIFOTYPE, mode=0o622, uid=7),
            link("hard-pipe", "pipe"),
            file("marked", pax_headers={"SCHILY.xattr.user.note": os.fsdecode(b"\xff=\n")}),
            file("empty-of-old", b"\0" * 200_000, mtime=0),
            file("past", mtime=-5),
        ),
        pax(*(file(f"names/{name}", mode=0o640, uid=8) for name in NAMES)),
        layer(
            whiteout("hidden"), file("usr-bin/tool"), directory("usr-bin/sub", mode=0o500), file("twice"), file("twice")
        ),
    ]


NAMES = [
    "#hash",
    " lead",
    "trail ",
    'a"b',
    "a\\b\\",
    "a\tb",
    "a\rb\x0b\x0c",
    "-dash",
    "=",
    "'q'",
    "žlu",
    os.fsdecode(b"\xff"),
    "a\nb",
]
LOST = {
    "tar2sqfs": [],
    "mksquashfs -tar": ["the owner and the time of the root directory"],
    "mksquashfs": [
        "hard links of devices and symlinks",
        "owners and modes of files with a newline in their names",
        *(["the owner of the root directory"] if os.geteuid() else []),
        "times of devices",
    ],
}


def test_every_writer_makes_the_same_tree(flatten, cmd, tmp_path):
    made = [flatten(*kitchen_sink(), umoci=False, PATH=path_for(writer, cmd, tmp_path)) for writer in WRITERS]
    best, streamed, unpacked = made
    assert best["."].mode == streamed["."].mode == unpacked["."].mode == 0o751
    assert best | {".": None} == streamed | {".": None}
    assert as_unpacked(best) == as_unpacked(unpacked)


def as_unpacked(tree: odd.Tree) -> dict[str, object]:
    """Return what of an image goes through an unpacked tree: all but what the command says is lost."""
    kept = {}
    for name, node in tree.items():
        values = dict(vars(node))
        if node.kind in ("character", "block"):
            values["mtime"] = None
        if node.kind in ("character", "block", "symlink"):
            values["first"] = None
        if "\n" in name:
            values["mode"] = values["uid"] = values["gid"] = None
        if name == ".":
            values["uid"] = values["gid"] = None
        kept[name] = values
    return kept


@pytest.mark.parametrize("writer", WRITERS)
def test_the_sidecar_names_the_writer_and_what_it_could_not_keep(flatten, cmd, tmp_path, writer):
    flatten(layer(), umoci=False)
    name = odd.layout(tmp_path / "layout", *kitchen_sink(), pax(link("hard-null", "null")))
    done = cmd("sh-flatten", name, PATH=path_for(writer, cmd, tmp_path))
    assert done.returncode == 0, done.stderr
    sidecar = json.loads(Path(done.stdout.strip()).with_suffix(".json").read_text())
    assert sidecar["writer"]["program"] == writer
    assert sidecar["writer"]["version"][0].isdigit()
    assert sidecar["lost"] == LOST[writer]
    said = [line.split(" cannot keep ")[1] for line in done.stderr.splitlines() if line.startswith("sh-flatten: ")]
    assert said == [f"{what}: left out" for what in LOST[writer]]


@pytest.mark.parametrize("writer", WRITERS)
def test_acls_are_left_out_with_one_warning(flatten, cmd, tmp_path, writer):
    acl = {"SCHILY.acl.access": "user::rw-,user:5:r--,group::r--,mask::r--,other::r--"}
    name = odd.layout(tmp_path / "layout", pax(file("a", pax_headers=acl), file("b", pax_headers=acl)))
    done = cmd("sh-flatten", name, PATH=path_for(writer, cmd, tmp_path))
    assert done.returncode == 0
    warning = "sh-flatten: warning: this image has POSIX ACLs, which squashfs cannot hold: they are left out\n"
    assert [line for line in done.stderr.splitlines(keepends=True) if "cannot keep" not in line] == [warning]
    sidecar = json.loads(Path(done.stdout.strip()).with_suffix(".json").read_text())
    assert "POSIX ACLs" in sidecar["lost"]


def test_no_name_in_an_image_is_a_command_to_mksquashfs(flatten, cmd, tmp_path):
    blanks = ["\r", "\t", " ", "\x0b", "\x0c", "\n"]
    evil = [f"x{b}f{b}777{b}0{b}0{b}touch${{IFS}}{tmp_path}/pwned;#" for b in blanks]
    name = odd.layout(tmp_path / "layout", layer(*map(file, evil)))
    for writer in WRITERS:
        cmd("sh-flatten", name, PATH=path_for(writer, cmd, tmp_path))
    assert not (tmp_path / "pwned").exists()
    assert sorted(os.listdir(cmd.home)) == [".run"]


def test_doubtful_headers_do_not_lead_the_unpacking_out_of_its_tree(flatten, cmd, tmp_path):
    stored = odd.raw_header(f"../../../../../../../..{tmp_path}/pwned".encode()) + odd.END
    desync = odd.extension(
        b"x",
        odd.record("size", b"2048")
        + odd.record("GNU.sparse.major", b"1")
        + odd.record("GNU.sparse.minor", b"0")
        + odd.record("GNU.sparse.realsize", b"0")
        + odd.record("GNU.sparse.name", b"s"),
    )
    desync += odd.raw_header(b"s") + odd.padded(b"0\n") + stored
    for plain in (desync, odd.raw_header(b"good", magic=b"ustar  \0", prefix=b"../../evil") + odd.END):
        cmd("sh-flatten", odd.layout(tmp_path / "layout", plain), PATH=path_for("mksquashfs", cmd, tmp_path))
    assert not (tmp_path / "pwned").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name == "evil"]


# The same bytes every time


@pytest.mark.parametrize("writer", WRITERS)
def test_the_same_input_gives_the_same_bytes_whatever_the_surroundings(flatten, cmd, tmp_path, writer):
    path = path_for(writer, cmd, tmp_path)
    surroundings = [{}, {"TZ": "Asia/Tokyo", "LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "SOURCE_DATE_EPOCH": "77"}]
    for stack in (kitchen_sink(), kitchen_sink()[:2]):  # by the index, and in one pass
        name = odd.layout(tmp_path / "layout", *stack)
        made = set()
        for number, around in enumerate(surroundings):
            out = tmp_path / f"{number}.sqfs"
            words = ["sh", "-c", 'umask "$1"; shift; exec "$@"', "sh", "0077" if number else "0002"]
            cmd.ok(*words, "sh-flatten", "-j", str(number * 3 + 1), "-o", out, name, PATH=path, **around)
            made.add((out.read_bytes(), out.with_suffix(".json").read_bytes()))
        assert len(made) == 1


@pytest.mark.parametrize("compressor", ["zstd", "gzip", "lz4", "xz", "lzo"])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_compressor_is_used_and_told(cmd, tmp_path, writer, compressor):
    name = odd.layout(tmp_path / "layout", layer(file("a", b"abc" * 100_000)))
    out = tmp_path / "o.sqfs"
    level = ["--level", "5"] if compressor in ("zstd", "gzip", "lzo") else []
    cmd.ok("sh-flatten", "-c", compressor, *level, "-o", out, name, PATH=path_for(writer, cmd, tmp_path))
    numbers = {"gzip": 1, "lzo": 3, "xz": 4, "lz4": 5, "zstd": 6}
    assert int.from_bytes(out.read_bytes()[20:22], "little") == numbers[compressor]
    assert int.from_bytes(out.read_bytes()[12:16], "little") == 131_072
    told = json.loads(out.with_suffix(".json").read_text())["writer"]
    assert (told["compressor"], told["level"]) == (compressor, 5 if level else None)
    assert odd.tree(out)["a"].content == b"abc" * 100_000


# Memory, and what is written besides the image


@dataclass
class Watch:
    """What a command and its children took: peak of all their memory together (bytes), files opened for writing."""

    peak: int = 0
    written: set[str] = field(default_factory=set)


def watched(cmd, *argv: str | os.PathLike[str], **env: str) -> Watch:
    """Run a command, and sample what its whole process group holds."""
    seen = Watch()
    process = cmd.start(*argv, start_new_session=True, env=cmd.env | env)
    while process.poll() is None:
        total = 0
        for pid in session(process.pid):
            with contextlib.suppress(OSError):  # it has ended
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"Pss: +(\d+) kB", text)[1]) << 10
                for fd in Path(f"/proc/{pid}/fd").iterdir():
                    if int(Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split()[3], 8) & os.O_ACCMODE:
                        seen.written.add(os.readlink(fd))
        seen.peak = max(seen.peak, total)
        time.sleep(0.01)
    assert process.wait() == 0, process.stderr.read()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    return seen


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """Make a layout of 300 MB in three layers, a tenth of it hard to compress, and 20,000 small files."""
    noise = os.urandom(1 << 20)
    stack = [layer(*(file(f"l{n}/big{m}", noise + b"text " * 1_900_000) for m in range(9))) for n in range(3)]
    stack.append(layer(*(file(f"small/{n % 100}/{n}") for n in range(20_000)), whiteout("l0/big0")))
    return odd.layout(tmp_path_factory.mktemp("large") / "layout", *stack)


@pytest.mark.parametrize("index", [False, True])
def test_300_mb_take_less_than_120_mb_of_memory_and_nothing_is_written_but_the_image(cmd, tmp_path, large, index):
    where, _, image = large.removeprefix("oci:").partition(":")
    if index:
        copy = tmp_path / "layout"
        shutil.copytree(where, copy)
        twice = odd.packed(layer(file("twice"), file("twice")))
        add_layer(copy, twice)
        large = f"oci:{copy}:{image}"
    out = tmp_path / "out"
    out.mkdir()
    seen = watched(cmd, "sh-flatten", "-o", out / "large.sqfs", large)
    assert 10 << 20 < seen.peak < 120 << 20
    files = {path for path in seen.written if path.startswith("/") and not path.startswith("/dev/")}
    assert {os.path.dirname(path) for path in files} <= {str(out)}
    assert all(".part-" in path for path in files)


def add_layer(where: Path, more: odd.Packed) -> None:
    """Put one more layer on top of the only image of a layout."""
    index = json.loads((where / "index.json").read_text())
    blobs = where / "blobs" / "sha256"

    def blob(entry: dict[str, object]) -> Path:
        return blobs / str(entry["digest"]).removeprefix("sha256:")

    def put(data: bytes, kind: str) -> dict[str, object]:
        described = images.descriptor(data, kind)
        blob(described).write_bytes(data)
        return described

    (entry,) = index["manifests"]
    manifest = json.loads(blob(entry).read_text())
    config = json.loads(blob(manifest["config"]).read_text())
    config["rootfs"]["diff_ids"].append(images.digest_of(more.plain))
    manifest["layers"].append(put(more.blob, f"{images.OCI}layer.v1.tar{more.how}"))
    manifest["config"] = put(json.dumps(config).encode(), images.CONFIG)
    entry |= put(json.dumps(manifest).encode(), images.MANIFEST)
    (where / "index.json").write_text(json.dumps(index))

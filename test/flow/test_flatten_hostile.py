"""Images that mean harm, or came to some: one line, nothing published, and no more memory than an honest one takes."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
from pathlib import Path

import pytest
import pyzstd
from fixtures import images
from fixtures import layers as odd
from fixtures.layers import END, directory, extension, file, layer, link, padded, raw_header, record, symlink


@pytest.fixture
def flatten(cmd, tmp_path):
    return odd.Flatten(cmd, tmp_path)


def within(megabytes: int, cmd, *argv: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose address space is limited, each of its processes for itself."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    return subprocess.run(argv, env=cmd.env, capture_output=True, check=False, preexec_fn=limit)


# Size


@pytest.mark.parametrize("pack", [gzip.compress, pyzstd.compress], ids=["gzip", "zstd"])
@pytest.mark.evil(59)
def test_a_decompression_bomb_is_stopped_at_the_limit_and_told(flatten, pack):
    plain = layer(file("bomb", bytes(80 << 20)))
    bomb = odd.Packed(pack(plain), plain, "+gzip" if pack is gzip.compress else "+zstd")
    told = flatten.refuse(bomb, words=["--max-size", "50M"])
    assert "--max-size" in told
    assert "52428800 bytes" in told


@pytest.mark.evil(59)
def test_zeros_after_the_end_of_a_layer_count_too(flatten):
    plain = layer(file("a")) + bytes(80 << 20)
    assert "unpacks to more than" in flatten.refuse(plain, words=["--max-size", "50M"])


@pytest.mark.evil(59)
def test_many_layers_together_stay_under_the_limit(flatten):
    stack = [layer(file(str(n), bytes(20 << 20))) for n in range(4)]
    assert "--max-size" in flatten.refuse(*stack, words=["--max-size", "50M"])
    assert odd.names(flatten(*stack[:2], words=["--max-size", "50M"])) == {"0", "1"}


@pytest.mark.evil(59)
def test_a_bomb_in_a_pipe_is_not_spooled_past_the_limit(flatten, cmd, tmp_path):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(layer(file("bomb", bytes(80 << 20)))))
    for name in (f"docker-archive:{bomb}", f"oci-archive:{bomb}"):
        assert "--max-size" in flatten.refuse_name(name, words=["--max-size", "50M"])
    with bomb.open("rb") as stdin:
        pipe = subprocess.Popen(["cat"], stdin=stdin, stdout=subprocess.PIPE)
        command = ["sh-flatten", "--max-size", "50M", "-"]
        done = subprocess.run(command, stdin=pipe.stdout, env=cmd.env, capture_output=True, check=False)
        pipe.stdout.close()
        pipe.wait()
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"--max-size" in done.stderr


@pytest.mark.evil(59)
def test_a_sparse_file_of_8_eib_is_refused(flatten):
    size = b"%d" % ((8 << 60) - 1)
    records = record("GNU.sparse.size", size) + record("GNU.sparse.numblocks", b"1") + record("GNU.sparse.map", b"0,1")
    plain = extension(b"x", records) + raw_header(b"s", size=b"%011o\0" % 1) + padded(b"x") + END
    assert "it holds more than" in flatten.refuse(plain)


# Memory


@pytest.mark.parametrize("kind", [b"x", b"L", b"g"])
@pytest.mark.evil(59)
def test_an_extended_header_of_a_gigabyte_takes_no_memory(flatten, cmd, tmp_path, kind):
    def pieces():
        yield raw_header(b"x", kind, size=b"%011o\0" % (1 << 30))
        for _ in range(1 << 10):
            yield bytes(1 << 20)

    path = tmp_path / "layer.tar.gz"
    with gzip.open(path, "wb", 1) as out:
        out.writelines(pieces())
    done = within(700, cmd, "sh-flatten", str(path))
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"extended headers of" in done.stderr


@pytest.mark.evil(59)
def test_extended_headers_without_end_take_no_memory(cmd, tmp_path):
    path = tmp_path / "layer.tar.gz"
    with gzip.open(path, "wb", 1) as out:
        for _ in range(1000):
            out.write(extension(b"x", record("comment", b"x" * (1 << 19))))
    done = within(700, cmd, "sh-flatten", str(path))
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


@pytest.mark.evil(59)
def test_a_sparse_map_without_end_takes_no_time(cmd, tmp_path):
    path = tmp_path / "layer.tar.gz"
    with gzip.open(path, "wb", 1) as out:
        out.write(raw_header(b"s", b"S", magic=b"ustar  \0", rest=bytes(41) + bytes(96) + b"\1"))
        for _ in range(500):
            out.write(b"\1" * (1 << 20))
    done = cmd("sh-flatten", path, timeout=20)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "sparse map" in done.stderr


@pytest.mark.evil(59)
def test_100000_tiny_entries_take_little_memory(cmd, tmp_path):
    path = tmp_path / "layer.tar.gz"
    with gzip.open(path, "wb", 1) as out:
        for folder in range(100):  # tar2sqfs needs time that grows with the square of what one directory holds
            out.write(b"".join(raw_header(b"d%d/f%d" % (folder, n)) for n in range(1000)))
        out.write(END)
    done = within(400, cmd, "sh-flatten", "-j", "1", str(path))
    assert done.returncode == 0, done.stderr


# Names and links


@pytest.mark.evil(59)
def test_a_path_of_2000_components_is_kept(flatten):
    deep = "/".join(["d"] * 2000)
    tree = flatten(layer(file(deep)), umoci=False)
    assert tree[deep].content == os.fsencode(deep)


@pytest.mark.evil(59)
def test_symlinks_that_multiply_a_path_are_refused(flatten):
    deep = "/".join(["d" * 100] * 30)
    assert "longer than 4095 bytes" in flatten.refuse(layer(symlink("s", deep), file(f"s/{deep}/f")))


def test_long_chains_of_symlinks_are_followed_as_far_as_linux_does(flatten):
    chain = [symlink(f"s{n}", f"s{n + 1}") for n in range(39)]
    tree = flatten(layer(*chain, symlink("s39", "d"), directory("d"), file("s0/f")), umoci=False)
    assert "d/f" in tree
    longer = [symlink(f"s{n}", f"s{n + 1}") for n in range(41)]
    assert "too many symlinks" in flatten.refuse(layer(*longer, file("s0/f")))


@pytest.mark.evil(59)
def test_names_that_two_readers_would_read_differently_are_as_we_judged_them(flatten):
    plain = raw_header(b"good", magic=b"ustar  \0", prefix=b"../../evil")
    plain += extension(b"L", b"../../evil\0") + extension(b"x", record("path", b"fine")) + raw_header(b"x") + END
    assert odd.names(flatten(plain, umoci=False)) == {"good", "fine"}


@pytest.mark.evil(59)
def test_an_escape_sequence_in_a_name_is_shown_not_obeyed(flatten):
    told = flatten.refuse(layer(file("../\x1b[2J\nsh-flatten: all is well")))
    assert "\x1b" not in told
    assert "\\x1b[2J\\nsh-flatten: all is well" in told


# Damage


@pytest.mark.parametrize("pack", [gzip.compress, pyzstd.compress], ids=["gzip", "zstd"])
@pytest.mark.evil(60)
def test_a_truncated_or_damaged_layer_is_refused(flatten, pack):
    plain = layer(*(file(str(n), os.urandom(1000)) for n in range(100)))
    good = pack(plain)
    how = "+gzip" if pack is gzip.compress else "+zstd"
    flatten.refuse(odd.Packed(good[:-50], plain, how))
    flatten.refuse(odd.Packed(good[: len(good) // 2], plain, how))
    flatten.refuse(odd.Packed(good[:40_000] + b"damaged" + good[40_007:], plain, how))
    flatten.refuse(odd.Packed(good + b"garbage", plain, how))


@pytest.mark.evil(60)
def test_a_layer_cut_at_an_entry_is_refused_by_its_digest(flatten):
    plain = layer(file("a"), file("b"))
    assert "and the image's config promises sha256:" in flatten.refuse(odd.Packed(gzip.compress(plain[:1024]), plain))


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.evil(60)
def test_a_layer_of_another_content_is_refused_wherever_it_lies(flatten, number):
    stack = [odd.packed(layer(file(str(n)))) for n in range(3)]
    stack[number] = odd.Packed(stack[number].blob, b"something else")
    told = flatten.refuse(*stack)
    assert f"refused layer {number + 1} of " in told
    assert "pull it again" in told


@pytest.mark.evil(60)
def test_a_wrong_layer_whose_every_entry_is_hidden_is_refused_too(flatten):
    bottom = odd.Packed(gzip.compress(layer(file("a"))), b"something else")
    assert "refused layer 1 of" in flatten.refuse(bottom, layer(odd.opaque("")))
    assert "refused layer 1 of" in flatten.refuse(bottom, layer(odd.opaque(""), file("t"), file("t")))


@pytest.mark.evil(60)
def test_a_config_of_another_number_of_layers_is_refused(flatten):
    config = {"rootfs": {"diff_ids": [images.digest_of(b"")]}}
    told = flatten.refuse(layer(file("a")), layer(file("b")), config=config)
    assert "its manifest has 2 layers, its config 1" in told


@pytest.mark.parametrize(
    "config", [b"", b"not JSON", b"[]", b'"text"', b"[" * 100_000, b'{"config": 5}', b'{"rootfs": {"diff_ids": [5]}}']
)
@pytest.mark.evil(60)
def test_a_config_that_is_none_is_refused(flatten, config):
    flatten.refuse(layer(file("a")), config=config)


@pytest.mark.evil(60)
def test_a_config_over_4_mib_is_refused(flatten):
    padding = json.dumps({"history": ["x" * (5 << 20)]}).encode()
    flatten.refuse(layer(file("a")), config=padding)


def test_a_config_of_just_under_4_mib_is_kept_word_for_word(flatten, cmd, tmp_path):
    said = b'{ "history" : ["' + b"x" * ((4 << 20) - 100) + b'"],\n\t"config": {"Labels": {"a": "\\u00e9"}} }'
    made = cmd.ok("sh-flatten", odd.layout(tmp_path / "layout", layer(file("a")), config=said))
    assert odd.tree(made, config=True)[".shoebox/config.json"].content == said
    assert said in Path(made).with_suffix(".json").read_bytes()


@pytest.mark.parametrize(
    "theirs",
    [
        [directory(".shoebox"), file(".shoebox/config.json", '{"theirs": 1}')],
        [symlink(".shoebox", "elsewhere"), directory("elsewhere"), file("elsewhere/config.json", "theirs")],
        [symlink(".shoebox", "/etc"), directory("etc")],
        [file(".shoebox")],
        [directory(".shoebox"), symlink(".shoebox/config.json", "../a")],
        [directory(".shoebox"), directory(".shoebox/config.json"), file(".shoebox/config.json/x")],
        [file("a"), link(".shoebox", "a")],
        [directory(".shoebox"), file(".shoebox/.wh.config.json")],
    ],
)
@pytest.mark.evil(62)
def test_the_config_in_an_image_is_its_own_whatever_a_layer_put_there(flatten, cmd, tmp_path, theirs):
    made = cmd.ok("sh-flatten", odd.layout(tmp_path / "layout", layer(*theirs)))
    tree = odd.tree(made, config=True)
    known = json.loads(tree[".shoebox/config.json"].content)
    assert known["config"] == {"Env": ["PATH=/bin"], "Cmd": ["sh"]}
    assert tree[".shoebox/config.json"].mode == 0o644
    assert not any(name.startswith(("etc/", "elsewhere/config.json.")) for name in tree)
    if "elsewhere" in tree:
        assert tree["elsewhere/config.json"].content == b"theirs"

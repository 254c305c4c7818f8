"""Sources: what a name means, and archives read at several places at once."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from pathlib import Path

import pytest
from fixtures import images
from fixtures import layers as odd

from shoebox import archive, sources, streams
from shoebox.fail import USAGE, Fail

LIMIT = 1 << 30


def read(name: str, where: Path, limit: int = LIMIT) -> sources.Source:
    """Read a source, spooled into a directory if need be."""
    return sources.read(name, str(where), limit)


def contents(source: sources.Source) -> list[bytes]:
    """Return the bytes of a source's layers, as stored."""
    found = []
    for layer in source.layers:
        with layer.open() as stream:
            found.append(stream.read())
    return found


def saved(where: Path, **more: object) -> tuple[Path, list[bytes]]:
    """Write a docker archive of two layers; more: fields of its entry in manifest.json."""
    plain = [odd.layer(odd.file("a", b"x" * 300_000)), odd.layer(odd.file("b"))]
    config = json.dumps({"rootfs": {"diff_ids": [images.digest_of(data) for data in plain]}}).encode()
    entry = {"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["1/layer.tar", "2/layer.tar"]} | more
    parts = [odd.file("1/layer.tar", plain[0]), odd.file("2/layer.tar", plain[1]), odd.file("c.json", config)]
    (where / "a.tar").write_bytes(odd.layer(*parts, odd.file("manifest.json", json.dumps([entry]).encode())))
    return where / "a.tar", plain


def test_a_layout_gives_layers_config_digest_name_and_platform(tmp_path):
    stack = [odd.layer(odd.file("a")), odd.layer(odd.file("b"))]
    name = odd.layout(tmp_path / "l", *stack, name="quay.io/x/app:7")
    source = read(name, tmp_path)
    made = odd.image(*stack)
    assert (source.manifest, str(source.reference)) == (made.digest, "quay.io/x/app:7")
    assert source.platform == f"linux/{images.ARCHITECTURE}"
    assert source.config in made.blobs.values()
    assert [gzip.decompress(data) for data in contents(source)] == stack
    assert [layer.diff_id for layer in source.layers] == [images.digest_of(plain) for plain in stack]
    assert source.size == sum(len(blob) for blob in contents(source))


def test_a_mere_tag_is_no_reference(tmp_path):
    name = odd.layout(tmp_path / "l", odd.layer(), name="12")
    assert read(name, tmp_path).reference is None


def test_an_archive_is_read_at_several_places_at_once(tmp_path):
    path, plain = saved(tmp_path)
    source = read(f"docker-archive:{path}", tmp_path)
    streams = [layer.open() for layer in source.layers for _ in range(3)]
    pieces: list[list[bytes]] = [[] for _ in streams]
    for _ in range(1000):
        for stream, piece in zip(streams, pieces):
            piece.append(stream.read(1000))
    assert [b"".join(piece) for piece in pieces] == [data for data in plain for _ in range(3)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_archive_from_a_pipe_is_spooled_and_leaves_no_name(tmp_path, pack):
    path, plain = saved(tmp_path)
    spool = tmp_path / "spool"
    spool.mkdir()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(pack(path.read_bytes())))
    writer.start()
    source = read(f"docker-archive:{fifo}", spool)
    writer.join()
    assert contents(source) == plain
    assert list(spool.iterdir()) == []


def test_what_is_spooled_is_limited(tmp_path):
    path, _ = saved(tmp_path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(Fail, match="more than --max-size"):
        read(f"docker-archive:{path}", tmp_path, limit=200_000)


def test_an_archive_of_too_many_parts_is_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_PARTS", 100)
    (tmp_path / "a.tar").write_bytes(odd.layer(*(odd.file(str(n)) for n in range(101))))
    with pytest.raises(Fail, match="more than 100 parts"):
        read(f"oci-archive:{tmp_path}/a.tar", tmp_path)


def test_a_docker_archives_layers_must_be_as_many_as_its_config_says(tmp_path):
    path, _ = saved(tmp_path, Layers=["1/layer.tar"])
    with pytest.raises(Fail, match="1 layers, and 2 in its config"):
        read(f"docker-archive:{path}", tmp_path)


@pytest.mark.parametrize("tags", [None, [], ["not a REFERENCE at all"], [5], "app:1"])
def test_a_docker_archive_without_a_usable_name_has_none(tmp_path, tags):
    path, plain = saved(tmp_path, RepoTags=tags)
    source = read(f"docker-archive:{path}", tmp_path)
    assert source.reference is None
    assert contents(source) == plain


def test_a_tar_is_one_layer_that_can_be_opened_again_and_again(tmp_path):
    plain = odd.layer(odd.file("a"))
    (tmp_path / "root.tar").write_bytes(plain)
    source = read(f"{tmp_path}/root.tar", tmp_path)
    assert contents(source) == contents(source) == [plain]
    assert (source.config, source.manifest, source.reference, source.layers[0].diff_id) == (None, None, None, "")


def test_a_word_that_is_no_file_is_wrong_usage_and_told_how_to_pull_it(tmp_path):
    with pytest.raises(Fail, match=r"sh-pull debian:12 \| sh-flatten") as caught:
        read("debian:12", tmp_path)
    assert caught.value.status == USAGE


def test_a_slice_ends_where_it_ends(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    with (tmp_path / "f").open("rb") as file:
        slices = [
            io.BufferedReader(streams.Slice(file.fileno(), start, size)) for start, size in ((2, 3), (8, 5), (4, 0))
        ]
        assert [piece.read() for piece in slices] == [b"234", b"89", b""]

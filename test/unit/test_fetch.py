"""What is fetched of an image: which image, from where, how often it is tried."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures.images import LAYER, MANIFEST, Image, descriptor, image, index

from shoebox import fail, layout, lookup, oci, parts, platforms
from shoebox import fetch as fetching
from shoebox.fail import Fail
from shoebox.reference import parse

DATA = bytes(range(256)) * 8192  # 2 MiB
BLOB = oci.Descriptor(LAYER, "sha256:" + hashlib.sha256(DATA).hexdigest(), len(DATA))
AMD64 = platforms.Platform("linux", "amd64")
REFERENCE = parse("r.org/a:1")


class Fake:
    """A registry: manifests by name, and one blob that breaks off after so many bytes, once for each of `breaks`."""

    def __init__(self, *images: Image, breaks: tuple[int, ...] = (), data: bytes = DATA) -> None:
        self.manifests = {made.digest: (made.manifest, made.media_type) for made in images}
        self.manifests["1"] = (images[0].manifest, images[0].media_type) if images else (b"", "")
        self.breaks = list(breaks)
        self.data = data
        self.starts: list[int] = []

    def manifest(self, name: str) -> tuple[bytes, str]:
        return self.manifests[name]

    def prove(self, _descriptor: oci.Descriptor) -> None:
        self.starts.append(-1)
        raise Fail("not for you")

    def each(self, fetch: Callable[[Fake], None]) -> None:
        fetch(self)

    def blob(self, _descriptor: oci.Descriptor, start: int) -> tuple[int, Iterator[bytes]]:
        self.starts.append(start)
        return start, self.pieces(start)

    def pieces(self, start: int) -> Iterator[bytes]:
        count = self.breaks.pop(0) if self.breaks else len(self.data)
        yield self.data[start : start + count]
        if start + count < len(self.data):
            raise ConnectionError("it broke")


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(fetching, "time", SimpleNamespace(sleep=lambda _seconds: None))
    return layout.prepare(str(tmp_path))


def fetch(blobs: str, source: Fake) -> int:
    """Fetch the blob; return what the meter shows in the end."""
    shown: list[int] = []
    fetching._fetch(blobs, source, BLOB, shown.append, threading.Event())
    assert layout.check_blob(blobs, BLOB) == "good"
    return sum(shown)


def test_a_broken_connection_is_taken_up_where_it_broke(blobs: str) -> None:
    source = Fake(breaks=(1000, 500))
    assert fetch(blobs, source) == BLOB.size
    assert source.starts == [0, 1000, 1500]


def test_three_breaks_without_progress_are_too_many_and_the_next_pull_goes_on(blobs: str) -> None:
    source = Fake(breaks=(1000, 0, 10))
    with pytest.raises(Fail, match=r"breaks off .*: pull again") as caught:
        fetch(blobs, source)
    assert caught.value.status == fail.LATER
    assert fetch(blobs, source) == BLOB.size
    assert source.starts == [0, 1000, 1000, 1010]


def test_breaks_with_progress_between_them_do_not_add_up(blobs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_PROGRESS", 1000)
    assert fetch(blobs, Fake(breaks=(1000, 10, 1000, 10, 1000, 10, 1000))) == BLOB.size


def test_a_corrupt_blob_is_refused_and_not_asked_for_again(blobs: str) -> None:
    source = Fake(data=DATA[:-1] + b"x")
    with pytest.raises(Fail, match="the registry sent something else") as caught:
        fetch(blobs, source)
    assert (caught.value.status, source.starts) == (fail.FAILED, [0])
    assert not list(Path(blobs).iterdir())


def test_what_was_left_in_a_part_may_be_wrong_and_is_then_fetched_again(blobs: str) -> None:
    with parts.take(blobs, BLOB, lambda: None) as part:
        part.write(b"x" * 1000)
    source = Fake()
    assert fetch(blobs, source) == BLOB.size
    assert source.starts == [1000, 0]


def test_more_than_a_blobs_size_is_refused(blobs: str) -> None:
    with pytest.raises(Fail, match="too many bytes"):
        fetch(blobs, Fake(data=DATA + b"x"))
    assert not list(Path(blobs).iterdir())


def test_a_blob_that_is_there_is_not_asked_for(blobs: str) -> None:
    fetch(blobs, Fake())
    source = Fake()
    assert fetch(blobs, source) == BLOB.size
    assert source.starts == []


@pytest.mark.parametrize("size", [1, len(DATA)])
def test_a_part_of_anothers_pull_is_gone_on_with_if_the_registry_has_the_blob_for_us(blobs: str, size: int) -> None:
    with parts.take(blobs, BLOB, lambda: None) as part:
        part.write(DATA[:size])
    source = Fake()
    with pytest.raises(Fail, match="not for you"):
        fetching._fetch(blobs, source, BLOB, lambda _bytes: None, threading.Event(), prove=True)
    assert source.starts == [-1]
    assert layout.check_blob(blobs, BLOB) == "absent"
    fetch(blobs, source)  # of whom nothing has to be proved


def test_an_empty_blob_needs_no_request(blobs: str) -> None:
    empty = oci.Descriptor(LAYER, "sha256:" + hashlib.sha256(b"").hexdigest(), 0)
    source = Fake()
    fetching._fetch(blobs, source, empty, lambda _count: None, threading.Event())
    assert (layout.check_blob(blobs, empty), source.starts) == ("good", [])


def test_a_thread_that_nobody_waits_for_stops(blobs: str) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        fetching._fetch(blobs, Fake(), BLOB, lambda _count: None, stop)


def test_an_index_leads_to_the_platforms_manifest() -> None:
    amd64, arm64 = image(), image(architecture="arm64")
    outer = index((arm64, {"os": "linux", "architecture": "arm64"}), (amd64, {"os": "linux", "architecture": "amd64"}))
    found = lookup.resolve(Fake(outer, amd64, arm64), REFERENCE, AMD64)
    assert (found.descriptor.digest, found.data, found.descriptor.platform) == (amd64.digest, amd64.manifest, AMD64)
    assert found.indexes == (outer.manifest,)


def test_an_index_of_indexes_is_followed_to_a_limit() -> None:
    made = [image()]
    for _ in range(oci.MAX_DEPTH - 1):
        made.insert(0, index((made[0], None)))
    assert lookup.resolve(Fake(*made), REFERENCE, AMD64).data == made[-1].manifest
    made.insert(0, index((made[0], None)))
    with pytest.raises(Fail, match="nested"):
        lookup.resolve(Fake(*made), REFERENCE, AMD64)


def test_a_manifest_of_another_digest_or_size_is_refused() -> None:
    inner, other = image(), image(b"other")
    outer = index((inner, None))
    source = Fake(outer, inner)
    source.manifests[inner.digest] = (other.manifest, other.media_type)
    with pytest.raises(Fail, match="something else for"):
        lookup.resolve(source, REFERENCE, AMD64)
    source.manifests["sha256:" + "0" * 64] = source.manifests["1"]
    with pytest.raises(Fail, match="something else: the manifest"):
        lookup.resolve(source, parse("r.org/a@sha256:" + "0" * 64), AMD64)


@pytest.mark.parametrize("served_as", [oci.OCI_INDEX, oci.DOCKER_MANIFEST])
def test_a_manifest_served_as_something_else_is_refused(served_as: str) -> None:
    inner = image()
    outer = index((inner, None))
    source = Fake(outer, inner)
    source.manifests[inner.digest] = (inner.manifest, served_as)
    with pytest.raises(Fail, match="said to be"):
        lookup.resolve(source, REFERENCE, AMD64)


def test_a_manifest_that_the_index_calls_an_index_is_refused() -> None:
    inner = image()
    document = json.loads(index((inner, None)).manifest)
    document["manifests"] = [descriptor(inner.manifest, oci.DOCKER_LIST)]
    outer = Image(json.dumps(document).encode(), oci.OCI_INDEX)
    with pytest.raises(Fail, match="said to be"):
        lookup.resolve(Fake(outer, inner), REFERENCE, AMD64)


@pytest.mark.parametrize(
    ("architecture", "wanted", "good"),
    [
        ("amd64", "linux/amd64", True),
        ("", "linux/amd64", True),
        ("arm64", "linux/amd64", False),
        ("arm64", "linux/arm64", True),
        ("arm", "linux/arm/v6", True),
    ],
)
def test_an_image_of_another_platform_is_refused_unless_an_index_chose_it(
    architecture: str, wanted: str, good: bool
) -> None:
    config = oci.parse_config(json.dumps({"os": "linux", "architecture": architecture}).encode())
    platform = platforms.parse_platform(wanted)
    chosen = oci.Descriptor(MANIFEST, BLOB.digest, 1, platform)
    fetching._check_platform(chosen, config, platform)
    if good:
        fetching._check_platform(BLOB, config, platform)
    else:
        with pytest.raises(
            Fail, match="it is for linux/arm64, not for linux/amd64: pull it with --platform=linux/arm64"
        ):
            fetching._check_platform(BLOB, config, platform)

"""The lines between a user and the image account: written in one way, and nothing else is understood."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import request
from shoebox.credentials import Credentials
from shoebox.fail import Fail
from shoebox.request import Request

FULL = "docker.io/library/debian:12"


@pytest.mark.parametrize(
    "asked",
    [
        Request("pull", (FULL,), "linux/arm64", ("alice", "b.ob-1"), ("hpc42",)),
        Request("pull", (FULL, "r.org:5000/a@sha256:" + "0" * 64)),
        Request("pending"),
        Request("import", ("localhost/jane/app:1",), "", ("bob",), (), private=True),
        Request("import", ("localhost/jane/app:1",)),
        Request("remove", ("localhost/jane/app:1",)),
    ],
)
def test_a_request_is_read_as_it_was_written(asked: Request) -> None:
    line = request.dump(asked)
    assert line.endswith(b"\n")
    assert request.parse(line[:-1]) == asked


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_a_failure(line: bytes) -> None:
    for start in (b"", b"shoebox 1 pull ", b"shoebox 1 pull reference=", b"shoebox 1 import private="):
        try:
            asked = request.parse(start + line)
        except Fail:
            continue
        assert request.dump(asked) == start + line + b"\n"


@pytest.mark.parametrize(
    "words",
    [
        "import",
        "import reference=localhost/a/b:1 reference=localhost/a/c:1",
        "import reference=localhost/a/b",
        "import reference=localhost/a/b:1 platform=linux/arm64",
        "import reference=localhost/a/b:1 private=no",
        "import reference=localhost/a/b:1 private=yes private=yes",
        "remove reference=localhost/a/b:1 private=yes",
        "remove reference=localhost/a/b:1 user=a",
        "pull reference=localhost/a/b:1 private=yes",
        "pending private=yes",
    ],
)
def test_a_word_that_its_kind_does_not_have_is_refused(words: str) -> None:
    with pytest.raises(Fail, match="cannot understand the request"):
        request.parse(f"shoebox 1 {words}".encode())


@given(st.lists(st.lists(st.binary(max_size=40)), max_size=3))
def test_streams_are_cut_into_frames_and_each_has_an_end(streams: list[list[bytes]]) -> None:
    sent = b"".join(map(bytes, request.frames(streams)))
    found, now = [], []
    while sent:
        size = int.from_bytes(sent[:4], "big")
        now.append(sent[4 : 4 + size])
        sent = sent[4 + size :]
        if not size:
            found.append(b"".join(now))
            now = []
    assert (found, now) == ([b"".join(pieces) for pieces in streams], [])


def test_no_frame_is_larger_than_what_is_taken() -> None:
    sizes = [len(frame) for frame in request.frames([[bytes(request.FRAME * 2 + 5)]])]
    assert sizes == [4, request.FRAME, 4, request.FRAME, 4, 5, 4]


@pytest.mark.parametrize("name", ["", "-x", "--mode=777", "a b", "a,b", "a/b", "a:b", "a\nb", "é", ".a", "a" * 257])
def test_what_is_no_name_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(Fail, match="not the name of a user or a group"):
        request.check_name(name)


@pytest.mark.parametrize(
    "found",
    [
        None,
        Credentials("jane", "päss\"word' \\"),
        Credentials(identity_token="t"),
        Credentials(registry_token="t"),
    ],
)
def test_credentials_are_read_as_they_were_written(found: Credentials | None) -> None:
    assert request.parse_credentials(request.dump_credentials(found)) == found


@pytest.mark.parametrize(
    "said",
    [
        [],
        "secret",
        {"username": "secret"},
        {"password": 1},
        {"password": "secret", "more": "x"},
        {"registry_token": "secret\r\nHost: x"},
        {"registry_token": "secret x"},
        {"password": "secret" * 2000},
    ],
)
def test_credentials_that_are_none_are_refused_and_not_shown(said: object) -> None:
    with pytest.raises(Fail) as caught:
        request.parse_credentials(json.dumps(said).encode())
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_credentials_nested_without_end_are_refused() -> None:
    with pytest.raises(Fail):
        request.parse_credentials(b"[" * request.MOST)

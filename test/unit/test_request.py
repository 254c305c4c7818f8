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
    ],
)
def test_a_request_is_read_as_it_was_written(asked: Request) -> None:
    line = request.dump(asked)
    assert line.endswith(b"\n")
    assert request.parse(line[:-1]) == asked


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_a_failure(line: bytes) -> None:
    for start in (b"", b"shoebox 1 pull ", b"shoebox 1 pull reference="):
        try:
            asked = request.parse(start + line)
        except Fail:
            continue
        assert request.dump(asked) == start + line + b"\n"


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

"""References: docker's grammar, its defaults, and what is said of wrong ones."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoebox.fail import USAGE, Fail
from shoebox.reference import Reference, parse

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

# github.com/distribution/reference, regexp.go
LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
HOST = rf"(?:{LABEL}(?:\.{LABEL})*|\[[a-fA-F0-9:.]+\])(?::[0-9]+)?"
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
TAIL = r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
WITH_HOST = re.compile(rf"({HOST})/{COMPONENT}(?:/{COMPONENT})*{TAIL}", re.ASCII)
WITHOUT = re.compile(rf"{COMPONENT}(?:/{COMPONENT})*{TAIL}", re.ASCII)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("a/b", "docker.io/a/b:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/a/b:1", "docker.io/a/b:1"),
        ("host:8080/a", "host:8080/a:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("Host/a", "Host/a:latest"),
        ("host.org/a/b/c:T.x_y-z", "host.org/a/b/c:T.x_y-z"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        (f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}"),
        (f"a:tag@{DIGEST}", f"docker.io/library/a@{DIGEST}"),
        ("docker://quay.io/a/b", "quay.io/a/b:latest"),
        ("nvcr.io#nvidia/pytorch:24.01-py3", "nvcr.io/nvidia/pytorch:24.01-py3"),
        ("a__b--c.d_e", "docker.io/library/a__b--c.d_e:latest"),
    ],
)
def test_a_reference_means_what_docker_takes_it_for(text: str, full: str) -> None:
    assert str(parse(text)) == full


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 1),
        ("Debian", 1),
        ("a:", 3),
        ("a:-x", 3),
        ("a:" + "x" * 129, 131),
        ("a/", 3),
        ("a//b", 3),
        ("a/-b", 3),
        ("a_", 2),
        ("a___b", 2),
        ("a..b", 2),
        ("host.org/../x", 10),
        ("host:port/a", 6),
        ("host:70000/a", 6),
        ("-host.org/a", 1),
        ("a b", 2),
        ("a@sha256:../../x", 10),
        ("a@sha256:" + "A" * 64, 10),
        ("a@md5:" + "a" * 32, 3),
        ("a/é", 3),
    ],
)
def test_a_wrong_reference_is_refused_with_the_position_of_what_is_wrong(text: str, position: int) -> None:
    with pytest.raises(Fail, match=f"character {position}:") as caught:
        parse(text)
    assert caught.value.status == USAGE


@given(st.text(max_size=300) | st.text("aA0._-/:@#[] \n", max_size=30))
def test_any_text_is_a_reference_or_a_failure_of_one_kind(text: str) -> None:
    try:
        reference = parse(text)
    except Fail as error:
        status = error.status
    else:
        status = USAGE
        assert parse(str(reference)) == reference
        with suppress(Fail):
            assert not {"..", "", "."} & set(reference.stem.split("/"))
    assert status == USAGE


@given(st.text("aZ0._-/:", max_size=14))
@example("a.b/c")
@example("a:1/b")
@example("A/b")
@example("localhost/a")
@example("a.-b/c")
@example("a..b/c")
@example("a-/b")
@example("a.b:/c")
@example("docker.io/a")
def test_the_grammar_is_distributions_own(text: str) -> None:
    host, slash, _ = text.partition("/")
    has_host = slash and (host == "localhost" or any(c in host for c in ".:") or host.lower() != host)
    expected = bool((WITH_HOST if has_host else WITHOUT).fullmatch(text))
    try:
        parse(text)
    except Fail:
        assert not expected
    else:
        assert expected


def test_a_name_of_more_than_255_characters_is_refused() -> None:
    with pytest.raises(Fail, match="longer than 255"):
        parse("host.org/" + "a" * 250)


def test_a_digest_wins_over_a_tag_in_what_a_store_calls_it() -> None:
    assert parse(f"a:1@{DIGEST}").stem == f"docker.io/library/a/@sha256-{HEX}"
    assert parse("a:1").stem == "docker.io/library/a/1"


@pytest.mark.parametrize(
    "text", ["r.org/seven/1.sqfs:1", "r.org/1.sqfs/a", f"sha256-{HEX}.json/a", f"sha256-{HEX}.sqfs/a"]
)
def test_no_name_in_a_store_takes_the_place_of_a_file_there(text: str) -> None:
    with pytest.raises(Fail, match="no part before the last may look like a file"):
        _ = parse(text).stem
    assert parse("r.org/a:1.sqfs").stem == "r.org/a/1.sqfs"


def test_references_compare_and_hash_by_what_they_name() -> None:
    assert {parse("debian"), parse("docker.io/library/debian:latest")} == {
        Reference("docker.io", "library/debian", "latest", "")
    }

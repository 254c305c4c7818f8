"""Platforms: what machines are called, and which runs what."""

from __future__ import annotations

import pytest

from shoebox import platforms
from shoebox.fail import USAGE, Fail


@pytest.mark.parametrize("text", ["linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux/../x"])
def test_what_is_no_platform_is_wrong_usage(text: str) -> None:
    with pytest.raises(Fail, match="not a platform") as caught:
        platforms.parse_platform(text)
    assert caught.value.status == USAGE


def test_machines_are_known_by_their_go_names() -> None:
    names = {"x86_64": "linux/amd64", "aarch64": "linux/arm64", "armv6l": "linux/arm/v6", "ppc64le": "linux/ppc64le"}
    assert {machine: str(platforms.native(machine)) for machine in names} == names


def test_a_platform_is_written_as_it_is_read():
    for text in ("linux/amd64", "linux/arm/v6", "windows/amd64", "linux/arm64"):
        assert str(platforms.parse_platform(text)) == text


def test_what_everyone_means_need_not_be_said():
    for text, short in {
        "linux/arm64/v8": "linux/arm64",
        "linux/amd64/v1": "linux/amd64",
        "Linux/x86_64": "linux/amd64",
    }.items():
        assert str(platforms.parse_platform(text)) == short
    assert str(platforms.parse_platform("linux/arm")) == "linux/arm/v7"


@pytest.mark.parametrize(
    ("offered", "wanted", "runs"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/arm64/8", "linux/arm64", True),
        ("linux/amd64/v2", "linux/amd64/v3", True),
        ("linux/amd64/v3", "linux/amd64", False),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/arm/v6", "linux/arm/v7", True),
        ("linux/arm/v7", "linux/arm64", False),
        ("windows/amd64", "linux/amd64", False),
        ("linux/amd64/odd", "linux/amd64", False),
        ("linux/amd64/odd", "linux/amd64/odd", True),
    ],
)
def test_a_machine_runs_its_own_variant_and_lower_ones(offered, wanted, runs):
    first, second = (platforms.Platform(*text.split("/")) for text in (offered, wanted))
    assert bool(platforms.runs_on(first, second)) == runs

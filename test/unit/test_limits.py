"""What the image account does for nobody."""

from __future__ import annotations

import pytest

from shoebox import limits
from shoebox.fail import Fail
from shoebox.oci import Descriptor, Manifest
from shoebox.platforms import parse_platform
from shoebox.systems import System

AMD = "linux/amd64"


def systems(*said: str) -> dict[str, System]:
    return {
        f"s{n}": System(f"s{n}", [], "ssh", parse_platform(text) if text else None, "") for n, text in enumerate(said)
    }


@pytest.mark.parametrize(
    ("wanted", "said", "why"),
    [
        (AMD, (), ""),
        ("linux/arm64", (), "no machine of this site runs linux/arm64: they are linux/amd64"),
        ("linux/amd64/v2", (), "no machine"),
        (AMD, ("",), ""),
        (AMD, ("linux/arm64",), "no machine of this site runs linux/amd64: they are linux/arm64"),
        ("linux/arm64", (AMD, "linux/arm64"), ""),
        ("linux/arm/v6", ("linux/arm/v7",), ""),
        ("linux/arm/v7", ("linux/arm/v6",), "no machine"),
        ("linux/arm64", ("linux/arm64", ""), "the system 's1' would take it, too"),
        (AMD, ("linux/arm64", ""), ""),
    ],
)
def test_a_platform_is_one_of_the_sites_machines(wanted: str, said: tuple[str, ...], why: str) -> None:
    ask = (parse_platform(wanted), parse_platform(AMD), systems(*said))
    if not why:
        limits.platform(*ask)
    else:
        with pytest.raises(Fail, match=why):
            limits.platform(*ask)


def test_what_an_image_needs_is_counted_before_it_is_fetched() -> None:
    blobs = [Descriptor("layer", "sha256:" + digit * 64, 1 << 30) for digit in "abb"]
    limits.size(Manifest("m", blobs[0], tuple(blobs[1:])), "2G")
    with pytest.raises(Fail, match=r"its blobs have 2\.0G: this site makes images of 2047M at most"):
        limits.size(Manifest("m", blobs[0], tuple(blobs[1:])), "2047M")

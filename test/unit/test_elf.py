"""elf: what libraries say of themselves; damaged ones get a ValueError."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import elf


def loaded(name):
    """Return a library that this Python has loaded."""
    maps = Path("/proc/self/maps").read_text()
    path = next((path for path in re.findall(r"(/.*)$", maps, re.MULTILINE) if Path(path).name == name), None)
    if not path:
        pytest.skip(f"this Python has not loaded {name}")
    return Path(path).read_bytes()


def read(data):
    return elf.read(lambda at, length: data[at : at + length])


def test_the_c_library_tells_its_name_and_its_versions():
    libc = read(loaded("libc.so.6"))
    assert libc.soname == "libc.so.6"
    assert {"GLIBC_2.2.5", "GLIBC_2.17"} & libc.defines
    assert any(name.startswith("ld-linux") for name in libc.needs)


def test_what_a_library_needs_of_others_is_told_by_their_names():
    needs = read(loaded("libm.so.6")).needs
    assert {version for version in needs["libc.so.6"] if version.startswith("GLIBC_2.")}


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(60), b"\x7fELF\x02\x01" + bytes(58)])
def test_what_is_no_library_is_refused(data):
    with pytest.raises(ValueError, match=r"it (is|has) "):
        read(data)


@given(st.data())
def test_a_damaged_library_is_refused_or_read_and_nothing_else(data):
    library = bytearray(loaded("libm.so.6"))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.one_of(st.integers(0, 1024), st.integers(0, len(library) - 1)))
        library[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        read(bytes(library[: data.draw(st.integers(0, len(library)))]))


def test_entries_that_overlap_are_no_list():
    with pytest.raises(ValueError, match="overlap"):
        list(elf._chain(bytes((1, 0, 0, 0)) * 64, 0, 12))

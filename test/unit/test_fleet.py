"""Images to several stores at once: what the process of each store is given."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fixtures.stores import squashfs

from shoebox import fleet
from shoebox.systems import Place, System

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from shoebox.image import Image


def test_an_image_without_a_sidecar_is_hashed_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [squashfs(tmp_path / f"{n}.sqfs", b"%d" % n) for n in range(2)]
    known = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    def admit(source: Image) -> None:
        with open(source.path, "r+b") as file:  # whoever hashes it after us sees something else
            file.seek(-1, 2)
            file.write(b"x")

    def copy(source: Image, _system: System, place: Place) -> str:
        return f"{place} {source.known.sha256}"

    there = System("there", [Place("", "/a"), Place("", "/b")], "ssh", None, "")
    assert fleet.stage(map(str, paths), [there], admit, copy, named=True) == 0
    said = capfd.readouterr().out.splitlines()
    assert sorted(said) == sorted(f"{place} {digest}" for place in ("/a", "/b") for digest in known)

"""Lines that runs leave: what is written is read back, and what is odd is not believed."""

from __future__ import annotations

import os
import stat
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import record, uses
from shoebox.fail import Fail

DIGEST = "sha256:" + "ab" * 32


@given(st.text(), st.text(), st.text())
def test_any_line_is_one_line_of_six_fields_and_is_read_back(job, node, way):
    text = record.line(1795400230, 1000, DIGEST, job, node, way)
    assert text.isascii()
    assert text.isprintable()
    assert len(text.split(" ")) == 6
    assert len(text) < 3000
    assert uses.parse(text.encode(), 7, 1795400230) == uses.Use(1795400230, 7, DIGEST)


def test_bytes_that_are_no_text_and_nothing_at_all_have_a_field_too():
    assert record.line(1, 2, "", "a\udcffb", "-", "").split() == ["1", "2", "-", "a%FFb", "%2D", "-"]


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"1 2", b"1 2 sha256:ab - n fuse", b"x 2 - - n fuse", b"1 2 <b> - n fuse", b"1 2 - - n fuse x"),
        *(b"\xff" * 99, b"99999999999 2 - - n fuse"),
    ],
)
def test_other_lines_are_none(line):
    assert uses.parse(line, 0, time.time()) is None


def test_only_ranks_that_are_the_first_of_a_node_leave_lines():
    assert record.is_first({})
    assert record.is_first({"SLURM_LOCALID": "0"})
    assert not record.is_first({"SLURM_LOCALID": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "3"})


def test_a_file_that_is_long_becomes_the_older_of_two(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "MOST", 100)
    for number in range(10):
        text = record.line(1000 + number, 0, DIGEST, "", "n", "fuse")
        record.write(str(tmp_path), text, os.getuid())
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"{os.getuid()}.log", f"{os.getuid()}.log.1"]
    assert all(path.stat().st_size < 200 for path in tmp_path.iterdir())
    assert uses.last_uses(str(tmp_path)) == {DIGEST: 1009.0}


@pytest.mark.parametrize(("mode", "made"), [(0o1777, 0o600), (0o3733, 0o640)])
def test_others_read_the_file_only_where_the_site_has_chosen_a_group(tmp_path, mode, made):
    tmp_path.chmod(mode)
    record.write(str(tmp_path), "x", os.getuid())
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == made


def test_last_uses_is_of_the_latest_line_in_any_file(tmp_path):
    name = f"{os.getuid()}.log"
    (tmp_path / name).write_text(f"2000 0 {DIGEST} - n fuse\n1000 0 {DIGEST} - n fuse\n2500 0 - - n fuse\n")
    (tmp_path / f"{name}.20261101").write_text(f"3000 0 {DIGEST} - n fuse\n900 0 id:{'0' * 12} - n fuse\n")
    assert uses.last_uses(str(tmp_path)) == {DIGEST: 3000.0, f"id:{'0' * 12}": 900.0}


def test_of_a_file_that_is_too_long_the_end_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(uses, "_MOST", 200)
    line = "%d 0 " + DIGEST + " - n fuse\n"
    (tmp_path / f"{os.getuid()}.log").write_text("".join(line % number for number in range(1000, 1010)))
    assert uses.last_uses(str(tmp_path)) == {DIGEST: 1009.0}
    assert "too long" in capsys.readouterr().err


def test_files_of_other_names_are_told_in_one_line(tmp_path, capsys):
    for name in ("x", "1.log~", "-1.log", "1.LOG"):
        (tmp_path / name).write_text(f"5 0 {DIGEST} - n fuse\n")
    assert uses.last_uses(str(tmp_path)) == {}
    said = capsys.readouterr().err
    assert (said.count("\n"), "does not belong there, and 3 more" in said) == (1, True)


def test_lines_without_end_are_read_in_pieces(tmp_path):
    (tmp_path / f"{os.getuid()}.log").write_bytes(b"x" * 100_000 + b"\n" + f"5 0 {DIGEST} - n fuse\n".encode())
    assert uses.last_uses(str(tmp_path)) == {DIGEST: 5.0}


def test_a_directory_that_cannot_be_read_is_an_error_and_not_an_empty_one(tmp_path):
    with pytest.raises(OSError):
        uses.last_uses(str(tmp_path / "none"))
    assert uses.last_uses(str(tmp_path)) == {}
    (tmp_path / "1.log").symlink_to("x")  # as one that may not be opened
    with pytest.raises(Fail):
        uses.last_uses(str(tmp_path))

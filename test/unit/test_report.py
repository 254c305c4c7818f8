"""The benchmark's table: what meets its target, which way round, and what is only told."""

from __future__ import annotations

import json

from bench import report
from bench.measure import Row, Table, gain, ratio

ROWS = [
    ratio("a : b", 0.5, [1.0, 2.0, 3.0], [4.0, 4.0, 4.0]),
    gain("a, faster than b", 30, [1.0, 1.0], [20.0, 40.0]),
    gain("told alone", None, [1.0], [150.0]),
    Row("requests", 1.05, "x", 1.2, 1.2, 1.2, gate=True),
]
TABLE = Table("seconds from here and there", "s", ("cold", "warm"), {"here": [1.234, 120.0], "there": [12.34, None]})


def test_a_row_says_whether_it_meets_its_target() -> None:
    assert [row.met for row in ROWS] == [True, True, None, False]
    assert [row.value for row in ROWS] == [0.5, 30, 150, 1.2]


def test_the_table_says_which_way_round_a_target_is() -> None:
    text = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.text(ROWS, [TABLE]).splitlines()]
    assert text[2:6] == [
        ["a : b", "≤ 0.50", "0.50", "0.25 … 0.75", "yes"],
        ["a, faster than b", "≥ 30.00", "30.00", "20.00 … 40.00", "yes"],
        ["told alone", "", "150", "one round", ""],
        ["requests", "≤ 1.05", "1.20", "counted", "NO"],
    ]
    assert text[-2:] == [["here", "1.23", "120"], ["there", "12.3", ""]]


def test_the_files_have_all_that_the_table_has(tmp_path) -> None:
    report.write(tmp_path / "r", ROWS, [TABLE], {"date": "today"})
    document = json.loads((tmp_path / "r.json").read_text())
    assert [row["met"] for row in document["rows"]] == [True, True, None, False]
    assert document["tables"][0]["lines"]["there"] == [12.34, None]
    assert "told alone" not in (tmp_path / "r.svg").read_text()

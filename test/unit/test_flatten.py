"""sh-flatten's own words."""

from __future__ import annotations

import pytest

from shoebox import flatten
from shoebox.fail import USAGE, Fail


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("2K", 2048), ("3M", 3 << 20), ("500G", 500 << 30), ("1t", 1 << 40)],
)
def test_a_size_has_a_unit_of_1024_or_none(text, size):
    assert flatten._size(text) == size


@pytest.mark.parametrize("text", ["", "K", "1.5G", "-1", "1P", "1KB", "5²", "²", "0x10", " 1", "1 K"])
def test_what_is_no_size_is_wrong_usage(text):
    with pytest.raises(Fail) as caught:
        flatten._size(text)
    assert caught.value.status == USAGE


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "a.sqfs", "-d", "store", "x"],
        ["-o", "a.sqfs"],
        ["-o", "a.sqfs", "x", "y"],
        ["--tar", "-o", "a.sqfs", "x"],
        ["--tar"],
        ["--tar", "x", "y"],
        ["-c", "rar", "x"],
        ["--max-size", "much", "x"],
        ["--nonsense", "x"],
    ],
)
def test_words_that_do_not_go_together_are_wrong_usage(words):
    with pytest.raises(Fail) as caught:
        flatten.run(words)
    assert caught.value.status == USAGE

"""amounts: sizes and spans of time, read and written."""

from __future__ import annotations

import pytest

from shoebox import amounts
from shoebox.fail import USAGE, Fail


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("2K", 2048), ("3M", 3 << 20), ("500G", 500 << 30), ("1t", 1 << 40)],
)
def test_a_size_has_a_unit_of_1024_or_none(text, size):
    assert amounts.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "1.5G", "-1", "1P", "1KB", "5²", "²", "0x10", " 1", "1 K"])
def test_what_is_no_size_is_wrong_usage(text):
    with pytest.raises(Fail) as caught:
        amounts.parse_size(text)
    assert caught.value.status == USAGE


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30s", 30), ("5min", 300), ("2h", 7200), ("30d", 2592000), ("6w", 3628800), ("1y", 31536000)],
)
def test_a_span_has_a_unit(text, seconds):
    assert amounts.parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "30", "-1d", "1.5d", "1 d", "1m", "²d", "9999999999d"])
def test_what_is_no_span_is_wrong_usage(text):
    with pytest.raises(Fail) as caught:
        amounts.parse_span(text)
    assert caught.value.status == USAGE


@pytest.mark.parametrize("seconds", [2, 119, 120, 7200, 3 * 86400, 20 * 86400, 900 * 86400])
def test_a_span_that_was_written_can_be_read(seconds):
    assert 0.5 * seconds < amounts.parse_span(amounts.told_span(seconds)) <= seconds

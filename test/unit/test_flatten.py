"""sh-flatten's own words."""

from __future__ import annotations

import pytest

from shoebox import flatten
from shoebox.fail import USAGE, Fail


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

"""sh-pull's words."""

from __future__ import annotations

import pytest

from shoebox import fail, pull
from shoebox.fail import Fail


@pytest.mark.parametrize("words", [["--jobs=0"], ["-j", "x"], ["-j65"], ["--platform=linux"], ["--frob"], ["-p", ""]])
def test_wrong_words_are_wrong_usage(words: list[str]) -> None:
    with pytest.raises(Fail) as caught:
        pull.run([*words, "a"])
    assert caught.value.status == fail.USAGE

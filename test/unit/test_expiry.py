"""expiry: what goes, and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox.expiry import Held, Rules, decide

DAY, NOW, GIB = 86400, 1_700_000_000.0, 1 << 30


def image(digits, days, size=GIB, names=("docker.io/library/app:1",), pinned=False, own=True):
    return Held(digits, size, NOW - days * DAY, NOW - days * DAY, names, pinned, own)


def going(held, age=None, quota=None, match=(), keep=()):
    found, excess = decide(held, Rules(age, quota, tuple(match), tuple(keep)), NOW)
    return [one.digits for one, _ in found], excess


HELD = [image("a", 5), image("b", 40), image("c", 90, 2 * GIB), image("d", 60)]


def test_by_age_goes_what_was_not_used_for_so_long_oldest_first():
    assert going(HELD, age=50 * DAY) == (["c", "d"], 0)
    assert going(HELD, age=40 * DAY) == (["c", "d", "b"], 0)
    assert going(HELD) == ([], 0)


def test_by_quota_goes_what_has_the_oldest_use_until_the_rest_fits():
    assert going(HELD, quota=5 * GIB) == ([], 0)
    assert going(HELD, quota=4 * GIB) == (["c"], 0)
    assert going(HELD, quota=2 * GIB) == (["c", "d"], 0)
    assert going(HELD, quota=0) == (["c", "d", "b", "a"], 0)
    assert going(HELD, quota=4 * GIB, age=50 * DAY) == (["c", "d"], 0)


def test_what_is_pinned_kept_or_somebody_elses_stays_and_the_excess_is_told():
    held = [image("p", 90, pinned=True), image("k", 80, names=("x.org/a:1", "x.org/b:1")), image("o", 70, own=False)]
    assert going(held, quota=0, keep=["x.org/b:*"]) == ([], 2 * GIB)
    assert going(held, age=0, keep=["x.org/*"])[0] == []
    assert going(held, age=0)[0] == ["k"]


def test_patterns_choose_what_has_no_other_name():
    held = [
        image("a", 1, names=("x.org/a:1",)),
        image("b", 1, names=("x.org/a:2", "x.org/b:2")),
        image("n", 1, names=()),
    ]
    assert going(held, match=["x.org/a:*"])[0] == ["a"]
    assert going(held, match=["x.org/*"])[0] == ["a", "b"]
    assert going(held, match=["-"])[0] == ["n"]
    assert going(held, match=["*"])[0] == ["a", "b", "n"]
    assert going(held, match=["x.org/*"], age=2 * DAY)[0] == []
    assert going(held, match=["x.org/a:*"], quota=GIB) == (["a"], GIB)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("debian", True),
        ("debian:12", True),
        ("debian:1*", True),
        ("deb*", True),
        ("library/debian:12", True),
        ("docker.io/library/debian", True),
        ("docker.io/*", True),
        ("*/debian:12", True),
        ("*", True),
        ("debian:13", False),
        ("debia", False),
        ("ebian:12", False),
        ("x.org/library/debian", False),
        ("-", False),
    ],
)
def test_a_pattern_may_be_short_as_references_are(pattern, kept):
    held = [image("a", 1, names=("docker.io/library/debian:12",))]
    assert going(held, age=0, keep=[pattern])[0] == ([] if kept else ["a"])


IMAGES = st.lists(
    st.builds(
        image,
        st.text("abc", min_size=5, max_size=5),
        st.integers(0, 99),
        st.integers(0, 9),
        pinned=st.booleans(),
        own=st.booleans(),
    ),
    unique_by=lambda one: one.digits,
)


@given(IMAGES, st.integers(0, 50))
def test_under_a_quota_nothing_goes_that_need_not(held, quota):
    found, excess = decide(held, Rules(None, quota, (), ()), NOW)
    left = sum(one.size for one in held if one.own) - sum(one.size for one, _ in found)
    assert left <= quota or excess == left - quota
    assert not found or left + found[-1][0].size > quota
    assert all(one.own and not one.pinned for one, _ in found)

"""extract: what a user may do with what is not root's, and explain: a plan as text."""

from __future__ import annotations

import os

from shoebox.explain import _quoted, _shown
from shoebox.extract import _rights

LISTING = b"""\
drwxr-xr-x 0/0                 100 2024-01-01 00:00 squashfs-root
-rw------- 0/0                   5 2024-01-01 00:00 squashfs-root/roots
-rw-r----- 1000/0                5 2024-01-01 00:00 squashfs-root/group
-rwsr-x--t 1000/1000             5 2024-01-01 00:00 squashfs-root/a b
lrwxrwxrwx 1000/1000             5 2024-01-01 00:00 squashfs-root/link -> squashfs-root
drwxrwxrwt 1000/1000             5 2024-01-01 00:00 squashfs-root/two
lines \xff
crw-rw-rw- 1000/1000         1,  3 2024-01-01 00:00 squashfs-root/null
"""


def test_what_is_not_roots_gets_for_its_owner_the_bits_that_would_count_when_mounted():
    got = dict(_rights(LISTING))
    assert got == {
        "/group": 0o440,
        "/a b": 0o5151,
        os.fsdecode(b"/two\nlines \xff"): 0o1777,
        "/null": 0o666,
    }


def test_words_and_names_are_shown_so_that_they_can_be_told():
    assert _quoted("a b") == "'a b'"
    assert _quoted("it's") == "'it'\\''s'"
    assert _quoted("") == "''"
    assert _quoted("plain-word=1") == "plain-word=1"
    assert _shown("a\nb\x1b[m\udcff") == "a\\nb\\x1b[m\\udcff"

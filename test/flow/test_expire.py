"""sh-expire: by age, quota and name; with reasons; what was removed is deleted after the grace."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fixtures.stores import DEBIAN, MANIFEST, OTHER, publish_in, whole

DAY = 86400
THIRD = "b" * 64


def age(image: Path, staged: float, read: float | None = None) -> None:
    """Let an image have been staged, and read, so many days ago."""
    now = time.time()
    for path in (image, image.with_suffix(".json")):
        os.utime(path, (now - (staged if read is None else read) * DAY, now - staged * DAY))


@pytest.fixture
def store(tmp_path) -> Path:
    """Return a store with images of 90, 40 and 5 days."""
    where = tmp_path / "s"
    age(publish_in(where, [f"{DEBIAN}/11", "x.org/old/1"], b"old", OTHER), 90)
    age(publish_in(where, [f"{DEBIAN}/12"], b"middle", MANIFEST), 40)
    age(publish_in(where, [f"{DEBIAN}/13"], b"new", THIRD), 5)
    return where


def path(store: Path, digits: str) -> Path:
    return store / f"sha256-{digits}.sqfs"


def test_without_rules_nothing_goes_but_what_was_removed_long_ago(cmd, store):
    cmd.ok("sh-rm", path(store, OTHER))
    assert cmd("sh-expire", store).stderr == ""
    for file in list((store / ".retired").iterdir()):
        stem, _, rest = file.name.partition(".")
        file.rename(file.with_name(f"{stem}.{int(time.time()) - 15 * DAY}{rest[rest.index('-') :]}"))
    assert "would delete 1 image in" in cmd("sh-expire", "-n", store).stderr
    assert len(list((store / ".retired").iterdir())) == 2
    assert "deleted 1 image in" in cmd("sh-expire", store).stderr
    assert not list((store / ".retired").iterdir())
    assert len(whole(store)) == 2


def test_a_dry_run_says_what_would_go_and_why_and_changes_nothing(cmd, store):
    done = cmd("sh-expire", "--age", "30d", "-n", store)
    assert done.stdout.splitlines() == [str(path(store, OTHER)), str(path(store, MANIFEST))]
    assert done.stderr.splitlines() == [
        "sh-expire: would remove 'docker.io/library/debian:11': last used 12w ago",
        "sh-expire: would remove 'docker.io/library/debian:12': last used 5w ago",
    ]
    assert not (store / ".retired").exists()
    assert cmd("sh-expire", "--age", "30d", store).stdout == done.stdout
    assert whole(store) == [f"{DEBIAN}/13.sqfs"]
    assert len(list((store / ".retired").iterdir())) == 4


def test_what_was_read_or_staged_again_lately_has_been_used(cmd, store):
    age(path(store, OTHER), 90, read=3)
    cmd.ok("sh-stage", "-d", store, path(store, MANIFEST))
    assert cmd.ok("sh-expire", "--age", "30d", store) == ""
    age(path(store, OTHER), 90, read=31)
    assert cmd.ok("sh-expire", "--age", "30d", store) == str(path(store, OTHER))


def test_to_list_images_is_not_to_use_them(cmd, store):
    cmd.ok("sh-images", store)
    cmd.ok("sh-expire", "-n", "--age", "30d", store)
    assert len(cmd.ok("sh-expire", "--age", "30d", store).splitlines()) == 2


def test_a_quota_takes_the_oldest_use_and_says_by_how_much_it_fails(cmd, store):
    size = path(store, THIRD).stat().st_size
    cmd.ok("sh-rm", "--pin", path(store, MANIFEST))
    done = cmd("sh-expire", f"--quota={2 * size}", store)
    assert (done.returncode, done.stdout) == (0, f"{path(store, OTHER)}\n")
    assert "12K are more than 8.0K, and it was last used 12w ago" in done.stderr
    done = cmd("sh-expire", f"--quota={size - 1}", "--keep", "debian:13", store)
    assert (done.returncode, done.stdout) == (1, "")
    assert "over the quota" in done.stderr


def test_patterns_choose_and_keep(cmd, store):
    assert cmd.ok("sh-expire", "-q", "--match", "debian:*", "--keep", "debian:13", store) == str(path(store, MANIFEST))
    assert cmd.ok("sh-expire", "-q", "--match", "*", "--keep", "x.org/*", "--keep=debian:13", store) == ""
    assert cmd.ok("sh-expire", "-q", "--match", "*/old:*", "--match", "debian:11", store) == str(path(store, OTHER))
    assert whole(store) == [f"{DEBIAN}/13.sqfs"]


def test_without_a_directory_it_is_the_users_own_store(cmd, tmp_path):
    assert cmd.ok("sh-expire", "--age", "0") == ""
    image = publish_in(tmp_path / "cache/images")
    assert cmd.ok("sh-expire", "--age", "0") == str(image)
    done = cmd("sh-expire", tmp_path / "none", tmp_path / "cache/images")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("words", [["--age", "30"], ["--quota", "x"], ["--grace", "-1d"], ["--wrong"]])
def test_wrong_words_are_wrong_usage_and_remove_nothing(cmd, store, words):
    done = cmd("sh-expire", "--match", "*", *words, store)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert len(whole(store)) == 4


def test_lines_that_runs_left_tell_the_last_use_and_unreadable_ones_stop_it(cmd, store, tmp_path):
    (tmp_path / "uses").mkdir()
    log = tmp_path / "uses" / f"{os.getuid()}.log"
    log.write_text(f"{int(time.time() - 2 * DAY)} {os.getuid()} sha256:{OTHER} 4711.0 n1 fuse\n")
    age(path(store, MANIFEST), 40, read=1)  # by a backup, say: with lines, that counts no more
    assert cmd.ok("sh-expire", "--age", "30d", "--usage", tmp_path / "uses", store) == str(path(store, MANIFEST))
    done = cmd("sh-expire", "--age", "0", "--usage", tmp_path / "none", store)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert len(whole(store)) == 3


def test_images_on_a_base_are_listed(cmd, tmp_path):
    from fixtures import layers as odd

    base, more, other = (odd.layer(odd.file(name, name)) for name in ("base", "more", "other"))
    for tag, stack in (("base", [base]), ("app", [base, more]), ("not", [more, base]), ("none", [other])):
        cmd.ok("sh-flatten", odd.layout(tmp_path / tag, *stack, name=f"x.org/{tag}:1"))
    listed = cmd.ok("sh-images", "--base", "x.org/base:1").splitlines()[1:]
    assert [line.split()[0] for line in listed] == ["x.org/app:1", "x.org/base:1"]
    image = publish_in(tmp_path / "cache/images")
    done = cmd("sh-images", "--base", image)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody knows its layers" in done.stderr

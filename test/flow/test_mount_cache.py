"""sh-mount: the node caches that it makes, for whom, where, and what they leave."""

from __future__ import annotations

import json
import os
import re
import time

import pytest
from fixtures.caching import GIB, MIB, caching, far, squashed
from fixtures.helper import ACCOUNT, PYTHON, USER, said
from fixtures.installed import TREE
from fixtures.rootfs import until

__all__ = ["caching", "far", "squashed"]  # fixtures
pytestmark = pytest.mark.root

# As sh-run does: through shoebox.helper; prints each mount's owner, mode, size and what is in it.
BY_HELPER = f"""
import json, os, sys
sys.path.insert(0, {str(TREE / "lib")!r})
from shoebox import helper
program, image, *words = sys.argv[1:]
caches = [(fs, int(size), place) for fs, size, place in zip(*[iter(words)] * 3)]
image, mounts, why = helper.join(helper.start(program, image, caches))
seen = []
for mount in mounts:
    at, space = os.fstat(mount), os.statvfs(f"/proc/self/fd/{{mount}}")
    seen.append([at.st_uid, oct(at.st_mode), space.f_frsize * space.f_blocks, os.listdir(f"/proc/self/fd/{{mount}}")])
print(json.dumps([os.listdir(f"/proc/self/fd/{{image}}") if image >= 0 else image, seen, why]))
"""


def by_helper(caching, *caches, image=""):
    words = caching.words(*caches)
    done = caching.site.run("python3", "-IS", "-c", BY_HELPER, caching.site.helper, image, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_cache_is_empty_the_users_alone_and_as_big_as_asked(caching):
    image, caches, why = by_helper(caching, ("ext4", GIB), ("xfs", GIB), ("ext4", 200 * GIB))
    assert (image, why) == (-1, "")
    for (uid, mode, size, names), asked in zip(caches, (GIB, GIB, 200 * GIB), strict=True):
        assert (uid, mode, names) == (0, "0o40700", [])  # 0 is the user there
        assert 0.9 * asked < size <= asked


def test_a_cache_comes_beside_an_image(caching):
    image, caches, why = by_helper(caching, ("ext4", 16 * MIB), image=caching.site.image)
    assert "etc" in image
    assert (len(caches), why) == (1, "")


def test_a_refusal_comes_with_its_reason(caching):
    assert by_helper(caching, ("btrfs", GIB)) == [
        -1,
        [],
        f"{caching.site.where}/mount.conf does not allow this file system",
    ]


def test_it_is_ordinary_space_for_all_kinds_of_files(caching):
    script = """
        set -e; cd $WHERE/1
        for n in 1 2 3; do mkdir d$n; echo $n >d$n/f; ln d$n/f l$n; ln -s d$n s$n; done
        mkfifo p; chmod 4755 d1/f; truncate -s 1G sparse; cat l2; sync -f .; rm -r d3
        grep " $WHERE/1 " /proc/self/mountinfo
    """
    for fs in ("ext4", "xfs"):
        done = caching.joined(script, (fs, 2 * GIB))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("2\n")
        assert "rw,nosuid,nodev," in done.stdout


def test_what_is_written_is_the_users_and_the_file_below_the_accounts(caching):
    script = """
        touch $WHERE/1/f; loop=$(grep " $WHERE/1 " /proc/self/mountinfo | grep -o 'loop[0-9]*'); cd /sys/block/$loop
        cat loop/backing_file loop/dio queue/logical_block_size >&2; echo; read go
    """
    words = (*PYTHON, caching.site.where / "runner.py", "join", caching.site.helper, "", "sh", "-c", script)
    env = {"CACHES": " ".join(caching.words(("ext4", 16 * MIB))), "PATH": "/usr/bin:/bin"}
    with caching.site.start(*words, env=env) as process:
        process.stdout.readline()
        assert caching.names() == []
        seen = os.stat(f"/proc/{process.pid}/root{caching.site.where}/mnt/1/f")
        assert (seen.st_uid, seen.st_gid) == (USER, USER)
        out, err = process.communicate("go\n")
    assert re.fullmatch(rf"\S*/{caching.place.parent.name}/{caching.place.name}/#\d+ \(deleted\)\n1\n4096\n", err), (
        out + err
    )


def test_a_full_cache_says_so_and_nothing_else_is_harmed(caching):
    script = """
        cd $WHERE; echo kept >2/f
        head -c 64M /dev/zero >1/f || echo full
        sync -f 1; cat 2/f; head -c 8M /dev/zero >2/g && echo goes on; rm 1/f; head -c 4M /dev/zero >1/g && echo again
    """
    done = caching.joined(script, ("ext4", 32 * MIB), ("ext4", 32 * MIB))
    assert done.stdout.splitlines() == ["full", "kept", "goes on", "again"], done.stderr
    assert "No space left on device" in done.stderr


def test_eight_caches_at_once_and_eight_starts_at_once(caching):
    for count, many in ((1, 8), (8, 1)):
        words = caching.words(*[("ext4", 16 * MIB)] * many)
        every = [caching.site.start(caching.site.helper, "kernel", "", *words) for _ in range(count)]
        assert [process.stdout.readline() for process in every] == [f"{caching.site.where}/mnt\n"] * count
        assert [process.communicate() and process.returncode for process in every] == [0] * count


def test_a_big_one_takes_little_time_and_space_and_is_gone_at_once(caching, record_property):
    free = os.statvfs(caching.place)
    for fs in ("ext4", "xfs"):
        begin = time.monotonic()
        with caching.site.start(caching.site.helper, "kernel", "", *caching.words((fs, 200 * GIB))) as process:
            assert process.stdout.readline()
            record_property(f"200 GB of {fs}, ms", round((time.monotonic() - begin) * 1000))
            now = os.statvfs(caching.place)
            assert (free.f_bfree - now.f_bfree) * free.f_frsize < 64 * MIB  # others write, too
            begin = time.monotonic()
            process.communicate()
        assert until(lambda: not caching.left())
        record_property("its removal, ms", round((time.monotonic() - begin) * 1000))


def test_every_cache_granted_and_refused_is_logged(caching, log):
    caching.ask(("ext4", 16 * MIB))
    granted = log()
    assert said(caching.ask(("ext4", "1\n2"), place="/a\nb\u009b"), "has no line")
    refused = log()
    assert granted.startswith(f"<{10 * 8 + 5}>")
    assert granted.endswith(f"granted: uid {USER}, way cache, ext4, {16 * MIB} bytes, {caching.place}")
    assert refused.startswith(f"<{10 * 8 + 4}>")
    assert refused.endswith(f"uid {USER}, way cache, ext4, 1?2 bytes, /a?b??")


@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_on_a_file_system_that_squashes_root_it_is_the_accounts(far, squashed, fs):
    assert far.place.stat().st_uid == ACCOUNT
    done = far.joined("cd $WHERE/1; head -c 20M /dev/urandom >f; sync f; sha256sum <f; cat f | sha256sum", (fs, GIB))
    first, second = done.stdout.split()[::2]
    assert first == second, done.stderr
    assert far.names() == []

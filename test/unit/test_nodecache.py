"""Node caches: the words that ask for them, and what they become."""

from __future__ import annotations

import pytest

from shoebox import mountconf, nodecache
from shoebox.fail import USAGE, Fail
from shoebox.nodecache import FUSE, KERNEL, TMPFS, Node

G = 1 << 30
CONF = "store /images\ncache 500 /scratch/.caches\ncache 501  /fast/.caches\ncache-fs xfs ext4\n"
KNOWN = mountconf.parse(CONF)


def one(text):
    [found] = nodecache.asked([text], [], "/here")
    return found


def decided(text, node, real=lambda path: path):
    return nodecache.decide(one(text), node, real)


def test_a_cache_is_a_target_a_size_a_file_system_and_a_place():
    found = one("/cache//x/:size=200G,fs=xfs,on=/scratch/me")
    assert (found.target, found.size, found.fs, found.place) == ("/cache/x", 200 * G, "xfs", "/scratch/me")
    assert one("/c:on=tmpfs,size=5").place == "tmpfs"
    assert (one("/c:size=1T").fs, one("/c:size=1T").place) == ("", "")


def test_a_place_is_relative_to_where_one_is():
    assert one("/c:size=1G,on=there").place == "/here/there"
    assert one("/c:size=1G,on=../tmpfs").place == "/tmpfs"


def test_the_directories_that_words_name_are_told_as_they_are_named():
    words = ["/c:size=1G,on=tmpfs", "/on=d:size=1G,ON=tmpfsdir", "/d:on=/x,size=", "/e:size=1G"]
    assert nodecache.places(words) == ["tmpfsdir", "/x"]


def test_shifters_words_are_the_same_as_a_volume():
    volumes = ["/a:/b", "/s/me:/c:perNodeCache=size=200g,fstype=XFS,bs=1M,method=loop", "/x:/y:ro"]
    [found] = nodecache.asked([], volumes, "/")
    assert (found.target, found.size, found.fs, found.place) == ("/c", 200 * G, "xfs", "/s/me")
    assert [nodecache.is_one(volume) for volume in volumes] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/c", "it is not DST:size=SIZE"),
        ("/c:fs=xfs", "it has no size=SIZE"),
        ("/c:", "it has no size=SIZE"),
        ("/c:size=", "'size=' is none of"),
        ("/c:size=many", "not a size: 'many'"),
        ("/c:size=-1G", "not a size"),
        ("/c:size=1G,size=2G", "once each"),
        ("/c:size=1G,fs=btrfs", "there is no 'btrfs' for caches, but ext4 and xfs"),
        ("/c:size=1G,bs=1M", "'bs=1M' is none of"),
        ("c:size=1G", "'c' is not an absolute path"),
        ("/../c:size=1G", "is not an absolute path without '..'"),
        ("/:size=1G", "the root is the image"),
    ],
)
def test_what_cannot_be_understood_is_wrong_usage_in_one_line(text, told):
    with pytest.raises(Fail) as found:
        one(text)
    assert str(found.value).startswith(f"cannot use node cache {text!r}: ")
    assert told in str(found.value)
    assert found.value.status == USAGE


def test_the_place_decides_what_makes_it():
    node = Node(KNOWN, "")
    assert decided("/c:size=1G,on=tmpfs", node).by == TMPFS
    kernel = decided("/c:size=1G,on=/fast/.caches", node)
    assert (kernel.by, kernel.fs, kernel.place) == (KERNEL, "xfs", "/fast/.caches")
    assert decided("/c:size=1G,fs=ext4,on=/fast/.caches", node).fs == "ext4"
    other = decided("/c:size=1G,fs=xfs,on=/fast/me", node)
    assert (other.by, other.place) == (FUSE, "/fast/me")
    assert "mount.conf does not have that place" in other.why
    assert "xfs would be sh-mount's" in other.why
    assert decided("/c:size=1G,on=/fast/.caches", Node(None, "")).by == FUSE


def test_a_place_of_mount_conf_is_known_by_a_link_too():
    found = decided("/c:size=1G,on=/link", Node(KNOWN, ""), {"/link": "/scratch/.caches"}.get)
    assert (found.by, found.place) == (KERNEL, "/scratch/.caches")


def test_without_a_place_the_site_says_where():
    assert decided("/c:size=1G", Node(KNOWN, "", ["tmpfs", "/x"])).by == TMPFS
    assert decided("/c:size=1G", Node(KNOWN, "")).place == "/scratch/.caches"
    with pytest.raises(Fail, match=r"nobody says where it is to lie: add on=DIR"):
        decided("/c:size=1G", Node(None, ""))


def test_the_site_limits_places_and_sizes():
    node = Node(None, "", ["/scratch/me", "tmpfs"], (G, 4 * G))
    assert decided("/c:size=1G,on=/scratch/me/deep", node).place == "/scratch/me/deep"
    for text, told in (
        (
            "/c:size=1G,on=/scratch/mean",
            "this site has none on '/scratch/mean': say on= with one of /scratch/me, tmpfs",
        ),
        ("/c:size=1023M,on=tmpfs", "it has less than 1.0G, the least that this site gives"),
        ("/c:size=5G,on=tmpfs", "this site gives 4.0G at most"),
    ):
        with pytest.raises(Fail) as found:
            decided(text, node)
        assert told in str(found.value)
    with pytest.raises(Fail, match="this site has none on 'tmpfs'"):
        decided("/c:size=1G,on=tmpfs", Node(None, "", ["/scratch"]))
    with pytest.raises(Fail, match="it has less than"):
        decided("/c:size=1,on=tmpfs", Node(None, ""))


def test_where_fuse_cannot_be_one_line_says_so():
    with pytest.raises(Fail, match=r"sh-mount is not installed, and there is no /dev/fuse: say on=tmpfs"):
        decided("/c:size=1G,on=/x", Node(None, "there is no /dev/fuse"))


@pytest.mark.parametrize(
    ("conf", "words", "told"),
    [
        ("", "size=2T", "mount.conf gives 1.0T at most: ask for less"),
        ("", "size=2G,fs=xfs", "mount.conf has no xfs for caches: say fs=ext4"),
        ("cache-size 1G 300G", "size=1023M", "it has less than 1.0G, the least that mount.conf gives: ask for more"),
        ("cache-size 1G 300G", "size=301G", "mount.conf gives 300G at most"),
        ("cache-size 3 many\ncache-fs", "size=2T", "mount.conf gives 1.0T at most"),
    ],
)
def test_what_mount_conf_does_not_allow_is_refused_with_what_it_does(conf, words, told):
    node = Node(mountconf.parse(f"cache 500 /caches\n{conf}\n"), "")
    with pytest.raises(Fail) as found:
        decided(f"/c:{words},on=/caches", node)
    assert told in str(found.value)

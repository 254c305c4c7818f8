"""What a user's own files may be called, who may import, and which stores the kernel mounts from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import imports, mountconf, site, siteconf
from shoebox.fail import USAGE, Fail


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("localhost/alice/app:1", "localhost/alice/app/1"),
        ("localhost/alice/app", "localhost/alice/app/latest"),
        ("localhost/alice/deep/er:x", "localhost/alice/deep/er/x"),
        ("docker://localhost/alice/app:1", "localhost/alice/app/1"),
    ],
)
def test_a_file_of_ones_own_is_called_by_ones_own_name(text, stem):
    assert imports.name(text, "alice", 1000).stem == stem


@pytest.mark.parametrize(
    "text",
    [
        "docker.io/library/debian:12",
        "debian:12",
        "alice/app:1",
        "quay.io/alice/app:1",
        "localhost/bob/app:1",
        "localhost/alice:1",
        "localhost/alicia/app:1",
        "localhost:5000/alice/app:1",
        "localhost.localdomain/alice/app:1",
        "LOCALHOST/alice/app:1",
        "localhost/alice/../bob/app:1",
        "localhost/alice/app@sha256:" + 64 * "0",
        "localhost/1000/app:1",
        "localhost#alice",
        "localhost/alice/App",
        "",
    ],
)
def test_and_by_nothing_else(text):
    with pytest.raises(Fail) as caught:
        imports.name(text, "alice", 1000)
    assert caught.value.status == USAGE
    assert caught.value.todo == "write localhost/alice/NAME[:TAG]"


@pytest.mark.parametrize("user", ["Alice", "a/b", "", "..", "-a", "a:1", "x@sha256", "a#b", "4711", "é", "a b", "a_"])
def test_a_login_name_that_cannot_stand_in_a_reference_is_its_uid(user):
    assert imports.prefix(user, 1000) == "localhost/1000"
    assert imports.name("localhost/1000/app:1", user, 1000).stem == "localhost/1000/app/1"


@given(st.text(max_size=20), st.text(max_size=40))
def test_whatever_is_given_no_name_leads_out_of_ones_own(user, text):
    try:
        found = imports.name(text, user, 1000)
    except Fail:
        return
    assert found.stem.startswith(imports.prefix(user, 1000) + "/")


@pytest.mark.parametrize(
    ("rule", "who", "groups", "allowed"),
    [
        ("", "alice", [], True),
        ("all", "alice", [], True),
        ("none", "alice", ["wheel"], False),
        ("alice", "alice", [], True),
        ("alice", "bob", ["alice"], False),
        ("bob, @hpc42 carol", "alice", ["hpc42"], True),
        ("bob, @hpc42 carol", "alice", ["hpc4", "bob"], False),
        ("bob,carol", "carol", [], True),
        ("@alice", "alice", [], False),
        ("bob", "", [""], False),
    ],
)
def test_a_site_says_who_may_import(rule, who, groups, allowed):
    assert imports.may(rule, who, groups) is allowed


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "names nobody"),
        (" , ", "names nobody"),
        ("all bob", "stand alone"),
        ("none, @g", "stand alone"),
        ("bob @", "'@' is neither"),
        ("-bob", "'-bob' is neither"),
        ("a@b", "'a@b' is neither"),
        ("bob:carol", "'bob:carol' is neither"),
    ],
)
def test_what_says_nobody_or_cannot_be_meant_is_told_with_its_line(value, why):
    with pytest.raises(Fail) as caught:
        siteconf.check(site.parse(f"[settings]\nimport = {value}\n", "site.conf"))
    assert "'site.conf:2'" in str(caught.value)
    assert why in str(caught.value)


def test_the_setting_is_the_sites_and_no_modules():
    assert site.parse("[settings]\nimport = bob, @hpc42\n", "site.conf").one("import") == "bob, @hpc42"
    with pytest.raises(Fail, match="no such setting: 'import'"):
        site.parse("[settings]\nimport = all\n", "m.conf", "m")


def test_mount_conf_tells_which_stores_the_kernel_mounts_from_and_whose_images():
    found = mountconf.parse(
        "# store /no\nstore /apps/images\nowner 60125\nstore\t/a b\nsetuid no\ndirectory /trees\n\n"
    )
    assert (found.stores, found.owners) == (("/apps/images", "/a b"), (0, 60125))
    assert found.has("/apps/images")
    assert found.has("/apps/images/deep/x.sqfs")
    assert found.has("/a b/c")
    assert not any(map(found.has, ("/apps/images2", "/apps", "/trees", "/no", "/")))


def test_mount_conf_tells_where_caches_are_made_and_of_which_file_systems():
    found = mountconf.parse("cache 60130 /a b\ncache\t7  /c\ncache x\ncache-size 300M\t2T\ncache-fs xfs ext4\n")
    assert (found.caches, found.cache_formats) == (("/a b", "/c"), ("xfs", "ext4"))
    assert found.cache_sizes == (300 << 20, 2 << 40)


@given(st.text())
def test_any_mount_conf_is_read(text):
    mountconf.parse(text)

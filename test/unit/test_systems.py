"""The table of systems: the site's, the user's, and what is wrong in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shoebox import paths, systems
from shoebox.fail import USAGE, Fail

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what reads a table, of the site and of the user."""
    monkeypatch.setattr(paths, "SITE", str(tmp_path))
    user = tmp_path / "home/shoebox"
    user.mkdir(parents=True)

    def read(site: str, own: str = "") -> dict[str, systems.System]:
        (tmp_path / systems.FILE).write_text(site)
        (user / systems.FILE).write_text(own)
        return systems.read({"XDG_CONFIG_HOME": str(tmp_path / "home")})

    return read


def test_a_system_has_stores_a_way_a_platform_and_a_compressor(table):
    site = (
        '[system.alps]\nstore = ["alps:/scratch/images", "/here"]\nby = "rsync"\n'
        'platform = "linux/aarch64"\ncompressor = "gzip"\n[system.old]\nstore = "old:images"'
    )
    alps, old = table(site).values()
    assert [str(place) for place in alps.places] == ["alps:/scratch/images", "/here"]
    assert (alps.name, alps.by, str(alps.platform), alps.compressor) == ("alps", "rsync", "linux/arm64", "gzip")
    assert (old.by, old.platform, old.compressor, old.places[0].host) == ("ssh", None, "", "old")


def test_the_users_table_adds_and_takes_the_place_of_an_entry_as_a_whole(table):
    site = '[system.a]\nstore = "a:/x"\nby = "scp"\n[system.b]\nstore = "/b"'
    found = table(site, '[system.a]\nstore = "mine:/y"\n[system.c]\nstore = "/c"')
    assert [(name, str(one.places[0]), one.by) for name, one in found.items()] == [
        ("a", "mine:/y", "ssh"),
        ("b", "/b", "ssh"),
        ("c", "/c", "ssh"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[system", "Expected"),
        ('other = "x"', "unknown key 'other'"),
        ('system = "x"', "'system' is no table"),
        ('[system]\na = "x"', "'a' is no table"),
        ('[system."-a"]\nstore = "/x"', "'-a' can be no system's name"),
        ('[system.a]\nstores = "/x"', "'a' has the unknown key 'stores'"),
        ("[system.a]", "'store' of 'a' is no DIR or HOST:DIR"),
        ('[system.a]\nstore = ["/x", ""]', "'store' of 'a' is no DIR or HOST:DIR"),
        ('[system.a]\nstore = "-o:x"', "'store' of 'a' is no DIR or HOST:DIR"),
        ("[system.a]\nstore = []", "'store' of 'a' is no DIR or HOST:DIR"),
        ('[system.a]\nstore = "x/y"', "the store 'x/y' of 'a' does not begin with a slash"),
        ('[system.a]\nstore = "h:x"\nby = "rsync"', "the store 'h:x' of 'a' does not begin with a slash"),
        ('[system.a]\nstore = "/x"\nby = "ftp"', "'by' of 'a' is none of ssh, scp, rsync"),
        ('[system.a]\nstore = "/x"\nby = 1', "'by' of 'a' is no text"),
        ('[system.a]\nstore = "/x"\nplatform = "arm64"', "'platform' of 'a': not a platform: 'arm64'"),
        ('[system.a]\nstore = "/x"\ncompressor = "lzma"', "'compressor' of 'a' is none of zstd"),
    ],
)
def test_what_cannot_be_understood_is_told_with_the_file(table, tmp_path, text, told):
    for words in ((text,), ("", text)):
        with pytest.raises(Fail, match=r"^cannot use '/.*systems.toml': .*: see systems.toml\(5\)$") as caught:
            table(*words)
        assert told in str(caught.value)


def test_systems_are_chosen_by_name_once_each_or_all(table):
    found = table('[system.a]\nstore = "/a"\n[system.b]\nstore = "/b"')
    assert [one.name for one in systems.choose(found, ["b", "b"])] == ["b"]
    assert [one.name for one in systems.choose(found, [])] == ["a", "b"]
    for wrong, names in ((found, ["c"]), ({}, ["a"]), ({}, [])):
        with pytest.raises(Fail) as caught:
            systems.choose(wrong, names)
        assert caught.value.status == USAGE

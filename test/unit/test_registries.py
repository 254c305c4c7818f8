"""The table of registries: the site's, the user's, and what short names mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoebox import paths, registries
from shoebox.fail import Fail

DIGEST = "sha256:" + "0" * 64


class Files:
    """The site's table and the user's."""

    def __init__(self, root: Path) -> None:
        self.site = root / "etc" / "registries.toml"
        self.user = root / "home" / "shoebox" / "registries.toml"
        self.env = {"XDG_CONFIG_HOME": str(root / "home")}
        for file in (self.site, self.user):
            file.parent.mkdir(parents=True)

    def table(self, site: str = "", user: str = "") -> registries.Table:
        """Write both, and read them."""
        self.site.write_text(site)
        self.user.write_text(user)
        return registries.read(self.env)

    def means(self, text: str) -> list[str]:
        """Return what a name may mean."""
        return [str(reference) for reference in registries.candidates(text, self.env)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    made = Files(tmp_path)
    monkeypatch.setattr(paths, "SITE", str(made.site.parent))
    return made


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("quay.io", "https://quay.io"),
        ("host:5000", "https://host:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.1.2.3", "http://127.1.2.3"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("127.0.0.1.evil.org", "https://127.0.0.1.evil.org"),
        ("127.evil.org.x", "https://127.evil.org.x"),
        ("localhost.evil.org", "https://localhost.evil.org"),
        ("[::2]", "https://[::2]"),
    ],
)
def test_without_a_table_only_loopback_is_plain_http(files: Files, host: str, url: str) -> None:
    place = registries.read(files.env).place(host)
    assert (place.url, place.prefix) == (url, "")


@pytest.mark.parametrize(
    ("lines", "url", "prefix"),
    [
        ("insecure-http = true", "http://r.org", ""),
        ('url = "http://other:5000"', "http://other:5000", ""),
        ('url = "https://mirror.org/hub/cache/"', "https://mirror.org", "hub/cache/"),
        ('ca = "/x.pem"', "https://r.org", ""),
        ('url = "https://m.org"\ninsecure-http = true', "https://m.org", ""),
    ],
)
def test_the_table_says_where_a_registry_is(files: Files, lines: str, url: str, prefix: str) -> None:
    place = files.table(f'[registry."r.org"]\n{lines}').place("r.org")
    assert (place.url, place.prefix) == (url, prefix)


@pytest.mark.parametrize("host", ["::1", "[::1]", "[::1]:5000", "localhost", "127.0.0.2:1"])
def test_loopback_is_known_with_and_without_a_port(host: str) -> None:
    assert registries.is_loopback(host)


def test_loopback_with_a_ca_or_told_so_is_https(files: Files) -> None:
    table = files.table('[registry."localhost:1"]\nca = "/x.pem"\n[registry."localhost:2"]\ninsecure-http = false\n')
    assert [table.place(f"localhost:{n}").url for n in (1, 2)] == ["https://localhost:1", "https://localhost:2"]


def test_a_ca_holds_for_the_registry_its_mirror_and_their_other_ports(files: Files) -> None:
    table = files.table(
        '[registry."r.org"]\nurl = "https://m.org:5000/x"\nca = "/r.pem"\n[registry."r.org:444"]\nca = "/444.pem"\n'
    )
    found = {netloc: table.ca(netloc) for netloc in ("r.org", "r.org:1", "m.org:5000", "m.org", "r.org:444", "x.r.org")}
    assert list(found.values()) == ["/r.pem", "/r.pem", "/r.pem", "/r.pem", "/444.pem", ""]


@pytest.mark.parametrize("url", ["ftp://x", "x", "https://", "https://me:secret@x", "https://x/?a", "https://x#a"])
def test_a_url_that_is_none_is_refused(files: Files, url: str) -> None:
    table = files.table(f'[registry."r.org"]\nurl = "{url}"')
    with pytest.raises(Fail, match=r"write https://HOST"):
        table.place("r.org")


def test_the_users_words_override_the_sites_key_by_key(files: Files) -> None:
    site = 'search = ["a.org"]\n[aliases]\nx = "a.org/x"\ny = "a.org/y"\n[registry."r.org"]\nca = "/site.pem"\n'
    user = 'search = ["b.org"]\n[aliases]\nx = "b.org/x"\n[registry."r.org"]\nurl = "https://m.org"\n'
    table = files.table(site, user)
    assert (table.ca("r.org"), table.place("r.org").url) == ("/site.pem", "https://m.org")
    assert (table.search, table.aliases) == (["b.org"], {"x": "b.org/x", "y": "a.org/y"})


@pytest.mark.parametrize(
    ("user", "host"),
    [
        ('[registry."r.org"]\nblocked = false', "r.org"),
        ('[registry."other.org"]\nurl = "https://r.org"', "other.org"),
        ('[registry."r.org"]\nurl = "https://mirror.org"', "r.org"),
    ],
)
def test_the_sites_block_cannot_be_lifted_by_the_user(files: Files, user: str, host: str) -> None:
    table = files.table('[registry."r.org"]\nblocked = true', user)
    with pytest.raises(Fail, match=f"'r.org' is blocked: by '{files.site}'"):
        table.place(host)


def test_docker_hub_is_blocked_by_every_name_it_has(files: Files) -> None:
    table = files.table(
        '[registry."docker.io"]\nblocked = true', '[registry."x.org"]\nurl = "https://registry-1.docker.io"'
    )
    for host in ("docker.io", "x.org"):
        with pytest.raises(Fail, match=r"'docker\.io' is blocked"):
            table.place(host)


def test_the_user_may_block_too(files: Files) -> None:
    table = files.table("", '[registry."r.org"]\nblocked = true')
    assert table.blocks("r.org")
    assert not table.blocks("docker.io")


@pytest.mark.parametrize(
    "text",
    [
        "serach = []",
        "search = 1",
        "search = [1]",
        "aliases = 1",
        "[aliases]\na = 1",
        "registry = 1",
        "[registry]\na = 1",
        '[registry."r.org"]\nblock = true',
        '[registry."r.org"]\nblocked = "yes"',
        '[registry."r.org"]\nca = 1',
        "no toml",
        "a = " + "[" * 5000,
    ],
)
def test_what_a_table_cannot_mean_is_refused_not_passed_over(files: Files, text: str) -> None:
    with pytest.raises(Fail, match=f"cannot use '{files.user}'"):
        files.table("", text)


def test_a_table_that_cannot_be_read_is_told(files: Files) -> None:
    files.site.mkdir()
    with pytest.raises(Fail, match=f"cannot read '{files.site}': Is a directory"):
        registries.read(files.env)


def test_a_name_with_a_registry_means_just_that(files: Files) -> None:
    files.table('search = ["a.org"]\n[aliases]\n"quay.io/x" = "a.org/x"')
    assert files.means("quay.io/x:1") == ["quay.io/x:1"]
    assert files.means("docker.io/debian") == ["docker.io/library/debian:latest"]


def test_without_a_search_order_a_short_name_is_docker_hubs(files: Files) -> None:
    assert files.means("debian") == ["docker.io/library/debian:latest"]


def test_a_short_name_is_looked_for_in_the_order_given(files: Files) -> None:
    files.table('search = ["r.org", "docker.io"]')
    assert files.means("debian:12") == ["r.org/debian:12", "docker.io/library/debian:12"]
    assert files.means(f"a/b@{DIGEST}") == [f"r.org/a/b@{DIGEST}", f"docker.io/a/b@{DIGEST}"]
    assert files.means("docker://debian") == ["r.org/debian:latest", "docker.io/library/debian:latest"]


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("np", "r.org/hpc/numpy:latest"),
        ("np:1", "r.org/hpc/numpy:1"),
        (f"np@{DIGEST}", f"r.org/hpc/numpy@{DIGEST}"),
        ("fixed", "r.org:5000/fixed:2"),
        ("fixed:3", "r.org:5000/fixed:3"),
        ("hpc/np", "docker.io/library/debian:latest"),
    ],
)
def test_an_alias_means_its_image_with_the_tag_that_was_asked_for(files: Files, text: str, full: str) -> None:
    files.table(
        'search = ["x.org"]\n[aliases]\nnp = "r.org/hpc/numpy"\nfixed = "r.org:5000/fixed:2"\n"hpc/np" = "debian"'
    )
    assert files.means(text) == [full]


def test_mirrors_come_in_order_with_what_their_own_entries_say(files: Files) -> None:
    table = files.table(
        '[registry."r.org"]\nauthentication = "basic"\nca = "/r.pem"\n'
        'mirrors = ["https://m.org:5000/cache/", "http://n.org"]\n'
        '[registry."m.org:5000"]\nauthentication = "none"\nauth = "login.org"\n'
    )
    first, second = table.mirrors("r.org")
    assert (first.url, first.prefix, first.authentication, first.auth) == (
        "https://m.org:5000",
        "cache/",
        "none",
        "login.org",
    )
    assert (second.url, second.netloc, second.prefix, second.authentication) == ("http://n.org", "n.org", "", "")
    assert table.place("r.org").authentication == "basic"
    assert (table.ca("n.org"), table.mirrors("x.org"), table.mirrors_tags("r.org")) == ("/r.pem", [], False)


@pytest.mark.parametrize(
    ("site", "user", "most"), [(None, None, 7), (2, None, 2), (None, 3, 3), (2, 5, 2), (5, 2, 2), (64, 64, 7)]
)
def test_of_two_limits_the_smaller_counts(files: Files, site: int | None, user: int | None, most: int) -> None:
    texts = [f'[registry."r.org"]\njobs = {jobs}' if jobs else "" for jobs in (site, user)]
    assert files.table(*texts).jobs("r.org", 7) == most


@pytest.mark.parametrize(
    "lines",
    [
        "jobs = 0",
        "jobs = 65",
        "jobs = true",
        'mirrors = "x"',
        "mirrors = [1]",
        'authentication = "x"',
        "mirror-tags = 1",
    ],
)
def test_new_keys_have_their_types(files: Files, lines: str) -> None:
    with pytest.raises(Fail, match=f"cannot use '{files.user}'"):
        files.table("", f'[registry."r.org"]\n{lines}')
    with pytest.raises(Fail, match="of '\\*' is unknown"):
        files.table('[registry."*"]\nca = "/x"')


@pytest.mark.parametrize("host", ["R.org", "r.org:443", "r.org.", "R.ORG.:443", "r.org:80", "r.org:0443"])
def test_another_spelling_does_not_get_round_a_block(files: Files, host: str) -> None:
    user = f'[registry."x.org"]\nurl = "https://{host}/v"\n[registry."y.org"]\nmirrors = ["https://{host}"]\n'
    table = files.table('[registry."r.org"]\nblocked = true', user)
    for ask in (lambda: table.place(host), lambda: table.place("x.org"), lambda: table.mirrors("y.org")):
        with pytest.raises(Fail, match=r"'r\.org' is blocked"):
            ask()


def test_a_site_may_block_all_registries_that_it_does_not_name(files: Files) -> None:
    site = (
        '[registry."*"]\nblocked = true\n[registry."docker.io"]\nmirrors = ["https://m.site.org/hub"]\n'
        '[registry."r.org"]\nurl = "https://r.site.org"\n'
    )
    user = (
        '[registry."*"]\nblocked = false\n[registry."evil.org"]\n[registry."docker.io"]\n'
        'mirrors = ["https://evil.org"]\n[registry."r.org"]\nurl = "https://registry-1.docker.io"\n'
    )
    assert [files.table(site).blocks(host) for host in ("docker.io", "m.site.org", "r.org", "r.site.org")] == [
        False
    ] * 4
    assert files.table(site).hosts() == ["docker.io", "r.org"]
    table = files.table(site, user)
    assert table.place("r.org").netloc == "registry-1.docker.io"
    for ask in (lambda: table.place("evil.org"), lambda: table.mirrors("docker.io"), lambda: table.place("quay.io")):
        with pytest.raises(Fail, match=f"is blocked: by '{files.site}'"):
            ask()


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "localhost."])
@pytest.mark.parametrize("text", ["", '[registry."localhost"]\nurl = "https://r.org"\n'])
def test_names_of_imports_are_no_registrys_whatever_a_table_says(files, host, text):
    with pytest.raises(Fail, match="no registry has this"):
        files.table(text).place(host)
    assert files.table('[registry."r.org"]\nurl = "http://localhost"\n').place("r.org").url == "http://localhost"

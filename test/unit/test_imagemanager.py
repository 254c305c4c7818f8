"""imagemanager.json: its registries arrive, what cannot is named, and what comes out is always read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import imagemanager, paths, registries
from shoebox.fail import Fail

# As Shifter's imagegw/test/config/imagemanager.json has it, with the keys that imageworker.py and dockerv2.py read.
GATEWAY = {
    "WorkerThreads": 8,
    "DefaultImageLocation": "registry.services.nersc.gov",
    "ImageExpirationTimeout": "90:00:00:00",
    "Locations": {
        "index.docker.io": {"remotetype": "dockerv2", "authentication": "http"},
        "registry.services.nersc.gov": {
            "remotetype": "dockerv2",
            "sslcacert": "/config/nersc.pem",
            "authentication": "http",
            "authMethod": "basic",
        },
        "local": {"remotetype": "dockerv2", "url": "http://127.0.0.1:5000/v2"},
        "r.org:5000": {"remotetype": "dockerv2", "url": "https://other.org/v2/", "sslcacert": "ca.pem", "odd": 1},
        "hub.org": {"remotetype": "dockerhub"},
    },
    "Platforms": {"mycluster": {"accesstype": "local"}},
}


def table(text: str, root: Path) -> registries.Table:
    """Read what came out as a site's."""
    (root / "registries.toml").write_text(text)
    with mock.patch.object(paths, "SITE", str(root)):
        return registries.read({"XDG_CONFIG_HOME": "/none"})


def test_the_locations_of_a_gateway_become_the_table_and_no_other_registry_is_let_in(tmp_path: Path) -> None:
    text, left = imagemanager.convert(json.dumps(GATEWAY))
    made = table(text, tmp_path)
    assert made.search == ["registry.services.nersc.gov"]
    assert made.hosts() == ["registry.services.nersc.gov", "docker.io", "r.org:5000"]
    assert made.place("docker.io").url == "https://registry-1.docker.io"
    assert made.place("registry.services.nersc.gov").authentication == "basic"
    assert made.ca("registry.services.nersc.gov") == "/config/nersc.pem"
    assert made.place("r.org:5000").url == "https://other.org"
    with pytest.raises(Fail, match=r"'quay\.io' is blocked"):
        made.place("quay.io")
    assert [key for key, _ in left] == [
        "WorkerThreads",
        "ImageExpirationTimeout",
        "Platforms",
        "Locations.local",
        "Locations.r.org:5000.sslcacert",
        "Locations.r.org:5000.odd",
        "Locations.hub.org",
    ]


@pytest.mark.parametrize(
    ("url", "line", "told"),
    [
        ("https://r.org", "", ""),
        ("https://r.org/v2/", "", ""),
        ("m.org", 'url = "https://m.org"', ""),
        ("http://r.org", 'url = "http://r.org"', "it is plain http"),
        ("https://m.org/proxy", 'url = "https://m.org"', "its path '/proxy' is left out"),
        ("ftp://m.org", "", "is no URL"),
        ("https://me:x@m.org", "", "is no URL"),
        ("", "", "is no URL"),
    ],
)
def test_a_url_is_taken_as_shifter_takes_it(tmp_path: Path, url: str, line: str, told: str) -> None:
    text, left = imagemanager.convert(json.dumps({"Locations": {"r.org": {"remotetype": "dockerv2", "url": url}}}))
    assert text.endswith(f'[registry."r.org"]\n{line}\n' if line else '[registry."r.org"]\n')
    assert told in str(left)
    assert bool(left) == bool(told)
    table(text, tmp_path).place("r.org")


@pytest.mark.parametrize("text", ["{", "{]", '{"a": ' + "[" * 100_000])
def test_what_is_no_json_is_one_line(text: str) -> None:
    with pytest.raises(Fail, match=r"cannot read it as imagemanager\.json"):
        imagemanager.convert(text)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3)
LOCATION = st.dictionaries(
    st.sampled_from(["remotetype", "url", "sslcacert", "authMethod", "x"]),
    JSON | st.sampled_from(["dockerv2", "token", "http://a.b", "/x\x7f\ud800\U0001f600"]),
)


@given(
    st.dictionaries(
        st.text() | st.sampled_from(["r.org", "docker.io", "index.docker.io"]),
        st.just({"remotetype": "dockerv2"}).flatmap(lambda base: LOCATION.map(lambda more: base | more)) | JSON,
    ),
    JSON,
)
def test_whatever_stands_there_what_comes_out_is_read(locations: object, default: object) -> None:
    text, _ = imagemanager.convert(json.dumps({"Locations": locations, "DefaultImageLocation": default}))
    root = Path(os.environ.get("TMPDIR", "/tmp")) / f"imagemanager-{os.getpid()}"
    root.mkdir(exist_ok=True)
    try:
        table(text, root)
    finally:
        (root / "registries.toml").unlink(missing_ok=True)
        root.rmdir()

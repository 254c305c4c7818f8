"""Sidecars: what is written is read back, odd configs run, hostile JSON is refused, and no json is imported."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from fixtures.installed import TREE
from hypothesis import given
from hypothesis import strategies as st

from shoebox import sidecar
from shoebox.fail import FAILED, Fail

SHA256 = "0123456789abcdef" * 4
MANIFEST = "sha256:" + "fedcba9876543210" * 4
CONFIG = b"""{ "config": {"Env": ["PATH=/bin", "A=b=c"],
\t"Cmd": ["sh", "-c", "true"],"Entrypoint":["/e"],  "WorkingDir":"/w"} }
"""


def dump(**changed):
    more = {"sha256": SHA256, "size": 4096, "config": CONFIG, "reference": "docker.io/library/debian:12"}
    more |= {"manifest": MANIFEST, "platform": "linux/amd64", "writer": {"program": "tar2sqfs", "level": 3}}
    return sidecar.dump(**more | changed)


def changed(**fields):
    """Return a sidecar with fields changed as no dump of ours would."""
    return json.dumps(json.loads(dump()) | fields).encode()


def of_config(**fields):
    return sidecar.config_only(json.dumps({"config": fields}).encode(), "config.json")


def wrong(data):
    with pytest.raises(Fail) as caught:
        sidecar.load(data, "x.json")
    assert caught.value.status == FAILED
    assert str(caught.value).startswith("cannot use 'x.json': ")
    return str(caught.value)


def test_what_dump_writes_load_reads():
    read = sidecar.load(dump(readable=True, lost=["acl"]), "x.json")
    assert (read.reference, read.manifest) == ("docker.io/library/debian:12", MANIFEST)
    assert (read.platform, read.sha256, read.size) == ("linux/amd64", SHA256, 4096)
    assert (read.writer, read.readable, read.lost) == ({"program": "tar2sqfs", "level": 3}, True, ["acl"])
    assert (read.env, read.entrypoint) == ({"PATH": "/bin", "A": "b=c"}, ["/e"])
    assert (read.cmd, read.working_dir) == (["sh", "-c", "true"], "/w")


def test_the_config_keeps_its_text():
    assert CONFIG in dump()


def test_the_same_values_make_the_same_bytes_whatever_their_order():
    assert dump(writer={"a": 1, "b": 2}) == dump(writer={"b": 2, "a": 1})


def test_it_is_json_for_everybody():
    assert json.loads(dump())["config"] == json.loads(CONFIG)


def test_the_first_line_names_the_content_and_nothing_else():
    first = dump().splitlines()[0]
    assert first == sidecar.first_line(SHA256, 4096)
    assert first.startswith(sidecar.BEGINNING)
    assert first == dump(config=None, reference=None, manifest=None, writer=None).splitlines()[0]


def test_an_image_is_called_by_its_manifest_else_by_its_own_digest():
    assert sidecar.load(dump(), "x").hex == MANIFEST[7:]
    assert sidecar.load(dump(manifest=None), "x").hex == SHA256


def test_without_a_config_nothing_is_set():
    read = sidecar.load(dump(config=None), "x.json")
    assert (read.config, read.env, read.entrypoint, read.cmd, read.working_dir) == ({}, {}, [], [], "")


@pytest.mark.parametrize("config", [b"", b"[]", b"null", b"{", b"\xff{}", b'{"a":NaN}'])
def test_a_config_that_is_no_json_object_is_not_written(config):
    with pytest.raises(Fail):
        dump(config=config)


@pytest.mark.parametrize(
    ("listed", "env"),
    [
        (None, {}),
        ("A=1", {}),
        ({"A": "1"}, {}),
        (["A=1", "B", "", "=x", 7, None, ["C=1"]], {"A": "1"}),
        (["A=", "B= x = y\n"], {"A": "", "B": " x = y\n"}),
        (["A=1", "A=2"], {"A": "2"}),
        (["A=\0", "B\0=1", "C=\ud800", "D=1"], {"D": "1"}),
        (["A=\udcff", "B=\u20ac"], {"A": "\udcff", "B": "\u20ac"}),
    ],
)
def test_odd_entries_of_the_environment_are_passed_over(listed, env):
    assert of_config(Env=listed).env == env


@pytest.mark.parametrize(
    ("value", "argv"),
    [
        (None, []),
        ("sh -c x", ["sh -c x"]),
        ([], []),
        (["a", ""], ["a", ""]),
        (["a", 7], []),
        (["a\0"], []),
        (7, []),
        ({}, []),
    ],
)
def test_odd_commands_are_none(value, argv):
    assert of_config(Cmd=value).cmd == argv
    assert of_config(Entrypoint=value).entrypoint == argv


@pytest.mark.parametrize("value", [None, 7, ["/"], "/a\0", {}])
def test_an_odd_working_directory_is_none(value):
    assert of_config(WorkingDir=value).working_dir == ""


@pytest.mark.parametrize("value", [None, 7, "x", []])
def test_a_config_without_its_section_is_usable(value):
    read = sidecar.config_only(json.dumps({"config": value}).encode(), "x")
    assert (read.env, read.cmd, read.entrypoint, read.working_dir) == ({}, [], [], "")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no value stands at character 0"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"{}", "has no schema"),
        (b"{} {}", "something follows it at character 2"),
        (b'{"schema":1}x', "something follows it"),
        (b'{"schema":NaN}', "NaN is no number"),
        (b'{"schema":-Infinity}', "-Infinity is no number"),
        (b'{"schema":1,}', "not JSON"),
        (b'{"a":"\n"}', "not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "a number is too long"),
        (b"[" * 200_000, "nests too deeply"),
        (b'{"a":' * 200_000, "nests too deeply"),
        (b"\xff\xfe{}", "not JSON"),
        (b" " * (sidecar.MOST + 1), "longer than 16 MiB"),
        (changed(schema=2), "its schema is 2, not 1: a newer Shoebox"),
        (changed(schema="1"), "its schema is '1', not 1"),
        (changed(squashfs=None), "not an object"),
        (changed(squashfs={"sha256": SHA256.upper(), "size": 1}), "not 64 hex digits"),
        (changed(squashfs={"sha256": "../" + SHA256[3:], "size": 1}), "not 64 hex digits"),
        (changed(squashfs={"sha256": [SHA256], "size": 1}), "not 64 hex digits"),
        (changed(squashfs={"sha256": SHA256, "size": -1}), "wrong type"),
        (changed(squashfs={"sha256": SHA256, "size": True}), "wrong type"),
        (changed(squashfs={"sha256": SHA256, "size": "1"}), "wrong type"),
        (changed(settings={}), "wrong type"),
        (changed(settings=[]), "not an object"),
        (changed(writer=1), "not an object"),
        (changed(lost="acl"), "wrong type"),
        (changed(config=[]), "wrong type"),
        (changed(reference=1), "reference is not text"),
        (changed(reference="a\0"), "reference is not text"),
        (changed(platform=["linux"]), "platform is not text"),
        (changed(manifest=SHA256), "manifest is not a sha256 digest"),
        (changed(manifest="sha256:../../../../etc/passwd".ljust(71, "a")), "manifest is not a sha256 digest"),
        (changed(manifest="sha512:" + SHA256), "manifest is not a sha256 digest"),
    ],
)
def test_hostile_json_is_refused_in_one_line(data, told):
    assert told in wrong(data)
    assert "\n" not in wrong(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 0, 3]))
def test_the_scanner_reads_json_as_json_does(value, indent):
    for text in (json.dumps(value, indent=indent), json.dumps(value, ensure_ascii=False)):
        assert sidecar.config_only(f" \r\n{text}\t".encode(), "x").config == value


@given(st.binary() | st.text(alphabet='{}[]",:0123456789eE+-.\\ untrealsf').map(str.encode))
def test_no_bytes_break_it(data):
    with contextlib.suppress(Fail):
        sidecar.load(data, "x")


PROBE = """
import sys
lib, path, absent = sys.argv[1:]
sys.path.insert(0, lib)
if absent:
    sys.modules["_json"] = None
from shoebox import sidecar
assert sidecar.load(open(path, "rb").read(), "x").env["PATH"] == "/bin"
print({"json", "re"} & set(sys.modules) == set())
for data in (b"", b'{"a":NaN}', b'{"schema":1', b'{"schema":1,}', b"{1:2}", b"{} {}", b"[" * 200000):
    try:
        sidecar.load(data, "x")
    except sidecar.Fail:
        print("refused")
"""


@pytest.mark.parametrize("absent", ["", "absent"], ids=["with _json", "without _json"])
def test_reading_imports_no_json_unless_python_has_no_scanner_or_it_is_wrong(absent, tmp_path):
    (tmp_path / "x.json").write_bytes(dump())
    words = [sys.executable, "-IS", "-c", PROBE, TREE / "lib", tmp_path / "x.json", absent]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(not absent), *["refused"] * 7]

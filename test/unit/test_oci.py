"""Manifests, indexes, configs: what is understood, and what is refused without a traceback."""

from __future__ import annotations

import json

import pytest
from fixtures.images import CONFIG, DOCKER_LIST, DOCKER_MANIFEST, INDEX, LAYER, MANIFEST, descriptor, image, index
from hypothesis import given
from hypothesis import strategies as st

from shoebox import oci
from shoebox.fail import Fail
from shoebox.platforms import Platform, parse_platform

AMD64 = Platform("linux", "amd64")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def manifest(**fields: object) -> bytes:
    """Return a manifest with fields replaced (None leaves one out)."""
    document = json.loads(image().manifest) | fields
    return json.dumps({name: value for name, value in document.items() if value is not None}).encode()


def entries(*platforms: str | None, **more: object) -> list[oci.Descriptor]:
    """Return an index's entries, told apart by their size."""
    return [
        oci.Descriptor(MANIFEST, "sha256:" + "0" * 64, size, Platform(*p.split("/")) if p else None, **more)
        for size, p in enumerate(platforms)
    ]


@pytest.mark.parametrize("docker", [False, True])
def test_manifests_and_indexes_of_oci_and_docker_are_read(docker: bool) -> None:
    inner = image(docker=docker)
    outer = index((inner, {"os": "linux", "architecture": "arm", "variant": "v7"}), docker=docker)
    found = oci.parse_manifest(inner.manifest, inner.media_type)
    assert isinstance(found, oci.Manifest)
    assert [layer.digest for layer in found.layers] == inner.layers
    found = oci.parse_manifest(outer.manifest, outer.media_type)
    assert isinstance(found, oci.Index)
    assert str(found.manifests[0].platform) == "linux/arm/v7"
    assert found.manifests[0].digest == inner.digest


def test_a_manifest_without_a_media_type_is_known_by_its_shape() -> None:
    for claim in ("", "application/json", "text/plain; charset=utf-8", f"{MANIFEST}; charset=utf-8"):
        assert isinstance(oci.parse_manifest(manifest(mediaType=None), claim), oci.Manifest)


@pytest.mark.parametrize(
    ("data", "claim"),
    [
        (manifest(), INDEX),
        (manifest(), DOCKER_MANIFEST),
        (manifest(), CONFIG),
        (manifest(mediaType=INDEX), MANIFEST),
        (manifest(mediaType=INDEX), ""),
        (manifest(mediaType="x"), MANIFEST),
        (manifest(manifests=[]), MANIFEST),
        (manifest(config=None, layers=None), MANIFEST),
        (index((image(), None)).manifest, MANIFEST),
        (index((image(), None)).manifest, DOCKER_LIST),
    ],
)
def test_a_manifest_that_is_not_what_it_is_said_to_be_is_refused(data: bytes, claim: str) -> None:
    with pytest.raises(Fail, match="cannot read the manifest"):
        oci.parse_manifest(data, claim)


@pytest.mark.parametrize("claim", ["", *oci.SCHEMA_1_TYPES])
def test_schema_1_is_refused_by_its_name(claim: str) -> None:
    with pytest.raises(Fail, match="schema 1"):
        oci.parse_manifest(b'{"schemaVersion": 1, "name": "a", "fsLayers": []}', claim)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"nil",
        b"\xff",
        b"{" * 10,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b" " * (oci.MAX_DOCUMENT + 1),
        b'{"schemaVersion": ' + b"9" * 5000 + b"}",
        manifest(schemaVersion=3),
        manifest(schemaVersion="2"),
        manifest(layers={}),
        manifest(layers=[1]),
        manifest(layers=[None]),
        manifest(config=[]),
        manifest(config={"mediaType": CONFIG, "digest": "sha256:../../x", "size": 1}),
        manifest(config={"mediaType": CONFIG, "digest": "sha512:" + "0" * 128, "size": 1}),
        manifest(config={"mediaType": CONFIG, "digest": 5, "size": 1}),
        manifest(config={"mediaType": 5, "digest": "sha256:" + "0" * 64, "size": 1}),
        *(
            manifest(config={"mediaType": CONFIG, "digest": "sha256:" + "0" * 64, "size": size})
            for size in (-1, 1.5, True, None, "1", 1 << 70, 10**4000, [])
        ),
    ],
    ids=range(27),
)
def test_a_hostile_manifest_is_one_failure_not_a_traceback(data: bytes) -> None:
    with pytest.raises(Fail) as caught:
        oci.parse_manifest(data, MANIFEST)
    assert len(str(caught.value)) < 500


@given(ANYTHING, st.sampled_from(["manifests", "layers", "config", "mediaType", "annotations", "schemaVersion"]))
def test_whatever_stands_in_a_manifest_is_understood_or_refused(value: object, key: str) -> None:
    document = json.loads(image().manifest) | {key: value}
    if key == "manifests":
        del document["config"], document["layers"], document["mediaType"]
    try:
        oci.parse_manifest(json.dumps(document).encode())
    except Fail:
        return


@given(ANYTHING, st.sampled_from(["config", "rootfs", "architecture", "Env", "Cmd", "Labels", "Volumes", "User"]))
def test_whatever_stands_in_a_config_is_understood_or_refused(value: object, key: str) -> None:
    document = {key: value} if key[0].islower() else {"config": {key: value}}
    try:
        oci.parse_config(json.dumps(document).encode())
    except Fail:
        return


@pytest.mark.parametrize(
    "data", [b"{}", b'{"config": null, "rootfs": null}', b'{"config": {"Env": null, "Cmd": null}}']
)
def test_a_config_that_says_nothing_is_a_config(data: bytes) -> None:
    config = oci.parse_config(data)
    assert (config.env, config.cmd, config.labels, config.diff_ids, str(config.platform)) == ((), (), {}, (), "")


def test_a_config_is_read_whole() -> None:
    run = {
        "Env": ["A=1", "B", "C=x=y\n"],
        "Entrypoint": ["/init"],
        "Cmd": "sh",
        "WorkingDir": "/w",
        "User": "1:2",
        "Volumes": {"/data": {}},
        "Labels": {"a": "b"},
    }
    document = {"os": "linux", "architecture": "ARM64", "variant": "v8", "config": run}
    config = oci.parse_config(json.dumps(document).encode())
    assert config.env == ("A=1", "B", "C=x=y\n")
    assert (config.entrypoint, config.cmd) == (("/init",), ("sh",))
    assert (config.working_dir, config.user, config.volumes, config.labels) == ("/w", "1:2", ("/data",), {"a": "b"})
    assert str(config.platform) == "linux/arm64/v8"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_a_string_that_no_file_or_variable_can_hold_is_refused(text: str) -> None:
    with pytest.raises(Fail, match="NUL or half"):
        oci.parse_config(json.dumps({"config": {"Env": [text]}}).encode())


def test_of_an_index_this_machines_image_is_chosen() -> None:
    assert oci.choose(entries("windows/amd64", "linux/arm64", "linux/amd64", "linux/amd64"), AMD64).size == 2


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"], 2),
        ("linux/arm/v6", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm/v8", ["linux/arm/v5", "linux/arm/v7"], 1),
        ("linux/arm", ["linux/arm/v6", "linux/arm"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm64/v9", ["linux/arm64", "linux/arm64/v9"], 1),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v1"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/x86_64", ["linux/arm64", "linux/amd64"], 1),
    ],
)
def test_of_several_variants_the_best_that_runs_is_chosen(wanted: str, offered: list[str], chosen: int) -> None:
    assert oci.choose(entries(*offered), parse_platform(wanted)).size == chosen


def test_attestations_are_never_chosen() -> None:
    attested = entries("linux/amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    there = [*attested, *entries("unknown/unknown", None)]
    assert oci.choose(there, AMD64).platform is None
    with pytest.raises(Fail, match="no image at all"):
        oci.choose(attested, AMD64)


def test_an_entry_without_a_platform_is_taken_when_it_is_the_only_one() -> None:
    assert oci.choose(entries(None), AMD64).size == 0
    with pytest.raises(Fail, match="entries without a platform"):
        oci.choose(entries(None, None), AMD64)


def test_an_index_without_our_platform_says_which_it_has() -> None:
    with pytest.raises(
        Fail, match="no image for 'linux/amd64': it offers linux/amd64/v3, linux/arm64: choose one with"
    ):
        oci.choose(entries("linux/arm64", "linux/amd64/v3"), AMD64)


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        ("application/vnd.cncf.helm.config.v1+json", LAYER),
        (CONFIG, "application/vnd.in-toto+json"),
        (CONFIG, f"{LAYER}+encrypted"),
    ],
)
def test_what_is_no_image_is_refused_by_its_type(config: str, layer: str) -> None:
    said = {"config": descriptor(b"", config), "layers": [descriptor(b"", layer)]}
    made = oci.parse_manifest(manifest(**said))
    assert isinstance(made, oci.Manifest)
    with pytest.raises(Fail, match="not a container image"):
        oci.check_image(made)


def test_a_docker_manifest_has_an_oci_form_that_remembers_it() -> None:
    made = image(docker=True)
    entry = oci.Descriptor(DOCKER_MANIFEST, made.digest, len(made.manifest), AMD64)
    form, data = oci.as_oci(entry, made.manifest)
    before, after = oci.parse_manifest(made.manifest), oci.parse_manifest(data, oci.OCI_MANIFEST)
    assert isinstance(before, oci.Manifest)
    assert isinstance(after, oci.Manifest)
    assert (after.config.media_type, after.layers[0].media_type) == (CONFIG, LAYER)
    assert [layer.digest for layer in after.layers] == [layer.digest for layer in before.layers]
    assert (form.platform, form.size) == (AMD64, len(data))
    found = oci.original(form)
    assert (found.media_type, found.digest, found.size) == (DOCKER_MANIFEST, made.digest, len(made.manifest))


def test_an_oci_manifest_is_its_own_form() -> None:
    entry = oci.Descriptor(MANIFEST, image().digest, 5)
    assert oci.as_oci(entry, b"12345") == (entry, b"12345")
    assert oci.original(entry) is entry


@pytest.mark.parametrize(
    ("docker", "form"),
    [
        (".tar", ".tar"),
        (".tar.gzip", ".tar+gzip"),
        (".tar+zstd", ".tar+zstd"),
        (".foreign.diff.tar.gzip", ".nondistributable.v1.tar+gzip"),
    ],
)
def test_each_docker_layer_type_has_its_oci_type(docker: str, form: str) -> None:
    kind = "application/vnd.docker.image.rootfs" + (docker if "foreign" in docker else f".diff{docker}")
    made = image(docker=True, layer_type=kind)
    _, data = oci.as_oci(oci.Descriptor(DOCKER_MANIFEST, made.digest, 1), made.manifest)
    assert json.loads(data)["layers"][0]["mediaType"].endswith(form)
    assert json.loads(data)["layers"][0]["mediaType"] in oci.LAYER_TYPES


@pytest.mark.parametrize(
    ("digest", "size"), [("sha256:../x", "5"), (image().digest, "-5"), (image().digest, "9" * 5000)]
)
def test_an_original_that_is_no_descriptor_is_refused(digest: str, size: str) -> None:
    said = {"shoebox.original.digest": digest, "shoebox.original.size": size}
    with pytest.raises(Fail):
        oci.original(oci.Descriptor(MANIFEST, image().digest, 5, annotations=said))


def test_a_config_without_its_layers_says_all_the_rest():
    whole = {"os": "linux", "config": {"Env": ["A=b"]}, "rootfs": {"diff_ids": []}, "history": [{}], "own": 1}
    assert json.loads(oci.without_layers(json.dumps(whole).encode())) == {
        "os": "linux",
        "config": {"Env": ["A=b"]},
        "own": 1,
    }
    for wrong in (b"", b"[]", b'{"config": []}', b'{"config": {"Env": "x"}}'):
        with pytest.raises(Fail):
            oci.without_layers(wrong)

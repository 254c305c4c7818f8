"""The site's policy: which requirements hold for whom, and what a signature may call an image."""

from __future__ import annotations

import json

import pytest

from shoebox import policy
from shoebox.fail import Fail
from shoebox.policy import Identity
from shoebox.reference import parse

D = "sha256:" + "ab" * 32
SCOPES = ("r.org:5000/a/b:1", f"r.org:5000/a/b@{D}", "r.org:5000/a/b", "r.org:5000/a", "r.org:5000", "*.org:5000", "")


def scopes(*names: str) -> policy.Policy:
    """Return a policy in which each scope wants a key called like it, and the default rejects."""
    docker = {name: [{"type": "sigstoreSigned", "keyPath": f"/{name}"}] for name in names}
    document = {"default": [{"type": "reject"}], "transports": {"docker": docker, "atomic": {"x": "not ours"}}}
    return policy.load(json.dumps(document).encode(), "policy.json")


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("r.org:5000/a/b:1", "r.org:5000/a/b:1"),
        (f"r.org:5000/a/b@{D}", f"r.org:5000/a/b@{D}"),
        ("r.org:5000/a/b:2", "r.org:5000/a/b"),
        ("r.org:5000/a/bc", "r.org:5000/a"),
        ("r.org:5000/ab", "r.org:5000"),
        ("x.org:5000/ab", "*.org:5000"),
        ("r.org/a/b:1", ""),
        ("debian", ""),
        ("R.org:5000/a/b:1", "r.org:5000/a/b:1"),
        ("r.org:05000/a/b:2", "r.org:5000/a/b"),
        ("X.ORG:5000/ab", "*.org:5000"),
    ],
)
def test_the_narrowest_scope_counts(text: str, scope: str) -> None:
    (found,) = scopes(*SCOPES).requirements(parse(text))
    assert found.keys[0].path == f"/{scope}"


@pytest.mark.parametrize("scope", ["r.org/a", "R.org:443/a", "r.org./a", "*.org", "*.ORG:443"])
def test_no_scope_is_got_round_by_another_spelling_of_the_registry(scope: str) -> None:
    for text in ("r.org/a/b:1", "R.org/a/b:1", "r.org:443/a/b:1", "r.org:0443/a/b:1"):
        (found,) = scopes(scope).requirements(parse(text))
        assert found.keys, text
    with pytest.raises(Fail, match="twice, spelled in two ways"):
        scopes("r.org/a", "R.org:443/a")
    assert Identity("matchExact").accepts(parse("R.org:443/a:1"), "r.org/a:1")
    assert Identity("remapIdentity", ("R.org", "s.org")).accepts(parse("r.org:443/a:1"), "S.org/a:1")


def test_without_a_scope_or_a_name_the_default_counts() -> None:
    assert scopes("r.org").requirements(parse("r.orgs/a"))[0].kind == policy.REJECT
    assert scopes("r.org", "").requirements(None)[0].kind == policy.REJECT


@pytest.mark.parametrize(
    ("kind", "words", "image", "good", "bad"),
    [
        ("matchExact", (), "r.org/a:1", ["r.org/a:1"], ["r.org/a", "r.org/a:2", "r.org/a/b:1", f"r.org/a@{D}", "a:1"]),
        ("matchExact", (), f"r.org/a@{D}", [f"r.org/a@{D}"], ["r.org/a:1"]),
        ("matchRepoDigestOrExact", (), "r.org/a:1", ["r.org/a:1"], ["r.org/a", "r.org/a:2", f"r.org/a@{D}"]),
        ("matchRepoDigestOrExact", (), f"r.org/a@{D}", ["r.org/a:1", "r.org/a:2"], ["r.org/b:1", "r.org/a"]),
        (
            "matchRepository",
            (),
            "r.org/a:1",
            ["r.org/a", "r.org/a:2", f"r.org/a@{D}"],
            ["r.org/ab", "s.org/a", "", "?"],
        ),
        ("exactReference", ("r.org/a:1",), "mirror.org/x:7", ["r.org/a:1"], ["r.org/a:2", "r.org/a", "mirror.org/x:7"]),
        ("exactRepository", ("r.org/a",), "mirror.org/x:7", ["r.org/a:1", "r.org/a"], ["r.org/b:1", "mirror.org/x:7"]),
        (
            "remapIdentity",
            ("m.org/p", "r.org"),
            "m.org/p/a:1",
            ["r.org/a:1"],
            ["r.org/a:2", "m.org/p/a:1", "r.org/p/a:1"],
        ),
        ("remapIdentity", ("m.org/p", "r.org"), "m.org/pp/a:1", ["m.org/pp/a:1"], ["r.orgp/a:1", "r.org/a:1"]),
        (
            "matchRepository",
            (),
            "debian:12",
            ["index.docker.io/library/debian", "docker.io/library/debian:1"],
            ["debian"],
        ),
    ],
)
def test_what_a_signature_may_call_an_image(
    kind: str, words: tuple[str, ...], image: str, good: list[str], bad: list[str]
) -> None:
    identity = Identity(kind, words)
    assert [name for name in good if not identity.accepts(parse(image), name)] == []
    assert [name for name in bad if identity.accepts(parse(image), name)] == []


def test_what_has_no_name_is_signed_only_under_an_exact_one() -> None:
    assert Identity("exactRepository", ("r.org/a",)).accepts(None, "r.org/a:1")
    assert not any(Identity(kind).accepts(None, "r.org/a:1") for kind in ("matchExact", "matchRepository"))


@pytest.mark.parametrize(
    ("requirement", "why"),
    [
        ({"type": "reject", "more": 1}, "unknown word 'more'"),
        ({"type": "sigstoreSigned", "keyPath": "/k", "keyData": "eA=="}, "needs one of"),
        ({"type": "sigstoreSigned", "keyPath": "k"}, "no absolute path"),
        ({"type": "sigstoreSigned", "keyPaths": []}, "wrong type, or empty"),
        ({"type": "sigstoreSigned", "keyPaths": "/k"}, "wrong type, or empty"),
        ({"type": "sigstoreSigned", "keyPath": ["/k"]}, "wrong type, or empty"),
        ({"type": "sigstoreSigned", "keyData": "?"}, "not base64"),
        ({"type": "sigstoreSigned", "keyPath": "/k", "key": 1}, "unknown word 'key'"),
        ({"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "any"}}, "unknown type 'any'"),
        ({"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "exactReference"}}, "dockerReference"),
        ({"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchExact", "x": 1}}, "word 'x'"),
    ],
)
def test_what_is_not_understood_is_no_permission(requirement: dict[str, object], why: str) -> None:
    with pytest.raises(Fail, match=why):
        policy.load(json.dumps({"default": [requirement]}).encode(), "policy.json")

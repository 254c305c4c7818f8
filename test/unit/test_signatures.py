"""Signatures in cosign's form: what they say, and how they are kept."""

from __future__ import annotations

import json

import pytest
from fixtures.images import image, index
from fixtures.signing import payload, signatures

from shoebox import oci
from shoebox import signatures as ours
from shoebox.fail import Fail
from shoebox.signatures import Bundle, Signature

DIGEST = "sha256:" + "ab" * 32


def test_a_payload_says_what_is_signed() -> None:
    assert ours.claim(payload(DIGEST, "r.org/a")) == (DIGEST, "r.org/a")
    # as cosign's SIGNATURE_SPEC.md shows it
    spec = {
        "critical": {
            "identity": {"docker-reference": "testing/manifest"},
            "image": {"docker-manifest-digest": DIGEST},
            "type": "cosign container image signature",
        },
        "optional": {"creator": "Bob the Builder", "timestamp": 1458239713},
    }
    assert ours.claim(json.dumps(spec).encode()) == (DIGEST, "testing/manifest")


@pytest.mark.parametrize("bad", [b"", b"[]", b"{}", b'{"critical": 1}', b'{"critical": {}}', b"[" * 9999, b"\xff"])
def test_an_odd_payload_says_nothing(bad: bytes) -> None:
    with pytest.raises(Fail, match="not a signature's payload"):
        ours.claim(bad)


def test_only_the_newest_of_many_are_looked_at_and_none_that_is_large() -> None:
    many = signatures(*((b"%d" % n, b"s") for n in range(ours.MOST + 9)), (b"x" * 16385, b"s"), (b"y", b"s" * 9999))
    manifest = oci.parse_manifest(many.manifest)
    assert isinstance(manifest, oci.Manifest)
    found = ours.listed(manifest)
    assert (len(found), found[0][0].size, found[-1][0].size) == (ours.MOST, 1, 2)


def test_a_manifest_is_covered_by_the_indexes_that_lead_to_it_and_no_others() -> None:
    made, other = image(), image(b"other")
    inner = index((made, None))
    outer, stranger = index((inner, None)), index((other, None))
    covered = ours.covered(made.digest, [outer.manifest, inner.manifest, stranger.manifest, b"{"])
    assert covered == {made.digest, inner.digest, outer.digest}


def test_a_bundle_is_read_as_it_was_written_and_anything_else_is_none() -> None:
    bundle = Bundle((Signature(b"payload", b"\0\xff"),), (b"{}",))
    assert ours.load(ours.dump(bundle)) == bundle
    for odd in (b"", b"[]", b"[" * 9999, b'{"signatures": 1}', b'{"signatures": [{"payload": "?"}, 1]}'):
        assert ours.load(odd) == ours.NONE

"""One repository of a registry: its manifests and blobs, and how often it is asked.

Follows distribution-spec v1.1 ("Pull").
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import requests

from . import oci, web
from .access import BUSY, Absent, Access
from .credentials import nobody
from .fail import LATER, Fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .credentials import Finder
    from .registries import Place

TRIES = 3
_LONGEST_WAIT = 120  # seconds that we wait when asked to; more is for another day
_ACCEPT = {"Accept": ", ".join(oci.MANIFEST_TYPES + oci.INDEX_TYPES)}


class Registry:
    """A repository, open for reading by several threads at once."""

    def __init__(self, through: web.Web, place: Place, repository: str, find: Finder, tries: int = TRIES) -> None:
        """Send nothing yet. place: how the registry is reached; find: whose credentials; tries: of each request."""
        self._web = through
        self._place = place
        self._netloc = place.netloc
        self._access = Access(through, place, find)
        self._tries = tries
        self._repository = place.prefix + repository
        self._base = f"{place.url}/v2/{self._repository}"
        self._lock = threading.Lock()
        self._authorization = ""

    @property
    def host(self) -> str:
        """`host[:port]` of who is asked."""
        return self._netloc

    @property
    def known(self) -> bool:
        """Whether it has been told who we are."""
        return self._access.known

    def public(self, digest: str) -> bool:
        """Tell whether a manifest is there for everybody: asked for once, without credentials. Raises Fail."""
        repository = self._repository.removeprefix(self._place.prefix)
        stranger = Registry(self._web, self._place, repository, nobody, tries=1)
        answer, _ = stranger._get(f"{self._base}/manifests/{digest}", _ACCEPT, method="HEAD")
        answer.close()
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        return answer.status_code == requests.codes.ok and kind in oci.MANIFEST_TYPES + oci.INDEX_TYPES

    def has(self, name: str) -> bool:
        """Tell whether a tag or digest is there for us to pull."""
        answer, _ = self._get(f"{self._base}/manifests/{name}", _ACCEPT, method="HEAD")
        answer.close()
        return answer.status_code not in (401, 403, 404)

    def digest(self, name: str) -> str:
        """Return the digest that the registry tells for a tag, "" if it tells none, or has none for us. Raises Fail."""
        answer, _ = self._get(f"{self._base}/manifests/{name}", _ACCEPT, method="HEAD")
        answer.close()
        return answer.headers.get("Docker-Content-Digest", "") if answer.ok else ""

    def manifest(self, name: str) -> tuple[bytes, str]:
        """Return a manifest or index by tag or digest, as it came, and its Content-Type. Raises Fail."""
        answer, body = self._get(f"{self._base}/manifests/{name}", _ACCEPT, limit=oci.MAX_DOCUMENT)
        if answer.status_code != requests.codes.ok:
            raise self._refused(answer)
        if ":" not in name:
            self._check(name, body, answer.headers.get("Docker-Content-Digest", ""))
        return body, answer.headers.get("Content-Type", "")

    def _check(self, tag: str, body: bytes, digest: str) -> None:
        """Ask again, by digest, when bytes that came for a tag are not of the digest that was told with them.

        Some registries tell another manifest's (they convert it), and go on saying so: then there is nothing to compare
        with. Raises Fail if the answers differ.
        """
        if not digest.startswith("sha256:") or digest == f"sha256:{hashlib.sha256(body).hexdigest()}":
            return
        if self.optional(digest) not in (None, body):
            raise Fail(f"the registry sent something else for {tag!r}", f"it says {digest!r}", "pull again")

    def optional(self, name: str) -> bytes | None:
        """Return a manifest or index by tag or digest, as it came; None if it is not there. Raises Fail."""
        answer, body = self._get(f"{self._base}/manifests/{name}", _ACCEPT, limit=oci.MAX_DOCUMENT)
        if answer.status_code == requests.codes.not_found:
            answer.close()
            return None
        if answer.status_code != requests.codes.ok:
            raise self._refused(answer)
        return body

    def referrers(self, digest: str) -> bytes | None:
        """Return the index of what refers to a digest; None from a registry that keeps none. Raises Fail."""
        answer, body = self._get(f"{self._base}/referrers/{digest}", {"Accept": oci.OCI_INDEX}, limit=oci.MAX_DOCUMENT)
        if answer.status_code == requests.codes.ok:
            return body
        answer.close()
        return None

    def prove(self, descriptor: oci.Descriptor) -> None:
        """Make sure that the repository has a blob, for us. Raises Fail."""
        answer, _ = self._get(f"{self._base}/blobs/{descriptor.digest}", {}, method="HEAD")
        if answer.status_code != requests.codes.ok:
            raise self._refused(answer)
        answer.close()

    def blob(self, descriptor: oci.Descriptor, start: int) -> tuple[int, Iterator[bytes]]:
        """Ask for a blob from byte `start` on; return at which byte the answer starts (`start` or 0), and its pieces.

        The pieces raise ConnectionError when they break off. Their digest is the caller's to check. Raises Fail.
        """
        sources = [f"{self._base}/blobs/{descriptor.digest}", *(descriptor.urls if descriptor.foreign else ())]
        for source in sources:
            answer, _ = self._get(source, {"Range": f"bytes={start}-"} if start else {})
            if answer.status_code in (200, 206, 416):
                break
        partial = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and (answer.status_code == 416 or (answer.status_code == 206 and not partial)):
            answer.close()
            return self.blob(descriptor, 0)
        if answer.status_code != 200 and not (answer.status_code == 206 and partial):
            raise self._refused(answer)
        first = start if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length", "")
        if length and length != str(descriptor.size - first):
            answer.close()
            what = f"the blob '{descriptor.digest}' is not as its manifest says"
            raise Fail(what, f"{length[:20]} bytes where {descriptor.size - first} belong", "push the image again")
        return first, web.pieces(answer)

    def _get(
        self, url: str, headers: Mapping[str, str], method: str = "GET", limit: int = 0
    ) -> tuple[requests.Response, bytes]:
        """Ask, again if it may help. limit: read that much of a good answer; 0 leaves its body to the caller."""
        for attempt in range(1, self._tries + 1):
            wait = 0.5 * 2 ** (attempt - 1)
            try:
                answer = self._ask(url, headers, method)
                if answer.status_code not in BUSY:
                    return answer, web.read(answer, limit) if limit and answer.ok else b""
                wait = _retry_after(answer.headers.get("Retry-After", "")) or wait
                failure = self._refused(answer)
            except web.BROKEN as error:
                failure = web.told(error, url)
            if failure.status != LATER or attempt == self._tries or wait > _LONGEST_WAIT:
                break
            time.sleep(wait)
        raise failure

    def _ask(self, url: str, headers: Mapping[str, str], method: str) -> requests.Response:
        """Ask once; when the registry wants to know who we are, tell it and ask again."""
        own = web.origin(url) == web.origin(self._base)
        used = self._authorization
        answer = self._web.ask(method, url, headers, used if own else "")
        if answer.status_code != 401 or not own or web.origin(answer.url) != web.origin(url):
            return answer
        with self._lock:
            if self._authorization == used:  # else another thread has just renewed it
                self._authorization = self._access.authorize(
                    answer.headers.get("WWW-Authenticate", ""), self._repository
                )
        if self._authorization == used:
            return answer
        web.read(answer, web.SMALL)
        return self._web.ask(method, url, headers, self._authorization)

    def _refused(self, answer: requests.Response) -> Fail:
        """Say what an answer other than the hoped-for one means; closes it."""
        status = answer.status_code
        try:
            body = b"" if answer.request.method == "HEAD" else web.read(answer, web.SMALL)
        except ConnectionError:
            body = b""
        if status in (401, 403):
            return self._access.refused(status)
        if status == 404:
            lost = answer.url.rpartition("/blobs/")[2] if "/blobs/" in answer.url else ""
            todo = "push the image again" if lost else "check the name and the tag"
            return Absent(f"'{self._netloc}' does not have {f'the blob {lost!r}' if lost else 'it'}", todo=todo)
        if status == 429:
            return Fail(f"too many requests for '{self._netloc}'", todo="log in, or try again later", status=LATER)
        if status == 400 and b"HTTPS" in body and self._place.url.startswith("http:"):
            return web.speaks_https(self._netloc)
        found = re.search(rb'"message"\s*:\s*"([^"]{1,200})', body)
        what = f"'{self._netloc}' answers {status}{' (' + found[1].decode(errors='replace') + ')' if found else ''}"
        return Fail(what, todo="try again later", status=LATER) if status in BUSY else Fail(what)


def _retry_after(value: str) -> float:
    """Return seconds to wait from Retry-After (RFC 9110, 10.2.3): a number, or a date; 0 for neither."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0

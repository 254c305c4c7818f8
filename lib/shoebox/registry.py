"""One repository of a registry: its manifests and blobs, who we are to it, and how often it is asked.

Follows distribution-spec v1.1 ("Pull") and distribution's docs/content/spec/auth/{token,oauth,scope}.md. Credentials go
to the registry itself and to its own token server, never unasked into clear http.
"""

from __future__ import annotations

import json
import re
import threading
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import requests

from . import credentials, oci, web
from .fail import LATER, Fail
from .registries import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .registries import Place

TRIES = 3
_LONGEST_WAIT = 120  # seconds that we wait when asked to; more is for another day
_BUSY = (408, 429, 500, 502, 503, 504)
_ACCEPT = {"Accept": ", ".join(oci.MANIFEST_TYPES + oci.INDEX_TYPES)}
_CHALLENGE = re.compile(r'([\w!#$%&^`|~.+-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+)))?')


class Registry:
    """A repository, open for reading by several threads at once."""

    def __init__(self, through: web.Web, place: Place, repository: str, env: Mapping[str, str]) -> None:
        """Send nothing yet. place: how the registry is reached; env: where credentials are."""
        self._web = through
        self._place = place
        self._env = env
        self._netloc = urlsplit(place.url).netloc
        self._repository = place.prefix + repository
        self._base = f"{place.url}/v2/{self._repository}"
        self._lock = threading.Lock()
        self._authorization = ""
        self._withheld = ""  # the token server that did not get our credentials

    def has(self, name: str) -> bool:
        """Tell whether a tag or digest is there for us to pull."""
        answer, _ = self._get(f"{self._base}/manifests/{name}", _ACCEPT, method="HEAD")
        answer.close()
        return answer.status_code not in (401, 403, 404)

    def manifest(self, name: str) -> tuple[bytes, str]:
        """Return a manifest or index by tag or digest, as it came, and its Content-Type. Raises Fail."""
        answer, body = self._get(f"{self._base}/manifests/{name}", _ACCEPT, limit=oci.MAX_DOCUMENT)
        if answer.status_code != requests.codes.ok:
            raise self._refused(answer)
        return body, answer.headers.get("Content-Type", "")

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
        """Ask up to three times. limit: read that much of a good answer at once; 0 leaves its body to the caller."""
        for attempt in range(1, TRIES + 1):
            wait = 0.5 * 2 ** (attempt - 1)
            try:
                answer = self._ask(url, headers, method)
                if answer.status_code not in _BUSY:
                    return answer, web.read(answer, limit) if limit and answer.ok else b""
                wait = _retry_after(answer.headers.get("Retry-After", "")) or wait
                failure = self._refused(answer)
            except web.BROKEN as error:
                failure = web.told(error, url)
            if failure.status != LATER or attempt == TRIES or wait > _LONGEST_WAIT:
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
                self._authorization = self._authorize(answer.headers.get("WWW-Authenticate", ""))
        if self._authorization == used:
            return answer
        web.read(answer, web.SMALL)
        return self._web.ask(method, url, headers, self._authorization)

    def _authorize(self, header: str) -> str:
        """Answer a registry's challenge (WWW-Authenticate): return an Authorization, or "" if we have none."""
        found = credentials.find(self._netloc, self._repository, self._env)
        challenges = _challenges(header)
        if "bearer" in challenges:
            token = found.registry_token if found else ""
            return "Bearer " + (token or self._token(challenges["bearer"], found))
        return found.basic if "basic" in challenges and found else ""

    def _token(self, challenge: dict[str, str], found: credentials.Credentials | None) -> str:
        """Fetch a token for pulling this one repository, whatever scope the registry would like."""
        realm = challenge.get("realm", "")
        netloc = urlsplit(realm).netloc
        what = f"cannot log in at '{self._netloc}'"
        if urlsplit(realm).scheme not in ("http", "https") or not netloc:
            raise Fail(what, f"it names no token server: {realm[:200]!r}")
        if found and not self._may_see(realm):
            self._withheld = netloc
            found = None
        asked = {"scope": f"repository:{self._repository}:pull"}
        if challenge.get("service"):
            asked["service"] = challenge["service"]
        if found and found.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "shoebox", "refresh_token": found.identity_token}
            answer = self._web.ask("POST", realm, {}, "", form | asked)
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
            answer = self._web.ask("GET", url, {}, found.basic if found else "")
        body = web.read(answer, web.SMALL)
        if answer.status_code in _BUSY:
            raise ConnectionError(f"its token server answers {answer.status_code}")
        if answer.status_code != requests.codes.ok:
            raise self._no_login(answer.status_code)
        try:
            document: object = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Fail(what, f"{netloc!r} sends no token") from error
        token = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Fail(what, f"{netloc!r} sends no token")
        return token

    def _may_see(self, realm: str) -> bool:
        """Tell whether a token server may see the registry's credentials."""
        netloc = urlsplit(realm).netloc
        name, own = web.hostname(netloc), web.hostname(self._netloc)
        allowed = self._place.auth in (netloc, name)
        if urlsplit(realm).scheme == "http" and not is_loopback(name):
            return self._place.url.startswith("http:") and (name == own or allowed)
        return allowed or web.related(name, own)

    def _refused(self, answer: requests.Response) -> Fail:
        """Say what an answer other than the hoped-for one means; closes it."""
        status = answer.status_code
        try:
            body = b"" if answer.request.method == "HEAD" else web.read(answer, web.SMALL)
        except ConnectionError:
            body = b""
        if status in (401, 403):
            return self._no_login(status)
        if status == 404:
            lost = answer.url.rpartition("/blobs/")[2] if "/blobs/" in answer.url else ""
            todo = "push the image again" if lost else "check the name and the tag"
            return Fail(f"'{self._netloc}' does not have {f'the blob {lost!r}' if lost else 'it'}", todo=todo)
        if status == 429:
            return Fail(f"too many requests for '{self._netloc}'", todo="log in, or try again later", status=LATER)
        if status == 400 and b"HTTPS" in body and self._place.url.startswith("http:"):
            return web.speaks_https(self._netloc)
        found = re.search(rb'"message"\s*:\s*"([^"]{1,200})', body)
        what = f"'{self._netloc}' answers {status}{' (' + found[1].decode(errors='replace') + ')' if found else ''}"
        return Fail(what, todo="try again later", status=LATER) if status in _BUSY else Fail(what)

    def _no_login(self, status: int) -> Fail:
        if self._withheld:
            what = f"'{self._netloc}' has tokens from '{self._withheld}', which does not get its credentials unasked"
            return Fail(what, todo=web.remedy(self._netloc, f'auth = "{self._withheld}"'))
        what = f"'{self._netloc}' answers {status}, not allowed or not there"
        return Fail(what, todo=f"check the name, or log in with 'docker login {self._netloc}' or podman's")


def _challenges(header: str) -> dict[str, dict[str, str]]:
    """Read WWW-Authenticate (RFC 9110, 11.6.1): schemes in lower case, each with its parameters."""
    found: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    for match in _CHALLENGE.finditer(header):
        name, quoted, plain = match.groups()
        if quoted is None and plain is None:
            parameters = found.setdefault(name.lower(), {})
        else:
            parameters[name.lower()] = plain or re.sub(r"\\(.)", r"\1", quoted or "")
    return found


def _retry_after(value: str) -> float:
    """Return seconds to wait from Retry-After (RFC 9110, 10.2.3): a number, or a date; 0 for neither."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0

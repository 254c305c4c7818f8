"""Registries over HTTP: manifests, blobs, tokens, redirects, retries, and what went wrong with them in one line.

Follows distribution-spec v1.1 ("Pull") and distribution's docs/content/spec/auth/{token,oauth,scope}.md. Credentials go
to the registry itself and its own token server, never along a redirect to another host, never unasked into clear http.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError

from . import VERSION, credentials, oci, trouble
from .fail import FAILED, LATER, Fail
from .registries import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .reference import Reference
    from .registries import Table

TRIES = 3
_LONGEST_WAIT = 120  # seconds that we wait when asked to; more is for another day
_HOPS = 5  # redirects
_BUFFER = 1 << 20  # bytes
_BUSY = (408, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_ANSWER = 1 << 20  # bytes of a token or an error
_ACCEPT = ", ".join(oci.MANIFEST_TYPES + oci.INDEX_TYPES)
_NETLOC = re.compile(r"[A-Za-z0-9._:\[\]-]+")  # no user@, no backslash: libraries disagree about where the host ends
_CHALLENGE = re.compile(r'([\w!#$%&^`|~.+-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+)))?')
_DIRECT = {"http": "", "https": "", "all": ""}


def session(connections: int) -> requests.Session:
    """Make what keeps connections open; proxies come from the environment."""
    made = requests.Session()
    made.headers.update({"User-Agent": f"shoebox/{VERSION}", "Accept-Encoding": "identity"})
    for scheme in ("http://", "https://"):
        made.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=connections))
    return made


class Registry:
    """One repository of a registry, open for reading, by several threads at once."""

    def __init__(self, web: requests.Session, table: Table, reference: Reference, env: Mapping[str, str]) -> None:
        """Look up how it is reached; nothing is sent yet. Raises Fail when it is blocked."""
        self._web = web
        self._table = table
        self._env = env
        self._place = table.place(reference.registry)
        self._reference = reference
        self._netloc = urlsplit(self._place.url).netloc
        self._repository = self._place.prefix + reference.repository
        self._base = f"{self._place.url}/v2/{self._repository}"
        self._lock = threading.Lock()
        self._authorization = ""
        self._withheld = ""  # the token server that did not get our credentials

    def has(self, name: str) -> bool:
        """Tell whether a tag or digest is there for us to pull."""
        status = self._get(f"{self._base}/manifests/{name}", {"Accept": _ACCEPT}, method="HEAD").status_code
        return status not in (401, 403, 404)

    def manifest(self, name: str) -> tuple[bytes, str]:
        """Return a manifest or index by tag or digest, as it came, and its Content-Type. Raises Fail."""
        answer = self._get(f"{self._base}/manifests/{name}", {"Accept": _ACCEPT}, limit=oci.MAX_DOCUMENT)
        if answer.status_code != requests.codes.ok:
            raise self._refused(answer, f"cannot pull '{self._reference}'")
        return answer.content, answer.headers.get("Content-Type", "")

    def blob(self, descriptor: oci.Descriptor, start: int) -> tuple[int, Iterator[bytes]]:
        """Ask for a blob from byte `start` on; return at which byte the answer starts (`start` or 0), and its pieces.

        The pieces raise ConnectionError when they break off. Their digest is the caller's to check. Raises Fail.
        """
        sources = [f"{self._base}/blobs/{descriptor.digest}", *(descriptor.urls if descriptor.foreign else ())]
        headers = {"Range": f"bytes={start}-"} if start else {}
        for source in sources:
            answer = self._get(source, headers)
            if answer.status_code in (200, 206, 416):
                break
        first = start if answer.headers.get("Content-Range", "").startswith(f"bytes {start}-") else -1
        if start and (answer.status_code == 416 or (answer.status_code == 206 and first < 0)):
            answer.close()
            return self.blob(descriptor, 0)
        if answer.status_code != 200 and first < 0:
            raise self._refused(answer, f"cannot pull the blob '{descriptor.digest}' of '{self._reference}'")
        first = 0 if answer.status_code == 200 else first
        length = answer.headers.get("Content-Length", "")
        if length and length != str(descriptor.size - first):
            answer.close()
            why = f"the registry sends {length[:20]} bytes, where {descriptor.size - first} belong"
            raise Fail(
                f"cannot pull the blob '{descriptor.digest}' of '{self._reference}'", why, "push the image again"
            )
        return first, _pieces(answer)

    def _get(self, url: str, headers: Mapping[str, str], method: str = "GET", limit: int = 0) -> requests.Response:
        """Ask up to three times. limit: read so many bytes at once into content; 0 leaves the body to the caller."""
        for attempt in range(1, TRIES + 1):
            wait = 0.5 * 2 ** (attempt - 1)
            try:
                answer = self._ask(url, headers, method)
                if answer.status_code not in _BUSY:
                    if limit and answer.status_code == requests.codes.ok:
                        _keep(answer, limit)
                    return answer
                failure = self._refused(answer, f"cannot pull '{self._reference}'")
                wait = _retry_after(answer.headers.get("Retry-After", "")) or wait
            except (requests.RequestException, HTTPError, ConnectionError, ValueError) as error:
                failure = trouble.told(error, url)
            if failure.status != LATER or attempt == TRIES or wait > _LONGEST_WAIT:
                break
            time.sleep(wait)
        raise failure

    def _ask(self, url: str, headers: Mapping[str, str], method: str) -> requests.Response:
        """Ask once; when the registry wants to know who we are, tell it and ask again."""
        own = _origin(url) == _origin(self._base)
        used = self._authorization
        answer = self._follow(method, url, headers, used if own else "")
        if answer.status_code != 401 or not own or _origin(answer.url) != _origin(url):
            return answer
        with self._lock:
            if self._authorization == used:  # else another thread has just renewed it
                self._authorization = self._authorize(answer.headers.get("WWW-Authenticate", ""))
        if self._authorization == used:
            return answer
        answer.close()
        return self._follow(method, url, headers, self._authorization)

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], authorization: str, form: dict[str, str] | None = None
    ) -> requests.Response:
        """Send a request and follow redirects by hand: Authorization stays with the scheme, host and port it is for."""
        origin = _origin(url)
        for _ in range(_HOPS):
            netloc = urlsplit(url).netloc
            if not _NETLOC.fullmatch(netloc):
                raise Fail(f"'{self._netloc}' sends us to {trouble.shown(url)!r}", "no plain host and port")
            answer = self._web.request(
                method,
                url,
                headers=headers,
                data=form,
                auth=_signer(authorization if _origin(url) == origin else ""),
                stream=True,
                allow_redirects=False,
                timeout=trouble.TIMEOUT,
                proxies=_DIRECT if is_loopback(netloc) else None,
                verify=self._trust(netloc),
            )
            if answer.status_code not in _REDIRECTS or "Location" not in answer.headers or form:
                return answer
            answer.close()
            target = urljoin(url, answer.headers["Location"])
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise Fail(
                    f"{netloc!r} redirects to {trouble.shown(target)!r}", "from https into clear http", status=FAILED
                )
            url = target
        raise Fail(f"{urlsplit(origin).netloc!r} redirects more than {_HOPS} times")

    def _trust(self, netloc: str) -> str | bool:
        """Return the CA file (or directory) to trust for a host: the table's, else the system's (SSL_CERT_FILE)."""
        same = _hostname(netloc) == _hostname(self._netloc)
        path = (same and self._place.ca) or self._table.ca(netloc)
        if path and not os.access(path, os.R_OK):
            raise Fail(f"cannot read the CA file {path!r}", f"given for {netloc!r}", "mend it in registries.toml")
        if path or "REQUESTS_CA_BUNDLE" in self._env:
            return path or True
        system = ssl.get_default_verify_paths()
        return system.cafile or system.capath or True

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
        if urlsplit(realm).scheme not in ("http", "https") or not netloc:
            raise Fail(f"cannot log in at '{self._netloc}'", f"it names no token server: {realm[:200]!r}")
        if found and not self._may_see(realm):
            self._withheld = netloc
            found = None
        asked = {"scope": f"repository:{self._repository}:pull"}
        if challenge.get("service"):
            asked["service"] = challenge["service"]
        if found and found.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "shoebox", "refresh_token": found.identity_token}
            answer = self._follow("POST", realm, {}, "", form | asked)
        else:
            url = requests.Request("GET", realm, params=asked).prepare().url or realm
            answer = self._follow("GET", url, {}, found.basic if found else "")
        if answer.status_code in _BUSY:
            raise requests.ConnectionError(f"the token server answers {answer.status_code}")
        if answer.status_code != requests.codes.ok:
            answer.close()
            raise self._no_login(answer.status_code)
        try:
            document: object = json.loads(_keep(answer, _ANSWER))
        except (ValueError, RecursionError) as error:
            raise Fail(f"cannot log in at '{self._netloc}'", f"{netloc!r} sends no token") from error
        token = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Fail(f"cannot log in at '{self._netloc}'", f"{netloc!r} sends no token")
        return token

    def _may_see(self, realm: str) -> bool:
        """Tell whether a token server may see the registry's credentials."""
        netloc, registry = urlsplit(realm).netloc, self._netloc
        allowed = self._place.auth in (netloc, _hostname(netloc))
        if urlsplit(realm).scheme == "http" and not is_loopback(netloc):
            same = _hostname(netloc) == _hostname(registry)
            return self._place.url.startswith("http:") and (same or allowed)
        return allowed or related(_hostname(netloc), _hostname(registry))

    def _refused(self, answer: requests.Response, what: str) -> Fail:
        """Say what an answer other than the hoped-for one means; closes it."""
        status = answer.status_code
        if status in (401, 403):
            answer.close()
            return self._no_login(status)
        if status == 404:
            answer.close()
            return Fail(what, f"'{self._netloc}' does not have it", "check the name and the tag")
        if status == 429:
            answer.close()
            return Fail(what, f"too many requests for '{self._netloc}'", "log in, or try again later", LATER)
        body = b"" if answer.request.method == "HEAD" else _keep(answer, _ANSWER, strict=False)
        if status == 400 and b"HTTPS" in body and self._place.url.startswith("http:"):
            return trouble.speaks_https(self._netloc)
        found = re.search(rb'"message"\s*:\s*"([^"]{1,200})', body)
        why = f"'{self._netloc}' answers {status}{' (' + found[1].decode(errors='replace') + ')' if found else ''}"
        return Fail(what, why, "try again later", LATER) if status in _BUSY else Fail(what, why)

    def _no_login(self, status: int) -> Fail:
        what = f"cannot pull '{self._reference}'"
        if self._withheld:
            why = f"'{self._netloc}' has tokens from '{self._withheld}', which does not get its credentials unasked"
            return Fail(what, why, trouble.table(self._netloc, f'auth = "{self._withheld}"'))
        why = f"'{self._netloc}' answers {status}, not allowed or not there"
        return Fail(what, why, f"check the name, or log in with 'docker login {self._netloc}' or podman's")


def related(first: str, second: str) -> bool:
    """Tell whether two host names are the same, or of the same domain: `registry.gitlab.com`, `gitlab.com`."""
    if first == second or (is_loopback(first) and is_loopback(second)):
        return True
    if any(name.rpartition(".")[2].isdigit() or name.startswith("[") for name in (first, second)):
        return False  # addresses have no domain
    domains = [name.split(".", 1)[1] if name.count(".") > 1 else name for name in (first, second)]
    return domains[0] == domains[1] and "." in domains[0]


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _hostname(netloc: str) -> str:
    return (urlsplit(f"//{netloc}").hostname or "") if netloc else ""


def _signer(authorization: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Return what requests takes for `auth`; always given, since without it requests would look into ~/.netrc."""

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if authorization:
            request.headers["Authorization"] = authorization
        return request

    return sign


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


def _keep(answer: requests.Response, limit: int, *, strict: bool = True) -> bytes:
    """Read a small body, at most limit bytes and one, and let requests have it as content. Raises ConnectionError."""
    body = b""
    try:
        for piece in _pieces(answer, min(limit + 1, _BUFFER)):
            body += piece
            if len(body) > limit:
                break
    except ConnectionError:
        if strict:
            raise
    answer._content = body  # noqa: SLF001 - so that .content is what was read, within bounds
    return body


def _pieces(answer: requests.Response, size: int = _BUFFER) -> Iterator[bytes]:
    """Yield a body as it comes over the wire."""
    try:
        while piece := answer.raw.read(size, decode_content=False):
            yield piece
    except (HTTPError, OSError) as error:
        raise ConnectionError(*error.args) from error
    finally:
        answer.close()

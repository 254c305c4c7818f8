"""HTTP for registries: requests with redirects followed by hand, and what went wrong with them in one line.

Authorization stays with the scheme, host and port it is meant for, whatever an answer's Location says.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError

from . import VERSION
from .fail import LATER, Fail
from .registries import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .registries import Table

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
_HOPS = 5  # redirects
_BUFFER = 1 << 20  # bytes
_LITTLE = 1 << 16  # bytes
_SOON = 0.1  # seconds
SMALL = 1 << 20  # bytes: more than a token, an error or a redirect takes
_REDIRECTS = (301, 302, 303, 307, 308)
_NETLOC = re.compile(r"[A-Za-z0-9._:\[\]-]+")  # no user@, no backslash: libraries disagree about where the host ends
_DIRECT = {"http": "", "https": "", "all": ""}
BROKEN = (requests.RequestException, HTTPError, ConnectionError, ValueError)  # what told explains


class Web:
    """Connections that stay open for all names of one command line; several threads may use them at once."""

    def __init__(self, table: Table, env: Mapping[str, str], connections: int) -> None:
        """Open nothing yet. table: knows the CA files; env: SSL_CERT_FILE and the like; proxies are requests' own."""
        self._table = table
        self._env = env
        self._session = requests.Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # who we are, each request says
        self._session.headers.update({"User-Agent": f"shoebox/{VERSION}", "Accept-Encoding": "identity"})
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=connections))

    def ask(
        self, method: str, url: str, headers: Mapping[str, str], authorization: str, form: dict[str, str] | None = None
    ) -> requests.Response:
        """Send a request and follow redirects (a form is not sent on); the body is left to be read.

        Raises one of BROKEN, and Fail for a redirect that we do not follow.
        """
        first = origin(url)
        for _ in range(_HOPS):
            netloc = urlsplit(url).netloc
            if not _NETLOC.fullmatch(netloc):
                raise Fail(f"{urlsplit(first).netloc!r} sends us to {_shown(url)!r}", "no plain host and port")
            answer = self._session.request(
                method,
                url,
                headers=headers,
                data=form,
                auth=_signer(authorization if origin(url) == first else ""),
                stream=True,
                allow_redirects=False,
                timeout=TIMEOUT,
                proxies=_DIRECT if is_loopback(netloc) else None,
                verify=self._trust(netloc),
            )
            if answer.status_code not in _REDIRECTS or "Location" not in answer.headers or form:
                return answer
            read(answer, SMALL)  # to its end, so that the connection can be used again
            target = urljoin(url, answer.headers["Location"])
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise Fail(f"{netloc!r} sends us to {_shown(target)!r}", "from https into clear http")
            url = target
        raise Fail(f"{urlsplit(first).netloc!r} redirects more than {_HOPS} times")

    def _trust(self, netloc: str) -> str | bool:
        """Return the CA file (or directory) to trust for a host: the table's, else the system's (SSL_CERT_FILE)."""
        path = self._table.ca(netloc)
        if path and not os.access(path, os.R_OK):
            raise Fail(f"cannot read the CA file {path!r}", f"given for {netloc!r}", "mend it in registries.toml")
        if path or "REQUESTS_CA_BUNDLE" in self._env:
            return path or True
        system = ssl.get_default_verify_paths()
        return system.cafile or system.capath or True


def origin(url: str) -> str:
    """Return a URL's scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def hostname(netloc: str) -> str:
    """Return `host` of `host:port`, in lower case."""
    return urlsplit(f"//{netloc}").hostname or ""


def related(first: str, second: str) -> bool:
    """Tell whether two host names are the same, or of the same domain: `registry.gitlab.com`, `gitlab.com`."""
    if first == second or (is_loopback(first) and is_loopback(second)):
        return True
    if any(name.rpartition(".")[2].isdigit() or ":" in name for name in (first, second)):
        return False  # addresses have no domain
    domains = [name.split(".", 1)[1] if name.count(".") > 1 else name for name in (first, second)]
    return domains[0] == domains[1] and "." in domains[0]


def read(answer: requests.Response, limit: int) -> bytes:
    """Read a small body: at most limit bytes, and one that shows that there were more. Raises ConnectionError."""
    body = b""
    for piece in pieces(answer, min(limit + 1, _BUFFER)):
        body += piece
        if len(body) > limit:
            break
    return body


def pieces(answer: requests.Response, size: int = _BUFFER) -> Iterator[bytes]:
    """Yield a body as it comes over the wire; raises ConnectionError when it breaks off.

    A connection that is reset takes the piece with it that we are waiting for: so that is never much more than what has
    come before, nor than what takes a moment.
    """
    amount = min(size, _LITTLE)
    try:
        began = time.monotonic()
        while piece := answer.raw.read(amount, decode_content=False):
            soon = time.monotonic() - began < _SOON
            yield piece
            amount = min(size, amount * 2) if soon else max(_LITTLE, amount // 2)
            began = time.monotonic()
    except (HTTPError, OSError) as error:
        raise ConnectionError(str(error)) from error
    finally:
        answer.close()


def remedy(host: str, line: str) -> str:
    """Name the remedy that a line in the table of registries is."""
    return f"""write {line} under [registry."{host}"] in registries.toml"""


def speaks_https(host: str) -> Fail:
    """Say that plain http is not what a host wants."""
    return Fail(f"cannot reach {host!r}", "it speaks https, not plain http", remedy(host, f'url = "https://{host}"'))


def told(error: Exception, url: str) -> Fail:
    """Say in one line what kept us from an answer; its status is LATER when it may pass. error: one of BROKEN."""
    request = error.request if isinstance(error, requests.RequestException) else None
    url = (request.url if request is not None else None) or url  # of the last hop
    host = urlsplit(url).netloc
    causes = list(_causes(error))
    what = f"cannot reach {host!r}"
    untrusted = next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted:
        return Fail(f"cannot trust {host!r}", untrusted.verify_message, remedy(host, 'ca = "/path/ca.pem"'))
    if isinstance(error, requests.exceptions.ProxyError):
        return Fail(what, "its proxy does not let us through", "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY", LATER)
    if isinstance(error, requests.exceptions.SSLError):
        text = " ".join(map(str, causes)).upper().replace(" ", "_")
        if any(sign in text for sign in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")):
            todo = "if you trust the network, " + remedy(host, "insecure-http = true")
            return Fail(what, "it speaks plain http, not https", todo)
        return Fail(what, f"TLS fails: {str(causes[-1])[:200]}")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Fail(what, "no such host", "check the name, the network, or set HTTPS_PROXY", LATER)
    if isinstance(error, requests.Timeout):
        connecting = isinstance(error, requests.ConnectTimeout)
        return Fail(what, f"no answer within {TIMEOUT[0 if connecting else 1]} s", "try again later", LATER)
    if isinstance(error, (requests.ConnectionError, HTTPError, ConnectionError)):
        system = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), "")
        todo = f"check that it runs{' and speaks plain http' if url.startswith('http:') else ', or set HTTPS_PROXY'}"
        return Fail(what, system or str(causes[-1])[:200] or "the connection broke", todo, LATER)
    return Fail(f"cannot use the address {_shown(url)!r}", str(error)[:200])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        inner = cause.args[0] if cause.args and isinstance(cause.args[0], BaseException) else None
        cause = cause.__cause__ or cause.__context__ or inner


def _shown(url: str) -> str:
    """Return a URL without its query, which may be a secret (signed URLs)."""
    return url.partition("?")[0][:200]


def _signer(authorization: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Return what requests takes for `auth`; always given, since without it requests would look into ~/.netrc."""

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if authorization:
            request.headers["Authorization"] = authorization
        return request

    return sign

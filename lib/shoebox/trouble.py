"""What kept us from a registry's answer, in one line that names the remedy."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from .fail import LATER, Fail

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer


def told(error: Exception, url: str) -> Fail:
    """Say in one line what kept us from an answer; status LATER when it may pass."""
    request = error.request if isinstance(error, requests.RequestException) else None
    url = (request.url if request is not None else None) or url  # of the last hop
    host = urlsplit(url).netloc
    causes = list(_causes(error))
    what = f"cannot reach {host!r}"
    untrusted = next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted:
        return Fail(f"cannot trust {host!r}", untrusted.verify_message, table(host, 'ca = "/path/ca.pem"'))
    if isinstance(error, requests.exceptions.ProxyError):
        return Fail(what, "its proxy does not let us through", "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY", LATER)
    if isinstance(error, requests.exceptions.SSLError):
        text = " ".join(map(str, causes)).upper().replace(" ", "_")
        if any(sign in text for sign in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")):
            todo = "if you trust the network, " + table(host, "insecure-http = true")
            return Fail(what, "it speaks plain http, not https", todo)
        return Fail(what, f"TLS fails: {str(causes[-1])[:200]}")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Fail(what, "no such host", "check the name, the network, or set HTTPS_PROXY", LATER)
    if isinstance(error, requests.Timeout):
        connecting = isinstance(error, requests.ConnectTimeout)
        return Fail(what, f"no answer within {TIMEOUT[0 if connecting else 1]} s", "try again later", LATER)
    system = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), "")
    if isinstance(error, (requests.ConnectionError, HTTPError, ConnectionError)):
        todo = f"check that it runs{' and speaks plain http' if url.startswith('http:') else ', or set HTTPS_PROXY'}"
        return Fail(what, system or str(causes[-1])[:200] or "the connection broke", todo, LATER)
    return Fail(f"cannot use the address {shown(url)!r}", str(error)[:200])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        inner = cause.args[0] if cause.args and isinstance(cause.args[0], BaseException) else None
        cause = cause.__cause__ or cause.__context__ or inner


def shown(url: str) -> str:
    """Return a URL without its query, which may be a secret (signed URLs)."""
    return url.partition("?")[0][:200]


def table(host: str, line: str) -> str:
    """Name the remedy that the table of registries is."""
    return f"""write {line} under [registry."{host}"] in registries.toml"""


def speaks_https(host: str) -> Fail:
    """Say that plain http is not what the host wants."""
    return Fail(f"cannot reach {host!r}", "it speaks https, not plain http", table(host, f'url = "https://{host}"'))

"""Who we are to a registry: challenges answered with credentials or tokens, credentials tried before they are kept.

Follows distribution's docs/content/spec/auth/{token,oauth,scope}.md. Credentials go to the registry itself and to its
own token server, never unasked into clear http.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import requests

from . import web
from .credentials import Credentials
from .fail import LATER, Fail
from .registries import is_loopback

if TYPE_CHECKING:
    from .credentials import Finder
    from .registries import Place

BUSY = (408, 429, 500, 502, 503, 504)
_CHALLENGE = re.compile(r'([\w!#$%&^`|~.+-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+)))?')
_CLIENT = "shoebox"


class Absent(Fail):
    """What was asked for is not there, or not for us: a mirror is no worse for that."""


class Access:
    """What one registry or mirror wants to know of us."""

    def __init__(self, through: web.Web, place: Place, find: Finder) -> None:
        """Ask nothing yet. find: whose credentials, looked for when the registry asks."""
        self._web = through
        self._place = place
        self._find = find
        self._withheld = ""  # the token server that did not get our credentials
        self.known = False  # whether our credentials have been used

    def authorize(self, header: str, repository: str) -> str:
        """Answer a challenge (WWW-Authenticate): return an Authorization to pull a repository, "" if we have none."""
        how = self._place.authentication
        found = self._find(self._place.netloc, repository) if how != "none" else None
        challenges = _challenges(header)
        if "bearer" in challenges and how != "basic":
            token = found.registry_token if found else ""
            asked = {"scope": f"repository:{repository}:pull"}
            given = token or self._token(challenges["bearer"], found, asked)[0]
            self.known = bool(found) and (bool(token) or not self._withheld)
            return f"Bearer {given}"
        self.known = "basic" in challenges and found is not None and how != "token"
        return found.basic if "basic" in challenges and found and how != "token" else ""

    def login(self, given: Credentials) -> Credentials:
        """Try a name and password at the registry; return what to keep: them, or an identity token given for them.

        Raises Fail when they are not good, or when nobody wants to know them.
        """
        netloc, how = self._place.netloc, self._place.authentication
        header = self._base("")
        challenges = _challenges(header or "")
        kept = given
        if header is None or how == "none":
            why = "its entry in registries.toml says so" if how == "none" else "it lets everybody in"
            raise Fail(f"'{netloc}' wants no login", why, "pull without one")
        if "bearer" in challenges and how != "basic":
            asked = {"account": given.username, "client_id": _CLIENT, "offline_token": "true"}
            try:
                token, refresh = self._token(challenges["bearer"], given, asked)
            except web.BROKEN as error:
                raise web.told(error, challenges["bearer"].get("realm", "")) from error
            if self._withheld:  # so the token is anybody's, and says nothing of the password
                raise self.refused(401)
            authorization = f"Bearer {token}"
            kept = Credentials(given.username, identity_token=refresh) if refresh else given
        elif "basic" in challenges and how != "token":
            self._clear()
            authorization = given.basic
        else:
            offered = ", ".join(challenges) or "nothing"
            raise Fail(f"cannot log in at '{netloc}'", f"it offers {offered[:200]!r}, and {how or 'token'!r} is wanted")
        if self._base(authorization) is not None:
            raise Fail(f"'{netloc}' does not take these credentials", todo="check the name and the password")
        return kept

    def refused(self, status: int) -> Fail:
        """Say that a registry does not let us have something."""
        netloc = self._place.netloc
        if self._withheld:
            what = f"'{netloc}' has tokens from '{self._withheld}', which does not get its credentials unasked"
            return Absent(what, todo=web.remedy(netloc, f'auth = "{self._withheld}"'))
        what = f"'{netloc}' answers {status}, not allowed or not there"
        return Absent(what, todo=f"check the name, or log in with 'sh-login {netloc}'")

    def may_see(self, realm: str) -> bool:
        """Tell whether a token server may see the registry's credentials."""
        netloc = urlsplit(realm).netloc
        name, own = web.hostname(netloc), web.hostname(self._place.netloc)
        allowed = self._place.auth in (netloc, name)
        if urlsplit(realm).scheme == "http" and not is_loopback(name):
            return self._place.url.startswith("http:") and (name == own or allowed)
        return allowed or web.related(name, own)

    def _base(self, authorization: str) -> str | None:
        """Ask for the registry's root; return the challenge that it answers with, None if it lets us in."""
        url = f"{self._place.url}/v2/"
        try:
            answer = self._web.ask("GET", url, {}, authorization)
            web.read(answer, web.SMALL)
        except web.BROKEN as error:
            raise web.told(error, url) from error
        if answer.status_code in (200, 401):
            return answer.headers.get("WWW-Authenticate", "") if answer.status_code == 401 else None
        what = f"'{self._place.netloc}' answers {answer.status_code}"
        if answer.status_code in BUSY:
            raise Fail(what, todo="try again later", status=LATER)
        raise Fail(what, todo="check the name")

    def _clear(self) -> None:
        """Refuse to send a password that somebody has just typed through a network in clear."""
        if self._place.url.startswith("http:") and not is_loopback(self._place.netloc):
            todo = web.remedy(self._place.netloc, f'url = "https://{self._place.netloc}"')
            raise Fail(f"cannot log in at '{self._place.netloc}'", "it is reached by plain http", todo)

    def _token(self, challenge: dict[str, str], found: Credentials | None, asked: dict[str, str]) -> tuple[str, str]:
        """Fetch a token for what is asked, whatever scope the registry would like; and a refresh token, or "".

        Raises Fail, and one of web.BROKEN.
        """
        realm = challenge.get("realm", "")
        netloc = urlsplit(realm).netloc
        what = f"cannot log in at '{self._place.netloc}'"
        if urlsplit(realm).scheme not in ("http", "https") or not netloc:
            raise Fail(what, f"it names no token server: {realm[:200]!r}")
        if found and not self.may_see(realm):
            self._withheld = netloc
            found = None
        if challenge.get("service"):
            asked = asked | {"service": challenge["service"]}
        if found and found.identity_token:
            form = {"grant_type": "refresh_token", "client_id": _CLIENT, "refresh_token": found.identity_token}
            answer = self._web.ask("POST", realm, {}, "", form | asked)
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
            answer = self._web.ask("GET", url, {}, found.basic if found else "")
        body = web.read(answer, web.SMALL)
        if answer.status_code in BUSY:
            raise ConnectionError(f"its token server answers {answer.status_code}")
        if answer.status_code != requests.codes.ok:
            raise self.refused(answer.status_code)
        try:
            document: object = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Fail(what, f"{netloc!r} sends no token") from error
        values = document if isinstance(document, dict) else {}
        token, refresh = values.get("token") or values.get("access_token"), values.get("refresh_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Fail(what, f"{netloc!r} sends no token")
        return token, refresh if isinstance(refresh, str) and refresh.isprintable() else ""


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

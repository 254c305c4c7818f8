"""Registries over HTTP: what is sent to whom, what is asked again, and what is said when it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures.images import LAYER, MANIFEST, image
from fixtures.registry import Answer, Seen, Server, canned, free_port, serve

from shoebox import credentials, oci, registries, registry, web
from shoebox.fail import FAILED, LATER, Fail

DATA = bytes(range(256)) * 1000
BLOB = oci.Descriptor(LAYER, "sha256:" + hashlib.sha256(DATA).hexdigest(), len(DATA))
BIG = oci.Descriptor(LAYER, "sha256:" + "0" * 64, 5_000_000)
BASIC = "Basic " + base64.b64encode(b"jane:s3cret").decode()
MADE = image()
DOCUMENTS = {
    f"/v2/a/blobs/{BLOB.digest}": (DATA, "application/octet-stream"),
    "/v2/a/manifests/1": (MADE.manifest, MANIFEST),
}


def opened(
    server: Server | str, *, home: Path | None = None, entry: dict[str, str | bool] | None = None, host: str = ""
) -> registry.Registry:
    """Open repository `a` of a server. home: where config.json lies; entry: the registry's words in the table."""
    url = server if isinstance(server, str) else server.url
    host = host or url.partition("://")[2]
    table = registries.Table([], {}, {host: {"url": url} | (entry or {})}, {})
    env = {"DOCKER_CONFIG": str(home or "/nonexistent")}
    return registry.Registry(web.Web(table, env, 2), table.place(host), "a", credentials.finder(env))


def fetched(source: registry.Registry, start: int = 0) -> tuple[int, bytes]:
    """Return where a blob's answer starts, and what comes."""
    first, pieces = source.blob(BLOB, start)
    return first, b"".join(pieces)


def login(home: Path, host: str, **more: str) -> Path:
    """Leave jane's password for a host."""
    (home / "config.json").write_text(json.dumps({"auths": {host: {"username": "jane", "password": "s3cret"} | more}}))
    return home


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that were waited, without waiting."""
    made: list[float] = []
    monkeypatch.setattr(registry, "time", SimpleNamespace(sleep=made.append, time=time.time))
    return made


def failing(times: int, bad: Answer | Callable[[], Answer]) -> Callable[[Seen], Answer]:
    """Return who answers badly some times, and well then."""
    good, left = canned(DOCUMENTS), [bad] * times

    def answer(seen: Seen) -> Answer:
        return left.pop() if left else good(seen)

    return answer


def test_a_manifest_comes_with_its_type_and_the_table_can_move_it() -> None:
    moved = {"/v2/mirror/x/a/manifests/1": (MADE.manifest, MANIFEST)}
    with serve(canned(moved)) as server:
        source = opened(server, host="r.org", entry={"url": f"{server.url}/mirror/x"})
        assert source.manifest("1") == (MADE.manifest, MANIFEST)
    assert server.seen[0].headers["Accept"].count("json") == 4
    assert server.seen[0].headers["Accept-Encoding"] == "identity"
    assert server.seen[0].authorization == ""


@pytest.mark.parametrize(
    ("told", "there", "refused"),
    [
        ("", None, False),  # none is told
        ("sha512:1234", None, False),
        ("sha256:" + "0" * 64, None, False),  # of a manifest that was converted into this one, and is not kept
        ("sha256:" + "0" * 64, MADE.manifest, False),  # or is converted whenever it is asked for
        ("sha256:" + "0" * 64, b"{}", True),  # these bytes are not those that were meant
    ],
)
def test_a_manifest_that_is_not_of_the_digest_told_with_it_is_asked_for_again(
    told: str, there: bytes | None, refused: bool
) -> None:
    def answer(seen: Seen) -> Answer:
        if seen.path.endswith("/1"):
            return Answer(200, MADE.manifest, {"Content-Type": MANIFEST, "Docker-Content-Digest": told})
        return Answer(404) if there is None else Answer(200, there)

    with serve(answer) as server:
        source = opened(server)
        if refused:
            with pytest.raises(Fail, match="sent something else for '1'"):
                source.manifest("1")
        else:
            assert source.manifest("1") == (MADE.manifest, MANIFEST)


def test_of_a_connection_that_is_reset_at_least_half_is_kept() -> None:
    sent = 900_000
    half = sent // 2 - 65536
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def once() -> None:
            here, _ = server.accept()
            here.recv(65536)
            here.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG.size}\r\n\r\n".encode() + bytes(sent))
            read.wait(20)
            here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            here.close()

        read, thread = threading.Event(), threading.Thread(target=once)
        thread.start()
        _, pieces = opened(f"http://127.0.0.1:{server.getsockname()[1]}").blob(BIG, 0)
        came = []

        def take() -> None:
            for piece in pieces:
                came.append(len(piece))
                if sum(came) > half:
                    read.set()

        with pytest.raises(ConnectionError):
            take()
        thread.join()
    assert sum(came) > half


def test_a_blob_is_fetched_from_where_it_broke_off() -> None:
    with serve(canned(DOCUMENTS)) as server:
        assert fetched(opened(server), 1000) == (1000, DATA[1000:])
        assert fetched(opened(server)) == (0, DATA)
    assert server.seen[0].headers["Range"] == "bytes=1000-"
    assert "Range" not in server.seen[1].headers


@pytest.mark.parametrize(
    "odd",
    [
        Answer(200, DATA),
        Answer(416, b"no"),
        Answer(206, DATA[5:], {"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"}),
        Answer(206, DATA[1000:]),
    ],
)
def test_a_server_that_cannot_resume_sends_the_whole(odd: Answer) -> None:
    with serve(failing(1, odd)) as server:
        assert fetched(opened(server), 1000) == (0, DATA)


@pytest.mark.parametrize("length", [len(DATA) - 1, len(DATA) + 1])
def test_a_wrong_content_length_is_refused_before_a_byte_is_read(length: int) -> None:
    with serve(lambda _seen: Answer(200, DATA, length=length)) as server, pytest.raises(Fail, match="belong") as caught:
        fetched(opened(server))
    assert caught.value.status == FAILED


def test_a_connection_that_breaks_is_a_connection_error() -> None:
    with serve(lambda _seen: Answer(200, DATA, cut=70_000)) as server, pytest.raises(ConnectionError):
        fetched(opened(server))


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_registry_is_asked_again_when_it_says(status: int, waits: list[float]) -> None:
    with serve(failing(2, Answer(status, headers={"Retry-After": "7"}))) as server:
        assert opened(server).manifest("1")[0] == MADE.manifest
    assert waits == [7, 7]


def test_retry_after_may_be_a_date(waits: list[float]) -> None:
    with serve(failing(1, Answer(503, headers={"Retry-After": formatdate(time.time() + 30, usegmt=True)}))) as server:
        opened(server).manifest("1")
    assert 20 < waits[0] <= 30


@pytest.mark.parametrize("value", ["", "soon", "-5", "Wed, 99 Foo 2020 00:00:00 GMT", "9" * 400])
def test_an_odd_retry_after_does_no_harm(value: str, waits: list[float]) -> None:
    with serve(failing(1, Answer(503, headers={"Retry-After": value}))) as server:
        if value.startswith("9"):
            with pytest.raises(Fail):
                opened(server).manifest("1")
        else:
            opened(server).manifest("1")
            assert waits == [0.5]


def test_who_is_asked_to_wait_too_long_is_told_to_come_back(waits: list[float]) -> None:
    with (
        serve(lambda _seen: Answer(429, headers={"Retry-After": "3600"})) as server,
        pytest.raises(Fail, match=r"too many requests .*: log in, or try again later") as caught,
    ):
        opened(server).manifest("1")
    assert (caught.value.status, waits, len(server.seen)) == (LATER, [], 1)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_after_three_tries_the_status_is_75(status: int, waits: list[float]) -> None:
    with serve(lambda _seen: Answer(status)) as server, pytest.raises(Fail, match="try again later") as caught:
        opened(server).manifest("1")
    assert (caught.value.status, len(waits), len(server.seen)) == (LATER, 2, 3)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"", "answers 401, not allowed or not there: check the name, or log in with 'sh-login 127.0.0.1:"),
        (403, b"", "answers 403, not allowed"),
        (404, b"", "does not have it: check the name and the tag"),
        (
            400,
            b"Client sent an HTTP request to an HTTPS server.",
            'speaks https, not plain http: write url = "https://127',
        ),
        (418, b'{"errors":[{"code":"X","message":"a teapot"}]}', r"answers 418 \(a teapot\)"),
        (405, b"\xff" * 2_000_000, "answers 405"),
    ],
)
def test_each_refusal_is_one_line_that_names_the_remedy(status: int, body: bytes, said: str) -> None:
    with serve(lambda _seen: Answer(status, body)) as server, pytest.raises(Fail, match=said) as caught:
        opened(server).manifest("1")
    assert caught.value.status == FAILED


def test_a_registry_that_is_down_is_asked_three_times(waits: list[float]) -> None:
    with pytest.raises(Fail, match="Connection refused: check that it runs") as caught:
        opened(f"http://127.0.0.1:{free_port()}").manifest("1")
    assert (caught.value.status, waits) == (LATER, [0.5, 1])


def test_a_host_that_does_not_exist_is_told(waits: list[float]) -> None:
    with pytest.raises(Fail, match=r"cannot reach 'no\.invalid': no such host: check the name") as caught:
        opened("https://no.invalid").manifest("1")
    assert caught.value.status == LATER


def test_a_silent_registry_is_not_waited_for_for_ever(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT", (1, 0.2))

    def silent(_seen: Seen) -> Answer:
        time.sleep(0.5)
        return Answer()

    with serve(silent) as server, pytest.raises(Fail, match=r"no answer within 0\.2 s: try again later"):
        opened(server).manifest("1")


def test_https_spoken_to_a_plain_registry_names_the_remedy() -> None:
    with (
        serve(canned(DOCUMENTS)) as server,
        pytest.raises(Fail, match=r"it speaks plain http, not https: .*insecure-http"),
    ):
        opened(server.url.replace("http:", "https:")).manifest("1")


def test_has_tells_absent_and_forbidden_from_there() -> None:
    for status, there in ((200, True), (404, False), (401, False), (403, False)):
        with serve(lambda _seen, status=status: Answer(status)) as server:
            assert opened(server).has("1") == there
        assert server.seen[0].method == "HEAD"


def wanting(challenge: str, good: str = BASIC) -> Callable[[Seen], Answer]:
    """Return who lets in requests with one Authorization only."""
    rest = canned(DOCUMENTS)

    def answer(seen: Seen) -> Answer:
        return rest(seen) if seen.authorization == good else Answer(401, b"{}", {"WWW-Authenticate": challenge})

    return answer


def tokens(seen: Seen) -> Answer:
    """Give a token to anybody; the URL says of which kind."""
    key = "access_token" if seen.method == "POST" else "token"
    return Answer(200, json.dumps({key: "T"}).encode())


def test_a_password_is_sent_when_asked_for_and_only_then(tmp_path: Path) -> None:
    with serve(wanting('Basic realm="x"')) as server:
        source = opened(server, home=login(tmp_path, server.host))
        source.manifest("1")
        assert fetched(source) == (0, DATA)
    assert [seen.authorization for seen in server.seen] == ["", BASIC, BASIC]


def test_a_wrong_password_is_a_refusal_not_a_loop(tmp_path: Path) -> None:
    with serve(wanting('Basic realm="x"', "other")) as server:
        source = opened(server, home=login(tmp_path, server.host))
        for _ in range(2):
            with pytest.raises(Fail, match="answers 401"):
                source.manifest("1")
    assert len(server.seen) == 3


def test_a_token_is_asked_for_to_pull_this_repository_only(tmp_path: Path) -> None:
    with serve(tokens) as auth:
        challenge = (
            f'Bearer realm="{auth.url}/t?x=1",service="a, \\"b\\"",scope="repository:other:push", Basic realm="x"'
        )
        with serve(wanting(challenge, "Bearer T")) as server:
            opened(server, home=login(tmp_path, server.host)).manifest("1")
    assert auth.seen[0].path == "/t?x=1&scope=repository%3Aa%3Apull&service=a%2C+%22b%22"
    assert auth.seen[0].authorization == BASIC


def test_a_token_that_ran_out_is_renewed_once() -> None:
    given = iter("AB")
    with serve(lambda _seen: Answer(200, json.dumps({"token": next(given)}).encode())) as auth:
        challenge = f'Bearer realm="{auth.url}"'
        valid = ["A"]

        def current(seen: Seen) -> Answer:
            return wanting(challenge, f"Bearer {valid[0]}")(seen)

        with serve(current) as server:
            source = opened(server)
            source.manifest("1")
            valid[0] = "B"
            source.manifest("1")
    assert [seen.authorization for seen in server.seen] == ["", "Bearer A", "Bearer A", "Bearer B"]


def test_an_identity_token_is_posted(tmp_path: Path) -> None:
    with serve(tokens) as auth, serve(wanting(f'Bearer realm="{auth.url}",service="s"', "Bearer T")) as server:
        opened(server, home=login(tmp_path, server.host, password="", identitytoken="id")).manifest("1")
    assert auth.seen[0].method == "POST"
    assert auth.seen[0].body == (
        b"grant_type=refresh_token&client_id=shoebox&refresh_token=id&scope=repository%3Aa%3Apull&service=s"
    )
    assert auth.seen[0].authorization == ""


def test_a_registry_token_goes_to_the_registry_itself(tmp_path: Path) -> None:
    with serve(wanting('Bearer realm="http://nowhere.invalid"', "Bearer T")) as server:
        opened(server, home=login(tmp_path, server.host, registrytoken="T")).manifest("1")


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b'{"token": 1}', b'{"token": "a\\nb"}', b'{"token": ""}', b"[" * 100_000]
)
def test_a_token_server_that_sends_no_token_is_told(answer: bytes) -> None:
    with (
        serve(lambda _seen: Answer(200, answer)) as auth,
        serve(wanting(f'Bearer realm="{auth.url}"')) as server,
        pytest.raises(Fail, match="sends no token"),
    ):
        opened(server).manifest("1")


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "ftp://x", "nothing", "http://"])
def test_a_realm_that_is_no_url_is_told(realm: str) -> None:
    with serve(wanting(f'Bearer realm="{realm}"')) as server, pytest.raises(Fail, match="it names no token server"):
        opened(server).manifest("1")


def test_a_token_server_that_refuses_says_to_log_in(tmp_path: Path) -> None:
    with (
        serve(lambda _seen: Answer(401)) as auth,
        serve(wanting(f'Bearer realm="{auth.url}"')) as server,
        pytest.raises(Fail, match="sh-login"),
    ):
        opened(server, home=login(tmp_path, server.host)).manifest("1")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("auth.docker.io", "registry-1.docker.io", True),
        ("gitlab.com", "registry.gitlab.com", True),
        ("localhost", "127.0.0.1", True),
        ("r.org", "r.org", True),
        ("evil.org", "r.org", False),
        ("evil.co.uk", "r.site.co.uk", False),
        ("r.org.evil.org", "r.org", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("1.0.0.1", "0.0.1", False),
        ("login", "registry", False),
    ],
)
def test_hosts_of_one_domain_may_see_the_same_credentials(first: str, second: str, same: bool) -> None:
    assert web.related(first, second) == web.related(second, first) == same


@pytest.mark.parametrize(
    ("url", "realm", "auth", "sees"),
    [
        ("https://registry.site.org", "https://auth.site.org/t", "", True),
        ("https://registry.site.org", "http://auth.site.org/t", "", False),
        ("https://registry.site.org", "http://registry.site.org/t", "", False),
        ("http://registry.site.org", "http://registry.site.org/t", "", True),
        ("http://registry.site.org", "http://auth.site.org/t", "", False),
        ("http://registry.site.org", "http://auth.site.org/t", "auth.site.org", True),
        ("https://registry.site.org", "https://login.other.org/t", "", False),
        ("https://registry.site.org", "https://login.other.org:8443/t", "login.other.org", True),
        ("https://registry.site.org", "http://login.other.org/t", "login.other.org", False),
    ],
)
def test_a_token_server_sees_credentials_by_these_rules(url: str, realm: str, auth: str, sees: bool) -> None:
    assert opened(url, host="r.org", entry={"url": url, "auth": auth})._access.may_see(realm) == sees


def test_a_realm_of_an_unrelated_host_sees_no_authorization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "related", lambda _first, _second: False)
    with (
        serve(lambda seen: tokens(seen) if seen.authorization else Answer(401)) as auth,
        serve(wanting(f'Bearer realm="{auth.url}"', "Bearer T")) as server,
    ):
        home = login(tmp_path, server.host)
        with pytest.raises(Fail, match=f'write auth = "{auth.host}" under .registry."{server.host}"'):
            opened(server, home=home).manifest("1")
        assert [seen.authorization for seen in auth.seen] == [""]
        opened(server, home=home, entry={"auth": auth.host}).manifest("1")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_carries_no_authorization(tmp_path: Path, status: int) -> None:
    with serve(lambda _seen: Answer(200, DATA)) as other:
        answer = wanting('Basic realm="x"')

        def redirecting(seen: Seen) -> Answer:
            said = answer(seen)
            return Answer(status, headers={"Location": f"{other.url}/signed?secret=1"}) if said.status == 200 else said

        with serve(redirecting) as server:
            assert fetched(opened(server, home=login(tmp_path, server.host)), 0) == (0, DATA)
    assert server.seen[-1].authorization == BASIC
    assert [(seen.path, seen.authorization) for seen in other.seen] == [("/signed?secret=1", "")]


def test_a_redirect_within_the_registry_keeps_range_and_authorization(tmp_path: Path) -> None:
    def moved(seen: Seen) -> Answer:
        if seen.path.startswith("/v2/"):
            return Answer(307, headers={"Location": f"/elsewhere{seen.path}"})
        return wanting('Basic realm="x"')(Seen(seen.method, seen.path.removeprefix("/elsewhere"), seen.headers))

    with serve(moved) as server:
        assert fetched(opened(server, home=login(tmp_path, server.host)), 7) == (7, DATA[7:])


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://x/y",
        "http://[::1",
        "http://user:pw@x/",
        "http://evil.org\\@r.org/",
        "http://x y/",
        "//é/",
    ],
)
def test_a_redirect_to_what_is_no_plain_web_address_is_refused(location: str) -> None:
    with serve(lambda _seen: Answer(307, headers={"Location": location})) as server, pytest.raises(Fail) as caught:
        opened(server).manifest("1")
    assert caught.value.status == FAILED
    assert len(server.seen) == 1


def test_a_redirect_loop_ends() -> None:
    with (
        serve(lambda seen: Answer(307, headers={"Location": seen.path})) as server,
        pytest.raises(Fail, match="redirects more than 5 times"),
    ):
        opened(server).manifest("1")


def test_the_netrc_file_is_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login jane password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serve(canned(DOCUMENTS)) as server:
        opened(server).manifest("1")
    assert server.seen[0].authorization == ""


def test_loopback_is_never_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with serve(canned(DOCUMENTS)) as server:
        opened(server).manifest("1")


def test_a_foreign_layer_is_looked_for_in_the_registry_then_at_its_urls() -> None:
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    with serve(lambda _seen: Answer(200, DATA)) as other, serve(canned({})) as server:
        urls = (f"{server.url}/nothing", f"{other.url}/layer")
        first, pieces = opened(server).blob(oci.Descriptor(kind, BLOB.digest, BLOB.size, urls=urls), 0)
        assert (first, b"".join(pieces)) == (0, DATA)
        with pytest.raises(Fail, match="does not have the blob"):
            opened(server).blob(oci.Descriptor(LAYER, BLOB.digest, BLOB.size, urls=urls), 0)
    assert other.seen[0].authorization == ""


def test_a_ca_file_that_is_not_there_is_told() -> None:
    with pytest.raises(Fail, match=r"cannot read the CA file '/no/ca\.pem'"):
        opened("https://r.org", entry={"ca": "/no/ca.pem"}).manifest("1")


def test_a_manifest_without_end_is_not_read_to_it() -> None:
    body = b"x" * (oci.MAX_DOCUMENT + 100)
    with serve(lambda _seen: Answer(200, body)) as server:
        data, _ = opened(server).manifest("1")
    assert len(data) <= oci.MAX_DOCUMENT + (1 << 20)
    with pytest.raises(Fail, match="more than"):
        oci.parse_manifest(data)


def test_challenges_and_redirects_do_not_cost_a_connection(tmp_path: Path) -> None:
    def moved(seen: Seen) -> Answer:
        said = wanting('Basic realm="x"')(Seen(seen.method, seen.path.removeprefix("/to"), seen.headers))
        if said.status == 200 and not seen.path.startswith("/to"):
            return Answer(307, b"moved", {"Location": f"/to{seen.path}"})
        return said

    with serve(moved) as server:
        source = opened(server, home=login(tmp_path, server.host))
        source.manifest("1")
        assert fetched(source) == (0, DATA)
    assert len(server.seen) == 5
    assert server.connections == 1

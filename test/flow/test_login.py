"""sh-login and sh-logout with real registries, a real credential helper, and skopeo at the same files."""

from __future__ import annotations

import base64
import json
import os
import pty
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.images import image, push
from fixtures.registry import (
    IDENTITY,
    PASSWORD,
    USER,
    Answer,
    Place,
    Seen,
    Server,
    docker_registry,
    free_port,
    locked_registry,
    registry,
    rsa_keys,
    serve,
    token_registry,
    token_server,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fixtures.installed import Shell

__all__ = ["locked_registry", "registry", "token_registry"]  # fixtures
HUB = "https://index.docker.io/v1/"
PATIENCE = 30.0  # seconds for a prompt to come
# A helper that keeps each secret in a file of its own; what it is asked for, and with which words, is written down.
HELPER = """\
#!/bin/sh
umask 077; dir=$HOME/keychain; mkdir -p "$dir"
echo "$*" >>"$dir/calls"
input=$(cat)
case $1 in
store) name=$(printf %s "$input" | jq -j .ServerURL | base64 -w0 | tr / _); printf %s "$input" >"$dir/$name" ;;
get) name=$(printf %s "$input" | base64 -w0 | tr / _)
    test -f "$dir/$name" || { echo "credentials not found in native keychain"; exit 1; }; cat "$dir/$name" ;;
erase) name=$(printf %s "$input" | base64 -w0 | tr / _)
    test -f "$dir/$name" || { echo "credentials not found in native keychain"; exit 1; }; rm "$dir/$name" ;;
esac
"""


@pytest.fixture
def desk(cmd: Shell, locked_registry: Place) -> Shell:
    """Return a user's shell that trusts the locked registry."""
    path = cmd.home / ".config/shoebox/registries.toml"
    path.parent.mkdir(parents=True)
    path.write_text(f'[registry."{locked_registry.host}"]\nca = "{locked_registry.ca}"\n')
    push(locked_registry.url, "app", "1", image(), auth=(USER, PASSWORD), verify=str(locked_registry.ca))
    return cmd


def config(cmd: Shell) -> Path:
    """Return where docker's config.json lies."""
    return cmd.home / ".docker/config.json"


def written(cmd: Shell, **document: object) -> None:
    """Write docker's config.json."""
    config(cmd).parent.mkdir(exist_ok=True)
    config(cmd).write_text(json.dumps(document))


def document(cmd: Shell) -> dict[str, object]:
    """Read docker's config.json."""
    return json.loads(config(cmd).read_text())


def login(cmd: Shell, host: str, password: str = PASSWORD, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Log in with the password on stdin."""
    return cmd("sh-login", "-u", USER, "--password-stdin", host, stdin=password + "\n", **env)


def helped(cmd: Shell, script: str = HELPER) -> Path:
    """Install the helper on PATH; return its keychain."""
    path = cmd.home / "bin/docker-credential-box"
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
    cmd.env["PATH"] = f"{path.parent}:{cmd.env['PATH']}"
    return cmd.home / "keychain"


def secrets_in(path: Path) -> bool:
    """Tell whether the password is in a file, in clear or as docker encodes it."""
    text = path.read_text()
    return PASSWORD in text or base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() in text


def test_a_login_lets_sh_pull_and_skopeo_in_and_a_logout_neither(desk: Shell, locked_registry: Place) -> None:
    host = locked_registry.host
    asks = ("skopeo", "inspect", f"--cert-dir={desk.home}/certs", f"docker://{host}/app:1")
    (desk.home / "certs").mkdir()
    (desk.home / "certs/ca.crt").write_text(locked_registry.ca.read_text())
    assert desk("sh-pull", f"{host}/app:1").returncode == 1
    assert desk(*asks).returncode == 1
    done = login(desk, host)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (
        f"sh-login: logged in at '{host}' as '{USER}': kept in '{config(desk)}', the password in clear" in done.stderr
    )
    assert PASSWORD not in done.stderr
    assert stat.S_IMODE(config(desk).stat().st_mode) == 0o600
    assert stat.S_IMODE(config(desk).parent.stat().st_mode) == 0o700
    desk.ok("sh-pull", f"{host}/app:1")
    desk.ok(*asks)
    assert desk("sh-logout", host).stderr == f"sh-logout: logged out at '{host}'\n"
    assert document(desk) == {"auths": {}}
    assert desk("sh-pull", f"{host}/app:1").returncode == 1
    done = desk("sh-logout", host)
    assert (done.returncode, done.stderr) == (0, f"sh-logout: not logged in at '{host}'\n")


def test_what_skopeo_writes_sh_pull_reads_and_sh_logout_forgets(desk: Shell, locked_registry: Place) -> None:
    host = locked_registry.host
    certs = desk.home / "certs"
    certs.mkdir()
    (certs / "ca.crt").write_text(locked_registry.ca.read_text())
    words = ("skopeo", "login", f"--cert-dir={certs}", "-u", USER, "--password-stdin")
    file = {"REGISTRY_AUTH_FILE": str(config(desk))}
    config(desk).parent.mkdir()
    desk.ok(*words, host, stdin=PASSWORD, **file)
    desk.ok("sh-pull", f"{host}/app:1")
    assert desk("sh-logout", host).returncode == 0
    assert desk("skopeo", "login", "--get-login", host, **file).returncode != 0
    runtime = {"XDG_RUNTIME_DIR": str(desk.home / "run")}
    (desk.home / "run").mkdir(mode=0o700)
    desk.ok(*words, host, stdin=PASSWORD, **runtime)
    desk.ok("sh-pull", f"{host}/app:1", **runtime)
    done = desk("sh-logout", host, **runtime)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (
        f"still logged in at '{host}': another tool's '{desk.home}/run/containers/auth.json' knows how" in done.stderr
    )


def test_credentials_are_tried_before_they_are_kept(desk: Shell, locked_registry: Place) -> None:
    written(desk, auths={"other.org": {"auth": "eDp5"}})
    before = config(desk).read_bytes()
    done = login(desk, locked_registry.host, "wrong")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"'{locked_registry.host}' does not take these credentials: check the name and the password" in done.stderr
    done = login(desk, f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stderr.count("\n")) == (75, 1)
    assert config(desk).read_bytes() == before


def test_a_registry_that_lets_everybody_in_wants_no_login(desk: Shell, registry: Place) -> None:
    done = login(desk, registry.host)
    assert (done.returncode, done.stderr) == (
        1,
        f"sh-login: '{registry.host}' wants no login: it lets everybody in: pull without one\n",
    )
    assert not config(desk).exists()


def test_a_token_server_is_asked_and_a_wrong_password_is_not_kept(
    desk: Shell, token_registry: tuple[Place, Server]
) -> None:
    place, tokens = token_registry
    done = login(desk, place.host, "wrong")
    assert (done.returncode, config(desk).exists()) == (1, False), done.stderr
    tokens.seen.clear()
    assert login(desk, place.host).returncode == 0
    assert [seen.path.partition("?")[0] for seen in tokens.seen] == ["/token"]
    assert "scope=" not in tokens.seen[0].path
    assert PASSWORD not in tokens.seen[0].path
    assert secrets_in(config(desk))


@pytest.fixture(scope="module")
def renewing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Return a registry whose token server gives out identity tokens."""
    root = tmp_path_factory.mktemp("renewing")
    keys = rsa_keys(root / "keys")
    with serve(token_server(keys, "renewing", refresh=True)) as tokens:
        auth = f"realm: {tokens.url}/token, service: renewing, issuer: test, rootcertbundle: {keys}/server.pem"
        with docker_registry(root, f"auth: {{token: {{{auth}}}}}\n") as place:
            yield place


@pytest.mark.parametrize("helper", [False, True])
def test_an_identity_token_is_kept_in_the_passwords_place(desk: Shell, renewing: Place, helper: bool) -> None:
    if helper:
        keychain = helped(desk)
        written(desk, credsStore="box")
    done = login(desk, renewing.host)
    assert done.returncode == 0, done.stderr
    if helper:
        [path] = [path for path in keychain.iterdir() if path.name != "calls"]
        kept = json.loads(path.read_text())
        assert kept == {"ServerURL": renewing.host, "Username": "<token>", "Secret": IDENTITY}
        assert document(desk) == {"credsStore": "box", "auths": {renewing.host: {}}}
    else:
        entry = document(desk)["auths"][renewing.host]
        assert entry["identitytoken"] == IDENTITY
        assert base64.b64decode(entry["auth"]).decode() == f"{USER}:"
    found = desk("sh-pull", f"{renewing.host}/private/none:1")
    assert "does not have it" in found.stderr  # so we were let in


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_with_a_helper_nothing_is_ever_in_clear(desk: Shell, locked_registry: Place, key: str) -> None:
    host = locked_registry.host
    keychain = helped(desk)
    old = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    said = "box" if key == "credsStore" else {host: "box"}
    written(desk, **{"auths": {host: old, f"https://{host}/v1/": old, "other.org": {"auth": "eDp5"}}, key: said})
    done = login(desk, host)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert done.stderr.endswith(f"as '{USER}': kept by 'docker-credential-box'\n")
    assert not secrets_in(config(desk))
    assert document(desk) == {"auths": {"other.org": {"auth": "eDp5"}, host: {}}, key: said}
    assert set((keychain / "calls").read_text().split()) == {"store", "get"}
    desk.ok("sh-pull", f"{host}/app:1")
    if key == "credHelpers":  # skopeo does not ask docker's credsStore
        assert desk.ok("skopeo", "login", "--get-login", host, REGISTRY_AUTH_FILE=str(config(desk))) == USER
    assert desk("sh-logout", host).stderr == f"sh-logout: logged out at '{host}'\n"
    assert [path.name for path in keychain.iterdir()] == ["calls"]
    assert document(desk) == {"auths": {"other.org": {"auth": "eDp5"}}, key: said}
    assert desk("sh-pull", f"{host}/app:1").returncode == 1


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("#!/bin/sh\ncat; exit 1\n", "it ended with status 1"),
        ("#!/bin/sh\ncat >/dev/null; echo the box is locked; exit 3\n", "the box is locked"),
        (None, "it cannot be run"),
    ],
)
def test_a_helper_that_fails_is_told_and_nothing_falls_back_to_clear(
    desk: Shell, locked_registry: Place, script: str | None, told: str
) -> None:
    if script:
        helped(desk, script)
    written(desk, credsStore="box")
    before = config(desk).read_bytes()
    done = login(desk, locked_registry.host)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"cannot use 'docker-credential-box': {told}: mend it" in done.stderr
    assert PASSWORD not in done.stderr
    assert config(desk).read_bytes() == before


def test_what_other_tools_have_in_the_file_stays_and_a_link_stays_one(desk: Shell, locked_registry: Place) -> None:
    real = desk.home / "dotfiles/docker.json"
    real.parent.mkdir()
    others = {"HttpHeaders": {"X": "é"}, "proxies": {"default": {"noProxy": "a"}}, "detachKeys": "ctrl-p"}
    real.write_text(json.dumps({**others, "auths": {"other.org": {"auth": "eDp5"}}}))
    real.chmod(0o644)
    config(desk).parent.mkdir()
    config(desk).symlink_to(real)
    assert login(desk, locked_registry.host).returncode == 0
    assert config(desk).is_symlink()
    assert {key: document(desk)[key] for key in others} == others
    assert list(document(desk)["auths"]) == ["other.org", locked_registry.host]
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert [path.name for path in real.parent.iterdir()] == ["docker.json"]
    assert login(desk, locked_registry.host, DOCKER_CONFIG=f"{desk.home}/elsewhere").returncode == 0
    assert (desk.home / "elsewhere/config.json").exists()


def test_a_file_that_cannot_be_understood_or_written_is_left_as_it_is(desk: Shell, locked_registry: Place) -> None:
    config(desk).parent.mkdir()
    config(desk).write_text("{")
    for command in (login(desk, locked_registry.host), desk("sh-logout", locked_registry.host)):
        assert (command.returncode, command.stderr.count("\n")) == (1, 1)
        assert f"cannot read the credentials in '{config(desk)}': not JSON" in command.stderr
    assert config(desk).read_text() == "{"
    done = login(desk, locked_registry.host, DOCKER_CONFIG="/proc/none")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot write '/proc/none/config.json'" in done.stderr


def test_another_tools_file_that_goes_first_is_told(desk: Shell, locked_registry: Place) -> None:
    other = desk.home / "auth.json"
    old = {"auth": base64.b64encode(b"joe:old").decode()}
    other.write_text(json.dumps({"auths": {locked_registry.host: old}}))
    done = login(desk, locked_registry.host, REGISTRY_AUTH_FILE=str(other))
    assert done.returncode == 1
    assert f"is not what will be used: '{other}' goes first: log out with that tool" in done.stderr


def test_a_helper_that_forgets_is_told(desk: Shell, locked_registry: Place) -> None:
    helped(desk, "#!/bin/sh\ncat >/dev/null; [ $1 = store ] || { echo credentials not found; exit 1; }\n")
    written(desk, credsStore="box")
    done = login(desk, locked_registry.host)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "'docker-credential-box' was given it to keep, and does not have it" in done.stderr


@pytest.mark.evil(61)
def test_a_password_goes_to_no_unrelated_token_server_and_not_into_clear_http(desk: Shell) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/t",service="x"'}
    with serve(lambda _seen: Answer(200, b'{"token": "anybodys"}')) as tokens:

        def answer(seen: Seen) -> Answer:
            if seen.headers["Host"].startswith("tokens.evil"):
                return tokens.answer(seen)
            return Answer(200) if "anybodys" in seen.authorization else Answer(401, b"", challenge)

        with serve(answer) as proxy:
            table = desk.home / ".config/shoebox/registries.toml"
            table.write_text('[registry."r.test"]\ninsecure-http = true\n')
            through = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url}
            challenge["WWW-Authenticate"] = 'Bearer realm="http://tokens.evil.test/t",service="x"'
            done = login(desk, "r.test", **through)
            assert done.returncode == 1
            assert "which does not get its credentials unasked" in done.stderr
            challenge["WWW-Authenticate"] = 'Basic realm="x"'
            done = login(desk, "r.test", **through)
            assert done.returncode == 1
            assert "it is reached by plain http" in done.stderr
            assert {seen.authorization for seen in proxy.seen} <= {"", "Bearer anybodys"}
    assert not config(desk).exists()


class Typist:
    """A terminal at which a command runs, and what it has shown."""

    def __init__(self, cmd: Shell, *words: str) -> None:
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.chdir(cmd.home)
            os.execvpe(words[0], words, cmd.env)
        self.seen = b""

    def wait_for(self, text: bytes) -> None:
        until = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            self.seen += os.read(self.terminal, 4096)

    def type(self, prompt: bytes, text: bytes) -> None:
        """Type a line at a prompt; getpass asks when the terminal echoes no more."""
        self.wait_for(prompt)
        os.write(self.terminal, text + b"\n")

    def end(self) -> int:
        while True:
            try:
                data = os.read(self.terminal, 4096)
            except OSError:  # EIO: the command has ended
                data = b""
            self.seen += data
            if not data:
                break
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize("words", [["sh-login"], ["sh-login", "--username", USER], ["shifterimg", "login"]])
def test_a_password_that_is_typed_is_not_shown(
    desk: Shell, locked_registry: Place, prefix: Path, words: list[str]
) -> None:
    host = locked_registry.host
    if words[0] == "shifterimg":
        (own,) = prefix.glob("lib/shoebox/*/bin")
        words = [str(own / "shifterimg"), "login"]
    typist = Typist(desk, *words, host)
    if "--username" not in words:
        typist.type(f"{host} username: ".encode(), USER.encode())
    typist.type(f"{host} password: ".encode(), PASSWORD.encode())
    assert typist.end() == 0, typist.seen
    assert PASSWORD.encode() not in typist.seen
    desk.ok("sh-pull", f"{host}/app:1")


@pytest.mark.parametrize(
    ("words", "stdin", "status", "told"),
    [
        (["r.org"], "", 2, "no terminal to ask for the password at: give -u NAME --password-stdin"),
        (["--password-stdin", "r.org"], "x", 2, "--password-stdin needs --username"),
        (["a.org", "b.org"], "", 2, "more than one REGISTRY"),
        (["-u", "x", "r.org/repo"], "", 2, "not a registry: 'r.org/repo': write HOST.DOMAIN or HOST:PORT"),
        (["word"], "", 2, "not a registry: 'word'"),
        (["-u", "x", "--password", "y", "r.org"], "", 2, "unknown option '--password'"),
        (["-u", "x", "--password-stdin", "r.org"], "\n", 1, "no name and password"),
        (["-u", "a:b", "--password-stdin", "r.org"], "x", 1, "a name has no colon"),
        (["-u", "x", "--password-stdin", "blocked.org"], "x", 1, "the registry 'blocked.org' is blocked"),
    ],
)
def test_what_it_cannot_do_is_one_line(desk: Shell, words: list[str], stdin: str, status: int, told: str) -> None:
    (desk.home / ".config/shoebox/registries.toml").write_text('[registry."blocked.org"]\nblocked = true\n')
    done = desk("sh-login", *words, stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done.stderr
    assert told in done.stderr


def test_a_blocked_registry_and_docker_hub_by_its_old_name_can_be_logged_out_of(desk: Shell) -> None:
    (desk.home / ".config/shoebox/registries.toml").write_text('[registry."blocked.org"]\nblocked = true\n')
    written(desk, auths={HUB: {"auth": "eDp5"}, "docker.io": {"auth": "eDp5"}, "https://blocked.org": {"auth": "eDp5"}})
    done = desk("sh-logout")
    assert (done.returncode, done.stderr) == (0, "sh-logout: logged out at 'registry-1.docker.io'\n")
    assert list(document(desk)["auths"]) == ["https://blocked.org"]
    assert desk("sh-logout", "https://blocked.org/v2/", "docker.io").returncode == 0
    assert document(desk) == {"auths": {}}

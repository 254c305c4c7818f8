"""sh-pull --for-site: an account makes images for those who may not write to a site's store. Real sudo, real users."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.gateway import SECRETS, Site, keys, site, until
from fixtures.images import image, push, tar
from fixtures.installed import own_bin
from fixtures.registry import PASSWORD, USER, Answer, Seen, canned, docker_registry, htpasswd, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def there(prefix: Path) -> Iterator[Site]:
    with site(prefix) as made:
        yield made


def content(word: str):
    return image(tar({"hello": word.encode(), "more": b"x" * 100_000}))


def test_two_users_at_once_cost_one_download_and_get_the_same_image(there: Site) -> None:
    name = there.push("public/two", content("two"))
    pulls = [there.start(who, "sh-pull", "--for-site", name) for who in there.people]
    said = [(*pull.communicate(timeout=120), pull.returncode) for pull in pulls]
    assert [status for _, _, status in said] == [0, 0], said
    assert said[0][0] == said[1][0]
    path = Path(said[0][0].strip())
    assert path.parent == there.store
    assert len(there.gate.got("public/two")) == 2, "a config and a layer"
    for who in there.people:
        assert there.run(who, "cat", str(path)).returncode == 0
        assert there.run(who, "sh-images", str(there.store)).stdout.count("public/two") == 1
        assert there.run(who, "ls", str(there.home / ".cache/shoebox")).returncode != 0


def test_a_private_image_is_for_who_has_credentials_though_all_is_cached(there: Site) -> None:
    jane, bob = there.people
    there.log_in(jane)
    made = content("private")
    name = there.push("private/app", made)
    done = there.pull(jane, name)
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert there.run(jane, "cat", path).returncode == 0
    for other in (name, f"{there.host}/private/app@{made.digest}"):
        refused = there.pull(bob, other)
        assert (refused.returncode, refused.stdout) == (1, ""), refused
        assert "not allowed or not there" in refused.stderr
    for place in (path, path.replace(".sqfs", ".json")):
        assert there.run(bob, "cat", place).returncode == 1
    blobs = [*there.home.rglob("sha256-*"), *there.home.rglob("blobs/sha256/*")]
    assert blobs
    for blob in blobs:
        assert there.run(bob, "cat", str(blob)).returncode == 1
    before = len(there.gate.got("private/app"))
    assert there.pull(jane, "--user", bob, name).stdout.strip() == path
    assert there.run(bob, "cat", path).returncode == 0
    assert len(there.gate.got("private/app")) == before, "blobs are fetched once"


def test_a_registry_of_ones_own_proves_nothing_about_anothers_blobs(there: Site) -> None:
    """A user who knows digests serves a manifest that lists them, and has none of the blobs."""
    jane, bob = there.people
    there.log_in(jane)
    made = content("secret")
    assert there.pull(jane, there.push("private/secret", made)).returncode == 0
    with serve(
        canned({f"/v2/a/manifests/{tag}": (made.manifest, made.media_type) for tag in ("1", made.digest)})
    ) as evil:
        there.know(evil.host)
        done = there.pull(bob, f"{evil.host}/a:1")
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "does not have the blob" in done.stderr
    (path,) = there.store.glob(f"sha256-{made.digest[7:]}.sqfs")
    assert there.run(bob, "cat", str(path)).returncode == 1


def test_within_a_registry_a_cached_blob_counts_only_if_the_repository_has_it_for_us(there: Site) -> None:
    jane, bob = there.people
    there.log_in(jane)
    made = content("blob")
    assert there.pull(jane, there.push("private/blob", made)).returncode == 0
    name = f"{there.host}/public/thief"

    def lie(seen: Seen, ask: Callable[[], Answer]) -> Answer:
        if seen.path.startswith("/v2/public/thief/manifests/"):
            return Answer(200, made.manifest, {"Content-Type": made.media_type})
        return ask()

    with there.gate.lying(lie):
        done = there.pull(bob, f"{name}:1")
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "not allowed or not there" in done.stderr or "does not have" in done.stderr


def test_what_was_private_is_given_to_who_may_have_it_and_to_nobody_else(there: Site) -> None:
    jane, bob = there.people
    there.log_in(jane)
    path = there.pull(jane, there.push("private/readers", content("readers"))).stdout.strip()
    assert there.run(bob, "cat", path).returncode == 1
    assert there.pull(bob, there.push("public/readers", content("readers"))).stdout.strip() == path
    assert there.run(bob, "cat", path).returncode == 0
    assert there.run("nobody", "cat", path, group="nogroup").returncode == 1


def test_a_password_is_seen_nowhere_while_it_is_used(there: Site) -> None:
    jane, _ = there.people
    there.log_in(jane)
    name = there.push("private/slow", content("slow"))
    there.gate.closed.add("private/slow")
    pull = there.start(jane, "sh-pull", "--for-site", name)
    try:
        until(lambda: there.gate.got("private/slow"))
        gateways = there.processes()
        assert gateways
        for pid in [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]:
            for file in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    assert not seen_in(Path(f"/proc/{pid}/{file}").read_bytes()), (pid, file)
        for pid in gateways:
            assert there.run(there.account, "cat", f"/proc/{pid}/environ", home="images").returncode == 1
            assert "0 " in Path(f"/proc/{pid}/limits").read_text().partition("Max core file size")[2][:20]
        for path in [*there.home.rglob("*"), *there.store.rglob("*")]:
            if path.is_file():
                assert not seen_in(path.read_bytes()), path
    finally:
        there.gate.open("private/slow")
    out, err = pull.communicate(timeout=120)
    assert pull.returncode == 0, err
    assert not seen_in((out + err).encode())
    for path in [*there.home.rglob("*"), *there.store.rglob("*")]:
        assert not path.is_file() or not seen_in(path.read_bytes()), path


def seen_in(data: bytes) -> bool:
    return any(secret.encode() in data for secret in SECRETS)


REFERENCE = "reference=docker.io/library/debian:12"
HOSTILE = {
    "nothing": b"\n",
    "another version": b"shoebox 2 pull " + REFERENCE.encode() + b"\n",
    "another kind": b"shoebox 1 frob\n",
    "no reference": b"shoebox 1 pull\n",
    "an option as a reference": b"shoebox 1 pull reference=--output\n",
    "a reference not in full": b"shoebox 1 pull reference=debian\n",
    "a reference with shell words": b"shoebox 1 pull reference=docker.io/library/$(id):1\n",
    "a path": b"shoebox 1 pull reference=oci:/etc:x\n",
    "an option as a user": b"shoebox 1 pull " + REFERENCE.encode() + b" user=--mode=777\n",
    "users with commas": b"shoebox 1 pull " + REFERENCE.encode() + b" user=a,b\n",
    "an unknown word": b"shoebox 1 pull " + REFERENCE.encode() + b" for=root\n",
    "two platforms": b"shoebox 1 pull " + REFERENCE.encode() + b" platform=linux/amd64 platform=linux/arm64\n",
    "an odd platform": b"shoebox 1 pull " + REFERENCE.encode() + b" platform=../../x\n",
    "bytes": b"shoebox 1 pull \xff\xfe\x00\x1b[2J\n",
    "a long line": b"shoebox 1 pull " + b"reference=a/b:1 " * 2000 + b"\n",
    "a line without an end": b"x" * 100_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_request_is_refused_in_one_line(there: Site, kind: str) -> None:
    done = there.run(there.people[0], *there.sudo, stdin=HOSTILE[kind], hold=True)
    assert not done.stderr
    assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["shoebox", "fail"], done


def test_sudo_lets_nobody_give_words_or_an_environment(there: Site) -> None:
    jane, bob = there.people
    assert there.run(jane, *there.sudo, "--for", bob).returncode == 1
    evil = there.top / "evil"
    evil.mkdir(exist_ok=True)
    (evil / "sitecustomize.py").write_text("print('evil')")
    (evil / "sh-flatten").write_text("#!/bin/sh\necho evil\n")
    (evil / "sh-flatten").chmod(0o755)
    env = {
        "PYTHONPATH": str(evil), "PYTHONSTARTUP": str(evil / "sitecustomize.py"), "SHOEBOX_PATH": str(evil),
        "SHOEBOX_CACHE": str(evil), "DOCKER_CONFIG": str(evil), "HOME": str(evil), "SUDO_UID": "0", "TMPDIR": str(evil),
        "OPENSSL_CONF": str(evil), "XDG_CONFIG_HOME": str(evil), "HTTP_PROXY": "http://127.0.0.1:1", "LD_PRELOAD": "x",
    }  # fmt: skip
    name = there.push("public/env", content("env"))
    line = f"shoebox 1 pull reference={name}\n".encode()
    done = there.run(jane, *there.sudo, stdin=line, hold=True, **env)
    assert f"made {there.store}/" in done.stdout, done
    # The same if sudo kept all of it, and a site has forgotten the "" in its rule.
    kept = {**env, "PATH": f"{evil}:{os.environ['PATH']}"}
    kept.pop("LD_PRELOAD")
    done = there.run(there.account, there.gateway, home="images", stdin=line, hold=True, **kept)
    assert f"made {there.store}/" in done.stdout, done
    done = there.run(there.account, there.gateway, "--for", bob, home="images", stdin=line, **kept)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--for' is for sshd" in done.stderr
    done = there.run(there.account, there.gateway, home="images", stdin=line)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nobody asks" in done.stderr


@pytest.fixture
def one_at_a_time(there: Site) -> Iterator[None]:
    there.conf(f"account = {there.account}\nconversions = 1")
    yield
    there.conf(f"account = {there.account}")


def test_those_in_line_see_their_place_and_may_leave_it(there: Site, one_at_a_time: None, tmp_path: Path) -> None:
    jane, bob = there.people
    names = [there.push(f"public/line{n}", content(f"line{n}")) for n in range(4)]
    there.gate.closed.add("public/line0")
    pulls, logs = [], []
    for n, (who, name) in enumerate(zip((jane, bob, jane, bob), names, strict=True)):
        logs.append(tmp_path / f"log{n}")
        pulls.append(there.start(who, "sh-pull", "--for-site", name, stderr=logs[n].open("w")))
        want = f"place {n} of {n}" if n else "fetching"
        until(lambda log=logs[n], want=want: want in log.read_text(), want)
    mine = json.loads(there.run(jane, "sh-images", "--pending", "--json").stdout)
    assert [(row["state"], row["place"], row["reference"]) for row in mine] == [
        ("pull", 0, names[0]),
        ("waiting", 2, names[2]),
    ]
    assert "public/line1" not in there.run(jane, "sh-images", "--pending").stdout
    pulls[1].send_signal(signal.SIGINT)
    assert pulls[1].wait(60) == -signal.SIGINT
    until(lambda: "place 2 of 2" in logs[3].read_text() and "place 1 of 2" in logs[2].read_text())
    assert there.run(bob, "sh-images", "--pending").stdout.count("public/line") == 1
    there.gate.open("public/line0")
    for pull in (pulls[0], pulls[2], pulls[3]):
        assert pull.wait(120) == 0
    order = sorted((0, 2, 3), key=lambda n: max(path.stat().st_mtime_ns for path in named(there, f"line{n}")))
    assert order == [0, 2, 3]
    assert not there.gate.got("public/line1")
    until(lambda: not there.processes())
    assert not list((there.home / ".cache/shoebox/queue").iterdir())


def named(there: Site, name: str) -> list[Path]:
    found = [path.resolve() for path in there.store.rglob("1.sqfs") if path.parent.name == name]
    assert found
    return found


def test_what_kills_the_accounts_processes_loses_nothing(there: Site, tmp_path: Path) -> None:
    jane, bob = there.people
    names = [there.push(f"public/killed{n}", content(f"killed{n}")) for n in range(2)]
    there.gate.closed |= {"public/killed0", "public/killed1"}
    logs = [(tmp_path / f"log{n}") for n in range(2)]
    pulls = [
        there.start(who, "sh-pull", "--for-site", name, stderr=log.open("w"))
        for who, name, log in zip((jane, bob), names, logs, strict=True)
    ]
    for _ in range(2):
        until(lambda: len(there.processes()) >= 2)
        for pid in there.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    until(lambda: all("once more" in log.read_text() for log in logs))
    there.gate.open("public/killed0", "public/killed1")
    for pull, log in zip(pulls, logs, strict=True):
        assert pull.wait(120) == 0, log.read_text()
    assert all(len(named(there, f"killed{n}")) == 1 for n in range(2))
    until(lambda: not there.processes())
    assert not list((there.home / ".cache/shoebox/queue").iterdir())


def test_without_an_account_or_its_leave_it_is_one_line(there: Site) -> None:
    jane, _ = there.people
    for conf, why in (("", "this site has no image account"), ("account = daemon", "it does not let us in")):
        there.conf(conf)
        done = there.pull(jane, "debian:12")
        assert (done.returncode, done.stdout) == (1, "")
        assert why in done.stderr
    there.conf(f"account = {there.account}")
    there.log_in(jane)
    done = there.pull(jane, "--user", "no-such-user", there.push("private/x", content("x")))
    assert done.returncode != 0
    assert "no-such-user" in done.stderr


def test_where_there_is_no_such_command_it_is_said_at_once_and_is_for_the_site(there: Site) -> None:
    jane, _ = there.people
    away = there.prefix / "bin/away"
    os.rename(there.gateway, away)
    try:
        done = there.pull(jane, there.push("public/no", content("no")))
    finally:
        os.rename(away, there.gateway)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"sh-pull: the image account '{there.account}' cannot help")
    assert "once more" not in done.stderr


@pytest.mark.parametrize("line", ["LANG=C", "LC_CTYPE=C", "LC_ALL=POSIX"])
def test_no_locale_of_the_accounts_has_it_begin_anew_for_ever(there: Site, line: str) -> None:
    jane, _ = there.people
    settings = there.home / ".config/shoebox/environment"
    before = settings.read_text()
    settings.write_text(f"{before}{line}\n")
    try:
        assert there.run(jane, "sh-images", "--pending").returncode == 0
    finally:
        settings.write_text(before)


def test_what_was_made_is_told_though_a_system_is_down(there: Site) -> None:
    jane, _ = there.people
    table = there.prefix / "etc/systems.toml"
    table.write_text(f'[system.up]\nstore = "{there.store}"\n[system.down]\nstore = "[::1]:/x"\n')
    try:
        done = there.pull(jane, there.push("public/half", content("half")))
    finally:
        table.unlink()
    assert (done.returncode, done.stdout) == (75, f"{named(there, 'half')[0].resolve()}\n"), done.stderr


@pytest.mark.parametrize("way", ["authorized_keys", "AuthorizedKeysCommand"])
def test_by_ssh_a_key_says_who_asks(there: Site, tmp_path: Path, way: str) -> None:
    jane, bob = there.people
    there.log_in(jane)
    forced = f'restrict,command="{there.gateway} --for {jane}" {keys(tmp_path)}\n'
    with contextlib.ExitStack() as stack:
        config = "AuthorizedKeysFile none\nAuthorizedKeysCommandUser nobody\n"
        if way == "authorized_keys":
            (there.top / "authorized").write_text(forced)
            config = f"AuthorizedKeysFile {there.top}/authorized\n"
        else:  # sshd wants a program that only root could have put where it is
            made = Path(tempfile.mkdtemp(prefix="shoebox-keys-", dir="/usr/local/lib"))
            stack.callback(shutil.rmtree, made)
            made.chmod(0o755)
            (made / "keys").write_text(f"#!/bin/sh\n[ \"$1\" = {there.account} ] && echo '{forced.strip()}'\n")
            (made / "keys").chmod(0o755)
            config += f"AuthorizedKeysCommand {made}/keys %u\n"
        ssh = there.ssh(tmp_path, jane, config)
        stack.callback(there.conf, f"account = {there.account}")
        there.conf(f"account = {there.account}@far")
        made = content(f"ssh {way}")
        name = there.push(f"private/ssh{len(way)}", made)
        done = there.run(jane, "sh-pull", "--for-site", name, PATH=ssh)
        assert done.returncode == 0, done.stderr
        path = done.stdout.strip()
        assert [there.run(who, "cat", path).returncode for who in (jane, bob)] == [0, 1]
        # What the client asks to run, and the environment that it sends, are nothing to the account.
        words = ["ssh", "-T", "-o", "SendEnv=SHOEBOX_*", f"{there.account}@far", f"{there.gateway} --for {bob}; id"]
        env = {"PATH": ssh, "SHOEBOX_PATH": str(tmp_path), "SHOEBOX_CACHE": str(tmp_path)}
        done = there.run(jane, *words, stdin=b"shoebox 1 pending\n", hold=True, **env)
        assert done.stdout.splitlines() == ["shoebox 1", "done"], done
        assert there.run(jane, "sh-images", "--pending", PATH=ssh).stdout.split() == ["STATE", "PLACE", "NAME", "SINCE"]
        until(lambda: not there.processes())


def test_an_account_on_a_host_without_the_store_copies_images_out(there: Site, tmp_path: Path) -> None:
    """Shifter's second way of placing its gateway: in by ssh, out by ssh, here to where nobody has a shell."""
    jane, _ = there.people
    far = there.top / "far"
    far.mkdir()
    shutil.chown(far, there.account)
    ours = there.home / ".ssh"
    ours.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ours / "key"], check=True)
    (there.top / "authorized").write_text(
        f'restrict,command="{there.gateway} --for {jane}" {keys(tmp_path)}\n'
        f'restrict,command="rrsync -wo {far}" {(ours / "key.pub").read_text()}\n'
    )
    ssh = there.ssh(tmp_path, jane, f"AuthorizedKeysFile {there.top}/authorized\n")
    client = (Path(ssh.partition(":")[0]) / "config").read_text()
    tools = ssh.partition(":")[0]
    (ours / "config").write_text(client.replace("Host far", "Host storage").replace(f"{tools}/key", f"{ours}/key"))
    subprocess.run(["chown", "-R", f"{there.account}:", ours], check=True)
    table = there.prefix / "etc/systems.toml"
    with contextlib.ExitStack() as stack:
        stack.callback(there.conf, f"account = {there.account}")
        stack.callback(table.unlink)
        there.conf(f"account = {there.account}@far")
        table.write_text('[system.big]\nstore = "storage:/"\nby = "rsync"\n')
        made = content("out")
        name = there.push("public/out", made)
        done = there.run(jane, "sh-pull", "--for-site", name, PATH=ssh)
        file = f"sha256-{made.digest[7:]}.sqfs"
        assert (done.returncode, done.stdout) == (0, f"storage:/{file}\n"), done
        assert (far / file).stat().st_mode & 0o777 == 0o644
        assert next(far.rglob("1.sqfs")).resolve() == far / file
        assert not list(there.store.glob(file))


def test_credentials_of_a_registry_that_knows_no_tokens_go_through_too(there: Site, tmp_path: Path) -> None:
    jane, bob = there.people
    with docker_registry(tmp_path / "registry", htpasswd(tmp_path)) as place:
        made = content("basic")
        push(place.url, "app", "1", made, auth=(USER, PASSWORD))
        there.know(place.host)
        there.log_in(jane, place.host)
        done = there.pull(jane, f"{place.host}/app:1")
        assert done.returncode == 0, done.stderr
        assert not seen_in((done.stdout + done.stderr).encode())
        assert [there.run(who, "cat", done.stdout.strip()).returncode for who in (jane, bob)] == [0, 1]
        assert there.pull(bob, f"{place.host}/app:1").returncode == 1


def test_shifterimg_goes_to_the_account_and_scripts_see_no_difference(there: Site) -> None:
    jane, bob = there.people
    there.log_in(jane)
    command = f"{own_bin(there.prefix)}/shifterimg"
    names = [there.push(f"{kind}/shifter", content(f"shifter {kind}")) for kind in ("public", "private")]

    def states(said: str) -> list[str]:
        return re.findall(r"(?m)^\S+ Pulling Image: docker:\S+, status: (\w+)$", said)

    done = there.run(jane, command, "-v", "pull", names[0])
    assert (done.returncode, done.stderr) == (0, ""), done
    assert states(done.stdout) == ["PULLING", "CONVERSION", "TRANSFER", "READY"]
    assert done.stdout.endswith("\n\n")
    assert len(named(there, "shifter")) == 1
    done = there.run(jane, command, "pull", f"docker:{names[0]}")
    assert states(done.stdout) == ["READY"]
    done = there.run(jane, command, "-u", bob, "pull", names[1])
    assert states(done.stdout) == ["READY"], done
    (path,) = {path for path in named(there, "shifter") if path.stat().st_mode & 0o004 == 0}
    assert [there.run(who, "cat", str(path)).returncode for who in (jane, bob)] == [0, 0]
    assert there.run("nobody", "cat", str(path), group="nogroup").returncode == 1
    done = there.run(bob, command, "pull", names[1])
    assert (done.returncode, states(done.stdout)) == (1, ["FAILURE"])
    assert done.stderr.count("\n") == 1
    there.gate.closed.add("public/later")
    later = there.push("public/later", content("later"))
    said = []

    def ended() -> bool:
        done = there.run(jane, command, "pullnb", later)
        said.extend(states(done.stdout))
        return done.returncode != 0

    assert not ended()
    until(lambda: not ended() and said[-1] == "PULLING")
    there.gate.open("public/later")
    until(ended)
    assert (said[0], said[-1]) == ("INIT", "READY")
    assert len(named(there, "later")) == 1


def test_shifterimg_tells_that_it_waits_in_line(there: Site, one_at_a_time: None, tmp_path: Path) -> None:
    jane, bob = there.people
    command = f"{own_bin(there.prefix)}/shifterimg"
    names = [there.push(f"public/wait{n}", content(f"wait{n}")) for n in range(2)]
    there.gate.closed.add("public/wait0")
    first = there.start(bob, "sh-pull", "-q", "--for-site", names[0])
    until(lambda: there.gate.got("public/wait0"))
    log = tmp_path / "log"
    second = there.start(jane, command, "-v", "pull", names[1], stdout=log.open("w"))
    until(lambda: "status: PENDING" in log.read_text())
    there.gate.open("public/wait0")
    assert [pull.wait(60) for pull in (first, second)] == [0, 0]
    found = re.findall(r"status: (\w+)", log.read_text())
    assert found == ["PENDING", "PULLING", "CONVERSION", "TRANSFER", "READY"]

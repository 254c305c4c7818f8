"""sh-stage --system: several stores at once, by ssh, SFTP and rsync; those that are down, and those that come back."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from fixtures.far import SSHD, host
from fixtures.images import image as oci_image
from fixtures.images import index, push, tar
from fixtures.registry import free_port, registry  # noqa: F401 - a fixture
from fixtures.rootfs import sif, until
from fixtures.stores import DEBIAN, OTHER, contents, publish_in, whole

from shoebox import publish, removal, sidecar, store, superblock

USERNS = subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode == 0
WAYS = ("ssh", "scp", "rsync")


@pytest.fixture
def cache(cmd):
    """Return the user's own store."""
    return Path(cmd.env["SHOEBOX_CACHE"]) / "images"


@pytest.fixture
def far(cmd, tmp_path):
    """Return other hosts: `far` has a shell, `scp` gives SFTP only, and `rsync` takes files into one directory only."""
    if not SSHD or Path(pwd.getpwuid(os.getuid()).pw_shell).name in ("nologin", "false"):
        pytest.skip("no sshd, or no shell to log in to")
    made = host(tmp_path / "far", cmd.env["PATH"])
    (tmp_path / "taken").mkdir()
    made.other("ssh")
    made.other("scp", "Subsystem sftp internal-sftp\nForceCommand internal-sftp\n")
    made.other("rsync", restrict=f'restrict,command="rrsync -wo {tmp_path}/taken"')
    cmd.env["PATH"] = made.path
    return made


def table(cmd, **systems: str) -> None:
    """Write the user's table; each system's lines are given."""
    path = cmd.home / ".config/shoebox/systems.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"[system.{name}]\n{lines}\n" for name, lines in systems.items()))


@pytest.fixture(params=WAYS)
def way(request, cmd, far, tmp_path):
    """Return a store that the system `there` has, which is reached in one way, as sh-stage prints it and as it is."""
    real = tmp_path / "taken/a store" if request.param == "rsync" else tmp_path / "another/a store"
    named = "/a store" if request.param == "rsync" else str(real)
    table(cmd, there=f'store = "{request.param}:{named}"\nby = "{request.param}"')
    return f"{request.param}:{named}", real


def test_every_way_brings_the_same_files_and_a_tag_moves_there(cmd, cache, way):
    named, real = way
    image = publish_in(cache, [f"{DEBIAN}/12", "host:5000/a/1"], os.urandom(3 << 20))
    assert cmd.ok("sh-stage", "--system", "there", image) == f"{named}/{image.name}"
    assert contents(real) == contents(cache)
    inode = (real / image.name).stat().st_ino
    (real / DEBIAN / "12.sqfs").unlink()
    os.utime(real / store.sidecar_file(image.name), (1, 1))
    cmd.ok("sh-stage", "--all-systems", stdin=f"{DEBIAN}:12\n")
    assert (real / image.name).stat().st_ino == inode
    assert (real / store.sidecar_file(image.name)).stat().st_mtime > 1
    assert contents(real) == contents(cache)
    new = publish_in(cache, content=b"new", manifest=OTHER)
    cmd.ok("sh-stage", "--system", "there", f"{DEBIAN}:12")
    assert (real / DEBIAN / "12.sqfs").resolve().name == new.name
    assert contents(real) == contents(cache)
    whole(real)


def test_every_way_keeps_what_an_image_of_other_settings_replaces(cmd, cache, way, tmp_path):
    _, real = way
    other = publish_in(tmp_path / "other", content=os.urandom(20000))
    image = publish_in(cache)
    for source in (other, image):
        cmd.ok("sh-stage", "--system", "there", source)
    assert (real / image.name).read_bytes() == image.read_bytes()
    retired = sorted(path for path in (real / publish.RETIRED).iterdir())
    assert sorted(path.stat().st_size for path in retired) == sorted(
        path.stat().st_size for path in (other, other.with_suffix(".json"))
    )
    assert removal.delete(str(real), time.time() + 1, dry=False)[0] == 1
    assert list((real / publish.RETIRED).iterdir()) == []
    whole(real)


def test_rsync_puts_nothing_off_where_it_replaces_nothing(cmd, cache, far, tmp_path):
    (far.top / "bin/rsync").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/said\nexec {shutil.which("rsync")} "$@"\n')
    (far.top / "bin/rsync").chmod(0o755)
    table(cmd, there='store = "rsync:/new"\nby = "rsync"')
    cmd.ok("sh-stage", "--system", "there", publish_in(cache))
    assert "--dry-run" in (tmp_path / "said").read_text()
    assert "--delay-updates" not in (tmp_path / "said").read_text()


def test_a_damaged_image_arrives_in_no_way(cmd, cache, way):
    _, real = way
    image = publish_in(cache)
    with image.open("r+b") as file:
        file.seek(200)
        file.write(b"bad")
    done = cmd("sh-stage", "--system", "there", image)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("sh-stage: there: ")
    assert "its sidecar says" in done.stderr
    assert not real.exists() or contents(real) == {}


def test_a_sif_goes_every_way(cmd, cache, way, tmp_path):
    _, real = way
    image = publish_in(cache, [])
    sif(image, tmp_path / "app.sif")
    cmd.ok("sh-stage", "--system", "there", tmp_path / "app.sif")
    (arrived,) = real.glob("*.sqfs")
    assert arrived.read_bytes()[: image.stat().st_size] == image.read_bytes()
    whole(real)


def test_every_way_gives_the_mode_that_was_asked_for(cmd, cache, way):
    _, real = way
    image = publish_in(cache)
    cmd.ok("sh-stage", "--mode", "640", "--system", "there", image)
    assert [(real / name).stat().st_mode & 0o777 for name in os.listdir(real) if "sha256" in name] == [0o640] * 2
    assert (real / DEBIAN).stat().st_mode & 0o777 == 0o750


def test_a_kill_at_any_moment_leaves_nothing_half_made_under_a_name(cmd, cache, way):
    _, real = way
    image = publish_in(cache, content=os.urandom(16 << 20))
    rng = random.Random(3)
    hits = 0
    for number, whom in enumerate(("sh-stage", "worker", "what it runs") * 2):
        old = set(left(real))
        with cmd.start("sh-stage", "--system", "there", image) as process:
            assert until(lambda: set(left(real)) - old or process.poll() is not None, 60)  # noqa: B023
            time.sleep(rng.uniform(0, 0.05))
            if whom == "sh-stage":
                process.kill()
            else:
                victims = children(process.pid)
                if whom == "what it runs":
                    victims = [pid for worker in victims for pid in children(worker)]
                subprocess.run(["kill", "-9", *victims], check=False, capture_output=True)
        hits += process.returncode != 0
        for half in real.glob("*.sqfs"):
            assert half.read_bytes() == image.read_bytes()
            assert half.with_suffix(".json").read_bytes() == image.with_suffix(".json").read_bytes()
        names = [path for path in real.glob("**/12.sqfs") if path.is_symlink()]
        assert all(path.exists() for path in names)
        if (real / image.name).exists():  # the other end may still be writing there
            real.rename(real.with_name(f"moved-{number}"))
    assert hits
    over = time.monotonic() + 60  # the other end of a killed connection may be slow to notice
    while (done := cmd("sh-stage", "--system", "there", image)).returncode == 75 or left(real):
        assert time.monotonic() < over, done.stderr
    assert done.returncode == 0, done.stderr
    shutil.rmtree(real / ".~tmp~", ignore_errors=True)
    assert contents(real) == contents(cache)


def left(where: Path) -> list[Path]:
    """Return the temporary files in a store; what an rsync that was killed has put off stays for two days."""
    return [path for path in where.glob(".*") if path.name not in (publish.RETIRED, ".~tmp~")]


def children(pid: int | str) -> list[str]:
    """Return the pids of a process's children."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


@pytest.mark.skipif(not USERNS, reason="no user namespaces: no small disk without root")
@pytest.mark.parametrize("by", ["scp", "rsync"])
def test_a_full_disk_may_have_room_later(cmd, cache, far, tmp_path, by):
    image = publish_in(cache, content=os.urandom(2 << 20))
    small = tmp_path / "small"
    small.mkdir()
    serve = {
        "scp": shutil.which("sftp-server", path="/usr/lib/openssh:/usr/libexec/openssh"),
        "rsync": f"rrsync -wo {small}",
    }[by]
    inner = f"mount -t tmpfs -o size=1m none {small}; {serve}; status=$?"
    (far.top / "serve").write_text(
        f"#!/bin/sh\nexec unshare -Urm sh -c '{inner}; ls -A {small} >{tmp_path}/left; exit $status'\n"
    )
    (far.top / "serve").chmod(0o755)
    far.other("full", f"Subsystem sftp {far.top}/serve\nForceCommand {far.top}/serve\n")
    table(cmd, full=f'store = "full:{small if by == "scp" else "/"}"\nby = "{by}"')
    done = cmd("sh-stage", "--system", "full", image)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr.splitlines()[-1].startswith("sh-stage: full: cannot copy")
    assert until((tmp_path / "left").exists, 20)
    there = (tmp_path / "left").read_text().split()
    assert [name for name in there if name.startswith(("sha256", "docker"))] == []


def test_systems_that_are_down_hold_up_no_other_and_are_caught_up(cmd, cache, far, tmp_path):
    images = [publish_in(cache, [f"{DEBIAN}/{n}"], str(n).encode(), f"{n:064x}") for n in range(3)]
    closed = free_port()
    far.other("closed", port=closed)
    far.other("changed")
    far.forget("changed")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        far.other("mute", port=mute.getsockname()[1])
        down = {"closed": "ssh", "changed": "scp", "mute": "ssh", "mute2": "rsync"}
        systems = {
            name: f'store = "{name.strip("2")}:{tmp_path}/{name}/images"\nby = "{by}"' for name, by in down.items()
        }
        table(cmd, here=f'store = "{tmp_path}/here/images"', **systems, good=f'store = "ssh:{tmp_path}/good/images"')
        began = time.monotonic()
        done = cmd("sh-stage", "--all-systems", stdin="".join(f"{image}\n" for image in images))
        assert time.monotonic() - began < 60
    assert done.returncode == 75
    assert contents(tmp_path / "here/images") == contents(tmp_path / "good/images") == contents(cache)
    assert sorted(done.stdout.splitlines()) == sorted(
        f"{where}{tmp_path}/{name}/images/{image.name}"
        for where, name in (("", "here"), ("ssh:", "good"))
        for image in images
    )
    for name in down:
        assert [line for line in done.stderr.splitlines() if line.startswith(f"sh-stage: {name}: cannot copy")], name
        assert f"sh-stage: {name}: 2 more were not tried" in done.stderr
    far.forget("nobody")
    known = (far.top / "known_hosts").read_text().replace("changed ", "nobody ")
    (far.top / "known_hosts").write_text(f"{known}changed {(far.top / 'host_key.pub').read_text()}")
    table(cmd, here=f'store = "{tmp_path}/here/images"', **{name: systems[name] for name in ("closed", "changed")})
    far_sftp = far.top / "changed_config"
    far_sftp.write_text(far_sftp.read_text() + "Subsystem sftp internal-sftp\n")
    with far.listening("closed", closed):
        cmd.ok("sh-stage", "--all-systems", stdin="".join(f"{image}\n" for image in images))
    assert contents(tmp_path / "closed/images") == contents(tmp_path / "changed/images") == contents(cache)


def test_a_host_that_hangs_gets_no_further_and_the_others_get_all(cmd, cache, far, tmp_path):
    images = [publish_in(cache, [f"{DEBIAN}/{n}"], str(n).encode(), f"{n:064x}") for n in range(3)]
    far.other("hung", "ForceCommand cat >/dev/null\n")
    table(cmd, hung='store = "hung:/x"', good=f'store = "ssh:{tmp_path}/good"')
    with cmd.start("sh-stage", "--all-systems", *images) as process:
        lines = [process.stdout.readline().decode().strip() for _ in images]
        assert lines == [f"ssh:{tmp_path}/good/{image.name}" for image in images]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


def test_when_the_reader_has_gone_it_ends_as_other_filters_do(cmd, cache, tmp_path):
    images = [publish_in(cache, [f"{DEBIAN}/{n}"], str(n).encode(), f"{n:064x}") for n in range(2)]
    table(cmd, here=f'store = ["{tmp_path}/one", "{tmp_path}/two"]')
    with cmd.start("sh-stage", "--all-systems") as process:
        process.stdout.close()
        process.stdin.write(b"".join(b"%s\n" % bytes(image) for image in images))
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def for_platform(where: Path, platform: str, manifest: str) -> Path:
    """Publish an image that says what it is for; its compressor is gzip."""
    image = publish_in(where, [f"{DEBIAN}/{manifest[:2]}"], platform.encode(), manifest)
    known = store.read_sidecar(str(image))
    text = sidecar.dump(
        sha256=known.sha256, size=known.size, manifest=known.manifest, reference=known.reference, platform=platform
    )
    image.with_suffix(".json").write_bytes(text)
    return image


def test_an_image_of_another_platform_or_compressor_is_passed_over(cmd, cache, tmp_path):
    arm = for_platform(cache, "linux/arm64", "a" * 64)
    intel = for_platform(cache, "linux/amd64", "b" * 64)
    table(
        cmd,
        arm=f'store = "{tmp_path}/arm"\nplatform = "linux/arm64/v8"\ncompressor = "gzip"',
        intel=f'store = "{tmp_path}/intel"\nplatform = "linux/amd64"',
        old=f'store = "{tmp_path}/old"\ncompressor = "lz4"',
    )
    done = cmd("sh-stage", "--all-systems", arm, intel)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [f"{tmp_path}/arm/{arm.name}", f"{tmp_path}/intel/{intel.name}"]
    told = [
        ("arm", "bb", "for linux/amd64, not for linux/arm64"),
        ("intel", "aa", "for linux/arm64, not for linux/amd64"),
    ]
    told += [("old", tag, "compressed with gzip, not with lz4") for tag in ("aa", "bb")]
    assert sorted(done.stderr.splitlines()) == [
        f"sh-stage: the system {system!r} does not take '{DEBIAN}:{tag}', which is {why}: it is not copied there"
        for system, tag, why in told
    ]
    assert cmd("sh-stage", "--system", "arm", "--system", "intel", arm).returncode == 1
    assert cmd("sh-stage", "--system", "arm", arm).returncode == 0


def test_a_store_of_several_is_here_or_there(cmd, cache, far, tmp_path):
    image = publish_in(cache)
    table(cmd, both=f'store = ["{tmp_path}/one", "ssh:{tmp_path}/two"]')
    printed = cmd.ok("sh-stage", "--system", "both", image).splitlines()
    assert sorted(printed) == [f"{tmp_path}/one/{image.name}", f"ssh:{tmp_path}/two/{image.name}"]


def test_pull_and_flatten_make_what_a_system_wants(cmd, registry, tmp_path):  # noqa: F811
    made = {name: oci_image(tar({"name": name.encode()}), architecture=name) for name in ("amd64", "arm64")}
    listed = [(made[name], {"os": "linux", "architecture": name}) for name in made]
    ref = push(registry.url, "systems", "1", index(*listed))
    table(
        cmd,
        **{
            name: f'store = "{tmp_path}/{name}"\nplatform = "linux/{name}"\ncompressor = "{compressor}"'
            for name, compressor in (("amd64", "gzip"), ("arm64", "xz"))
        },
    )
    for name, compressor in (("amd64", "gzip"), ("arm64", "xz")):
        words = (f"sh-{step} --system {name}" for step in ("pull", "flatten", "stage"))
        staged = cmd.ok("sh", "-c", " | ".join(words), stdin=ref)
        assert staged == f"{tmp_path}/{name}/{store.image_file(made[name].digest[7:])}"
        head = Path(staged).read_bytes()
        assert superblock.check(head, len(head), staged).compressor == compressor
    for words in (("sh-pull", "-p", "linux/arm64"), ("sh-flatten", "-c", "gzip")):
        done = cmd(*words, "--system", "arm64", "x")
        assert (done.returncode, done.stderr.count("do not go together")) == (2, 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--system", "other"], "no system 'other': there are here"),
        (["--system", "here", "--all-systems"], "--system and --all-systems do not go together"),
        (["--system", "here", "-d", "x"], "--system and --store do not go together"),
        (["--all-systems", "--nodes"], "--nodes and --all-systems do not go together"),
    ],
)
def test_wrong_words_are_told(cmd, tmp_path, words, told):
    table(cmd, here=f'store = "{tmp_path}/here"')
    done = cmd("sh-stage", *words, "x.sqfs")
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_a_host_that_speaks_no_sftp_is_told(cmd, cache, far):
    far.other("talks", "Subsystem sftp internal-sftp\nForceCommand echo Welcome to far; sleep 1\n")
    table(cmd, there='store = "talks:/x"\nby = "scp"')
    done = cmd("sh-stage", "--system", "there", publish_in(cache))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (75, "", 1), done.stderr
    assert "it speaks no SFTP: 'Welc': try: sftp talks" in done.stderr


def test_a_full_disk_of_this_host_is_told(cmd, cache, tmp_path):
    sif(publish_in(cache, [], os.urandom(200_000)), tmp_path / "app.sif")
    table(cmd, there='store = "nowhere:/x"\nby = "rsync"')
    done = cmd("prlimit", "--fsize=100000", "sh-stage", "--system", "there", tmp_path / "app.sif", TMPDIR=str(tmp_path))
    assert done.stderr == f"sh-stage: there: cannot write to '{tmp_path}': File too large: free space, or set TMPDIR\n"


@pytest.mark.parametrize("by", WAYS[:2])
def test_without_ssh_it_is_told_what_to_install(cmd, cache, by):
    image = publish_in(cache)
    table(cmd, there=f'store = "far:/x"\nby = "{by}"')
    done = cmd("sh-stage", "--system", "there", image, PATH=cmd.env["PATH"].partition(":")[0])
    assert done.returncode == 1
    assert done.stderr == "sh-stage: there: cannot start 'ssh': No such file or directory: install it\n"


def test_what_some_only_may_read_goes_by_ssh_only(cmd, cache, far, tmp_path):
    image = publish_in(cache)
    table(cmd, there='store = "scp:/x"\nby = "scp"')
    done = cmd("sh-stage", "--group", str(os.getgid()), "--system", "there", image)
    assert done.returncode == 1
    assert "scp knows no users and groups" in done.stderr


def test_what_is_private_stays_so_in_every_way(cmd, cache, way):
    _, real = way
    image = publish_in(cache)
    for path in (image, image.with_suffix(".json")):
        path.chmod(0o600)
    cmd.ok("sh-stage", "--system", "there", image)
    made = [real / image.name, real / image.with_suffix(".json").name]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o600] * 2
    cmd.ok("sh-stage", "--mode", "644", "--system", "there", image)
    assert [path.stat().st_mode & 0o777 for path in made] == [0o644] * 2
    cmd.ok("sh-stage", "--system", "there", image)  # and what is public is not taken back
    assert [path.stat().st_mode & 0o777 for path in made] == [0o644] * 2


@pytest.mark.root
def test_a_chroot_without_a_shell_gets_images_by_sftp(cmd, cache, far, tmp_path):
    cell = Path(tempfile.mkdtemp(prefix="shoebox-", dir="/run"))  # sshd wants root's directories all the way
    try:
        cell.chmod(0o755)
        (cell / "images").mkdir()
        far.other("cell", f"Subsystem sftp internal-sftp\nForceCommand internal-sftp\nChrootDirectory {cell}\n")
        table(cmd, cell='store = "cell:/images"\nby = "scp"')
        image = publish_in(cache, [f"{DEBIAN}/12"], os.urandom(1 << 20))
        assert cmd.ok("sh-stage", "--system", "cell", image) == f"cell:/images/{image.name}"
        assert contents(cell / "images") == contents(cache)
    finally:
        shutil.rmtree(cell)

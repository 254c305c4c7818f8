"""Private images: readable by their owner and those named, however one comes at them; and never by more unasked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.far import SSHD, host
from fixtures.installed import Shell
from fixtures.stores import DEBIAN, MANIFEST, publish_in

from shoebox import publish, readers
from shoebox.readers import OWNER, UMASK, Readers

pytestmark = pytest.mark.root
ALICE, BOB, CAROL = 60131, 60132, 60133  # owner, named, nobody's; no accounts
GROUP = 60210
WORDS = ("--user", str(BOB), "--group", str(GROUP))


@dataclass(frozen=True)
class Room:
    """A directory that everybody may look into, with a store that everybody may write to, and users."""

    where: Path
    prefix: Path
    cmd: Shell

    @property
    def store(self) -> Path:
        return self.where / "store"

    def run(self, uid: int, *words: object, groups: str = "", around: tuple[str, ...] = (), **env: str):
        """Run a command as a user with a home and a cache of his own."""
        home = self.where / f"home-{uid}"
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
        member = f"--groups={groups}" if groups else "--clear-groups"
        become = ("setpriv", f"--reuid={uid}", f"--regid={uid}", member, "--")
        own = {"HOME": str(home), "SHOEBOX_CACHE": f"{home}/cache", "TMPDIR": "/tmp", "XDG_RUNTIME_DIR": None}
        return self.cmd(*around, *become, *map(str, words), cwd=self.where, **(own | env))

    def ok(self, uid: int, *words: object, **more: object) -> str:
        done = self.run(uid, *words, **more)
        assert done.returncode == 0, done
        return done.stdout.strip()

    def image(self, uid: int = ALICE, content: bytes = b"hello\n", **more: object) -> Path:
        """Put an image into a user's own store."""
        self.run(uid, "true")
        made = publish_in(self.where / f"home-{uid}/cache/images", content=content, **more)
        subprocess.run(["chown", "-hR", f"{uid}:{uid}", self.where / f"home-{uid}"], check=True)
        return made

    def may(self, path: object, uid: int, groups: str = "") -> bool:
        """Tell whether a user may read a file."""
        return self.run(uid, "cat", path, groups=groups).returncode == 0

    def who(self, path: object) -> str:
        """Return whose a file is to read, a letter each: Alice, Bob, Carol, a member of the group."""
        asked = {"A": (ALICE, ""), "B": (BOB, ""), "C": (CAROL, ""), "G": (CAROL, str(GROUP))}
        return "".join(letter for letter, (uid, groups) in asked.items() if self.may(path, uid, groups))


@pytest.fixture
def room(prefix, cmd, monkeypatch):
    """Return a room."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # so that an image made twice is the same
    where = Path(tempfile.mkdtemp(prefix="shoebox-private-", dir="/tmp"))
    where.chmod(0o755)
    (where / "store").mkdir()
    (where / "store").chmod(0o777)
    yield Room(where, prefix, cmd)
    shutil.rmtree(where)


def beside(image: object) -> list[Path]:
    """Return an image's files."""
    return [Path(image), Path(image).with_suffix(".json"), Path(publish.pin_file(str(image)))]


def test_a_private_image_is_its_owners_and_theirs_who_are_named_by_whatever_path(room):
    image = Path(room.ok(ALICE, "sh-stage", "-d", room.store, *WORDS, room.image()))
    room.ok(ALICE, "sh-rm", "--pin", image)
    for path in (*beside(image), room.store / DEBIAN / "12.sqfs"):
        assert room.who(path) == "ABG", path
    # by hard link: where links are protected Carol makes none, and one that she has changes nothing
    made = room.run(CAROL, "ln", image, room.where / f"home-{CAROL}/link")
    protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
    assert (made.returncode != 0) == protected, made
    link = room.where / "link.sqfs"
    os.link(image, link)
    assert room.who(link) == "ABG"
    # its directories are everybody's to search, as of any image
    assert {path.stat().st_mode & 0o005 for path in (room.store / DEBIAN).parents[:2]} == {0o005}


def test_who_may_not_read_it_cannot_run_it_by_name_by_digest_or_by_path(room, box):
    made = room.where / "box.sqfs"
    shutil.copy(box, made)
    image = Path(room.ok(ALICE, "sh-stage", "-d", room.store, *WORDS, made))
    digest = image.stem.replace("-", ":", 1)
    for word in (image, digest):
        words = ("sh-run", word, "cat", "/etc/os-release")
        assert room.ok(BOB, *words, SHOEBOX_PATH=str(room.store)) == "NAME=box"
        assert room.ok(CAROL, *words, groups=str(GROUP), SHOEBOX_PATH=str(room.store)) == "NAME=box"
        done = room.run(CAROL, *words, SHOEBOX_PATH=str(room.store))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        assert "Permission denied" in done.stderr


def test_what_is_replaced_stays_private_where_it_waits_and_so_is_what_comes(room):
    old = Path(room.ok(ALICE, "sh-stage", "-d", room.store, *WORDS, room.image()))
    new = Path(room.ok(ALICE, "sh-stage", "-d", room.store, room.image(content=b"made with other settings")))
    assert new == old
    retired = list((room.store / publish.RETIRED).iterdir())
    assert {path.suffix for path in retired} == {".sqfs", ".json"}
    for path in (*retired, *beside(new)[:2]):
        assert room.who(path) == "ABG", path


def test_staging_again_adds_readers_takes_none_off_and_closes_nothing(room):
    image = Path(room.ok(ALICE, "sh-stage", "-d", room.store, "--user", BOB, room.image()))
    room.ok(ALICE, "sh-rm", "--pin", image)
    inode = image.stat().st_ino
    for words, who in [
        ((), "AB"),
        (("--user", ALICE), "AB"),
        (("--group", GROUP), "ABG"),
        (("--mode", "600"), "ABG"),
        (("--mode", "640", "--group", GROUP), "ABG"),
        (("--mode", "644"), "ABCG"),
        (("--user", BOB), "ABCG"),
    ]:
        room.ok(ALICE, "sh-stage", "-d", room.store, *words, room.image())
        assert [room.who(path) for path in beside(image)] == [who] * 3, words
    assert image.stat().st_ino == inode


def test_an_image_is_staged_with_its_own_readers_unless_others_are_asked_for(room):
    for number, (words, who) in enumerate([((), "A"), (("--mode", "644"), "ABCG"), (("--user", BOB), "AB")]):
        made = room.image()
        made.chmod(0o600)
        image = room.ok(ALICE, "sh-stage", "-d", room.store / str(number), *words, made)
        assert [room.who(path) for path in beside(image)[:2]] == [who] * 2
    # and on from there, by who was let in: he is the owner of his copy
    (room.store / "2").chmod(0o755)
    image = room.ok(BOB, "sh-stage", "-d", room.store / "bob", f"{room.store}/2/{made.name}")
    assert room.who(image) == "B"
    image = room.ok(ALICE, "sh-stage", "-d", room.store / "group", "--group", GROUP, made)
    assert room.who(room.ok(ALICE, "sh-stage", "-d", room.store / "next", image)) == "AG"


def test_what_a_umask_closes_in_ones_own_store_is_for_the_group_of_the_store_that_it_comes_to(room):
    """A project's store is set-group-ID, and its members have a umask of 027."""
    os.chown(room.store, ALICE, GROUP)
    room.store.chmod(0o2775)
    for word, content, mode in (("public", b"hello\n", 0o640), ("private", b"secret\n", 0o600)):
        made = room.image(content=content, manifest=hashlib.sha256(content).hexdigest())
        made.chmod(mode)
        member = ("sh", "-c", f"umask 027; sh-stage -d {room.store} {made}")
        image = Path(room.ok(ALICE, *member, groups=str(GROUP)))
        found = image.stat()
        assert (word, found.st_mode & 0o777) == (word, mode)
        assert found.st_gid == GROUP
    elsewhere = room.where / f"home-{ALICE}/other"  # no store of sh-flatten's: somebody has said who may read this
    shutil.copytree(made.parent, elsewhere)
    subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", elsewhere], check=True)
    copy = elsewhere / made.name
    copy.chmod(0o640)
    shutil.rmtree(room.store)
    room.store.mkdir()
    os.chown(room.store, ALICE, GROUP)
    room.store.chmod(0o2775)
    image = Path(room.ok(ALICE, "sh", "-c", f"umask 027; sh-stage -d {room.store} {copy}", groups=str(GROUP)))
    assert readers.of(str(image)) == Readers(True, (), (str(ALICE),))


def test_of_another_users_private_image_one_line_names_the_owner_and_what_he_can_do(room):
    room.ok(ALICE, "sh-stage", "-d", room.store, "--group", GROUP, room.image())
    theirs = room.image(CAROL)
    done = room.run(CAROL, "sh-stage", "-d", room.store, theirs)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"it is {ALICE}'s, and private: ask {ALICE} for: sh-stage --user {CAROL} -d {room.store}" in done.stderr
    member = {"groups": str(GROUP)}
    room.ok(CAROL, "sh-stage", "-d", room.store, theirs, **member)
    done = room.run(CAROL, "sh-stage", "-d", room.store, "--user", BOB, theirs, **member)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"cannot let others read '{room.store}/sha256-{MANIFEST}.sqfs': it is {ALICE}'s" in done.stderr
    assert f"sh-stage --user {BOB} -d" in done.stderr


def test_sh_images_shows_whose_an_image_is_and_not_what_is_for_others(room):
    room.ok(ALICE, "sh-stage", "-d", room.store, "--user", "daemon", "--group", GROUP, room.image())
    room.image(ALICE, stems=["x.org/open/1"], manifest="f" * 64)
    room.ok(ALICE, "sh-stage", "-d", room.store, f"sha256:{'f' * 64}")
    head, *rows = room.ok(ALICE, "sh-images", room.store).splitlines()
    assert head.split()[-1] == "READERS"
    assert [row.split()[0] for row in rows] == ["docker.io/library/debian:12", "x.org/open:1"]
    assert rows[0].endswith(f"  owner,daemon,@{GROUP}")
    assert len(rows[1].split()) == 4
    shown = json.loads(room.ok(ALICE, "sh-images", "--json", room.store))
    assert [(one["private"], one["users"], one["groups"]) for one in shown] == [
        (True, ["daemon"], [str(GROUP)]),
        (False, [], []),
    ]
    done = room.run(CAROL, "sh-images", room.store)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["NAME", "x.org/open:1"]
    assert done.stdout.split()[3:5] == ["AGE", "x.org/open:1"]


@pytest.mark.parametrize("kind", ["ramfs", "bindfs"])
def test_where_there_are_no_acls_one_group_may_read_and_anything_else_is_refused(room, kind):
    image = room.image()
    mount = {"ramfs": 'mount -t ramfs none "$0"', "bindfs": 'mkdir "$0.under"; bindfs "$0.under" "$0"'}[kind]
    off = 'status=$?; cd /; umount "$0"; rm -rf "$0.under"; exit $status' if kind == "bindfs" else "exit $?"
    around = ("unshare", "-m", "sh", "-c", f'{mount} && chmod 777 "$0"; "$@"; {off}', str(room.store))
    look = f"cd {room.store} && stat -c '%a %g' sha256-{MANIFEST}.sqfs sha256-{MANIFEST}.json"
    stage = ("sh", "-c", f'sh-stage -d {room.store} "$@" {image} && {look}; ls -A {room.store} >&2', "-")
    done = room.run(ALICE, *stage, "--group", GROUP, groups=str(GROUP), around=around)
    assert done.stdout.splitlines()[1:] == [f"640 {GROUP}"] * 2, done
    for words in ((*WORDS,), ("--group", f"{GROUP},{ALICE}"), ("--group", "bin")):
        done = room.run(ALICE, *stage, *words, groups=str(GROUP), around=around)
        assert done.stderr.count("\n") == 1, done  # and nothing stays
        assert "this file system has no ACLs, " in done.stderr


def test_the_kernel_mounts_a_private_image_for_who_may_read_it_only(site):
    """The setuid helper opens images as its caller."""
    fd = os.open(site.image, os.O_RDONLY)
    try:
        from fixtures.helper import OTHER, USER

        readers.give(fd, Readers(True, (str(USER),)))
        assert site.kernel(uid=USER).returncode == 0
        for done in (site.kernel(uid=OTHER), site.setuid("id", uid=OTHER)):
            assert (done.returncode, done.stdout) == (125, "")
            assert "Permission denied" in done.stderr
        link = site.store / "link.sqfs"
        os.link(site.image, link)
        assert "Permission denied" in site.kernel(link, uid=OTHER).stderr
        readers.give(fd, Readers(True, (), (str(OTHER),)))
        assert site.kernel(uid=OTHER).returncode == 0
        assert "Permission denied" in site.kernel(uid=USER).stderr
    finally:
        os.removexattr(site.image, "system.posix_acl_access")
        os.close(fd)


# Over there


@pytest.fixture
def far(room, cmd, tmp_path):
    """Return another host, reached as root."""
    if not SSHD:
        pytest.skip("no sshd")
    made = host(tmp_path / "far", cmd.env["PATH"])
    cmd.env["PATH"] = made.path
    return made


def there(cmd: Shell, room: Room, *words: object) -> subprocess.CompletedProcess[str]:
    """Stage an image to the other host."""
    return cmd("sh-stage", "-d", f"far:{room.store}", *map(str, words))


def test_over_there_names_are_given_with_the_image_and_added_later(cmd, room, far):
    image = publish_in(Path(cmd.env["SHOEBOX_CACHE"]) / "images")
    staged = room.store / image.name
    for words, who in [
        (("--user", "games", "--group", "daemon"), Readers(True, ("games",), ("daemon",))),
        (("--user", "bin"), Readers(True, ("bin", "games"), ("daemon",))),
        ((), Readers(True, ("bin", "games"), ("daemon",))),
        (("--mode", "644"), UMASK),
        (("--user", "bin"), UMASK),
    ]:
        done = there(cmd, room, *words, image)
        assert (done.returncode, done.stderr) == (0, "")
        assert [readers.of(str(path)) for path in beside(staged)[:2]] == [who] * 2
    image.chmod(0o600)
    staged.unlink()
    assert there(cmd, room, image).returncode == 0
    assert readers.of(str(staged)) == OWNER
    image = publish_in(Path(cmd.env["SHOEBOX_CACHE"]) / "images", content=b"other settings")
    assert there(cmd, room, "--user", "bin", image).returncode == 0
    assert there(cmd, room, publish_in(room.where / "third", content=b"third")).returncode == 0
    assert readers.of(str(staged)) == Readers(True, ("bin",))
    assert {readers.of(str(path)) for path in (room.store / publish.RETIRED).glob("*.sqfs")} == {
        OWNER,
        Readers(True, ("bin",)),
    }


def test_over_there_a_user_that_is_unknown_or_has_no_name_is_refused_in_one_line(cmd, room, far):
    image = publish_in(Path(cmd.env["SHOEBOX_CACHE"]) / "images")
    for words, why in [
        (("--user", "nobody-like-that"), "or does not know them all"),
        (("--user", BOB), f"number {BOB} has no name here"),
        (("--group", "nobody-like-that"), "it does not give it to 'nobody-like-that'"),
    ]:
        done = there(cmd, room, *words, image)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert why in done.stderr
        assert list(room.store.iterdir()) == []


def test_over_there_without_setfacl_one_group_may_read(cmd, room, far):
    tools = far.top / "tools"
    tools.mkdir()
    basic = "sh dd uname cat sha256sum tee wc head ls chmod chgrp mv ln rm mkdir dirname readlink sync date find sed"
    for tool in [*basic.split(), "df", "grep", "id", "touch"]:
        (tools / tool).symlink_to(shutil.which(tool))
    (far.top / "shell").write_text(f'#!/bin/sh\nPATH={tools}\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    (far.top / "shell").chmod(0o755)
    far.login(str(far.top / "shell"))
    image = publish_in(Path(cmd.env["SHOEBOX_CACHE"]) / "images")
    done = there(cmd, room, "--user", "games", image)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "it has no setfacl" in done.stderr
    for _ in range(2):
        assert there(cmd, room, "--group", "games", image).stderr == ""
        assert readers.of(str(room.store / image.name)) == Readers(True, (), ("games",))
    done = there(cmd, room, "--group", "bin", image)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no ACLs for two groups" in done.stderr
    assert readers.of(str(room.store / image.name)) == Readers(True, (), ("games",))


def test_over_there_another_users_private_image_is_not_replaced(cmd, room, far):
    theirs = Path(room.ok(ALICE, "sh-stage", "-d", room.store, "--group", "bin", room.image()))
    become = f"setpriv --reuid={CAROL} --regid={CAROL} --clear-groups sh"
    (far.top / "shell").write_text(f'#!/bin/sh\nexec {become} -c "$SSH_ORIGINAL_COMMAND"\n')
    (far.top / "shell").chmod(0o755)
    far.login(str(far.top / "shell"))
    done = there(cmd, room, publish_in(Path(cmd.env["SHOEBOX_CACHE"]) / "images", content=b"other"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"it has this image already, private, and {ALICE}'s: ask for --user" in done.stderr
    assert room.who(theirs) == "A"
    assert not (room.store / publish.RETIRED).exists()

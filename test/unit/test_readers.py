"""Who may read an image: what the words ask for, what files say, and that nothing is widened unasked."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import acl, fail, readers, request, ssh
from shoebox.fail import USAGE, Fail
from shoebox.readers import OWNER, UMASK, Readers

NUMBERS = st.lists(st.integers(0, (1 << 32) - 2), max_size=5)


@pytest.fixture
def file(tmp_path):
    """Return an open file."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def mode(fd):
    return stat.S_IMODE(os.fstat(fd).st_mode)


@given(NUMBERS, NUMBERS)
def test_an_acl_names_each_reader_once_and_its_mask_lets_them_read_only(users, groups):
    entries = acl.decode(acl.encode(6, users, groups))
    assert [number for tag, may, number in entries if tag == acl.USER and may == acl.READ] == sorted(set(users))
    assert [number for tag, may, number in entries if tag == acl.GROUP and may == acl.READ] == sorted(set(groups))
    plain = {tag: may for tag, may, _ in entries if tag not in (acl.USER, acl.GROUP)}
    assert plain.pop(acl.MASK, None) == (acl.READ if users or groups else None)
    assert plain == {acl.OWNER: 6, acl.OWNING_GROUP: 0, acl.OTHER: 0}


@pytest.mark.parametrize("data", [b"", b"\2\0\0", b"\1\0\0\0", b"\2\0\0\0\1\0"])
def test_what_is_no_acl_is_told(data):
    with pytest.raises(ValueError, match="not an ACL"):
        acl.decode(data)


@pytest.mark.skipif(not shutil.which("getfacl"), reason="no getfacl")
def test_getfacl_reads_what_we_write(file, tmp_path):
    readers.give(file, Readers(True, ("daemon", "4000000000"), ("bin", "60200")))
    said = subprocess.run(["getfacl", "-cE", tmp_path / "file"], check=True, capture_output=True, text=True).stdout
    users, groups = ["user:daemon:r--", "user:4000000000:r--"], ["group::---", "group:bin:r--", "group:60200:r--"]
    assert said.split() == ["user::rw-", *users, *groups, "mask::r--", "other::---"]
    assert readers.of(file) == Readers(True, ("daemon", "4000000000"), ("bin", "60200"))


def test_by_mode_only_everybody_or_the_group_or_the_owner_may_read(file):
    for bits, who in [
        (0o644, UMASK),
        (0o444, UMASK),
        (0o640, Readers(True, (), (readers._group(os.getgid()),))),
        (0o604, OWNER),  # not the group: whoever is not in it would be too many to name
        (0o600, OWNER),
        (0o611, OWNER),
    ]:
        os.fchmod(file, bits)
        assert readers.of(file) == who


@pytest.mark.skipif(not shutil.which("setfacl"), reason="no setfacl")
@pytest.mark.parametrize(
    ("spec", "bits", "who"),
    [
        ("u:daemon:r", None, Readers(True, ("daemon",))),
        ("u:daemon:r", 0o600, OWNER),  # the mask
        ("u:daemon:-,g:bin:rw", None, Readers(True, (), ("bin",))),
        ("g::r,u:daemon:r,o:r", None, UMASK),
        ("g::r,u:daemon:-,o:r", None, Readers(True, (), ("OURS",))),
    ],
)
def test_an_acl_of_others_making_is_understood(file, tmp_path, spec, bits, who):
    subprocess.run(["setfacl", "-m", spec, tmp_path / "file"], check=True)
    if bits:
        os.fchmod(file, bits)
    ours = {"OURS": readers._group(os.getgid())}
    assert readers.of(file) == Readers(who.private, who.users, tuple(ours.get(name, name) for name in who.groups))


@pytest.mark.skipif(not shutil.which("setfacl"), reason="no setfacl")
def test_what_a_directory_gives_to_its_files_is_not_kept(tmp_path):
    subprocess.run(["setfacl", "-d", "-m", "u:daemon:r,g:bin:r", tmp_path], check=True)
    for who in (OWNER, Readers(True, ("games",)), Readers(True, (), (str(os.getgid()),))):
        fd = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT, who.begin)
        readers.give(fd, who)
        found = readers.of(fd)
        os.close(fd)
        os.unlink(tmp_path / "new")
        assert (found.private, found.users) == (True, who.users)
        assert [readers._gids([name])[0] for name in found.groups] == [int(name) for name in who.groups]


def test_the_group_that_the_file_has_anyway_needs_no_acl(file):
    readers.give(file, Readers(True, (), (str(os.getgid()),)))
    assert mode(file) == 0o640
    with pytest.raises(OSError, match="No data"):
        os.getxattr(file, acl.XATTR)


def test_without_acls_one_group_may_read_and_anything_else_is_refused(file, monkeypatch):
    monkeypatch.setattr(readers, "_deaf", lambda _fd: True)
    gid = os.getgroups()[-1] if os.getgroups() else os.getgid()
    readers.give(file, Readers(True, (), (str(gid),)))
    assert (mode(file), os.fstat(file).st_gid) == (0o640, gid)
    readers.give(file, OWNER)
    assert mode(file) == 0o600
    for who in (Readers(True, ("daemon",)), Readers(True, (), ("daemon", "bin"))):
        with pytest.raises(Fail, match="has no ACLs, so one group may"):
            readers.give(file, who)
        assert mode(file) == 0o600


A, B = Readers(True, ("daemon",), (), asked=True), Readers(True, ("1", "bin"), ("bin",), asked=True)


@pytest.mark.parametrize(
    ("was", "new", "both"),
    [
        (UMASK, A, A),
        (UMASK, OWNER, OWNER),
        (OWNER, UMASK, OWNER),
        (OWNER, A, A),
        (Readers(True, ("daemon",)), Readers(True, ("bin",)), Readers(True, ("daemon",))),  # not asked for
        (Readers(True, ("daemon",)), B, B),  # 1 is daemon
        (OWNER, Readers(mode=0o644, asked=True), Readers(mode=0o644, asked=True)),
        (OWNER, Readers(mode=0o640, groups=("bin",), asked=True), Readers(True, (), ("bin",), asked=True)),
        (Readers(True, ("daemon",)), Readers(mode=0o600, groups=("bin",), asked=True), A),
    ],
)
def test_nobody_is_taken_off_and_nothing_is_opened_unasked(was, new, both):
    assert readers.both(was, new) == both


@given(st.sampled_from([[], ["600"], ["644"]]), NUMBERS, NUMBERS, st.integers(0, 9))
def test_what_is_private_stays_so_but_for_a_mode_that_opens_it(modes, had, users, group):
    was = Readers(True, tuple(map(str, had)))
    new = readers.asked([] if modes else list(map(str, users)), [str(group)], modes) or UMASK
    after = readers.both(was, new)
    assert after.private == (modes != ["644"])
    assert set(had) <= set(readers._uids(after.users)) or not after.private


def test_added_readers_can_read_all_three_files_and_the_public_stays_public(tmp_path):
    files = [tmp_path / name for name in ("image", "sidecar", "open")]
    for path, bits in zip(files, (0o600, 0o600, 0o644)):
        path.touch()
        path.chmod(bits)
    readers.add(map(str, files), A)
    readers.add(map(str, files), Readers(True, (), ("bin",), asked=True))
    readers.add(map(str, files), Readers(True, (), ("games",)))
    assert [readers.of(str(path)) for path in files] == [Readers(True, ("daemon",), ("bin",))] * 2 + [UMASK]
    readers.add(map(str, files), Readers(mode=0o644, asked=True))
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o644] * 3
    assert not any(acl.XATTR in os.listxattr(path) for path in files)


def test_what_cannot_be_given_to_somebody_is_named(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(OSError) as caught:
        readers.change(str(path), Readers(True, (str((1 << 32) - 1),)))  # as a user of elsewhere looks in a namespace
    assert str(fail.told(caught.value)) == f"cannot use '{path}': Invalid argument"


@pytest.mark.parametrize(
    "words", [(["a:b"], []), ([], ["-x"]), (["a,,b"], []), ([""], []), (["a/b"], []), (["a\n"], [])]
)
def test_what_cannot_be_a_name_is_wrong_usage(words):
    with pytest.raises(Fail, match="not the name of a user or group") as told:
        readers.asked(*words, [])
    assert told.value.status == USAGE


def test_a_name_of_a_windows_domain_is_one_in_words_requests_and_for_setfacl(tmp_path):
    name = "SITE\\123jane"  # of what setfacl(1) would take for an octal number
    assert readers.asked([name], [name], []) == Readers(True, (name,), (name,), asked=True)
    assert request.check_name(name) == name
    assert "for: sh-stage --user 'SITE\\123jane' -d" in str(readers.foreign(str(tmp_path), Readers(True, (name,))))
    source = SimpleNamespace(known=SimpleNamespace(hex="ab", sha256="cd"), size=1, sidecar=b"", stems=())
    assert "u:SITE\\134123jane:r--,g:SITE\\134123jane:r--" in ssh._script("/x", source, Readers(True, (name,), (name,)))


def test_digits_are_a_name_first_and_then_a_number_as_for_chown(monkeypatch):
    """Somebody is called 70001, and his number is 5; number 70001 has no name."""
    who = SimpleNamespace(pw_name="70001", pw_uid=5)

    def find(known):
        def look(key):
            if key != known:
                raise KeyError(key)
            return who

        return look

    monkeypatch.setattr(readers, "pwd", SimpleNamespace(getpwnam=find("70001"), getpwuid=find(5)))
    assert readers._uids(["70001", "+70001", "70002"]) == [5, 70001, 70002]
    assert [readers._user(uid) for uid in (5, 70001, 70002)] == ["70001", "+70001", "70002"]
    for name in ("70001", "+70001", "5"):  # elsewhere, or for setfacl, the digits may be another's number
        with pytest.raises(Fail, match="has no name here"):
            Readers(True, (name,)).crossing()
    for name in ("²", "9" * 5000):
        with pytest.raises(Fail, match="no user"):
            readers._uids([name])


def test_only_names_cross_to_another_host():
    assert Readers(True, ("1", "games"), ("1",)).crossing() == (["daemon", "games"], ["daemon"])
    with pytest.raises(Fail, match="number 4000000000 has no name here"):
        Readers(True, ("4000000000",)).crossing()

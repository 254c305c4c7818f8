"""identity: the account files of a container."""

from __future__ import annotations

from shoebox.identity import Person, files, for_sshd

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nbob:x:1500:1500::/home/bob:/bin/sh\n"
GROUP = b"root:x:0:\nstaff:x:50:\n"


def made(person, passwd=PASSWD, group=GROUP):
    return {path: content for path, content, why in files(person, passwd, group) if why}


def test_the_users_line_comes_first_and_the_images_lines_stay():
    got = made(Person(1500, 50, "ann", "users", "/home/ann", "Ann: of\nhere"))
    assert got["/etc/passwd"] == b"ann:x:1500:50:Ann  of here:/home/ann:/bin/sh\n" + PASSWD
    assert got["/etc/group"] == b"users:x:50:\n" + GROUP


def test_an_image_that_knows_the_user_keeps_its_files():
    assert made(Person(1500, 50, "bob", "staff")) == {}
    assert made(Person(0, 0, "root", "root")) == {}
    assert made(Person(1500, 50, "bob", "other")).keys() == {"/etc/group"}


def test_the_first_line_for_a_number_is_the_one_that_counts():
    assert made(Person(1500, 50, "bob", "staff"), b"eve:x:1500:1::/:\n" + PASSWD).keys() == {"/etc/passwd"}


def test_an_image_without_files_gets_whole_ones():
    got = made(Person(1500, 1500, "ann", "ann", "/home/ann"), b"", b"")
    assert got["/etc/passwd"].splitlines()[1:] == [b"root:x:0:0:root:/root:/bin/sh"]
    assert got["/etc/group"] == b"ann:x:1500:\nroot:x:0:\n"
    assert made(Person(0, 0, "root", "root", "/root"), b"", b"")["/etc/passwd"].count(b"\n") == 1


def test_a_uid_that_nobody_knows_gets_a_name():
    person = Person(4000000000, 7)
    assert (person.name, person.group, person.home) == ("uid4000000000", "gid7", "/")


def test_lines_that_are_not_in_order_are_passed_over():
    odd = b"\n#comment\n+::::::\n\xff:x\nbob:x:1500:1500\n"
    assert "/etc/passwd" not in made(Person(1500, 50, "bob", "staff"), odd)


def test_for_sshd_the_user_has_a_shell_no_lock_and_no_group_tty():
    person = Person(1500, 50, "bob", "staff", "/home/bob")
    got = {path: content for path, content, _ in for_sshd(person, PASSWD, GROUP + b"tty:x:5:\nttyx:x:6:\n", "/bin/zsh")}
    assert got["/etc/passwd"].splitlines()[0] == b"bob:x:1500:50::/home/bob:/bin/zsh"
    assert got["/etc/group"] == b"staff:x:50:\n" + GROUP + b"ttyx:x:6:\n"
    assert got["/etc/shadow"] == b"bob:*:::::::\n"

"""site: site.conf and modules, read and put together; environment rules that come of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import environment, site
from shoebox.fail import Fail
from shoebox.identity import Person

ANN = Person(1500, 1500, "ann", "users", "/home/ann")


def load(text=None, asked="", **modules):
    """Load a site.conf with these modules."""
    files = {f"/s/modules.d/{name}.conf": module for name, module in modules.items()} | {"/s/site.conf": text}
    return site.load("/s", asked, files.get)


def wishes(lines):
    return load(f"[mounts]\n{lines}").wishes(ANN)


def rules(lines):
    return load(f"[environment]\n{lines}").rules


def result(lines, host=None, image=None, settings=()):
    """Return the variables that come of rules."""
    made = environment.build(
        host or {}, image or {}, settings, rules=rules(lines), clear=False, fixed={}, tmpdir_visible=True
    )
    return {variable.name: variable.value for variable in made}


def test_without_a_file_there_is_no_site():
    assert load() is None
    assert load(asked="none") is None


def test_mounts_are_lines_of_fstab():
    found = wishes("# all of it\n/scratch /scratch none bind 0 0\n\t/opt/site\t/opt/site  none rbind,ro,nofail\n")
    assert [(w.source, w.target, w.readonly, w.optional) for w in found] == [
        ("/scratch", "/scratch", False, False),
        ("/opt/site", "/opt/site", True, True),
    ]
    assert all(wish.asked for wish in found)
    assert [wish.why for wish in found] == ["site.conf, line 3", "site.conf, line 4"]


def test_fstab_escapes_blanks():
    assert wishes(r"/a\040b /c\011d\134040 none bind")[0].source == "/a b"
    assert wishes(r"/a\040b /c\011d\134040 none bind")[0].target == "/c\td\\040"


def test_mounts_expand_home_user_and_uid_and_nothing_else():
    found = wishes("/s/$USER/${UID}x $HOME/s none bind\n$HOME /h//x/. none bind")
    assert [(w.source, w.target) for w in found] == [("/s/ann/1500x", "/home/ann/s"), ("/home/ann", "/h/x")]
    for line in ("/$PATH /x none bind", "/$USERS /x none bind", "/$ /x none bind", "/${USER /x none bind"):
        with pytest.raises(Fail, match=r"/s/site\.conf:2.*no such variable"):
            wishes(line)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/a /b none", "not a line of fstab"),
        ("/a /b none bind 0 0 0", "not a line of fstab"),
        ("/a /b none bind x", "not a line of fstab"),
        ("/a /b tmpfs bind", "type 'tmpfs'"),
        ("/a /b none bind,suid", "no such option: 'suid'"),
        ("/a /b none ro", "'bind' is not there"),
        ("/a /b none bind,ro,rw", "both"),
        ("a /b none bind", "absolute"),
        ("/a /b/../c none bind", "absolute"),
        ("/a / none bind", "root"),
    ],
)
def test_a_wrong_mount_is_told_with_its_line(line, why):
    with pytest.raises(Fail, match=r"^cannot use '/s/site\.conf:2': ") as caught:
        wishes(line)
    assert why in str(caught.value)


def test_environment_is_set_prepended_appended_unset():
    lines = "A=new\nprepend P=/first\nappend P=/last\nappend Q=/only\nunset GONE\nE=\nV=a = 'b' $HOME "
    found = result(lines, host={"A": "old", "GONE": "1"}, image={"P": "/mid"})
    assert found["A"] == "new"
    assert found["P"] == "/first:/mid:/last"
    assert found["Q"] == "/only"
    assert found["GONE"] is None
    assert found["E"] == ""
    assert found["V"] == "a = 'b' $HOME "


def test_what_stays_outside_is_not_joined_to():
    assert result("prepend LD_LIBRARY_PATH=/site", host={"LD_LIBRARY_PATH": "/host"})["LD_LIBRARY_PATH"] == "/site"


def test_the_users_own_settings_win_over_the_sites():
    assert result("A=site\nunset B", settings=[("A", "user", "--env"), ("B", "user", "--env")])["A"] == "user"


@pytest.mark.parametrize("line", ["A", "=x", "set A=x", "prepend A", "unset A B", "unset", "$A=x"])
def test_a_wrong_variable_is_told_with_its_line(line):
    with pytest.raises(Fail, match=r"^cannot use '/s/site\.conf:2': it sets no variable"):
        rules(line)


def test_settings():
    found = load("[settings]\nway = kernel\ndeny-volume = /etc, /opt/secret\n")
    assert (found.way, found.deny) == ("kernel", ["/etc", "/opt/secret"])


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("way = kernel\n", 1, "no section"),
        ("[mount]\n", 1, "no such section"),
        ("[settings]\nway = unpack\n", 2, "no such way"),
        ("[settings]\nway = fuse\nway = fuse\n", 3, "twice"),
        ("[settings]\nconflicts = x\n", 2, "no such setting"),
        ("[settings]\nmodules = ../x\n", 2, "no module's name"),
        ("[environment]\n\nA=\0\n", 3, "NUL"),
    ],
)
def test_a_wrong_setting_is_told_with_its_line(text, line, why):
    with pytest.raises(Fail, match=rf"^cannot use '/s/site\.conf:{line}': ") as caught:
        load(text)
    assert why in str(caught.value)


def test_modules_are_the_sites_choice_unless_asked_for():
    modules = {"a": "[environment]\nA=a\n", "b": "[environment]\nB=b\n"}
    text = "[settings]\nmodules = a\n"
    assert load(text, **modules).modules == ["a"]
    assert load(text, "b,a", **modules).modules == ["b", "a"]
    assert load(text, "none", **modules).modules == []
    assert load(None, "b", **modules).rules == [("set", "B", "b", "module b, line 2")]


def test_modules_come_after_the_site_in_the_order_asked_for():
    text = "[mounts]\n/s /s none bind\n"
    found = load(text, "b,a,b", a="[mounts]\n/a /a none bind\n", b="[mounts]\n/b /b none bind\n").wishes(ANN)
    assert [wish.why for wish in found] == ["site.conf, line 2", "module b, line 2", "module a, line 2"]


def test_conflicts_count_both_ways_and_among_those_in_use():
    modules = {"a": "[settings]\nconflicts = b c\n", "b": "", "d": ""}
    for asked in ("a,b", "b,a"):
        with pytest.raises(Fail, match="cannot use module 'a' with 'b'"):
            load(None, asked, **modules)
    assert load(None, "a,d", **modules).modules == ["a", "d"]


@pytest.mark.parametrize("name", ["x", "../site", ".x", "-x", "", "a/b", "a\0", "none"])
def test_what_is_no_module_is_told(name):
    with pytest.raises(Fail, match="no such module"):
        load("", f"a,{name}", a="")


def test_denied_paths_meet_what_is_below_and_above_them():
    found = load("[settings]\ndeny-volume = /etc /opt/secret\n")
    for name in ("/etc", "/etc/passwd", "/opt", "/", "/opt/secret/x"):
        with pytest.raises(Fail, match="is not for volumes"):
            found.forbid("cannot use it", ["/x", name])
    found.forbid("cannot use it", ["/etcetera", "/opt/secrets", "/opt/other"])


@given(st.text(alphabet="[]mountsevirgk=/ \t\n#$\\0,.:é\0'\"", max_size=60))
def test_any_text_is_understood_or_refused_with_its_line(text):
    for head in ("", "[mounts]\n", "[environment]\n", "[settings]\n"):
        try:
            load(head + text).wishes(ANN)
            refused = "/s/site.conf:"
        except Fail as error:
            refused = str(error)
        assert "/s/site.conf:" in refused


def test_a_site_says_where_sshds_listen_and_what_they_allow():
    made = load("[settings]\nsshd-interface = ib0\nsshd-options = AllowTcpForwarding=no Ciphers=a,b\n")
    assert (made.sshd_interface, made.sshd_options) == ("ib0", [("AllowTcpForwarding", "no"), ("Ciphers", "a,b")])
    assert (load("").sshd_interface, load("").sshd_options) == ("", [])


@pytest.mark.parametrize("value", ["AllowTcpForwarding", "A=", "=no", "A\tB=c d", "A=b, C=d"])
def test_an_option_for_sshds_is_a_keyword_and_a_value(value):
    with pytest.raises(Fail, match=r"site.conf:2.*see sshd_config\(5\)"):
        load(f"[settings]\nsshd-options = {value}\n")

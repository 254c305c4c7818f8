"""sshconf: configurations for an sshd in a container and the ssh that finds it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import sshconf
from shoebox.environment import Variable
from shoebox.sshconf import Sshd


def sshd(folder="/home/ann/.cache/shoebox/ssh/n1_1_2_3", *options):
    return Sshd(folder, "ann", "/bin/sh", [], ("10.0.0.1", 4022), options)


def test_an_sshd_from_9_8_on_executes_others_by_the_loader_too():
    made = sshconf.programs("/usr/sbin/sshd", "/ld.so", ["/lib/a.so"], {"sshd-session": "/x/sshd-session"})
    shown = {wish.target: wish for wish in made}
    assert shown["/.shoebox/sshd/sshd-session.elf"].source == "/x/sshd-session"
    script = shown["/.shoebox/sshd/sshd-session"].content.decode()
    assert script.startswith("#!/bin/sh\nexec /.shoebox/sshd/loader --library-path /.shoebox/sshd ")
    assert "-r" in sshd().words
    assert "-r" not in sshd("/x", ("SshdSessionPath", "/.shoebox/sshd/sshd-session")).words


def given_to(variables):
    return sshconf.server(sshd(), [Variable(name, value, "") for name, value in variables.items()])


def test_what_the_site_says_comes_first():
    text = sshconf.server(sshd("/x", ("AllowTcpForwarding", "no"), ("Port", "1")), [])
    assert text.splitlines()[:3] == ["AllowTcpForwarding no", "Port 1", "ListenAddress 10.0.0.1:4022"]
    assert "SetEnv" not in text


def test_variables_of_sessions_are_those_of_the_container():
    text = given_to({"A": "1", "TERM": "x", "SSH_X": "1", "B": None, "C": "a\nb", "D\n": "1", "USER": "x", "E": ""})
    assert text.splitlines()[-1] == 'SetEnv "A=1" "E="'


@given(st.dictionaries(st.text("abAB_", min_size=1), st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_no_value_gets_out_of_its_place(variables):
    text = given_to(variables)
    assert len(text.split("\n")) == len(given_to({}).split("\n")) + ("SetEnv " in text)
    line = next((line for line in text.split("\n") if line.startswith("SetEnv ")), "SetEnv")
    # sshd's argv_split unescapes \\ and \" in double quotes; a shell, which is our judge here, $ and ` too
    words = shlex.split(line.replace("$", "D").replace("`", "D"))[1:]
    usable = {n: v for n, v in variables.items() if n != "_" and not re.search("[\r\n]", v)}
    assert words == [f"{n}={v}".replace("$", "D").replace("`", "D") for n, v in usable.items()]


def test_ssh_checks_the_key_of_this_one_sshd():
    text = sshconf.client(sshd("/home/a b/%x/n1_1_2_3"), "n1.site")
    assert text.startswith("Host n1.site n1\n")
    assert 'IdentityFile "/home/a b/%%x/n1_1_2_3/key"' in text
    assert "HostKeyAlias shoebox-n1_1_2_3" in text
    assert "StrictHostKeyChecking yes" in text


@pytest.mark.skipif(not shutil.which("ssh"), reason="ssh is not installed")
def test_ssh_understands_it(tmp_path):
    (tmp_path / "config").write_text(sshconf.client(sshd('/home/a "b" \\c/%x/n1'), "n1"))
    words = ["ssh", "-F", tmp_path / "config", "-G", "n1"]
    seen = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    assert {"hostname 10.0.0.1", "port 4022", "user ann", "stricthostkeychecking true"} <= set(seen)
    assert 'userknownhostsfile /home/a "b" \\c/%x/n1/known_hosts' in seen

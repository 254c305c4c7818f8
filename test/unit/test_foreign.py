"""Images of other tools: what each wrote is read as that tool reads it, and nothing in it breaks us."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import foreign
from shoebox.facts import DIRECTORY, FILE, MISSING
from shoebox.fail import Fail


def recognise(path, env=(), notes=None, **tree):
    """Recognise an image that has these files (text or bytes) and directories (None), `_` standing for a slash."""
    there = {"/" + name.replace("__", ".").replace("_", "/"): what for name, what in tree.items()}
    kinds = {path: DIRECTORY if what is None else FILE for path, what in there.items()}
    contents = {path: what.encode() for path, what in there.items() if what is not None}
    return foreign.recognise(
        path, dict(env), lambda p: kinds.get(p, MISSING), lambda p: contents.get(p, b""), [] if notes is None else notes
    )


SINGULARITY = {"__singularity.d": None, "__singularity.d_runscript": "#!/bin/sh\n"}


def test_an_ordinary_image_is_no_other_tools():
    said = recognise("/x/app.sqfs", etc_environment="A=b\n", etc_rc="#!/bin/sh\n", singularity="")
    assert (dict(said.env), list(said.entrypoint), list(said.scripts), said.form) == ({}, [], [], ("", ""))


def test_singularity_is_its_directory_whatever_the_file_is_called():
    said = recognise("/x/app.sqfs", **SINGULARITY, bin_sh="", bin_bash="")
    assert said.form == ("singularity", "it has /.singularity.d")
    assert said.entrypoint == ["/.singularity.d/runscript"]
    assert said.scripts == ["/bin/bash", "/.singularity.d/env/*.sh"]
    assert said.env["APPTAINER_CONTAINER"] == said.env["SINGULARITY_CONTAINER"] == "/x/app.sqfs"
    assert said.env["APPTAINER_NAME"] == said.env["SINGULARITY_NAME"] == "app.sqfs"


def test_singularity_without_bash_has_sh_and_without_a_shell_a_note():
    assert recognise("/x.sif", **SINGULARITY, bin_sh="").scripts[0] == "/bin/sh"
    notes = []
    said = recognise("/x.sif", **SINGULARITY, notes=notes)
    assert not said.scripts
    assert notes == ["the image's /.singularity.d/env/*.sh are not sourced: it has no shell"]


def test_singularity_before_2_3_has_two_files_in_the_root():
    said = recognise("/old", singularity="#!/bin/sh\n", environment="A=b\n", bin_sh="")
    assert said.entrypoint == ["/singularity"]
    assert said.scripts == ["/bin/sh", "/environment"]
    assert said.form == ("singularity", "it has /singularity")


# The tables of ch-run(1) 0.31, "Examples of valid assignment" and those that are probably not what one wants.
@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("FOO=bar", "FOO", "bar"),
        ("FOO=bar=baz", "FOO", "bar=baz"),
        ("FLAGS=-march=foo -mtune=bar", "FLAGS", "-march=foo -mtune=bar"),
        ("FLAGS='-march=foo -mtune=bar'", "FLAGS", "-march=foo -mtune=bar"),
        ("FOO=$BAR", "FOO", "bar"),
        ("FOO=$BAR:baz", "FOO", "bar:baz"),
        ("FOO=", "FOO", ""),
        ("FOO=$UNSET", "FOO", ""),
        ("FOO=baz:$UNSET:qux", "FOO", "baz:qux"),
        ("FOO=:bar:baz::", "FOO", ":bar:baz::"),
        ("FOO=''", "FOO", ""),
        ("FOO=''''", "FOO", "''"),
        ('FOO="bar"', "FOO", '"bar"'),
        ("FOO=bar # baz", "FOO", "bar # baz"),
        ("FOO=bar\\tbaz", "FOO", "bar\\tbaz"),
        (" FOO=bar", " FOO", "bar"),
        ("FOO= bar", "FOO", " bar"),
        ("$FOO=bar", "$FOO", "bar"),
        ("FOO=$BAR baz:qux", "FOO", "qux"),
    ],
)
def test_charliecloud_reads_a_line_as_ch_run_does(line, name, value):
    assert foreign.charliecloud(f"\n{line}\n", {"BAR": "bar"}) == {name: value}


def test_charliecloud_expands_what_an_earlier_line_set_and_never_the_hosts_path_or_libraries():
    text = "A=x\nB=$A:y\nPATH=/opt/bin:$PATH\nLD_LIBRARY_PATH=/opt/lib:$LD_LIBRARY_PATH\nno equals\n=x\nN=a\0b\n"
    found = foreign.charliecloud(text, {"PATH": "/host/bin", "LD_LIBRARY_PATH": "/host/lib"})
    assert found == {
        "A": "x",
        "B": "x:y",
        "PATH": "/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LD_LIBRARY_PATH": "/opt/lib",
    }


@pytest.mark.parametrize(
    ("metadata", "where", "noted"),
    [
        ('{"cwd": "/srv//x", "env": {}}', "/srv/x", False),
        ('{"cwd": "srv"}', "", False),
        ('{"cwd": 7}', "", False),
        ("", "", False),
        ("{", "", True),
        ("[]", "", True),
    ],
)
def test_charliecloud_metadata_names_the_working_directory(metadata, where, noted):
    notes = []
    said = recognise("/img", notes=notes, ch_environment="A=b\n", **{"ch_metadata.json": metadata})
    assert (dict(said.env), said.working_dir, bool(notes)) == ({"A": "b"}, where, noted)
    assert said.form == ("charliecloud", "it has /ch/environment")
    assert not said.entrypoint


def test_enroot_is_a_name_and_a_script():
    tree = {"etc_rc": "#!/bin/sh\n", "etc_environment": "A=b\n"}
    said = recognise("/x/debian+12.sqsh", **tree)
    assert (dict(said.env), said.entrypoint) == ({"A": "b"}, ["/bin/sh", "/etc/rc"])
    assert said.form[0] == "enroot"
    assert recognise("/x/debian+12.sqfs", **tree).form == ("", "")  # PAM's file, and a BSD's
    assert recognise("/x/debian+12.sqsh", etc_environment="A=b\n").form == ("", "")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("A=b c ", {"A": "b c "}),
        ("  A=b", {"A": "b"}),
        ("# A=b", {}),
        ("A", {}),
        ("1A=b", {}),
        ("A-B=c", {}),
        ("ENROOT_X=y", {}),
        ('A="b c" ', {"A": "b c"}),
        ("A='b'", {"A": "b"}),
        ('A="', {"A": '"'}),
        ("A=${DISPLAY}:${GONE}.", {"A": ":0:."}),
        ("A=$DISPLAY ${}${1}${x", {"A": "$DISPLAY ${}${1}${x"}),
        ("A=${LD_PRELOAD}", {"A": ""}),
        ("A=", {"A": ""}),
    ],
)
def test_enroot_reads_a_line_as_its_envfmt_does(line, found):
    assert foreign.enroot(line + "\n", {"DISPLAY": ":0", "LD_PRELOAD": "/x"}) == found


META = b"""\
FORMAT: squashfs
ENTRY: ['/bin/sh', '-c', "it's \\\\ \\n"]
WORKDIR: /srv
USERACL: 1000,1001
GROUPACL: 50
ENV: PATH=/usr/bin:/bin
ENV: A=b: c
ENV: nothing
VOLUME: /data
"""


def shifter(data, uid=1000, groups=(1000,)):
    return foreign.shifter(data, "/images/abc.squashfs", uid, groups)


def test_shifters_meta_is_a_config():
    said = shifter(META)
    assert said.env == {"PATH": "/usr/bin:/bin", "A": "b: c"}
    assert said.entrypoint == ["/bin/sh", "-c", "it's \\ \n"]
    assert (said.cmd, said.working_dir, said.form[0]) == ([], "/srv", "shifter")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[u'/bin/sh', u'-c']", ["/bin/sh", "-c"]),  # Python 2's
        ("['a, b', \"it's\"]", ["a, b", "it's"]),
        ("/usr/bin/app --all", ["/usr/bin/app --all"]),  # one word, as in Shifter
        ("[]", []),
        ("['a'", ["['a'"]),
        ("['a", ["['a"]),
        ("[a]", []),
        ("['a]", []),
        ("[u]", []),
        ("['a' 7]", []),
        ("", []),
    ],
)
def test_shifters_entry_is_a_list_as_python_writes_it_or_one_word(text, words):
    assert shifter(f"FORMAT: squashfs\nENTRY: {text}\n".encode()).entrypoint == words
    assert shifter(f"FORMAT: squashfs\nCMD: {text}\n".encode()).cmd == words


def test_a_line_of_shifters_may_go_on_and_comments_are_none():
    said = shifter(b"# ENV: A=b\nFORMAT: squashfs\nENV: A=x \\\n  y\n# between\nENV: B=z\\")
    assert said.env == {"A": "x y", "B": "z\\"}


@pytest.mark.parametrize(
    ("lists", "uid", "groups", "may"),
    [
        ("", 7, (7,), True),
        ("USERACL:\nGROUPACL:\n", 7, (7,), True),
        ("USERACL: 7\n", 7, (1,), True),
        ("USERACL: 6, 7,8\n", 7, (1,), True),
        ("USERACL: 6\n", 7, (6,), False),
        ("USERACL: 6\n", 0, (0,), False),
        ("GROUPACL: 50\n", 7, (7, 50), True),
        ("GROUPACL: 50\n", 50, (7,), False),
        ("USERACL: 6\nGROUPACL: 50\n", 7, (7, 50), True),
        ("USERACL: seven\n", 0, (0,), False),
        ("USERACL: 6\nUSERACL: 7\n", 6, (6,), False),
    ],
)
def test_shifters_lists_say_who_may(lists, uid, groups, may):
    data = b"FORMAT: squashfs\n" + lists.encode()
    if may:
        shifter(data, uid, groups)
    else:
        with pytest.raises(Fail, match=r"^cannot use image '/images/abc.squashfs': it is not for you"):
            shifter(data, uid, groups)


@given(st.binary())
def test_no_bytes_break_any_of_them(data):
    text = data.decode("utf-8", "surrogateescape")
    for read in (foreign.charliecloud, foreign.enroot):
        assert not any("\0" in value for value in read(text, {}).values())
    shifter(b"FORMAT: x\nENTRY: [" + data.replace(b"\n", b"") + b"]\n")
    with contextlib.suppress(Fail):
        shifter(data)


def test_of_enroots_variables_those_that_are_the_same_everywhere_go_into_a_config():
    text = 'A=b\nPATH="/opt/bin:/bin"\nHOME=${HOME}\nLATER=${X}\nENROOT_X=1\n9=x\nLATER=own\n'
    said, left = foreign.enroot_config(text)
    assert json.loads(foreign.as_oci(said)) == {
        "config": {"Env": ["A=b", "PATH=/opt/bin:/bin", "LATER=own"], "Entrypoint": ["/bin/sh", "/etc/rc"]}
    }
    assert left == ["HOME"]


def test_what_shifter_says_of_an_image_goes_into_a_config():
    data = b"FORMAT:squashfs\nENV:A=b c\nENTRY:[u'/bin/app', '-x']\nCMD:['y']\nWORKDIR:work\n"
    said = foreign.as_oci(foreign.shifter(data, "x", 1000, [1000]))
    assert json.loads(said) == {
        "config": {"Env": ["A=b c"], "Entrypoint": ["/bin/app", "-x"], "Cmd": ["y"], "WorkingDir": "/work"}
    }

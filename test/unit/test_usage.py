"""Options: what the usage text declares is what is understood, and nothing else."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import VERSION, usage
from shoebox.fail import USAGE, Fail

TEXT = """
usage: sh-x [-q] [-o FILE] [NAME...]

Do it - or --not.

  -o, --output FILE      write here
  -q, --quiet            no progress
      --env NAME=VALUE   may be given again
      --explain[=FORMAT]  print the plan
  -v, --verbose          say more
                         --than --this
"""


def parse(*words, **more):
    return usage.parse(TEXT, list(words), **more)


def wrong(*words):
    with pytest.raises(Fail) as caught:
        parse(*words)
    assert caught.value.status == USAGE
    return str(caught.value)


def test_the_usage_text_declares_the_options():
    assert list(usage.declared(TEXT)) == [
        ("o", "output", "FILE"),
        ("q", "quiet", ""),
        ("", "env", "NAME=VALUE"),
        ("", "explain", "[FORMAT]"),
        ("v", "verbose", ""),
    ]


@pytest.mark.parametrize(
    "words",
    [
        "-o f -q a",
        "-of -q a",
        "-qof a",
        "-qo f a",
        "--output f --quiet a",
        "a --output=f -q",
        "-q -o f -- a",
        "-o x -of -q a",
    ],
)
def test_every_spelling_means_the_same(words):
    options = parse(*words.split())
    assert (options.one("output"), options.flag("quiet"), options.flag("verbose")) == ("f", True, False)
    assert options.flag("output")
    assert options.operands == ["a"]


def test_values_are_taken_as_they_are():
    options = parse("--env", "A=-o", "--env=B=", "--env=", "-o", "--", "--output", "-")
    assert options.all("env") == ["A=-o", "B=", ""]
    assert (options.all("output"), options.operands) == (["--", "-"], [])


def test_what_was_not_given_has_its_default():
    options = parse()
    assert (options.one("output"), options.one("output", "x"), options.all("env"), options.operands) == (
        "",
        "x",
        [],
        [],
    )
    assert not options.flag("explain")


def test_an_optional_value_is_given_with_an_equals_sign_only():
    assert parse("--explain", "json").operands == ["json"]
    assert parse("--explain").flag("explain")
    assert parse("--explain").one("explain", "text") == "text"
    assert parse("--explain=json").one("explain", "text") == "json"
    assert parse("--explain=json").flag("explain")


def test_options_end_at_two_dashes_and_where_a_command_begins():
    assert parse("--", "-q", "--").operands == ["-q", "--"]
    assert parse("-", "-q").flag("quiet")
    options = parse("-q", "ls", "-v", "--", "-x", stop_at_operand=True)
    assert (options.flag("verbose"), options.operands) == (False, ["ls", "-v", "--", "-x"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-x"], "unknown option '-x': see -h"),
        (["--than"], "unknown option '--than'"),
        (["-quiet"], "unknown option '-uiet'"),
        (["-env"], "unknown option '-env'"),
        (["-explain"], "unknown option '-explain'"),
        (["---"], "unknown option '---'"),
        (["--quie"], "unknown option '--quie'"),
        (["--quiet=1"], "option '--quiet' takes no value: '1' was given"),
        (["-o"], "option '--output' needs a value: FILE"),
        (["--output"], "option '--output' needs a value: FILE"),
    ],
)
def test_what_is_not_declared_is_wrong_usage(words, told):
    assert told in wrong(*words)


def test_help_and_version_are_answered(capsys):
    for words in (["-h"], ["-q", "--help", "--nonsense"]):
        with pytest.raises(SystemExit) as caught:
            parse(*words)
        assert caught.value.code == 0
        assert capsys.readouterr().out == TEXT.strip("\n") + "\n"
    with pytest.raises(SystemExit):
        parse("--version")
    assert capsys.readouterr().out == f"shoebox {VERSION}\n"


@given(st.lists(st.text(alphabet="-=oqvenhp a", max_size=6)))
def test_no_words_break_it(words):
    try:
        options = parse(*(word for word in words if word not in ("-h", "--help")))
    except Fail as error:
        assert error.status == USAGE  # noqa: PT017
    except SystemExit:
        assert any("h" in word for word in words)
    else:
        assert all(word in words or word == "-" for word in options.operands)


class Stdin(io.TextIOWrapper):
    """Standard input with some bytes in it."""

    def __init__(self, data, *, tty=False):
        super().__init__(io.BytesIO(data))
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.fixture
def stdin(monkeypatch):
    return lambda *words, **more: monkeypatch.setattr(sys, "stdin", Stdin(*words, **more))


def test_operands_go_before_stdin(stdin):
    stdin(b"b\n")
    assert list(usage.names(parse("a"), "NAME")) == ["a"]


def test_names_come_from_stdin_a_line_each_whatever_their_bytes(stdin):
    stdin(b"a b\n\n  c\t\r\n\xff\xe2\x82\xac\nlast")
    assert list(usage.names(parse(), "NAME")) == ["a b", "c", "\udcff\u20ac", "last"]


def test_names_come_as_they_are_written(monkeypatch):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:2] = b"x\n"
            return 2

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    assert next(usage.names(parse(), "NAME")) == "x"


@pytest.mark.parametrize(("data", "tty"), [(b"", False), (b" \n\n", False), (b"a\n", True)])
def test_no_names_at_all_are_wrong_usage(stdin, data, tty):
    stdin(data, tty=tty)
    with pytest.raises(Fail, match="no NAME given") as caught:
        list(usage.names(parse(), "NAME"))
    assert caught.value.status == USAGE


def test_a_closed_stdin_is_wrong_usage(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Fail, match="no NAME given"):
        list(usage.names(parse(), "NAME"))

"""Options, declared once: in the usage text that -h prints.

A declaration is a line of the usage text that begins with two or six blanks and a dash:

      -o, --output FILE      write the image here
      -q, --quiet            no progress
          --env NAME=VALUE...  an option that may be given again (its values make a list)

The man page is compared with it by a test. sh-run imports this: no re, no argparse.
"""

from __future__ import annotations

import os
import sys

from . import VERSION
from .fail import USAGE, Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Options:
    """What the words on the command line said: options by their long name, then operands."""

    __slots__ = ("_flags", "_values", "operands")

    def __init__(self, flags: set[str], values: dict[str, list[str]], operands: list[str]) -> None:
        """Hold what parse found."""
        self._flags = flags
        self._values = values
        self.operands = operands

    def flag(self, name: str) -> bool:
        """Tell whether the option was given."""
        return name in self._flags or name in self._values

    def one(self, name: str, default: str = "") -> str:
        """Return the last value given for the option."""
        return self._values[name][-1] if name in self._values else default

    def all(self, name: str) -> list[str]:
        """Return every value given for the option, in order."""
        return list(self._values.get(name, ()))

    def behind(self, values: dict[str, list[str]]) -> Options:
        """Return these options behind others with these values."""
        return Options(self._flags, {**self._values, **{k: v + self.all(k) for k, v in values.items()}}, self.operands)

    def given(self) -> Iterator[tuple[str, list[str]]]:
        """Yield every option that was given, with its values."""
        for name in self._flags | self._values.keys():
            yield name, self.all(name)


def declared(usage: str) -> Iterator[tuple[str, str, str]]:
    """Yield (short or "", long, metavar or "") for every option that a usage text declares.

    A metavar in square brackets is an optional value, given only as `--name=VALUE`.
    """
    for line in usage.splitlines():
        words = line.split()
        if len(line) - len(line.lstrip(" ")) not in (2, 6) or not words or not words[0].startswith("-"):
            continue
        short = words.pop(0).rstrip(",")[1:] if not words[0].startswith("--") else ""
        if not words or not words[0].startswith("--"):
            continue
        name, _, value = words[0][2:].partition("[=")
        meta = f"[{value}" if value else ""
        rest = line[line.index(words[0]) + len(words[0]) :]
        if not meta and rest.startswith(" ") and not rest.startswith("  "):
            meta = words[1]
        yield short, name, meta


def parse(usage: str, argv: list[str], *, stop_at_operand: bool = False, loose: bool = False) -> Options:
    """Read the command's words against its usage text.

    stop_at_operand: the first operand and all that follows are operands (sh-run's command has options of its own).
    loose: as getopt_long_only(3), a long name may stand behind one dash, and be cut where it is still clear.
    -h, --help and --version are answered here. Raises Fail (USAGE).
    """
    options = {name: meta for _, name, meta in declared(usage)}
    longs = {short: name for short, name, _ in declared(usage) if short}
    flags: set[str] = set()
    values: dict[str, list[str]] = {}
    operands: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            operands += words
            break
        if word in ("-h", "--help"):
            print(usage.strip("\n"))
            sys.stdout.flush()
            raise SystemExit(0)
        if word == "--version":
            print(f"shoebox {VERSION}", flush=True)
            raise SystemExit(0)
        if not word.startswith("-") or word == "-":
            operands.append(word)
            if stop_at_operand:
                operands += words
                break
            continue
        if word.startswith("--") or (loose and word[1:].partition("=")[0] in options):
            name, has_value, value = word.lstrip("-").partition("=")
            name = _whole(name, options) if loose else name
        elif word[1] in longs:
            name = longs[word[1]]
            has_value, value = ("=", word[2:]) if options[name] and word[2:] else ("", "")
            if not options[name] and word[2:]:
                words.insert(0, "-" + word[2:])
        else:
            name, has_value, value = "", "", ""
        if name not in options:
            raise Fail(f"unknown option {word!r}", todo="see -h", status=USAGE)
        meta = options[name]
        if not meta:
            if has_value:
                raise Fail(f"option '--{name}' takes no value", f"{value!r} was given", status=USAGE)
            flags.add(name)
        elif has_value:
            values.setdefault(name, []).append(value)
        elif meta.startswith("["):
            flags.add(name)
        elif words:
            values.setdefault(name, []).append(words.pop(0))
        else:
            raise Fail(f"option '--{name}' needs a value", meta.rstrip("."), status=USAGE)
    return Options(flags, values, operands)


def _whole(name: str, options: Iterable[str]) -> str:
    """Return the one option that a name is the beginning of; the name itself if there is none, or more."""
    begun = [long for long in options if long.startswith(name)]
    return begun[0] if len(begun) == 1 else name


def names(options: Options, what: str) -> Iterator[str]:
    """Yield the operands, or the lines of stdin as they come when there are none; empty stdin is wrong usage.

    what: the name of an operand in the usage text (`REF`).
    """
    if options.operands:
        yield from options.operands
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise Fail(f"no {what} given", todo=f"name one, or pipe names in, one a line; see {'-h'}", status=USAGE)
    empty = True
    for line in iter(sys.stdin.buffer.readline, b""):
        word = os.fsdecode(line).strip(" \t\r\n")  # names of files may be any bytes, whatever the locale
        if word:
            empty = False
            yield word
    if empty:
        raise Fail(f"no {what} given", "nothing came in on stdin", "see -h", status=USAGE)

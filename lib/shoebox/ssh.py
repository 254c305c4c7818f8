"""Publishing on another host: what publish.py does, done there by a POSIX shell at the end of one ssh connection.

The shell over there is the user's login shell, of whatever kind, so it is told one line only: to read a script for sh
from its stdin. The sidecar and the squashfs follow on the same stdin. dd reads single bytes of the first two, because
nothing else is sure not to read too far; they are small.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from shlex import quote
from typing import IO, TYPE_CHECKING

from . import linux, sidecar
from .fail import LATER, Fail
from .image import pour
from .meter import meter
from .publish import directory_mode, stripes
from .store import image_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .image import Image
    from .readers import Readers
    from .systems import Place

_CANNOT = "cannot "  # begins the script's last word when it knows why
# Options for a connection that a host which goes down ends; for one that nobody watches: it asks nothing, either.
ALIVE = ["-oServerAliveInterval=15", "-oServerAliveCountMax=4"]
UNATTENDED = ["-oBatchMode=yes", "-oConnectTimeout=10", *ALIVE]
_DAMAGED, _FULL, _NO_CONNECTION = 65, 75, 255  # statuses: two of the script, one of ssh(1)

# Of the variables, part, file, mode, group and what else is not set here are set by _script. private, acl, asked: as
# readers.Readers; only: the one group that may read where there are no ACLs.
_SCRIPT = r"""
LC_ALL=C; export LC_ALL
umask "$(printf %o $(($(umask) | 2)))"
me=$(uname -n)
part=.part-$me-$$-$random

own() { # FILE MODE
    { [ -z "$group" ] || chgrp -- "$group" "$1"; } && { [ -z "$2" ] || chmod -- "$2" "$1"; }
}
cannot() { # WHY
    echo "shoebox:cannot $1"; exit 1
}
acl() { # SETFACL'S WORDS: not where a server of FUSE keeps ACLs, and the kernel does not heed them
    at=$(df -P . | sed -n '2s/.*% //p')
    ! grep -q " $at fuse[^ ]* [^ ]*default_permissions" /proc/mounts && setfacl "$@"
} 2>/dev/null
field() { # NUMBER FILE: of what ls -ld says; 1 its mode, 3 its owner, 4 its group
    # shellcheck disable=SC2012 # the names are ours
    ls -ld -- "$2" | { read -r bits _ user its _
        case $1 in 1) echo "$bits";; 3) echo "$user";; 4) echo "$its";; esac; }
}
closed() { # FILE
    case $(field 1 "$1") in ???????r*) return 1;; esac
}
more() { # FILE: let those read it, too, who are to
    [ -z "$acl" ] || acl -m "$acl" -- "$1" && return
    [ -n "$only" ] || cannot 'it has no setfacl or no ACLs, or does not know them all; there, one --group may read it'
    case $(field 1 "$1") in
        ????r*) [ "$(field 4 "$1")" = "$only" ] || cannot 'it has no ACLs for two groups';;
        *) { chgrp -- "$only" "$1" && chmod 640 -- "$1"; } 2>/dev/null || cannot "it does not give it to '$only'";;
    esac
}
give() { # FILE
    [ -n "$private" ] || { own "$1" "${mode:-go-w}"; return; }
    chmod 600 -- "$1" || return
    setfacl -b -- "$1" 2>/dev/null
    if [ -n "$heir" ]; then
        chgrp -- "$(field 4 "$file.sqfs")" "$1" && getfacl -p -- "$file.sqfs" | acl --set-file=- -- "$1"
    fi 2>/dev/null || chmod 600 -- "$1"
    more "$1"
}
admit() { # what is there already
    [ -n "$asked" ] && closed "$file.sqfs" || return 0
    for old in "$file.json" "$file.pin" "$file.sqfs"; do
        [ -e "$old" ] || continue
        if [ -z "$opens" ]; then more "$old"; else setfacl -b -- "$old" 2>/dev/null; own "$old" "$mode"; fi || return
    done
}
make() { # DIRECTORY
    [ -d "$1" ] && return
    make "$(dirname -- "$1")" || return
    if mkdir -- "$1" 2>/dev/null; then own "$1" "$directory_mode"; else [ -d "$1" ] || mkdir -- "$1"; fi
}
name() { # STEM TARGET
    [ "$(readlink -- "$1.sqfs")" = "$2" ] && return
    make "$(dirname -- "$1")" && ln -s -- "$2" "$part" && mv -f -- "$part" "$1.sqfs"
}
sweep() {
    for old in .part-*; do
        [ -f "$old" ] || [ -h "$old" ] || continue
        host=${old%-*}; pid=${host##*-}; host=${host%-*}
        if [ "$host" = ".part-$me" ] && [ -O "$old" ] && ! kill -0 "$pid" 2>/dev/null; then rm -f -- "$old"
        elif [ -n "$(find "$old" -prune -mtime +1)" ]; then rm -f -- "$old" 2>/dev/null
        fi
    done
}
retire() {
    [ -e "$file.sqfs" ] || [ -e "$file.json" ] || return 0
    make .retired || return
    stamp=$(date +%s)-$random
    { [ ! -e "$file.sqfs" ] || mv -- "$file.sqfs" ".retired/$file.$stamp.sqfs"; } &&
        { [ ! -e "$file.json" ] || mv -- "$file.json" ".retired/$file.$stamp.json"; }
}
held() {
    [ -f "$file.sqfs" ] && [ "$(wc -c <"$file.sqfs")" -eq "$size" ] && [ "$(head -n 1 "$file.json")" = "$line" ]
} 2>/dev/null
copy() {
    heir=
    if [ -z "$opens" ] && [ -e "$file.sqfs" ] && closed "$file.sqfs"; then heir=1; private=1; fi
    [ -z "$heir" ] || [ -n "$asked" ] || acl=
    mask=$(umask); [ -z "$private" ] || umask 077
    echo shoebox:send
    dd bs=1 count="$sidecar_size" of="${part}j" 2>/dev/null
    if command -v lfs >/dev/null && lfs getstripe -d . >/dev/null 2>&1; then
        lfs setstripe -c "$stripes" "$part" >/dev/null
    fi
    hash=$(tee -- "$part" | sha256sum)
    [ "${hash%% *}" = "$sha256" ] || exit 65
    [ "$(wc -c <"$part")" -eq "$size" ] && [ "$(wc -c <"${part}j")" -eq "$sidecar_size" ] || exit 75
    umask "$mask"
    give "$part" && give "${part}j" || exit 1
    sync "$part" "${part}j" 2>/dev/null || sync
    retire && mv -f -- "${part}j" "$file.json" && mv -f -- "$part" "$file.sqfs" || exit 1
    sync . 2>/dev/null || sync
}

command -v sha256sum >/dev/null || { echo 'sha256sum is not installed over there' >&2; exit 1; }
make "$directory" && cd -- "$directory" || exit 1
trap 'rm -f -- "$part" "${part}j"' EXIT
trap 'exit 75' HUP INT PIPE TERM
sweep
if [ -e "$file.sqfs" ] && [ ! -r "$file.sqfs" ]; then
    cannot "it has this image already, private, and $(field 3 "$file.sqfs")'s: ask for --user $(id -un 2>/dev/null)"
fi
if held; then touch -c -- "$file.json" 2>/dev/null; fi
if held; then admit || cannot "it is for its owner there to say who may read it"; echo shoebox:have; else copy; fi
"""


def send(place: Place, source: Image, readers: Readers, quiet: bool, options: Sequence[str] = ()) -> str:
    """Copy an image into the store of another host, unless its content is there; return its `host:path`.

    A directory that does not begin with a slash is under the home there. options: for ssh(1). Raises Fail.
    """
    script = _script(place.directory, source, readers).encode()
    command = f"sh -c 'eval \"$(dd bs=1 count={len(script)} 2>/dev/null)\"'"
    # Whatever happens here, closing its stdin is what ends the script over there, and makes it remove a half file.
    with started(*options, "--", place.host, command, buffer=0) as (ssh, stdin, stdout):
        said = _talk(stdin, stdout, script, source, quiet)
        status = ssh.wait()
    if said.startswith(_CANNOT):
        raise source.uncopied(place, said.removeprefix(_CANNOT))
    if status or said != "done":
        raise _failure(place, source, status)
    return place.path(image_file(source.known.hex))


@contextmanager
def started(*words: str, buffer: int = -1) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """Start ssh(1), to end when we do; with its stdin and stdout, buffered as open() says. Raises Fail."""
    pipe, end = subprocess.PIPE, end_with_us
    try:
        process = subprocess.Popen(["ssh", *words], stdin=pipe, stdout=pipe, bufsize=buffer, preexec_fn=end)  # noqa: PLW1509 - no threads yet
    except OSError as error:
        raise Fail("cannot start 'ssh'", error, "install it") from error
    with process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        yield process, process.stdin, process.stdout


def end_with_us() -> None:
    """Let a program be ended when we are, before it is executed."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)


def under_home(directory: str) -> str:
    """Return a directory of another host as one that begins with a slash, or with a dot: where a login begins."""
    return directory if directory.startswith("/") else "./" + directory.removeprefix("~/")


def _talk(stdin: IO[bytes], stdout: IO[bytes], script: bytes, source: Image, quiet: bool) -> str:
    """Send what is asked for; return the last word that came back: "done", if all went well."""
    with suppress(BrokenPipeError):  # it ended early: its status says why
        _write(stdin, script)
        said = _answer(stdout)
        if said.startswith(_CANNOT):
            return said
        if said == "send":
            _write(stdin, source.sidecar)
            with meter(source.size, source.label, quiet) as advance:
                source.check(pour(source.fd, source.offset, source.size, stdin.fileno(), advance))
        stdin.close()
    return _answer(stdout)


def _write(stdin: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(stdin.fileno(), rest) :]


def _answer(stdout: IO[bytes]) -> str:
    """Return the script's next word; what the login shell's start files may print is passed over."""
    for line in iter(stdout.readline, b""):
        _, ours, word = line.decode("ascii", "replace").strip().rpartition("shoebox:")
        if ours:
            return word
    return ""


def _script(directory: str, source: Image, readers: Readers) -> str:
    """Return the script with what it is to do. Raises Fail."""
    users, groups = readers.crossing()
    mode, opens = readers.mode, readers.mode is not None and readers.mode & 0o004
    may = mode is None or mode & 0o040  # whether groups are among the readers
    file = image_file(source.known.hex)
    values = {
        "directory": under_home(directory),
        "file": file.removesuffix(".sqfs"),
        "line": sidecar.first_line(source.known.sha256, source.size).decode(),
        "sha256": source.known.sha256,
        "size": str(source.size),
        "sidecar_size": str(len(source.sidecar)),
        "random": os.urandom(4).hex(),
        "private": "1" if readers.private else "",
        "asked": "1" if readers.asked else "",
        "opens": "1" if opens else "",
        "acl": ",".join([f"u:{name}:r--" for name in users] + [f"g:{name}:r--" for name in groups if may]).replace(
            "\\",
            "\\134",  # setfacl reads backslashes as of octal digits
        ),
        "only": groups[0] if may and not users and len(groups) == 1 else "",
        "mode": "" if mode is None else f"{mode:o}",
        "directory_mode": "" if mode is None else f"{directory_mode(mode):o}",
        "group": "" if readers.private else "".join(groups),
        "stripes": str(stripes(source.size)),
    }
    lines = [f"{name}={quote(value)}" for name, value in values.items()]
    links = [f"name {quote('./' + stem)} {quote('../' * stem.count('/') + file)} || exit 1" for stem in source.stems]
    return "\n".join([*lines, _SCRIPT, *links, "echo shoebox:done", ""])


def _failure(place: Place, source: Image, status: int) -> Fail:
    if status == _NO_CONNECTION:
        return source.uncopied(place, "the ssh connection failed", f"try: ssh {place.host} true", LATER)
    if status == _FULL:
        return source.uncopied(
            place, "it did not fit, or was interrupted over there", "make room, and try again", LATER
        )
    if status == _DAMAGED:
        return source.uncopied(place, "what arrived is not what was sent", "try again", LATER)
    return source.uncopied(place, f"the shell over there ended with status {status}")

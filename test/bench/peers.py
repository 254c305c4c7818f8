"""Who else starts programs in a root file system, as a directory or as an image, and what each needs before."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bench.measure import Room
from bench.starter import Starter, starter
from fixtures.installed import TREE

UDOCKER = TREE / ".venv/bin/udocker"
UDOCKER_NEEDS = "1.2.11"  # the release of programs that 1.3.17 would download; the one it needs here is Debian's proot
BOUND = ("/proc", "/sys", "/dev", "/tmp")  # what sh-run brings in besides files of /etc and the home
# The image served by FUSE, for runners that take a directory only; who starts it unmounts it.
SERVED = 'squashfuse_ll "$1" "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Peer:
    """One who runs commands in a directory: words before the command, which a number may make a rank's own.

    join: words to enter a container that lasts, which get the pid of what hold started; end: words to end that, where
    it is not the process itself.
    """

    run: Callable[[int], list[str]]
    join: Callable[[int], list[str]] | None = None
    hold: list[str] = field(default_factory=list)
    end: list[str] = field(default_factory=list)


def _here(program: str) -> str:
    return shutil.which(program) or pytest.fail(f"{program} is not installed")


def ch_run(room: Room) -> list[str]:
    """Return the words that begin a command of ch-run's, which mounts images in a directory."""
    (room.path / "mnt").mkdir(exist_ok=True)
    return [_here("ch-run"), f"--mount={room.path}/mnt"]


def bubblewrap(tree: Path) -> list[str]:
    """Return the words of bwrap(1): a user namespace, and what sh-run brings in."""
    binds = [word for path in BOUND for word in ("--dev-bind", path, path)]
    return [_here("bwrap"), "--unshare-user", "--ro-bind", str(tree), "/", *binds]


def served(image: Path, at: Path, words: list[str]) -> list[str]:
    """Return a command that has squashfuse_ll serve an image at a directory, and executes words: it stays mounted."""
    return [_here("sh"), "-c", SERVED, "-", str(image), str(at), *words]


def unserved(at: Path) -> list[str]:
    """Return a command that ends served()."""
    return [_here("fusermount"), "-u", str(at)]


def _crun(room: Room, tree: Path, where: Path) -> Peer:
    """Return crun on bundles that ask for no more than sh-run does: user and mount namespaces, no control group."""
    where.mkdir()
    words = [_here("crun"), "--cgroup-manager=disabled", f"--root={where}/state"]
    room.run([*words, "spec", "--rootless", "--bundle", where])
    config = json.loads((where / "config.json").read_text())
    ids = [{"containerID": 0, "size": 1}]
    config["root"] = {"path": str(tree), "readonly": True}
    config["process"] |= {"terminal": False, "capabilities": {}}
    config["process"].pop("rlimits", None)
    config["mounts"] = [{"destination": path, "type": "none", "source": path, "options": ["rbind"]} for path in BOUND]
    config["linux"] = {
        "namespaces": [{"type": "user"}, {"type": "mount"}],
        "uidMappings": [{**ids[0], "hostID": os.geteuid()}],
        "gidMappings": [{**ids[0], "hostID": os.getegid()}],
    }
    config.pop("hostname", None)
    for name, args in (("run", ["true"]), ("hold", ["sleep", "600"])):
        (where / name).mkdir()
        config["process"]["args"] = args
        (where / name / "config.json").write_text(json.dumps(config))

    def run(rank: int) -> list[str]:
        return [*words, "run", "--bundle", f"{where}/run", f"{rank}"]

    hold = [*words, "run", "--bundle", f"{where}/hold", "held"]
    return Peer(run, lambda _: [*words, "exec", "held", "true"], hold, [*words, "delete", "--force", "held"])


def _podman(tree: Path, where: Path) -> Peer:
    """Return podman with a place of its own, of a short name as it wants it, without what it can leave out."""
    words = [_here("podman"), f"--root={where}/root", f"--runroot={where}/run", f"--tmpdir={where}/tmp"]
    words += ["--cgroup-manager=cgroupfs", "--events-backend=none"]
    files, most = (resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    pids = int(Path("/proc/sys/kernel/pid_max").read_text())  # to which podman lowers the limit of its own
    processes = pids if most == resource.RLIM_INFINITY else min(pids, most)
    ours = [f"--ulimit=nofile={files}:{files}", f"--ulimit=nproc={processes}:{processes}"]  # which it would raise
    run = ["run", "--rm", "--network=host", "--cgroups=disabled", "--log-driver=none", *ours]
    return Peer(
        lambda _: [*words, *run, "--rootfs", str(tree), "true"],
        lambda _: [*words, "exec", "held", "true"],
        [*words, *run, "--name=held", "--rootfs", str(tree), "sleep", "600"],
        [*words, "rm", "--force", "--time=0", "held"],
    )


def _udocker(room: Room, tree: Path, env: dict[str, str]) -> Peer:
    """Return udocker in its way P1, by Debian's proot: what it would download is not asked for."""
    library = Path(env["UDOCKER_DIR"]) / "lib"
    library.mkdir(parents=True)
    (library / "VERSION").write_text(UDOCKER_NEEDS)
    archive = room.path / "udocker.tar"
    room.run(["tar", "-C", tree, "-cf", archive, "."])
    words = [str(UDOCKER), "--quiet", *(["--allow-root"] if os.geteuid() == 0 else [])]
    room.run([*words, "import", archive, "tree:1"], **env)
    room.run([*words, "create", "--name=tree", "tree:1"], **env)
    archive.unlink()
    return Peer(lambda _: [*words, "run", "--nobanner", "tree", "true"])


def _runs(started: Starter, name: str, peer: Peer) -> bool:
    """Tell whether it can be run here; if not, it is named at the end, and has no row."""
    try:
        started.start(*peer.run(0))
    except AssertionError:
        warnings.warn(f"{name} does not run here: no row has it", stacklevel=2)
        return False
    return True


@contextmanager
def all_of_them(room: Room, tree: Path) -> Iterator[tuple[Starter, dict[str, Peer]]]:
    """Have what starts commands, ours too, and all who run commands in a directory."""
    where = room.path / "peers"
    where.mkdir()
    nsenter = [_here("nsenter"), "--user", "--mount", "--root", "--wd", "--preserve-credentials", "-t"]
    unshare = [_here("unshare"), "--map-current-user", "--mount", f"--root={tree}", "--wd=/"]
    charlie = ch_run(room)[:1]
    with tempfile.TemporaryDirectory(prefix="shoebox-") as short:
        env = {
            "UDOCKER_DIR": f"{where}/udocker",
            "UDOCKER_USE_PROOT_EXECUTABLE": _here("proot"),
            "XDG_RUNTIME_DIR": short,  # podman's, and the directory where our ranks meet
        }
        them = {
            "ch-run": Peer(
                lambda _: [*charlie, str(tree), "--", "true"],
                lambda pid: [*charlie, f"--join-pid={pid}", str(tree), "--", "true"],
                [*charlie, str(tree), "--", "sleep", "600"],
            ),
            "bwrap": Peer(lambda _: [*bubblewrap(tree), "true"]),
            "crun": _crun(room, tree, where / "crun"),
            "unshare": Peer(
                lambda _: [*unshare, "true"],
                lambda pid: [*nsenter, str(pid), "true"],
                [*unshare, "sleep", "600"],
            ),
            "udocker": _udocker(room, tree, env),
            "podman": _podman(tree, Path(short)),
        }
        with starter(room.path / "home", {**room.env, **env}, cgroups=True) as started:
            yield started, {name: peer for name, peer in them.items() if _runs(started, name, peer)}
            if "podman" in them and os.geteuid():
                room.run(["podman", "system", "migrate"], **env)  # ends the process that keeps its user namespace

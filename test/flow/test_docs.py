"""The documents say what happens: every example in them is run, and its output compared."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.console import steps
from fixtures.docimage import debian
from fixtures.gateway import site
from fixtures.images import push
from fixtures.installed import own_bin
from fixtures.registry import registry  # noqa: F401
from fixtures.rootfs import make_tree, sif, squash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fixtures.installed import Shell
    from fixtures.registry import Place

DOC = Path(__file__).parent.parent.parent / "doc"


@pytest.fixture(scope="module")
def hub(registry: Place) -> Place:  # noqa: F811
    """Return a registry that has what the examples pull."""
    push(registry.url, "library/debian", "12", debian())
    return registry


@pytest.fixture
def desk(hub: Place, cmd: Shell, tmp_path: Path) -> Shell:
    """Return a user's shell whose Docker Hub is the registry; /scratch is below the test's own directory."""
    config = cmd.home / ".config" / "shoebox"
    config.mkdir(parents=True)
    (config / "registries.toml").write_text(f'[registry."docker.io"]\nurl = "{hub.url}"\ninsecure-http = true\n')
    (tmp_path / "scratch" / "images").mkdir(parents=True)
    (cmd.home / "refs.txt").write_text("debian:12\nno/such:image\n")
    return cmd


def tutorial() -> tuple[str, str]:
    """Return the tutorial less what takes an image account, and that."""
    text = (DOC / "tutorial.md").read_text()
    begin = text.index("When the site keeps the images\n")
    end = text.index("\n## ", begin)
    return text[:begin] + text[end:], text[begin:end]


def test_the_tutorial_does_what_it_says(desk: Shell, tmp_path: Path) -> None:
    checker = doctest.OutputChecker()
    room = str(tmp_path / "scratch")
    env = dict(desk.env)
    count = 0
    for command, want in steps(tutorial()[0]):
        count += 1
        typed = command.replace("/scratch", room)
        script = f"set -o pipefail\n{typed}\nstatus=$?\nexport -p > {tmp_path}/exported\nexit $status"
        if os.path.exists(tmp_path / "exported"):
            script = f". {tmp_path}/exported\n{script}"
        done = subprocess.run(
            ["bash", "-c", script],
            env=env,
            cwd=desk.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        got = done.stdout.replace(room, "/scratch")
        assert done.returncode == 0, f"$ {command}\n{got}"
        assert checker.check_output(want, got, doctest.ELLIPSIS), f"$ {command}\n{got}--- expected:\n{want}"
    assert count > 20


@pytest.mark.root
def test_the_tutorials_section_on_a_sites_account_does_what_it_says(hub: Place, prefix: Path, tmp_path: Path) -> None:
    checker = doctest.OutputChecker()
    with site(prefix) as there:
        jane = there.people[0]
        for home in (there.home, there.top / jane):
            where = home / ".config/shoebox"
            where.mkdir(parents=True, exist_ok=True)
            (where / "registries.toml").write_text(f'[registry."docker.io"]\nurl = "{hub.url}"\n')
        mine = ("etc/mine", tarfile.REGTYPE, 0o644, 0, 0, b"new\n")
        made = squash(make_tree(tmp_path / "tree"), there.top / jane / "mine.sqfs", mine)
        shutil.chown(made, jane)
        ran = [("", "")]
        for command, want in steps(tutorial()[1]):
            typed = f"set -o pipefail; {command}".replace("/apps/images", str(there.store))
            done = there.run(jane, "bash", "-c", f"{typed} 2>&1", USER=jane)
            got = done.stdout.replace(str(there.store), "/apps/images")
            assert done.returncode == 0, f"$ {command}\n{got}{done.stderr}"
            assert checker.check_output(want, got, doctest.ELLIPSIS), f"$ {command}\n{got}--- expected:\n{want}"
            ran.append((command, got))
        assert len(ran) == 6
        assert ran[3][1] == ran[5][1]


# Examples that cannot run here, and why; every other one does.
NOT_RUN = {
    "sh-login registry.site.org": "asks at a terminal, and a registry that is not there; see test_login",
    'sh-login -u robot --password-stdin registry.site.org <"$CREDENTIALS_DIRECTORY/token"': "see test_login",
    "cat /etc/shoebox/registries.toml": "shows a file of a site's",
    "sh-run --module mpich --explain debian:12 | grep -e site.conf -e module": "needs a site's files; see test_site",
    "srun --mpi=pmix -N 2 -n 8 sh-run app.sqfs ./solver": "needs Slurm; see test/slurm/test_mpi.py",
    "srun --mpi=pmix -N 2 -n 8 sh-run --mpi=host app.sqfs ./solver": "needs Slurm; see test/slurm/test_mpi.py",
    "sh-run --gpu debian:12 nvidia-smi": "needs a GPU; test_devices runs the like where there is one",
    "sh-run --device vendor.com/fpga=0 debian:12 python3 app.py <in": "needs a specification in /etc/cdi",
}
NOT_RUN["journalctl -t sh-run -o json | sh-stats -"] = "needs a journal; test_usage has what it prints"
NOT_RUN |= dict.fromkeys(
    (
        "srun --overlap --jobid=4711 --pty sh-run --enter 4711",
        "sh-run --enter 4711.0 gdb -p 1234",
        "srun --overlap --ntasks-per-node=1 sh-run --sshd debian:12 &",
        "ssh -F ~/.cache/shoebox/ssh/config n2 hostname",
    ),
    "needs a job; test/slurm/test_into.py runs the like",
)
NOT_RUN |= dict.fromkeys(
    (
        "sh-images --pending",
        "sh-pull --for-site --group hpc42 registry.site.org/hpc/app:7",
        "sh-flatten --name localhost/$USER/app:1 app.sif | sh-stage --for-site",
        "sh-rm --for-site localhost/$USER/app:1",
    ),
    "needs an image account; see test_account",
)
# What stands in for things that no test machine has.
STAND_INS = {
    "docker": '[ "$1" = save ] && exec skopeo copy -q "oci:$LAYOUT" docker-archive:/dev/stdout:app:latest',
    "srun": 'shift 2; exec "$@"',
    "ssh": 'while [ "${1#-}" != "$1" ]; do case $1 in -o) shift 2;; *) shift;; esac; done; shift; exec sh -c "$*"',
}


def examples(page: Path) -> Iterator[str]:
    """Yield the commands in a man page's EXAMPLES, as they are printed."""
    section = page.read_text().partition(".Sh EXAMPLES\n")[2].partition("\n.Sh ")[0]
    text = re.sub(r"\\e\n\s*", "", section).replace(r"\(dq", '"').replace(r"\e", "\\")
    for line in text.splitlines():
        if line.startswith((".Dl $ ", "$ ")):
            yield line.removeprefix(".Dl ")[2:]


@pytest.fixture
def prepared(desk: Shell, hub: Place, prefix: Path, tmp_path: Path) -> dict[str, str]:
    """Return an environment in which the man pages' names mean something."""
    push(hub.url, "library/app", "7", debian())
    stand_ins = tmp_path / "stand-ins"
    stand_ins.mkdir()
    (desk.home / ".docker").mkdir()
    for name, script in STAND_INS.items():
        (stand_ins / name).write_text(f"#!/bin/bash\n{script}\n")
        (stand_ins / name).chmod(0o755)
    names = desk.ok("sh-pull", "debian:12", "app:7").splitlines()
    (desk.home / "refs.txt").write_text("debian:12\napp:7\n")
    (desk.home / "app.py").write_text("import sys; print(sys.stdin.read().upper())")
    (desk.home / "in").write_text("in\n")
    (desk.home / "Makefile").write_text("all:; echo made\n")
    (tmp_path / "scratch/usage").mkdir()
    (tmp_path / f"scratch/usage/{os.getuid()}.log").write_text(f"1795400230 0 sha256:{'0' * 64} 1.0 n1 fuse\n")
    for place in ("data", "proj/images", "project/x/images", "project/hpc42", "me/images"):
        (tmp_path / "scratch" / place).mkdir(parents=True)
    desk.ok("skopeo", "copy", "-q", names[1], "oci:layout:app")
    desk.ok("sh-flatten", "-o", "app.sqfs", names[1])
    desk.ok("bash", "-c", 'sh-flatten "$0" "$1"', *names)
    sif(desk.home / "app.sqfs", desk.home / "app.sif")
    table = desk.home / ".config/shoebox/systems.toml"
    table.write_text(f'[system.alps]\nstore = "{tmp_path}/scratch/alps"\ncompressor = "zstd"\n')
    (desk.home / "udiRoot.conf").write_text("siteFs=/home:/home\nsystem=mycluster\n")
    locations = {"docker.io": {"remotetype": "dockerv2"}}
    (desk.home / "imagemanager.json").write_text(json.dumps({"Locations": locations}))
    return {
        **desk.env,
        "PATH": f"{stand_ins}:{own_bin(prefix)}:{desk.env['PATH']}",
        "LAYOUT": names[1].removeprefix("oci:"),
        "secret": "x",
    }


@pytest.mark.parametrize("page", sorted(path.name for path in DOC.glob("*.[1578]")))
def test_the_examples_of_a_man_page_run_as_they_stand(
    page: str, prepared: dict[str, str], desk: Shell, tmp_path: Path
) -> None:
    room = tmp_path / "scratch"
    for command in examples(DOC / page):
        if command in NOT_RUN:
            continue
        typed = re.sub(r"(?<=[ :=])/(?=(scratch|proj|project)/)", f"{room}/", command).replace(
            "/scratch/scratch", "/scratch"
        )
        typed = typed.replace("--group hpc42", f"--group {os.getegid()}").replace("alice,bob", "daemon,bin")
        typed = re.sub(r"'pip install numpy && (.*)'", r"'touch /usr/bin/numpy \&\& \1'", typed).replace(
            "12 make", "12 ls"
        )
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", typed],
            env=prepared,
            cwd=desk.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"$ {typed}\n{done.stdout}{done.stderr}"


def test_every_example_that_is_not_run_is_still_in_a_man_page() -> None:
    there = {command for page in DOC.glob("*.[1578]") for command in examples(page)}
    assert there >= NOT_RUN.keys()

"""Every command line of Shifter's tutorial, on a cluster of sixteen nodes, with the plugin."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import tarfile
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from fixtures import mpibase
from fixtures import slurm as real
from fixtures.images import image as make_image
from fixtures.images import push
from fixtures.installed import own_bin
from fixtures.registry import docker_registry
from fixtures.rootfs import until

pytestmark = pytest.mark.root

NAMES = tuple(f"nid{number:05}" for number in range(443, 459))
APP = "#!/bin/sh\necho myapp 1.1 on $(hostname)\n"
PULLED = r"\S+ Pulling Image: docker:{}, status: READY"
JOB = """\
#!/bin/bash
#SBATCH -N 16 -t 20
#SBATCH --image=scanon/myapp:1.1

srun -n 16 shifter /myapp/app
"""
DOCKERFILE = "FROM nersc/mpi-ubuntu:14.04\nADD . /app\nRUN cd /app && mpicc -o hello helloworld.c\n"
DOCKER = """\
#!/bin/bash
case $1 in
build) exec buildah build "${@:2}" ;;
push) exec buildah push -q "$2" "docker://$HUB/$2" ;;
esac
"""


def boxed(tree, **files):
    """Make an image of the busybox tree, and a second layer of programs (`_` in their names for `/`)."""
    layers = []
    for names in ((), files):
        out = BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            if not names:
                archive.add(tree, ".")
            for name in names:
                member = tarfile.TarInfo(name.replace("_", "/"))
                member.mode, member.size = 0o755, len(files[name])
                archive.addfile(member, BytesIO(files[name].encode()))
        layers.append(out.getvalue())
    return make_image(*layers)


@contextmanager
def served(cluster, root):
    """Serve a registry's files on the login node's own loopback; yield its host."""
    config = (root / "config.yml").read_text()
    host = re.search(r"addr: (\S+)", config)[1]
    inside = ["nsenter", f"--net=/proc/{cluster.login}/ns/net", "docker-registry", "serve", root / "config.yml"]
    with subprocess.Popen(inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            port = int(host.rpartition(":")[2])
            listening = Path(f"/proc/{cluster.login}/net/tcp")
            assert until(lambda: f"0100007F:{port:04X}" in listening.read_text(), 20)
            yield host
        finally:
            server.kill()


@pytest.fixture(scope="module")
def hub(tree, tmp_path_factory):
    """Return the directory of a registry with the tutorial's images, which is not up."""
    root = tmp_path_factory.mktemp("hub")
    with docker_registry(root) as place:
        push(place.url, "scanon/myapp", "1.1", boxed(tree, myapp_app=APP))
        for name in ("busybox", "alpine"):
            push(place.url, f"library/{name}", "latest", boxed(tree, etc_name=name))
        if not mpibase.why_not():
            base = mpibase.base(tree, tmp_path_factory.mktemp("base"))
            push(place.url, "nersc/mpi-ubuntu", "14.04", base)
    return root


@pytest.fixture(scope="module")
def site(prefix, hub):
    """Return a cluster at a site that has all commands, the plugin, and a registry for Docker Hub."""
    if why := real.why_not():
        (pytest.fail if "not installed" in why and "SHOEBOX_TEST_PREFIX" in os.environ else pytest.skip)(why)
    (prefix / "etc").mkdir(exist_ok=True)
    with real.cluster(prefix, NAMES) as up, served(up, hub) as host:
        table = up.where / "etc"
        table.mkdir()
        (table / "registries.toml").write_text(f'[registry."docker.io"]\nurl = "http://{host}"\n')
        inside = ["nsenter", f"--mount=/proc/{up.login}/ns/mnt", "mount", "--bind", table, prefix / "etc"]
        subprocess.run(inside, check=True)
        ours = own_bin(prefix).relative_to(prefix)
        up.env.update(PATH=f"{up.where}/shoebox/{ours}:{up.env['PATH']}", SHELL="/bin/bash", HUB=host)
        plugin = real.plugin(up.where, up.where / "shoebox" / ours.parent)
        (up.where / "plugstack.conf").write_text(f"required {plugin}\n")
        yield up


@pytest.fixture(scope="module")
def cluster(site):
    """Return the cluster with the tutorial's images pulled."""
    for name in ("scanon/myapp:1.1", "busybox", "alpine"):
        assert re.fullmatch(PULLED.format(name), site.ok("bash", "-c", f"shifterimg pull {name}"))
    return site


class Terminal:
    """A command at a terminal, and a person who waits for what it shows and types."""

    def __init__(self, cluster, line):
        words = cluster.words("bash", "-c", line)
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.execvpe(words[0], words, cluster.env | {"PS1": "$ ", "TERM": "dumb"})
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.terminal)  # which ends what hangs on it

    def shows(self, pattern, seconds=30.0):
        """Wait for what a pattern matches; return the match, and forget what came before."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, self.seen
            if select.select([self.terminal], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.terminal, 4096).decode(errors="replace").replace("\r", "")
                except OSError as error:  # the terminal's other side is closed
                    raise AssertionError(self.seen) from error
        self.seen = self.seen[found.end() :]
        return found

    def types(self, line):
        os.write(self.terminal, f"{line}\n".encode())

    def ends(self):
        """Wait for the end; return the status."""
        assert until(
            lambda: self._drained() and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT), 30
        )
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _drained(self):
        try:
            while select.select([self.terminal], [], [], 0)[0] and os.read(self.terminal, 4096):
                continue
        except OSError:
            return True
        return True


def test_pull_and_images(cluster):
    rows = [row.split() for row in cluster.ok("shifterimg", "images").splitlines()]
    assert [row[5] for row in rows] == ["alpine:latest", "busybox:latest", "scanon/myapp:1.1"]


def test_salloc_with_an_image_gives_a_shell_on_the_node_for_shifter(cluster):
    with Terminal(cluster, "salloc -N 1 -C haswell --image=scanon/myapp:1.1") as terminal:
        terminal.types("echo on $(hostname)")
        node = terminal.shows(r"\non (nid\d+)\n")[1]
        terminal.types("shifter /myapp/app")
        assert terminal.shows(r"\nmyapp 1.1 on (nid\d+)\n")[1] == node
        terminal.types("srun -n 1 shifter /myapp/app")
        assert terminal.shows(r"\nmyapp 1.1 on (nid\d+)\n.*\$ $")[1] == node
        terminal.types("exit")
        assert terminal.ends() == 0


def test_salloc_without_then_shifter_with_an_image_gives_a_shell_inside(cluster):
    with Terminal(cluster, "salloc -N 1 -C haswell") as terminal:
        terminal.types("echo on $(hostname)")
        node = terminal.shows(r"\non (nid\d+)\n")[1]
        terminal.types("shifter --image=scanon/myapp:1.1")
        terminal.types("/myapp/app; cat /etc/os-release; id -un")
        assert terminal.shows(r"\nmyapp 1.1 on (nid\d+)\nNAME=box\n(.*)\n").groups() == (node, cluster.user)
        terminal.types("exit")
        terminal.types("shifter -image alpine")
        terminal.types("cat /etc/name; echo .")
        terminal.shows(r"alpine\.\n")
        terminal.types("exit")
        terminal.types("exit")
        assert terminal.ends() == 0


def test_shifter_image_alpine_on_the_login_node(cluster):
    assert cluster.ok("bash", "-c", "shifter -image alpine", stdin="cat /etc/name\n") == "alpine"


def test_sbatch_job_sl_runs_on_sixteen_nodes(cluster):
    (cluster.home / "job.sl").write_text(JOB)
    job = re.fullmatch(r"Submitted batch job (\d+)", cluster.ok("bash", "-c", "sbatch ./job.sl"))[1]
    assert until(lambda: not cluster.queued(job), 120), cluster.logs()
    lines = (cluster.home / f"slurm-{job}.out").read_text().splitlines()
    assert sorted(lines) == [f"myapp 1.1 on {name}" for name in NAMES]
    assert cluster.clean()


@pytest.mark.skipif(bool(mpibase.why_not()), reason=mpibase.why_not())
@pytest.mark.skipif(not shutil.which("buildah"), reason="no buildah on this machine")
def test_the_tutorials_dockerfile_is_built_pushed_pulled_and_run_over_sixteen_nodes(cluster, tmp_path):
    here = cluster.where / "hello"
    here.mkdir()
    (here / "Dockerfile").write_text(DOCKERFILE)
    (here / "helloworld.c").write_text(mpibase.HELLO)
    hub = cluster.env["HUB"]
    (tmp_path / "registries.conf").write_text(
        'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "disabled"\n'
        f'[[registry]]\nprefix = "docker.io"\nlocation = "{hub}"\ninsecure = true\n'
        f'[[registry]]\nlocation = "{hub}"\ninsecure = true\n'
    )
    storage = f'[storage]\ndriver = "vfs"\nrunroot = "{tmp_path}/run"\ngraphroot = "{tmp_path}/all"\n'
    (tmp_path / "storage.conf").write_text(storage)
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{cluster.env['PATH']}",
        "HOME": str(tmp_path),
        "CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf"),
        "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
        "BUILDAH_ISOLATION": "chroot",
    }
    for line in ("docker build -t scanon/hello-vm:latest .", "docker push scanon/hello-vm:latest"):
        done = cluster("bash", "-c", f"cd {here} && {line}", user="root", timeout=200, **env)
        assert done.returncode == 0, done.stderr
    cluster.ok("bash", "-c", "shifterimg pull scanon/hello-vm:latest")
    line = "srun --mpi=pmi2 -N 16 -n 16 shifter --image=scanon/hello-vm:latest /app/hello"
    lines = cluster.ok("bash", "-c", line, timeout=200).splitlines()
    assert sorted(lines, key=lambda said: int(said.split()[2])) == [f"hello from {rank} of 16" for rank in range(16)]

"""Every command line of Shifter's tutorial, on a cluster of sixteen nodes, with the plugin."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest
from fixtures import mpibase, tutorial
from fixtures import slurm as real
from fixtures.images import push
from fixtures.installed import own_bin
from fixtures.registry import docker_registry, served_to
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


@pytest.fixture(scope="module")
def hub(tree, tmp_path_factory):
    """Return the directory of a registry with the tutorial's images, which is not up."""
    root = tmp_path_factory.mktemp("hub")
    with docker_registry(root) as place:
        push(place.url, "scanon/myapp", "1.1", tutorial.boxed(tree, myapp_app=APP))
        for name in ("busybox", "alpine"):
            push(place.url, f"library/{name}", "latest", tutorial.boxed(tree, etc_name=f"{name}\n"))
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
    with real.cluster(prefix, NAMES) as up, served_to(up.login, hub) as host:
        table = up.where / "etc"
        table.mkdir()
        (table / "registries.toml").write_text(f'[registry."docker.io"]\nurl = "http://{host}"\n')
        inside = ["nsenter", f"--mount=/proc/{up.login}/ns/mnt", "mount", "--bind", table, prefix / "etc"]
        subprocess.run(inside, check=True)
        ours = own_bin(prefix).relative_to(prefix)
        up.env.update(PATH=f"{up.where}/shoebox/{ours}:{up.env['PATH']}", SHELL="/bin/bash", HUB=host)
        plugin = real.plugin(up.where, up.where / "shoebox" / ours.parent)
        (up.where / "plugstack.conf").write_text(f"required {plugin} shifter\n")
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
        terminal.types("cat /etc/name")
        terminal.shows(r"\nalpine\n")
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


# What else stands in the scripts of Shifter's users, in jobs.

INSIDE = "shifter sh -c 'echo $SHIFTER_IMAGETYPE ${#SHIFTER_IMAGE} $SHIFTER_RUNTIME; cat /etc/name'"


@pytest.fixture(scope="module")
def known(cluster):
    return cluster.ok("shifterimg", "lookup", "alpine")


@pytest.mark.parametrize("image", ["alpine", "docker:alpine", "docker:library/alpine:latest", "id:{}", "id:{:.12}"])
def test_images_of_any_spelling_are_resolved_when_a_job_is_submitted(cluster, known, image):
    script = f"#!/bin/bash\n#SBATCH --image={image.format(known)}\necho $SHOEBOX_IMAGE\n{INSIDE}\nsrun -n1 {INSIDE}\n"
    path, *lines = cluster.script(script).splitlines()
    assert path == str(cluster.where / f"store/sha256-{known}.sqfs")
    assert lines == ["id 64 1", "alpine"] * 2


def test_volumes_and_variables_in_a_job(cluster):
    here = cluster.home / "data"
    here.mkdir(exist_ok=True)
    (here / "file").write_text("data\n")
    (here / "env").write_text("FILE=1\n")
    show = "sh -c 'cat /data/file; echo $A $FILE $PWD'"
    words = f"--env=A=2 --env-file={here}/env --workdir=/data --module=none"
    for said in (
        f"#SBATCH --image=alpine --volume={here}:/data:ro\nsrun shifter {words} {show}",
        f'#SBATCH --image=alpine\n#SBATCH --volume="/usr:/u;{here}:/data"\nsrun shifter {words} {show}',
        f"#SBATCH --image=alpine\nexport SHIFTER_VOLUME={here}:/data\nsrun shifter {words} {show}",
        f'srun shifter --image=docker:alpine --volume="/usr:/u;{here}:/data" {words} {show}',
        f"export SHIFTER=docker:alpine\nsrun shifter -V {here}:/data {words} {show}",
        f"export SHIFTER_IMAGETYPE=docker SHIFTER_IMAGE=alpine\nsrun shifter -V {here}:/data {words} {show}",
    ):
        assert cluster.script(f"#!/bin/bash\n{said}\n") == "data\n2 1 /data\n", said


def test_clearenv_and_the_entrypoint_in_a_job(cluster):
    show = "srun -n1 shifter --clearenv -e B=1 sh -c 'echo $A $B $SHIFTER_RUNTIME'"
    assert cluster.script(f"#!/bin/bash\n#SBATCH --image=alpine\nexport A=1\n{show}\n") == "1 1\n"
    show = "srun -n1 shifter --entrypoint=/bin/echo said"
    assert cluster.script(f"#!/bin/bash\n#SBATCH --image=alpine\n{show}\n") == "said\n"


def test_a_batch_script_with_shifter_as_its_interpreter(cluster):
    shifter = f"{cluster.env['PATH'].partition(':')[0]}/shifter"
    text = f"#!{shifter} --image=docker:alpine /bin/sh\n#SBATCH -n 1\ncat /etc/name; echo $SLURM_JOB_NUM_NODES\n"
    assert cluster.script(text) == "alpine\n1\n"


@pytest.mark.parametrize(
    "test", ['-z "$SHIFTER_RUNTIME"', '-z "$SHIFTER_IMAGEREQUEST"', '"$SHIFTER_IMAGEREQUEST" != "$I"']
)
def test_a_batch_script_that_runs_itself_again_inside_ends(cluster, test):
    again = 'cp "$0" $HOME/again; chmod 755 $HOME/again; shifter --image=$I --module=none -- $HOME/again; exit'
    text = (
        f"#!/bin/sh\n#SBATCH --image=docker:alpine\nI=docker:alpine\nif [ {test} ]; then {again}; fi\ncat /etc/name\n"
    )
    assert cluster.script(text) == "alpine\n"


def test_a_pipe_through_shifter_and_its_statuses_in_a_job(cluster):
    text = "echo in | shifter --image=alpine cat /etc/name - >out; cat out\n"
    for words in ("-i alpine sh -c 'exit 7'", "-i alpine sh -c 'kill -9 $$'", "-i alpine no/such", "-i nowhere:1 true"):
        text += f"srun -Q -n1 shifter {words} 2>/dev/null; echo $?\n"
    assert cluster.script(f"#!/bin/bash\n{text}").split() == ["alpine", "in", "7", "137", "127", "1"]


def test_a_tag_that_moves_does_not_change_a_job_that_waits(cluster, known):
    store = cluster.where / "store"
    link = store / "docker.io/library/alpine/latest.sqfs"
    meant = os.readlink(link)
    other = os.readlink(store / "docker.io/library/busybox/latest.sqfs")
    out = cluster.home / "moved"
    job = cluster.submit(f"#!/bin/bash\n#SBATCH --image=alpine\nsrun -n1 {INSIDE}\n", "-H", "-o", out)
    link.unlink()
    link.symlink_to(other)
    try:
        cluster.ok("scontrol", "release", job)
        assert until(lambda: not cluster.queued(job), 60)
    finally:
        link.unlink()
        link.symlink_to(meant)
    assert out.read_text().split() == ["id", "64", "1", "alpine"]


@pytest.mark.skipif(bool(mpibase.why_not()), reason=mpibase.why_not())
@pytest.mark.skipif(not shutil.which("buildah"), reason="no buildah on this machine")
def test_the_tutorials_dockerfile_is_built_pushed_pulled_and_run_over_sixteen_nodes(cluster, tmp_path):
    here = cluster.where / "hello"
    tutorial.sources(here, mpibase.HELLO)
    env = tutorial.docker(tmp_path, tmp_path, cluster.env["HUB"])
    env |= {"PATH": f"{tmp_path}:{cluster.env['PATH']}", "HOME": str(tmp_path)}
    for line in tutorial.LINES:
        done = cluster("bash", "-c", f"cd {here} && {line}", user="root", timeout=200, **env)
        assert done.returncode == 0, done.stderr
    cluster.ok("bash", "-c", "shifterimg pull scanon/hello-vm:latest")
    line = "srun --mpi=pmi2 -N 16 -n 16 shifter --image=scanon/hello-vm:latest /app/hello"
    lines = cluster.ok("bash", "-c", line, timeout=200).splitlines()
    assert sorted(lines, key=lambda said: int(said.split()[2])) == [f"hello from {rank} of 16" for rank in range(16)]

"""One container for a job's steps on a node, kept by the plugin until the job ends, however it ends."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from fixtures import slurm as real
from fixtures.helper import ACCOUNT
from fixtures.installed import TREE, make_install
from fixtures.rootfs import servers, until

pytestmark = pytest.mark.root

INSIDE = "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt"


def with_plugin(words=""):
    """Return what puts the plugin into plugstack.conf before there are daemons, which look at that when they start."""
    return lambda where: (where / "plugstack.conf").write_text(f"required {real.plugin(where)} {words}\n")


@pytest.fixture(scope="module")
def up(prefix, box, tmp_path_factory):
    """Return a cluster whose prolog and epilog are the plugin's."""
    if why := real.why_not():
        pytest.skip(why)
    prefix = shutil.copytree(prefix, tmp_path_factory.mktemp("with-shifter") / "prefix", symlinks=True)
    subprocess.run(["make", "-s", "install-shifter", f"PREFIX={prefix}"], cwd=TREE, check=True)
    prefix.parent.parent.chmod(0o755)
    prefix.parent.chmod(0o755)
    # NoHold: else salloc asks once in three seconds whether the prolog has ended.
    with real.cluster(prefix, more=with_plugin("shifter pyxis"), PrologFlags="NoHold") as made:
        shutil.copy(box, made.where / "store/box.sqfs")
        yield made


@pytest.fixture(scope="module")
def limited(up, box):
    """Return a job on n3 that runs against its time limit, which Slurm looks at once in a minute or less."""
    image = shutil.copy(box, up.where / "store/limited.sqfs")
    return up.submit(f"srun sh-run {image} sleep 1000", "-w", "n3", "-t", "0:01"), image


@pytest.fixture
def slurm(up, limited):
    """Return the cluster; nothing may be left of a test's jobs on n1 and n2."""
    yield up
    up("scancel", "-u", up.user, "-w", "n1,n2")
    assert until(lambda: not left(up), 15), f"left behind: {left(up)}"


def left(cluster):
    """Return what lies about on n1 and n2, less keys."""
    found = [f"{node}: {line}" for node in ("n1", "n2") for line in cluster.nodes[node].left()]
    return found + [f"{node}: {name}" for node in ("n1", "n2") for name in kept(cluster, node)]


def kept(cluster, node="n1"):
    """Return the jobs that have a directory on a node."""
    place = cluster.root(node) / "run/shoebox"
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def pins(cluster, node="n1"):
    """Return the namespaces that are kept on a node."""
    lines = Path(f"/proc/{cluster.nodes[node].first}/mountinfo").read_text().splitlines()
    return [line.split()[3] for line in lines if line.split()[4].startswith("/run/shoebox/") and " nsfs " in line]


def in_job(cluster, script, *words, **env):
    """Run a script in an allocation of one node; return its stdout."""
    return cluster.ok("salloc", "-Q", "-N1", "-w", "n1", *words, "bash", "-c", f"set -e; {script}", **env)


def spaces(text):
    """Return pairs of namespaces, as steps have printed them."""
    lines = text.splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


def test_the_steps_of_a_job_share_one_container_on_a_node(slurm, image):
    text = in_job(slurm, f"for i in 1 2 3; do srun sh-run {image} sh -c '{INSIDE}'; done")
    assert len(set(spaces(text))) == 1
    assert len(spaces(text)) == 3


def test_jobs_share_none(slurm, image):
    script = f"srun sh-run {image} sh -c '{INSIDE}'; read line"
    jobs = [slurm.start("salloc", "-Q", "-n1", "-w", "n1", "sh", "-c", script) for _ in range(2)]
    assert until(lambda: len(pins(slurm)) == 4, 20)  # a namespace may have the number of one that is no more
    texts = {job.communicate("\n")[0] for job in jobs}
    assert len(texts) == 2


def test_what_is_kept_is_two_namespaces_for_as_long_as_the_job_lasts(slurm, image):
    with slurm.start("salloc", "-Q", "-w", "n1", "sh", "-c", f"srun sh-run {image} true; read line") as job:
        assert until(lambda: len(pins(slurm)) == 2, 20)
        assert until(lambda: len(servers(Path(image))) == 1)  # kept without a process of the job's
        names = sorted(name.partition(":")[0] for name in pins(slurm))
        assert names == ["mnt", "user"]
        job.communicate("\n")
    assert until(lambda: not pins(slurm) and not servers(Path(image)) and not kept(slurm), 20)


def test_steps_at_once_come_to_the_same_result(slurm, image):
    script = f"for i in 1 2 3 4; do srun --overlap -n2 sh-run {image} sh -c '{INSIDE}; true' & done; wait"
    text = in_job(slurm, script + f"; srun -n1 --overlap sh-run {image} sh -c '{INSIDE}'" * 2, "-n2")
    assert spaces(text)[-1] == spaces(text)[-2]


@pytest.mark.parametrize("words", ["--volume /etc:/mnt", "--no-home", "--writable"])
def test_a_step_that_asks_for_other_mounts_has_its_own(slurm, image, words):
    text = in_job(slurm, f"for more in '' '{words}' ''; do srun sh-run $more {image} sh -c '{INSIDE}'; done")
    first, other, again = spaces(text)
    assert first == again != other


def test_what_one_step_writes_into_a_writable_image_the_next_does_not_see(slurm, image):
    show = f"srun sh-run --writable {image} sh -c 'test -e /etc/new && echo there; echo >/etc/new; ls /etc/new'"
    assert in_job(slurm, f"{show}; {show}").split() == ["/etc/new", "/etc/new"]


@pytest.mark.parametrize("place", ["tmpfs", "scratch"])
def test_the_steps_of_a_job_share_its_node_cache_which_goes_with_the_job(slurm, image, place):
    (slurm.home / "scratch").mkdir(exist_ok=True)
    os.chown(slurm.home / "scratch", *[pwd.getpwnam(slurm.user).pw_uid] * 2)
    script = f"srun sh-run {image} sh -c 'mkdir /c/$SLURM_PROCID'; srun -n1 sh-run {image} ls /c"
    words = ("-n2", f"--node-cache=/c:size=16M,on={place}", "--node-cache=/d:size=1M,on=tmpfs")
    for _ in range(2):
        assert in_job(slurm, script, *words).split() == ["0", "1"]
    assert list((slurm.home / "scratch").iterdir()) == []


def test_each_step_has_its_own_words_variables_and_directory(slurm, image):
    command = f"sh-run {image} sh -c 'echo $A $SLURM_STEP_ID; pwd'"
    text = in_job(slurm, f"A=1 srun {command}; A=2 srun -D /etc {command}")
    assert text.split() == ["1", "0", str(slurm.home), "2", "1", "/etc"]


def test_a_step_sees_what_is_there_now(slurm, image):
    """Directories made anew, a file that another took the place of, an image that was built again."""
    own = slurm.home / "own.sqfs"
    script = f"""
        cp {image} own.sqfs; mkdir -p work/out; echo 1 >file; cd work
        step() {{ srun sh-run -v $PWD/out:/out -v {slurm.home}/file:/mnt/file ../own.sqfs sh -c "$1"; }}
        step 'echo a >/out/a; cat /mnt/file'
        cd ..; rm -r work; mkdir -p work/out; echo 2 >new; mv new file; cd work
        step 'echo b >/out/b; echo b >here; cat /mnt/file'
        ls out here
        cp {image} ../new.sqfs; mv ../new.sqfs ../own.sqfs
        step '{INSIDE}'; step '{INSIDE}'
    """
    said = in_job(slurm, script).split()
    assert said[:5] == ["1", "2", "here", "out:", "b"]
    own.unlink()


def test_an_image_whose_server_was_killed_is_served_anew(slurm, image):
    command = ("sh", "-c", f"srun sh-run {image} true && echo made; read line; srun -Q sh-run {image} ls /bin/busybox")
    with slurm.start("salloc", "-Q", "-w", "n1", *command) as job:
        assert job.stdout.readline() == "made\n"
        for pid in servers(Path(image)):
            os.kill(pid, signal.SIGKILL)
        out, err = job.communicate("\n", timeout=60)
    assert (out, err, job.returncode) == ("/bin/busybox\n", "", 0)


def as_other(cluster, *words):
    """Run a command as somebody else on the node n1."""
    inside = ["nsenter", "-t", str(cluster.nodes["n1"].first), "-a", "setpriv", "--reuid", "12345", "--regid", "12345"]
    return subprocess.run([*inside, "--clear-groups", *words], check=False, capture_output=True, text=True)


def test_somebody_else_can_neither_enter_nor_read_nor_write_there(slurm, image):
    with slurm.start(
        "salloc", "-Q", "-w", "n1", "sh", "-c", f"srun sh-run {image} true && echo made; read line"
    ) as job:
        assert job.stdout.readline() == "made\n"
        place = f"/run/shoebox/{kept(slurm)[0]}/container"
        for words in (
            ("nsenter", f"--user={place}/user", "--preserve-credentials", "true"),
            ("nsenter", f"--mount={place}/mnt", "true"),
            ("cat", f"{place}/left"),
            ("sh", "-c", f"exec 9<{place}/mnt"),  # who has it open keeps it alive
            ("touch", f"{place}/new"),
            ("rm", "-f", f"{place}/left"),
            ("umount", f"{place}/mnt"),
        ):
            assert as_other(slurm, *words).returncode != 0, words
        own = slurm("srun", "--overlap", "--jobid", kept(slurm)[0], "touch", f"{place}/new")
        assert own.returncode != 0
        job.communicate("\n")


@pytest.mark.parametrize("how", ["scancel", "kill -9", "out of memory"])
def test_nothing_stays_however_the_job_ends(slurm, image, how):
    script = f"srun sh-run {image} sh -c 'echo made; exec sleep 1000' & wait; sleep 1000"
    out = slurm.home / f"made-{os.getpid()}-{how[:4]}"
    job = slurm.submit(script, "-w", "n1", "-o", out)
    assert until(lambda: out.exists() and "made" in out.read_text(), 20)
    assert until(lambda: len(pins(slurm)) == 2)
    if how == "kill -9":
        slurm.kill("slurmstepd", "n1")
    if how == "out of memory":  # the kernel's choice may be any
        for name in ("squashfuse_ll", "sleep"):
            slurm.kill(name, "n1")
    slurm.ok("scancel", job)
    assert until(lambda: not slurm.queued(job), 60)

    def gone():
        for name in ("sleep", "bash", "slurm_script"):  # where slurmstepd was killed, Slurm leaves these
            slurm.kill(name, "n1")
        return not left(slurm) and not servers(Path(image))

    assert until(gone, 60), left(slurm)


@pytest.fixture
def spied(slurm):
    """Return the cluster, for something of the user's making in sh-run's place."""
    text = (slurm.where / "plugstack.conf").read_text()
    yield slurm
    assert until(lambda: not left(slurm), 15)  # an epilog reads the file anew
    (slurm.where / "plugstack.conf").write_text(text)


@pytest.mark.parametrize(
    "paths",
    [
        [*["/dev/null"] * 2, "/etc/passwd", "/proc/self/ns/user", "/etc/passwd"],
        [*["/dev/null"] * 2, "/proc/self/ns/user", "/proc/self/ns/mnt", "/dev/null"],
        [*["/dev/null"] * 2, "/proc/self/ns/mnt", "/proc/self/ns/user", "/dev/null"],  # the node's own: no bind of it
        [*["/dev/null"] * 2, "/", "/", "/"],
        ["/dev/null"] * 5,
    ],
)
def test_of_what_the_user_makes_up_nothing_is_kept(spied, image, paths):
    real.put_spy(spied, real.send(paths))
    command = ("sh", "-c", f"srun sh-run {image} true; echo made; read line")
    with spied.start("salloc", "-Q", "-w", "n1", *command) as job:
        assert job.stdout.readline() == "made\n"
        assert [line for line in spied.nodes["n1"].left() if line.startswith("mount /run/shoebox")] == []
        assert not (spied.root("n1") / "run/shoebox" / kept(spied)[0] / "container").exists()
        job.communicate("\n")


def test_a_command_of_shifter_is_as_quick_as_one_of_sh_run(slurm, image):
    keys = list(slurm.root("n1").glob("dev/shm/shoebox-*/*"))
    script = f"srun shifter --image={image} sh -c 'echo $SHIFTER_RUNTIME; {INSIDE}'"
    assert in_job(slurm, script).startswith("1\nuser:[")
    assert list(slurm.root("n1").glob("dev/shm/shoebox-*/*")) == keys  # so nobody ran it by itself
    done = slurm("srun", "-w", "n1", "shifter", f"--image={image}", "/etc/os-release")
    assert done.returncode == 127


def test_an_image_named_as_shifter_does_is_found_at_submission(slurm, image):
    link = slurm.where / "store/docker.io/library/app/1.sqfs"
    link.parent.mkdir(parents=True, exist_ok=True)
    (slurm.where / f"store/sha256-{'5' * 64}.sqfs").write_bytes(Path(image).read_bytes())
    link.symlink_to(f"../../../sha256-{'5' * 64}.sqfs")
    show = "echo $SLURM_SPANK_SHIFTER_IMAGEREQUEST $SHOEBOX_IMAGE; srun shifter sh -c 'echo $SHIFTER_IMAGEREQUEST'"
    text = in_job(slurm, show, "--image=docker:app:1")
    assert text.split() == ["docker:app:1", f"{slurm.where}/store/sha256-{'5' * 64}.sqfs", "docker:app:1"]
    link.unlink()


def test_pyxis_words_run_the_steps_own_command_inside(slurm, image):
    words = ("srun", "-w", "n1", f"--container-image={image}")
    assert slurm.ok(
        *words,
        "--container-mounts=/etc:/mnt,/usr:/opt:ro",
        "sh",
        "-c",
        "echo $0 -- $1; ls /mnt/passwd; ls -d /opt/bin",
        "a",
        "b",
    ) == ("a -- b\n/mnt/passwd\n/opt/bin")
    assert slurm(*words, "sh", "-c", "exit 3").returncode == 3
    assert slurm(*words, "nosuch").returncode == 127
    done = slurm("srun", "-w", "n1", "--container-image=nosuch:1", "true")
    assert done.returncode == 1
    assert "no image 'nosuch:1'" in done.stderr
    done = slurm("sbatch", f"--container-image={image}", "--wrap", "true")
    assert done.returncode != 0
    (slurm.home / "several").write_text("0 hostname\n1 hostname\n")
    for option in ("--multi-prog", "--multi"):
        done = slurm(*words, "-n2", option, slurm.home / "several")
        assert (done.returncode, done.stdout) == (1, "")
        assert "--container-image: not with --multi-prog" in done.stderr


def test_where_the_plugin_has_no_container_pyxis_words_still_mean_inside(slurm, image):
    words = ("srun", "-w", "n1", f"--container-image={image}")
    env = {"SHOEBOX_WRITABLE": f"{slurm.home}/changes"}  # which it leaves to each rank
    assert slurm.ok(*words, "sh", "-c", "echo $0; ls /bin/busybox", "a b", **env) == "a b\n/bin/busybox"


def test_without_a_prolog_nothing_is_kept(slurm, image):
    shutil.rmtree(slurm.root("n2") / "run/shoebox", ignore_errors=True)
    script = f"rmdir /run/shoebox/$SLURM_JOB_ID 2>&1; srun sh-run {image} sh -c '{INSIDE}'"
    text = slurm.ok("salloc", "-Q", "-w", "n2", "bash", "-c", script)
    assert "user:[" in text


def test_nothing_stays_of_a_job_that_met_its_time_limit(slurm, limited):
    job, image = limited
    assert until(lambda: not slurm.queued(job), 120)
    assert f"Time limit exhausted for JobId={job}" in (slurm.where / "slurmctld.log").read_text()
    assert until(lambda: not pins(slurm, "n3") and not kept(slurm, "n3") and not servers(Path(image)), 30)
    assert until(lambda: not slurm.nodes["n3"].left(), 15), slurm.nodes["n3"].left()


CONTAINERS = "/run/containers"


@pytest.fixture(params=[f"containers={CONTAINERS}", ""])
def contained(prefix, box, request):
    """Return a cluster whose jobs have a /tmp and a /dev/shm of their own; the plugin has been told where, or not."""
    if why := real.why_not():
        pytest.skip(why)

    def more(where):
        with_plugin(request.param)(where)
        (where / "job_container.conf").write_text(f"AutoBasePath=true\nBasePath={CONTAINERS}\n")

    words = {"JobContainerType": "job_container/tmpfs", "PrologFlags": "Contain"}
    with real.cluster(prefix, ("n1",), above="/var/tmp", more=more, **words) as made:
        shutil.copy(box, made.where / "store/box.sqfs")
        made.told = bool(request.param)
        yield made


def test_the_containers_tmp_is_the_jobs_where_slurm_gives_it_one(contained):
    image = contained.where / "store/box.sqfs"
    look = "cat /tmp/mine; ls /tmp /dev/shm | grep -c others"
    others = [contained.root("n1") / place / "others" for place in ("tmp", "dev/shm")]
    for path in others:
        path.touch()
    where = in_job(contained, f"srun sh-run {image} pwd; cd /etc; srun sh-run {image} pwd")
    assert where.split() == [str(contained.home), "/etc"]
    script = (
        f"srun sh -c 'echo 1 >/tmp/mine'; srun sh-run {image} sh -c '{look} && echo bad; {INSIDE}; echo 2 >/tmp/mine'"
    )
    more = f"srun sh-run {image} sh -c '{INSIDE}'; srun sh -c 'ls /dev/shm | grep -c shoebox || true'"
    text = in_job(contained, f"{script}; srun cat /tmp/mine; {more}")
    first, none, *ours, second = text.splitlines()[:5]
    assert (first, none, second) == ("1", "0", "2")
    *again, keys = text.splitlines()[5:]
    assert int(keys) == (not contained.told)  # then the ranks see to it by themselves
    assert again == ours or not contained.told
    for path in others:
        path.unlink()
    assert not (contained.root("n1") / "tmp/mine").exists()
    assert contained.clean(), contained.left()
    assert kept(contained) == []


def groups(cluster):
    """Return the control groups of jobs that there are on n1."""
    found = subprocess.run(
        ["find", "/sys/fs/cgroup", "-path", "*/slurm*/job_*", "-type", "d"], check=True, capture_output=True, text=True
    )
    return [line for line in found.stdout.splitlines() if f"/uid_{cluster.uid}/" in line]


@pytest.fixture(scope="module")
def grouped(box):
    """Return a cluster with sh-mount, and with control groups, version 1 if that is what the machine has."""
    if why := real.why_not():
        pytest.skip(why)
    if not Path("/sys/fs/cgroup/freezer").is_dir():
        pytest.skip("this machine has no control groups of version 1")
    site = Path(tempfile.mkdtemp(prefix="shoebox-site-", dir="/var/tmp"))  # a node's /tmp is its own
    site.chmod(0o755)
    helper = f"HELPER={site}/sh-mount"
    make_install(site / "prefix", helper, f"SYSCONFDIR={site}")
    subprocess.run(["make", "-s", "install-setuid", helper, f"SYSCONFDIR={site}"], cwd=TREE, check=True)
    (site / "store").mkdir()
    shutil.copy(box, site / "store/box.sqfs")
    (site / "store/box.sqfs").chmod(0o644)
    (site / "caches").mkdir(mode=0o700)
    os.chown(site / "caches", ACCOUNT, ACCOUNT)
    (site / "mount.conf").write_text(f"store {site}/store\ncache {ACCOUNT} {site}/caches\n")

    def more(where):
        with_plugin()(where)
        (where / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\n")

    words = {"ProctrackType": "proctrack/cgroup", "TaskPlugin": "task/cgroup", "PrologFlags": "NoHold"}
    words |= {"JobAcctGatherType": "jobacct_gather/cgroup", "SelectTypeParameters": "CR_CPU_Memory"}
    with real.cluster(site / "prefix", ("n1",), more=more, **words, DefMemPerNode="500") as made:
        made.image = site / "store/box.sqfs"
        made.uid = pwd.getpwnam(made.user).pw_uid
        yield made
    shutil.rmtree(site)
    for path in Path("/sys/fs/cgroup").glob("*/slurm_n1"):  # slurmd's own
        with suppress(OSError):
            path.rmdir()


def test_a_job_leaves_no_control_group(grouped):
    image = grouped.image
    in_job(grouped, f"srun sh-run {image} true; srun -n2 --overlap sh-run {image} true; srun true", "-n2")
    assert until(lambda: not groups(grouped), 20), groups(grouped)
    assert grouped.clean(), grouped.left()


def test_nothing_stays_of_a_step_that_had_too_much_memory(grouped):
    image = grouped.image
    done = grouped("srun", "--mem=50M", "sh-run", image, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
    assert done.returncode != 0
    assert "oom" in done.stderr.lower()
    assert until(lambda: not groups(grouped), 20), groups(grouped)
    assert grouped.clean(), grouped.left()
    assert not servers(Path(image))


def test_what_the_kernel_mounts_is_kept_for_the_job_in_control_groups_too(grouped):
    image = grouped.image
    site = image.parent.parent.name
    step = f"srun sh-run --mount kernel {image} sh -c '{INSIDE}'"
    text = in_job(grouped, f"{step}; losetup -n -O BACK-FILE | grep -c {site}; {step}").split()
    assert (text[:2], text[2]) == (text[3:], "1")
    listed = ["losetup", "-n", "-O", "BACK-FILE"]
    assert until(lambda: site not in subprocess.check_output(listed, text=True), 20)
    assert until(lambda: not groups(grouped), 20), groups(grouped)
    assert grouped.clean(), grouped.left()


@pytest.mark.parametrize(("on", "seen"), [("", "kept"), (",on=.", "")])
def test_a_node_cache_is_the_jobs_or_the_steps_whose_control_group_serves_it(grouped, on, seen):
    step = f"srun sh-run --mount kernel --node-cache /c:size=16M{on} {grouped.image}"
    assert in_job(grouped, f"{step} sh -c 'echo kept >/c/x'; {step} sh -c 'cat /c/x 2>&- || true'") == seen
    assert until(lambda: not groups(grouped), 20), groups(grouped)
    assert grouped.clean(), grouped.left()
    assert list((grouped.image.parent.parent / "caches").iterdir()) == []


def test_nothing_stays_on_a_node_that_was_given_up_and_came_back(slurm, image):
    """Its slurmd is killed, Slurm gives the job up, and the slurmd that comes back ends what is left of it."""
    out = slurm.home / "made-node"
    script = f"srun sh-run {image} sh -c 'echo made; exec sleep 1000' & wait; sleep 1000"
    job = slurm.submit(script, "-w", "n2", "-o", out, "--no-requeue")
    assert until(lambda: out.exists() and "made" in out.read_text(), 20)
    assert until(lambda: len(pins(slurm, "n2")) == 2)
    before = slurm.nodes["n2"].before
    daemon = next(int(line.split()[1]) for line in before if line.endswith(" slurmd"))
    os.kill(daemon, signal.SIGKILL)
    root = ("scontrol", "update", "nodename=n2")
    assert slurm(*root, "state=down", "reason=test", user="root").returncode == 0
    assert until(lambda: not slurm.queued(job), 30)
    inside = ["nsenter", "-t", str(slurm.nodes["n2"].first), "-a"]
    again = ["slurmd", "-D", "-N", "n2", "-f", str(slurm.where / "slurm.conf")]
    slurm(*root, "state=resume", user="root")
    slurmd = subprocess.Popen([*inside, *again], stderr=subprocess.DEVNULL)  # it dies with its node
    try:
        assert until(lambda: not pins(slurm, "n2") and not kept(slurm, "n2") and not servers(Path(image)), 60)
        assert until(lambda: slurm("sinfo", "-h", "-n", "n2", "-o", "%T").stdout.strip() == "idle", 60)
    finally:
        assert slurmd.poll() is None
        slurm.kill("sleep")  # nobody is left who would
        before.update(line for line in slurm.nodes["n2"].left() if line.endswith((" slurmd", " nsenter")))

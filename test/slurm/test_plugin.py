"""spank_shoebox: options of srun, sbatch and salloc, and one container for the ranks of a step."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from fixtures.installed import TREE
from fixtures.rootfs import servers, until
from fixtures.slurm import put_spy, send

pytestmark = pytest.mark.root

SPACES = "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt"


@pytest.fixture
def named(slurm):
    """Return a name in the store that links to an image by its digest, and a function that moves it to another."""
    store = slurm.where / "store"
    for number in "12":
        shutil.copy(store / "box.sqfs", store / f"sha256-{number * 64}.sqfs")
    link = store / "docker.io/library/app/1.sqfs"
    link.parent.mkdir(parents=True, exist_ok=True)

    def move(number):
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../../sha256-{number * 64}.sqfs")

    move("1")
    return move


def keys(slurm):
    return [path for name in slurm.nodes for path in slurm.root(name).glob("dev/shm/shoebox-*/*")]


def sweep(slurm):
    for path in keys(slurm):
        path.unlink()


def test_the_ranks_of_a_node_share_one_container_without_a_key(plugged, image):
    sweep(plugged)
    script = f"mkdir -p met && >met/$SLURM_PROCID; while [ $(ls met | wc -l) -lt 8 ]; do sleep 0.02; done; {SPACES}"
    text = plugged.ok("srun", "-N2", "--ntasks-per-node=4", "sh-run", image, "sh", "-c", script)
    assert len(set(text.split())) == 4
    assert keys(plugged) == []  # so nobody ran sh-run by itself


def test_what_a_rank_gets_is_what_sh_run_gives(plugged, image):
    script = "env | grep -v -e SLURM -e SRUN_ | sort; id; pwd; umask; ls /proc/self/fd"
    show = ("sh", "-c", f"{script}; grep -e NoNew -e CapEff /proc/self/status")
    for words, env in (
        ((), {}),
        (("--env", "A=1 2", "--workdir", "/etc"), {}),
        ((), {"LD_FOO": "1", "TMPDIR": "/tmp"}),
    ):
        both = [
            plugged.ok("srun", "-N1", "sh-run", *more, *words, image, *show, **env) for more in ((), ("--no-join",))
        ]
        assert both[0] == both[1]
    assert "NoNewPrivs:\t1" in both[0]
    assert "LD_FOO" not in both[0]
    assert "CapEff:\t0000000000000000" in both[0]


def test_each_rank_has_its_own_variables_and_limits(plugged, image):
    text = plugged.ok("srun", "-N1", "-n3", "sh-run", image, "sh", "-c", "echo $SLURM_PROCID $SLURM_LOCALID; ulimit -n")
    assert sorted(set(text.split("\n")))[:3] == ["0 0", "1 1", "2 2"]
    outside = plugged.ok("srun", "-N1", "sh", "-c", "ulimit -n; ulimit -s")
    assert plugged.ok("srun", "-N1", "sh-run", image, "sh", "-c", "ulimit -n; ulimit -s") == outside


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("sh", "-c", "exit 7"), 7, ""),
        (("sh", "-c", "kill -9 $$"), 137, ""),
        (("nosuch",), 127, "sh-run: cannot run 'nosuch': there is no such command inside"),
        (("/etc/os-release",), 126, "sh-run: cannot run '/etc/os-release': Permission denied"),
        (("/bin/strange",), 126, "sh-run: cannot run '/bin/strange': "),
    ],
)
def test_statuses(plugged, image, words, status, said):
    sweep(plugged)
    done = plugged("srun", "-N1", "-n2", "sh-run", image, *words)
    assert done.returncode == status
    assert done.stderr.count(said) >= (2 if said else 0)
    assert keys(plugged) == []


def test_what_cannot_be_handed_over_sh_run_says_for_each_rank(plugged):
    done = plugged("srun", "-N1", "-n2", "sh-run", "nosuch:1", "true")
    assert (done.returncode, done.stderr.count("sh-run: no image 'nosuch:1'")) == (125, 2)


def test_a_warning_is_given_once_on_a_node(plugged, image):
    done = plugged("srun", "-N1", "-n4", "-D", "/opt", "sh-run", image, "pwd")
    assert done.stdout == "/\n" * 4
    assert done.stderr.count("sh-run: warning: the current directory") == 1


def test_options_of_srun(plugged, image):
    words = ["srun", "-N1", f"--image={image}", "--volume=/usr:/a:ro", "--volume=/etc:/b c", "--env=A=1;2", "--env=B=3"]
    text = plugged.ok(
        *words, "sh-run", "sh", "-c", 'ls -d /a/bin; cat "/b c/hostname"; echo "$A,$B"; cat /etc/os-release'
    )
    assert text.split("\n")[0] == "/a/bin"
    assert text.split("\n")[-2:] == ["1;2,3", "NAME=box"]
    assert plugged.ok("srun", "-N1", "--writable", "sh-run", image, "sh", "-c", "echo 1 >/etc/new; cat /etc/new") == "1"
    done = plugged("srun", "-N1", "--module=nosuch", "sh-run", image, "true")
    assert (done.returncode, "no such module: 'nosuch'" in done.stderr) == (125, True)


def test_the_command_without_sh_run_stays_outside(plugged, image):
    assert plugged.ok("srun", "-N1", f"--image={image}", "cat", "/etc/os-release") != "NAME=box"


def test_the_same_words_as_variables_without_the_plugin(slurm, image):
    env = {"SHOEBOX_IMAGE": image, "SHOEBOX_VOLUME": "/usr:/a:ro\n/etc:/b", "SHOEBOX_ENV": "A=1;2\nB=3"}
    text = slurm.ok("srun", "-N1", "sh-run", "sh", "-c", "ls -d /a/bin /b/hosts; echo $A,$B", **env)
    assert text.split() == ["/a/bin", "/b/hosts", "1;2,3"]
    words = ("srun", "-N1", "sh-run", image, "--", "sh", "-c", "echo 1 >/etc/new; cat /etc/new")
    assert slurm.ok(*words, SHOEBOX_WRITABLE="10m", SHOEBOX_IMAGE="x") == "1"


@pytest.mark.parametrize("word", ["", "box-"])
def test_a_tag_that_moves_does_not_change_a_queued_job(slurm, built, named, word):
    (slurm.where / "plugstack.conf").write_text(f"required {built} {f'prefix={word}' if word else ''}\n")
    out = slurm.home / f"moved{word}"
    script = "echo $SHOEBOX_IMAGE; srun printenv SHOEBOX_IMAGE; srun -Q sh-run cat /etc/os-release"
    job = slurm.submit(f"#!/bin/sh\n#SBATCH --{word}image=app:1\n{script}\n", "-H", "-n1", "-o", out)
    named("2")
    slurm.ok("scontrol", "release", job)
    assert until(lambda: not slurm.queued(job), 30)
    assert out.read_text().split() == [f"{slurm.where}/store/sha256-{'1' * 64}.sqfs"] * 2 + ["NAME=box"]
    assert slurm.script("srun sh-run cat /etc/os-release", f"--{word}image=app:1") == "NAME=box\n"


def test_options_of_sbatch_that_are_given_again_all_count_in_its_steps(plugged, image):
    lines = f"#SBATCH --image={image} --volume=/usr:/a --volume=/etc:/b\n#SBATCH --volume=/bin:/c --env=A=1 --env=B=2"
    text = plugged.script(f"#!/bin/sh\n{lines}\nsrun sh-run sh -c 'ls -d /a/bin /b/hosts /c/sh; echo $A$B'\n")
    assert text.split() == ["/a/bin", "/b/hosts", "/c/sh", "12"]


def test_salloc_and_a_step_with_an_image_of_its_own(plugged, named, image):
    steps = f"srun sh-run cat /etc/os-release; srun --image={image} printenv SHOEBOX_IMAGE; printenv SHOEBOX_IMAGE"
    done = plugged("salloc", "-Q", "-n1", "--image=app:1", "sh", "-c", steps)
    assert done.stdout.split() == ["NAME=box", image, f"{plugged.where}/store/sha256-{'1' * 64}.sqfs"]


def test_an_environment_that_is_not_exported_still_has_the_image(plugged, image):
    for how in (("--export=NONE",), ("--export=PATH",)):
        text = plugged.script("printenv SHOEBOX_IMAGE SHOEBOX_ENV", *how, f"--image={image}", "--env=A=1")
        assert text.split() == [image, "A=1"]


HOSTILE = {
    "newline": ("--volume=/a:/b\n/etc:/c", "control character"),
    "escape": ("--image=\x1b[31m", "control character"),
    "tab": ("--env=A=\t", "control character"),
    "empty": ("--image=", "no value"),
    "no size": ("--writable=", "no value"),
    "long": ("--env=A=" + "x" * 20000, "longer than"),
    "absent": ("--image=nosuch:1", "no image 'nosuch:1'"),
    "option": ("--image=--help", "--help"),
    "not an image": ("--image=/etc/hosts", "/etc/hosts"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_what_is_hostile_too_long_or_absent_is_refused_at_submission(plugged, how):
    option, said = HOSTILE[how]
    for words in (("srun", "-N1", option, "true"), ("sbatch", option, "--wrap", "true")):
        done = plugged(*words)
        assert done.returncode != 0
        assert said in done.stderr
    assert plugged("squeue", "-h").stdout == ""


def test_an_option_counts_for_all_of_a_heterogeneous_job_and_is_given_before_its_parts(plugged, image):
    words = ["srun", "-n1", f"--image={image}", "sh-run", "sh", "-c", "echo $SLURM_HET_SIZE", ":", "-n1"]
    done = plugged(*words, f"--image={image}", "true")
    assert done.returncode != 0
    assert "--image: say it before the first ':'" in done.stderr
    assert plugged(*words, "sh-run", "true").stdout == "2\n"


def test_an_image_is_found_though_the_caller_ignores_its_children(plugged, image):
    words = ("env", "--ignore-signal=CHLD", "srun", "-N1", f"--image={image}", "printenv", "SHOEBOX_IMAGE")
    assert plugged.ok(*words) == image


def test_no_warnings_where_none_are_wanted(plugged, image):
    assert "warning" in plugged("srun", "-N1", "-D", "/opt", "sh-run", image, "true").stderr
    plugged.ok("srun", "-N1", "-D", "/opt", "sh-run", "-q", image, "true")


def test_what_a_task_prolog_sets_counts_as_without_the_plugin(plugged, image):
    prolog = plugged.home / "prolog"
    lines = [
        f"echo export {variable}" for variable in ("TMPDIR=/run/scratch", "A=prolog", "PATH=/none:$PATH", "B=prolog")
    ]
    prolog.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    prolog.chmod(0o755)
    scratch = plugged.root("n1") / "run/scratch"  # which is not inside
    scratch.mkdir()
    scratch.chmod(0o1777)
    show = ("sh", "-c", "echo $A $B $PATH ${TMPDIR-none}")
    words = ("srun", "-w", "n1", f"--task-prolog={prolog}", "sh-run")
    both = [plugged.ok(*words, *more, "--env", "A=own", image, *show, A="own") for more in ((), ("--no-join",))]
    assert both[0] == both[1]
    assert both[0].split()[:2] == ["own", "prolog"]
    assert both[0].endswith(" none")


def test_many_values_that_are_too_long_together_are_refused(plugged):
    done = plugged("srun", *["--env=A=" + "x" * 5000] * 4, "true")
    assert done.returncode != 0
    assert "longer than" in done.stderr


def test_prefix_renames_the_options(slurm, built, image):
    (slurm.where / "plugstack.conf").write_text(f"required {built} prefix=box-\n")
    assert slurm.ok("srun", "-N1", f"--box-image={image}", "sh-run", "cat", "/etc/os-release") == "NAME=box"
    assert slurm("srun", "-N1", f"--image={image}", "true").returncode != 0
    (slurm.where / "plugstack.conf").write_text(f"required {built} nonsense\n")
    assert "nonsense" in slurm("srun", "-N1", "true").stderr


def test_a_hundred_steps_leave_nothing(plugged, image):
    sweep(plugged)
    loop = f"for i in $(seq 100); do srun -Q sh-run {image} true || exit; done"
    done = plugged("salloc", "-Q", "-N1", "-n2", "sh", "-c", loop, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert plugged.clean()
    assert keys(plugged) == []


def running(slurm, image):
    """Start a batch job whose ranks run on both nodes; return it when they do."""
    ready = slurm.home / "ready"
    ready.unlink(missing_ok=True)
    job = slurm.submit(f"srun sh-run {image} sh -c 'echo >>{ready}; sleep 100'", "-N2", "-n4")
    assert until(lambda: ready.exists() and ready.read_text().count("\n") == 4, 30), slurm.logs()
    assert len(servers(slurm.where / "store/box.sqfs")) == 2
    return job


@pytest.mark.parametrize("how", ["scancel", "stepd"])
def test_however_a_step_ends_nothing_is_left(plugged, image, how):
    sweep(plugged)
    job = running(plugged, image)
    if how == "stepd":  # after which the tasks are nobody's, with proctrack/linuxproc
        plugged.kill("slurmstepd")
    plugged("scancel", job)
    assert until(lambda: not plugged.queued(job), 30)

    def clean():
        if how == "stepd":  # a rank may not have come so far before
            plugged.kill("sleep")
        return plugged.clean(0.2)

    assert until(clean, 30)
    assert servers(plugged.where / "store/box.sqfs") == []
    assert keys(plugged) == []


def test_a_daemon_of_a_step_keeps_its_root_until_it_ends(plugged, image):
    script = "setsid sh -c 'exec <&- >&- 2>&-; sleep 2; cp /etc/os-release copy' &"
    plugged.ok("srun", "-N1", "sh-run", image, "sh", "-c", script)
    assert until((plugged.home / "copy").exists, 10)
    assert until(lambda: (plugged.home / "copy").read_text() == "NAME=box\n")


def test_the_plugin_and_sh_join_install_and_uninstall(tmp_path):
    for how, there in (("install", 2), ("uninstall", 0)):
        subprocess.run(["make", "-s", f"{how}-spank", f"PREFIX={tmp_path}"], cwd=TREE, check=True)
        assert len(list(tmp_path.glob("libexec/shoebox/*"))) == there
    done = subprocess.run(
        ["make", "install-spank", f"PREFIX={tmp_path}", "SLURM=/none"], cwd=TREE, check=False, capture_output=True
    )
    assert re.search(rb"no '/none/include/slurm/spank.h'", done.stderr)


@pytest.fixture
def spied(slurm):
    """Return a function that puts a program of the user's making in sh-run's place."""

    def put(act=""):
        put_spy(slurm, act)
        (slurm.home / "seen").unlink(missing_ok=True)
        return slurm

    return put


def test_what_slurmstepd_starts_is_the_user_and_nothing_more(spied, image):
    cluster = spied()
    cluster("srun", "-N1", "-n1", "sh-run", image, "true")
    seen = (cluster.home / "seen").read_text()
    found = dict(line.split(":\t", 1) for line in seen.splitlines() if ":\t" in line)
    plain = cluster.ok("srun", "-N1", "-n1", "cat", "/proc/self/status")
    own = dict(line.split(":\t", 1) for line in plain.splitlines() if ":\t" in line)
    for name in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb", "SigBlk"):
        assert found[name] == own[name], name
    assert found["oom"] == "0" == cluster.ok("srun", "-N1", "-n1", "cat", "/proc/self/oom_score_adj")
    assert "0" not in found["Uid"].split()
    assert "is root" not in seen
    assert set(re.search("^fds (.*)", seen, re.MULTILINE)[1].split()) <= {"0", "1", "2", "3", "4", "5"}


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["/dev/null"] * 4, "sh-run: cannot "),
        (["/etc/passwd", *["/proc/self/ns/user"] * 3], "sh-run: cannot "),
        (["/dev/null"] * 2, ""),  # then each rank runs sh-run by itself
        (["/dev/null"] * 12, ""),
    ],
)
def test_whatever_slurmstepd_is_handed_only_the_users_own_tasks_see(spied, image, paths, said):
    cluster = spied(send(paths))
    done = cluster("srun", "-N1", "-n1", "sh-run", image, "echo", "ran")
    assert (done.returncode, done.stdout) == ((125, "") if said else (0, "ran\n")), done.stderr
    assert said in done.stderr
    assert cluster.ok("srun", "-N1", "-n1", "echo", "alive") == "alive"

"""step: who belongs together on a node, and the file in which they find each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import step, usage
from shoebox.command import Config
from shoebox.run import USAGE

SLURM = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}


def peers(words="", parent="77 1234", **env):
    return step.peers(usage.parse(USAGE, [*words.split(), "IMAGE"], stop_at_operand=True), env, lambda: parent)


def request(words="", image="debian:12", cwd="/home/ann/job", **env):
    options = usage.parse(USAGE, [*words.split(), image, "cmd", "--no-home"], stop_at_operand=True)
    return step.request(options, image, {"HOME": "/home/ann"} | env, cwd)


@pytest.mark.parametrize(
    "env",
    [
        SLURM,
        {"PBS_JOBID": "1.server"},
        {"LSB_JOBID": "5", "LSB_JOBINDEX": "2"},
        {"FLUX_JOB_ID": "f1", "FLUX_URI": "local:///x"},
        {
            "JOB_ID": "1",
            "SGE_TASK_ID": "undefined",
            "SGE_JOB_SPOOL_DIR": "/var/spool/gridengine/execd/n1/active_jobs/1.1",
        },
        {"_CONDOR_SCRATCH_DIR": "/var/lib/condor/execute/dir_4711", "_CONDOR_SLOT": "slot1_1"},
        {"PMIX_NAMESPACE": "prterun-node-1@1"},
        {"OMPI_MCA_ess_base_jobid": "33"},
        {"PMI_RANK": "0"},
    ],
)
def test_a_job_step_belongs_together_unless_it_is_told_not_to(env):
    why, words = peers(**env)
    assert why
    assert words
    assert peers("--no-join", **env) == ("--no-join", [])
    assert peers("--no-join --join", **env) == ("--no-join", [])


def test_outside_a_job_step_only_join_and_the_same_parent_bring_together():
    assert peers()[1] == []
    assert peers(SLURM_JOB_ID="12")[1] == []  # a batch script is no step
    assert peers(SLURM_STEP_ID="0")[1] == []
    assert peers("--join")[1] == ["parent", "77 1234"]
    assert peers("--join", parent="77 9")[1] != peers("--join")[1]
    assert peers("--join", parent="") == ("no parent is seen", [])


def test_a_job_id_is_no_job_of_grid_engines():
    assert peers(JOB_ID="1")[1] == []
    assert peers(JOB_ID="1", SGE_TASK_ID="undefined", SGE_ROOT="/opt/sge")[1] == []


def test_each_task_that_grid_engine_ends_by_itself_is_a_step():
    jobs = "/var/spool/gridengine/execd/n1/active_jobs"
    found = [peers(SGE_JOB_SPOOL_DIR=f"{jobs}/{name}")[1] for name in ("1.1", "1.2", "1.1/1.n1", "1.1/2.n1", "2.1")]
    assert len({tuple(words) for words in found}) == 5


def test_mpirun_tells_steps_apart_within_a_job_of_htcondors():
    condor = {"_CONDOR_SCRATCH_DIR": "/var/lib/condor/execute/dir_4711"}
    assert peers(**condor, PMIX_NAMESPACE="a")[1] != peers(**condor, PMIX_NAMESPACE="b")[1]


@pytest.mark.parametrize(
    "other",
    [
        {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "1"},
        {"SLURM_JOB_ID": "13", "SLURM_STEP_ID": "0"},
        SLURM | {"SLURM_CLUSTER_NAME": "two"},
        {"PBS_JOBID": "12"},
    ],
)
def test_another_step_is_another(other):
    assert peers(**other)[1] != peers(**SLURM)[1]


def test_a_rank_number_a_command_or_an_environment_does_not_tell_ranks_apart():
    assert peers(**SLURM, SLURM_PROCID="3") == peers(**SLURM)
    assert request("--env A=1 --workdir /x --quiet --clearenv --entrypoint=/x") == request()
    assert request(A="1", TMPDIR="/x", PATH="/y") == request()


@pytest.mark.parametrize(
    "words",
    [
        "-v /a:/b",
        "-v /a:/b:ro",
        "--no-home",
        "--writable",
        "--writable=1m",
        "--writable=/d",
        "--mount fuse",
        "--module x",
    ],
)
def test_what_changes_the_mounts_tells_ranks_apart(words):
    assert request(words) != request()
    assert request(words) == request(words)


def test_where_an_image_is_looked_up_tells_ranks_apart():
    assert request(SHOEBOX_PATH="/store") != request()
    assert request(HOME="/home/bob") != request()
    assert request(image="debian:13") != request()


def test_the_order_of_volumes_matters_and_that_of_other_options_does_not():
    assert request("-v /a:/x -v /b:/x") != request("-v /b:/x -v /a:/x")
    assert request("--no-home --writable") == request("--writable --no-home")


@pytest.mark.parametrize(
    ("words", "cwd", "other", "same"),
    [
        ("", "/home/ann/a", "/home/ann/b", True),
        ("", "/tmp/a", "/tmp/b", True),
        ("", "/usr/share", "/", True),
        ("", "/scratch/a", "/scratch/b", False),
        ("-v /gpfs:/scratch", "/scratch/a", "/scratch/b", True),
        ("--no-home", "/home/ann/a", "/home/ann/b", False),
        ("-v data:/data", "/home/ann/a", "/home/ann/b", False),
    ],
)
def test_the_current_directory_matters_as_far_as_it_changes_the_mounts(words, cwd, other, same):
    assert (request(words, cwd=cwd) == request(words, cwd=other)) == same


def test_a_relative_store_means_the_current_directory():
    assert request(SHOEBOX_PATH="store", cwd="/home/ann/a") != request(SHOEBOX_PATH="store", cwd="/home/ann/b")


def test_file_names_are_file_names_and_differ_with_the_words():
    seen = {step.file_name(words) for words in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["", "a", "b"], [])}
    assert len(seen) == 6
    assert all(map(step.is_file_name, seen))
    assert not step.is_file_name("x" * 32)
    assert not step.is_file_name("a")


TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)))
LISTS = st.lists(TEXT)


@given(LISTS, st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT), LISTS, LISTS, TEXT, TEXT)
def test_what_is_packed_is_unpacked(words, env, entrypoint, cmd, working_dir, home):
    rules = [("append", "PATH", "/opt", "site.conf, line 1"), ("unset", "X", "", "")]
    holder = step.Holder(home, Config(env, entrypoint, cmd, working_dir, scripts=words), rules)
    members = [(1, "22"), (333, "4")]
    data = step.pack(words, ("user:[1]", "mnt:[2]"), holder) + b"".join(map(step.pack_member, members))
    found = step.unpack(data)
    assert (found.words, found.spaces, found.members) == (words, ("user:[1]", "mnt:[2]"), members)
    assert (found.holder.home, found.holder.rules) == (home, rules)
    said = found.holder.config
    assert (said.env, said.entrypoint, said.cmd, said.working_dir) == (env, entrypoint, cmd, working_dir)
    assert said.scripts == words


@given(st.data())
def test_a_file_that_is_cut_off_is_an_error_or_lacks_members(data):
    whole = step.pack(["a"], ("u", "m"), step.Holder("/h", Config({"A": "1"}))) + step.pack_member((12, "345"))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        assert step.unpack(cut).members == []
    except ValueError:
        assert len(cut) < len(whole) - len(step.pack_member((12, "345")))


@given(st.binary(max_size=200))
def test_garbage_is_an_error_or_harmless(data):
    try:
        step.unpack(data)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("env", "names"),
    [
        (SLURM, ["12.0"]),
        ({"SLURM_JOB_ID": "12"}, ["12.batch"]),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "4294967291"}, ["12.batch"]),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "4294967290"}, ["12.interactive"]),
        (SLURM | {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}, ["12.0", "11_3.0"]),
        ({"PBS_JOBID": "5.server"}, ["5.server"]),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "2"}, ["5[2]"]),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "0"}, ["5"]),
        ({"FLUX_JOB_ID": "f1", "FLUX_URI": "local:///x"}, ["f1"]),
        ({"JOB_ID": "7", "SGE_TASK_ID": "undefined", "SGE_JOB_SPOOL_DIR": "/x"}, ["7"]),
        ({"JOB_ID": "7", "SGE_TASK_ID": "3", "SGE_JOB_SPOOL_DIR": "/x"}, ["7[3]"]),
        ({"JOB_ID": "7"}, []),
        ({"_CONDOR_SCRATCH_DIR": "/x/dir_1"}, []),
        ({"PMIX_NAMESPACE": "prterun-node-1@1"}, []),
        ({}, []),
    ],
)
def test_a_process_is_called_as_its_batch_system_calls_its_job(env, names):
    assert step.names(env) == names


@pytest.mark.parametrize(
    ("asked", "name", "is_it"),
    [
        ("12", "12.0", True),
        ("12.0", "12.0", True),
        ("12.0", "12.01", False),
        ("1", "12.0", False),
        ("12.1", "12.0", False),
        ("11", "11_3.0", True),
        ("11_3", "11_3.0", True),
        ("11_3", "11_30.0", False),
        ("5", "5[2]", True),
        ("5[2]", "5[2]", True),
        ("5", "5.server", True),
        ("", "12.0", False),
    ],
)
def test_a_job_is_asked_for_by_its_name_or_the_beginning_of_it(asked, name, is_it):
    assert step.is_called(asked, [name]) is is_it


@given(st.text(), st.text())
def test_any_name_is_called_by_itself_and_no_other_is_but_by_its_beginning(asked, name):
    assert step.is_called(name, [name])
    assert not step.is_called(asked, [name]) or name.startswith(asked)


def test_a_directory_that_a_node_cache_names_counts_with_the_one_that_it_is_relative_to():
    for words, matters in (
        ("on=tmpfs", False),
        ("on=/x", False),
        ("on=tmpfsdir", True),
        ("on=x", True),
        ("fs=xfs,ON=x,size=1G", True),
    ):
        asked = [request(f"--node-cache /on=d:size=1G,{words}", cwd=cwd) for cwd in ("/", "/usr")]
        assert (asked[0] != asked[1]) == matters, words

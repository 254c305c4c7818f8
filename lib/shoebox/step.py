"""Steps: which processes of a node belong together, and the file in which they find each other. Pure.

The file is fields that each end in NUL: lists, each behind its length (the request; what the first rank found; the
image's Env, Entrypoint, Cmd and scripts; the site's rules), then of each process in the container `PID START`.
"""

from __future__ import annotations

import os

from .command import Config
from .paths import pmix, shared, under, wants_cwd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .environment import Rule
    from .usage import Options

    Member = tuple[int, str]  # pid, and when it began, as /proc/PID/stat has it
    Spaces = tuple[str, str]  # the user and the mount namespace, by their names in /proc/PID/ns

# What names a step: the first variable must be there, the others tell it from others with the same number.
_STEPS = (
    ("Slurm step", ("SLURM_STEP_ID", "SLURM_JOB_ID", "SLURM_CLUSTER_NAME")),
    ("PBS job", ("PBS_JOBID",)),
    ("LSF job", ("LSB_JOBID", "LSB_JOBINDEX")),
    ("Flux job", ("FLUX_JOB_ID", "FLUX_URI")),
    # Not JOB_ID: each `qrsh -inherit` of a job has this directory of its own, and its end kills all that it started.
    ("Grid Engine task", ("SGE_JOB_SPOOL_DIR",)),
    ("mpirun", ("PMIX_NAMESPACE",)),
    ("mpirun", ("OMPI_MCA_ess_base_jobid",)),
    ("mpirun", ("OMPI_MCA_orte_ess_jobid",)),
    ("HTCondor job", ("_CONDOR_SCRATCH_DIR",)),  # of one on this node at a time
)
# Batch systems' names for jobs: the variable that has it, one that has an array's index, and one that must be there.
_JOBS = (
    ("PBS_JOBID", "", "PBS_JOBID"),
    ("LSB_JOBID", "LSB_JOBINDEX", "LSB_JOBID"),
    ("FLUX_JOB_ID", "", "FLUX_JOB_ID"),
    ("JOB_ID", "SGE_TASK_ID", "SGE_JOB_SPOOL_DIR"),  # others' too may have a JOB_ID
)
_NO_INDEX = ("", "0", "undefined")  # LSF's and Grid Engine's for jobs that are no arrays
_PMI = ("PMI_RANK", "PMI_ID", "PMI_FD")  # of Hydra's, whose proxy is the parent of all
# Slurm's numbers for steps that have names: SLURM_BATCH_SCRIPT and the like of slurm.h.
_NAMED = {"": "batch", "4294967290": "interactive", "4294967291": "batch", "4294967292": "extern"}
_PLACES = ("SHOEBOX_PATH", "SHOEBOX_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")  # where an image's name is looked up
# The options that are each rank's own. Any other, later ones included, gives it a container of its own.
_OWN = frozenset(
    ("clearenv", "entrypoint", "env", "env-file", "explain", "image", "join", "no-join", "quiet", "workdir")
)
_PRIME = (1 << 128) - 159


class Holder:
    """What the first rank leaves for the others.

    home: the home directory's name. rules: the site's, for the environment.
    """

    __slots__ = ("config", "home", "rules")

    def __init__(self, home: str, config: Config, rules: Sequence[Rule] = ()) -> None:
        """Hold the parts."""
        self.home = home
        self.config = config
        self.rules = rules


class Contents:
    """What the file says: the request's words, the namespaces, what the first rank left, the members."""

    __slots__ = ("holder", "members", "spaces", "words")

    def __init__(self, words: list[str], spaces: Spaces, holder: Holder, members: list[Member]) -> None:
        """Hold the parts."""
        self.words = words
        self.spaces = spaces
        self.holder = holder
        self.members = members


def has_group(text: bytes) -> bool:
    """Tell from /proc/self/cgroup whether Slurm keeps each step in a control group, which goes with it: cgroups(7)."""
    return b"/job_" in text


def whole_job(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that is one for all steps of a job."""
    return {**env, "SLURM_STEP_ID": "any"}


def peers(options: Options, env: Mapping[str, str], parent: Callable[[], str]) -> tuple[str, list[str]]:
    """Return who belongs together, for people and as words; no words if everyone is alone, and why.

    parent: tells the parent's pid and start time, "" if there is no telling.
    """
    for name in ("no-join", "sshd"):
        if options.flag(name):
            return f"--{name}", []
    for name, variables in _STEPS:
        if env.get(variables[0]) and not (name.startswith("Slurm") and not env.get("SLURM_JOB_ID")):
            words = [env.get(variable, "") for variable in variables]
            return f"{name} {'.'.join(word for word in reversed(words) if word)}", [name, *words]
    if any(map(env.get, _PMI)) or options.flag("join"):
        words = ["parent", parent()]
        why = "--join" if options.flag("join") else "an MPI job"
        return (
            (f"{why}: the children of process {words[1].split()[0]}", words) if words[1] else ("no parent is seen", [])
        )
    return "no job step, and no --join", []


def names(env: Mapping[str, str]) -> list[str]:
    """Return what a batch system calls that to which a process with these variables belongs: JOB, or JOB.STEP."""
    found = []
    if env.get("SLURM_JOB_ID"):
        number = env.get("SLURM_STEP_ID", "")
        step = _NAMED.get(number, number)
        found.append(f"{env['SLURM_JOB_ID']}.{step}")
        if env.get("SLURM_ARRAY_JOB_ID"):
            found.append(f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}.{step}")
    for job, array, needed in _JOBS:
        if env.get(job) and env.get(needed):
            index = env.get(array, "")
            found.append(env[job] + (f"[{index}]" if index not in _NO_INDEX else ""))
    return found


def is_called(asked: str, names: Sequence[str]) -> bool:
    """Tell whether one of `names` is the one asked for, or a part of it: a step of a job, a task of an array."""
    return any(name == asked or (name.startswith(asked) and name[len(asked)] in "._[") for name in names)


def request(options: Options, image: str, env: Mapping[str, str], cwd: str) -> list[str]:
    """Return all that the mounts follow from. image: its name, or its absolute path.

    The current directory is among it if it adds a mount, or if something is named relative to it.
    """
    volumes = options.all("volume")
    sources = ("LD_LIBRARY_PATH",) if options.flag("mpi") else ()
    words = [image, *(f"{name}={env.get(name, '')}" for name in ("HOME", "SHOEBOX_MODULE", *_PLACES, *sources))]
    words += pmix(env)
    for name, values in sorted(options.given()):
        if name not in _OWN:
            words += [f"--{name}", *values]
    named = [*volumes, *env.get("SHOEBOX_PATH", "").split(":"), env.get("SHOEBOX_CACHE", "")]
    named += [value for value in options.all("writable") if "/" in value]
    if options.all("node-cache"):
        from . import nodecache  # noqa: PLC0415 - few want one

        named += nodecache.places(options.all("node-cache"))
    shown = ["/tmp", *(volume.split(":")[1] for volume in volumes if ":" in volume)]  # noqa: S108 - not a file of ours
    home = env.get("HOME", "")
    if shared(home) and not options.flag("no-home"):
        shown.append(home)
    matters = wants_cwd(cwd) and not any(under(cwd, path) for path in shown if path)
    if matters or any(path and not path.startswith("/") for path in named):
        words.append(cwd)
    return words


def file_name(words: Sequence[str]) -> str:
    """Return a file name for a request. Another request may share it, hardly ever; the file itself has all the words.

    Not of hashlib: importing that costs as much as joining does, and what it has differs from Python to Python.
    """
    return f"{int.from_bytes(packed(words), 'big') % _PRIME:032x}"


def is_file_name(name: str) -> bool:
    """Tell whether file_name might have returned this."""
    return len(name) == 32 and not set(name) - set("0123456789abcdef")


def pack(words: Sequence[str], spaces: Spaces, holder: Holder) -> bytes:
    """Write the file, but for the members."""
    said = holder.config
    return b"".join(
        map(
            packed,
            (
                words,
                (*spaces, holder.home, said.working_dir),
                [f"{name}={value}" for name, value in said.env.items()],
                said.entrypoint,
                said.cmd,
                said.scripts,
                [field for rule in holder.rules for field in rule],
            ),
        )
    )


def pack_member(member: Member) -> bytes:
    """Write a member, to be appended."""
    return b"%d %s\0" % (member[0], member[1].encode())


def unpack(data: bytes) -> Contents:
    """Read the file. Raises ValueError."""
    fields = data.split(b"\0")[:-1]  # what has no NUL behind it was never finished
    lists = []
    for _ in range(7):
        length = int(fields[0]) if fields else -1
        if not 0 <= length < len(fields):
            raise ValueError("it is cut off")
        lists.append(list(map(os.fsdecode, fields[1 : length + 1])))
        del fields[: length + 1]
    words, (user, mounts, home, working_dir), env, entrypoint, cmd, scripts, rules = lists
    pairs = (entry.partition("=") for entry in env)
    config = Config({name: value for name, _, value in pairs}, entrypoint, cmd, working_dir, scripts=scripts)
    ruled = [(rules[at], rules[at + 1], rules[at + 2], rules[at + 3]) for at in range(0, len(rules) - 3, 4)]
    members = [(int(pid), start.decode()) for pid, _, start in (field.partition(b" ") for field in fields)]
    return Contents(words, (user, mounts), Holder(home, config, ruled), members)


def first(data: bytes) -> tuple[list[str], bytes]:
    """Return the list that data begins with, and what follows it. Raises ValueError."""
    count, _, rest = data.partition(b"\0")
    fields = rest.split(b"\0", int(count))
    return list(map(os.fsdecode, fields[:-1])), fields[-1]


def packed(words: Sequence[str]) -> bytes:
    """Write a list."""
    return b"%d\0" % len(words) + b"".join(os.fsencode(word) + b"\0" for word in words)

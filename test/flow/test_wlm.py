"""The files for batch systems that do not run here, given what the batch systems' documentation says they are given."""

from __future__ import annotations

import os
import pwd
import re
import runpy
import shutil
import sys
import types
from collections import UserDict
from pathlib import Path

import pytest
from fixtures.installed import TREE
from fixtures.rootfs import box, tree  # noqa: F401 - fixtures

HOSTILE = ["no/such:1", "x;id", "$(id)", "`id`", 'a" b', "a\nb", "\\", "--help", "-"]
# What a store may be called, and no file that a shell reads may hold unquoted.
ODD = 'od"d;$(id)'


@pytest.fixture
def store(cmd, box, tmp_path):  # noqa: F811 - the fixture
    """Return a store with app:1, and odd:1 whose path has characters of shells'."""
    store = tmp_path / "store"
    for name, digest, where in (("app", "a", store), ("odd", "b", tmp_path / ODD)):
        (store / f"docker.io/library/{name}").mkdir(parents=True)
        where.mkdir(exist_ok=True)
        shutil.copy(box, where / f"sha256-{digest * 64}.sqfs")
        (store / f"docker.io/library/{name}/1.sqfs").symlink_to(where / f"sha256-{digest * 64}.sqfs")
    cmd.env["SHOEBOX_PATH"] = str(store)
    return store


@pytest.fixture
def app(store):
    """Return the path of app:1."""
    return f"{store}/sha256-{'a' * 64}.sqfs"


@pytest.fixture
def wlm(prefix):
    """Return where the files are installed."""
    return prefix / "share/shoebox/wlm"


def test_they_are_installed_and_name_the_installed_sh_run(prefix, wlm):
    files = [path.relative_to(TREE / "lib") for path in (TREE / "lib/wlm").rglob("*") if path.is_file()]
    assert len(files) >= 7
    for path in files:
        if "__pycache__" not in path.parts:
            made = wlm.parent / path
            assert f"{prefix}/bin/sh-run" in made.read_text()
            assert os.access(made, os.X_OK) == (path.suffix != ".py")


@pytest.mark.parametrize("name", sorted(path.name for path in (TREE / "lib/wlm").iterdir() if path.is_dir()))
def test_each_has_a_page_and_says_whether_it_ran(name):
    page = (TREE / f"doc/shoebox-{name}.7").read_text()
    assert ("Never run here" in page) == (name != "gridengine")


# --- Torque: arguments and stdin of a submit filter are in appendix J, "Job submission filter", of Adaptive Computing's
# Torque Administrator's Guide 6.1.1.


def filtered(cmd, wlm, script):
    return cmd(wlm / "torque/submitfilter", "-l", "nodes=1", stdin=script)


def test_torques_filter_resolves_directives_and_touches_nothing_else(cmd, wlm, app):
    script = "#!/bin/sh\n#PBS -l nodes=1:ppn=2\n#PBS -v A=1,SHOEBOX_IMAGE={},B=x y\n\n# \\n %s\nsh-run ./a\n"
    script += "#PBS -v SHOEBOX_IMAGE=app:1\n"  # no directive any more
    done = filtered(cmd, wlm, script.format("app:1"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == script.format(app)
    assert filtered(cmd, wlm, done.stdout).stdout == done.stdout, "it may run more than once"


def test_torques_filter_keeps_a_script_without_an_image_or_a_last_newline(cmd, wlm):
    assert filtered(cmd, wlm, "#!/bin/sh\n#PBS -N x\necho 'a\\tb'").stdout == "#!/bin/sh\n#PBS -N x\necho 'a\\tb'\n"
    assert filtered(cmd, wlm, "#PBS -N x").stdout == "#PBS -N x\n"
    assert filtered(cmd, wlm, "").stdout == ""


@pytest.mark.parametrize("hostile", [word for word in HOSTILE if "\n" not in word])
def test_torques_filter_refuses_what_is_no_image(cmd, wlm, store, hostile):
    done = filtered(cmd, wlm, f"#PBS -v SHOEBOX_IMAGE={hostile}\n")
    assert done.returncode == 255
    assert "sh-run: " in done.stderr


def test_torques_filter_refuses_a_path_that_is_no_word(cmd, wlm, store):
    done = filtered(cmd, wlm, "#PBS -v SHOEBOX_IMAGE=odd:1\n")
    assert done.returncode == 255
    assert "cannot stand in a directive" in done.stderr


# --- LSF: the variables and the file's form are in "External job submission and execution controls" of Administering
# IBM Platform LSF 9.1.3 ("esub writes the variables to be modified to this file in the same format used in
# LSB_SUB_PARM_FILE": NAME="value"); arguments, in "Command arguments for job submission and execution controls".


def esub(cmd, wlm, tmp_path, *words, **env):
    changes = tmp_path / "envfile"
    parameters = tmp_path / "parameters"
    parameters.write_text('LSB_SUB_QUEUE="normal"\nLSB_SUB_COMMAND_LINE="myjob"\n')
    env |= {"LSB_SUB_MODIFY_ENVFILE": str(changes), "LSB_SUB_PARM_FILE": str(parameters), "LSB_SUB_ABORT_VALUE": "97"}
    done = cmd(wlm / "lsf/esub.shoebox", *words, **env)
    return done, changes.read_text() if changes.exists() else ""


def test_lsfs_esub_resolves_its_argument_or_the_variable(cmd, wlm, app, tmp_path):
    assert esub(cmd, wlm, tmp_path, "app:1")[1] == f'SHOEBOX_IMAGE="{app}"\n'
    (tmp_path / "envfile").unlink()
    done, changes = esub(cmd, wlm, tmp_path, SHOEBOX_IMAGE="app:1")
    assert (done.returncode, done.stdout, changes) == (0, "", f'SHOEBOX_IMAGE="{app}"\n')


def test_lsfs_esub_leaves_other_jobs_alone(cmd, wlm, tmp_path):
    done, changes = esub(cmd, wlm, tmp_path)
    assert (done.returncode, done.stdout, done.stderr, changes) == (0, "", "", "")


@pytest.mark.parametrize("hostile", [*HOSTILE, "odd:1"])
def test_lsfs_esub_refuses_what_is_no_image_or_cannot_be_passed_on(cmd, wlm, store, tmp_path, hostile):
    done, changes = esub(cmd, wlm, tmp_path, hostile)
    assert (done.returncode, changes) == (97, "")
    assert done.stderr.startswith("sh-run: ")


# --- HTCondor: the wrapper's words and variables are in USER_JOB_WRAPPER of "Configuration macros" and in "Services for
# running jobs" of the HTCondor manual: the job ad is a file in the form of `condor_q -l`.


def wrapped(cmd, wlm, tmp_path, ad, *words):
    scratch = tmp_path / "dir_4711"
    scratch.mkdir(exist_ok=True)
    (scratch / ".job.ad").write_text(f'Cmd = "/bin/x"\n{ad}ClusterId = 1\nProcId = 0\n')
    env = {"_CONDOR_JOB_AD": f"{scratch}/.job.ad", "_CONDOR_SCRATCH_DIR": str(scratch), "_CONDOR_SLOT": "slot1_1"}
    return cmd(wlm / "htcondor/job-wrapper", *words, cwd=scratch, **env)


def test_htcondors_wrapper_runs_a_job_in_the_image_of_its_ad(cmd, wlm, store, tmp_path):
    inside = ("/bin/sh", "-c", 'cat /etc/os-release; echo "$@"; pwd; exit 7', "x", "a  b", "--", "$c")
    for ad in ('ShoeboxImage = "app:1"\n', 'shoeboximage = "app:1"\n'):
        done = wrapped(cmd, wlm, tmp_path, ad, *inside)
        assert (done.returncode, done.stderr) == (7, "")
        assert done.stdout == f"NAME=box\na  b -- $c\n{tmp_path}/dir_4711\n"


def test_htcondors_wrapper_runs_a_command_whose_first_argument_is_two_dashes(cmd, wlm, store, tmp_path):
    assert wrapped(cmd, wlm, tmp_path, 'ShoeboxImage = "app:1"\n', "/bin/echo", "--", "a").stdout == "-- a\n"


def test_htcondors_wrapper_runs_other_jobs_outside(cmd, wlm, tmp_path):
    done = wrapped(cmd, wlm, tmp_path, "", "/bin/sh", "-c", "exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@pytest.mark.parametrize("hostile", [*(word for word in HOSTILE if "\n" not in word), "a\\nb"])
def test_htcondors_wrapper_refuses_what_is_no_image(cmd, wlm, store, tmp_path, hostile):
    quoted = hostile.replace("\\", "\\\\").replace('"', '\\"')
    done = wrapped(cmd, wlm, tmp_path, f'ShoeboxImage = "{quoted}"\n', "/bin/echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("sh-run: ")


# --- OpenPBS: the events, Variable_List and SystemExit are those of pbs_module(7B) and of the PBS Hooks Guide, the
# attribute user = pbsuser that of pbs_hook_attributes(7B).


class Event:
    """pbs.event(), as far as the hook looks."""

    def __init__(self, kind, requestor="", **variables):
        self.type = kind
        self.requestor = requestor
        self.job = types.SimpleNamespace(Variable_List=UserDict(variables))

    def reject(self, why):
        raise SystemExit(why)


def hook(monkeypatch, wlm, event):
    """Run the hook for an event, as PBS's Python does; return why it was rejected, if it was."""
    module = types.ModuleType("pbs")
    module.QUEUEJOB, module.EXECJOB_EPILOGUE = 1, 256
    module.event = lambda: event
    module.LOG_WARNING, module.logmsg = 4, lambda level, text: None
    monkeypatch.setitem(sys.modules, "pbs", module)
    try:
        runpy.run_path(str(wlm / "pbs/shoebox.py"))
    except SystemExit as end:
        return end.code
    return None


def me():
    return pwd.getpwuid(os.getuid()).pw_name


def test_openpbs_hook_resolves_when_a_job_is_queued(monkeypatch, wlm, store, app):
    event = Event(1, me(), SHOEBOX_IMAGE="app:1", SHOEBOX_PATH=str(store), PBS_O_HOME="/nowhere", OTHER="x")
    assert hook(monkeypatch, wlm, event) is None
    assert event.job.Variable_List["SHOEBOX_IMAGE"] == app


def test_openpbs_hook_leaves_other_jobs_alone(monkeypatch, wlm):
    event = Event(1, "no-such-user", OTHER="x")
    assert hook(monkeypatch, wlm, event) is None
    assert dict(event.job.Variable_List) == {"OTHER": "x"}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_openpbs_hook_rejects_what_is_no_image(monkeypatch, wlm, store, hostile):
    event = Event(1, me(), SHOEBOX_IMAGE=hostile, SHOEBOX_PATH=str(store))
    assert hook(monkeypatch, wlm, event).startswith("sh-run: ")
    assert event.job.Variable_List["SHOEBOX_IMAGE"] == hostile


def test_openpbs_hook_rejects_a_user_whom_the_server_does_not_know(monkeypatch, wlm):
    assert "'no-such-user'" in hook(monkeypatch, wlm, Event(1, "no-such-user", SHOEBOX_IMAGE="app:1"))


@pytest.mark.root
def test_openpbs_hook_run_by_root_opens_what_the_user_may_open(monkeypatch, wlm, store, app):
    for folder in [store, *store.parents[:3]]:
        folder.chmod(0o711)
    event = Event(1, "nobody", SHOEBOX_IMAGE="app:1", SHOEBOX_PATH=str(store))
    assert hook(monkeypatch, wlm, event) is None
    assert event.job.Variable_List["SHOEBOX_IMAGE"] == app
    (store / "docker.io").chmod(0o700)
    event = Event(1, "nobody", SHOEBOX_IMAGE="app:1", SHOEBOX_PATH=str(store))
    assert hook(monkeypatch, wlm, event).startswith("sh-run: ")


@pytest.mark.parametrize("kind", [1, 256])
def test_openpbs_hook_without_an_sh_run_says_so_and_holds_no_node_back(monkeypatch, wlm, tmp_path, kind):
    (tmp_path / "pbs").mkdir()
    text = re.sub('\nSH_RUN = ".*"', '\nSH_RUN = "/nowhere/sh-run"', (wlm / "pbs/shoebox.py").read_text())
    (tmp_path / "pbs/shoebox.py").write_text(text)
    said = hook(monkeypatch, tmp_path, Event(kind, me(), SHOEBOX_IMAGE="app:1"))
    assert ("sh-run: cannot look for the image: " in said) if kind == 1 else (said is None)


def test_openpbs_hook_sweeps_when_a_job_ends(monkeypatch, wlm, cmd, store):
    key = killed(cmd)
    monkeypatch.setenv("XDG_RUNTIME_DIR", cmd.env["XDG_RUNTIME_DIR"])
    assert hook(monkeypatch, wlm, Event(256)) is None
    assert not key.exists()


# --- Flux: CLIPlugin's interface is flux/cli/plugin.py of flux-core 0.88; its bindings need libflux-core, which no
# package of Debian 12 has. The variables of a task are in flux-environment(7); jobspec.environment is Jobspec.py's.


def flux(monkeypatch, wlm, environment):
    module = types.ModuleType("flux.cli.plugin")
    module.CLIPlugin = type("CLIPlugin", (), {"__init__": lambda self, prog: setattr(self, "prog", prog)})
    for name in ("flux", "flux.cli"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "flux.cli.plugin", module)
    plugin = runpy.run_path(str(wlm / "flux/shoebox.py"))["Shoebox"]("run")
    plugin.modify_jobspec(None, types.SimpleNamespace(environment=environment))
    return environment


def test_flux_plugin_resolves_the_image_of_a_jobspec(monkeypatch, wlm, cmd, app):
    env = cmd.env | {"SHOEBOX_IMAGE": "app:1"}
    assert flux(monkeypatch, wlm, dict(env)) == env | {"SHOEBOX_IMAGE": app}


def test_flux_plugin_leaves_other_jobs_alone(monkeypatch, wlm):
    assert flux(monkeypatch, wlm, {"A": "1"}) == {"A": "1"}
    assert flux(monkeypatch, wlm, None) is None


@pytest.mark.parametrize("hostile", HOSTILE)
def test_flux_plugin_refuses_what_is_no_image(monkeypatch, wlm, cmd, store, hostile):
    with pytest.raises(ValueError, match=r"^sh-run: "):
        flux(monkeypatch, wlm, cmd.env | {"SHOEBOX_IMAGE": hostile})


# --- Grid Engine, which runs in test/wlm: the lines are those of jsv(1).


def test_grid_engines_verifier_carries_nothing_from_one_job_to_the_next(cmd, wlm, app, tmp_path):
    (tmp_path / "other/docker.io/library/own").mkdir(parents=True)
    (tmp_path / "other/docker.io/library/own/1.sqfs").symlink_to(app)
    job = "START\nENV ADD SHOEBOX_IMAGE {}\nBEGIN\n"
    given = job.format("own:1").replace("BEGIN", f"ENV ADD SHOEBOX_PATH {tmp_path}/other\nBEGIN")
    said = cmd.ok(wlm / "gridengine/jsv", stdin=given + job.format("app:1") + "START\nBEGIN\nQUIT\n")
    found = ["SEND ENV", "STARTED", f"ENV MOD SHOEBOX_IMAGE {app}", "RESULT STATE CORRECT"]
    assert said.splitlines() == [*found, *found, "SEND ENV", "STARTED", "RESULT STATE ACCEPT"]


# --- What all of them share.


def killed(cmd):
    """Kill a process that was alone in its container; return the file in which others would have found it."""
    with cmd.start("sh-run", "--join", "app:1", "sh", "-c", "echo; exec sleep 1000") as process:
        process.stdout.readline()
        process.kill()
    (key,) = [path for path in (cmd.home / ".run").glob("shoebox-*/*") if re.fullmatch("[0-9a-f]{32}", path.name)]
    return key


def test_sweep_removes_what_the_killed_have_left_and_leaves_the_living(cmd, store):
    key = killed(cmd)
    with cmd.start("sh-run", "--join", "app:1", "--", "cat") as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        process.stdout.readline()
        key.parent.joinpath("notes").write_text("the user's own")
        assert cmd.ok("sh-run", "--sweep") == ""
        assert len([path for path in key.parent.iterdir() if path.name != "notes"]) == 1
    assert cmd.ok("sh-run", "--sweep") == ""
    assert [path.name for path in key.parent.iterdir()] == ["notes"]


def test_sweep_removes_what_any_of_ours_left_who_was_killed_wherever_it_lies(cmd):
    us, gone = os.getpid(), 1 << 30
    made, kept = [], []
    for place in (cmd.home / ".run", Path("/dev/shm")):
        folder = place / f"shoebox-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        made += [folder / f"account-{gone}-passwd", folder / f"part-{gone}", folder / f"incoming-file{us}"]
        made.append(folder / f"{os.urandom(16).hex()}")
        kept += [folder / f"account-{us}-passwd", folder / f"part-{us}", folder / f"notes-{us}"]
        for path in made[-4:] + kept[-3:]:
            path.write_bytes(b"copy\0")
        made.append(folder / f"incoming-dead{us}")
        made[-1].symlink_to(f"/proc/{gone}/fd/1")
        kept.append(folder / f"incoming-live{us}")
        kept[-1].symlink_to(f"/proc/{us}/fd/1")
    assert cmd.ok("sh-run", "--sweep") == ""
    there = [path for path in kept if os.path.lexists(path)]
    for path in there:
        path.unlink()
    assert there == kept
    assert [path for path in made if os.path.lexists(path)] == []


@pytest.mark.root
def test_sweep_does_not_mind_a_directory_of_another_users(cmd):
    place = cmd.home / ".run/shoebox-0"
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    (place / ("0" * 32)).write_bytes(b"copy\0")
    assert cmd.ok("sh-run", "--sweep") == ""
    assert (place / ("0" * 32)).exists()


def test_sweep_makes_nothing_and_asks_for_nothing(cmd):
    assert cmd.ok("sh-run", "--sweep", HOME=None) == ""
    assert list((cmd.home / ".run").iterdir()) == []


def test_the_epilog_never_fails(cmd, wlm, store):
    key = killed(cmd)
    assert cmd.ok(wlm / "epilog", "1.server", "ann", "users") == ""
    assert not key.exists()
    copy = cmd.home / "epilog"
    copy.write_text((wlm / "epilog").read_text().replace("bin/sh-run", "bin/no-such"))
    copy.chmod(0o755)
    assert cmd(copy).returncode == 0

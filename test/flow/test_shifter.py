"""What Shifter's users type, and have in their scripts, runs as it stands."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures import tutorial
from fixtures.images import push
from fixtures.installed import own_bin
from fixtures.registry import registry  # noqa: F401
from fixtures.rootfs import until

if TYPE_CHECKING:
    from fixtures.installed import Shell
    from fixtures.registry import Place

# The stand-in for an MPI base's compiler: what it makes runs, and says what it was made of.
MPICC = '#!/bin/sh\n[ "$1" = -o ] && { echo "#!/bin/sh"; echo "echo made of $3"; } >"$2" && chmod 755 "$2"\n'
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
ROW = r"(\S+) +(\S+) +READY +([0-9a-f]{10})   (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d) (\S+) *"


@pytest.fixture(scope="module")
def hub(registry: Place, tree: Path) -> Place:  # noqa: F811
    """Return a registry with the tutorial's images."""
    push(registry.url, "scanon/myapp", "1.1", tutorial.boxed(tree, myapp_app="#!/bin/sh\necho myapp 1.1 $*\n"))
    for name in ("busybox", "alpine"):
        push(registry.url, f"library/{name}", "latest", tutorial.boxed(tree, etc_name=name))
    push(registry.url, "nersc/mpi-ubuntu", "14.04", tutorial.boxed(tree, bin_mpicc=MPICC))
    return registry


@pytest.fixture
def site(hub: Place, cmd: Shell, prefix: Path, tmp_path: Path) -> Shell:
    """Return a user's shell at a site that has all commands, a store, and the registry for Docker Hub."""
    ours, place = own_bin(prefix).parent, tmp_path / "shoebox"
    shutil.copytree(ours / "bin", place / "bin")
    shutil.copytree(ours / "lib/shoebox", place / "lib/shoebox", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "lib/site-packages").symlink_to(ours / "lib/site-packages")
    paths = place / "lib/shoebox/paths.py"
    text, count = re.subn(r"(?m)^SITE = .*$", f"SITE = {str(place / 'etc')!r}", paths.read_text())
    assert count == 1
    paths.write_text(text)
    (place / "etc").mkdir()
    (place / "etc/registries.toml").write_text(f'[registry."docker.io"]\nurl = "{hub.url}"\n')
    (tmp_path / "images").mkdir()
    cmd.env.update(PATH=f"{place}/bin:{cmd.env['PATH']}", SHOEBOX_PATH=f"{tmp_path}/images", SHELL="/bin/bash")
    return cmd


@pytest.fixture
def pulled(site: Shell) -> Shell:
    """Return the shell, with the tutorial's application pulled."""
    assert site.ok("shifterimg", "pull", "scanon/myapp:1.1").endswith(
        " Pulling Image: docker:scanon/myapp:1.1, status: READY"
    )
    return site


def typed(shell: Shell, line: str, stdin: str = "", **env: str) -> str:
    """Type a line; return its output."""
    return shell.ok("bash", "-c", line, stdin=stdin, **env)


def test_the_tutorials_lines_run_as_they_stand(site: Shell, tmp_path: Path) -> None:
    for line in ("shifterimg pull scanon/myapp:1.1", "shifterimg pull busybox", "shifterimg pull alpine"):
        assert re.fullmatch(r"\S+ Pulling Image: docker:\S+, status: READY", typed(site, line))
    rows = [re.fullmatch(ROW, row).groups() for row in typed(site, "shifterimg images").splitlines()]
    assert [row[4] for row in rows] == ["alpine:latest", "busybox:latest", "scanon/myapp:1.1"]
    assert {row[:2] for row in rows} == {("local", "docker")}
    assert all(list((tmp_path / "images").glob(f"sha256-{row[2]}*.sqfs")) for row in rows)
    assert abs(time.mktime(time.strptime(rows[0][3], "%Y-%m-%dT%H:%M:%S")) - time.time()) < 600
    asks = "cat /etc/name; exit 0\n"
    assert typed(site, "shifter -image alpine", asks) == "alpine"
    assert typed(site, "shifter --image=scanon/myapp:1.1 /myapp/app") == "myapp 1.1"
    assert typed(site, "shifter --image=scanon/myapp:1.1", "/myapp/app in a shell\n") == "myapp 1.1 in a shell"
    submitted = {"SHOEBOX_IMAGE": "scanon/myapp:1.1", "SHIFTER_IMAGEREQUEST": "scanon/myapp:1.1"}
    assert typed(site, "shifter /myapp/app", **submitted) == "myapp 1.1"


def test_a_tag_that_moves_does_not_change_a_running_job(pulled: Shell, hub: Place, tree: Path) -> None:
    known = pulled.ok("shifterimg", "lookup", "docker:scanon/myapp:1.1")
    assert re.fullmatch("[0-9a-f]{64}", known)
    job = {"SHIFTER_IMAGEREQUEST": "scanon/myapp:1.1", "SHIFTER_IMAGETYPE": "id", "SHIFTER_IMAGE": known}
    before = tutorial.boxed(tree, myapp_app="#!/bin/sh\necho myapp 1.1 $*\n")
    push(hub.url, "scanon/myapp", "1.1", tutorial.boxed(tree, myapp_app="#!/bin/sh\necho moved\n"))
    try:
        pulled.ok("shifterimg", "pull", "docker:scanon/myapp:1.1")
    finally:
        push(hub.url, "scanon/myapp", "1.1", before)
    assert pulled.ok("shifter", "--image=scanon/myapp:1.1", "/myapp/app") == "moved"
    assert pulled.ok("shifter", "--image=scanon/myapp:1.1", "/myapp/app", **job) == "myapp 1.1"
    assert pulled.ok("shifter", "/myapp/app", **job) == "myapp 1.1"
    assert pulled.ok("shifter", f"--image=id:{known}", "/myapp/app") == "myapp 1.1"


def script(shell: Shell, text: str) -> Path:
    """Write an executable script."""
    path = shell.home / "job.sh"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_script_with_shifter_as_its_interpreter_runs_inside(pulled: Shell, tmp_path: Path) -> None:
    shifter = tmp_path / "shoebox/bin/shifter"
    said = "#SBATCH -n 1\n/myapp/app $1 $GREETING; exit 5\n"
    head = f"#!{shifter} --image=docker:scanon/myapp:1.1"
    for line in (f"{head} --env=GREETING=hello /bin/sh -u", f"{head} --env GREETING=hello"):
        done = pulled(script(pulled, f"{line}\n{said}"), "oh my")
        assert (done.returncode, done.stdout) == (5, "myapp 1.1 oh my hello\n"), done.stderr
    spool = tmp_path / "spool"
    spool.mkdir()
    shutil.move(script(pulled, f"#!{shifter} /bin/sh\n{said}"), spool / "slurm_script")
    done = pulled(spool / "slurm_script", "x", SHIFTER="scanon/myapp:1.1")
    assert (done.returncode, done.stdout) == (5, "myapp 1.1 x\n"), done.stderr


@pytest.mark.parametrize(
    "test", ['"$SHIFTER_IMAGEREQUEST" != "$IMAGE"', '-z "$SHIFTER_RUNTIME"', '-z "$SHIFTER_IMAGEREQUEST"']
)
def test_a_script_that_runs_itself_again_inside_ends(pulled: Shell, test: str) -> None:
    again = 'shifter --image=$IMAGE --module=none -- "$0" "$@"'
    text = f"#!/bin/sh\nIMAGE=docker:scanon/myapp:1.1\nif [ {test} ]; then {again}; exit; fi\n/myapp/app $1\n"
    assert pulled.ok(script(pulled, text), "again") == "myapp 1.1 again"


def test_pipes_volumes_and_variables_pass_through(pulled: Shell, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}\n")
    (pulled.home / "env").write_text("FILE=1\n")
    words = [f"--volume={tmp_path}/a:/a:ro;{tmp_path}/b:/b", "--env=A=1 2", "--env-file=env", "-w", "/b", "-m", "none"]
    asks = 'cat - /a/file /b/file; echo "$A" $FILE $PWD; touch /b/new; touch /a/new'
    done = pulled("shifter", *words, "--image=scanon/myapp:1.1", "sh", "-c", asks, stdin="in\n")
    assert done.stdout == "in\na\nb\n1 2 1 /b\n"
    assert (done.returncode, (tmp_path / "b/new").exists()) == (1, True)
    assert pulled.ok("shifter", "cat", "/v/file", SHIFTER="scanon/myapp:1.1", SHIFTER_VOLUME=f"{tmp_path}/a:/v") == "a"


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--image=scanon/myapp:1.1", "sh", "-c", "exit 42"], 42, ""),
        (["--image=scanon/myapp:1.1", "/no/such"], 127, "shifter: cannot run '/no/such': "),
        (["--image=scanon/myapp:1.1", "/bin/plain"], 127, "shifter: cannot run '/bin/plain': "),
        (["--image=nowhere:1", "true"], 1, "sh-pull nowhere:1 | sh-flatten"),
        (["true"], 1, "shifter: no image given"),
        (["--image=a", "--wrong"], 1, "unknown option '--wrong'"),
        (
            ["--image=scanon/myapp:1.1", "--volume=/x:/y:perNodeCache=sizes=2G", "true"],
            1,
            "'sizes=2G' is none of size=",
        ),
    ],
)
def test_exit_statuses_are_shifters_and_errors_one_line(
    pulled: Shell, words: list[str], status: int, told: str
) -> None:
    done = pulled("shifter", *words)
    assert (done.returncode, done.stderr.count("\n")) == (status, bool(told)), done.stderr
    assert told in done.stderr


def test_ranks_of_shifter_and_of_sh_run_share_a_container(pulled: Shell) -> None:
    first = pulled.start("shifter", "--image=scanon/myapp:1.1", "sh", "-c", "echo; cat", env=pulled.env | SLURM)
    first.stdout.readline()
    inside = Path(f"/proc/{first.pid}/ns/mnt").readlink()
    asks = ("readlink", "/proc/self/ns/mnt")
    assert pulled.ok("shifter", "-i", "docker:scanon/myapp:1.1", "-e", "A=1", *asks, **SLURM) == str(inside)
    assert pulled.ok("sh-run", "scanon/myapp:1.1", *asks, **SLURM) == str(inside)
    first.communicate(timeout=20)


def test_what_scripts_read_of_shifterimg_is_there(pulled: Shell, hub: Place) -> None:
    field = "tail -n2 | head -n1 | awk '{print $6}'"
    assert typed(pulled, f"shifterimg -v pull docker://scanon/myapp:1.1 | {field}") == "READY"
    done = pulled("bash", "-c", f"set -o pipefail; shifterimg -v pull nowhere:1 | {field}")
    assert (done.returncode, done.stdout) == (1, "FAILURE\n")
    assert done.stderr.startswith("sh-pull: cannot pull 'nowhere:1'")
    done = pulled("shifterimg", "lookup", "nowhere:1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    for words in (
        ["login"],
        ["expire", "a"],
        ["autoexpire"],
        ["--user", "0", "images"],
        ["pull"],
        ["pull", "id:0123456789ab"],
        ["nothing"],
        [],
    ):
        done = pulled("shifterimg", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert pulled.ok("shifterimg", "images", SHOEBOX_PATH="/none") == ""


def states(said: str) -> list[str]:
    """Return the states that pull and pullnb have told."""
    return re.findall(r"(?m)^\S+ Pulling Image: docker:\S+, status: (\w+)$", said)


def ended(shell: Shell, image: str) -> tuple[int, str, str]:
    """Wait for a pull in the background; return what pullnb says of it then."""
    assert until(lambda: shell("shifterimg", "pullnb", image).returncode, 60)
    done = shell("shifterimg", "pullnb", image)
    return done.returncode, states(done.stdout)[-1], done.stderr


def test_verbose_tells_each_state_of_a_pull(site: Shell) -> None:
    said = typed(site, "shifterimg -v pull busybox; echo end").splitlines()
    assert states("\n".join(said)) == ["PULLING", "CONVERSION", "TRANSFER", "READY"]
    assert said[4:] == ["", "end"]


def test_pullnb_does_not_wait_and_ends_a_loop_with_the_pull(site: Shell) -> None:
    assert states(site.ok("shifterimg", "pullnb", "alpine")) == ["INIT"]
    assert ended(site, "alpine") == (1, "READY", "")
    assert re.fullmatch("[0-9a-f]{64}", site.ok("shifterimg", "lookup", "alpine"))


def test_pullnb_tells_why_a_pull_failed(site: Shell) -> None:
    site.ok("shifterimg", "pullnb", "nowhere:2")
    status, state, why = ended(site, "nowhere:2")
    assert (status, state) == (1, "FAILURE")
    assert why.startswith("sh-pull: cannot pull 'nowhere:2'")
    assert why.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [("no-such-key = 1", "shifterimg: cannot use "), ("account = images", "shifterimg: cannot use 'sudo': ")],
    ids=["a broken site.conf", "no sudo"],
)
def test_pullnb_ends_a_loop_also_where_a_pull_cannot_begin(site: Shell, tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "shoebox/etc/site.conf").write_text(f"[settings]\n{line}\n")
    site.env["PATH"] = f"{tmp_path}/shoebox/bin"
    site.ok("shifterimg", "pullnb", "busybox")
    status, state, why = ended(site, "busybox")
    assert (status, state, why.count("\n")) == (1, "FAILURE", 1)
    assert why.startswith(told)


def test_expire_removes_an_image_or_one_of_its_names(site: Shell, tmp_path: Path) -> None:
    typed(site, "shifterimg pull busybox; shifterimg pull alpine")
    assert typed(site, "shifterimg expire docker:busybox:latest") == ""
    assert [row.split()[-1] for row in typed(site, "shifterimg images").splitlines()] == ["alpine:latest"]
    assert len(list((tmp_path / "images").glob("*.sqfs"))) == 1


def test_autoexpire_removes_what_nobody_used_for_as_long_as_the_site_says(pulled: Shell, tmp_path: Path) -> None:
    conf = tmp_path / "shoebox/etc/site.conf"
    conf.write_text("[settings]\nexpire = 1d\n")
    pulled.ok("shifterimg", "autoexpire")
    assert "scanon/myapp" in pulled.ok("shifterimg", "images")
    conf.write_text("[settings]\nexpire = 0\n")
    pulled.ok("shifterimg", "autoexpire")
    assert pulled.ok("shifterimg", "images") == ""


def test_without_a_store_to_write_to_pull_leaves_the_image_in_the_users_own(site: Shell) -> None:
    site.ok("shifterimg", "pull", "busybox", SHOEBOX_PATH=None)
    assert site.ok("shifter", "--image=busybox", "cat", "/etc/name", SHOEBOX_PATH=None) == "busybox"


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("buildah"), reason="no buildah on this machine")
def test_the_tutorials_dockerfile_is_built_pushed_pulled_and_run(site: Shell, hub: Place, tmp_path: Path) -> None:
    here = tmp_path / "build"
    tutorial.sources(here, "int main(void) { return 0; }\n")
    env = tutorial.docker(tmp_path, tmp_path / "shoebox/bin", hub.host)
    for line in tutorial.LINES:
        site.ok("bash", "-c", line, cwd=here, **env)
    typed(site, "shifterimg pull scanon/hello-vm:latest")
    assert typed(site, "shifter --image=scanon/hello-vm:latest /app/hello") == "made of helloworld.c"

"""make install, make uninstall, make rpm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from fixtures.installed import TREE, WHEELS, make_install

COMMANDS = sorted(path.name for path in (TREE / "bin").glob("sh-*"))
SHIFTER = ["shifter", "shifterimg"]


# Directories that packages share; an RPM does not own them.
SHARED = {
    f"usr/{d}" for d in ("bin", "lib", "share", "share/man", "share/bash-completion", "share/modulefiles", "share/doc")
}
SHARED |= {"usr", "usr/share/bash-completion/completions", *(f"usr/share/man/man{n}" for n in range(1, 9))}


def listing(top: Path) -> dict[str, tuple[int, bytes | str]]:
    """Return every path under top with its mode and content, or a link's target."""
    found = {}
    for path in top.rglob("*"):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(top))] = (path.lstat().st_mode, content)
    return found


def uninstall(prefix: Path, tree: Path = TREE) -> subprocess.CompletedProcess[str]:
    """Run make uninstall."""
    words = ["make", "-s", "uninstall", f"PREFIX={prefix}"]
    return subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a copy of the source tree that a test may change, without Python packages: these tests need only ours."""
    copy = tmp_path_factory.mktemp("source") / "a tree"
    skip = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache", ".hypothesis", "test")
    shutil.copytree(TREE, copy, symlinks=True, ignore=skip)
    pyproject = copy / "pyproject.toml"
    text = pyproject.read_text()
    start = text.index("dependencies = [")
    pyproject.write_text(text[:start] + "dependencies = []" + text[text.index("]", start) + 1 :])
    return copy


def release(tree: Path, version: str) -> None:
    """Make the tree that of another version."""
    (tree / "lib/shoebox/__init__.py").write_text(f'"""Shoebox."""\n\nVERSION = "{version}"\n')


@pytest.mark.parametrize("command", COMMANDS)
def test_an_installed_command_tells_its_version_and_usage(cmd, command):
    assert cmd.ok(command, "--version").startswith("shoebox ")
    assert cmd.ok(command, "-h").startswith(f"usage: {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_installed_answers_without_the_source_tree_or_the_users_own_python_settings(cmd, command, tmp_path):
    (tmp_path / "requests.py").write_text("raise SystemExit('the user broke it')")
    (tmp_path / "os.py").write_text("raise SystemExit('the user broke it')")
    assert cmd(command, "--version", cwd=tmp_path, PYTHONPATH=str(tmp_path), PYTHONHOME="/nowhere").returncode == 0


def test_everything_is_there_and_readable_whatever_the_umask(tree, tmp_path):
    old = os.umask(0o077)
    try:
        make_install(tmp_path / "new/prefix", tree=tree)
    finally:
        os.umask(old)
    found = listing(tmp_path / "new")
    for command in COMMANDS:
        assert f"prefix/bin/{command}" in found
        assert f"prefix/share/bash-completion/completions/{command}" in found
    for page in (TREE / "doc").glob("*.[178]"):
        if page.stem in SHIFTER:
            continue
        assert f"prefix/share/man/man{page.suffix[1]}/{page.name}" in found
    for path, (mode, _) in found.items():
        assert mode & 0o055 >= (0o055 if os.path.isdir(tmp_path / "new" / path) else 0o044), path
    assert (tmp_path / "new/prefix/bin/sh-run").read_text().startswith("#!/usr/bin/python3 -IS\n")


@pytest.mark.root
def test_what_root_installs_under_a_tight_umask_an_ordinary_user_runs(cmd, tmp_path):
    old = os.umask(0o077)
    try:
        make_install(tmp_path / "prefix")
    finally:
        os.umask(old)
    for folder in [*tmp_path.parents[:2], tmp_path]:
        folder.chmod(0o711)
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    for command in COMMANDS:
        assert cmd.ok(*drop, tmp_path / "prefix/bin" / command, "--version", cwd=Path("/")).startswith("shoebox ")


def install_shifter(prefix: Path, tree: Path) -> subprocess.CompletedProcess[str]:
    """Run make install-shifter."""
    words = ["make", "-s", "install-shifter", f"PREFIX={prefix}"]
    return subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False)


def test_shifters_commands_come_apart_stay_through_an_install_and_go_with_the_others(cmd, tree, tmp_path):
    prefix = tmp_path / "prefix"
    assert "make install first" in install_shifter(prefix, tree).stderr
    make_install(prefix, tree=tree)
    assert not [path for path in listing(prefix) if path.startswith(("bin/shifter", "share/man/man1/shifter"))]
    assert install_shifter(prefix, tree).returncode == 0
    make_install(prefix, tree=tree)
    assert install_shifter(prefix, tree).returncode == 0
    assert cmd.ok(prefix / "bin/shifter", "-h").startswith("usage: shifter ")
    for path in ("bin/shifterimg", "share/man/man1/shifter.1", "share/bash-completion/completions/shifterimg"):
        assert (prefix / path).exists()
    assert uninstall(prefix, tree).returncode == 0
    assert not prefix.exists()


@pytest.mark.parametrize("theirs", ["bin/shifter", "bin/shifterimg", "share/man/man1/shifter.1"])
def test_a_real_shifter_is_never_overwritten_and_nothing_is_put_beside_it(tree, tmp_path, theirs):
    real = tmp_path / "prefix" / theirs
    real.parent.mkdir(parents=True)
    real.symlink_to("/opt/shifter/bin/shifter")
    make_install(tmp_path / "prefix", tree=tree)
    before = listing(tmp_path)
    done = install_shifter(tmp_path / "prefix", tree)
    assert done.returncode != 0
    assert str(real) in done.stderr
    assert listing(tmp_path) == before


def test_bytecode_is_compiled_and_does_not_depend_on_clocks(prefix):
    modules = list(prefix.glob("lib/shoebox/*/lib/shoebox/*.py"))
    assert modules
    for module in modules:
        (compiled,) = module.parent.glob(f"__pycache__/{module.stem}.*.pyc")
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 0b01, "PEP 552: hash based, not checked"


def test_uninstall_removes_exactly_what_was_installed(tree, tmp_path):
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/other").write_text("somebody else's")
    before = listing(tmp_path)
    make_install(prefix, tree=tree)
    make_install(prefix, tree=tree)
    assert uninstall(prefix, tree).returncode == 0
    assert listing(tmp_path) == before
    again = uninstall(prefix, tree)
    assert again.returncode != 0
    assert "no shoebox" in again.stderr


def test_uninstall_removes_the_prefix_that_install_made(tree, tmp_path):
    make_install(tmp_path / "a/b/prefix", tree=tree)
    uninstall(tmp_path / "a/b/prefix", tree)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_is_gone_in_a_newer_install_goes(tree, tmp_path):
    make_install(tmp_path, tree=tree)
    gone = tree / "lib/shoebox/gone.py"
    gone.write_text('"""Gone soon."""\n')
    make_install(tmp_path, tree=tree)
    assert len(list(tmp_path.rglob("gone*"))) == 2
    gone.unlink()
    make_install(tmp_path, tree=tree)
    assert list(tmp_path.rglob("gone*")) == []


def test_two_versions_lie_side_by_side_and_go_one_by_one(tree, tmp_path, cmd):
    prefix = tmp_path / "prefix"
    for version in ("7.0", "7.1"):
        release(tree, version)
        make_install(prefix, tree=tree)
    assert cmd.ok(prefix / "bin/sh-run", "--version") == "shoebox 7.1"
    assert cmd.ok(prefix / "lib/shoebox/7.0/bin/sh-run", "--version") == "shoebox 7.0"
    assert f'"{prefix}/lib/shoebox/7.0/bin"' in (prefix / "share/modulefiles/shoebox/7.0").read_text()
    release(tree, "7.0")
    assert uninstall(prefix, tree).returncode == 0
    assert cmd.ok(prefix / "bin/sh-run", "--version") == "shoebox 7.1"
    release(tree, "7.1")
    assert uninstall(prefix, tree).returncode == 0
    assert not prefix.exists()


def test_a_process_keeps_the_file_that_an_install_replaces(tree, tmp_path):
    make_install(tmp_path, tree=tree)
    with open(next(tmp_path.glob("lib/shoebox/*/lib/shoebox/fail.py"))) as held:
        make_install(tmp_path, tree=tree)
        assert os.fstat(held.fileno()).st_nlink == 0
        assert held.read().startswith('"""Errors')


def test_the_sites_directory_is_set_at_install_and_left_alone(tree, tmp_path):
    site = tmp_path / "etc"
    site.mkdir()
    (site / "registries.toml").write_text("# the site's own")
    make_install(tmp_path / "p", f"SYSCONFDIR={site}", tree=tree)
    (paths,) = (tmp_path / "p").rglob("paths.py")
    assert f"SITE = {str(site)!r}" in paths.read_text()
    uninstall(tmp_path / "p", tree)
    assert listing(tmp_path) == {
        "etc": listing(tmp_path)["etc"],
        "etc/registries.toml": listing(tmp_path)["etc/registries.toml"],
    }


def test_where_sh_mount_and_the_ranks_of_a_node_are_is_set_at_install(tree, tmp_path):
    make_install(tmp_path / "p", "HELPER=/opt/site/sh-mount", "NODEDIR=/local", tree=tree)
    (paths,) = (tmp_path / "p").rglob("paths.py")
    assert 'HELPER = "/opt/site/sh-mount"' in paths.read_text().replace("'", '"')
    assert 'NODE = "/local"' in paths.read_text().replace("'", '"')


def test_destdir_holds_the_same_files_and_names_only_the_prefix(tree, tmp_path):
    make_install(Path("/opt/shoebox"), f"DESTDIR={tmp_path}", tree=tree)
    for path, (mode, content) in listing(tmp_path).items():
        assert path.startswith("opt")
        assert str(tmp_path).encode() not in (content if isinstance(content, bytes) else os.fsencode(content)), (
            path,
            mode,
        )


@pytest.mark.parametrize("name", ["p" * 130, "with blank"])
def test_a_python_that_no_shebang_can_hold_is_refused(tree, tmp_path, name):
    python = tmp_path / name / "python3"
    python.parent.mkdir()
    python.symlink_to("/usr/bin/python3")
    words = ["make", "-s", "install", f"PREFIX={tmp_path}/p", f"PYTHON={python}"]
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "cannot stand in a #! line" in done.stderr
    assert not (tmp_path / "p").exists()


def test_bash_completes_the_options(prefix, cmd):
    where = prefix / "share/bash-completion/completions/sh-pull"
    script = (
        f'source "{where}"; _sh_pull sh-pull --pl x; echo "${{COMPREPLY[@]}}";'
        "COMPREPLY=(); _sh_pull sh-pull debian x; echo ${#COMPREPLY[@]}"
    )
    assert cmd.ok("bash", "-c", script).split() == ["--platform", "0"]


def test_an_old_python_is_told_of_in_one_line(prefix, cmd, tmp_path):
    """A Python that calls itself 3.9: the real one has its own test, where there is one."""
    fake = (
        f"import sys; sys.version_info = (3, 9, 0); sys.argv = ['sh-pull']; sys.path.insert(0, {str(TREE / 'lib')!r})"
    )
    done = cmd("/usr/bin/python3", "-IS", "-c", f"{fake}\nfrom shoebox import launch\nlaunch.ready()")
    assert done.returncode == 1
    assert done.stderr.startswith("sh-pull: needs Python 3.11 or newer")
    assert done.stderr.count("\n") == 1


# ---- sh-mount ----


def setuid(act: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make install-setuid or uninstall-setuid."""
    words = ("make", "-s", f"{act}-setuid", *words)
    return subprocess.run(words, cwd=TREE, capture_output=True, text=True, check=False)


@pytest.fixture
def roots():
    """Return a directory of root's in which set-user-ID programs may be."""
    where = Path(tempfile.mkdtemp(prefix="shoebox-setuid-"))
    where.chmod(0o755)
    yield where
    shutil.rmtree(where)


@pytest.mark.root
@pytest.mark.parametrize(("group", "mode", "gid"), [("", 0o4755, 0), ("12", 0o4750, 12)])
def test_sh_mount_is_installed_set_user_id_root_and_removed(roots, group, mode, gid):
    old = os.umask(0o077)
    try:
        done = setuid("install", f"HELPER={roots}/lib/sh-mount", f"SYSCONFDIR={roots}/etc", f"GROUP={group}")
    finally:
        os.umask(old)
    assert done.returncode == 0, done.stderr
    assert f"mounts nothing until root writes '{roots}/etc/mount.conf'" in done.stderr
    assert not (roots / "etc").exists()
    seen = (roots / "lib/sh-mount").stat()
    assert (seen.st_mode & 0o7777, seen.st_uid, seen.st_gid) == (mode, 0, gid)
    assert sorted(path.name for path in (roots / "lib").iterdir()) == ["mnt", "sh-mount"]
    assert {path.stat().st_mode & 0o7777 for path in (roots / "lib", roots / "lib/mnt")} == {0o755}
    program = (roots / "lib/sh-mount").read_bytes()
    assert f"{roots}/etc/mount.conf\0".encode() in program
    assert f"{roots}/lib/mnt\0".encode() in program
    assert setuid("uninstall", f"HELPER={roots}/lib/sh-mount").returncode == 0
    assert list(roots.iterdir()) == []
    assert "there is no" in setuid("uninstall", f"HELPER={roots}/lib/sh-mount").stderr


@pytest.mark.root
@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_sh_mount_is_hardened_and_needs_nothing_but_libc(roots):
    assert setuid("install", f"HELPER={roots}/sh-mount").returncode == 0
    words = ["readelf", "-W", "-h", "-d", "-l", "-s", roots / "sh-mount"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.search(r"Type: +DYN", text)
    assert "GNU_RELRO" in text
    assert re.search(r"GNU_STACK .* RW ", text)
    assert re.search(r"FLAGS_1.*NOW.*PIE", text)
    assert "__stack_chk_fail" in text
    assert "__snprintf_chk" in text
    assert re.findall(r"NEEDED.*\[(.*)\]", text) == ["libc.so.6"]
    assert not re.search("RPATH|RUNPATH", text)


@pytest.mark.root
def test_sh_mount_is_not_installed_where_it_would_be_useless_or_in_danger(roots):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,mode=755", "none", roots], check=True)
    try:
        done = setuid("install", f"HELPER={roots}/lib/sh-mount")
    finally:
        subprocess.run(["umount", roots], check=True)
    assert done.returncode != 0
    assert "is mounted nosuid: say HELPER=" in done.stderr.splitlines()[0]
    (roots / "theirs").mkdir()
    os.chown(roots / "theirs", 65534, 65534)
    for path in (roots / "theirs/sh-mount", roots / "theirs/lib/sh-mount"):
        done = setuid("install", f"HELPER={path}")
        assert done.returncode != 0
        assert f"'{roots}/theirs' is not root's" in done.stderr.splitlines()[0]
    for words in (["HELPER=a/sh-mount"], ["HELPER=/a:b/sh-mount"], ["SYSCONFDIR=/a b"]):
        done = setuid("install", *words)
        assert done.returncode != 0
        assert done.stderr.startswith("make install-setuid: '")
    assert sorted(roots.rglob("*")) == [roots / "theirs"]


def test_packagers_who_are_not_root_collect_sh_mount(tmp_path):
    done = setuid("install", f"DESTDIR={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert set(listing(tmp_path)) == {
        *("usr", "usr/libexec", "usr/libexec/shoebox", "usr/libexec/shoebox/mnt", "usr/libexec/shoebox/sh-mount"),
    }
    assert (tmp_path / "usr/libexec/shoebox/sh-mount").stat().st_mode & 0o7777 == 0o4755
    assert str(tmp_path).encode() not in (tmp_path / "usr/libexec/shoebox/sh-mount").read_bytes()


@pytest.mark.skipif(os.getuid() == 0, reason="root may")
def test_who_is_not_root_is_told_so(tmp_path):
    assert setuid("install").stderr.startswith("make install-setuid: only root can do this")


@pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="no rpmbuild")
def test_the_rpm_holds_what_make_install_installs(tmp_path):
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache", ".hypothesis", "test")
    shutil.copytree(TREE, tree, symlinks=True, ignore=skip)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t.invalid", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], cwd=tree, check=True)
    wheels = [f"WHEELS={WHEELS}"] if WHEELS.is_dir() else []
    subprocess.run(["make", "-s", "rpm", *wheels], cwd=tree, check=True)
    (helper,) = (tree / "build").glob("shoebox-setuid-*.rpm")
    (rpm,) = set((tree / "build").glob("shoebox-*.rpm")) - {helper}
    listed = subprocess.run(["rpm", "-qpl", rpm], capture_output=True, text=True, check=True).stdout.splitlines()
    words = ["rpm", "-qp", "--qf", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILENAMES}\n]", helper]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines() == [
        "drwxr-xr-x root /usr/libexec/shoebox",
        "drwxr-xr-x root /usr/libexec/shoebox/mnt",
        "-rwsr-xr-x root /usr/libexec/shoebox/sh-mount",
    ]
    make_install(Path("/usr"), f"DESTDIR={tmp_path}/root", "SYSCONFDIR=/etc/shoebox")
    installed = {f"/{path}" for path in listing(tmp_path / "root")}
    assert installed - set(listed) <= {f"/{path}" for path in SHARED}
    assert set(listed) <= installed

"""The rules of the house that a linter does not know; `make check` runs this file too."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.installed import TREE

from shoebox import usage

LIB = TREE / "lib/shoebox"
NODES = {
    LIB / f"{name}.py"
    for name in ("doctor", "look", "trials", "checkup", "node", "keep", "siteconf", "amounts", "imports")
}  # of sh-doctor, but for --net; sh-stage --nodes
COMMANDS = sorted(path.name for path in (TREE / "bin").iterdir())

# What sh-run may import: every rank of a job pays for it (style.md, "Start-up", has the milliseconds).
ALLOWED = {"__future__", "os", "sys", "errno", "ctypes", "_signal", "pwd", "grp"}
BROUGHT_ALONG = {"posixpath", "genericpath", "stat", "_stat", "_collections_abc", "os.path", "struct", "_struct"}
BROUGHT_ALONG |= {"_ctypes", "ctypes._endian", "shoebox"}


def usage_text(command: str) -> str:
    """Return the usage text in a command's module, as make install finds it: without importing it."""
    for node in ast.walk(ast.parse((LIB / f"{command.removeprefix('sh-')}.py").read_text())):
        if isinstance(node, ast.Constant) and str(node.value).lstrip().startswith(f"usage: {command}"):
            return str(node.value)
    pytest.fail(f"{command} has no usage text")


def page_of(command: str) -> str:
    """Return the text of a command's man page."""
    (found,) = (TREE / "doc").glob(f"{command}.[18]")
    return found.read_text()


def imported(module: Path) -> set[Path]:
    """Return the modules of ours that one imports, late ones included, those for types only left out."""
    tree = ast.parse(module.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    names = {name for node in froms for name in ([node.module] if node.module else [a.name for a in node.names])}
    return {LIB / f"{name}.py" for name in names if (LIB / f"{name}.py").exists()}


def modules_of_sh_run() -> set[Path]:
    """Return every module of ours that sh-run, or shifter, may ever import."""
    todo, done = {LIB / "shifter.py"}, {LIB / "__init__.py"}
    while todo:
        module = todo.pop()
        done.add(module)
        todo |= imported(module) - done
    return done


def test_what_reads_site_conf_for_a_run_imports_what_a_run_needs():
    assert {module.stem for module in imported(LIB / "site.py")} == {"facts", "fail", "paths"}


def python39() -> str:
    """Return a real Python 3.9, as EL 9 has, if there is one."""
    homes = Path("~/.pyenv/versions").expanduser()
    found = sorted(homes.glob("3.9.*/bin/python3.9")) if os.access(homes, os.X_OK) else []
    for candidate in [*map(str, found), shutil.which("python3.9") or ""]:
        if candidate and subprocess.run([candidate, "-c", ""], check=False, capture_output=True).returncode == 0:
            return candidate
    return ""


def test_sh_run_imports_nothing_that_costs_start_up_time():
    probe = f"import sys; sys.path.insert(0, {str(LIB.parent)!r}); old = set(sys.modules); import shoebox.shifter;"
    words = ["/usr/bin/python3", "-IS", "-c", f"{probe} print(*(set(sys.modules) - old))"]
    seen = set(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())
    ours = {f"shoebox.{module.stem}" for module in modules_of_sh_run()}
    assert seen - ours <= ALLOWED | BROUGHT_ALONG


def test_what_sh_run_imports_is_python_3_9():
    modules = map(str, sorted(modules_of_sh_run() | {LIB / "launch.py"} | NODES))
    vermin = Path(sys.executable).with_name("vermin")
    words = [sys.executable, vermin, "-q", "--no-tips", "--violations", "-t=3.9-", "--eval-annotations", *modules]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not python39(), reason="no python3.9 on this machine: only vermin and ruff looked")
def test_a_real_python_3_9_runs_sh_run_and_is_refused_by_the_others(tmp_path):
    for module in sorted(modules_of_sh_run() | NODES):
        words = [
            python39(),
            "-IS",
            "-c",
            f"import sys; sys.path.insert(0, {str(LIB.parent)!r}); import shoebox.{module.stem}",
        ]
        subprocess.run(words, check=True)
    help_text = subprocess.run(
        [python39(), "-IS", TREE / "bin/sh-run", "-h"], check=True, capture_output=True, text=True
    )
    assert help_text.stdout.startswith("usage: sh-run")
    absent = [python39(), "-IS", TREE / "bin/sh-run", "no-such-image:1", "true"]
    done = subprocess.run(absent, check=False, capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
    for command in set(COMMANDS) - {"sh-run", "sh-doctor", "shifter"}:
        done = subprocess.run([python39(), "-IS", TREE / "bin" / command], check=False, capture_output=True, text=True)
        assert done.returncode == 1
        assert re.fullmatch(rf"{command}: needs Python 3\.11 or newer.*\n", done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_man_page_has_the_options_of_the_usage_text(command):
    page = page_of(command)
    items = [line for line in page.splitlines() if line.startswith(".It Fl ")]
    documented = {name for line in items for name in re.findall(r"Fl -([a-z][a-z-]*)", line)} - {"help", "version"}
    short = {letter for line in items for letter in re.findall(r"Fl ([A-Za-z])\b", line)} - {"h"}
    declared = list(usage.declared(usage_text(command)))
    assert documented == {name for _, name, _ in declared} - {"help", "version"}
    assert short == {letter for letter, _, _ in declared if letter} - {"h"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_man_page_tells_the_exit_status_and_has_examples(command):
    page = page_of(command)
    assert ".Sh EXIT STATUS" in page
    assert ".Sh EXAMPLES" in page


def test_no_file_names_a_package_registry_or_a_place_of_one_machine():
    hosts = ["py" + "pi.org", "python" + "hosted.org", "deb." + "debian.org", "npm" + "js.org", "npm" + "js.com"]
    places = ["/wo" + "rk/main", "/wo" + "rk/shared", "/ro" + "ot/"]
    wrong = re.compile("|".join(map(re.escape, hosts + places)))
    found = []
    for top in ("bin", "lib", "doc", "test", ".ci", "Makefile", "README.md", "pyproject.toml"):
        for path in [TREE / top, *(TREE / top).rglob("*")]:
            if path.is_file() and "__pycache__" not in path.parts:
                text = path.read_text(errors="replace")
                found += [f"{path.relative_to(TREE)}: {hit}" for hit in wrong.findall(text)]
    assert found == []


def test_nothing_else_lies_at_the_top():
    known = {"pyproject.toml", "bin", "lib", "doc", "test", "Makefile", "README.md", "LICENSE", "build"}
    assert {path.name for path in TREE.iterdir() if not path.name.startswith(".")} <= known

"""Install and uninstall: what `make install` and `make uninstall` call. Python 3.9.

Everything real lies in PREFIX/lib/shoebox/VERSION, laid out as the source tree is; PREFIX/bin and PREFIX/share hold
symlinks into it. So versions live side by side (a modulefile puts its own version's bin first on PATH), and a process
that runs on through an upgrade still imports from the version that it began with. Nothing is written to SYSCONFDIR.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from glob import escape, glob

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(TREE, "lib"))

from shoebox import VERSION  # noqa: E402
from shoebox.usage import declared  # noqa: E402

OURS = f"lib/shoebox/{VERSION}"
MANIFEST = f"{OURS}/manifest"  # lines of: file, link or dir; its path under PREFIX; a link's target
# As in paths.py:
DEFAULTS = {"SITE": "/etc/shoebox", "NODE": "", "BIN": "/usr/local/bin", "HELPER": "/usr/libexec/shoebox/sh-mount"}
SHIFTER = ("shifter", "shifterimg", "shifter.1", "shifterimg.1")  # linked to by install-shifter only
SH_RUN = "/usr/local/bin/sh-run"  # in the files for batch systems
MAX_SHEBANG = 127  # Linux before 5.1 cuts here


def requirements(extra: str) -> list[str]:
    """Return pyproject's dependencies, or those of an extra."""
    import tomllib  # noqa: PLC0415 - Python 3.11, as the login-node commands themselves

    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    return list(project["optional-dependencies"][extra] if extra else project["dependencies"])


def copy(source: str, target: str, *changes: tuple[str, str]) -> None:
    """Copy a text file into the stage; of each change the first text, which must be in it, becomes the second."""
    with open(source, encoding="utf-8") as file:
        text = file.read()
    for old, new in changes:
        if old not in text:
            sys.exit(f"install: {source!r} has no {old!r}")
        text = text.replace(old, new)
    write(target, text)
    shutil.copymode(source, target)


def write(target: str, text: str) -> None:
    """Write a file of the stage."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w", encoding="utf-8") as file:
        file.write(text)


def packages(target: str, wheels: str) -> None:
    """Put the login-node commands' Python packages into target; from a folder of wheels: without network."""
    if sys.version_info < (3, 11):
        print("install: only sh-run will work: the other commands need PYTHON= 3.11 or newer", file=sys.stderr)
        return
    wanted = requirements("")
    if not wanted:
        return
    offline = ["--no-index", "--find-links", wheels] if wheels else []
    with tempfile.TemporaryDirectory() as venv:  # Debian's Python has no pip of its own
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [f"{venv}/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-compile"]
        subprocess.run([*pip, *offline, "--target", target, *wanted], check=True)
    shutil.rmtree(os.path.join(target, "bin"), ignore_errors=True)  # the packages' own programs


def completion(command: str) -> str:
    """Return a command's bash completion, from its usage text (read, not imported: that would need the packages)."""
    with open(f"lib/shoebox/{command.removeprefix('sh-')}.py", encoding="utf-8") as file:
        texts = [str(node.value) for node in ast.walk(ast.parse(file.read())) if isinstance(node, ast.Constant)]
    usage = next((text for text in texts if text.lstrip().startswith(f"usage: {command}")), "")
    words = ["--help", "--version", *(f"--{name}" for _, name, _ in declared(usage))]
    name = "_" + command.replace("-", "_")
    return (
        f"# bash completion for {command}, made from its usage text\n"
        f"{name}() {{ [[ $2 != -* ]] || mapfile -t COMPREPLY < <(compgen -W '{' '.join(words)}' -- \"$2\"); }}\n"
        f"complete -o default -F {name} {command}\n"
    )


def build(stage: str, prefix: str, places: dict[str, str], wheels: str) -> None:
    """Make in stage what PREFIX shall hold."""
    top = f"{stage}/{OURS}"
    shebang = f"#!{sys.executable} -IS"
    if len(shebang) > MAX_SHEBANG or len(shebang.split()) != 2:
        sys.exit(f"install: {sys.executable!r} cannot stand in a #! line: it has a blank, or is too long")
    set_here = [(f'{name} = "{DEFAULTS[name]}"', f"{name} = {path!r}") for name, path in places.items()]
    for source in glob("lib/shoebox/*.py"):
        copy(source, f"{top}/{source}", *(set_here if source.endswith("/paths.py") else ()))
    for source in glob("bin/*"):
        copy(source, f"{top}/{source}", ("#!/usr/bin/python3 -IS", shebang))
        write(f"{top}/share/bash-completion/completions/{source[4:]}", completion(source[4:]))
    for source in glob("doc/*.[1578]"):
        copy(source, f"{top}/share/man/man{source[-1]}/{source[4:]}")
    for source in ("README.md", "LICENSE", *glob("doc/*.md"), *glob("doc/*.svg")):
        copy(source, f"{top}/share/doc/shoebox/{os.path.basename(source)}")
    for source in (*glob("doc/examples/*.conf"), *glob("doc/examples/*/*.conf")):
        copy(source, f"{top}/share/doc/shoebox/{source[4:]}")
    for source in ("lib/wlm/epilog", *glob("lib/wlm/*/*")):
        copy(source, f"{top}/share/shoebox/{source[4:]}", (SH_RUN, f"{prefix}/bin/sh-run"))
    copy(".ci/modulefile", f"{stage}/share/modulefiles/shoebox/{VERSION}", ("@ROOT@", f"{prefix}/{OURS}"))
    packages(f"{top}/lib/site-packages", wheels)
    # Unchecked: copying, packaging and clocks cannot make it stale, and an install replaces both files.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for folder, strict in (("lib/site-packages", False), ("lib/shoebox", True)):
        compiled = compileall.compile_dir(
            f"{top}/{folder}",
            quiet=1 + (not strict),
            stripdir=stage,
            prependdir=prefix,
            invalidation_mode=mode,
            optimize=2 if strict else -1,
            workers=0,
        )
        if strict and not compiled:
            sys.exit(1)
    for path in glob(f"{top}/lib/shoebox/__pycache__/*.opt-2.pyc"):  # what a rank reads at start, without docstrings
        os.rename(path, path.replace(".opt-2", ""))
    for path, target in links(top):
        if os.path.basename(path) not in SHIFTER:
            os.makedirs(os.path.dirname(f"{stage}/{path}"), exist_ok=True)
            os.symlink(target, f"{stage}/{path}")


def links(top: str) -> list[tuple[str, str]]:
    """Return (path, target) of the symlinks under the prefix that lead to what a version's directory has."""
    folders = [*os.walk(f"{top}/bin"), *os.walk(f"{top}/share")]
    paths = [os.path.relpath(os.path.join(folder, name), top) for folder, _, names in folders for name in names]
    return [(path, os.path.relpath(f"{OURS}/{path}", os.path.dirname(path))) for path in paths]


def manifest(path: str) -> set[tuple[str, ...]]:
    """Return what an install left: (file, PATH), (link, PATH, TARGET), (dir, PATH), paths under the prefix."""
    try:
        with open(path, encoding="utf-8") as file:
            return {tuple(line.split("\t")) for line in file.read().splitlines()}
    except FileNotFoundError:
        return set()


def make_folder(path: str, root: str) -> set[tuple[str, ...]]:
    """Make a directory that everybody can read, and its parents; return manifest lines for those made."""
    if os.path.isdir(path):
        return set()
    above = make_folder(os.path.dirname(path), root)
    os.mkdir(path)
    os.chmod(path, 0o755)  # noqa: S103 - whatever the umask: others shall read it
    return above | {("dir", os.path.relpath(path, root))}


def move(source: str, target: str) -> tuple[str, ...]:
    """Put a file or link in its place by rename: who runs the old one keeps it. Return its kind and link target."""
    part = os.path.join(os.path.dirname(target), ".part-" + os.path.basename(target))
    if os.path.lexists(part):
        os.unlink(part)
    if os.path.islink(source):
        os.symlink(os.readlink(source), part)
    else:
        shutil.copyfile(source, part)
        os.chmod(part, 0o755 if os.access(source, os.X_OK) else 0o644)
    os.replace(part, target)
    return ("link", os.readlink(target)) if os.path.islink(target) else ("file",)


def install(stage: str, root: str) -> None:
    """Move the stage to root, and remove what an earlier install of this version had and this one has not."""
    before = manifest(os.path.join(root, MANIFEST))
    # Directories that another version made are ours too: the last version to go removes them.
    everybody = glob(os.path.join(escape(root), "lib/shoebox/*/manifest"))
    now = {line for path in everybody for line in manifest(path) if line[0] == "dir"} | make_folder(root, root)
    now |= {line for line in before if line[0] == "link" and os.path.basename(line[1]) in SHIFTER}
    # The links come last: a new version is complete before it is the one that people get.
    for folder, _, names in sorted(os.walk(stage), key=lambda entry: not entry[0].startswith(f"{stage}/{OURS}")):
        inside = os.path.relpath(folder, stage)
        for name in names:
            path = os.path.normpath(os.path.join(inside, name))
            now |= make_folder(os.path.dirname(os.path.join(root, path)), root)
            kind, *target = move(os.path.join(folder, name), os.path.join(root, path))
            now.add((kind, path, *target))
    now.add(("file", MANIFEST))
    remove(root, before - now)
    record(stage, root, now)


def install_shifter(stage: str, root: str) -> None:
    """Link to Shifter's own names for our commands, unless somebody else has these names there."""
    lines = manifest(os.path.join(root, MANIFEST))
    if not lines:
        sys.exit(f"install-shifter: no shoebox {VERSION} is installed in {root!r}: run make install first")
    found = [link for link in links(os.path.join(root, OURS)) if os.path.basename(link[0]) in SHIFTER]
    for path, _ in found:
        whole = os.path.join(root, path)
        meant = os.path.join(os.path.dirname(path), os.readlink(whole)) if os.path.islink(whole) else ""
        if os.path.lexists(whole) and not os.path.normpath(meant).startswith("lib/shoebox/"):
            sys.exit(f"install-shifter: {whole!r} is there, and none of ours: choose another PREFIX")
    for path, target in found:
        os.symlink(target, f"{stage}/link")
        lines |= make_folder(os.path.dirname(os.path.join(root, path)), root)
        lines.add((move(f"{stage}/link", os.path.join(root, path))[0], path, target))
        os.unlink(f"{stage}/link")
    record(stage, root, lines)


def record(stage: str, root: str, lines: set[tuple[str, ...]]) -> None:
    """Write the manifest."""
    listed = os.path.join(stage, "manifest")
    write(listed, "".join("\t".join(line) + "\n" for line in sorted(lines)))
    move(listed, os.path.join(root, MANIFEST))


def remove(root: str, lines: set[tuple[str, ...]]) -> None:
    """Remove what these manifest lines name: links only if they are still ours, directories only if they are empty."""
    named = [(kind, os.path.normpath(os.path.join(root, path)), target) for kind, path, *target in lines]
    for kind, whole, target in sorted(named, key=lambda line: (line[0] == "dir", -len(line[1]))):
        if kind == "dir":
            if os.path.isdir(whole) and not os.listdir(whole):
                os.rmdir(whole)
        elif os.path.lexists(whole) and (kind == "file" or (os.path.islink(whole) and [os.readlink(whole)] == target)):
            os.unlink(whole)


def main() -> None:
    """Read the words and act."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("act", choices=["install", "install-shifter", "uninstall", "requirements"])
    words.add_argument("--prefix", default="/usr/local", type=lambda p: os.path.abspath(os.path.expanduser(p)))
    words.add_argument("--destdir", default="", help="where a packager collects files")
    words.add_argument("--sysconfdir", default=DEFAULTS["SITE"], type=os.path.abspath)
    words.add_argument("--nodedir", default=DEFAULTS["NODE"], help="where processes of a node meet")
    words.add_argument("--helper", default=DEFAULTS["HELPER"], type=os.path.abspath, help="where sh-mount is")
    words.add_argument("--wheels", default="", help="a folder of wheels: no network")
    words.add_argument("--extra", default="", help="requirements: of this extra of pyproject.toml")
    given = words.parse_args()
    root = os.path.abspath(given.destdir + given.prefix if given.destdir else given.prefix)
    wheels = os.path.abspath(given.wheels) if given.wheels else ""
    os.chdir(TREE)
    if given.act == "requirements":
        print("\n".join(requirements(given.extra)))
    elif given.act == "install":
        with tempfile.TemporaryDirectory() as stage:
            places = {"SITE": given.sysconfdir, "NODE": given.nodedir, "HELPER": given.helper}
            places["BIN"] = f"{given.prefix}/bin"
            build(stage, given.prefix, places, wheels)
            install(stage, root)
    elif given.act == "install-shifter":
        with tempfile.TemporaryDirectory() as stage:
            install_shifter(stage, root)
    else:
        lines = manifest(os.path.join(root, MANIFEST))
        if not lines:
            sys.exit(f"uninstall: no shoebox {VERSION} is installed in {root!r}")
        remove(root, lines)


main()

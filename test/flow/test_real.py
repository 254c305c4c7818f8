"""The main job on a real image: 1.6 GB, 53,000 files, made by mmdebstrap; umoci and the kernel are the judges.

SHOEBOX_TEST_REAL names the image's layout; `make test` makes it, once, when it is root.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.realimage import make
from fixtures.registry import registry  # noqa: F401

if TYPE_CHECKING:
    from fixtures.installed import Shell
    from fixtures.registry import Place

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the layout of the real image, `real:1`."""
    if "SHOEBOX_TEST_REAL" in os.environ:
        return Path(os.environ["SHOEBOX_TEST_REAL"])
    where = tmp_path_factory.mktemp("real")
    try:
        make(str(where))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no real image: mmdebstrap does not work for this user ({error})")
    return where


def test_a_real_image_goes_from_a_registry_to_a_program(
    real: Path,
    registry: Place,  # noqa: F811
    cmd: Shell,
    tmp_path: Path,
) -> None:
    image = f"{registry.host}/science/real:1"
    cmd.ok(
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        f"oci:{real}:real:1",
        f"docker://{image}",
        timeout=600,
    )
    line = f"sh-pull {image} | sh-flatten | sh-stage -d {tmp_path}/store"
    staged = cmd.ok("bash", "-o", "pipefail", "-c", line, timeout=600)
    assert staged.startswith(f"{tmp_path}/store/sha256-")
    program = "import numpy as n, scipy.linalg as s, pandas; print(round(float(s.det(n.eye(3) * 2))), pandas.__name__)"
    assert cmd.ok("sh-run", image, "python3", "-c", program, SHOEBOX_PATH=f"{tmp_path}/store") == "8 pandas"
    assert cmd.ok("sh-run", staged, "cat", "/etc/motd") == "Shoebox"


def xattrs_of(path: str) -> dict[str, bytes]:
    """Return a file's extended attributes; a squashfs that has none at all says ENOTSUP."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def described(top: Path) -> dict[str, tuple[object, ...]]:
    """Return all that can be said of a tree, by path; of a directory's size and links, and the root's time, nothing."""
    found: dict[str, tuple[object, ...]] = {}
    for parent, directories, files in os.walk(top):
        for name in [*directories, *files, ""] if parent == str(top) else [*directories, *files]:
            path = os.path.join(parent, name)
            about = os.lstat(path)
            content: object = ""
            if stat.S_ISREG(about.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            elif stat.S_ISLNK(about.st_mode):
                content = os.readlink(path)
            xattrs = xattrs_of(path)
            links = 0 if stat.S_ISDIR(about.st_mode) else about.st_nlink
            time = int(about.st_mtime) if name else 0
            found[os.path.relpath(path, top)] = (
                oct(about.st_mode), about.st_uid, about.st_gid, about.st_rdev, time, links, content, xattrs
            )  # fmt: skip
    return found


@pytest.mark.root
def test_the_squashfs_of_a_real_image_equals_what_umoci_unpacks(real: Path, cmd: Shell, tmp_path: Path) -> None:
    image = tmp_path / "real.sqfs"
    cmd.ok("sh-flatten", "-o", image, f"oci:{real}:real:1", timeout=600)
    cmd.ok("umoci", "unpack", "--image", f"{real}:real:1", tmp_path / "bundle", timeout=600)
    where = tmp_path / "mnt"
    where.mkdir()
    cmd.ok("mount", "-t", "squashfs", "-o", "loop,ro", image, where)
    try:
        ours = described(where)
    finally:
        cmd.ok("umount", where)
    theirs = described(tmp_path / "bundle" / "rootfs")
    assert ours.pop(".shoebox")
    assert ours.pop(".shoebox/config.json")
    assert len(ours) > 50_000
    assert sorted(ours.keys() ^ theirs.keys()) == []
    assert {path: (ours[path], theirs[path]) for path in ours if ours[path] != theirs[path]} == {}

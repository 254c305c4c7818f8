"""sh-run on a real image: a Debian with Python and NumPy."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return a wheel of one module."""
    path = tmp_path_factory.mktemp("wheel") / "mine-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mine.py", "answer = 42\n")
        archive.writestr("mine-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
        archive.writestr("mine-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("mine-1.dist-info/RECORD", "mine.py,,\nmine-1.dist-info/RECORD,,\n")
    return path


@pytest.mark.skipif("SHOEBOX_TEST_REAL" not in os.environ, reason="no real image was made for the tests")
def test_pip_installs_into_a_root_owned_image_and_nothing_stays(cmd, wheel, tmp_path):
    real = f"oci:{os.environ['SHOEBOX_TEST_REAL']}:real:1"
    image = cmd.ok("sh-flatten", "-o", tmp_path / "real.sqfs", real, timeout=600)
    pip = next(path for path in (Path(place) / "pip" for place in sys.path) if path.is_dir())
    install = f"python3 -m pip install -q --no-index --break-system-packages {wheel}"
    use = "cd /; python3 -c 'import mine, numpy; print(mine.answer, mine.__file__.startswith(\"/usr\"))'"
    words = ("-v", f"{pip}:/opt/pip/pip:ro", "--env", "PYTHONPATH=/opt/pip", image, "sh", "-c")
    assert cmd.ok("sh-run", "--writable", *words, f"{install} && {use}") == "42 True"
    assert cmd("sh-run", *words, install).returncode != 0
    assert cmd("sh-run", *words, use).returncode != 0
    plan = json.loads(cmd.ok("sh-run", "--explain=json", image))
    assert plan["env"]["PATH"]["why"]

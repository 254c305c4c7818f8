"""The recipes do what they say: their image is pulled and staged, their jobs run over two nodes, and leave nothing.

SHOEBOX_TEST_RECIPES names the registry's files with their image; `make test` makes them as doc/recipes.md does, once.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from fixtures import recipes
from fixtures import slurm as real
from fixtures.installed import TREE
from fixtures.nodes import need
from fixtures.registry import served_to

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MADE = Path(os.environ.get("SHOEBOX_TEST_RECIPES", TREE / "build/recipes"))
TEXT = recipes.PAGE.read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", TEXT, re.MULTILINE))
FEW = {  # there are two processors here for all nodes
    "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}


@pytest.fixture(scope="module")
def cluster(prefix):
    """Return a cluster whose user has the page's files, and the image in the store."""
    need(real.why_not())
    if not (MADE / "Dockerfile").exists():
        pytest.skip("the recipes' image was not made: make build/recipes, as root")
    with real.cluster(prefix, ("n1", "n2")) as up, served_to(up.login, MADE) as host:
        for name, text in recipes.files(TEXT).items():
            (up.home / name).write_text(text)
        table = up.home / ".config/shoebox/registries.toml"
        table.parent.mkdir(parents=True)
        table.write_text(f'[registry."registry.example.org"]\nurl = "http://{host}"\n')
        (up.where / "scratch").mkdir()
        (up.where / "scratch").chmod(0o1777)
        up.env.update(FEW, SCRATCH=str(up.where / "scratch"))
        assert real.does_what_it_says(up, SECTIONS["One image for both"]) == 1
        yield up


def test_the_image_is_of_the_pages_dockerfile():
    if (MADE / "Dockerfile").exists():
        assert (MADE / "Dockerfile").read_text() == recipes.files(TEXT)["Dockerfile"]


def test_spark_sorts_more_than_its_memory_and_spills_into_the_nodes_caches(cluster):
    assert real.does_what_it_says(cluster, SECTIONS["Spark"]) == 4
    parts = sorted((cluster.home / "sorted").glob("part-*"))
    lines = "".join(part.read_text() for part in parts).splitlines()
    assert lines == sorted(sha256(b"%d" % number).hexdigest() for number in range(400_000))
    kept = next(cluster.home.glob("spark-*"))
    assert kept.stat().st_mode & 0o77 == 0, "others can read the secret"
    events = [json.loads(line) for path in (kept / "events").iterdir() for line in path.read_text().splitlines()]
    spilled = Counter()
    for event in events:
        if event["Event"] == "SparkListenerTaskEnd":
            spilled[event["Task Info"]["Host"]] += event["Task Metrics"]["Disk Bytes Spilled"]
    assert len(spilled) == 2
    assert min(spilled.values()) > 1 << 20, spilled
    used = re.findall(r" in its cache: (\d+)", (cluster.home / "spark.out").read_text())
    assert min(map(int, used)) > 1
    assert cluster.clean(), cluster.left()


def test_mpi4py_and_numpy_of_the_image_solve_over_two_nodes(cluster):
    assert real.does_what_it_says(cluster, SECTIONS["MPI and NumPy"]) == 2
    assert cluster.clean(), cluster.left()

"""The simulation behind doc/scaling.md."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from bench import scaling
from bench.scaling import Counts, Limits, Queue
from fixtures.installed import TREE

COUNTS = Counts(1000, 5e3, 2e3, 1e8, 1e3, 5e7, 4e8, 1.0)
LIMITS = Limits()


def test_one_client_waits_for_nobody():
    assert scaling.last(1, 2.0, []) == pytest.approx(2.0, rel=1 / scaling.STEPS)


def test_the_same_seed_gives_the_same_seconds():
    assert scaling.last(500, 1.0, [Queue(100, 3)]) == scaling.last(500, 1.0, [Queue(100, 3)])
    assert scaling.last(500, 1.0, [Queue(100, 3)]) != scaling.last(500, 1.0, [Queue(100, 3)], seed=1)


@pytest.mark.parametrize("clients", [100, 800, 100_000])
def test_a_server_that_is_never_idle_needs_the_time_of_all_the_work(clients):
    """Also where one simulated client stands for many."""
    assert scaling.last(clients, 0.0, [Queue(50, 2)]) == pytest.approx(clients * 2 / 50, rel=0.1)


def test_the_slowest_of_two_servers_counts():
    both = scaling.last(400, 0.0, [Queue(50, 2), Queue(1000, 2)])
    assert both == pytest.approx(400 * 2 / 50, rel=0.1)


def test_more_nodes_never_start_sooner():
    for way in (scaling.image, lambda *given: scaling.tree(*given, 68)):
        found = [way(COUNTS, LIMITS, nodes) for nodes in (1, 100, 1_600, 9_600, 100_000)]
        assert found == sorted(found)


def test_ranks_of_a_node_cost_only_a_tree_more():
    one, many = (scaling.all_ways(COUNTS, LIMITS, 5_000, ranks) for ranks in (1, 68))
    assert {way for way in one if one[way] != many[way]} == {"tree"}
    assert many["tree"] == pytest.approx(5_000 * (5e3 + 67 * 2e3) / LIMITS.metadata, rel=0.1)


def test_a_larger_image_is_spread_over_more_servers():
    small = scaling.image(replace(COUNTS, size=1e8), LIMITS, 50_000)
    assert scaling.image(replace(COUNTS, size=4e9), LIMITS, 50_000) == pytest.approx(small / 16, rel=0.2)


def test_a_broadcast_has_as_many_levels_as_the_fan_out_wants():
    few, more, many = (scaling.broadcast(COUNTS, LIMITS, nodes, 1e9) for nodes in (8, 64, 65))
    level = 8 * 4e8 / 1e9
    assert more - few == pytest.approx(level, rel=0.01)
    assert many - more == pytest.approx(level, rel=0.01)


def test_the_page_has_the_figures_that_its_counts_give():
    counts = scaling.read(TREE / "doc/scaling.json")
    page = (TREE / "doc/scaling.md").read_text()
    assert scaling.BEGIN + scaling.text(counts, LIMITS) + scaling.END in page
    assert (TREE / "doc/scaling.svg").read_text() == scaling.svg(counts, LIMITS)


def test_the_page_names_every_limit():
    page = (TREE / "doc/scaling.md").read_text()
    table = page.partition("## Limits")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == set(Limits.__dataclass_fields__)


def test_written_figures_are_read_again(tmp_path):
    page = tmp_path / "scaling.md"
    page.write_text(f"head\n{scaling.BEGIN}old\n{scaling.END}tail\n")
    scaling.write(tmp_path / "scaling", COUNTS)
    assert scaling.read(tmp_path / "scaling.json") == COUNTS
    assert page.read_text().startswith(f"head\n{scaling.BEGIN}| nodes")
    assert page.read_text().endswith(f"{scaling.END}tail\n")

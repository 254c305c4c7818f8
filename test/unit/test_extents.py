"""Who has which part of the backing file, against a model that knows each block."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoebox import extents
from shoebox.extents import HOLE, LOST, RESERVED, WRITTEN, Space

TOTAL = 40
RANGES = st.tuples(st.integers(0, 30), st.integers(1, 12))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 15), st.integers(-1, TOTAL), st.randoms())))
def test_free_space_is_handed_out_once_and_merged_when_it_comes_back(steps):
    space, held = Space(TOTAL), []
    for takes, count, goal, dice in steps:
        if takes:
            got = space.take(count, goal)
            assert sum(length for _, length in got) in (0, count)
            assert got or count > TOTAL - sum(length for _, length in held)
            held += got
        elif held:
            place, length = held.pop(dice.randrange(len(held)))
            cut = dice.randrange(length)
            if cut:
                space.give(place, cut)
            space.give(place + cut, length - cut)
        mine = [block for place, length in held for block in range(place, place + length)]
        theirs = [block for place, length in space.runs() for block in range(place, place + length)]
        assert sorted(mine + theirs) == list(range(TOTAL))
        assert space.free == len(theirs)
        ends = [place + length for place, length in space.runs()]
        assert not set(ends) & {place for place, _ in space.runs()}


def test_what_follows_in_a_file_follows_in_the_backing_file():
    space = Space(100)
    (first,) = space.take(10)
    assert space.take(10, sum(first)) == [(sum(first), 10)]
    assert space.take(1, 70) == [(70, 1)]


def test_small_files_fill_gaps_if_there_is_nothing_better():
    space = Space(100)
    space.take(100)
    space.give(50, 20)
    space.give(10, 2)
    assert space.take(2) == [(10, 2)]
    assert space.take(3) == [(50, 3)]


def test_small_files_lie_one_after_another_for_a_while_and_then_where_there_is_room_again():
    space = Space(1 << 16)
    assert [space.take(1) for _ in range(3)] == [[(0, 1)], [(1, 1)], [(2, 1)]]
    space.give(1, 1)
    assert space.take(1) == [(3, 1)]
    space.take((1 << 14) - 4)
    space.give(100, 256)
    assert space.take(2) == [(100, 2)]


def test_a_large_file_takes_what_pieces_there_are():
    space = Space(100)
    space.take(100)
    for place in (10, 20, 30):
        space.give(place, 4)
    assert sorted(length for _, length in space.take(10)) == [2, 4, 4]
    assert space.take(3) == []
    assert space.free == 2


@given(st.lists(st.tuples(st.sampled_from([WRITTEN, RESERVED, LOST, HOLE]), RANGES)))
def test_the_parts_of_a_file_are_what_was_put_last(steps):
    parts, model, fresh = [], {}, 1000
    for state, (start, count) in steps:
        blocks = range(start, start + count)
        had = sorted(model[block][0] for block in blocks if model.get(block, (-1,))[0] >= 0)
        freed = extents.cut(parts, start, count)
        assert sorted(block for place, length in freed for block in range(place, place + length)) == had
        for block in blocks:
            model.pop(block, None)
        if state != HOLE:
            place = -1 if state == LOST else fresh
            extents.put(parts, start, count, place, state)
            model |= {block: (place if place < 0 else place + block - start, state) for block in blocks}
            fresh += 2 * count * (state == RESERVED) + count
        for first, number in ((0, 50), (3, 9), (start, count), (start + count - 1, 2)):
            seen, at = {}, first
            for begin, length, place, kind in extents.pieces(parts, first, number):
                assert begin == at
                at += length
                seen |= {begin + n: (place + n if place >= 0 else -1, kind) for n in range(length)}
            assert at == first + number
            assert seen == {block: model.get(block, (-1, HOLE)) for block in range(first, first + number)}
        assert parts == sorted(parts)
        assert extents.end(parts) == max(model, default=-1) + 1


def test_parts_that_follow_each_other_in_both_files_are_one():
    parts = []
    for start in (0, 2, 1):
        extents.put(parts, start, 1, 70 + start, WRITTEN)
    assert parts == [(0, 3, 70, WRITTEN)]
    extents.put(parts, 3, 1, 73, RESERVED)
    extents.put(parts, 4, 1, 80, WRITTEN)
    assert len(parts) == 3
    assert extents.goal(parts, 7) == 83

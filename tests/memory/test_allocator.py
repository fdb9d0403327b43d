"""The model of the caching allocator, rule by rule."""

import random
from itertools import pairwise

import pytest

from overnight.memory.allocator import BLOCK, Allocator, reserved_bytes
from overnight.memory.trace import Trace

MIB = 2**20


@pytest.mark.parametrize(
    ("asked", "reserved"),
    [(1, 2), (1 * MIB, 2), (1 * MIB + 1, 20), (10 * MIB - 512, 20), (10 * MIB, 10), (11 * MIB + 1, 12)],
)
def test_segments_by_size(asked, reserved):
    model = Allocator(expandable=False)
    model.allocate(asked)
    assert model.reserved == reserved * MIB


def test_sizes_are_rounded_to_512_bytes():
    model = Allocator()
    for size in (1, 512, 513):
        model.allocate(size)
    assert model.allocated == 4 * 512


def test_the_smallest_block_that_is_large_enough_is_taken():
    model = Allocator(expandable=False)
    large, small = model.allocate(64 * MIB), model.allocate(32 * MIB)
    model.release(large)
    model.release(small)
    taken = model.allocate(30 * MIB)
    assert taken.segment is small.segment
    assert model.reserved == 96 * MIB


def test_what_is_left_over_is_used_unless_it_is_too_little():
    model = Allocator(expandable=False)
    model.release(model.allocate(32 * MIB))
    model.allocate(20 * MIB)
    model.allocate(12 * MIB)
    assert model.reserved == 32 * MIB
    model = Allocator(expandable=False)
    model.release(model.allocate(32 * MIB))
    model.allocate(31 * MIB)  # the last MiB is not cut off
    assert model.allocated == 32 * MIB


def test_neighbours_become_one():
    model = Allocator(expandable=False)
    model.release(model.allocate(60 * MIB))
    parts = [model.allocate(20 * MIB) for _ in range(3)]
    for index in (0, 2, 1):
        model.release(parts[index])
    assert model.allocate(60 * MIB).segment is parts[0].segment
    assert model.reserved == 60 * MIB


def test_an_expandable_segment_grows_by_pages_and_uses_its_free_end():
    model = Allocator(expandable=True)
    first = model.allocate(30 * MIB)
    assert model.reserved == 40 * MIB
    model.allocate(25 * MIB)
    assert model.reserved == 60 * MIB
    model.release(first)
    model.allocate(35 * MIB)  # the hole of 30 does not do; the end has 5 free
    assert model.reserved == 100 * MIB


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_asked_the_books_balance(expandable, seed):
    """Reserved covers allocated, pieces do not overlap, and everything comes back."""
    draw = random.Random(seed)
    model, held, asked = Allocator(expandable), [], 0
    for _ in range(2000):
        if held and draw.random() < 0.5:
            model.release(held.pop(draw.randrange(len(held))))
        else:
            size = int(2 ** draw.uniform(5, 24))
            piece = model.allocate(size)
            assert piece.size >= size
            held.append(piece)
            asked += 1
        assert model.allocated == sum(piece.size for piece in held) <= model.reserved
    assert asked > 500
    spans = sorted((p.segment.number, p.start, p.start + p.size) for p in held)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(spans))
    for piece in held:
        model.release(piece)
    assert model.allocated == 0
    before = model.reserved
    assert model.allocate(1).size == BLOCK
    assert model.reserved == before  # all of it is one free piece again


def test_a_program_reserves_what_its_peak_takes():
    trace = Trace()
    first = trace.allocate(30 * MIB, "activations", ("forward", "a"))
    trace.allocate(40 * MIB, "activations", ("forward", "b"))
    trace.release(first, ("backward", "c"))
    trace.allocate(20 * MIB, "activations", ("backward", "d"))
    assert reserved_bytes(trace, expandable=False) == 70 * MIB
    assert reserved_bytes(trace) == 80 * MIB  # pages of 20
    assert trace.peak(BLOCK).bytes == 70 * MIB

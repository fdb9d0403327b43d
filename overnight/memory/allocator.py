"""A model of PyTorch's caching allocator on CUDA, written from its documented rules.

Up to 1 MiB comes out of segments of 2 MiB; below 10 MiB out of segments of 20 MiB; more gets a segment of its
own, rounded to 2 MiB. The smallest free block that is large enough is split; free neighbours are joined. With
expandable segments each pool is one range that grows by 2 or 20 MiB. What was reserved is never given back.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from overnight.memory.trace import Trace, rounded

MIB = 2**20
BLOCK = 512
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
MEDIUM, MEDIUM_SEGMENT = 10 * MIB, 20 * MIB
LARGE_ROUND = 2 * MIB


@dataclass(eq=False)
class _Piece:
    start: int
    size: int
    segment: "_Segment"
    free: bool = True
    before: "_Piece | None" = None
    after: "_Piece | None" = None

    def key(self) -> tuple[int, int, int]:
        return self.size, self.segment.number, self.start


@dataclass(eq=False)
class _Segment:
    number: int
    small: bool
    size: int = 0
    last: _Piece | None = None


@dataclass
class _Pool:
    """Free pieces by size, then by address."""

    keys: list[tuple[int, int, int]] = field(default_factory=list)
    pieces: dict[tuple[int, int, int], _Piece] = field(default_factory=dict)

    def add(self, piece: _Piece) -> None:
        insort(self.keys, piece.key())
        self.pieces[piece.key()] = piece

    def remove(self, piece: _Piece) -> None:
        del self.keys[bisect_left(self.keys, piece.key())]
        del self.pieces[piece.key()]

    def best(self, size: int) -> _Piece | None:
        at = bisect_left(self.keys, (size, -1, -1))
        return self.pieces[self.keys[at]] if at < len(self.keys) else None


class Allocator:
    def __init__(self, expandable: bool = True) -> None:
        self.expandable = expandable
        self.pools = {True: _Pool(), False: _Pool()}
        self.growing = {small: _Segment(number, small) for number, small in enumerate((True, False))}
        self.allocated = 0
        self.reserved = 0
        self.count = len(self.growing)

    def allocate(self, size: int) -> _Piece:
        size = rounded(size, BLOCK)
        small = size <= SMALL
        piece = self.pools[small].best(size) or self._new(size, small)
        self.pools[small].remove(piece)
        self._split(piece, size)
        piece.free = False
        self.allocated += piece.size
        return piece

    def release(self, piece: _Piece) -> None:
        self.allocated -= piece.size
        piece.free = True
        pool = self.pools[piece.segment.small]
        for other in (piece.before, piece.after):
            if other is not None and other.free:
                pool.remove(other)
                piece = _joined(other, piece) if other is piece.before else _joined(piece, other)
        pool.add(piece)

    def _new(self, size: int, small: bool) -> _Piece:
        if self.expandable:  # the free piece at the end of the pool's one segment is used first
            segment = self.growing[small]
            last = segment.last
            own = last.size if last is not None and last.free else 0
            return self._lengthened(segment, rounded(size - own, SMALL_SEGMENT if small else MEDIUM_SEGMENT))
        whole = MEDIUM_SEGMENT if size < MEDIUM else rounded(size, LARGE_ROUND)
        self.count += 1
        return self._lengthened(_Segment(self.count, small), SMALL_SEGMENT if small else whole)

    def _lengthened(self, segment: _Segment, more: int) -> _Piece:
        self.reserved += more
        pool = self.pools[segment.small]
        last = segment.last
        piece = _Piece(segment.size, more, segment, before=last)
        segment.size += more
        segment.last = piece
        if last is not None:
            last.after = piece
            if last.free:
                pool.remove(last)
                piece = _joined(last, piece)
        pool.add(piece)
        return piece

    def _split(self, piece: _Piece, size: int) -> None:
        rest = piece.size - size
        if rest < BLOCK or (not self.expandable and not piece.segment.small and rest <= SMALL):
            return
        other = _Piece(piece.start + size, rest, piece.segment, before=piece, after=piece.after)
        if piece.after is not None:
            piece.after.before = other
        if piece.segment.last is piece:
            piece.segment.last = other
        piece.size = size
        piece.after = other
        self.pools[piece.segment.small].add(other)


def _joined(one: _Piece, other: _Piece) -> _Piece:
    one.size += other.size
    one.after = other.after
    if other.after is not None:
        other.after.before = one
    if one.segment.last is other:
        one.segment.last = one
    return one


def reserved_bytes(trace: Trace, expandable: bool = True) -> int:
    model = Allocator(expandable)
    pieces = dict[int, _Piece]()
    for event in trace.events:
        if event < 0:
            model.release(pieces.pop(~event))
        else:
            pieces[event] = model.allocate(trace.sizes[event])
    return model.reserved

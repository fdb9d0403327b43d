"""A model of PyTorch's caching allocator on CUDA, written from its documented rules.

Sizes are rounded to 512 B. Up to 1 MiB they come out of segments of 2 MiB; below 10 MiB out of segments of
20 MiB; larger ones get a segment of their size rounded to 2 MiB. The smallest free block that is large enough
is taken and split; free neighbours are joined. Memory of the driver stays reserved until an allocation meets
the limit; then segments that are wholly free are returned. With expandable segments each pool is one range of
addresses that grows by pages of 2 or 20 MiB.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from overnight.memory.trace import Trace, rounded

MIB = 2**20
BLOCK = 512
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
MEDIUM, MEDIUM_SEGMENT = 10 * MIB, 20 * MIB
LARGE_ROUND = 2 * MIB


@dataclass(frozen=True)
class Replay:
    """Bytes: the most in use, the most reserved. fits: within the limit.

    at: phase and operator of the most reserved, or of the allocation that did not fit.
    """

    allocated: int
    reserved: int
    fits: bool = True
    at: tuple[str, str] = ("", "")


@dataclass(eq=False)
class _Piece:
    """A block of a segment. gone: bytes of a free block that went back to the driver."""

    start: int
    size: int
    segment: "_Segment"
    free: bool = True
    gone: int = 0
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
    """Free pieces in the order of the search: by size, then by address."""

    keys: list[tuple[int, int, int]] = field(default_factory=list)
    pieces: dict[tuple[int, int, int], _Piece] = field(default_factory=dict)

    def add(self, piece: _Piece) -> None:
        insort(self.keys, piece.key())
        self.pieces[piece.key()] = piece

    def remove(self, piece: _Piece) -> None:
        del self.keys[bisect_left(self.keys, piece.key())]
        del self.pieces[piece.key()]

    def best(self, size: int) -> _Piece | None:
        """The smallest free piece of at least `size`."""
        at = bisect_left(self.keys, (size, -1, -1))
        return self.pieces[self.keys[at]] if at < len(self.keys) else None


class Allocator:
    """Call allocate() and release() as the program does; read `reserved` and `allocated`, bytes."""

    def __init__(self, expandable: bool = True, limit: int | None = None) -> None:
        self.expandable = expandable
        self.limit = limit
        self.pools = {True: _Pool(), False: _Pool()}
        self.growing = {small: _Segment(number, small) for number, small in enumerate((True, False))}
        self.allocated = 0
        self.reserved = 0
        self.count = len(self.growing)

    def allocate(self, size: int) -> _Piece | None:
        """A piece of at least `size` bytes; None when that is more than the limit allows."""
        size = rounded(size, BLOCK)
        small = size <= SMALL
        piece = self.pools[small].best(size) or self._new(size, small)
        if piece is None and self.limit is not None:
            self.give_back()
            piece = self._new(size, small)
        if piece is None or not self._mapped(piece, size):
            return None
        self.pools[small].remove(piece)
        self._split(piece, size)
        piece.free = False
        self.allocated += piece.size
        return piece

    def release(self, piece: _Piece) -> None:
        """Give a piece back to its pool, joined with its neighbours where they are free too."""
        self.allocated -= piece.size
        piece.free = True
        pool = self.pools[piece.segment.small]
        for other in (piece.before, piece.after):
            if other is not None and other.free:
                pool.remove(other)
                piece = _joined(other, piece) if other is piece.before else _joined(piece, other)
        pool.add(piece)

    def give_back(self) -> None:
        """Return what is wholly free to the driver, as empty_cache() does."""
        for small, pool in self.pools.items():
            page = SMALL_SEGMENT if small else MEDIUM_SEGMENT
            for piece in list(pool.pieces.values()):
                if self.expandable:
                    whole = max(0, (piece.start + piece.size) // page - -(-piece.start // page)) * page
                    self.reserved -= max(0, whole - piece.gone)
                    piece.gone = max(piece.gone, whole)
                elif piece.before is None and piece.after is None:
                    pool.remove(piece)
                    self.reserved -= piece.size

    def _new(self, size: int, small: bool) -> _Piece | None:
        """A free piece of memory that is large enough, new from the driver; None above the limit."""
        if self.expandable:
            return self._grown(self.growing[small], size)
        whole = MEDIUM_SEGMENT if size < MEDIUM else rounded(size, LARGE_ROUND)
        if small:
            whole = SMALL_SEGMENT
        self.count += 1
        return self._lengthened(_Segment(self.count, small), whole)

    def _grown(self, segment: _Segment, size: int) -> _Piece | None:
        """Extend the pool's one segment by whole pages; the free piece at its end is used first."""
        last = segment.last
        own = last.size if last is not None and last.free else 0
        return self._lengthened(
            segment, rounded(size - own, SMALL_SEGMENT if segment.small else MEDIUM_SEGMENT)
        )

    def _lengthened(self, segment: _Segment, more: int) -> _Piece | None:
        if self.limit is not None and self.reserved + more > self.limit:
            return None
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

    def _mapped(self, piece: _Piece, size: int) -> bool:
        """Map the returned part of the piece again; False above the limit."""
        more = min(piece.gone, rounded(size, SMALL_SEGMENT if piece.segment.small else MEDIUM_SEGMENT))
        if self.limit is not None and self.reserved + more > self.limit:
            return False
        self.reserved += more
        piece.gone -= more
        return True

    def _split(self, piece: _Piece, size: int) -> None:
        """Cut off the rest, unless it is too small."""
        rest = piece.size - size
        if rest < BLOCK or (not self.expandable and not piece.segment.small and rest <= SMALL):
            return
        other = _Piece(
            piece.start + size, rest, piece.segment, gone=piece.gone, before=piece, after=piece.after
        )
        if piece.after is not None:
            piece.after.before = other
        if piece.segment.last is piece:
            piece.segment.last = other
        piece.size, piece.after, piece.gone = size, other, 0
        self.pools[piece.segment.small].add(other)


def _joined(one: _Piece, other: _Piece) -> _Piece:
    """Two neighbours as one."""
    one.size += other.size
    one.after = other.after
    one.gone += other.gone
    if other.after is not None:
        other.after.before = one
    if one.segment.last is other:
        one.segment.last = one
    return one


def replay(trace: Trace, expandable: bool = True, limit: int | None = None) -> Replay:
    """Run a program's allocations through the model, up to the first that exceeds `limit` bytes."""
    model = Allocator(expandable, limit)
    pieces = dict[int, _Piece]()
    allocated = 0
    reserved = 0
    at = ("", "")
    for event, place in zip(trace.events, trace.places, strict=True):
        if event < 0:
            model.release(pieces.pop(~event))
            continue
        piece = model.allocate(trace.sizes[event])
        if piece is None:
            return Replay(allocated, reserved, False, place)
        pieces[event] = piece
        allocated = max(allocated, model.allocated)
        if model.reserved > reserved:
            reserved, at = model.reserved, place
    return Replay(allocated, reserved, True, at)

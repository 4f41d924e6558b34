"""Sets of byte ranges: which parts of a sparse file are there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Extents:
    """Disjoint half-open ranges ``[start, end)``, kept sorted and joined."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    @property
    def total(self) -> int:
        """Bytes covered."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> None:
        """Cover ``[start, end)``."""
        if start >= end:
            return
        # The common case, a sequential writer: grow the last range.
        if self._ends and self._starts[-1] <= start <= self._ends[-1]:
            self._ends[-1] = max(self._ends[-1], end)
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Uncover ``[start, end)``."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        left, right = self._starts[first], self._ends[last - 1]
        kept = [(s, e) for s, e in ((left, start), (end, right)) if s < e]
        self._starts[first:last] = [s for s, _ in kept]
        self._ends[first:last] = [e for _, e in kept]

    def covers(self, start: int, end: int) -> bool:
        """True if all of ``[start, end)`` is there."""
        return start >= end or self.run(start) >= end

    def run(self, at: int) -> int:
        """End of the covered run that contains ``at``; ``at`` itself if it is not covered."""
        i = bisect_right(self._starts, at) - 1
        return self._ends[i] if i >= 0 and self._ends[i] > at else at

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of ``[start, end)`` is missing, in order."""
        at = start
        for s, e in self:
            if e <= at:
                continue
            if s >= end:
                break
            if s > at:
                yield at, s
            at = max(at, e)
        if at < end:
            yield at, end

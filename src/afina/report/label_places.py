"""Where texts stand beside points so that they do not lie on each other.

Comes in: points and the sizes of their texts, in pixels of one area. Goes out: a box for each text. Greedy: the first
free place of a fixed list, nearest first; where none is free, the one that overlaps least. It draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAP_PX = 3  # between a point's rim and its text
STEPS_PX = (0, *(sign * step for step in range(4, 100, 4) for sign in (1, -1)))  # up or down from straight beside
FARTHER_PX = (0, 22, 60)  # sideways, where all of these are taken
MARGIN_PX = 6  # that a text may stand out of the area above and below


@dataclass(frozen=True)
class Box:
    """x, y: the upper left corner; y grows downwards."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Shared area, in square pixels."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(0.0, across) * max(0.0, down)


def place(
    points: Sequence[tuple[float, float, float]], sizes: Sequence[tuple[float, float]], width: float, height: float
) -> list[Box]:
    """A box for each text, inside the area where that is possible, in the order given.

    points: (x, y, radius of the drawn point). sizes: (width, height) of each text.
    """
    area = Box(0, -MARGIN_PX, width, height + 2 * MARGIN_PX)
    drawn = [Box(x - r, y - r, 2 * r, 2 * r) for x, y, r in points]
    placed: dict[int, Box] = {}
    # From the top down, so that the texts of a crowd grow away from each other in one direction.
    for number in sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0])):
        taken = [*drawn, *placed.values()]
        best: tuple[float, Box] | None = None
        for box in _places(points[number], sizes[number]):
            outside = box.width * box.height - box.overlap(area)
            cost = sum(box.overlap(other) for other in taken) + 3 * outside
            if best is None or cost < best[0] - 1e-9:
                best = (cost, box)
            if cost < 1e-9:
                break
        assert best is not None
        placed[number] = best[1]
    return [placed[number] for number in range(len(points))]


def _places(point: tuple[float, float, float], size: tuple[float, float]) -> Iterator[Box]:
    """Right of the point, left of it, then the same a little lower or higher, then farther away."""
    (x, y, radius), (width, height) = point, size
    for farther in FARTHER_PX:
        away = radius + GAP_PX + farther
        for step in STEPS_PX:
            for left in (x + away, x - away - width):
                yield Box(left, y - height / 2 + step, width, height)

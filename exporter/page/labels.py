"""Places for the labels of a scatter chart, where they hide neither a point nor each other.

Points of a report are often nearly the same (fp32 and fp16 on a CPU), so each label tries places around its point, near
ones first, and takes the cheapest. Those that end up away from their point get a line to it.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Sequence
from typing import Literal

POINT_RADIUS = 7.0
LINE_HEIGHT = 17.0

_DIRECTIONS = ((1, 0), (0, -1), (-1, 0), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
_BETWEEN = ((-0.5, -1), (-0.5, 1), (0.5, -1), (0.5, 1), (-1, -0.5), (-1, 0.5), (1, -0.5), (1, 0.5))
_DISTANCES = (0.0, 14.0, 28.0, 44.0, 64.0, 88.0, 116.0)
# For each square pixel of a label, and for each pixel that it is further away.
_HIDDEN_COST = 4.0
_OUTSIDE_COST = 8.0  # what is cut off cannot be read at all
_DISTANCE_COST = 1.0
_MARGIN = 4.0  # between labels
_SOFT_COST = 0.8  # lines may be written over where nothing else helps


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area they share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0

    def grown(self, margin: float) -> Box:
        """The rectangle with a margin around it."""
        return Box(self.left - margin, self.top - margin, self.right + margin, self.bottom + margin)

    @property
    def area(self) -> float:
        """Its area."""
        return (self.right - self.left) * (self.bottom - self.top)

    @classmethod
    def around(cls, x: float, y: float, radius: float) -> Box:
        """The square around a point."""
        return cls(x - radius, y - radius, x + radius, y + radius)


@dataclasses.dataclass(frozen=True)
class Label:
    """Where a label goes, which end of it is fixed, and the end of the line to its point if it needs one."""

    box: Box
    anchor: Literal["start", "middle", "end"]
    """The side that faces the point, so that a label narrower than estimated does not drift away."""
    leader: tuple[float, float] | None

    @property
    def x(self) -> float:
        """Where the text is anchored."""
        middle = (self.box.left + self.box.right) / 2
        return {"start": self.box.left, "middle": middle, "end": self.box.right}[self.anchor]


def text_width(text: str, size: float) -> float:
    """An upper estimate in pixels; the fonts of the reader are not known here."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return size * (0.6 * (len(text) - wide) + 1.05 * wide)


def shorten(text: str, width: float, size: float) -> str:
    """The text, cut with an ellipsis to fit a width."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    bounds: Box,
    hard: Sequence[Box] = (),
    soft: Sequence[Box] = (),
) -> list[Label]:
    """One place for each label.

    Args:
        points: pixel positions.
        widths: of the labels, in pixels.
        bounds: where labels may be.
        hard: what they must not hide, besides points and labels.
        soft: what they should rather not hide.
    """
    taken = [*hard, *(Box.around(x, y, POINT_RADIUS + 1) for x, y in points)]
    labels = []
    for point, width in zip(points, widths, strict=True):
        label = min(_places(point, width), key=lambda place: _cost(place, point, bounds, taken, soft))
        taken += [label.box.grown(_MARGIN), *_leader_boxes(point, label.leader)]
        labels.append(label)
    return labels


def _places(point: tuple[float, float], width: float) -> list[Label]:
    """Every place that is considered, the preferred ones first."""
    x, y = point
    places = []
    for distance in _DISTANCES:
        gap = POINT_RADIUS + 8 + distance
        for across, down in _DIRECTIONS if distance == 0 else (*_DIRECTIONS, *_BETWEEN):
            # What lies beside the point needs less of a gap above or below it.
            middle_x = x + across * (gap + width / 2)
            middle_y = y + down * ((0.6 if abs(across) == 1 else 1.0) * gap + LINE_HEIGHT / 2)
            left, top = middle_x - width / 2, middle_y - LINE_HEIGHT / 2
            box = Box(left, top, left + width, top + LINE_HEIGHT)
            label = Label(box, "start" if across == 1 else "end" if across == -1 else "middle", None)
            if distance > 0:
                nearest = (label.x, min(max(y, box.top + 4), box.bottom - 4))
                label = dataclasses.replace(label, leader=nearest)
            places.append(label)
    return places


def _cost(place: Label, point: tuple[float, float], bounds: Box, taken: Sequence[Box], soft: Sequence[Box]) -> float:
    box = place.box
    leader = _leader_boxes(point, place.leader)
    hidden = sum(box.overlap(other) for other in taken)
    hidden += sum(sample.overlap(other) for sample in leader for other in taken)
    crossed = sum(box.overlap(other) for other in soft)
    outside = box.area - box.overlap(bounds)
    distance = abs(box.left + box.right - 2 * point[0]) / 2 - (box.right - box.left) / 2
    distance = max(0.0, distance) + max(0.0, abs(box.top + box.bottom - 2 * point[1]) / 2 - LINE_HEIGHT / 2)
    return _HIDDEN_COST * hidden + _SOFT_COST * crossed + _OUTSIDE_COST * outside + _DISTANCE_COST * distance


def _leader_boxes(point: tuple[float, float], end: tuple[float, float] | None) -> list[Box]:
    """A line as a row of small squares, without what lies among the points it comes from."""
    if end is None:
        return []
    (x, y), steps = point, 16
    spots = [(x + (end[0] - x) * step / steps, y + (end[1] - y) * step / steps) for step in range(steps)]
    return [Box.around(*spot, 1.5) for spot in spots if math.dist(spot, point) > 2.5 * POINT_RADIUS]

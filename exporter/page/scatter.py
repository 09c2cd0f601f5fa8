"""A scatter chart as inline SVG, with its Pareto front. Pure functions of what they draw.

Points differ in shape and filling, not in colour alone, and every point carries its name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from onnxpress.exporter.page.charts import FONT, SMALL_FONT, Kind, frame
from onnxpress.exporter.page.labels import POINT_RADIUS, Box, Label, place_labels, shorten, text_width
from onnxpress.exporter.page.markup import Html, element

_TRIAL_RADIUS = 3.5


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a scatter chart."""

    label: str
    x: float
    y: float
    tip: str
    kind: Kind


@dataclasses.dataclass(frozen=True)
class AxisText:
    """What an axis says: its title, what is added where there is room, and the highest value that makes sense on it."""

    title: str
    hint: str
    ceiling: float = math.inf
    falling: bool = False
    """Whether lower values are further up."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values between low and high."""
        rough = (self.high - self.low) / max(1, count)
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other beats, from left to right.

    A point is beaten by one that is as good or better in both (x lower, y higher) and better in one, so equal points
    are beaten together or not at all.
    """

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    front = [index for index, point in enumerate(points) if not any(beats(other, point) for other in points)]
    return sorted(front, key=lambda index: points[index])


def scatter_chart(
    name: str,
    title: str,
    description: str,
    points: Sequence[Point],
    front: Sequence[int],
    axes: tuple[AxisText, AxisText],
    size: tuple[float, float],
    limit: tuple[float, str] | None = None,
    trials: Sequence[Point] = (),
) -> Html:
    """Points with their names, and a staircase through those on the Pareto front.

    Args:
        name: unique in the page.
        title: for screen readers.
        description: what the chart shows in words, for screen readers.
        points: at least one.
        front: positions of the points on the front, from left to right.
        axes: of x and y.
        size: of the drawing, in pixels.
        limit: a y value to draw a line at, and what it is.
        trials: further points, small and without names; those beyond the axis of y lie at its edge.
    """
    width, height = size
    plot = Box(62, 34, width - 14, height - 52)
    x = Axis(0.0, max(point.x for point in (*points, *trials)) * 1.12 or 1.0, plot.left, plot.right)
    y = _y_axis([point.y for point in points], limit, axes[1], plot)
    places = [(x.at(point.x), y.at(point.y)) for point in points]
    steps = _staircase([places[index] for index in front], plot)
    limit_drawn, limit_box = _limit(limit, y, plot)
    labels = [shorten(point.label, 0.45 * width, FONT) for point in points]
    spots = place_labels(
        places,
        [text_width(label, FONT) for label in labels],
        Box(plot.left, 20, plot.right, plot.bottom),
        hard=limit_box,
        soft=_line_boxes(steps),
    )
    named = _with_company(points, places)
    marks = [
        _mark(point, place, label, spot, front=index in front)
        for index, (point, place, label, spot) in enumerate(zip(named, places, labels, spots, strict=True))
    ]
    # The default comes last, so that no other point covers it.
    order = sorted(range(len(points)), key=lambda index: points[index].kind == "default")
    small = [_trial(point, x, y) for point in trials]
    drawn = [_grid(x, y, axes, plot), limit_drawn, _front(steps, plot), small, [marks[index] for index in order]]
    return frame(name, title, description, size, drawn)


def _with_company(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[Point]:
    """The points, whose tips also tell of those that they hide or that hide them."""
    result = []
    for point, place in zip(points, places, strict=True):
        near = [
            f"\nAlso here: {', '.join(other.tip.splitlines()[:3])}"
            for other, there in zip(points, places, strict=True)
            if other is not point and math.dist(place, there) < 1.6 * POINT_RADIUS
        ]
        result.append(dataclasses.replace(point, tip=point.tip + "".join(near)))
    return result


def _y_axis(values: Sequence[float], limit: tuple[float, str] | None, text: AxisText, plot: Box) -> Axis:
    """An axis that shows differences, but does not blow noise up to the height of the page."""
    low, high = min(values), max(values)
    if limit is not None:
        low, high = min(low, limit[0]), max(high, limit[0])
    span = max(high - low, 0.004 * max(abs(low), abs(high)), 1e-6)
    middle = (low + high) / 2
    high = min(middle + 0.62 * span, text.ceiling + 0.12 * span)
    start, end = (plot.top, plot.bottom) if text.falling else (plot.bottom, plot.top)
    return Axis(middle - 0.62 * span, high, start, end)


def _grid(x: Axis, y: Axis, axes: tuple[AxisText, AxisText], plot: Box) -> list[Html]:
    x_text, y_text = axes
    parts = []
    y_ticks = [tick for tick in y.ticks(5) if tick <= y_text.ceiling + 1e-9]
    decimals = _decimals(y_ticks)
    for tick in y_ticks:
        at = y.at(tick)
        parts.append(element("line", x1=plot.left, x2=plot.right, y1=at, y2=at, class_="grid"))
        parts.append(element("text", f"{tick:.{decimals}f}", x=plot.left - 9, y=at + 4, class_="tick end"))
    x_ticks = x.ticks(max(3, int((plot.right - plot.left) / 110)))
    decimals = _decimals(x_ticks)
    for tick in x_ticks:
        at = x.at(tick)
        parts.append(element("line", x1=at, x2=at, y1=plot.bottom, y2=plot.bottom + 5, class_="axis"))
        parts.append(element("text", f"{tick:,.{decimals}f}", x=at, y=plot.bottom + 20, class_="tick middle"))
    parts.append(element("line", x1=plot.left, x2=plot.right, y1=plot.bottom, y2=plot.bottom, class_="axis"))
    parts.append(element("text", _axis_title(y_text, plot.right), x=0, y=14, class_="axis-title"))
    title = _axis_title(x_text, plot.right)
    parts.append(element("text", title, x=plot.right, y=plot.bottom + 43, class_="axis-title end"))
    return parts


def _axis_title(text: AxisText, room: float) -> str:
    whole = f"{text.title} ({text.hint})"
    return whole if text_width(whole, FONT) <= room else shorten(text.title, room, FONT)


def _decimals(ticks: Sequence[float]) -> int:
    """As many as tell neighbouring ticks apart."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    return next((count for count in range(8) if abs(step * 10**count - round(step * 10**count)) < 1e-6), 8)


def _limit(limit: tuple[float, str] | None, y: Axis, plot: Box) -> tuple[list[Html], list[Box]]:
    """A dashed line with its text above it, and the room the text takes."""
    if limit is None:
        return [], []
    at, text = y.at(limit[0]), shorten(limit[1], plot.right - plot.left, SMALL_FONT)
    line = element("line", x1=plot.left, x2=plot.right, y1=at, y2=at, class_="limit")
    written = element("text", text, x=plot.right, y=at + 16, class_="tick end")
    return [line, written], [Box(plot.right - text_width(text, SMALL_FONT), at, plot.right, at + 20)]


def _staircase(front: Sequence[tuple[float, float]], plot: Box) -> list[tuple[float, float]]:
    """Corners of the line around what is beaten: the level of a point holds until the next one is reached."""
    if not front:
        return []
    corners = [(front[0][0], plot.bottom), front[0]]
    for before, after in itertools.pairwise(front):
        corners += [(after[0], before[1]), after]
    return [*corners, (plot.right, front[-1][1])]


def _line_boxes(corners: Sequence[tuple[float, float]]) -> list[Box]:
    return [
        Box(min(a[0], b[0]) - 2, min(a[1], b[1]) - 2, max(a[0], b[0]) + 2, max(a[1], b[1]) + 2)
        for a, b in itertools.pairwise(corners)
    ]


def _front(corners: Sequence[tuple[float, float]], plot: Box) -> list[Html]:
    if not corners:
        return []
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    area = f"{path}L{plot.right:.1f} {plot.bottom:.1f}Z"
    return [element("path", d=area, class_="beaten"), element("path", d=path, class_="front")]


def _mark(point: Point, place: tuple[float, float], label: str, spot: Label, *, front: bool) -> Html:
    """A point, its name and the line between them; filled if it is on the front, a diamond if it is the baseline."""
    x, y = place
    parts: list[object] = [element("title")]  # empty, for the reason given in _bar
    if spot.leader is not None:
        parts.append(element("line", x1=x, y1=y, x2=spot.leader[0], y2=spot.leader[1], class_="leader"))
    if point.kind == "default":
        parts.append(element("circle", cx=x, cy=y, r=POINT_RADIUS + 4, class_="halo"))
    parts.append(element("path", d=point_path(point.kind, x, y), class_=f"point {point.kind}{' on-front' * front}"))
    parts.append(
        element("text", label, x=spot.x, y=spot.box.bottom - 4, class_=f"point-label {point.kind} {spot.anchor}")
    )
    spoken = point.tip.replace("\n", ", ")
    return element("g", parts, class_="mark", tabindex=0, role="img", aria_label=spoken, data_tip=point.tip)


def _trial(point: Point, x: Axis, y: Axis) -> Html:
    at = y.at(min(max(point.y, y.low), y.high))
    dot = element("circle", cx=x.at(point.x), cy=at, r=_TRIAL_RADIUS, class_="trial")
    spoken = point.tip.replace("\n", ", ")
    return element("g", element("title"), dot, class_="mark", role="img", aria_label=spoken, data_tip=point.tip)


def point_path(kind: Kind, x: float, y: float) -> str:
    """A circle, or a diamond of about the same area for the baseline."""
    r = POINT_RADIUS
    if kind == "baseline":
        return f"M{x:.1f} {y - r - 1.5:.1f}l{r + 1.5} {r + 1.5}l{-r - 1.5} {r + 1.5}l{-r - 1.5} {-r - 1.5}z"
    return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"

"""Bar charts as inline SVG, and the frame of every chart. Pure functions of what they draw.

Colours come from classes in report.css, so that a chart follows the light or dark page. Nothing is told by colour
alone: bars carry their names and figures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from onnxpress.exporter.page.labels import shorten, text_width
from onnxpress.exporter.page.markup import Html, element

Kind = Literal["default", "other", "baseline"]

FONT = 13.0
SMALL_FONT = 12.0
_ROW = 25.0
_BAR = 14.0
_PANEL_TITLE = 30.0
_COLUMN_GAP = 40.0
_PANEL_LEAST = 280.0
_PANEL_GAP = 22.0
_WHISKER_LIMIT = 2.0  # times the longest bar: one slow outlier must not flatten the bars


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar. `upper` is the end of its whisker."""

    label: str
    value: float | None
    shown: str
    tip: str
    kind: Kind
    upper: float | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """Bars that are compared with each other."""

    title: str
    bars: Sequence[Bar]


def frame(name: str, title: str, description: str, size: tuple[float, float], *children: object) -> Html:
    """An SVG that screen readers can name and describe. `name` must be unique in the page."""
    width, height = size
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        role="group",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )


def bar_chart(
    name: str, title: str, description: str, panels: Sequence[Panel], width: float, *, shared_scale: bool = False
) -> Html:
    """Panels of horizontal bars, beside each other as far as the width allows.

    Args:
        name: unique in the page.
        title: for screen readers.
        description: the same figures in words, for screen readers.
        panels: at least one.
        width: of the drawing, in pixels.
        shared_scale: whether bars of different panels can be compared; otherwise each panel is as wide as it can be.
    """
    most = max(1, int((width + _COLUMN_GAP) // (_PANEL_LEAST + _COLUMN_GAP)))
    columns = math.ceil(len(panels) / math.ceil(len(panels) / most))  # rows that are about equally long
    panel_width = (width - _COLUMN_GAP * (columns - 1)) / columns
    heights = [_PANEL_TITLE + _ROW * len(panel.bars) for panel in panels]
    everything = _longest([bar for panel in panels for bar in panel.bars])
    drawn, top = [], 0.0
    for start in range(0, len(panels), columns):
        for column, panel in enumerate(panels[start : start + columns]):
            longest = everything if shared_scale else _longest(panel.bars)
            shift = f"translate({column * (panel_width + _COLUMN_GAP):g} {top:g})"
            drawn.append(element("g", _panel(panel, panel_width, longest), transform=shift))
        top += max(heights[start : start + columns]) + _PANEL_GAP
    return frame(name, title, description, (width, top - _PANEL_GAP + 4), drawn)


def _longest(bars: Sequence[Bar]) -> float:
    """The value a full-width bar or whisker stands for."""
    highest = max((bar.value for bar in bars if bar.value is not None), default=0.0)
    whisker = max((bar.upper for bar in bars if bar.upper is not None), default=0.0)
    return max(highest, min(whisker, _WHISKER_LIMIT * highest)) or 1.0


def _panel(panel: Panel, width: float, longest: float) -> list[Html]:
    left = min(0.52 * width, 12 + max(text_width(bar.label, FONT) for bar in panel.bars))
    figures = [text_width(bar.shown, FONT) for bar in panel.bars if bar.value is not None]
    room = width - left - max(figures, default=0.0) - 10
    bottom = _PANEL_TITLE + _ROW * len(panel.bars)
    rows = [
        _bar(bar, _PANEL_TITLE + _ROW * index, left, max(20.0, room), longest, width)
        for index, bar in enumerate(panel.bars)
    ]
    title = element("text", panel.title, x=0, y=14, class_="panel-title")
    return [title, *rows, element("line", x1=left, x2=left, y1=_PANEL_TITLE - 3, y2=bottom + 1, class_="axis")]


def _bar(bar: Bar, top: float, left: float, room: float, longest: float, width: float) -> Html:
    middle = top + _ROW / 2
    end = left + room * (bar.value or 0.0) / longest
    parts: list[object] = [
        element("title"),  # empty, or browsers would show the chart's own title beside our tooltip
        element("rect", x=0, y=top, width=width, height=_ROW, class_="hit"),
        element(
            "text", shorten(bar.label, left - 10, FONT), x=left - 9, y=middle + 4.5, class_=f"bar-label {bar.kind}"
        ),
    ]
    if bar.value is not None:
        size = {"x": left, "y": middle - _BAR / 2, "width": max(1.0, end - left), "height": _BAR}
        parts.append(element("rect", rx=2, class_=f"bar {bar.kind}", **size))
    if bar.value is not None and bar.upper is not None and bar.upper > bar.value:
        far = left + room * min(bar.upper / longest, 1.0)
        cap = f"M{end:.1f} {middle:.1f}H{far:.1f}"
        # A whisker that was cut short ends in an arrow.
        cap += "m-4 -4l4 4l-4 4" if bar.upper > longest * 1.001 else f"M{far:.1f} {middle - 4:.1f}v8"
        parts.append(element("path", d=cap, class_="whisker"))
        end = far
    shown_class = "bar-value" if bar.value is not None else "bar-value absent"
    parts.append(element("text", bar.shown, x=end + 7, y=middle + 4.5, class_=shown_class))
    return element("g", parts, class_="row", data_tip=bar.tip)

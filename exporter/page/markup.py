"""HTML and SVG from Python values, escaped unless they are markup already.

A report shows names that others chose: of models, files, tensors, cases. So escaping is what happens by default, and
only `element` makes text that is left as it is. Knows nothing about reports.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Control characters and lone surrogates, which no HTML file may hold (the latter cannot even be encoded), and the marks
# that turn the reading direction of everything behind them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
_VOID = frozenset({"br", "link", "meta"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Any value as text of a page or of an attribute."""
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True))


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """One element.

    Args:
        name: its tag.
        children: text (escaped), markup, lists of both; None is left out.
        attributes: `class_` becomes class, `aria_label` aria-label; None and False are left out, True stands alone.
    """
    opening = name + "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f"<{opening}>" if name in _VOID else f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Children of an element, one after the other."""
    return Html("".join(_markup(child) for child in children))


def _markup(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, (list, tuple)):
        return join(child)
    return escape(child)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {name}="{escape(value)}"'

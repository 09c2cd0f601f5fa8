"""The frame of every page: its head with styles and script inside it, its sections, its foot. Knows no figures."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.exporter.page.markup import Html, element
from onnxpress.exporter.page.values import moment


def whole_page(title: str, main: Sequence[object], foot: Html) -> str:
    """A page that opens without a network; its content security policy lets nothing else in."""
    styles, script = _own_file("report.css"), _own_file("report.js")
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(styles, script)),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),  # or a browser would ask the server for /favicon.ico
        element("style", styles),
    ]
    body = [element("main", *main), foot, element("script", script)]
    document = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _own_file(name: str) -> Html:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would end its element"
    return Html(text)


def _policy(styles: str, script: str) -> str:
    """Only our own style and script run, by their hashes; nothing is loaded from anywhere."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (styles, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def section(
    title: str,
    lead: str | None,
    content: Sequence[Html | None],
    absent: str | None = None,
    anchor: str | None = None,
) -> Html | None:
    """A section; without content, `absent` says so, or the section is left out."""
    heading = element("h2", title, id=anchor or title.lower().replace(",", "").replace(" ", "-"))
    if any(content):
        card = element("div", content, class_="card")
        return element("section", heading, element("p", lead, class_="lead") if lead else None, card)
    return element("section", heading, element("p", absent, class_="absent")) if absent else None


def footer(data: Mapping[str, Any], place: str) -> Html:
    """Who made the page, and where the same figures are for programs."""
    made = f"Made by onnxpress {data.get('onnxpress_version') or ''}".strip()
    when = f" on {moment(data['created'])}" if data.get("created") else ""
    return element("footer", element("p", f"{made}{when}. The same figures for programs: {place}."))

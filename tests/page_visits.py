"""A server of a model for each task, and somebody who opens its page in a browser."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import open_browser
from tests.served import serving
from tests.served_models import NAMES, make_bundles

SECONDS = 20_000
"""Milliseconds to wait for what must happen."""
TASKS = {name: task for task, name in NAMES.items()}
"""By name of the model."""


@contextlib.contextmanager
def serving_all(folder: Path) -> Iterator[str]:
    """The address of a server of all of them."""
    with serving(*(f"{name}={bundle}" for name, bundle in make_bundles(folder).items())) as served:
        yield f"http://127.0.0.1:{served.port}"


class Visit:
    """A page that somebody opened, what it asked for, and what went wrong there."""

    def __init__(self, browser: Any, server: str, *, width: int = 1280, dark: bool = False) -> None:
        scheme = "dark" if dark else "light"
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.set_default_timeout(SECONDS)
        self.page = self.context.new_page()
        self.url = server
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._refuse)

    def _refuse(self, dialog: Any) -> None:
        self.errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def answer(self, path: str, content: Any, status: int = 200) -> None:
        """Answer in the server's place."""
        body = content if isinstance(content, str) else json.dumps(content)
        self.page.route(f"{self.url}/{path}", lambda route: route.fulfill(status=status, body=body))

    def open(self, path: str = "/") -> Visit:
        self.page.goto(self.url + path)
        return self

    def model(self, name: str) -> Any:
        """Choose a model; gives its box."""
        self.page.get_by_role("navigation", name="Models").get_by_role("link", name=name).click()
        box = self.page.locator("#box")
        box.get_by_role("heading", name=name, exact=True).wait_for()
        return box

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        pixels: int = self.page.evaluate(script)
        return pixels

    def leave(self, *expected: str) -> None:
        """Nothing was asked of another origin, and nothing went wrong but what is expected."""
        assert self.asked
        assert [url for url in self.asked if not url.startswith(f"{self.url}/")] == []
        assert [error for error in self.errors if not any(part in error for part in expected)] == []
        self.context.close()


def ask(box: Any, button: str) -> None:
    """Send the box's form and wait for the answer."""
    box.get_by_role("button", name=button, exact=True).click()
    box.get_by_text(re.compile("^Answered in")).wait_for()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # After the browser, which may not be there: then there is nothing to serve.
    with serving_all(tmp_path_factory.mktemp("served")) as url:
        yield url


@pytest.fixture
def visit(browser: Any, server: str) -> Callable[..., Visit]:
    return lambda **settings: Visit(browser, server, **settings)

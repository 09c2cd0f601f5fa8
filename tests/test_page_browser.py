"""The page and the API reference in a real browser, before a real server.

Most tests let the server answer. Where an answer must be a certain one (hostile, slow, refused), the test gives it in
the server's place, in the form that the server has.
"""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.served import serving
from tests.served_models import LABELS, NAMES, make_bundles

from tests.browser import open_browser

HOSTILE = '<img src="x" onerror="alert(1)"><script>alert(2)</script>'
WIDTHS = (1280, 820, 390)
SECONDS = 20_000
"""Milliseconds to wait for what must happen."""
TASKS = {name: task for task, name in NAMES.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # After the browser, which may not be there: then there is nothing to serve.
    bundles = make_bundles(tmp_path_factory.mktemp("served"))
    with serving(*(f"{name}={folder}" for name, folder in bundles.items())) as served:
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


@pytest.fixture
def visit(browser: Any, server: str) -> Callable[..., Visit]:
    return lambda **settings: Visit(browser, server, **settings)


def ask(box: Any, button: str) -> None:
    """Send the box's form and wait for the answer."""
    box.get_by_role("button", name=button, exact=True).click()
    box.get_by_text(re.compile("^Answered in")).wait_for()


# What is served


def test_models_health_and_figures_are_shown(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    page = opened.page
    page.get_by_text("Ready", exact=True).wait_for()
    links = page.get_by_role("navigation", name="Models").get_by_role("link")
    links.first.wait_for()
    shown = {text.split("\n")[0]: text.split("\n")[1:] for text in links.all_inner_texts()}
    assert {name: rest[0] for name, rest in shown.items()} == TASKS
    assert {rest[1] for rest in shown.values()} == {"fp32 · CPU"}
    assert page.get_by_text("8 models loaded").is_visible()
    assert page.locator("#charts h3").all_inner_texts() == [
        "Requests", "Latency", "First token", "Tokens", "Waiting", "Memory"
    ]  # fmt: skip
    opened.leave("404")  # without /metrics


def test_a_box_stays_as_it_was_left_and_its_address_names_it(visit: Callable[..., Visit]) -> None:
    opened = visit().open("/#model=tagger")
    field = opened.page.get_by_label("Text", exact=True)
    field.fill("hello")
    opened.model("filler")
    assert opened.page.url.endswith("#model=filler")
    opened.page.go_back()
    opened.page.locator("#box").get_by_role("heading", name="tagger").wait_for()
    assert field.input_value() == "hello"
    current = opened.page.locator('#models [aria-current="true"] strong')
    assert current.all_inner_texts() == ["tagger"]
    opened.page.get_by_text("Skip to the models").press("Enter")
    assert current.all_inner_texts() == ["tagger"]
    opened.leave("404")


# A box for each task


def test_embeddings_are_compared(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("embedder")
    box.get_by_label("Texts").fill("good morning\n\ngood morning\nbad evening")
    ask(box, "Compare")
    cells = box.locator(".matrix tbody td").all_inner_texts()
    assert len(cells) == 9
    assert cells[1] == cells[3] == "1.00"
    assert cells[2] == cells[6] == cells[5] != "1.00"
    assert box.locator(".matrix tbody th").first.inner_text().split() == ["1", "good", "morning"]
    assert re.search(r"3 vectors of 16 numbers, \d+ tokens read", box.inner_text())
    assert box.get_by_label("Prompt before each text").count() == 0
    box.get_by_text("The answer as JSON").click()
    shown = json.loads(box.locator("pre").last.inner_text())
    assert len(shown["data"]) == 3
    assert [type(number) for number in shown["data"][0]["embedding"]] == [float] * 8 + [str]
    opened.leave("404")


def test_a_prompt_can_be_chosen_where_the_model_has_some(visit: Callable[..., Visit]) -> None:
    opened = visit()
    card = {"id": "embedder", "task": "feature-extraction", "prompts": {"query": "query: ", "plain": ""}}
    opened.answer("v1/models", {"data": [card]})
    box = opened.open().page.locator("#box")
    box.get_by_label("Prompt before each text").select_option("query")
    with opened.page.expect_request("**/v1/embeddings") as sent:
        box.get_by_role("button", name="Compare").click()
    assert sent.value.post_data_json["prompt_name"] == "query"
    box.get_by_label("Prompt before each text").select_option("none")
    with opened.page.expect_request("**/v1/embeddings") as sent:
        box.get_by_role("button", name="Compare").click()
    assert "prompt_name" not in sent.value.post_data_json
    box.locator(".matrix").wait_for()
    opened.leave("404", "400")  # this embedder has no prompts


def test_documents_are_ranked(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("reranker")
    box.get_by_label("Documents").fill("one\ntwo\nthree")
    ask(box, "Rank")
    scores = [float(text) for text in box.locator(".bar-value").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert sorted(box.locator(".bar-name").all_inner_texts()) == ["one", "three", "two"]
    opened.leave("404")


@pytest.mark.parametrize(("model", "button"), [("classifier", "Classify"), ("nli", "Choose")])
def test_each_text_gets_the_scores_of_its_labels(visit: Callable[..., Visit], model: str, button: str) -> None:
    opened = visit().open()
    box = opened.model(model)
    box.get_by_label("Texts").fill("one\ntwo")
    labels = set(LABELS["text-classification"])
    if model == "nli":
        labels = {"fish", "meat"}
        box.get_by_label("Labels, ").fill("fish, meat")
    ask(box, button)
    assert box.locator(".found h4").all_inner_texts() == ["one", "two"]
    for found in box.locator(".found").all():
        assert set(found.locator(".bar-name").all_inner_texts()) == labels
        shares = [float(text.removesuffix(" %")) for text in found.locator(".bar-value").all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=0.2)
    opened.leave("404")


def test_entities_are_marked(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("tagger")
    box.get_by_label("Text", exact=True).fill("one two three four")
    ask(box, "Find")
    assert re.search(r"\d names?|No name was found", box.inner_text())
    opened.leave("404")


def test_an_answer_is_marked_in_its_text(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("reader")
    box.get_by_label("Text that has the answer").fill("it was sent on monday by train")
    ask(box, "Answer")
    assert box.locator("mark").inner_text() == box.locator(".bar-name").first.inner_text()
    assert box.locator(".marked").inner_text() == "it was sent on monday by train"
    opened.leave("404")


def test_gaps_are_filled(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("filler")
    ask(box, "Fill")
    assert box.locator(".bars li").count() == 5
    opened.leave("404")


def test_a_mistake_is_told_in_a_sentence(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("embedder")
    box.get_by_label("Texts").fill("")
    box.get_by_role("button", name="Compare").click()
    alert = box.get_by_role("alert")
    alert.wait_for()
    assert re.fullmatch(r"[A-Z].*\.", alert.inner_text())
    box.get_by_label("Texts").fill("one")
    ask(box, "Compare")
    assert alert.count() == 0
    opened.leave("400", "404")


# Chat and completion


def set_options(box: Any, values: dict[str, str]) -> None:
    box.get_by_text("Options").locator("visible=true").click()
    for label, value in values.items():
        box.get_by_label(label).locator("visible=true").fill(value)


def test_a_conversation_by_keyboard_alone(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("writer")
    set_options(box, {"Temperature": "0", "Most tokens": "3"})
    page = opened.page
    box.get_by_label("Message", exact=True).focus()
    page.keyboard.type("once")
    page.keyboard.press("Enter")
    paces = box.locator(".turn.assistant .pace")
    paces.first.get_by_text(re.compile("^3 tokens · .*first after .* · cut at the most tokens$")).wait_for()
    page.keyboard.type("more")
    page.keyboard.press("Enter")
    paces.nth(1).get_by_text(re.compile("(finished|cut at the most tokens)$")).wait_for()
    assert [turn.get_attribute("class") for turn in box.locator(".turn").all()] == ["turn user", "turn assistant"] * 2
    opened.leave("404")


def test_options_are_part_of_the_request(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("writer")
    set_options(box, {"System message": "be brief", "Temperature": "0", "Most tokens": "3", "Seed": "7"})
    box.get_by_label("Message", exact=True).fill("once")
    with opened.page.expect_request("**/v1/chat/completions") as sent:
        box.get_by_role("button", name="Send").click()
    assert sent.value.post_data_json == {
        "model": "writer",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "once"}],
        "temperature": 0,
        "max_tokens": 3,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    box.get_by_text(re.compile("^3 tokens · .* · cut at the most tokens$")).wait_for()
    box.get_by_role("button", name="New chat").click()
    box.get_by_label("Message", exact=True).fill("hi")  # this one makes the model end at once
    box.get_by_role("button", name="Send").click()
    box.get_by_text("1 token · no text · finished").wait_for()
    opened.leave("404")


def test_a_completion_goes_on_with_the_prompt(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("writer")
    box.get_by_role("button", name="Completion").click()
    set_options(box, {"Temperature": "0", "Most tokens": "4"})
    box.get_by_label("Prompt").fill("once")
    box.get_by_role("button", name="Go on").click()
    box.get_by_text(re.compile("^4 tokens · .* · cut at the most tokens$")).wait_for()
    text = box.locator(".continued").text_content()
    assert text.startswith("once")
    assert len(text) > len("once")
    opened.leave("404")


class SlowWriter:
    """A server whose stream goes on when the test says so, and that knows whether somebody still reads."""

    def __init__(self) -> None:
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.left = threading.Event()
        writer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                writer.stream(self.wfile)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stream(self, file: Any) -> None:
        try:
            while True:
                try:
                    event = self.events.get(timeout=0.02)
                except queue.Empty:
                    file.write(b": still here\r\n\r\n")
                    continue
                if event is None:
                    return
                file.write(f"data: {json.dumps(event)}\r\n\r\n".encode())
        except OSError:
            self.left.set()

    def say(self, text: str) -> None:
        self.events.put({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})

    def close(self) -> None:
        self.events.put(None)
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def slow() -> Iterator[SlowWriter]:
    writer = SlowWriter()
    yield writer
    writer.close()


def begin_slowly(opened: Visit, slow: SlowWriter) -> Any:
    """A chat with a message that `slow` answers."""
    target = f"http://127.0.0.1:{slow.server.server_port}/"
    opened.page.route(f"{opened.url}/v1/chat/completions", lambda route: route.continue_(url=target))
    box = opened.open().model("writer")
    box.get_by_label("Message", exact=True).fill("hi")
    box.get_by_role("button", name="Send").click()
    return box


def test_text_appears_as_it_comes_and_stop_ends_it(visit: Callable[..., Visit], slow: SlowWriter) -> None:
    opened = visit()
    box = begin_slowly(opened, slow)
    said = box.locator(".turn.assistant .said")
    slow.say("One ")
    said.get_by_text("One", exact=True).wait_for()
    slow.say("two")
    said.get_by_text("One two", exact=True).wait_for()
    assert box.locator(".turn.assistant").get_attribute("aria-busy") == "true"
    box.get_by_role("button", name="Stop").click()
    box.get_by_text(re.compile(r"^about 2 tokens · .* · stopped$")).wait_for()
    assert slow.left.wait(20)
    # What came is part of the conversation.
    opened.page.unroute_all()
    box.get_by_label("Message", exact=True).fill("go on")
    with opened.page.expect_request("**/v1/chat/completions") as sent:
        box.get_by_role("button", name="Send").click()
    roles = [(message["role"], message["content"]) for message in sent.value.post_data_json["messages"]]
    assert roles == [("user", "hi"), ("assistant", "One two"), ("user", "go on")]
    opened.leave("404")


def test_a_stream_that_fails_says_so_and_gives_the_message_back(visit: Callable[..., Visit], slow: SlowWriter) -> None:
    opened = visit()
    box = begin_slowly(opened, slow)
    slow.say("Half")
    slow.events.put({"error": {"message": "a guard stopped this answer", "type": "content_filter_error"}})
    box.get_by_role("alert").get_by_text("A guard stopped this answer.", exact=True).wait_for()
    assert box.get_by_label("Message", exact=True).input_value() == "hi"
    box.get_by_text("The next request as curl").click()
    assert "Half" not in box.locator("pre").last.inner_text()
    opened.leave("404")


def test_a_stream_that_breaks_off_is_not_taken_for_complete(visit: Callable[..., Visit], slow: SlowWriter) -> None:
    opened = visit()
    box = begin_slowly(opened, slow)
    slow.say("Half")
    slow.events.put(None)
    box.get_by_role("alert").get_by_text("The connection ended before the answer did.").wait_for()
    opened.leave("404")


def test_a_new_chat_stops_the_old_one(visit: Callable[..., Visit], slow: SlowWriter) -> None:
    opened = visit()
    box = begin_slowly(opened, slow)
    slow.say("One")
    box.locator(".said").get_by_text("One", exact=True).wait_for()
    box.get_by_role("button", name="New chat").click()
    assert slow.left.wait(20)
    box.get_by_role("button", name="Send").wait_for()
    assert box.locator(".turn").count() == 0
    opened.leave("404")


# What must not happen


def test_texts_of_people_and_models_stay_texts(visit: Callable[..., Visit]) -> None:
    opened = visit()
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    scores = {HOSTILE: 0.9, "b": 0.1}
    entity = {"label": HOSTILE, "score": 0.9, "word": "a", "text": "a", "start": 0, "end": 4}
    filled = {"token": HOSTILE, "score": 0.9, "token_id": 1, "text": HOSTILE}
    opened.answer("classify", {"data": [{"label": HOSTILE, "score": 0.9, "scores": scores}], "usage": usage})
    opened.answer("tag", {"data": [entity], "usage": usage})
    opened.answer("fill", {"data": [filled], "usage": usage})
    card = {"id": HOSTILE, "task": HOSTILE, "variant": HOSTILE, "provider": HOSTILE}
    cards = [{"id": name, "task": task, "variant": "fp32", "provider": "CPU"} for name, task in TASKS.items()]
    opened.answer("v1/models", {"data": [*cards, card]})
    event = {"choices": [{"index": 0, "delta": {"content": HOSTILE}, "finish_reason": "stop"}]}
    opened.answer("v1/chat/completions", f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")
    opened.open()
    box = opened.model("classifier")
    box.get_by_label("Texts").fill(HOSTILE)
    ask(box, "Classify")
    box = opened.model("tagger")
    box.get_by_label("Text", exact=True).fill(HOSTILE)
    ask(box, "Find")
    assert box.locator("mark").text_content() == f"{HOSTILE[:4]}{HOSTILE} 90.0 %"
    ask(opened.model("filler"), "Fill")
    box = opened.model("embedder")
    box.get_by_label("Texts").fill(f"{HOSTILE}\none")
    ask(box, "Compare")
    box = opened.model("writer")
    box.get_by_label("Message", exact=True).fill(HOSTILE)
    box.get_by_role("button", name="Send").click()
    box.get_by_text(re.compile("finished$")).wait_for()
    assert box.locator(".said").all_inner_texts() == [HOSTILE, HOSTILE]
    opened.model(HOSTILE)
    assert opened.page.locator("main :is(img, script)").count() == 0
    opened.leave("404")


def test_markup_cannot_be_made_even_by_a_script(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    refused = opened.page.evaluate("""() => {
        try {
            document.body.innerHTML = "<img src=x>";
        } catch (error) {
            return error instanceof TypeError;
        }
    }""")
    assert refused
    opened.leave("404", "TrustedHTML")


def test_places_count_characters_and_not_halves_of_them(visit: Callable[..., Visit]) -> None:
    opened = visit()
    text = "👩‍🚀🚀 met Ada in 巴黎"
    entities = [
        {"label": "LOC", "score": 0.5, "start": text.index("巴黎"), "end": text.index("巴黎") + 2},
        {"label": "PER", "score": 0.9, "start": text.index("Ada"), "end": text.index("Ada") + 3},
    ]
    opened.answer("tag", {"data": entities})
    box = opened.open().model("tagger")
    box.get_by_label("Text", exact=True).fill(text)
    ask(box, "Find")
    assert box.locator("mark").all_text_contents() == ["AdaPER 90.0 %", "巴黎LOC 50.0 %"]
    opened.leave("404")


# Keys


def test_a_key_is_asked_for_once_and_kept_in_the_tab_only(visit: Callable[..., Visit]) -> None:
    opened = visit()
    sent: list[str | None] = []

    def guard(route: Any) -> None:
        key = route.request.headers.get("authorization")
        sent.append(key)
        if key == "Bearer right":
            route.continue_()
        else:
            error = {"error": {"message": "no", "type": "authentication_error", "code": "invalid_api_key"}}
            route.fulfill(status=401, body=json.dumps(error))

    opened.page.route(re.compile(r"/(v1/.*|metrics|openapi\.json)$"), guard)
    page = opened.open().page
    dialog = page.get_by_role("dialog", name="This server asks for an API key")
    dialog.wait_for()
    assert page.get_by_role("textbox", name="API key").evaluate("field => field === document.activeElement")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    dialog.get_by_text("The key was not accepted.").wait_for()
    page.keyboard.type("right")
    page.keyboard.press("Enter")
    page.get_by_role("navigation", name="Models").get_by_role("link").first.wait_for()
    assert dialog.count() == 0
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [["right"], 0, ""]
    box = opened.model("embedder")
    ask(box, "Compare")
    box.get_by_text("This request as curl").click()
    shown = box.locator("pre").first.inner_text()
    assert '-H "Authorization: Bearer $ONNXPRESS_API_KEY"' in shown
    assert "right" not in shown
    assert all(key in (None, "Bearer wrong", "Bearer right") for key in sent)
    page.goto(f"{opened.url}/docs")
    page.get_by_role("heading", name="POST /v1/embeddings").wait_for()
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget the key").click()
    assert page.evaluate("sessionStorage.length") == 0
    opened.leave("404", "401")


def test_who_has_no_key_is_told(visit: Callable[..., Visit]) -> None:
    opened = visit()
    error = {"error": {"message": "this server needs an API key", "type": "authentication_error"}}
    for path in ("v1/models", "metrics"):
        opened.answer(path, error, 401)
    page = opened.open().page
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("alert").get_by_text("This server needs an API key.").wait_for()
    assert page.get_by_role("button", name="API key").is_visible()
    opened.leave("401")


# How it looks and is used


def test_nothing_scrolls_sideways(visit: Callable[..., Visit]) -> None:
    opened = visit().open()

    def check(place: str) -> None:
        for width in WIDTHS:
            opened.page.set_viewport_size({"width": width, "height": 900})
            assert opened.overflow() == 0, (place, width)

    for name in TASKS:
        box = opened.model(name)
        for field in box.locator("textarea:visible").all():
            field.fill("a" * 200 + " and [MASK]\nsecond\nthird\nfourth")
        for summary in box.locator("summary:visible").all():
            summary.click()
        box.locator('button[type="submit"]:visible').click()
        box.locator(".result :is(.alert, .bars, .matrix, .marked), .pace:not(:empty)").first.wait_for()
        check(name)
    opened.open("/docs")
    opened.page.get_by_role("heading", name="POST /v1/embeddings").wait_for()
    opened.page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    check("docs")
    opened.leave("404", "400")


LUMINANCE = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgb = (colour, below) => {
        canvas.fillStyle = below; canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return `rgb(${[...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).join(",")})`;
    };
    const light = (colour) => {
        const [r, g, b] = colour.match(/\\d+/g).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        if (!node) return getComputedStyle(document.body).backgroundColor;
        const own = getComputedStyle(node).backgroundColor;
        return own === "rgba(0, 0, 0, 0)" ? behind(node.parentElement) : rgb(own, behind(node.parentElement));
    };
    const found = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen, .skip")) continue;
        const below = behind(node);
        const [a, b] = [light(rgb(getComputedStyle(node).color, below)), light(below)];
        found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), texts.currentNode.data.trim().slice(0, 40)]);
    }
    return found;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(visit: Callable[..., Visit], dark: bool) -> None:
    opened = visit(dark=dark)
    kinds = ["PER", "LOC", "ORG", "MISC", "DATE"]
    entities = [{"label": kind, "score": 0.9, "start": 2 * at, "end": 2 * at + 1} for at, kind in enumerate(kinds)]
    opened.answer("tag", {"data": entities})
    opened.open()
    opened.page.get_by_text("Ready", exact=True).wait_for()
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", background)[0])
    assert (red < 60) if dark else (red > 200)
    for name, button in (("tagger", "Find"), ("embedder", "Compare"), ("classifier", "Classify")):
        box = opened.model(name)
        if name == "tagger":
            box.get_by_label("Text", exact=True).fill("a b c d e")
        ask(box, button)
        contrasts = opened.page.evaluate(LUMINANCE)
        assert len(contrasts) > 30
        assert [(ratio, text) for ratio, text in contrasts if ratio < 4.5] == []
    opened.open("/docs")
    opened.page.get_by_role("heading", name="POST /v1/embeddings").wait_for()
    assert [(ratio, text) for ratio, text in opened.page.evaluate(LUMINANCE) if ratio < 4.5] == []
    opened.leave("404")


FOCUSED = """() => {
    const node = document.activeElement;
    const label = node.labels?.[0] ?? node;
    return (node.getAttribute("aria-label") ?? label.innerText).split("\\n")[0].trim();
}"""


def test_the_keyboard_reaches_everything_in_order(visit: Callable[..., Visit]) -> None:
    opened = visit().open("/#model=embedder")
    page = opened.page
    page.get_by_role("button", name="Compare").wait_for()
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", reached
        if reached[-1] == "This request as curl":
            break
    assert reached == [
        "Skip to the models", "API docs", *TASKS, "Texts, one a line", "Compare", "This request as curl"
    ]  # fmt: skip
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("^Answered in")).wait_for()
    opened.leave("404")


def test_every_field_and_button_has_a_name(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    for name in TASKS:
        box = opened.model(name)
        for control in box.locator("input, textarea, button, summary").all():
            named = control.evaluate("node => (node.labels?.[0] ?? node).textContent.trim()")
            assert named, (name, control.evaluate("node => node.outerHTML"))
    ids = opened.page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    opened.leave("404")


def test_the_request_as_curl_is_what_is_sent(visit: Callable[..., Visit]) -> None:
    opened = visit().open()
    box = opened.model("tagger")
    box.get_by_label("Text", exact=True).fill('it\'s $HOME `ls` \\ "quoted"')
    box.get_by_text("This request as curl").click()
    shown = box.locator("pre").first.text_content()
    with opened.page.expect_request("**/tag") as sent:
        ask(box, "Find")
    head, _, data = shown.partition("-d ")
    assert head.split() == ["curl", f"{opened.url}/tag", "\\", "-H", "'Content-Type:", "application/json'", "\\"]
    assert data.startswith("'")
    assert json.loads(data[1:-1].replace("'\\''", "'")) == sent.value.post_data_json
    opened.leave("404")


# Health and figures


def metrics(seconds: float) -> str:
    """What a server that answers ten requests a second, one of four slowly, would say after so long."""
    fast, all_of_them = 7.5 * seconds, 10 * seconds
    return "\n".join((
        "# HELP onnxpress_requests Requests that were answered.",
        "# TYPE onnxpress_requests counter",
        f'onnxpress_requests_total{{route="/v1/embeddings",status="200",model="a"}} {all_of_them}',
        f'onnxpress_requests_total{{route="/metrics",status="200",model="none"}} {900 * seconds}',
        f'onnxpress_refusals_total{{reason="queue_full"}} {seconds}',
        'onnxpress_request_seconds_bucket{le="0.1",route="/v1/embeddings",model="a"} 0',
        f'onnxpress_request_seconds_bucket{{le="0.2",route="/v1/embeddings",model="a"}} {fast}',
        f'onnxpress_request_seconds_bucket{{le="0.4",route="/v1/embeddings",model="a"}} {all_of_them}',
        f'onnxpress_request_seconds_bucket{{le="+Inf",route="/v1/embeddings",model="a"}} {all_of_them}',
        f'onnxpress_tokens_in_total{{model="a"}} {500 * seconds}',
        'onnxpress_queue_waiting{model="a"} 3',
        'onnxpress_queue_waiting{model="b"} 4',
        f'onnxpress_memory_bytes{{kind="resident"}} {300 * 2**20}',
        f'onnxpress_memory_bytes{{kind="peak"}} {900 * 2**20}',
    ))  # fmt: skip


def test_figures_come_from_the_metrics(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.page.route(f"{opened.url}/metrics", lambda route: route.fulfill(body=metrics(time.monotonic())))
    page = opened.open().page

    def chart(title: str) -> Any:
        return page.locator("article").filter(has=page.get_by_role("heading", name=title, exact=True))

    chart("Requests").locator(".line.first").wait_for(state="attached")
    now = {title: chart(title).locator(".now b").all_inner_texts() for title in ("Requests", "Latency", "Tokens")}
    assert float(now["Requests"][0].removesuffix("/s")) == pytest.approx(10, rel=0.5)
    assert float(now["Requests"][1].removesuffix("/s")) == pytest.approx(1, rel=0.5)
    assert now["Latency"] == ["167 ms", "392 ms"]
    assert now["Tokens"][1] == "–"
    assert chart("Waiting").locator(".now").inner_text() == "7"
    assert chart("Memory").locator(".now").inner_text() == "300 MiB"
    assert chart("First token").locator(".now b").all_inner_texts() == ["–", "–"]
    assert re.fullmatch(r"Now 7; the highest lately 7\.", chart("Waiting").locator(".unseen").text_content())
    chart("Waiting").locator(".plot").hover()
    chart("Waiting").get_by_text(re.compile("^(now|\\d+ s ago)$")).first.wait_for()
    opened.leave()


READ = """async ([texts, share]) => {
    const { parse, point, quantile, reading } = await import(
        document.querySelector("script").src.replace("app.js", "metrics.js"));
    const [before, after] = texts.map((text, place) => reading(text, 10 * place));
    return [point(before, after), quantile(share, before.seconds, after.seconds), Object.fromEntries(parse(texts[1]))];
}"""


def test_metrics_are_read_as_prometheus_writes_them(visit: Callable[..., Visit]) -> None:
    opened = visit().open()

    def read(before: str, after: str, share: float = 0.5) -> Any:
        return opened.page.evaluate(READ, [[before, after], share])

    odd = 'a{x="q\\"u\\\\o\\nte",y="{1},2"} 1.5e3 1700000000\n\nnot a sample at all\nb +Inf\n# a{x="1"} 7\n'
    point, _, samples = read("", odd)
    assert samples["a"] == [{"labels": {"x": 'q"u\\o\nte', "y": "{1},2"}, "value": 1500}]
    assert set(samples) == {"a", "b"}
    assert {value for name, value in point.items() if name != "time"} == {None}
    steady, quantile, _ = read(metrics(10), metrics(20), 0.75)
    assert (steady["requests"], steady["refusals"], steady["tokensIn"]) == (10, 1, 500)
    assert quantile == pytest.approx(0.2)
    restarted, none, _ = read(metrics(20), metrics(10))
    assert (restarted["requests"], none, restarted["waiting"]) == (None, None, 7)
    begun, _, _ = read("", metrics(10))
    assert begun["requests"] == 10
    opened.leave("404")


@pytest.mark.parametrize(
    ("status", "answer", "word"),
    [
        (503, '{"status": "draining"}', "Draining: it finishes what it has, and takes no more"),
        (503, "no", "Not reachable"),
        (500, '{"error": {"message": "no"}}', "Live, and not ready yet"),
    ],
)
def test_health_is_told_as_it_is(visit: Callable[..., Visit], status: int, answer: str, word: str) -> None:
    opened = visit()
    opened.answer("health/ready", answer, status)
    opened.open().page.get_by_text(word, exact=True).wait_for()
    opened.leave("404", str(status))


def test_a_server_that_ended_is_said_to_be_gone(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = opened.open().page
    box = opened.model("embedder")
    page.route(re.compile(r"/(health|metrics|v1)\b"), lambda route: route.abort())
    page.get_by_text("Not reachable", exact=True).wait_for()
    box.get_by_role("button", name="Compare").click()
    box.get_by_role("alert").get_by_text("The server cannot be reached. Is it still running?").wait_for()
    page.unroute_all()
    cards = [{"id": name, "task": TASKS[name], "variant": "int8", "provider": "CPU"} for name in ("embedder", "reader")]
    opened.answer("v1/models", {"data": cards})
    page.get_by_text("2 models loaded").wait_for()  # it is back, with other bundles
    assert box.get_by_role("heading", name="embedder").is_visible()
    ask(box, "Compare")
    opened.leave("404", "ERR_FAILED")


# The API reference


def test_the_reference_shows_every_route_of_the_document(visit: Callable[..., Visit]) -> None:
    opened = visit().open("/docs")
    page = opened.page
    page.get_by_role("heading", name="POST /v1/embeddings").wait_for()
    document = page.evaluate("fetch('openapi.json').then((answer) => answer.json())")
    operations = [f"{method.upper()}\n{path}" for path, item in document["paths"].items() for method in item]
    shown = [text.replace(" ", "\n") for text in page.locator(".route h3").all_inner_texts()]
    assert sorted(shown) == sorted(operations)
    embeddings = page.locator("#post-v1-embeddings")
    fields = embeddings.get_by_role("table", name="Fields of the request").locator("th code").all_inner_texts()
    schema = document["components"]["schemas"]["EmbeddingRequest"]
    assert fields[0] == "input"
    assert set(schema["properties"]) <= set(fields)
    classify = page.locator("#post-classify").get_by_role("table", name="Fields of the request")
    names = classify.locator("th code").all_inner_texts()
    assert names == ["input", "text", "text_pair", "model", "top_k"]
    data = embeddings.locator("pre").first.text_content().partition("-d ")[2]
    assert set(schema["required"]) <= set(json.loads(data[1:-1]))
    page.get_by_role("navigation", name="Routes").get_by_role("link", name="/health/ready").click()
    assert page.url.endswith("/docs#get-health-ready")
    opened.leave()


def test_the_reference_takes_a_document_for_text_and_survives_odd_ones(visit: Callable[..., Visit]) -> None:
    opened = visit()
    loop = {"type": "object", "properties": {"self": {"$ref": "#/components/schemas/Loop"}, HOSTILE: {}}}
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Loop"}}}}
    missing = {"content": {"application/json": {"schema": {"$ref": "https://example.org/other.json"}}}}
    operation = {"description": HOSTILE, "tags": [HOSTILE], "requestBody": body, "responses": {"200": missing}}
    document = {
        "openapi": "3.1.0",
        "info": {"title": HOSTILE, "version": "1"},
        "paths": {"/loop": {"post": operation}, "/bare": {"get": {}}},
        "components": {"schemas": {"Loop": loop}},
    }
    opened.answer("openapi.json", document)
    page = opened.open("/docs").page
    page.get_by_role("heading", name="POST /loop").wait_for()
    page.get_by_role("heading", name="GET /bare").wait_for()
    assert page.locator("#post-loop .about").inner_text() == HOSTILE
    assert page.locator("main :is(img, script)").count() == 0
    opened.leave()

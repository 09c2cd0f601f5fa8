"""The page in a real browser, before a real server: what is served, a box for each task, chat streamed and stopped.

Where a stream must be slow or fail, the test writes it in the server's place, in the form that the server has.
"""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.page_visits import TASKS, Visit, ask, browser, server, visit

__all__ = ["browser", "server", "visit"]  # fixtures


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
    labels = {"negative", "neutral", "positive"}
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

"""The page and the API reference in a real browser: what must not happen, keys, how it looks, figures, the reference.

Where an answer must be a certain one (hostile, refused, odd), the test gives it in the server's place, in the form that
the server has.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.page_visits import TASKS, Visit, ask, browser, server, visit

__all__ = ["browser", "server", "visit"]  # fixtures

HOSTILE = '<img src="x" onerror="alert(1)"><script>alert(2)</script>'
WIDTHS = (1280, 820, 390)


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

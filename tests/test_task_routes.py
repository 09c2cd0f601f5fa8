"""The routes of the tasks that read: each gives what the model's method gives."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from onnxpress.runtime.server import Limits, ServedBundle, ServerSettings, create_app
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.registry import Models
from onnxpress.runtime.server.settings import ServedGuard
from tests.served_models import MAX_LENGTH, make_bundle

TEXTS = ["The order was not sent.", "订单没有寄出", "a", "", "where is my cat? " * 40]


@pytest.fixture(scope="module")
def client(served: Models) -> TestClient:
    return TestClient(create_app(ServerSettings.of(["unused"]), served), base_url="http://localhost")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An embedder that puts a prompt before each text."""
    prompts = {"prompts": {"query": "where is ", "document": ""}, "default_prompt_name": "query"}
    path = make_bundle(tmp_path_factory.mktemp("p") / "prompted", "feature-extraction", embedding=prompts)
    with serving(path) as client:
        yield client


def serving(*paths: Path, limits: Limits | None = None) -> TestClient:
    """A client whose context closes the models."""
    settings = ServerSettings(tuple(ServedBundle(str(path), threads=1) for path in paths), limits=limits or Limits())
    return TestClient(create_app(settings), base_url="http://localhost")


def model(client: TestClient, name: str) -> Any:
    found: Models = client.app.state.service.models  # type: ignore[attr-defined]
    return found.find(name, *{one.task for one in found}).model


def ask(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code in (400, 404), response.text
    error: dict[str, Any] = response.json()["error"]
    return error | {"status": response.status_code}


def vectors(answer: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


def near(numbers: Any) -> Any:
    """Other sequences of a batch may change the last digit."""
    return pytest.approx(numbers, rel=1e-5, abs=1e-6)


def test_vectors_are_those_of_the_model(client: TestClient) -> None:
    expected = model(client, "embedder").embed(TEXTS)
    answer = ask(client, "/v1/embeddings", input=TEXTS, model="embedder", user="someone")
    assert vectors(answer) == near(expected)
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", "embedder", "embedding")
    tokens = sum(len(one) for one in model(client, "embedder").tokenizer.encode(TEXTS))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    one = ask(client, "/v1/embeddings", input=TEXTS[0])
    assert vectors(one) == near(model(client, "embedder").embed(TEXTS[0]))
    coded = ask(client, "/v1/embeddings", input=TEXTS, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in coded["data"]]
    assert np.stack(decoded).tobytes() == vectors(answer).tobytes()  # no digit is lost in JSON
    assert len(vectors(ask(client, "/v1/embeddings", input="a", dimensions=expected.shape[1]))) == 1


def test_token_ids_are_read_as_the_text_they_are_of(client: TestClient) -> None:
    embedder = model(client, "embedder")
    texts = [text for text in TEXTS if text]
    whole = embedder.tokenizer.backend.__class__.from_str(embedder.tokenizer.backend.to_str())
    whole.no_truncation()
    expected = embedder.embed(texts)
    for special in (False, True):
        ids = [whole.encode(text, add_special_tokens=special).ids for text in texts]
        answer = ask(client, "/v1/embeddings", input=ids)
        assert vectors(answer) == near(expected)
        assert max(map(len, ids)) > MAX_LENGTH  # one is cut
        assert vectors(ask(client, "/v1/embeddings", input=ids[0])) == near(embedder.embed(texts[0]))
        assert answer["usage"]["prompt_tokens"] == sum(len(one) for one in embedder.tokenizer.encode(texts))


def test_ids_that_no_text_has_are_refused(client: TestClient) -> None:
    assert "has the id 4000000" in refusal(client, "/v1/embeddings", input=[[5], [4000000]])["message"]
    error = refusal(client, "/v1/embeddings", input=[[5], [2**32]])
    assert (error["param"], error["status"]) == ("input[1][0]", 400)
    assert refusal(client, "/v1/embeddings", input=[5] * 200_000)["code"] == "too_many_tokens"
    error = refusal(client, "/v1/embeddings", input=[5], prompt_name="query")
    assert (error["param"], "cannot be put before token ids" in error["message"]) == ("prompt_name", True)


def test_prompts_are_put_before_texts(prompted: TestClient) -> None:
    embedder = model(prompted, "prompted")
    for body, options in (
        ({}, {}),
        ({"prompt_name": "document"}, {"prompt_name": "document"}),
        ({"prompt": "my "}, {"prompt": "my "}),
        ({"prompt": ""}, {"prompt": ""}),
    ):
        answer = ask(prompted, "/v1/embeddings", input="cat", **body)
        assert vectors(answer) == near(embedder.embed("cat", **options))
    with_prompt, without = (vectors(ask(prompted, "/v1/embeddings", input="cat", **b)) for b in ({}, {"prompt": ""}))
    assert not np.allclose(with_prompt, without, atol=1e-3)
    assert "has no prompt 'x'" in refusal(prompted, "/v1/embeddings", input="cat", prompt_name="x")["message"]
    ids = embedder.tokenizer.backend.encode("cat", add_special_tokens=False).ids
    assert "puts its prompt 'query' before" in refusal(prompted, "/v1/embeddings", input=ids)["message"]
    assert vectors(ask(prompted, "/v1/embeddings", input=ids, prompt="")) == near(without)


def test_dimensions_that_a_bundle_does_not_promise_are_refused(client: TestClient) -> None:
    error = refusal(client, "/v1/embeddings", input="a", dimensions=8)
    assert (error["param"], error["code"]) == ("dimensions", "dimensions_not_supported")
    assert "have 16" in error["message"]


def test_numbers_that_are_none_are_an_error_of_the_server(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "broken", "feature-extraction", scale=float("nan"))
    with serving(path) as client:
        response = client.post("/v1/embeddings", json={"input": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")


def test_texts_are_ranked_as_text_embeddings_inference_does(client: TestClient) -> None:
    reranker = model(client, "reranker")
    logits = np.array([reranker.rank("my order", [text], function="identity")[0].score for text in TEXTS])
    order = np.argsort(-logits, kind="stable").tolist()
    raw = ask(client, "/rerank", query="my order", texts=TEXTS, raw_scores=True)
    assert [one["index"] for one in raw] == order
    assert [one["score"] for one in raw] == pytest.approx(logits[order], rel=1e-5)
    assert all(set(one) == {"index", "score"} for one in raw)
    scored = ask(client, "/rerank", query="my order", texts=TEXTS, return_text=True, model="reranker")
    assert [one["score"] for one in scored] == pytest.approx(1 / (1 + np.exp(-logits[order])), rel=1e-5)
    assert [one["text"] for one in scored] == [TEXTS[index] for index in order]


def test_texts_are_cut_where_it_is_asked_for(client: TestClient) -> None:
    long = "cat " * 100 + "dog " * 100
    texts = {"texts": [long, "cat"], "query": "order", "raw_scores": True}
    right = ask(client, "/rerank", **texts)
    assert right == ask(client, "/rerank", truncate=True, truncation_direction="right", **texts)
    left = ask(client, "/rerank", truncation_direction="Left", **texts)
    cats = ask(client, "/rerank", texts=["cat " * 100], query="order", raw_scores=True)[0]["score"]
    dogs = ask(client, "/rerank", texts=["dog " * 100], query="order", raw_scores=True)[0]["score"]
    assert {one["score"] for one in right} >= {cats}
    assert {one["score"] for one in left} >= {dogs}
    error = refusal(client, "/rerank", truncate=False, **texts)
    assert "pair 0 has 201 tokens" in error["message"]


def test_documents_are_ranked_as_jina_and_cohere_do(client: TestClient) -> None:
    expected = ask(client, "/rerank", query="my order", texts=TEXTS)
    documents = [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]
    answer = ask(client, "/v1/rerank", query="my order", documents=documents)
    assert [(one["index"], one["relevance_score"]) for one in answer["results"]] == [
        (one["index"], one["score"]) for one in expected
    ]
    assert answer["usage"]["total_tokens"] > 0
    best = ask(client, "/v1/rerank", query="my order", documents=documents, top_n=1, return_documents=True)
    assert best["results"] == [answer["results"][0] | {"document": {"text": TEXTS[expected[0]["index"]]}}]


def test_labels_are_those_of_the_model(client: TestClient) -> None:
    classifier = model(client, "classifier")
    answer = ask(client, "/classify", input=TEXTS)
    assert answer["data"] == [approximately(one) for one in classifier.classify(TEXTS)]
    assert [list(one["scores"]) for one in answer["data"]] == [list(one.scores) for one in classifier.classify(TEXTS)]
    assert (answer["model"], answer["usage"]["prompt_tokens"] > 0) == ("classifier", True)
    best = ask(client, "/classify", input="a", top_k=1)["data"]
    assert best["scores"] == {best["label"]: best["score"]}
    pair = {"text": "my order", "text_pair": "was not sent"}
    paired = ask(client, "/classify", input=[pair, "a"])["data"]
    assert paired == [approximately(one) for one in classifier.classify([("my order", "was not sent"), "a"])]
    assert ask(client, "/classify", input=pair)["data"] == approximately(classifier.classify(tuple(pair.values())))
    assert ask(client, "/classify", input="a", model="nli")["data"]["label"] in (
        "entailment",
        "neutral",
        "contradiction",
    )


def test_own_labels_are_scored(client: TestClient) -> None:
    nli, labels = model(client, "nli"), ["cat", "dog", "order"]
    answer = ask(client, "/zero-shot", input=TEXTS[:2], labels=labels)
    assert answer["data"] == [approximately(one) for one in nli.zero_shot(TEXTS[:2], labels)]
    options = {"multi_label": True, "hypothesis": "where is {}?"}
    answer = ask(client, "/zero-shot", input="a", labels=labels, top_k=2, **options)
    expected = nli.zero_shot("a", labels, **options)
    assert answer["data"]["scores"] == pytest.approx(dict(list(expected.scores.items())[:2]))
    assert "entailment" in refusal(client, "/zero-shot", input="a", labels=labels, model="classifier")["message"]
    for hypothesis in ("{:>999999999}", "{}{}", "none", "{0.__class__}"):
        assert (
            "the hypothesis" in refusal(client, "/zero-shot", input="a", labels=["a"], hypothesis=hypothesis)["message"]
        )


def test_entities_are_those_of_the_model(client: TestClient) -> None:
    tagger = model(client, "tagger")
    texts = ["Ada was in London. " * 12, "订单 in Paris", "", "a"]
    for options in ({}, {"strategy": "none"}, {"strategy": "max", "stride": 3, "ignore_labels": []}):
        expected = tagger.tag(texts, **options)
        answer = ask(client, "/tag", input=texts, **options)
        assert answer["data"] == [[approximately(entity) for entity in entities] for entities in expected]
        one = ask(client, "/tag", input=texts[0], **options)["data"]
        assert one == [approximately(entity) for entity in tagger.tag(texts[0], **options)]
    assert answer["usage"]["prompt_tokens"] > MAX_LENGTH
    assert refusal(client, "/tag", input="a", stride=MAX_LENGTH // 2 + 1)["param"] == "stride"


def test_answers_are_those_of_the_model(client: TestClient) -> None:
    reader = model(client, "reader")
    questions, contexts = ["where is ada?", "was it sent?"], ["Ada is in London. " * 20, "it was not sent"]
    for options in (
        {},
        {"top_k": 2, "allow_no_answer": True},
        {"window_tokens": 20, "stride": 5, "align_to_words": False},
    ):
        expected = reader.answer(questions, contexts, **options)
        answer = ask(client, "/answer", question=questions, context=contexts, **options)
        assert answer["data"] == approximately(expected)
        one = ask(client, "/answer", question=questions[1], context=contexts[1], **options)
        assert one["data"] == approximately(reader.answer(questions[1], contexts[1], **options))
    both = ask(client, "/answer", question=questions, context=contexts[0])
    assert both["data"] == approximately(reader.answer(questions, contexts[0]))
    assert "2 questions and 3 contexts" in refusal(client, "/answer", question=questions, context=["a"] * 3)["message"]


def test_gaps_are_filled_as_by_the_model(client: TestClient) -> None:
    filler = model(client, "filler")
    texts = ["the [MASK] was sent", "[MASK] is my [MASK]"]
    answer = ask(client, "/fill", input=texts, top_k=3)
    assert answer["data"] == approximately(filler.fill(texts, top_k=3))
    assert [len(answer["data"][0]), len(answer["data"][1][0])] == [3, 3]
    for text in texts:
        one = ask(client, "/fill", input=text, targets=["cat", "dog"])
        assert one["data"] == approximately(filler.fill(text, targets=["cat", "dog"]))
    assert "text 0 has no [MASK]" in refusal(client, "/fill", input="a")["message"]


def approximately(value: Any) -> Any:
    """What a result is as JSON; float32 survives JSON, so nearly means to the last digit of a float32."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: approximately(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: approximately(one) for key, one in value.items()}
    if isinstance(value, list):
        return [approximately(one) for one in value]
    return pytest.approx(float(value), rel=1e-6) if isinstance(value, float | np.floating) else value


def test_what_is_too_much_is_refused(task_bundles: dict[str, Path]) -> None:
    limits = Limits(items=3, tokens=200, waiting=4)
    with serving(*task_bundles.values(), limits=limits) as client:
        four, long = ["a"] * 4, "cat dog " * 400
        for path, body, param in (
            ("/v1/embeddings", {"input": four}, "input"),
            ("/v1/embeddings", {"input": [[5]] * 4}, "input"),
            ("/rerank", {"query": "a", "texts": four}, "texts"),
            ("/v1/rerank", {"query": "a", "documents": four}, "documents"),
            ("/classify", {"input": four}, "input"),
            ("/zero-shot", {"input": "a", "labels": ["a", "b", "c", "d"]}, "labels"),
            ("/zero-shot", {"input": ["a", "b"], "labels": ["a", "b", "c"]}, "labels"),
            ("/tag", {"input": four}, "input"),
            ("/answer", {"question": four, "context": "a"}, "question"),
            ("/answer", {"question": "a", "context": four}, "context"),
            ("/fill", {"input": ["[MASK]"] * 4}, "input"),
            ("/fill", {"input": "[MASK]" * 4}, "input"),
            ("/fill", {"input": "[MASK]" * 3, "top_k": 2000}, "input"),
        ):
            error = refusal(client, path, **body)
            assert (error["param"], error["code"]) == (param, "too_many_items"), (path, error)
        for path, body in (
            ("/v1/embeddings", {"input": [long] * 3 + []}),
            ("/tag", {"input": long}),
            ("/answer", {"question": "a", "context": long}),
        ):
            if path == "/v1/embeddings":
                assert client.post(path, json=body).status_code == 200  # they are cut
            else:
                assert "are allowed" in refusal(client, path, **body)["message"], path


def test_windows_of_a_long_question_are_refused_before_they_are_made(client: TestClient) -> None:
    # Each of 100,000 windows would hold the question and one token of the context.
    error = refusal(client, "/answer", question="a " * 60, context="b " * 100_000)
    assert "would be read as 6,400,000" in error["message"]


def test_guards_see_what_token_ids_say(served: Models, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def check_input(self: Call, texts: list[str]) -> None:
        seen.extend(texts)

    monkeypatch.setattr(Call, "check_input", check_input)
    ids = model(client, "embedder").tokenizer.backend.encode("my cat", add_special_tokens=False).ids
    app = client.app
    settings = app.state.service.settings  # type: ignore[attr-defined]
    guarded = dataclasses.replace(settings, guards=(ServedGuard("one", callable="a:b"),))
    monkeypatch.setattr(app.state.service, "settings", guarded)  # type: ignore[attr-defined]
    ask(client, "/v1/embeddings", input=[ids])
    assert seen == ["my cat"]
    seen.clear()
    bodies: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": "one"},
        "/rerank": {"query": "one", "texts": ["two"]},
        "/v1/rerank": {"query": "one", "documents": [{"text": "two"}]},
        "/classify": {"input": [{"text": "one", "text_pair": "two"}]},
        "/zero-shot": {"input": "one", "labels": ["two"], "hypothesis": "three {}"},
        "/tag": {"input": ["one"]},
        "/answer": {"question": "one", "context": "two"},
        "/fill": {"input": "one [MASK]", "targets": ["cat"]},
    }
    for path, body in bodies.items():
        ask(client, path, **body)
    expected = ["one", "one", "two", "one", "two", "one", "two", "one", "two", "three {}", "one", "one", "two"]
    assert seen == [*expected, "one [MASK]", "cat"]


def test_numbers_beyond_those_of_libraries_are_refused(client: TestClient) -> None:
    for path, body, field in (
        ("/v1/embeddings", {"input": "a"}, "dimensions"),
        ("/v1/rerank", {"query": "a", "documents": ["a"]}, "top_n"),
        ("/classify", {"input": "a"}, "top_k"),
        ("/zero-shot", {"input": "a", "labels": ["a"]}, "top_k"),
        ("/tag", {"input": "a"}, "stride"),
        ("/answer", {"question": "a", "context": "a"}, "top_k"),
        ("/answer", {"question": "a", "context": "a"}, "max_answer_tokens"),
        ("/answer", {"question": "a", "context": "a"}, "stride"),
        ("/answer", {"question": "a", "context": "a"}, "window_tokens"),
        ("/fill", {"input": "[MASK]"}, "top_k"),
    ):
        for number in (2**31, 2**63, 2**64, 10**30, -1):
            error = refusal(client, path, **body, **{field: number})
            assert (error["code"], error["param"]) == ("invalid_body", field), path

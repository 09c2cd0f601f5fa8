"""One contender of bench/embed.py, in a process of its own: load, warm up, encode the whole list once, print JSON.

`python -m bench.encoding '{"contender": "bundle", "folder": ..., "variant": ..., "threads": 2, "texts_file": ...}'`.
Contenders: `bundle`, `sentence-transformers`, and `padding`, which does not time but counts the tokens a bundle runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Encode = Callable[[list[str]], Any]


def load_bundle(options: dict[str, Any]) -> Encode:
    """A variant of a bundle, as a user calls it."""
    import onnxpress

    model = onnxpress.load(
        options["folder"], variant=options["variant"], threads=options["threads"], task="feature-extraction"
    )
    return model.embed


def load_sentence_transformers(options: dict[str, Any]) -> Encode:
    """PyTorch float32 on the CPU; everything else as sentence-transformers does by default."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(options["threads"])
    encode: Encode = SentenceTransformer(options["folder"], device="cpu").encode
    return encode


def time_encoding(encode: Encode, texts: list[str]) -> dict[str, float]:
    """Seconds for the whole list, tokenization included, after a third of it as a warm-up."""
    encode(texts[::3])  # every third text: the same mixture of lengths
    start = time.perf_counter()
    vectors = encode(texts)
    seconds = time.perf_counter() - start
    assert len(vectors) == len(texts)
    return {"seconds": seconds}


def count_tokens(options: dict[str, Any], texts: list[str]) -> dict[str, int]:
    """Tokens of the texts, and with padding, as the bundle gives them to onnxruntime."""
    import onnxruntime

    encode = load_bundle(options)
    real, padded, runs = 0, 0, 0
    run = onnxruntime.InferenceSession.run

    def counting(session: Any, outputs: Any, feeds: dict[str, Any], *rest: Any, **more: Any) -> Any:
        nonlocal real, padded, runs
        real += int(feeds["attention_mask"].sum())
        padded += feeds["attention_mask"].size
        runs += 1
        return run(session, outputs, feeds, *rest, **more)

    onnxruntime.InferenceSession.run = counting
    encode(texts)
    return {"tokens": real, "tokens_with_padding": padded, "runs": runs}


def main() -> None:
    """Do what the command line asks."""
    options = json.loads(sys.argv[1])
    texts = json.loads(Path(options["texts_file"]).read_text(encoding="utf-8"))
    if options["contender"] == "padding":
        answer: dict[str, Any] = {**count_tokens(options, texts)}
    else:
        load = load_bundle if options["contender"] == "bundle" else load_sentence_transformers
        answer = {**time_encoding(load(options), texts)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

"""What most people write: FastAPI and sentence-transformers, one call of `encode` a request, in FastAPI's threads.

`python -m bench.serving.plain_server '{"folder": MODEL, "port": 8000, "threads": 2}'`; float32, PyTorch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Question(BaseModel):
    """The part of the OpenAI API's body that is used here."""

    input: str | list[str]
    model: str = "model"


def make_app(folder: str) -> FastAPI:
    """One route that embeds, one that says when it can."""
    model = SentenceTransformer(folder, device="cpu")
    model.encode(["warm up"])
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embed(question: Question) -> dict[str, Any]:
        texts = [question.input] if isinstance(question.input, str) else question.input
        vectors = model.encode(texts, show_progress_bar=False)
        data = [
            {"object": "embedding", "index": index, "embedding": vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": question.model}

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    """Serve until told to end."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    uvicorn.run(make_app(options["folder"]), host="127.0.0.1", port=options["port"], log_level="warning")


if __name__ == "__main__":
    main()

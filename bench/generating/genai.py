"""onnxruntime-genai, with a model that its own builder made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.generating.timing import Generate, Prompt, serve


def load(options: dict[str, Any]) -> Generate:
    """`folder`: what the builder wrote; the number of threads is written into its genai_config.json."""
    import onnxruntime_genai as genai

    file = Path(options["folder"]) / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = options["threads"]
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    model = genai.Model(options["folder"])

    def generate(prompts: Sequence[Prompt], new: int) -> list[list[int]]:
        import numpy as np

        length = len(prompts[0]) + new
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(
            do_sample=False, batch_size=len(prompts), min_length=length, max_length=length, early_stopping=False
        )
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        for _ in range(new):
            generator.generate_next_token()
        return [generator.get_sequence(row)[len(prompts[0]) :].tolist() for row in range(len(prompts))]

    return generate


if __name__ == "__main__":
    serve(load)

"""A decoder in a process of its own, timed as bench/generating/timing.py says.

`python -m bench.gpus.decoder '{"engine": "onnxpress", "bundle": ..., "model": ..., "device": "cuda", ...}'`. Engines:
`onnxpress`, `onnxpress graphs` (decoding steps captured as CUDA graphs), `PyTorch` (the same precision, `sdpa`, a cache
that grows), `PyTorch compiled` (a cache of fixed size, steps compiled with CUDA graphs).
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any

from bench.generating.timing import Generate, Prompt, serve


def load_onnxpress(options: dict[str, Any]) -> Generate:
    """`generate` of a bundle, with the engine under it."""
    from bench.gpus.sessions import open_session
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.generation.cache import KeyValueCache
    from onnxpress.runtime.generation.decoder import Decoder, layout_of
    from onnxpress.runtime.generation.engine import Engine
    from onnxpress.runtime.generation.generator import Generator
    from onnxpress.runtime.generation.storage import storage_of
    from onnxpress.runtime.tokenizer import Tokenizer

    bundle = open_bundle(options["bundle"])
    settings = bundle.manifest.settings
    assert settings.generation is not None
    session = open_session({**options, "graphs": options["engine"] == "onnxpress graphs"})
    storage = storage_of(session)
    layout = layout_of(session, settings.generation, storage)
    cache = KeyValueCache(layout, settings.generation.context, most_rows=options["most_prompts"], storage=storage)
    tokenizer = Tokenizer(bundle.path_of(settings.tokenizer.file), settings.tokenizer)
    model = Generator(Engine(Decoder(session, cache)), tokenizer, settings)

    def generate(prompts: Sequence[Prompt], new: int) -> list[list[int]]:
        answers = model.generate(list(prompts), max_new_tokens=new, temperature=0, ignore_eos=True)
        return [list(answer.token_ids) for answer in answers]

    return generate


def load_pytorch(options: dict[str, Any]) -> Generate:
    """transformers, one forward call a step; on the CPU, where half precision is slow, in float32."""
    import torch
    import transformers

    device = options["device"]
    dtype = torch.float16 if device == "cuda" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(options["model"], dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval()
    fixed = options["engine"] == "PyTorch compiled"
    step = torch.compile(model.forward, mode="reduce-overhead") if fixed and device == "cuda" else model.forward
    # transformers 5.24 renamed it.
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    length = options["prompt_tokens"] + options["new_tokens"]
    caches: dict[int, Any] = {}

    def cache_for(batch: int) -> Any:
        if not fixed:
            return transformers.DynamicCache(config=model.config)
        if batch not in caches:
            caches[batch] = transformers.StaticCache(config=model.config, max_cache_len=length)
        caches[batch].reset()
        return caches[batch]

    def generate(prompts: Sequence[Prompt], new: int) -> list[list[int]]:
        tokens = torch.tensor(prompts, device=device)
        place = torch.arange(tokens.shape[1], device=device)
        chosen = []
        with torch.inference_mode():
            cache = cache_for(len(prompts))
            for index in range(new):
                forward = step if index else model.forward
                logits = forward(
                    input_ids=tokens,
                    position_ids=place.expand(len(prompts), -1),
                    **{argument: cache},
                    use_cache=True,
                    logits_to_keep=1,
                ).logits
                tokens = logits[:, -1].argmax(dim=-1, keepdim=True).clone()  # a graph's output is written to again
                place = place[-1:] + 1
                chosen.append(tokens)
        answers: list[list[int]] = torch.cat(chosen, dim=1).tolist()
        return answers

    return generate


def load(options: dict[str, Any]) -> Generate:
    """The engine that the options name."""
    return (load_pytorch if options["engine"].startswith("PyTorch") else load_onnxpress)(options)


if __name__ == "__main__":
    assert json.loads(sys.argv[1])["engine"], "no engine is named"
    serve(load)

"""transformers in PyTorch float32 with its key-value cache, one forward call a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.generating.timing import Generate, Prompt, serve


def load(options: dict[str, Any]) -> Generate:
    """`folder`: of the model."""
    import torch
    import transformers

    torch.set_num_threads(options["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(options["folder"], dtype=torch.float32).eval()

    def generate(prompts: Sequence[Prompt], new: int) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        cache = transformers.DynamicCache(config=model.config)
        chosen = []
        with torch.inference_mode():
            for _ in range(new):
                logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                tokens = logits[:, -1].argmax(dim=-1, keepdim=True)
                chosen.append(tokens)
        answers: list[list[int]] = torch.cat(chosen, dim=1).tolist()
        return answers

    return generate


if __name__ == "__main__":
    serve(load)

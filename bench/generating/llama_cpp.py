"""llama.cpp through the C interface of llama-cpp-python: several sequences in one batch, greedy choice by numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.generating.timing import Generate, Prompt, serve


def load(options: dict[str, Any]) -> Generate:
    """`folder`: the GGUF file."""
    import ctypes

    import llama_cpp
    import numpy as np

    most = options["most_prompts"]
    tokens_each = options["prompt_tokens"] + options["new_tokens"] + 8
    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(options["folder"].encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = most * tokens_each
    settings.n_seq_max = most
    settings.n_batch = max(2048, most * options["prompt_tokens"])
    settings.n_threads = settings.n_threads_batch = options["threads"]
    context = llama_cpp.llama_init_from_model(model, settings)
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
    vocabulary = options["vocabulary"]

    def run(entries: Iterator[tuple[int, int, int, bool]]) -> list[int]:
        """Tokens, their places, sequences, and whether logits are wanted; the best token of each that are."""
        wanted = []
        count = 0
        for count, (token, place, sequence, last) in enumerate(entries, 1):
            index = count - 1
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = last
            if last:
                wanted.append(index)
        batch.n_tokens = count
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        pointers = (llama_cpp.llama_get_logits_ith(context, index) for index in wanted)
        return [int(np.ctypeslib.as_array(pointer, shape=(vocabulary,)).argmax()) for pointer in pointers]

    def generate(prompts: Sequence[Prompt], new: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(memory, True)
        chosen = run(
            (token, place, row, place == len(prompt) - 1)
            for row, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        )
        answers = [[token] for token in chosen]
        for step in range(new - 1):
            places = [len(prompt) + step for prompt in prompts]
            chosen = run((answers[row][-1], place, row, True) for row, place in enumerate(places))
            for answer, token in zip(answers, chosen, strict=True):
                answer.append(token)
        return answers

    return generate


def about() -> dict[str, Any]:
    """How llama.cpp was built, as it says itself."""
    import llama_cpp

    return {"version": llama_cpp.__version__, "build": llama_cpp.llama_print_system_info().decode().strip()}


if __name__ == "__main__":
    serve(load, lambda _, question: about())

"""What a caller may ask for: the keyword arguments of `generate` and its like. What each means is checked where it is
used (sampling.py, beams.py, generator.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.beams import BEAM_OPTIONS
from onnxpress.runtime.generation.constraints import Grammar


class Options(TypedDict, total=False):
    """How to write: the fields of `Sampling`, and what goes beyond one token. The rest is as the model's own
    `generation_config.json` says."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None
    n: int
    grammar: Grammar | None
    """What the answer must be (constraints.py)."""
    timeout_seconds: float | None
    """An answer that is not complete by then ends with the reason `timeout`."""
    num_beams: int | None
    """See `Beams`, which the two below belong to as well; more than 1: a search."""
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    prompt_lookup: int | None
    """Tokens to draft at most (lookup.py), where an answer that is not drawn runs alone; the answer stays the same."""


BEYOND_SAMPLING = ("grammar", "timeout_seconds", "prompt_lookup", *BEAM_OPTIONS)
"""What is no field of `Sampling`."""


def check_names(options: Iterable[str]) -> None:
    """
    Raises:
        InvalidInputError: one is no option.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise InvalidInputError(f"unknown option {name!r}; known are {', '.join(sorted(Options.__annotations__))}")

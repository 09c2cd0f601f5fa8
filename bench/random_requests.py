"""Random generation requests, good and bad, for bench/requests.py: what is asked for, how, and when its asker leaves.

Everything follows from a seed and the number of a request, so one that went wrong can be asked again.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxpress.runtime.generation.constraints import Grammar, choice, json_schema, lark, regex

if TYPE_CHECKING:
    from onnxpress.runtime.generation.generator import Generator

BAD_SHARE = 0.12
CHOICES = ("yes", "no", "maybe so")
PATTERN = "[a-z]{1,12}"
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
_WORDS = (
    "the", "of", "a", "and", "in", "was", "order", "game", "water", "=", "@", "year", ",", ".", "ü", "東", "😀", "\n",
)  # fmt: skip
_SHARED_PREFIXES = 6

THREAD_WAYS = {"generate": 3, "texts": 2, "stream": 3}
"""Ways to ask from a thread, and how often each: for whole answers, for texts, for tokens."""
LOOP_WAYS = {"async": 2, "async stream": 3}
"""The same from an event loop."""
LEAVING = {"stays": 11, "at once": 2, "while it waits": 3, "after some tokens": 3, "abandons": 1, "after the end": 1}
"""When who listens to a stream leaves it; those who abandon one never say so."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request, or several in one call."""

    number: int
    way: str
    prompts: list[Any]
    """Texts or token ids; more than one only for the way `generate`."""
    options: dict[str, Any]
    leaves: str
    patience: float
    """Seconds after which who leaves while it waits leaves."""
    most_pieces: float
    """Of a stream that are read."""
    constraint: str | None
    bad: str | None
    """What is wrong with it; None for nothing."""


class RandomRequests:
    """Makes requests for one model."""

    def __init__(self, generator: Generator, seed: int, constrained: bool) -> None:
        """
        Args:
            generator: whose context, vocabulary and tokenizer they are for.
            seed: of everything.
            constrained: whether outputs of the model can be constrained.
        """
        assert generator.settings.generation is not None
        self._context = generator.settings.generation.context
        self._vocabulary = generator.settings.generation.vocabulary
        self._begins = generator.settings.generation.bos_id is not None
        self._seed = seed
        self._constrained = constrained
        rng = random.Random(f"{seed} prefixes")
        lengths = [rng.randint(18, max(18, self._context // 6)) for _ in range(_SHARED_PREFIXES)]
        self._prefixes = [self._ids(rng, length) for length in lengths]

    def make(self, number: int, ways: Mapping[str, int]) -> Asked:
        """The request of this number, for one who can ask in these ways."""
        rng = random.Random(f"{self._seed} {number}")
        way = rng.choices(list(ways), list(ways.values()))[0]
        streams = way not in ("generate", "async")
        leaves = rng.choices(list(LEAVING), list(LEAVING.values()))[0] if streams else "stays"
        if way == "async" and rng.random() < 0.3:
            leaves = rng.choice(["at once", "while it waits"])
        count = rng.choice([1, 1, 1, 2, 4]) if way == "generate" else 1
        prompts = [self._prompt(rng) for _ in range(count)]
        options, constraint = self._options(rng, several=way == "generate")
        bad = None
        if rng.random() < BAD_SHARE:
            bad, constraint = self._spoil(rng, way, prompts, options), None
        patience = rng.choice([0.0, 0.002, 0.01, 0.03, 0.1]) * rng.random()
        most_pieces = rng.randint(1, 6) if leaves in ("after some tokens", "abandons") else math.inf
        return Asked(number, way, prompts, options, leaves, patience, most_pieces, constraint, bad)

    def _prompt(self, rng: random.Random) -> Any:
        kind = rng.random()
        if kind < 0.25:
            text = " ".join(rng.choices(_WORDS, k=rng.randint(1, max(2, min(40, self._context // 8)))))
            return text if self._begins and rng.random() < 0.1 else text + " x"
        if kind < 0.3 and self._begins:
            return rng.choice(["", []])
        if kind < 0.55:
            prefix = rng.choice(self._prefixes)
            return prefix[: rng.randint(1, len(prefix))] + self._ids(rng, rng.randint(0, 12))
        if kind < 0.58:  # up to the last token that leaves room for an answer
            return self._ids(rng, self._context - rng.randint(1, 8))
        if kind < 0.66:
            return self._ids(rng, rng.randint(1, self._context // 3))
        return self._ids(rng, rng.randint(1, max(1, self._context // 24)))

    def _ids(self, rng: random.Random, count: int) -> list[int]:
        return [rng.randrange(self._vocabulary) for _ in range(count)]

    def _options(self, rng: random.Random, several: bool) -> tuple[dict[str, Any], str | None]:
        """Options that can be used, and what they constrain the output to."""
        options: dict[str, Any] = {"max_new_tokens": rng.choice([1, 2, rng.randint(1, 12), rng.randint(1, 40)])}
        if rng.random() < 0.02:
            options["max_new_tokens"] = 10 * self._context  # as many as the context holds
        options["temperature"] = rng.choice([0.0, 0.0, 0.3, 1.0, 2.5])
        maybe: dict[str, Callable[[], Any]] = {
            "top_k": lambda: rng.choice([0, 1, 5, 40]),
            "top_p": lambda: rng.uniform(0.05, 1.0),
            "min_p": lambda: rng.uniform(0.0, 0.5),
            "seed": lambda: rng.randrange(1 << 31),
            "repetition_penalty": lambda: rng.uniform(0.6, 2.0),
            "presence_penalty": lambda: rng.uniform(-2.0, 2.0),
            "frequency_penalty": lambda: rng.uniform(-2.0, 2.0),
            "stop": lambda: rng.choice([" the", ["e", "\n"], ["a b", ".", "ü"], "zzzz"]),
            "stop_token_ids": lambda: self._ids(rng, rng.randint(1, 5)),
            "ignore_eos": lambda: True,
            "logprobs": lambda: rng.choice([0, 1, 5]),
            "prompt_lookup": lambda: rng.choice([0, 1, 4, 12]),
            "timeout_seconds": lambda: rng.choice([0.0, rng.uniform(0.0, 0.1), 60.0]),
        }
        options |= {name: value() for name, value in maybe.items() if rng.random() < 0.14}
        if several and rng.random() < 0.2:
            options["n"] = rng.randint(1, 3)
        if not (self._constrained and rng.random() < 0.12):
            return options, None
        constraint, grammar = rng.choice(CONSTRAINTS)
        for name in ("stop", "stop_token_ids", "ignore_eos"):
            options.pop(name, None)
        return options | {"grammar": grammar, "max_new_tokens": rng.choice([4, 24])}, constraint

    def _spoil(self, rng: random.Random, way: str, prompts: list[Any], options: dict[str, Any]) -> str:
        """Make a request one that cannot be answered. Returns how."""
        if way != "generate" and rng.random() < 0.05:
            options["n"] = 2
            return "n of a stream"
        if rng.random() < 0.4:
            name, prompt = rng.choice(self._bad_prompts())
            prompts[rng.randrange(len(prompts))] = prompt
            return f"prompt: {name}"
        bad = _BAD_OPTIONS + (_BAD_GRAMMARS if self._constrained else ())
        name, value = rng.choice(bad)
        options[name] = value
        return f"{name}={str(value)[:60]!r}"

    def _bad_prompts(self) -> list[tuple[str, Any]]:
        empty: Sequence[tuple[str, Any]] = () if self._begins else (("empty", ""), ("no ids", []))
        return [
            *empty,
            ("fills the context", [1] * self._context),
            ("longer than the context", [1] * (3 * self._context)),
            ("text far too long", "a " * 600_000),
            ("negative id", [1, -1]),
            ("id beyond the vocabulary", [1, self._vocabulary]),
            ("id beyond 64 bits", [1, 1 << 70]),
            ("a float", [1, 1.5]),
            ("a bool", [1, True]),
            ("a word among ids", [1, "a"]),
            ("lone surrogate", "a \ud800"),
            ("bytes", b"abc"),
        ]


CONSTRAINTS: list[tuple[str, Grammar]] = [
    ("choice", choice(CHOICES)),
    ("regex", regex(PATTERN)),
    ("schema", json_schema(SCHEMA)),
]
"""By the name that `answer_checks.keeps` knows."""
_BAD_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("max_new_tokens", 0), ("max_new_tokens", -3), ("max_new_tokens", 1.5), ("max_new_tokens", "8"),
    ("temperature", -1), ("temperature", math.nan), ("temperature", "hot"),
    ("top_p", 0), ("top_p", 1.5), ("top_k", -1), ("min_p", 2),
    ("repetition_penalty", 0), ("presence_penalty", 1e9), ("frequency_penalty", math.nan),
    ("seed", -1), ("n", 0), ("logprobs", -1), ("logprobs", 10**6), ("ignore_eos", "yes"),
    ("stop", ""), ("stop", 5), ("stop", ["a", 5]), ("stop", ["x"] * 1000), ("stop_token_ids", [-1]),
    ("stop_token_ids", ["a"]), ("timeout_seconds", -1), ("timeout_seconds", "soon"), ("grammar", "[a-z]+"),
    ("grammar", {"type": "object"}), ("no_such_option", 1),
    ("prompt_lookup", -1), ("prompt_lookup", "all"), ("num_beams", 0), ("num_beams", "two"),
)  # fmt: skip
_BAD_GRAMMARS: tuple[tuple[str, Any], ...] = (
    ("grammar", regex("(")),
    ("grammar", json_schema({"type": "nothing"})),
    ("grammar", lark("start: missing")),
    ("grammar", lark("")),
)

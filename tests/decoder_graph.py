"""A tiny Llama-like decoder with random weights, twice: as an ONNX graph that keeps the contract of exported decoders
(docs/bundle.md), and in plain numpy without any cache, to compare with. No tracing, so it takes milliseconds."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxpress.runtime.generation.cache import CacheLayout

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class TinyDecoder:
    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    intermediate: int = 48
    vocabulary: int = 100
    context: int = 256
    seed: int = 0

    @property
    def layout(self) -> CacheLayout:
        return CacheLayout((self.kv_heads,) * self.layers, (self.head_dim,) * self.layers)

    @functools.cached_property
    def weights(self) -> dict[str, Array]:
        """By name, float32, with a standard deviation of 0.3."""
        random = np.random.default_rng(self.seed)
        kv = self.kv_heads * self.head_dim
        shapes = {"embedding": (self.vocabulary, self.hidden), "head": (self.hidden, self.vocabulary)}
        for layer in range(self.layers):
            shapes |= {
                f"{layer}.q": (self.hidden, self.heads * self.head_dim),
                f"{layer}.k": (self.hidden, kv),
                f"{layer}.v": (self.hidden, kv),
                f"{layer}.o": (self.heads * self.head_dim, self.hidden),
                f"{layer}.gate": (self.hidden, self.intermediate),
                f"{layer}.up": (self.hidden, self.intermediate),
                f"{layer}.down": (self.intermediate, self.hidden),
            }
        weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
        weights["norm"] = np.ones(self.hidden, np.float32)
        angles = np.outer(np.arange(self.context), 10000.0 ** -(np.arange(0, self.head_dim, 2) / self.head_dim))
        return weights | {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}

    def logits(self, tokens: list[int]) -> Array:
        """Logits after the last token, [vocabulary], computed from nothing."""
        w, length = self.weights, len(tokens)
        x = w["embedding"][tokens]  # [length, hidden]
        causal = np.where(np.tri(length) > 0, 0.0, -np.inf)
        for layer in range(self.layers):
            normed = _norm(x)
            q, k, v = (
                (normed @ w[f"{layer}.{kind}"]).reshape(length, -1, self.head_dim).swapaxes(0, 1) for kind in "qkv"
            )
            q, k = (_rotate(states, w["cos"][:length], w["sin"][:length]) for states in (q, k))
            k, v = (np.repeat(states, self.heads // self.kv_heads, axis=0) for states in (k, v))
            scores = q @ k.swapaxes(1, 2) / np.sqrt(self.head_dim) + causal
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (weight / weight.sum(-1, keepdims=True)) @ v
            x = x + mixed.swapaxes(0, 1).reshape(length, -1) @ w[f"{layer}.o"]
            normed = _norm(x)
            gate = normed @ w[f"{layer}.gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (normed @ w[f"{layer}.up"])) @ w[f"{layer}.down"]
        return np.asarray(_norm(x)[-1] @ w["head"], np.float32)

    def save(self, path: Path) -> Path:
        """Write the graph."""
        graph = _Graph(self)
        model = helper.make_model(
            graph.build(),
            opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)],
            ir_version=10,
        )
        onnx.save(model, path)
        return path


def _norm(x: Array) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5))


def _rotate(states: Array, cos: Array, sin: Array) -> Array:
    first, second = np.split(states, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class _Graph:
    def __init__(self, shape: TinyDecoder) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"{kind}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def build(self) -> onnx.GraphProto:
        shape = self.shape
        x = self.add("Gather", "embedding", "input_ids")
        for layer in range(shape.layers):
            x = self.add("Add", x, self.attention(layer, self.norm(x)))
            normed = self.norm(x)
            gate = self.add("MatMul", normed, f"{layer}.gate")
            active = self.add("Mul", gate, self.add("Sigmoid", gate))
            x = self.add(
                "Add",
                x,
                self.add("MatMul", self.add("Mul", active, self.add("MatMul", normed, f"{layer}.up")), f"{layer}.down"),
            )
        last = self.add("GatherND", x, self.add("Unsqueeze", "logit_index", "axis"), batch_dims=1)
        self.nodes.append(helper.make_node("MatMul", [self.norm(last), "head"], ["logits"]))
        constants = {**shape.weights, "axis": np.array([2])}
        return helper.make_graph(
            self.nodes,
            "decoder",
            self.inputs(),
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "positions", shape.vocabulary]),
                *self.caches("present"),
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )

    def norm(self, x: str) -> str:
        return str(self.add("RMSNormalization", x, "norm", epsilon=1e-5))

    def attention(self, layer: int, normed: str) -> str:
        shape = self.shape
        q, k, v = (self.add("MatMul", normed, f"{layer}.{kind}") for kind in "qkv")
        q = self.add("RotaryEmbedding", q, "cos", "sin", "position_ids", num_heads=shape.heads)
        k = self.add("RotaryEmbedding", k, "cos", "sin", "position_ids", num_heads=shape.kv_heads)
        mixed = f"mixed.{layer}"
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [q, k, v, *past, "seqlens_k", "total_sequence_length"],
                [mixed, *present],
                domain="com.microsoft",
                num_heads=shape.heads,
                kv_num_heads=shape.kv_heads,
            )
        )
        return str(self.add("MatMul", mixed, f"{layer}.o"))

    def inputs(self) -> list[onnx.ValueInfoProto]:
        wide, narrow = TensorProto.INT64, TensorProto.INT32
        return [
            helper.make_tensor_value_info("input_ids", wide, ["batch", "sequence"]),
            helper.make_tensor_value_info("position_ids", wide, ["batch", "sequence"]),
            helper.make_tensor_value_info("logit_index", wide, ["batch", "positions"]),
            helper.make_tensor_value_info("seqlens_k", narrow, ["batch"]),
            helper.make_tensor_value_info("total_sequence_length", narrow, [1]),
            *self.caches("past"),
        ]

    def caches(self, which: str) -> list[onnx.ValueInfoProto]:
        axes = ["batch", self.shape.kv_heads, "max_length", self.shape.head_dim]
        return [
            helper.make_tensor_value_info(f"{which}.{layer}.{kind}", TensorProto.FLOAT, axes)
            for layer in range(self.shape.layers)
            for kind in ("key", "value")
        ]

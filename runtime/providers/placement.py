"""Which provider each node of a loaded graph runs on, as onnxruntime itself recorded it. docs/placement.md explains."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

from onnxpress.runtime.providers.names import CPU

if TYPE_CHECKING:
    import onnxruntime

RECORD_KEY = "session.record_ep_graph_assignment_info"
"""The session option that makes onnxruntime keep the record; it costs a few bytes a node."""


@dataclasses.dataclass(frozen=True)
class PlacedNode:
    """A node of the graph as it was when providers were given their parts: after the first, shared optimizations."""

    name: str
    op_type: str
    domain: str
    provider: str


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the nodes of a session run."""

    variant: str
    providers: tuple[str, ...]
    """Of the session, the most wanted first."""
    nodes: tuple[PlacedNode, ...]
    parts: dict[str, int]
    """Pieces that each provider was given. One that compiles, such as TensorRT, best has a single piece; one that has
    kernels, such as CUDA or the CPU, is given each node by itself."""

    @property
    def leader(self) -> str:
        """The provider that was wanted most."""
        return self.providers[0]

    @property
    def counts(self) -> dict[str, int]:
        """Nodes of each provider, in the order of the providers; 0 where one was given none."""
        found = Counter(node.provider for node in self.nodes)
        return {name: found[name] for name in dict.fromkeys((*self.providers, *found))}

    @property
    def on_cpu(self) -> tuple[PlacedNode, ...]:
        """Nodes that fell to the CPU while another provider leads; none where the CPU leads."""
        return () if self.leader == CPU else tuple(node for node in self.nodes if node.provider == CPU)

    def operators(self, provider: str) -> dict[str, int]:
        """How many nodes of each operator a provider has, the most frequent first."""
        return dict(Counter(node.op_type for node in self.nodes if node.provider == provider).most_common())


def placement_of(session: onnxruntime.InferenceSession, variant: str) -> Placement:
    """Read the record of a session that was made with `RECORD_KEY`."""
    nodes, parts = [], Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        parts[part.ep_name] += 1
        nodes += [PlacedNode(node.name, node.op_type, node.domain, part.ep_name) for node in part.get_nodes()]
    return Placement(variant, tuple(session.get_providers()), tuple(nodes), dict(parts))

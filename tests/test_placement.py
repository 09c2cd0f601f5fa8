"""Which provider runs each node: the record of real sessions, and what is shown of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import onnxpress
from onnxpress.cli import main
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.providers import ON_CPU, Placement
from onnxpress.runtime.providers.placement import PlacedNode, placement_of
from onnxpress.runtime.settings import ServingSettings
from tests.fake_machine import CPU, CUDA
from tests.tiny_generator import make_bundle

AZURE = "AzureExecutionProvider"  # in every wheel for the CPU, and has no kernel for any of our operators


def test_the_cpu_has_every_node_of_a_model_on_the_cpu(tiny_bundle: Path) -> None:
    placement = onnxpress.load(tiny_bundle, variant="fp32").placement()
    assert placement.variant == "fp32"
    assert placement.leader == CPU
    assert placement.counts == {CPU: len(placement.nodes)}
    assert placement.operators(CPU)["MatMul"] >= 4
    assert sum(placement.operators(CPU).values()) == len(placement.nodes)
    assert placement.on_cpu == (), "nothing falls to the CPU where it was wanted"


def test_nodes_that_another_provider_leaves_are_counted_and_named(tiny_bundle: Path) -> None:
    placement = onnxpress.load(tiny_bundle, variant="fp32", providers=[AZURE, "cpu"]).placement()
    assert placement.leader == AZURE
    assert placement.counts == {AZURE: 0, CPU: len(placement.nodes)}
    assert placement.on_cpu == placement.nodes
    assert {"MatMul"} <= {node.op_type for node in placement.on_cpu}


def test_a_generator_has_a_placement(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    generator = Generator.open(bundle, bundle.manifest.variant(None), ON_CPU, ServingSettings(threads=1))
    placement = generator.placement()
    assert placement.counts == {CPU: len(placement.nodes)}
    assert "GroupQueryAttention" in placement.operators(CPU)


class Part:
    """A part of a graph as onnxruntime records it."""

    def __init__(self, provider: str, *names: str) -> None:
        self.ep_name = provider
        self._names = names

    def get_nodes(self) -> list[PlacedNode]:
        return [PlacedNode(name, name.rstrip("0123456789"), "", self.ep_name) for name in self._names]


class Session:
    """A session that leads with CUDA and leaves two nodes to the CPU."""

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self) -> list[Part]:
        return [Part(CUDA, "MatMul1", "MatMul2", "Gelu1"), Part(CPU, "Shape1"), Part(CPU, "Gather1")]


def test_parts_and_nodes_are_counted_apart() -> None:
    placement = placement_of(Session(), "fp16")
    assert placement.counts == {CUDA: 3, CPU: 2}
    assert placement.parts == {CUDA: 1, CPU: 2}
    assert placement.operators(CUDA) == {"MatMul": 2, "Gelu": 1}
    assert [node.name for node in placement.on_cpu] == ["Shape1", "Gather1"]


# --- the command ---


def test_inspect_shows_what_fell_to_the_cpu(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["inspect", str(tiny_bundle), "--placement", "--variant", "fp32"]
    assert main([*command, "--providers", f"{AZURE},cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["provider", "nodes", "parts", "operators"]
    assert shown[1].split()[:3] == [AZURE, "0", "0"]
    count = int(shown[2].split()[1])
    verdict = f"{count} of {count} nodes of fp32 fell to the CPU while {AZURE} leads:"
    assert verdict in shown
    named = shown[shown.index(verdict) + 1 :]
    assert len(named) == min(count, 30) + (count > 30)
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{count} nodes of fp32, all on the CPU"


def test_inspect_gives_the_placement_as_json(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bundle), "--placement", "--json", "--providers", f"{AZURE},cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["providers"] == [AZURE, CPU]
    assert found["counts"][CPU] == len(found["nodes"]) == len(found["on_cpu"])
    assert set(found["nodes"][0]) == {"name", "op_type", "domain", "provider"}


def test_inspect_refuses_a_variant_without_placement(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bundle), "--variant", "fp32"]) == 2
    assert "--variant and --providers are for --placement" in capsys.readouterr().err


def test_no_name_is_lost_where_many_fell(capsys: pytest.CaptureFixture[str]) -> None:
    from onnxpress.cli.placement import show_placement

    nodes = tuple(PlacedNode(f"n{index}", "Cast", "", CPU) for index in range(31))
    show_placement(Placement("fp16", (CUDA, CPU), nodes, {CPU: 31}), as_json=False)
    shown = capsys.readouterr().out
    assert "31 of 31 nodes of fp16 fell to the CPU" in shown
    assert "and 1 more, which --json names" in shown

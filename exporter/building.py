"""The steps that make graphs: load, trace, fuse, convert. Everything goes through the step cache."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.exporter import decoder_precisions, encoder_precisions
from onnxpress.exporter.config import Thresholds
from onnxpress.exporter.onnx_file.folder import weight_files
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.source import Source
from onnxpress.exporter.state import TOKENIZER_FILE, Graph, ModelFacts, State, VariantState
from onnxpress.quantize.graphs import PassReport
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import UnsupportedModelError, first_line
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.providers import SHORT_NAMES, unusable_because
from onnxpress.runtime.verification import CASES_FILE, Case, load_cases, save_cases

if TYPE_CHECKING:
    from onnxpress.exporter.fusion import Form
    from onnxpress.exporter.reference import Reference

# Lays convolutions out anew, of which encoders have none or few; onnxruntime 1.32 ends the process with a segmentation
# fault in it on half-precision XLNet.
_CRASHES_ON_FP16 = "NchwcTransformer"
_TIMING_SECONDS = 4.0  # enough for a 5 % difference between forms to show


def load(state: State) -> State:
    """Facts about the model, its tokenizer, and what the reference computes for the verification inputs."""

    def make(folder: Path) -> dict[str, Any]:
        nonlocal state
        from onnxpress.exporter.cases import make_cases

        state = _with_reference(state)
        assert state.loaded is not None
        with quiet(state.verbose):
            state.loaded.backend.save(str(folder / TOKENIZER_FILE))
            save_cases(folder / CASES_FILE, make_cases(state.loaded))
        return dataclasses.asdict(_facts(state.loaded, state.source))

    prompts = state.source.recipe.prompts if state.source.recipe else {}
    folder, data, found = state.cache.get("load", _source_key(state) | {"prompts": prompts}, make)
    facts = decode(ModelFacts, data)
    shutil.copyfile(folder / TOKENIZER_FILE, state.folder / TOKENIZER_FILE)
    shutil.copyfile(folder / CASES_FILE, state.folder / CASES_FILE)
    return dataclasses.replace(
        state, facts=facts, cases=tuple(load_cases(folder / CASES_FILE)), cached=state.cached and found
    )


def trace(state: State) -> State:
    """The model as one ONNX graph with free batch and sequence sizes."""

    def make(folder: Path) -> dict[str, Any]:
        nonlocal state
        state = _with_reference(state)
        assert state.loaded is not None
        with quiet(state.verbose):
            state.loaded.write_graph(folder / "model.onnx")
        return {}

    folder, _, found = state.cache.get("trace", _source_key(state), make)
    return dataclasses.replace(state, traced=folder / "model.onnx", loaded=None, cached=state.cached and found)


def fuse(state: State) -> State:
    """The form of the float32 graph that is fastest for the target on this machine."""

    if state.task == "text-generation":  # fused while it was traced
        assert state.traced is not None
        return dataclasses.replace(state, fused=Graph(state.traced, SessionSettings(), ()))

    def make(folder: Path) -> dict[str, Any]:
        from onnxpress.exporter import fusion

        assert state.traced is not None
        with quiet(state.verbose):
            made, left_out = _write_forms(state, folder)
            # Kernels of another target cannot be timed here; its fused form is the last one listed.
            if state.config.target == "cpu":
                state.progress("fuse", f"timing {len(made)} forms", None)
                graphs = [(path, form.session) for form, path, _ in made]
                measured = fusion.time_forms(graphs, real_cases(state), _TIMING_SECONDS)
                times: Sequence[float | None] = measured
                best = fusion.fastest(measured)
            else:
                times, best = [None] * len(made), len(made) - 1
        candidates = [
            {"name": form.name, "milliseconds": time, "chosen": index == best}
            for index, ((form, _, _), time) in enumerate(zip(made, times, strict=True))
        ]
        candidates += [{"name": name, "milliseconds": None, "chosen": False} for name in left_out]
        form, path, report = made[best]
        for _, other, _ in made:
            if other != path:
                shutil.rmtree(other.parent)
        return {
            "path": path.relative_to(folder).as_posix(),
            "session": dataclasses.asdict(form.session),
            "report": dataclasses.asdict(report),
            "candidates": candidates,
        }

    machine = describe_machine().key()
    key = _source_key(state) | {"target": state.config.target, "machine": machine, "bound": _fp32_bound(state)}
    folder, data, found = state.cache.get("fuse", key, make)
    graph = Graph(
        path=folder / data["path"],
        session=decode(SessionSettings, data["session"]),
        passes=(decode(PassReport, data["report"]),),
        candidates=tuple(data["candidates"]),
    )
    return dataclasses.replace(state, fused=graph, cached=state.cached and found)


def _write_forms(state: State, folder: Path) -> tuple[list[tuple[Form, Path, PassReport]], list[str]]:
    """The forms that suit the graph, written, and the names of the others. The first one, the graph as it is, does."""
    from onnxpress.exporter import fusion

    assert state.traced is not None
    assert state.facts is not None
    cases = real_cases(state) if state.config.target == "cpu" else []
    made, left_out = [], []
    for index, form in enumerate(fusion.forms(state.config.target)):
        state.progress("fuse", form.name, None)
        place = folder / str(index)
        place.mkdir()
        if index == 0:
            made.append((form, *fusion.write_form(form, state.traced, place)))
        elif written := fusion.try_form(form, state.traced, place, cases, state.facts.outputs, _fp32_bound(state)):
            made.append((form, *written))
        else:
            shutil.rmtree(place)
            left_out.append(form.name)
    return made, left_out


def convert(state: State) -> State:
    """One graph, or several to choose from, for every variant asked for."""
    variants = []
    for precision in state.config.effective_variants(state.task):
        state.progress("convert", precision, None)
        try:
            graphs, found = _convert_one(state, precision)
        except OSError:  # such as a full disk
            raise
        # The libraries that convert raise many types on graphs they do not know; our own are not among these.
        except Exception as error:
            if state.source.onnx is None and not isinstance(error, UnsupportedModelError):
                raise
            variants.append(_not_made(state, precision, error))
            continue
        state = dataclasses.replace(state, cached=state.cached and found)
        variants.append(
            VariantState(
                name=precision,
                precision=precision,
                target=state.config.target,
                graph=graphs[0],
                alternatives=graphs[1:],
            )
        )
    if reason := unusable_because(SHORT_NAMES[state.config.target]):
        state.progress("convert", f"a CPU variant beside them: {reason}", None)
        variants.insert(0, _cpu_variant(state))
    return dataclasses.replace(state, variants=tuple(variants))


def _not_made(state: State, precision: str, error: Exception) -> VariantState:
    """A variant that failed before there was anything to verify."""
    assert state.fused is not None
    failure = f"cannot be made of this graph: {first_line(error)}"
    return VariantState(precision, precision, state.config.target, state.fused, status="failed", failure=failure)


def _cpu_variant(state: State) -> VariantState:
    """The traced graph for the CPU: what a bundle made without its target's hardware can be served with meanwhile."""
    assert state.traced is not None
    graph = Graph(path=state.traced, session=SessionSettings(), passes=())
    return VariantState(name="fp32-cpu", precision="fp32", target="cpu", graph=graph)


def _convert_one(state: State, precision: str) -> tuple[tuple[Graph, ...], bool]:
    """Graphs of a precision, the preferred one first, and whether they were found in the cache."""
    assert state.fused is not None
    if precision == "fp32":
        return (state.fused,), True
    key = _source_key(state) | {"target": state.config.target, "machine": describe_machine().key()}
    if state.task == "text-generation":
        depends_on, make = decoder_precisions.maker(state, precision)
    else:
        depends_on, make = encoder_precisions.maker(state, precision, real_cases(state))
    folder, data, found = state.cache.get(precision, key | depends_on, lambda folder: make(state, folder))
    session = state.fused.session
    if precision == "fp16":
        session = dataclasses.replace(session, disabled_optimizers=(*session.disabled_optimizers, _CRASHES_ON_FP16))
    graphs = tuple(
        Graph(
            path=folder / entry["path"],
            session=session,
            passes=(*state.fused.passes, *(decode(PassReport, report) for report in entry["reports"])),
            candidates=tuple(data["candidates"]),
        )
        for entry in data["graphs"]
    )
    return graphs, found


def _fp32_bound(state: State) -> float:
    return (state.config.thresholds or Thresholds()).fp32_max_abs


def real_cases(state: State) -> list[Case]:
    """The verification inputs that are real texts: what graphs are timed on."""
    return [case for case in state.cases if case.real]


def _with_reference(state: State) -> State:
    """The state with the model in memory."""
    if state.loaded is not None:
        return state
    state.progress("load", "reading the weights", None)
    with quiet(state.verbose):
        from onnxpress.exporter.reference import load_reference

        return dataclasses.replace(state, loaded=load_reference(state.source, state.task, state.config))


def _source_key(state: State) -> dict[str, Any]:
    return {
        "files": state.source.files_sha256,
        "task": state.task,
        "allow_pickle": state.config.allow_pickle,
        "trust_remote_code": state.config.trust_remote_code,
    }


def _facts(model: Reference, source: Source) -> ModelFacts:
    if source.onnx is not None:
        files = [source.onnx, *weight_files(source.onnx).values()]
    else:
        files = list(source.folder.rglob("*.safetensors"))
    return ModelFacts(
        architecture=model.architecture,
        parameters=model.parameters,
        inputs=model.inputs,
        outputs=model.outputs,
        settings=model.settings,
        weights_bytes=sum(path.stat().st_size for path in files),
        notes=model.notes,
    )

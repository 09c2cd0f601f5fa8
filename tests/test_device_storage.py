"""Decoders whose cache lies on a device: the whole path to a GPU, with a driver whose device is memory of the CPU."""

from __future__ import annotations

import dataclasses
import gc
import random
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxpress.runtime.errors import InvalidInputError, ProviderError
from onnxpress.runtime.generation import bindings, generator
from onnxpress.runtime.generation.bindings import Graphs
from onnxpress.runtime.generation.cache import CacheLayout, CacheMemoryError, KeyValueCache
from onnxpress.runtime.generation.cuda import CudaDriver
from onnxpress.runtime.generation.decoder import Decoder, layout_of
from onnxpress.runtime.generation.replay import Replay
from onnxpress.runtime.generation.storage import HOST, DeviceStorage, storage_of
from tests import test_engine
from tests.fake_cuda import FakeCuda, FakeStorage
from tests.tiny_generator import SETTINGS, make_bundle, opening

TINY = test_engine.TINY
# Of the graph of `session`, which knows fewer tokens than the tokenizer of the tiny bundle.
FITTING = dataclasses.replace(SETTINGS, vocabulary=TINY.vocabulary)


@pytest.fixture
def storage() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def new_decoder(session: onnxruntime.InferenceSession, storage: FakeStorage) -> Callable[..., Decoder]:
    def make(**options: Any) -> Decoder:
        return Decoder(session, KeyValueCache(TINY.layout, TINY.context, **options, storage=storage))

    return make


# What holds on the CPU holds here too, with the decoders that the fixture above makes.

session = test_engine.session
new_engine = test_engine.new_engine
test_prompts = test_engine.test_all_ways_to_run_a_prompt_give_the_reference_logits
test_batches = test_engine.test_requests_in_a_batch_get_the_tokens_they_get_alone
test_contexts = test_engine.test_an_answer_goes_up_to_the_end_of_the_context
test_allocations = test_engine.test_the_cache_is_not_allocated_anew_while_requests_come_and_go
test_conversations = test_engine.test_a_later_turn_of_a_conversation_computes_only_what_is_new
test_failures = test_engine.test_a_request_that_fails_hurts_no_other


def contents(cache: KeyValueCache) -> list[npt.NDArray[np.float32]]:
    """Of all buffers, as far as rows hold tokens; the rest is zero."""
    found = []
    for buffer in cache.buffers.values():
        values = np.zeros(buffer.shape, np.float32)
        if isinstance(buffer, np.ndarray):
            values[:] = buffer
        else:
            assert isinstance(cache.storage, DeviceStorage)
            cache.storage.driver.download(values, buffer.address)
        for row, tokens in enumerate(cache.tokens):
            values[row, :, len(tokens) :] = 0
        found.append(values)
    return found


def write(cache: KeyValueCache, values: list[npt.NDArray[np.float32]]) -> None:
    for buffer, value in zip(cache.buffers.values(), values, strict=True):
        if isinstance(buffer, np.ndarray):
            buffer[:] = value
        else:
            assert isinstance(cache.storage, DeviceStorage)
            cache.storage.driver.upload([(buffer.address, value)])


def test_rows_move_as_they_do_on_the_cpu(storage: FakeStorage) -> None:
    numbers = random.Random(3)
    caches = [KeyValueCache(CacheLayout((2, 3), (8, 16)), 400, 2**26, 8, place) for place in (HOST, storage)]
    for turn in range(60):
        rows, capacity = numbers.randint(1, 8), numbers.randint(1, 400)
        kept = numbers.sample(range(caches[0].rows), numbers.randint(0, caches[0].rows))
        assert len({tuple(cache.reserve(rows, capacity, kept)) for cache in caches}) == 1
        lengths = [numbers.choice((0, 1, 40)) for _ in range(caches[0].rows)]
        noise = np.random.default_rng(turn)
        values = [noise.normal(size=buffer.shape).astype(np.float32) for buffer in caches[0].buffers.values()]
        first, second, third = (numbers.randrange(caches[0].rows) for _ in range(3))
        origin = [numbers.randrange(caches[0].rows) for _ in range(numbers.randint(1, caches[0].rows))]
        for cache in caches:
            write(cache, values)
            cache.tokens = [[row] * length for row, length in enumerate(lengths)]
            cache.swap(first, second)
            if third != second:
                cache.copy(third, second, len(cache.tokens[third]) // 2)
            cache.tokens = [[row] * 40 for row in range(cache.rows)]
            cache.rearrange(origin, 7)
        for ours, theirs in zip(*(contents(cache) for cache in caches), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_memory_goes_back_to_the_device_and_fresh_memory_is_zero(
    new_decoder: Callable[..., Decoder], storage: FakeStorage
) -> None:
    decoder = new_decoder(most_rows=4)
    decoder.cache.reserve(4, 100, keep=[])
    assert not np.any(contents_of_all(decoder.cache))
    assert storage.library.used == decoder.cache.size_bytes
    decoder.start(0, [[4, 5, 6], [7]])
    logits = decoder.step(0, [8, 9])
    decoder.release()
    del decoder
    gc.collect()
    assert not storage.library.blocks
    kept = logits.copy()
    np.testing.assert_array_equal(logits, kept)  # who holds an array holds its memory
    del logits
    gc.collect()
    assert not storage.library.pinned


def contents_of_all(cache: KeyValueCache) -> npt.NDArray[np.float32]:
    """Every value of the cache."""
    cache.tokens = [[0] * cache.capacity for _ in range(cache.rows)]
    values = np.concatenate([value.ravel() for value in contents(cache)])
    cache.tokens = [[] for _ in range(cache.rows)]
    return values


def test_the_cache_may_take_half_of_what_the_device_has_free() -> None:
    storage = FakeStorage(FakeCuda(total=2**20))
    assert KeyValueCache(TINY.layout, TINY.context, storage=storage).limit_bytes == 2**19


def test_memory_the_device_does_not_have_is_an_error_that_leaves_the_cache_as_it_was() -> None:
    storage = FakeStorage(FakeCuda(total=2**17))
    cache = KeyValueCache(TINY.layout, 2**20, limit_bytes=2**60, storage=storage)
    cache.reserve(1, 100, keep=[])
    before = dict(cache.buffers)
    with pytest.raises(CacheMemoryError, match=r"the GPU has no \d+.* MiB for the cache of 1 requests"):
        cache.reserve(1, 1000, keep=[0])
    assert cache.buffers == before
    gc.collect()
    assert storage.library.used == cache.size_bytes


# Text


def test_answers_are_those_of_the_cpu(tmp_path: Path, storage: FakeStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["What was asked", "a", "a longer prompt, of which there is more than of the others"]
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0.0, "ignore_eos": True}
    texts = ["a text whose probability is wanted"]
    with opening(make_bundle(tmp_path)) as open_with:
        expected, found = [], []
        for answers in (expected, found):
            model = open_with()
            answers += [answer.token_ids for answer in model.generate(prompts, **options)]
            answers += [model.generate(prompts[0], num_beams=3, max_new_tokens=8).token_ids]
            monkeypatch.setattr(generator, "storage_of", lambda session: storage)
        assert isinstance(model.engine.decoder.cache.storage, FakeStorage)
        monkeypatch.setattr("onnxpress.runtime.generation.replay.storage_of", lambda session: storage)
        assert model.perplexity(texts) == pytest.approx(open_with().perplexity(texts))
    assert found == expected


# What is refused


def test_a_cache_of_a_type_without_kernels_on_the_device_is_refused(session: onnxruntime.InferenceSession) -> None:
    device = DeviceStorage(CudaDriver(0, FakeCuda()), "cuda")
    with pytest.raises(ProviderError, match=r"cache is float32; .* on the GPU takes float16 or bfloat16; use another"):
        layout_of(session, FITTING, device)
    assert layout_of(session, FITTING, HOST).dtype == "float32"


def test_a_cache_in_bfloat16_is_for_devices(tmp_path: Path) -> None:
    axes = ["batch", 2, "max_length", 8]
    past = helper.make_tensor_value_info("past.0.key", TensorProto.BFLOAT16, axes)
    present = helper.make_tensor_value_info("present.0.key", TensorProto.BFLOAT16, axes)
    node = helper.make_node("Identity", ["past.0.key"], ["present.0.key"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, SETTINGS.vocabulary])
    zeros = helper.make_tensor("zeros", TensorProto.FLOAT, [1, 1, SETTINGS.vocabulary], [0.0] * SETTINGS.vocabulary)
    constant = helper.make_node("Constant", [], ["logits"], value=zeros)
    graph = helper.make_graph([node, constant], "halves", [past], [present, logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    halves = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"cache is bfloat16; .* on the system takes float32 or float16"):
        layout_of(halves, SETTINGS, HOST)
    assert layout_of(halves, SETTINGS, DeviceStorage(CudaDriver(0, FakeCuda()), "cuda")).dtype == "bfloat16"
    # onnxruntime takes the number that bindings.py gives it.
    cache = KeyValueCache(CacheLayout((2,), (8,), "bfloat16"), 64, storage=FakeStorage())
    cache.reserve(2, 10, keep=[])
    assert cache.size_bytes == cache.layout.size_bytes(cache.rows, cache.capacity) == 2 * 2 * 64 * 2 * 8 * 2
    buffer = cache.buffers["past.0.key"]
    io = halves.io_binding()
    for bind, name in ((io.bind_input, "past.0.key"), (io.bind_output, "present.0.key")):
        bind(name, "cpu", 0, bindings._ELEMENTS["bfloat16"], buffer.shape, buffer.address)
    halves.run_with_iobinding(io)


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (FakeCuda(fails="cuInit"), r"cuInit gave error 999 \(unknown\)"),
        (FakeCuda(devices=0), r"cuDeviceGet gave error 101 \(CUDA_ERROR_INVALID_DEVICE\)"),
    ],
)
def test_a_driver_that_does_not_start_is_one_sentence(library: FakeCuda, message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        CudaDriver(0, library)


def test_an_error_of_the_device_reaches_the_caller(new_engine: Callable[..., Any], storage: FakeStorage) -> None:
    engine = new_engine()
    storage.library.fails = "cuMemcpyDtoH_v2"
    with pytest.raises(ProviderError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.submit(test_engine.request([4, 5])).result()
    storage.library.fails = ""
    assert engine.submit(test_engine.request([4, 5])).result().token_ids


def test_sessions_on_the_cpu_have_their_cache_there(session: onnxruntime.InferenceSession) -> None:
    assert storage_of(session) is HOST
    assert DeviceStorage(CudaDriver(0, FakeCuda()), "cuda").inputs(session) == frozenset()


def test_inputs_lie_where_the_session_reads_them() -> None:
    """onnxruntime would copy an input that is bound elsewhere, but only once."""
    where = {"input_ids": "Cuda", "past.0.key": "Cuda", "seqlens_k": "CudaPinned", "total_sequence_length": "Cpu"}
    session: Any = types.SimpleNamespace(
        get_inputs=lambda: [types.SimpleNamespace(name=name) for name in where],
        get_input_memory_infos=lambda: [types.SimpleNamespace(name=name) for name in where.values()],
    )
    device = DeviceStorage(CudaDriver(0, FakeCuda()), "cuda")
    assert device.inputs(session) == {"input_ids", "past.0.key"}


# CUDA graphs


class Recorder:
    """A session that remembers which graph each run was told to be."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.runs: list[int] = []
        self.released: list[int] = []

    def run_with_iobinding(self, io: Any, options: Any) -> None:
        self.runs.append(int(options.get_run_config_entry("gpu_graph_id")))
        self._session.run_with_iobinding(io, options)

    def release_captured_graph(self, number: int) -> None:
        self.released.append(number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def captured(session: onnxruntime.InferenceSession, storage: FakeStorage) -> tuple[Decoder, Recorder]:
    """A decoder of a session that captures graphs."""
    recorder: Any = Recorder(session)
    decoder = Decoder(recorder, KeyValueCache(TINY.layout, TINY.context, storage=storage))
    decoder.graphs = Graphs(recorder)
    return decoder, recorder


def test_only_steps_of_rows_that_go_on_are_captured(captured: tuple[Decoder, Recorder]) -> None:
    decoder, recorder = captured
    decoder.cache.reserve(2, 100, keep=[])
    tokens = [[4, 5, 6], [7]]
    decoder.start(0, tokens)
    for step in range(20):
        logits = decoder.step(0, [8 + step, 9 + step])
        tokens = [[*tokens[0], 8 + step], [*tokens[1], 9 + step]]
    np.testing.assert_allclose(logits, [TINY.logits(row) for row in tokens], atol=1e-3, rtol=1e-3)
    assert recorder.runs == [-1] * 17 + [1] * 4
    decoder.extend(0, [5])  # a token of one row is not a step of both
    decoder.step(0, [5, 6])
    assert recorder.runs[-2:] == [-1, 1]
    decoder.start(0, [[4], [5]])  # nor is a prompt, in the same rows
    assert recorder.runs[-1] == -1


def test_each_set_of_rows_is_a_graph_until_its_buffers_are_gone(captured: tuple[Decoder, Recorder]) -> None:
    decoder, recorder = captured
    decoder.cache.reserve(3, 100, keep=[])
    decoder.start(0, [[4], [5], [6]])
    for _ in range(17):
        decoder.step(0, [7, 7])
        decoder.step(1, [8])
    assert recorder.runs[-2:] == [1, 2]
    decoder.cache.reserve(3, 200, keep=[0, 1, 2])
    decoder.step(0, [7, 7])
    assert recorder.runs[-1] == -1
    decoder.step(1, [8])
    decoder.release()
    assert sorted(recorder.released) == [1, 2]


def test_graphs_are_as_many_as_allowed(captured: tuple[Decoder, Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, recorder = captured
    monkeypatch.setattr(bindings, "_MOST_GRAPHS", 1)
    decoder.cache.reserve(2, 100, keep=[])
    decoder.start(0, [[4], [5]])
    for _ in range(17):
        decoder.step(0, [7])
        decoder.step(1, [8])
    assert recorder.runs[-2:] == [1, -1]


def test_sessions_without_the_option_capture_nothing(new_decoder: Callable[..., Decoder]) -> None:
    assert new_decoder().graphs is None


def test_beams_and_graphs_exclude_each_other(tmp_path: Path, session: onnxruntime.InferenceSession) -> None:
    with opening(make_bundle(tmp_path)) as open_with:
        model = open_with()
        model.engine.decoder.graphs = Graphs(session)
        with pytest.raises(InvalidInputError, match="num_beams cannot be combined with CUDA graphs"):
            model.generate("a", num_beams=2)


def test_a_replay_finds_its_storage_by_the_session(session: onnxruntime.InferenceSession) -> None:
    replay = Replay(session, FITTING)
    assert replay._decoder.cache.storage is HOST

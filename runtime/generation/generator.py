"""Text from prompts: what `onnxpress.load` gives for a bundle whose task is text-generation.

Makes prompts of what it is given (prompts.py, chat.py), has the answers prepared (preparing.py) and hands them to the
engine, which all callers share.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, overload

from onnxpress.runtime.arenas import rest, smallest_feeds
from onnxpress.runtime.errors import InvalidInputError, ProviderError
from onnxpress.runtime.generation.beams import Beams, BeamSearch
from onnxpress.runtime.generation.cache import KeyValueCache
from onnxpress.runtime.generation.chat import checked_variables, render_chat
from onnxpress.runtime.generation.decoder import Decoder, layout_of
from onnxpress.runtime.generation.engine import Engine
from onnxpress.runtime.generation.options import Options
from onnxpress.runtime.generation.perplexity import log_likelihoods_of, log_probabilities_of, perplexity_from
from onnxpress.runtime.generation.preparing import Prepared, Preparing
from onnxpress.runtime.generation.prompts import Prompt, Prompts, is_one, known_ids, several
from onnxpress.runtime.generation.replay import Replay
from onnxpress.runtime.generation.requests import Generation
from onnxpress.runtime.generation.sampling import Sampling
from onnxpress.runtime.generation.storage import storage_of
from onnxpress.runtime.generation.streams import AsyncStream, AsyncStreams, Desk, Stream
from onnxpress.runtime.huge_pages import huge_pages
from onnxpress.runtime.malloc import give_back_after
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.providers import CPU, CUDA, Placement, Provider
from onnxpress.runtime.providers.placement import placement_of
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.shared_weights import model_to_open
from onnxpress.runtime.tokenizer import Tokenizer
from onnxpress.runtime.tokenizer_checks import tokenizing

if TYPE_CHECKING:
    from onnxpress.runtime.bundle import Bundle
    from onnxpress.runtime.manifest import Variant

Messages = Sequence[Mapping[str, Any]]

_PROVIDERS = (CPU, CUDA)
MOST_ROWS = 16
"""Requests that are answered at once, where the cache may become large enough."""


@dataclasses.dataclass(frozen=True)
class Served:
    """What a generator was loaded from."""

    bundle: Bundle
    variant: Variant
    providers: tuple[str, ...]
    settings: ServingSettings


class Generator:
    """A model that continues texts. Made by `onnxpress.load`; safe to call from many threads, whose requests then run
    together."""

    needs: ClassVar[str | None] = "generation"
    """The part of `TaskSettings` that must be there."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, settings: TaskSettings, served: Served | None = None
    ) -> None:
        """
        Args:
            engine: over the model's graph.
            tokenizer: of the model.
            settings: with the part `generation`.
            served: what it was loaded from, for those who ask.
        """
        assert settings.generation is not None
        self.engine = engine
        self.desk: Desk = engine
        """Where it hands requests over."""
        self.tokenizer = tokenizer
        self.settings = settings
        self.served = served
        self._generation = settings.generation
        self._prompts = Prompts(tokenizer.backend, settings.generation)
        self.preparing = Preparing(engine, self._prompts, self._generation)
        self._beams = BeamSearch(engine.decoder)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        variant: Variant,
        providers: Sequence[Provider],
        settings: ServingSettings,
        *,
        cache_bytes: int | None = None,
        most_rows: int = MOST_ROWS,
    ) -> Generator:
        """Load a variant of a bundle.

        Args:
            bundle: for text-generation.
            variant: of the bundle.
            providers: most wanted first.
            settings: how it uses the machine.
            cache_bytes: what keys and values of all requests may take; None for half of the memory that is free now,
                of the GPU's on CUDA.
            most_rows: requests that run at once.

        Raises:
            InvalidBundleError: the graph is not what the manifest says.
            ProviderError: the provider is neither the CPU nor CUDA, or does not take the type of the variant's cache.
        """
        if (name := providers[0].name) not in _PROVIDERS:
            raise ProviderError(
                f"text generation keeps its cache where {' or '.join(_PROVIDERS)} read it; use one of them, not {name}"
            )
        task = bundle.manifest.settings
        assert task.generation is not None
        model = model_to_open(bundle, variant, settings, on_cpu=name == CPU)
        with huge_pages(settings.huge_pages and name == CPU):
            session = make_session(model, variant.session, settings=settings, providers=providers)
        give_back_after(session)
        if settings.warm_up:
            session.run(None, smallest_feeds(session))
        storage = storage_of(session)
        layout = layout_of(session, task.generation, storage)
        cache = KeyValueCache(layout, task.generation.context, cache_bytes, most_rows, storage)
        tokenizer = Tokenizer(bundle.path_of(task.tokenizer.file), task.tokenizer)
        served = Served(bundle, variant, tuple(provider.name for provider in providers), settings)
        return cls(Engine(Decoder(session, cache)), tokenizer, task, served)

    @overload
    def generate(  # type: ignore[overload-overlap]  # an empty list is both; it gives a list
        self, prompts: Prompt, **options: Unpack[Options]
    ) -> Generation: ...

    @overload
    def generate(self, prompts: Sequence[Prompt], **options: Unpack[Options]) -> list[Generation]: ...

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[Options]) -> Generation | list[Generation]:
        """Continue one prompt, or several together.

        Args:
            prompts: a text or token ids, or a list of them.
            options: see `Options`.

        Returns:
            one answer for one prompt, a list in the same order for a list. With `n`, the further ones are in `others`.

        Raises:
            InvalidInputError: a prompt or an option cannot be used.
            CacheMemoryError: an answer of that length does not fit the memory allowed.
            QueueFullError: more requests are waiting than a `BatchingRunner` allows.
            ForkError: this is not the process the model was loaded in.
        """
        if is_one(prompts):
            return self._answers([self._prompts.encode(prompts)], options)[0]  # type: ignore[arg-type]
        return self._answers(self.encode(prompts), options)  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[str]:
        """Continue a prompt, giving the text while it is made; never a part of a character or of a stop text.

        Leaving the iterator cancels the rest. Arguments and errors as of `generate`; `n` must be 1.
        """
        return self._texts(self.preparing.one(self._prompts.encode(prompt), options))

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """The answer to a conversation, made with the model's chat template. What the conversation has in common with
        an earlier one is not computed again.

        Args:
            messages: what was said, each with a `role` and a `content`.
            tools: what the model may call, as JSON schemas.
            continue_final_message: go on with the last message instead of answering it.
            template_variables: what else the template uses, such as `enable_thinking`.
            options: see `Options`.

        Raises:
            InvalidInputError: the model has no chat template, it refuses the messages, or a template variable cannot be
                one; else as `generate`.
        """
        prompt = self.chat_prompt(messages, tools, continue_final_message, template_variables)
        return self._answers([prompt], options)[0]

    def stream_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Iterator[str]:
        """`chat`, giving the text as `stream` does."""
        prompt = self.chat_prompt(messages, tools, continue_final_message, template_variables)
        return self._texts(self.preparing.one(prompt, options))

    def chat_prompt(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that a conversation becomes. Arguments and errors as of `chat`."""
        text = render_chat(
            self._chat_templates(),
            messages,
            tools=tools,
            continue_final_message=continue_final_message,
            **{**self._generation.special_tokens, **checked_variables(template_variables)},
        )
        return self._prompts.encode(text, rendered=True)

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The token ids of prompts, as `generate` has them. Errors as there, of several with the number; one prompt
        that is in no list is refused, too."""
        encoded = []
        for index, prompt in enumerate(several(prompts)):
            try:
                encoded.append(self._prompts.encode(prompt))
            except InvalidInputError as error:
                which = f"prompt {index}: " if len(prompts) > 1 else ""
                raise InvalidInputError(f"{which}{error}") from error
        return encoded

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens.

        Raises:
            InvalidInputError: one of them is no token of the model.
        """
        ids = known_ids(token_ids, self.engine.decoder.vocabulary)
        with tokenizing():
            return str(self._prompts.tokenizer.decode(ids))

    def open_stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """The same with token ids, the whole answer at the end, and a way to cancel. It starts at once, and ends when
        nobody has it any more."""
        return Stream(self.desk, self.preparing.one(self._prompts.encode(prompt), options))

    async def generate_async(self, prompt: Prompt, **options: Unpack[Options]) -> Generation:
        """Continue one prompt while the event loop goes on. Cancelling the task cancels the request; `n` must be 1."""
        prepared = self.preparing.one(self._prompts.encode(prompt), options)
        async with AsyncStreams(self.desk, [prepared], deltas=False) as streams:
            return (await streams.results())[0]

    def open_async_stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """`open_stream` for an event loop; called inside one."""
        return AsyncStream(self.desk, self.preparing.one(self._prompts.encode(prompt), options))

    def perplexity(self, texts: str | Sequence[str]) -> float:
        """Of one text, or of all together, as perplexity.py defines it; less is better. With a cache of its own.

        Raises:
            InvalidInputError: what was given is no text, has a token that the model does not know, or all has fewer
                than two tokens.
        """
        return perplexity_from(self.log_likelihoods(texts))

    def log_likelihoods(self, texts: str | Sequence[str]) -> list[tuple[float, int]]:
        """Of each window of the texts that perplexity is made of: its log likelihood, and the tokens that count.

        Raises:
            InvalidInputError: what was given is no text, or has a token that the model does not know.
        """
        replay = Replay(self.engine.decoder.session, self._generation, most_rows=1)
        given = log_probabilities_of(replay)
        settings = self._generation
        return log_likelihoods_of(texts, self._prompts.tokenizer, settings.context, settings.vocabulary, given)

    def limited(self, desk: Desk, most_tokens: int | None) -> Generator:
        """The same model for callers that have limits of their own.

        Args:
            desk: takes their requests.
            most_tokens: of prompts and answers of a call; None for any number.
        """
        other = copy.copy(self)
        other.desk = desk
        other.preparing = self.preparing.limited(most_tokens)
        return other

    def close(self) -> None:
        """Cancel what runs, end the thread, give the cache's memory back. The generator may be used again."""
        self.engine.close()
        rest(self.engine.decoder.session)

    @property
    def bundle(self) -> Bundle:
        """The bundle it was loaded from."""
        return self._served.bundle

    @property
    def variant(self) -> Variant:
        """The variant that is served."""
        return self._served.variant

    @property
    def providers(self) -> tuple[str, ...]:
        """onnxruntime's execution providers, the most wanted first."""
        return self._served.providers

    @property
    def threads(self) -> int:
        """CPU threads in use."""
        return self._served.settings.thread_count

    def placement(self) -> Placement:
        """Which provider each node of the graph runs on, by onnxruntime's own record (docs/placement.md)."""
        return placement_of(self.engine.decoder.session, self.variant.name)

    @property
    def _served(self) -> Served:
        assert self.served is not None, "made from no bundle"
        return self.served

    def _chat_templates(self) -> dict[str, str]:
        """By name."""
        only = self._generation.chat_template
        return ({} if only is None else {"default": only}) | self._generation.other_chat_templates

    # Requests

    def _answers(self, prompts: list[list[int]], options: Options) -> list[Generation]:
        """The answers to prompts, all running together, or one search after the other."""
        search = Beams.from_options(options, self._generation.defaults)
        if search is not None:
            rooms = [self.engine.room_for(prompt, search[1].max_new_tokens) for prompt in prompts]
            self.preparing.check_tokens(sum(map(len, prompts)) + sum(rooms))
            return [self._searched(prompt, room, *search) for prompt, room in zip(prompts, rooms, strict=True)]
        prepared = self.preparing.answers(prompts, options)
        requests = [each.make(None, None) for each in prepared]
        try:
            for request in requests:
                self.desk.submit(request)
            results = [request.result() for request in requests]
        # Whatever ends the call, such as Ctrl-C or one request that fails, nobody waits for the others any more.
        except BaseException:
            for request in requests:
                self.desk.cancel(request)
            raise
        return joined(results, len(prompts))

    def _searched(self, prompt: list[int], most_new: int, beams: Beams, sampling: Sampling) -> Generation:
        """The best answers that a search finds."""
        self.engine.home.check()
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._generation.eos_ids)}
        found = self._beams.search(prompt, most_new, beams, tuple(ends), sampling.repetition_penalty)
        answers = []
        for beam in found[: sampling.n]:
            text = self.preparing.answer_text(prompt, sampling)
            shown = "".join(text.feed(token)[0] for token in beam.token_ids)
            assert text.reason is not None
            answers.append(Generation(shown, beam.token_ids, text.reason, None, len(prompt), reused_tokens=0))
        return joined(answers, 1)[0]

    def _texts(self, prepared: Prepared) -> Iterator[str]:
        with Stream(self.desk, prepared) as stream:
            for delta in stream:
                if delta.text:
                    yield delta.text


def joined(answers: Sequence[Generation], prompts: int) -> list[Generation]:
    """An answer for each prompt, of as many answers to each of them; the further ones are in `others`."""
    each = len(answers) // prompts if prompts else 1
    groups = (answers[start : start + each] for start in range(0, len(answers), each))
    return [dataclasses.replace(first, others=tuple(others)) for first, *others in groups]

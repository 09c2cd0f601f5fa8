"""Runs chat templates, which are programs that come with a model, as transformers runs them and within limits.

Jinja's sandbox keeps a template from everything but the values it is given. It does not keep it from using up time and
memory, so loops, calls and the sizes of all that is made are counted here. Needs jinja2; chat.py imports this when a
chat is rendered, and knows what the values are.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError
from onnxpress.runtime.generation.template_limits import (
    AS_TEXT,
    GROWING,
    LimitError,
    check_power,
    check_product,
    check_size,
    limited,
    limited_range,
    refuse_growth,
    size_of,
    spend,
    weighed,
)

_LONGEST_TEMPLATE = 500_000  # characters
_CALL_WORK = 10  # turns of a loop that take as long as a call


class _RefusalError(Exception):
    """What a template says with `raise_exception`."""


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes.

    Args:
        source: of the template.
        variables: what it may use; plain values only (None, texts, numbers, lists, mappings).

    Raises:
        InvalidBundleError: the template cannot be read, does what it may not, or does not end in time.
        InvalidInputError: it refuses the values, or fails with them.
    """
    template = _compiled(source)
    try:
        with limited():
            return str(template.render(variables))
    except _RefusalError as error:
        raise InvalidInputError(f"the chat template refuses these messages: {error}") from error
    except SecurityError as error:
        raise InvalidBundleError(
            f"the chat template was stopped, because it does what templates may not: {error}"
        ) from error
    except (LimitError, MemoryError, RecursionError) as error:
        raise InvalidBundleError(
            f"the chat template was stopped: {error or type(error).__name__}; give fewer messages, or another template"
        ) from error
    # A template is a program: whatever fails in it is an error of its values or its own.
    except Exception as error:
        raise InvalidInputError(
            f"the chat template fails with these messages ({type(error).__name__}: {error}); check their fields"
        ) from error


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > _LONGEST_TEMPLATE:
        raise InvalidBundleError(
            f"the chat template has {len(source):,} characters, the limit is {_LONGEST_TEMPLATE:,}"
        )
    environment = _environment()
    try:
        with limited():  # constants are computed while compiling
            tree = environment.parse(source)
            _count_loops(tree)
            return environment.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidBundleError(f"the chat template cannot be read: {error.message} (line {error.lineno})") from error
    except (RecursionError, MemoryError, OverflowError, SyntaxError) as error:
        raise InvalidBundleError(f"the chat template is nested too deeply ({type(error).__name__})") from error


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox that counts."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call(__self, __context: Any, __function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call something from a template. Named as in jinja2, so that a template may use any argument."""
        spend(_CALL_WORK)
        name, subject = getattr(__function, "__name__", ""), getattr(__function, "__self__", None)
        if isinstance(subject, str) and name in GROWING:
            refuse_growth(name, subject, args, kwargs)
        return weighed(super().call(__context, __function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator that can make something large."""
        if operator == "*":
            check_product(left, right)
        elif operator == "**":
            check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            refuse_growth("format", left, (right,), {})
        return weighed(super().call_binop(context, operator, left, right))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """An attribute that is not for templates: an error here, not only where something is done with it."""
        raise SecurityError(f"it reads {attribute!r} of a value of type {type(obj).__name__!r}")

    def wrap_str_format(self, value: Any) -> Any:
        """The safe form of `str.format`, for formats that make nothing wide."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def checked(*args: Any, **kwargs: Any) -> Any:
            refuse_growth("format", value.__self__, args, kwargs)
            return wrapped(*args, **kwargs)

        return checked

    def concat(self, pieces: Iterable[str]) -> str:
        """What blocks, macros and the whole template are joined with."""
        kept, total = [], 0
        for piece in pieces:
            total += len(piece)
            check_size(total)
            kept.append(piece)
        return str(weighed("".join(kept)))


class _Generation(jinja2.ext.Extension):
    """The tag around what the assistant wrote, which means something in training only."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """The body, with a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
    """A namespace whose names cannot reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a template may use `self` as a name
        self, *values = args
        for name in dict(*values, **kwargs):
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, *values, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict`, of which templates may use no more."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """A mapping of the same value for each key."""
        return dict.fromkeys(*args)


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], finalize=_finalize
    )
    environment.filters["tojson"] = _tojson
    for name, function in list(environment.filters.items()):
        environment.filters[name] = _guarded(name, function)
    environment.filters |= {_TURNS: _turns, _JOINED: _joined}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
        "range": limited_range,
    }
    del environment.globals["lipsum"]
    return environment


# Names that no template can write.
_TURNS = "counted turns"
_JOINED = "checked join"


def _count_loops(tree: Any) -> None:
    """Make every loop count its turns, and `~` check what it joins."""
    for node in list(tree.find_all((jinja2.nodes.For, jinja2.nodes.Concat))):
        if isinstance(node, jinja2.nodes.For):
            node.iter = _filtered(node.iter, _TURNS)
    for node in list(tree.find_all(jinja2.nodes.Concat)):
        node.nodes = [_filtered(jinja2.nodes.List(node.nodes, lineno=node.lineno), _JOINED)]


def _filtered(node: Any, name: str) -> Any:
    filtered = jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    filtered.set_environment(node.environment or _environment())
    return filtered


@jinja2.pass_context  # which keeps it from being computed while compiling
def _turns(_: Any, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        spend(1)
        yield item


@jinja2.pass_context
def _joined(_: Any, values: list[Any]) -> str:
    size_of(*values)
    return str(weighed("".join(str(value) for value in values)))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is refused where its result could be too large."""
    takes_context = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given, (subject, *rest) = args[:takes_context], args[takes_context:]
        if name == "join" and not hasattr(subject, "__len__"):
            subject = list(subject)
        if name in GROWING:
            refuse_growth(name, subject, rest, kwargs)
        elif name in AS_TEXT:
            size_of(subject)
        return weighed(function(*given, subject, *rest, **kwargs))

    return checked


def _finalize(value: Any) -> Any:
    """A value that is about to become text."""
    if not isinstance(value, str):
        size_of(value)
    return value


def _raise_exception(message: str) -> None:
    raise _RefusalError(message)


def _strftime_now(form: str) -> str:
    return datetime.now(UTC).astimezone().replace(tzinfo=None).strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: jinja's own escapes what means something in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may have no name that begins with an underscore, such as {name!r}")

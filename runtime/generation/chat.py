"""Conversations to prompts with the template that comes with a model, as transformers' `apply_chat_template` does.

Messages and tools are checked here and given to the template as plain values; templates.py runs it. Knows nothing of
tokens: templates write the special ones as text, so prompts are tokenized without adding any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError

Template = str | Mapping[str, str]
"""A template, or several by name."""

_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of the same field; templates read the first two
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # the space shows whether the template strips messages
_DEEPEST = 50
_EXAMPLE = "[{'role': 'user', 'content': '...'}]"
_NOT_VARIABLES = ("template", "messages", "tools", "continue_final_message")
"""What a chat is given by itself, or the model has; templates find nothing else under these names."""


def render_chat(
    template: Template | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """The prompt of a conversation.

    Args:
        template: of the model; of several the one named `tool_use` where there are tools, else `default`.
        messages: what was said, each with a `role`, and a `content` that is a text or a list of parts.
        tools: what the model may call, as JSON schemas.
        documents: what the model may read, for templates that have a place for them.
        add_generation_prompt: end with the header of an answer; None for yes, unless the last message is continued.
        continue_final_message: end within the last message, for the model to go on with it.
        variables: what else the template uses: special tokens by name, `enable_thinking`.

    Raises:
        InvalidInputError: messages, tools or variables cannot be used, or the template refuses them.
        InvalidBundleError: the template cannot be read, does what it may not, or takes too long.
    """
    if continue_final_message and add_generation_prompt:
        raise InvalidInputError(
            "continue_final_message and add_generation_prompt exclude each other: an answer either goes on with the "
            "last message or starts a new one"
        )
    source = _choose(template, bool(tools))
    chat = [_checked(index, message) for index, message in enumerate(_listed("messages", messages, _EXAMPLE))]
    if not chat:
        raise InvalidInputError(f"there are no messages; give at least one, such as {_EXAMPLE}")
    content = _mark_end(source, chat[-1]) if continue_final_message else ""
    values = {name: _plain(value, name) for name, value in variables.items()}
    values |= {
        "messages": chat,
        "tools": None if tools is None else _mappings("tools", tools, "a JSON schema of the function"),
        "documents": None if documents is None else _mappings("documents", documents, "a title and a text"),
        "add_generation_prompt": not continue_final_message if add_generation_prompt is None else add_generation_prompt,
    }
    prompt = _render(source, values)
    return _cut(prompt, content) if continue_final_message else prompt


def checked_variables(variables: Any) -> dict[str, Any]:
    """What a caller gives a template besides the conversation; `None` is nothing.

    Raises:
        InvalidInputError: it is no mapping of names, or one of them means something else.
    """
    if variables is None:
        return {}
    if not isinstance(variables, Mapping):
        raise InvalidInputError(
            f"template_variables are of type {type(variables).__name__}; give a mapping such as "
            "{'enable_thinking': False}"
        )
    for name in variables:
        if not isinstance(name, str):
            raise InvalidInputError(f"template_variables has the name {name!r}, which is no text; give names as texts")
        if name in _NOT_VARIABLES:
            what = "the template is the model's own" if name == "template" else f"give {name} as an argument of its own"
            raise InvalidInputError(f"template_variables cannot have {name}; {what}")
    return dict(variables)


def _choose(template: Template | None, tools: bool) -> str:
    if isinstance(template, str):
        return template
    if not template:
        raise InvalidInputError("this model has no chat template; give a prompt as one text instead of messages")
    for name in ("tool_use", "default") if tools else ("default",):
        if name in template:
            return template[name]
    raise InvalidBundleError(
        f"this model has the chat templates {', '.join(sorted(template))} and none named default; give one of them"
    )


def _render(source: str, values: Mapping[str, Any]) -> str:
    try:
        from onnxpress.runtime.generation.templates import render
    except ImportError as error:
        raise InvalidInputError(
            "chats need jinja2 3.1.6 or newer, which is not installed; pip install 'onnxpress[generate]'"
        ) from error
    return render(source, values)


def _checked(index: int, message: Any) -> dict[str, Any]:
    """A message as plain values, without those that are None.

    Raises:
        InvalidInputError: it is no message.
    """
    if not isinstance(message, Mapping):
        raise InvalidInputError(
            f"message {index} is of type {type(message).__name__}; give mappings with role and content: {_EXAMPLE}"
        )
    plain: dict[str, Any] = _plain(message, f"message {index}")
    plain = {name: value for name, value in plain.items() if value is not None}
    role, content = plain.get("role"), plain.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidInputError(
            f"message {index} has the role {role!r}; give one such as 'user', 'assistant', 'system'"
        )
    if content is None and "tool_calls" not in plain:
        raise InvalidInputError(f"message {index} ({role}) has no content; give a text")
    if not isinstance(content, (str, list, tuple, type(None))):
        raise InvalidInputError(
            f"message {index} ({role}) has content of type {type(content).__name__}; give a text or a list of parts"
        )
    for part in content if isinstance(content, (list, tuple)) else ():
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidInputError(
                f"message {index} ({role}) has the part {part!r:.80}; give parts such as "
                "{'type': 'text', 'text': '...'}"
            )
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` rebuilt from JSON's types: other objects could have methods that are not for templates.

    Raises:
        InvalidInputError: something in it is none of them.
    """
    if depth > _DEEPEST:
        raise InvalidInputError(f"{where} is nested more than {_DEEPEST} levels deep; give something flatter")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, where, depth + 1): _plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, where, depth + 1) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    for kind in (str, int, float):  # enumerations and the like
        if isinstance(value, kind):
            return str.__str__(value) if kind is str else kind(value)
    raise InvalidInputError(
        f"{where} contains a value of type {type(value).__name__}; give texts, numbers, lists or mappings"
    )


def _listed(name: str, value: Any, example: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise InvalidInputError(f"{name} are of type {type(value).__name__}; give a list such as {example}")
    return list(value)


def _mappings(name: str, values: Any, what: str) -> list[dict[str, Any]]:
    listed = _listed(name, values, f"[{{...}}], each {what}")
    for index, value in enumerate(listed):
        if not isinstance(value, Mapping):
            raise InvalidInputError(f"{name}[{index}] is of type {type(value).__name__}; give {what} as a mapping")
    return [_plain(value, f"{name}[{index}]") for index, value in enumerate(listed)]


def _mark_end(source: str, message: dict[str, Any]) -> str:
    """Put a tag after the last text of `message`, to find its end in what the template makes. Returns the text."""
    content = message.get("content")
    parts = content if isinstance(content, (list, tuple)) else ()
    part = next((part for part in reversed(parts) if isinstance(part.get("text"), str)), None)
    if part is not None:
        text: str = part["text"]
        part["text"] = text + _TAG
    elif isinstance(content, str):
        text = content
        message["content"] = text + _TAG
    else:
        raise InvalidInputError("continue_final_message is set, but the last message has no text to go on with")
    if "content" not in source:
        raise InvalidInputError(
            "continue_final_message is set, but the chat template does not use the content of messages"
        )
    return text


def _cut(prompt: str, content: str) -> str:
    """`prompt` up to the tag, without the space that the template would have taken from the end of the message."""
    place = prompt.rfind(_TAG.strip())
    if place < 0 or content.strip() not in prompt:
        raise InvalidInputError(
            "continue_final_message is set, but the chat template leaves out a part of the last message; give a "
            "message that it keeps"
        )
    kept = prompt[:place]
    return kept if prompt.startswith(_TAG, place) else kept.rstrip()

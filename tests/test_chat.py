"""runtime/generation/chat.py and templates.py: the prompts of transformers, and templates that cannot do harm."""

from __future__ import annotations

import functools
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError, OnnxpressError
from onnxpress.runtime.generation.chat import render_chat
from tests.models import make_tokenizer

FOLDER = Path(__file__).parent / "data" / "chat_templates"
TEMPLATES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))}
"""Of well-known families, shortened, with what the whole ones use of Jinja."""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> & “here”",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
USER = {"role": "user", "content": "  Who was <Ada> & what’s 中?\n"}
ANSWER = {"role": "assistant", "content": "A mathematician. "}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}],
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one message": [USER],
    "a system message": [{"role": "system", "content": "Be brief.\n"}, USER],
    "several turns": [USER, ANSWER, {"role": "user", "content": "And then?"}],
    "ending with an answer": [USER, ANSWER],
    "reasoning": [USER, {**ANSWER, "reasoning_content": "\nHm.\n"}, USER],
    "reasoning in the text": [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nIt is."}, USER],
    "reasoning by another name": [USER, {**ANSWER, "reasoning": "Hm."}, USER],
    "a tool's answer": [USER, CALL, {"role": "tool", "content": "12 °C"}, ANSWER, USER],
    "two tools' answers": [USER, CALL, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}],
    "empty texts": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, USER],
}


@functools.cache
def reference() -> transformers.PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **SPECIAL)


def by_transformers(template: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    reference().chat_template = template
    text: str = reference().apply_chat_template(messages, tokenize=False, **options)
    return text


def both(template: Any, messages: list[dict[str, Any]], **options: Any) -> tuple[str | None, str | None]:
    """Our prompt and transformers'; None where the template refuses the messages."""
    expected: str | None
    try:
        expected = by_transformers(template, messages, **options)
    except Exception:  # noqa: BLE001  # what a template raises is of many types
        expected = None
    try:
        return render_chat(template, messages, **SPECIAL, **options), expected
    except InvalidInputError:
        return None, expected


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
def test_prompts_are_those_of_transformers(family: str, chat: list[dict[str, Any]]) -> None:
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "tools": TOOLS},
        {"add_generation_prompt": True, "enable_thinking": False},
    ):
        ours, theirs = both(TEMPLATES[family], chat, **options)
        assert ours == theirs


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_that_goes_on_is_that_of_transformers(family: str) -> None:
    for text in ("It is", "It is ", " It\n", "A"):
        chat = [USER, {"role": "assistant", "content": text}]
        ours, theirs = both(TEMPLATES[family], chat, add_generation_prompt=False, continue_final_message=True)
        assert ours == theirs
        assert ours is not None
        assert ours.endswith((text, text.strip()))


def test_most_prompts_are_rendered_at_all() -> None:
    """So that the comparisons above do not compare refusals only."""
    rendered = {
        family: sum(both(template, chat, add_generation_prompt=True)[0] is not None for chat in CHATS.values())
        for family, template in TEMPLATES.items()
    }
    assert min(rendered.values()) >= 6, rendered


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.sampled_from(sorted(TEMPLATES)))
def test_any_text_is_rendered_as_by_transformers(texts: list[str], family: str) -> None:
    chat = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]
    ours, theirs = both(TEMPLATES[family], chat, add_generation_prompt=True)
    assert ours == theirs


def test_an_answer_is_prompted_unless_it_goes_on() -> None:
    template = TEMPLATES["chatml"]
    assert render_chat(template, [USER]).endswith("<|im_start|>assistant\n")
    assert render_chat(template, [USER, ANSWER], continue_final_message=True).endswith("A mathematician. ")


def test_several_templates_are_chosen_by_name() -> None:
    named = {"default": "plain", "tool_use": "with {{ tools|length }} tools"}
    assert render_chat(named, [USER]) == "plain" == by_transformers(named, [USER])
    assert render_chat(named, [USER], tools=TOOLS) == "with 1 tools" == by_transformers(named, [USER], tools=TOOLS)
    with pytest.raises(InvalidBundleError, match="chat templates rag, tool_use and none named default"):
        render_chat({"tool_use": "a", "rag": "b"}, [USER])


def test_parts_of_a_message_reach_the_template() -> None:
    template = (
        "{% for m in messages %}{% for part in m.content %}{{ part.type }}:{{ part.text }};{% endfor %}{% endfor %}"
    )
    parts = [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}]
    chat = [{"role": "user", "content": parts}]
    assert render_chat(template, chat) == "text:one;image:;text:two;" == by_transformers(template, chat)
    going_on = render_chat(template, chat, continue_final_message=True)
    assert going_on == by_transformers(template, chat, continue_final_message=True) == "text:one;image:;text:two"


FEATURES = {
    "loop": "{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}"
    "{{ (loop.previtem or {}).role }}{{ (loop.nextitem or {}).role }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.revindex }} {% endfor %}",
    "loop with a condition": "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.role }}{% else %}"
    "no{% endfor %}",
    "break and continue": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}"
    "{% if i == 5 %}{% break %}{% endif %}{% endfor %}",
    "recursive loop": "{% for k, v in {'a': {'b': {'c': {}}}}.items() recursive %}{{ k }}{{ loop(v.items()) }}"
    "{% endfor %}",
    "macro": "{% macro m(a, b='x') %}[{{ a }}{{ b }}{{ caller() if caller }}]{% endmacro %}{{ m(1) }}"
    "{% call m(2, b='y') %}z{% endcall %}",
    "namespace": "{% set ns = namespace(n=0, self='s') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ ns.self }}",
    "block set": "{% set x %}a{{ 1 }}{% endset %}{{ x ~ 'b' ~ 3 ~ none ~ missing ~ [1, 'é'] }}",
    "generation": "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.role }}{{ x }}{% endgeneration %}"
    "{{ x }}{% endfor %}",
    "tojson": "{{ tools | tojson }}{{ tools | tojson(indent=2) }}{{ 'é</x>' | tojson(ensure_ascii=true) }}"
    "{{ {'b': 1, 'a': [1.5, none, true]} | tojson(separators=(',', ':'), sort_keys=true) }}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ ' a ' | trim | upper }}{{ 'a\nb' | indent(2) }}{{ [3, 1, 2] | sort | first }}{{ missing | default('d') }}"
    "{{ {'b': 1, 'a': 2} | dictsort }}{{ {'a': 1} | items | list }}{{ 'abc' | replace('b', 'x') }}"
    "{{ '%s-%03d' | format('a', 7) }}",
    "methods": "{{ 'a,b'.split(',')[-1] }}{{ 'abc'.startswith('a') }}{{ ' x'.lstrip() }}{{ '{:>5}|{}'.format(1, 'a') }}"
    "{{ '-'.join(['a', 'b']) }}{{ 'ab'.replace('a', 'b') }}{{ {'a': 1}.get('b', 2) }}{{ dict(a=1).items() | list }}",
    "operators": "{{ 'a' * 3 }}{{ [1] + [2] }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ '%d%%' % 5 }}"
    "{{ 1500 * 2000 }}{{ 'b' in 'abc' }}{{ -3 + 1.5 }}",
    "slices": "{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ 'abc'[::-1] }}{{ messages[-1]['content'] }}",
    "tests": "{{ messages is sequence }}{{ 'a' is string }}{{ none is none }}{{ x is defined }}"
    "{{ tools is mapping }}{{ 3 is divisibleby 3 }}",
    "white space": "  {%- if true -%}\n  a \n  {% endif %}\n b\n{# note #}\n  c  {{- ' d' }}\n",
    "enumeration of a mapping": "{% for k in {'a': 1, 'b': 2} %}"
    "{{ k }}{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k }}"
    "{{ v }}{% endfor %}",
}


@pytest.mark.parametrize("source", FEATURES.values(), ids=FEATURES.keys())
def test_what_templates_may_use_works_as_in_transformers(source: str) -> None:
    chat = [USER, ANSWER, USER]
    assert render_chat(source, chat, tools=TOOLS) == by_transformers(
        source, chat, tools=TOOLS, add_generation_prompt=True
    )


def test_a_template_may_ask_for_the_day() -> None:
    before = datetime.now(UTC).astimezone().strftime("%d %b %Y")
    shown = render_chat("{{ strftime_now('%d %b %Y') }}", [USER])
    assert shown in (before, datetime.now(UTC).astimezone().strftime("%d %b %Y"))


HOSTILE = {
    "the classes behind a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the same by a filter": "{{ ('' | attr('__class__')).__mro__ }}",
    "the same by an index": "{{ ''['__class__']['__mro__'] }}",
    "the same by a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "the same by a filter over a list": "{{ [''] | map(attribute='__class__') | map(attribute='__mro__') | list }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os }}",
    "code of a function": "{{ strftime_now.__code__ }}",
    "a namespace with an attribute of Python": "{% set ns = namespace(__class__='x') %}",
    "the same by assignment": "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "changing what it is given": "{{ messages.append(1) }}",
    "changing a mapping": "{{ messages[0].update({'role': 'x'}) }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "a long range": "{% for i in range(10000000) %}{% endfor %}",
    "a range beyond a number": "{{ range(10 ** 30) }}",
    "loops in loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "much output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "much output of one value": "{% set x = 'x' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "much output in a block": "{% set x %}{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endset %}",
    "much output in a macro": "{% macro m() %}{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endmacro %}"
    "{% set x = m() %}",
    "a long product": "{{ 'x' * 10000000000 }}",
    "a product the other way": "{{ 10000000000 * 'x' }}",
    "a long list": "{{ [0] * 10000000000 }}",
    "lists of long texts": "{% set x = 'x' * 1000000 %}{{ [x] * 100000 }}",
    "lists of lists": "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x }}",
    "the same as JSON": "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x | tojson }}",
    "doubling by +": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}"
    "{% endfor %}",
    "doubling by format": "{% set ns = namespace(x='x') %}"
    "{% for i in range(99) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}"
    "{% endfor %}",
    "doubling by replace": "{% set ns = namespace(x='x') %}"
    "{% for i in range(99) %}{% set ns.x = ns.x.replace('x', 'xx') %}"
    "{% endfor %}",
    "a wide format": "{{ '%10000000000d' % 1 }}",
    "a wide format by an argument": "{{ '%*d' % (10000000000, 1) }}",
    "a wide str.format": "{{ '{:10000000000}'.format(1) }}",
    "a wide str.format by an argument": "{{ '{:{}}'.format(1, 10000000000) }}",
    "a wide format by a filter": "{{ '%10000000000d' | format(1) }}",
    "center": "{{ 'x' | center(10000000000) }}",
    "ljust": "{{ 'x'.ljust(10000000000) }}",
    "indent": "{{ 'x\ny' | indent(10000000000) }}",
    "join with a long text": "{{ ('x' * 1000000).join(['a'] * 1000000) }}",
    "batch": "{{ [1] | batch(10000000000, 0) | list }}",
    "an indented JSON": "{{ [[[1]]] | tojson(indent=10000000000) }}",
    "lipsum": "{{ lipsum(n=10000000) }}",
    "a large number": "{{ 9 ** (9 ** 9) }}",
    "a number that grows": "{% set ns = namespace(x=9) %}"
    "{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that branches": "{% macro m(n) %}"
    "{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "a recursive loop that branches": "{% for i in [60] recursive %}"
    "{% if i %}{{ loop([i - 1, i - 1]) }}{% endif %}{% endfor %}",
    "a division by zero": "{{ 1 // 0 }}",
    "a tag that does not end": "{% if true %}",
    "no template": "{{ 1 +",
    "an unknown filter": "{{ 1 | nothing }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if true %}" * 3000 + "{% endif %}" * 3000,
    "an undefined value's attribute": "{{ missing.field.other }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_one_clear_error(source: str) -> None:
    chat = [dict(USER)]
    with pytest.raises(OnnxpressError, match="chat template") as caught:
        render_chat(source, chat)
    assert len(str(caught.value)) < 500
    assert chat == [USER]


def test_an_error_in_a_template_names_its_line() -> None:
    with pytest.raises(InvalidBundleError, match=r"the chat template cannot be read: .*\(line 3\)"):
        render_chat("a\nb\n{% endif %}", [USER])


def test_a_limit_is_counted_anew_for_every_prompt() -> None:
    source = "{% for i in range(90000) %}{% set x = i %}{% endfor %}x"
    assert [render_chat(source, [USER]) for _ in range(30)] == ["x"] * 30


def test_a_long_conversation_is_within_the_limits() -> None:
    chat = [{**(USER if i % 2 == 0 else ANSWER), "content": "word " * 100} for i in range(1001)]
    for template in TEMPLATES.values():
        ours, theirs = both(template, chat, add_generation_prompt=True)
        assert ours == theirs
        assert ours is not None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are no messages; give at least one"),
        ("hello", r"messages are of type str; give a list such as \[{'role'"),
        (None, "messages are of type NoneType"),
        (["hello"], "message 0 is of type str; give mappings with role and content"),
        ([USER, {"content": "x"}], "message 1 has the role None; give one such as 'user'"),
        ([{"role": "", "content": "x"}], "message 0 has the role ''"),
        ([{"role": 5, "content": "x"}], "message 0 has the role 5"),
        ([{"role": "user"}], r"message 0 \(user\) has no content; give a text"),
        ([{"role": "user", "content": None}], r"message 0 \(user\) has no content"),
        ([{"role": "user", "content": 5}], r"message 0 \(user\) has content of type int"),
        ([{"role": "user", "content": ["x"]}], r"message 0 \(user\) has the part 'x'; give parts such as"),
        ([{"role": "user", "content": "x", "at": datetime.now(UTC)}], "message 0 contains a value of type datetime"),
        ([{"role": "user", "content": "x", "open": open}], "message 0 contains a value of type builtin_function"),
    ],
)
def test_messages_that_are_none_are_refused_in_a_sentence(messages: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        render_chat(TEMPLATES["chatml"], messages)


def test_deep_messages_are_refused() -> None:
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(InvalidInputError, match="message 0 is nested more than 50 levels deep"):
        render_chat(TEMPLATES["chatml"], [{**USER, "extra": deep}])


def test_what_else_is_given_is_checked_too() -> None:
    template = TEMPLATES["chatml"]
    with pytest.raises(
        InvalidInputError, match=r"tools\[0\] is of type builtin_function_or_method; give a JSON schema"
    ):
        render_chat(template, [USER], tools=[open])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="tools are of type dict"):
        render_chat(template, [USER], tools=TOOLS[0])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="date contains a value of type datetime"):
        render_chat(template, [USER], date=datetime.now(UTC))
    with pytest.raises(InvalidInputError, match="this model has no chat template"):
        render_chat(None, [USER])
    with pytest.raises(InvalidInputError, match="exclude each other"):
        render_chat(template, [USER], add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(InvalidInputError, match="the last message has no text to go on with"):
        render_chat(template, [USER, CALL], continue_final_message=True)
    with pytest.raises(InvalidInputError, match="does not use the content"):
        render_chat("x", [USER], continue_final_message=True)
    with pytest.raises(InvalidInputError, match="leaves out a part of the last message"):
        render_chat("{{ messages[0].content[:3] }}", [USER], continue_final_message=True)


def test_what_a_template_says_of_messages_is_passed_on() -> None:
    with pytest.raises(InvalidInputError, match="the chat template refuses these messages: Only users, please"):
        render_chat("{{ raise_exception('Only users, please') }}", [USER])


def test_messages_stay_as_they_are() -> None:
    chat = [dict(USER), {"role": "assistant", "content": [{"type": "text", "text": "It"}], "reasoning": "x"}]
    before = repr(chat)
    render_chat("{% for m in messages %}{{ m.content }}{% endfor %}", chat, continue_final_message=True)
    assert repr(chat) == before


def test_without_jinja2_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxpress.runtime.generation.templates", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'onnxpress\[generate\]'"):
        render_chat(TEMPLATES["chatml"], [USER])

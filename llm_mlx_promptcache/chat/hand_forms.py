"""Forms that no rendering shows: the generic one, and those of few families.

They are chosen by marks in a model's vocabulary or in its template's renderings, never by a name.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import replace

from .forms import CallLayout, Channels, Form, Hole, Keys, Tags

GENERIC = Form(
    CallLayout.OBJECT,
    ('<tool_call>\n{"name": "', Hole.NAME, '", "arguments": ', Hole.ARGUMENTS, "}\n</tool_call>"),
    between="\n",
    native=False,
)

_KIMI = Form(
    CallLayout.HEADER,
    (
        "<|tool_call_begin|>functions.",
        *(Hole.NAME, ":", Hole.COUNT, "<|tool_call_argument_begin|>", Hole.ARGUMENTS),
        "<|tool_call_end|>",
    ),
    start="<|tool_calls_section_begin|>",
    end="<|tool_calls_section_end|>",
    id=("functions.", Hole.NAME, ":", Hole.COUNT),
)
_PYTHONIC = Form(
    CallLayout.INLINE,
    (Hole.NAME, "(", Hole.ARGUMENTS, ")"),
    start="<|tool_call_start|>[",
    between=", ",
    end="]<|tool_call_end|>",
    tags=Tags("", "=", "", '="', '"', ", "),
)
_LIST = ('{"name": "', Hole.NAME, '", "arguments": ', Hole.ARGUMENTS, "}")
_GRANITE = Form(CallLayout.OBJECT, _LIST, start="<|tool_call|>[", between=", ", end="]")
_PHI = replace(_GRANITE, end="]<|/tool_call|>")
_SARASHINA = replace(_GRANITE, start="<|tool_calls|>[")
_MINIMAX = Form(
    CallLayout.OBJECT, _LIST, start="<tool_calls>\n", between="\n", end="\n</tool_calls>"
)
_LLAMA = Form(
    CallLayout.OBJECT,
    ('{"name": "', Hole.NAME, '", "parameters": ', Hole.ARGUMENTS, "}"),
    keys=Keys(arguments=("parameters",)),
    optional=("<|python_tag|>",),
    parallel=False,
)
_HARMONY = Form(
    CallLayout.HEADER,
    (
        "<|channel|>commentary to=functions.",
        *(Hole.NAME, " <|constrain|>json<|message|>", Hole.ARGUMENTS),
    ),
    channels=Channels(
        start="<|start|>",
        channel="<|channel|>",
        message="<|message|>",
        ends=("<|end|>", "<|call|>", "<|return|>"),
        recipient="to=functions.",
        reasoning=("analysis",),
        final="final",
    ),
    parallel=False,
)
# The first whose marks are all in the vocabulary, or all in the template's rendering of tools.
_BY_MARKS: tuple[tuple[tuple[str, ...], Form], ...] = (
    (("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"), _KIMI),
    (("<|tool_call_start|>", "<|tool_call_end|>"), _PYTHONIC),
    (("<|tool_list_start|>",), _PYTHONIC),
    (("<|tool_call|>", "<|/tool_call|>"), _PHI),
    (("<|tool_call|>",), _GRANITE),
    (("<|tool_calls|>",), _SARASHINA),
    (("<|python_tag|>",), _LLAMA),
    (("<tool_calls>", "</tool_calls>"), _MINIMAX),
    (("<tool_call>", "</tool_call>"), replace(GENERIC, native=True)),
)
_CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>")


def shown_marks(rendered: str) -> tuple[str, ...]:
    """The marks of forms by hand in a template's rendering of tools, each once."""
    known = dict.fromkeys(mark for marks, _ in _BY_MARKS for mark in marks)
    return tuple(mark for mark in known if mark in rendered)


def hand_form(
    learned: Form | None, vocabulary: Container[str], shown: Collection[str] = ()
) -> Form:
    """The form to use: the learned one, mended by hand for models that write more than is shown.

    `shown` are the marks that the template shows beside tools; without all of these, the generic
    form.
    """
    if all(mark in vocabulary for mark in _CHANNEL_MARKS):
        return _HARMONY
    if learned is not None:
        bare = not learned.openings and learned.layout is CallLayout.OBJECT
        optional = ("<|python_tag|>",) if bare and "<|python_tag|>" in vocabulary else ()
        return replace(learned, optional=optional) if optional else learned
    for marks, form in _BY_MARKS:
        if all(mark in vocabulary or mark in shown for mark in marks):
            return form
    return GENERIC


def grammar_form(form: Form) -> Form:
    """The form for a grammar: this one if a grammar can hold it, else the generic one."""
    if form.as_json and not form.keys.encoded:
        return form
    tags = form.tags
    if form.layout is CallLayout.TAGS and tags is not None and tags.parted:
        return form
    return replace(GENERIC, special=form.special)

"""The texts that an answer may be, as llguidance's grammars: checked before any token is made.

A schema that llguidance can't hold is loosened; the dropped parts are named beside the grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from .bare_calls import Alternative, either_schema, is_bare
from .checks import DEEPEST_SCHEMA, check_json
from .forms import CallLayout, Form, Hole
from .grammar_check import UNSATISFIABLE, json_rule, refusal, short
from .hand_forms import grammar_form
from .lark import literal, quoted
from .schema_caps import Caps
from .schema_dialects import LeftOut
from .schema_instances import endless_place
from .schema_loosening import Loosened, loosened, loosened_arguments
from .tagged_grammar import PYTHON_RULES, ArgumentRules, tagged_arguments
from .tool_schemas import canonical_tools
from .tool_sets import BUDGETS, within

__all__ = [
    "Caps",
    "Grammar",
    "GrammarError",
    "Unheld",
    "check_tools_end",
    "json_object_grammar",
    "regex_grammar",
    "schema_grammar",
    "told_unheld",
    "tool_grammar",
]

GrammarKind = Literal["schema", "regex", "tools", "tools_or_schema"]

_DEFAULT_CAPS = Caps()
_TOGETHER = LeftOut("", "more than can be held together")
_MOST_TOLD = 3
_HEADER_NAME = re.compile(r"[\w-]+")


class GrammarError(ValueError):
    """A schema, tool or regex that no answer can be held to; names the field."""


class Unheld(NamedTuple):
    """A rule that the grammar does not hold: the named tool's, or the document's ("")."""

    tool: str
    what: LeftOut


@dataclass(frozen=True)
class Grammar:
    """The texts that an answer may be; `text` is llguidance's, for one `Form` if there are tools.

    Grammars with schemas are not the conversation's text, but no repr needs them either. Rules of
    the schemas that are not held (`unheld`) are to be checked in the answer. `opening` is the mark
    that begins a call anywhere, also in reasoning that has no end.
    """

    kind: GrammarKind
    text: str
    unheld: tuple[Unheld, ...] = ()
    opening: str = ""

    def __repr__(self) -> str:
        return f"Grammar({self.kind!r}, {len(self.text)} characters)"

    @property
    def has_calls(self) -> bool:
        """True if an answer may be calls, each sure to be well-formed."""
        return self.kind.startswith("tools")

    @property
    def holds_arguments(self) -> bool:
        """True if calls are also sure to fit everything in their tools' schemas."""
        return self.has_calls and not any(one.tool for one in self.unheld)


def told_unheld(grammar: Grammar | None) -> tuple[str, ...]:
    """Lines for users on rules that a grammar does not hold; tools with equal faults share one."""
    by_tool: dict[str, list[str]] = {}
    for tool, what in grammar.unheld if grammar is not None else ():
        by_tool.setdefault(tool, []).append(str(what))
    tools: dict[str, list[str]] = {}
    for tool, unheld in by_tool.items():
        tools.setdefault(_some(unheld), []).append(tool)
    return tuple(
        f"{_whose(names)} rules that no grammar can hold ({unheld}); they are only checked"
        " afterwards"
        for unheld, names in tools.items()
    )


def _whose(tools: Sequence[str]) -> str:
    names = [name[:64] for name in tools]
    if len(names) > 1:
        return f"the schemas of {len(names)} tools ({_some(names)}) have"
    return f"the schema of the tool {names[0]} has" if names[0] else "the schema has"


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:_MOST_TOLD]) + ", ..." * (len(words) > _MOST_TOLD)


def schema_grammar(
    schema: Mapping[str, Any],
    *,
    caps: Caps = _DEFAULT_CAPS,
    field: str = "schema",
    form: Form | None = None,
) -> Grammar:
    """A JSON document of `schema`, as far as a grammar can hold it.

    `form` adds reasoning, if the model's answers have channels.
    """
    frame = _frame(form)
    held, unheld = _document(schema, caps, field)
    start = f"start: {frame.thoughts}{frame.final}document"
    return _grammar("schema", start, [f"document: {json_rule(held)}", *frame.rules], unheld)


def json_object_grammar(*, caps: Caps = _DEFAULT_CAPS, form: Form | None = None) -> Grammar:
    """Any JSON object."""
    return schema_grammar({"type": "object"}, caps=caps, field="response_format", form=form)


def regex_grammar(pattern: str, *, longest: int = 4096, form: Form | None = None) -> Grammar:
    """Text that `pattern` matches whole, of up to `longest` characters: so it always ends."""
    from llguidance import regex_to_lark

    if not isinstance(pattern, str) or not pattern:
        raise GrammarError("regex is empty; give a pattern that matches the whole answer")
    try:
        body = regex_to_lark(pattern)
    except ValueError as error:
        raise GrammarError(f"regex is refused: {short(str(error))}") from None
    # Slashes end a regex here, and a line end would end the rule.
    body = body.replace("\n", "\\n").replace("\r", "\\r")
    _check(f"start: R\nR: /{body}/\n", "regex", "give a pattern that some text matches")
    held = f"R: /{body}/ & /(?s:.{{0,{longest}}})/"
    advice = f"give a pattern that a text of {longest} characters or less matches"
    _check(f"start: R\n{held}\n", "regex", advice)
    frame = _frame(form)
    return _grammar("regex", f"start: {frame.thoughts}{frame.final}R", [held, *frame.rules])


def tool_grammar(
    tools: Sequence[Mapping[str, Any]],
    choice: str | Literal[True] | None,
    form: Form,
    *,
    calls: int = 1,
    schema: Mapping[str, Any] | None = None,
    caps: Caps = _DEFAULT_CAPS,
) -> Grammar:
    """Calls of `tools`, at most `calls`, as `form` writes them; no tool's schema is refused.

    `choice` is a tool's name (that one is called), True (any is called) or None: calls, or a
    document of `schema`. Calls or text have no grammar: it would mask the model's own words.
    """
    if choice is None and schema is None:
        raise GrammarError("tool_choice and schema are both left out; text has no grammar")
    if calls < 1:
        raise GrammarError(f"the limit of calls is {calls}; give 1 or more")
    if choice is None:
        _check_schema(schema, "schema")
    try:
        given = json.dumps(tools)
    except (TypeError, ValueError, RecursionError):
        # Not JSON: the check of each value names it and its place.
        _chosen(tools, grammar_form(form), choice=choice)
        raise
    document = json.dumps(schema) if choice is None else None
    return _tool_grammar(given, choice, document, grammar_form(form), calls, caps)


@lru_cache(maxsize=8)
def _tool_grammar(
    tools: str,
    choice: str | Literal[True] | None,
    document: str | None,
    form: Form,
    calls: int,
    caps: Caps,
) -> Grammar:
    """The grammar of as many schemas as can be held together, found once for a set of tools."""
    schema = None if document is None else json.loads(document)
    functions = _chosen(json.loads(tools), form, choice=choice)
    for budget in BUDGETS:
        some = within(functions, budget)
        made = _calls_grammar(some.functions, schema, form, calls, caps)
        # Refused for its size alone: other faults were removed from each schema.
        if not refusal(made.text):
            break
    together = tuple(Unheld(name, _TOGETHER) for name in some.unheld)
    return replace(made, unheld=(*made.unheld, *together))


def _calls_grammar(
    functions: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any] | None,
    form: Form,
    calls: int,
    caps: Caps,
) -> Grammar:
    held = [loosened_arguments(one.get("parameters"), caps) for one in functions]
    names = [str(one["name"]) for one in functions]
    given = [one.get("parameters") for one in functions]
    arguments = [
        _arguments(f"arguments_{number}", *one, form, caps)
        for number, one in enumerate(zip(given, held, strict=True))
    ]
    unheld = tuple(
        Unheld(name, what)
        for name, one in zip(names, arguments, strict=True)
        for what in one.left_out
    )
    frame = _frame(form)
    rules = [*_call_rules(names, arguments, form, calls), *frame.rules]
    lead = literal(form.start + form.head, form)
    opening = form.openings[0] if form.openings and form.channels is None else ""
    if schema is None:
        return _grammar("tools", f"start: {frame.thoughts}{lead} calls", rules, unheld, opening)
    document, more = _document(schema, caps, "schema")
    if is_bare(form):
        tools_held = [
            Alternative(*one) for one in zip(names, (h.schema for h in held), strict=True)
        ]
        either = json_rule(either_schema(form, tools_held, document, calls))
        return _grammar("tools_or_schema", f"start: {either}", [], (*unheld, *more))
    start = f"start: {frame.thoughts}({lead} calls | {frame.final}document)"
    rules.append(f"document: {json_rule(document)}")
    return _grammar("tools_or_schema", start, rules, (*unheld, *more), opening)


def _grammar(
    kind: GrammarKind,
    start: str,
    rules: Sequence[str],
    unheld: tuple[Unheld, ...] = (),
    opening: str = "",
) -> Grammar:
    return Grammar(kind, "\n".join(["%llguidance {}", start, *rules, ""]), unheld, opening)


class _Frame(NamedTuple):
    """The rules before a call or a document (`final`) if answers have channels."""

    thoughts: str = ""
    final: str = ""
    rules: tuple[str, ...] = ()


def _frame(form: Form | None) -> _Frame:
    """Messages of reasoning, any number of them, then the header of the last message."""
    if form is None or form.channels is None:
        return _Frame()
    channels = form.channels
    names = " | ".join(quoted(name) for name in channels.reasoning)
    end = literal(channels.ends[0] + channels.start + channels.role, form)
    channel, message = (literal(mark, form) for mark in (channels.channel, channels.message))
    header = f"{channel} {quoted(channels.final)}"
    # A header may announce JSON, as it does for calls.
    told = literal(str(form.call[form.call.index(Hole.NAME) + 1]), form)
    rules = (
        f"thought: {channel} ({names}) {message} THOUGHT {end}",
        "THOUGHT: /(?s:.*)/",
        f"final: {header} ({message} | {told})",
    )
    return _Frame("thought* ", "final ", rules)


def _chosen(
    tools: Sequence[Mapping[str, Any]], form: Form, *, choice: str | bool | None
) -> list[Mapping[str, Any]]:
    """The tools that may be called, in canonical order: their names and parameters."""
    if not tools:
        raise GrammarError("tools is empty; give at least one tool, or no tool choice")
    try:
        canonical = canonical_tools(tools)
    except ValueError as error:
        raise GrammarError(str(error)) from None
    indices = {tool["function"]["name"]: index for index, tool in enumerate(tools)}
    names = [tool["function"]["name"] for tool in canonical]
    if isinstance(choice, str) and choice not in names:
        known = ", ".join(names[:12])
        raise GrammarError(f"tool_choice is {choice[:64]!r}, which is no tool; use one of {known}")
    for name in names:
        if form.layout is CallLayout.HEADER and not _HEADER_NAME.fullmatch(name):
            raise GrammarError(
                f"tools[{indices[name]}].function.name is {name[:64]!r}, which this model can't"
                " write; use letters, digits, _ and -"
            )
    wanted = names if not isinstance(choice, str) else [choice]
    by_name = dict(zip(names, canonical, strict=True))
    kept = [by_name[name]["function"] for name in wanted]
    return [{key: one[key] for key in ("name", "parameters") if key in one} for one in kept]


def _arguments(rule: str, given: Any, held: Loosened, form: Form, caps: Caps) -> ArgumentRules:
    """The rule of a tool's arguments, with the rules it needs."""
    if form.layout is CallLayout.TAGS:
        return tagged_arguments(rule, given, held, form, caps)
    return ArgumentRules((f"{rule}: {json_rule(held.schema)}",), held.left_out)


def _call_rules(
    names: Sequence[str], arguments: Sequence[ArgumentRules], form: Form, calls: int
) -> list[str]:
    bodies = " | ".join(f"body_{number}" for number in range(len(names)))
    again = literal(form.between + form.head, form)
    more = f" ({again} body){{0,{calls - 1}}}" if calls > 1 else ""
    rules = [f"calls: body{more} {literal(form.end, form)}", f"body: {bodies}"]
    for number, (name, one) in enumerate(zip(names, arguments, strict=True)):
        rules.append(f"body_{number}: {_body(name, f'arguments_{number}', form)}")
        rules += one.rules
    if any(word in rule for rule in rules for word in ("python_", "PYTHON_")):
        rules.append(PYTHON_RULES)
    return rules


def _body(name: str, arguments: str, form: Form) -> str:
    """A call of one tool, behind the head."""
    made, before = [], form.head
    for piece in form.call[1:] if form.head else form.call:
        if isinstance(piece, str):
            made.append(literal(piece, form))
            before = piece
        elif piece is Hole.NAME:
            in_json = form.as_json and before.endswith('"')
            made.append(quoted(json.dumps(name, ensure_ascii=False)[1:-1] if in_json else name))
        else:
            made.append(arguments if piece is Hole.ARGUMENTS else _NUMBERS[piece])
    return " ".join(made)


_NUMBERS = {Hole.COUNT: "/[0-9]{1,3}/", Hole.ID: "/[a-zA-Z0-9]{9}/"}


def _document(schema: Any, caps: Caps, field: str) -> tuple[Mapping[str, Any], tuple[Unheld, ...]]:
    """The part of `schema` that a grammar can hold, and the rules it can't.

    GrammarError if nothing satisfies the schema, or nothing of it can be held.
    """
    _check_schema(schema, field)
    _check_ends(schema, field)
    held = loosened(schema, caps)
    if held.refused == UNSATISFIABLE:
        raise GrammarError(f"{field} can't be satisfied by any text; change the schema")
    if held.refused:
        left_out = ", ".join(map(str, held.left_out[:3]))
        raise GrammarError(f"{field} is refused: {held.refused} ({left_out}); change the schema")
    return held.schema, tuple(Unheld("", what) for what in held.left_out)


def check_tools_end(tools: Sequence[Mapping[str, Any]]) -> None:
    """GrammarError if a tool's arguments would have to go on without end, called or not."""
    for tool in tools:
        function = tool["function"]
        if isinstance(parameters := function.get("parameters"), Mapping):
            what = f"the schema of the tool {str(function.get('name'))[:64]}"
            _check_ends(parameters, what, is_arguments=True)


def _check_ends(schema: Mapping[str, Any], what: str, *, is_arguments: bool = False) -> None:
    at = endless_place(schema, is_arguments=is_arguments)
    if at is not None:
        raise GrammarError(
            f"{what} has no instance that ends: what stands at {at or '/'} must hold what it is"
            " part of; leave it out of what is required, or let it be null or an empty list"
        )


def _check_schema(schema: Any, field: str) -> None:
    if not isinstance(schema, Mapping):
        raise GrammarError(f"{field} is a {type(schema).__name__}; give a JSON Schema object")
    try:
        check_json(field, schema, deepest=DEEPEST_SCHEMA)
    except ValueError as error:
        raise GrammarError(str(error)) from None


def _check(text: str, field: str, advice: str) -> None:
    """GrammarError if llguidance refuses `text`, or if nothing would satisfy it."""
    reason = refusal(text)
    if reason == UNSATISFIABLE:
        raise GrammarError(f"{field} can't be satisfied by any text; {advice}")
    if reason:
        raise GrammarError(f"{field} is refused: {reason}; {advice}")

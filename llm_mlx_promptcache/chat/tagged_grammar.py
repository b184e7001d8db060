"""Rules for arguments between marks of their own: `<parameter=key>` value `</parameter>`.

Each argument stands there once, in any order, and the required ones always. A string is all text
before its closing mark; any other value is JSON, held to its schema. A schema has more rules than
these can hold; the rest is named, to be checked in the answer.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .argument_schemas import branches_of, kind_of, kinds_of, property_schema
from .forms import KEY, Form, Literals, Strings
from .grammar_check import json_rule
from .lark import literal, parts_of, quoted, regex_of
from .schema_caps import Caps
from .schema_dialects import LeftOut
from .schema_loosening import Loosened, used_definitions
from .schema_references import escaped
from .tag_reading import key_end

# The engine's bits that record which arguments were written.
_MOST_COUNTED = 64
_LONGEST_KEY = 64
_DEEPEST = 8
# Rules that a plain text may break, unseen until it is complete.
_OF_TEXT = (
    *("pattern", "minLength", "maxLength", "enum", "const", "not", "minimum", "maximum"),
    *("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "items", "prefixItems", "minItems"),
    *("maxItems", "uniqueItems", "properties", "required", "additionalProperties"),
)
_OF_OBJECTS = ("anyOf", "oneOf", "minProperties", "maxProperties", "enum", "const")
_LENGTHS = ("minLength", "maxLength")
# JSON's words as Python writes them: templates write these beside lists and objects in JSON.
_PYTHON_WORDS = {"boolean": ("True", "False"), "null": ("None",)}
_PYTHON_NESTED = {"array": "python_list", "object": "python_dict"}
# Rules that any tool's rules may refer to.
PYTHON_RULES = r"""
python_value: PYTHON_STRING | PYTHON_NUMBER | "True" | "False" | "None" | python_list | python_dict
python_list: "[" (python_value (", " python_value)*)? "]"
python_dict: "{" (python_pair (", " python_pair)*)? "}"
python_pair: PYTHON_STRING ": " python_value
PYTHON_NUMBER: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/
PYTHON_STRING: /'([^'\\\x00-\x1f]|\\['"\\nrt])*'/ | /"([^"\\\x00-\x1f]|\\['"\\nrt])*"/
"""


class ArgumentRules(NamedTuple):
    """The rules of a tool's arguments, and the parts of its schema that they don't hold."""

    rules: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def tagged_arguments(
    name: str, parameters: Any, held: Loosened, form: Form, caps: Caps
) -> ArgumentRules:
    """The rule `name` for the arguments of `parameters`, and the rules it needs."""
    declared = _Declared(held.schema)
    made = _Pairs(name, form, caps, held.schema.get("$defs", {}))
    given = parameters if isinstance(parameters, Mapping) else {}
    for key, schema in declared.properties.items():
        made.add(key, schema, property_schema(given, key), required=key in declared.required)
    if declared.others is not None:
        made.add_others(declared.others, list(declared.properties))
    left_out = (*held.left_out, *declared.left_out, *made.left_out)
    return ArgumentRules((*made.sequence(), *made.rules), tuple(dict.fromkeys(left_out)))


class _Declared:
    """An object's declared keys, gathered from the parts of its schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.properties: dict[str, Any] = {}
        self.required: dict[str, None] = {}
        self.others: Any = None
        self.left_out: list[LeftOut] = []
        self._definitions = schema.get("$defs", {})
        self._gather(schema, _DEEPEST)
        for key in self.required:
            self.properties.setdefault(key, {})

    def _gather(self, schema: Any, depth: int) -> None:
        if not isinstance(schema, Mapping) or depth < 0:
            return
        for key, inner in schema.get("properties", {}).items():
            self.properties.setdefault(key, inner)
        self.required |= dict.fromkeys(schema.get("required", ()))
        self.left_out += [LeftOut("", key) for key in _OF_OBJECTS if key in schema]
        others = list(schema.get("patternProperties", {}).values())
        if isinstance(schema.get("additionalProperties"), Mapping):
            others.append(schema["additionalProperties"])
        if others:
            self.others = others[0] if len(others) == 1 and self.others is None else {}
        if len(others) > 1:
            self.left_out.append(LeftOut("", "patternProperties"))
        for one in (_referred(schema, self._definitions), *schema.get("allOf", ())):
            self._gather(one, depth - 1)
        # Keys that only some branches declare are all allowed.
        required = dict(self.required)
        for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            self._gather(one, depth - 1)
        self.required = required


class _Pairs:
    """The rules of one tool's arguments, a pair of marks each."""

    def __init__(self, name: str, form: Form, caps: Caps, definitions: Mapping[str, Any]) -> None:
        assert form.tags is not None
        self._name, self._form, self._tags = name, form, form.tags
        self._caps, self._definitions = caps, definitions
        self._wanted: list[str] = []
        self._optional: list[str] = []
        self._uncounted: list[str] = []
        self.rules: list[str] = []
        self.left_out: list[LeftOut] = []
        # If strings have marks of their own, these decide a value's type.
        self._told = (self._tags.string_middle, self._tags.string_closing) != (
            self._tags.middle,
            self._tags.closing,
        )
        self._plain = self._told or self._tags.strings in (Strings.RAW, Strings.HTML)

    def add(self, key: str, schema: Any, given: Any, *, required: bool) -> None:
        """Add the pair of a declared key; `given` is its schema as readers of answers see it."""
        pointer = f"/properties/{escaped(key)}"
        if not self._readable(key):
            self.left_out.append(LeftOut(pointer, "its name"))
            return
        rule = f"{self._name}_{len(self.rules)}"
        values = self._values(rule, key, schema, given, pointer)
        opening = self._literal(self._tags.opening)
        self.rules.append(f"{rule}: {opening} {quoted(key)} ({' | '.join(values)})")
        (self._wanted if required else self._optional).append(rule)

    def add_others(self, schema: Any, declared: Sequence[str]) -> None:
        """Add the pair of any other key; none if a key is part of its closing mark too."""
        tags = self._tags
        behind = {tags.middle[:1], tags.string_middle[:1]}
        if KEY in tags.closing + tags.string_closing or not all(map(_parts_keys, behind)):
            self.left_out.append(LeftOut("", "additionalProperties"))
            return
        rule = f"{self._name}_{len(self.rules)}"
        values = self._values(rule, "", schema, schema, "/additionalProperties")
        known = "|".join(regex_of(key) for key in declared)
        terminal = f"KEY_{rule.upper()}"
        held = f" & ~/{known}/" if known else ""
        opening = self._literal(tags.opening)
        self.rules.append(f"{terminal}: /[\\w.-]{{1,{_LONGEST_KEY}}}/{held}")
        self.rules.append(f"{rule}: {opening} {terminal} ({' | '.join(values)})")
        self._uncounted.append(rule)

    def sequence(self) -> Iterator[str]:
        """The rules of all arguments: each once, in any order, the required ones always."""
        counted = [*self._wanted, *self._optional]
        wanted = min(len(self._wanted), _MOST_COUNTED)
        if len(self._wanted) > wanted:
            self.left_out.append(LeftOut("", "required"))
        if not counted and not self._uncounted:
            yield f'{self._name}: ""'
            return
        first, rest = f"{self._name}_first", f"{self._name}_rest"
        between = self._literal(self._tags.between)
        yield f"{self._name}: {first}::0x0"
        for rule, before in ((first, ""), (rest, f"{between} ")):
            end = f'{rule}::_: ""' + (f" %if is_ones([0:{wanted}])" if wanted else "")
            taken = [
                f"{before}{pair} {rest}::set_bit({bit}) %if bit_clear({bit})"
                for bit, pair in enumerate(counted[:_MOST_COUNTED])
            ]
            free = [*counted[_MOST_COUNTED:], *self._uncounted]
            yield "\n  | ".join([end, *taken, *(f"{before}{pair} {rest}::_" for pair in free)])

    def _readable(self, key: str) -> bool:
        """True if a reader takes exactly this key out of its marks."""
        if any(mark in key for mark, _ in self._form.special):
            return False
        end = key_end(self._tags)
        behind = (self._tags.middle, self._tags.string_middle)
        return bool(key) and all((key + b).partition(end)[0].strip() == key for b in behind)

    def _literal(self, text: str) -> str:
        return literal(text, self._form)

    def _values(self, rule: str, key: str, schema: Any, given: Any, pointer: str) -> list[str]:
        """Each way to write a value: the mark before it, the value, and its end."""
        tags, kinds = self._tags, kinds_of(given)
        schema = schema if isinstance(schema, Mapping) else {}
        choices = self._choices(schema, kinds)
        texts = [one for one in choices or () if isinstance(one, str)]
        ways = []
        if "string" in kinds and self._plain and (choices is None or texts):
            closing = tags.string_closing.replace(KEY, key)
            value = self._chosen(texts, closing) if texts else ""
            value = value or self._text(rule, schema, given, closing, pointer)
            ways.append(f"{self._literal(tags.string_middle)} {value}")
        if self._is_json(kinds, choices):
            others = [one for one in choices or () if not (self._plain and isinstance(one, str))]
            closing = self._literal(tags.closing.replace(KEY, key))
            held = {"enum": others} if choices is not None else self._without_text(schema)
            value = self._json(rule, held, kinds, pointer, any_value=choices is None)
            ways.append(f"{self._literal(tags.middle)} {value} {closing}")
        return ways

    def _is_json(self, kinds: frozenset[str], choices: list[Any] | None) -> bool:
        """True if a value may stand there as JSON."""
        if not self._plain:
            return True
        if choices is not None:
            return any(not isinstance(one, str) for one in choices)
        # Without such marks any JSON is a text as well.
        return kinds != {"string"} and (self._told or "string" not in kinds)

    def _text(
        self, rule: str, schema: Mapping[str, Any], given: Any, closing: str, pointer: str
    ) -> str:
        """A string as it is, up to the mark behind it."""
        direct = self._resolved(schema)
        text_only = kinds_of(given) == {"string"}
        least, most = (direct.get(word) if text_only else None for word in _LENGTHS)
        if self._tags.strings is Strings.HTML:
            least = None  # an escape is longer than its character
        most = self._caps.string if most is None else most
        bounds = f"{least or 0},{'' if most is None else most}"
        held = _LENGTHS if direct.get("type") == "string" else ()
        said = {word for one in branches_of(given) for word in one}
        self.left_out += [
            LeftOut(pointer, word) for word in _OF_TEXT if word in said and word not in held
        ]
        characters = f"(?s:.{{{bounds}}})"
        before, *others = parts_of(closing, self._form)
        special = dict(self._form.special)
        if not others and before not in special:
            mark = closing.rstrip()
            inside = f" & ~/(?s:.*){regex_of(mark)}(?s:.+)/" if least else ""
            terminal = f"/{characters}{regex_of(mark)}/{inside}"
            self.rules.append(
                f"TEXT_{rule.upper()}: {terminal}\n{rule}_text[lazy]: TEXT_{rule.upper()}"
            )
            return f"{rule}_text {self._literal(closing[len(mark) :])}"
        before = "" if before in special else before
        # Spelled in other tokens the mark would end the value for readers of the text.
        never = f"~/(?s:.*){regex_of(closing.strip())}(?s:.*)/"
        terminal = f"TEXT_{rule.upper()}"
        self.rules.append(f"{terminal}: /{characters}{regex_of(before)}/ & {never}")
        return f"{terminal} {self._literal(closing[len(before) :])}"

    def _chosen(self, texts: Sequence[str], closing: str) -> str:
        """One of a few texts; "" if one can't be told from its closing mark."""
        written = dict.fromkeys(texts)
        if self._tags.strings is Strings.HTML:
            pairs = [(html.escape(text, quote), None) for text in texts for quote in (True, False)]
            written = dict(pairs)
        if any(closing.strip() in text for text in written):
            return ""
        return f"({' | '.join(map(quoted, written))}) {self._literal(closing)}"

    def _json(
        self,
        rule: str,
        schema: Mapping[str, Any],
        kinds: frozenset[str],
        pointer: str,
        *,
        any_value: bool,
    ) -> str:
        """A value as JSON, held to its schema, or else as Python writes it."""
        used = used_definitions(schema, self._definitions)
        defs = {"$defs": {name: self._definitions[name] for name in used}} if used else {}
        self.rules.append(f"{rule}_json: {json_rule({**schema, **defs})}")
        python = any_value and self._tags.values is Literals.PYTHON
        words = [word for kind in kinds if any_value for word in _PYTHON_WORDS.get(kind, ())]
        ways = [f"{rule}_json", *map(quoted, sorted(words))]
        if self._tags.strings is Strings.PYTHON and "string" in kinds and any_value:
            ways.append("PYTHON_STRING")
        nested = [_PYTHON_NESTED[kind] for kind in sorted(kinds & set(_PYTHON_NESTED)) if python]
        if nested:
            self.left_out.append(LeftOut(pointer, "what is nested"))
        return f"({' | '.join([*ways, *nested])})"

    def _without_text(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema of values that are no strings, if these have other marks."""
        kinds = schema.get("type")
        if not self._plain or not isinstance(kinds, (list, tuple)):
            return schema
        return {**schema, "type": [kind for kind in kinds if kind != "string"]}

    def _choices(self, schema: Any, kinds: frozenset[str], depth: int = _DEEPEST) -> Any:
        """The few values that `schema` takes, as a list; None if there are many."""
        node = self._resolved(schema)
        if "const" in node or "enum" in node:
            values = [node["const"]] if "const" in node else list(node["enum"])
            return [one for one in values if kind_of(one, kinds) in kinds] or None
        branches = [*node.get("anyOf", ()), *node.get("oneOf", ())]
        found = [self._choices(one, kinds, depth - 1) for one in branches if depth > 0]
        if not found or any(one is None for one in found):
            return None
        return [value for one in found for value in one]

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        for _ in range(_DEEPEST):
            found = _referred(schema, self._definitions)
            if found is None:
                break
            schema = found
        return schema if isinstance(schema, Mapping) else {}


def _referred(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The definition that a schema refers to; None if it refers to none."""
    named = schema.get("$ref") if isinstance(schema, Mapping) else None
    return definitions.get(named.rpartition("/")[2]) if isinstance(named, str) else None


def _parts_keys(behind: str) -> bool:
    """True if no key goes on with this character."""
    return bool(behind) and not behind.isalnum() and behind not in "_.-"

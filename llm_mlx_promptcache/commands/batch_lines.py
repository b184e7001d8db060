"""The lines of a batch: a prompt each, as JSON objects, all checked before any is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import IO, Any, Final, NoReturn

from ..cache.json_lines import json_object
from .shown import printable

MOST_LINE: Final = 16 << 20  # bytes; no model here takes a longer prompt
MOST_BYTES: Final = 1 << 30  # of all lines, which are held in memory
_MOST_ID: Final = 256  # characters
_FIELDS: Final = ("prompt", "system", "schema", "id", "options")


@dataclass(frozen=True)
class BatchLine:
    """One prompt of a batch; `id` is the line's own, or else its number.

    `options` are those of all lines, overridden by this one's. `digest` is of everything asked: a
    result with another digest is the answer to something else.
    """

    number: int
    id: int | str
    prompt: str = field(repr=False)
    system: str = field(default="", repr=False)
    schema: Mapping[str, Any] | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class BatchDefaults:
    """The defaults for all lines: the model's reference, and the options that are set or given."""

    reference: str
    options: Mapping[str, Any]


def read_lines(file: IO[bytes], name: str, shared: BatchDefaults) -> list[BatchLine]:
    """All prompts of a file, in its order; ValueError names the line and the field that is wrong.

    Empty lines are counted but skipped.
    """
    lines: dict[int | str, BatchLine] = {}
    for number, data in _numbered(file, name):
        try:
            line = _line(number, data, shared)
            if (first := lines.get(line.id)) is not None:
                _refuse(f"id {_shown(line.id)} is that of line {first.number} too")
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
        lines[line.id] = line
    if not lines:
        raise ValueError(f'{name} holds no prompts; a line is {{"prompt": "..."}}')
    return list(lines.values())


def in_asking_order(lines: Sequence[BatchLine]) -> list[BatchLine]:
    """The same lines with similar beginnings next to each other, system prompts as they came."""
    came = {line.system: place for place, line in reversed(list(enumerate(lines)))}
    return sorted(lines, key=lambda line: (came[line.system], line.prompt))


def _numbered(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Every line that is not empty, and its number from 1; never reads more than the limit."""
    number = total = 0
    while data := file.readline(MOST_LINE + 1):
        number, total = number + 1, total + len(data)
        if len(data) > MOST_LINE:
            raise ValueError(f"{name}, line {number}: it has more than {MOST_LINE >> 20} MB")
        if total > MOST_BYTES:
            raise ValueError(f"{name} has more than {MOST_BYTES >> 30} GB; split it")
        if data.strip():
            yield number, data


def _line(number: int, data: bytes, shared: BatchDefaults) -> BatchLine:
    found = _object(data)
    for name in found:
        if name not in _FIELDS:
            _refuse_field(name)
    prompt = _text(found, "prompt")
    if not prompt.strip():
        _refuse("prompt is missing or empty; every line needs one")
    line = BatchLine(
        number,
        _id(found.get("id"), number),
        prompt,
        _text(found, "system"),
        _schema(found.get("schema")),
        {**shared.options, **_options(found.get("options"))},
    )
    return replace(line, digest=_digest(shared.reference, line))


def _object(data: bytes) -> dict[str, Any]:
    try:
        return json_object(data)
    except ValueError as error:
        raise ValueError(f'{error}; a line is {{"prompt": "..."}}') from None


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)


def _refuse_field(name: str) -> NoReturn:
    from ..llm_adapter.options import MlxCachedOptions

    if name in MlxCachedOptions.model_fields:
        _refuse(f'{name} is an option; options stand in "options": {{"{name}": ...}}')
    _refuse(f"there is no field {_shown(name)}; a line has {', '.join(_FIELDS)}")


def _text(found: Mapping[str, Any], name: str) -> str:
    text = found.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        _refuse(f"{name} is no text")
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(f"{name} holds half a character (a lone surrogate), which is no text")
    return text


def _id(id: Any, number: int) -> int | str:
    if id is None:
        return number
    is_text = isinstance(id, str) and 0 < len(id) <= _MOST_ID
    if is_text:
        _text({"id": id}, "id")
    elif type(id) is not int:
        _refuse(f"id is no whole number and no text of 1 to {_MOST_ID} characters")
    return id  # type: ignore[no-any-return]


def _schema(schema: Any) -> Mapping[str, Any] | None:
    """A JSON Schema as it is, or one in llm's short form: "name, age int"."""
    import llm

    if isinstance(schema, str) and schema.strip():
        return llm.schema_dsl(schema)
    if schema is not None and not isinstance(schema, dict):
        _refuse('schema is no JSON Schema object, and no text such as "name, age int"')
    return schema


def _options(options: Any) -> Mapping[str, Any]:
    from ..llm_adapter.options import checked_options

    if options is None:
        return {}
    if not isinstance(options, dict):
        _refuse('options are no object such as {"max_tokens": 200}')
    checked_options(options)
    return options


def _digest(reference: str, line: BatchLine) -> str:
    """A digest of a line's question and model, which its result keeps."""
    asked = [reference, line.prompt, line.system, line.schema, line.options]
    return blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=16).hexdigest()


def _shown(value: object) -> str:
    text = str(value)
    return printable(repr(text if len(text) <= 60 else text[:59] + "\u2026"))

"""llm's log of an answer of ours: the prompt as it was asked, and its reuse; and writing to it.

All that touches llm's logs is here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import llm
import sqlite_utils
from llm.logs import LogStore

from ..chat.generated import Generated
from ..config import DEFAULT_MODEL, MODEL_ID, Settings
from ..engine.request import GenerationRequest
from .log_turn import LogTurn
from .models import MlxCached
from .records import generated_of
from .requests import question_of

_TOOLS = """
select tools.name, tools.description, tools.input_schema from turn_tools
join tools on tools.id = turn_tools.tool_id where turn_tools.turn_id = ? order by tools.name
"""
_OURS = """
select turns.*, schemas.content as schema_json from turns
left join schemas on schemas.id = turns.schema_id
where (model = :model or model like :model || '/%')
"""
_LATEST = f"{_OURS} and (turns.id = :id or :id is null) order by turns.id desc limit 1"
_ALL = f"{_OURS} order by turns.datetime_utc, turns.id"


class LoggedAnswer(NamedTuple):
    """An answer in llm's logs: `request` is its prompt, `record` what its own message keeps.

    `prompt`, `cached` and `generated` are counts of tokens, `why` is the reason why not more was
    cached, `reuse` the verdict on it (`Reuse.plain`), `namespace` the place of its rows, `at` the
    time when it was asked; None, "" or empty where the log does not say.
    """

    id: str
    model: str
    reference: str
    request: GenerationRequest
    record: Generated
    prompt: int | None
    cached: int | None
    why: str
    reuse: Mapping[str, Any]
    namespace: str
    generated: int | None = None
    at: datetime | None = None


def log_answer(response: llm.AsyncResponse) -> None:
    """Log an answer as llm's own command does, one `llm` of ours at a time; sqlite3.Error."""
    turn = LogTurn()
    turn.take()
    try:
        with sqlite_utils.Database(_path()) as database:
            response.log_to_db(database)  # type: ignore[no-untyped-call]
    finally:
        turn.leave()


def logged_answer(response_id: str | None, settings: Settings) -> LoggedAnswer:
    """The answer with this id, or the latest of ours; ValueError if there is none."""
    with _logs() as database:
        store = LogStore(database)  # type: ignore[no-untyped-call]
        found = list(database.query(_LATEST, {"id": response_id, "model": MODEL_ID}))
        if not found:
            what = "no answer" if response_id is None else f"no answer {response_id!r}"
            raise ValueError(
                f"llm's logs hold {what} of {MODEL_ID}; llm logs list --json shows the ids"
            )
        return _answer(store, found[0], settings)


def logged_answers(settings: Settings) -> Iterator[LoggedAnswer | None]:
    """All answers of ours in the order in which they were asked; None for incomplete ones.

    ValueError if nothing was ever logged.
    """
    with _logs() as database:
        store = LogStore(database)  # type: ignore[no-untyped-call]
        for row in database.query(_ALL, {"model": MODEL_ID}):
            try:
                yield _answer(store, row, settings)
            except (ValueError, KeyError):  # an answer that was stopped, or another's messages
                yield None


def _path() -> Path:
    path: Path = llm.user_dir() / "logs.db"  # type: ignore[no-untyped-call]
    return path


@contextmanager
def _logs() -> Iterator[sqlite_utils.Database]:
    """Open llm's log; ValueError if there is none, or it can't be read."""
    if not _path().exists():
        raise ValueError("llm has logged nothing yet; ask something first (llm logs on)")
    try:
        with sqlite_utils.Database(_path()) as database:
            yield database
    except sqlite3.Error as error:
        raise ValueError(
            f"llm's log {_path()} can't be read ({error}); move it away, or mend it"
        ) from error


def _answer(store: LogStore, row: dict[str, Any], settings: Settings) -> LoggedAnswer:
    asked = store.load_chain(row["parent_message_hash"])
    answered = store.load_chain(row["tip_message_hash"])[len(asked) :]
    record = next(filter(None, map(generated_of, answered)), None)
    if record is None:
        raise ValueError(
            f"the answer {row['id']} has no record of ours, so its prompt can't be restored"
        )
    registered = settings.model(row["model"])
    model = MlxCached() if registered is None else MlxCached(registered.name, registered.reference)
    prompt = llm.Prompt(  # type: ignore[no-untyped-call]
        None,
        model,
        messages=asked,
        tools=_tools(store, row["id"]),
        schema=json.loads(row["schema_json"]) if row["schema_json"] else None,
        options=model.Options(**json.loads(row["options_json"] or "{}")),
    )
    details = json.loads(row["token_details"] or "{}")
    told = store.turn_response_json(row["id"]) or {}
    return LoggedAnswer(
        id=row["id"],
        model=row["model"],
        reference=_reference(row, told),
        request=question_of(prompt, row["model"]).request,
        record=record,
        prompt=row["input_tokens"],
        cached=details.get("cached"),
        why=str(told.get("cache", "")),
        reuse=told.get("reuse") or {},
        namespace=str(told.get("namespace", "")),
        generated=row["output_tokens"],
        at=_moment(row["datetime_utc"]),
    )


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _reference(row: dict[str, Any], told: dict[str, Any]) -> str:
    """The model that answered then, whatever its name means now."""
    said = told.get("reference")
    # Records without a reference name the model, unless it was the embedded one.
    return said if isinstance(said, str) and said else row["resolved_model"] or DEFAULT_MODEL


def _tools(store: LogStore, turn: str) -> list[llm.Tool]:
    return [
        llm.Tool(row["name"], row["description"], json.loads(row["input_schema"] or "{}"))
        for row in store.db.query(_TOOLS, [turn])
    ]

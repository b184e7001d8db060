"""The gain from drafts on the real default model's own answers: passes, seconds, and lookups.

Each answer is asked for with drafts off, with drafts on in a cache that has not heard it, and once
more in the same cache; the three take turns, and their tokens are compared. Beside them, in the
same turns, mlx-lm's own `stream_generate` without drafts and with a draft model: by default the
model itself, which always guesses right, at the price of a pass of its own for each guess.

    python benchmarks/drafts.py [--rounds 3] [--draft-model NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from array import array
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mlx_lm import stream_generate

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import DEFAULT_MODEL
from llm_mlx_promptcache.engine.drafts import Drafter, joined
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished, TextDelta
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.loading import LoadedModel, load_model

_ANSWER = 160
_MOST_LOOKING = 0.2  # ms
_LEAST_FASTER = {"repeat a list": 2.5, "prose": 0.98}  # times the tokens a second without drafts
_MODEL = Identity("d" * 64, "d" * 64)  # a fingerprint: what it showed once is remembered
LIST = "\n".join(
    f"- berth {n}: the {name} sails at {n + 5}:{n}0"
    for n, name in enumerate(["Aurora", "Berenike", "Cassiopeia", "Delphin", "Eule"], 1)
)
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"berth": {"type": "integer"}, "ship": {"type": "string", "maxLength": 20}},
        "required": ["berth", "ship"],
        "additionalProperties": False,
    },
    "maxItems": 5,
}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "repeat a list": (f"Repeat this list word for word, and nothing else:\n{LIST}", {}),
    "the list as JSON": (f"Write this as JSON:\n{LIST}", {"schema": SCHEMA}),
    "prose": ("Tell a short story about a lighthouse keeper and a storm.", {}),
}


class Took(NamedTuple):
    """One answer: its tokens, passes of the model behind the prompt, seconds behind the first."""

    ids: tuple[int, ...]
    passes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return (len(self.ids) - 1) / max(self.seconds, 1e-9)


def counted(model: Any) -> Any:
    """The same model, with a class that counts its passes from now on (`passes`)."""

    class Counted(type(model)):  # type: ignore[misc]
        passes = 0

        def __call__(self, *inputs: Any, **more: Any) -> Any:
            Counted.passes += 1
            return super().__call__(*inputs, **more)

    model.__class__ = Counted
    return Counted


def answered(engine: Engine, model: Any, request: GenerationRequest) -> Took:
    """An answer, timed where it is read."""
    first, before = 0.0, 0
    for event in engine.generate(request):
        if isinstance(event, TextDelta) and not first:
            first, before = time.perf_counter(), model.passes
        if isinstance(event, Finished):
            return Took(event.ids, model.passes - before, time.perf_counter() - first)
    raise RuntimeError("the engine ended without an answer")


def peer(loaded: LoadedModel, model: Any, asked: str, draft_model: Any = None) -> Took:
    """The same for mlx-lm, greedy as ours; passes are the model's, not its draft model's."""
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True
    )
    ids: list[int] = []
    first, before = 0.0, 0
    for told in stream_generate(
        loaded.model, loaded.tokenizer, prompt, max_tokens=_ANSWER, draft_model=draft_model
    ):
        if not first:
            first, before = time.perf_counter(), model.passes
        ids.append(told.token)
    return Took(tuple(ids), model.passes - before, time.perf_counter() - first)


def task(
    loaded: LoadedModel, model: Any, name: str, rounds: int, draft_model: Any = None
) -> dict[str, Any]:
    """The medians of one task: with drafts off, on, and asked again; and mlx-lm's if possible."""
    asked, more = TASKS[name]
    request = GenerationRequest((Message("user", asked),), max_tokens=_ANSWER, **more)
    off = replace(request, drafts=False)
    found: dict[str, list[Took]] = {"off": [], "first": [], "again": []}
    peers: dict[str, list[Took]] = {}
    for _ in range(rounds):
        for ways in (("off",), ("first", "again")):
            cache = PromptCache("1GB")
            with closing(
                Engine(lambda _, cache=cache: scheduler_here(loaded, _MODEL, cache))
            ) as engine:
                for way in ways:
                    found[way].append(answered(engine, model, off if way == "off" else request))
        if draft_model is not None and not more:  # it holds answers to no schema
            for way, drafting in (("no drafts", None), ("a draft model", draft_model)):
                peers.setdefault(way, []).append(peer(loaded, model, asked, drafting))
    return {
        "peers": {
            way: {
                "passes": statistics.median(took.passes for took in each),
                "rate": statistics.median(took.rate for took in each),
                "same": {took.ids for took in each} == {found["off"][0].ids},
            }
            for way, each in peers.items()
        },
        "tokens": len(found["off"][0].ids),
        "same": len({took.ids for each in found.values() for took in each}) == 1,
        **{
            way: {
                "passes": statistics.median(took.passes for took in each),
                "rate": statistics.median(took.rate for took in each),
            }
            for way, each in found.items()
        },
    }


def looking() -> dict[str, float]:
    """Milliseconds of looking for a draft, a pass: 100,000 tokens of prompt, 64,000 of others."""
    words = random.Random(7)
    prompt = array("I", (words.randrange(30_000) for _ in range(100_000)))
    others = tuple(array("I", (words.randrange(30_000) for _ in range(1_000))) for _ in range(64))
    drafter = Drafter(prompt, (), array("I"), joined(others))
    path, took = prompt[:-1], []
    for number in range(400):
        token = prompt[-1] if not number else words.randrange(30_000)
        started = time.perf_counter()
        drafter.expects(path)
        drafter.propose(path, token, 16)
        took.append(time.perf_counter() - started)
        path.append(token)
    return {"first": took[0] * 1e3, "each": statistics.median(took[1:]) * 1e3}


def report(found: dict[str, Any]) -> str:
    """The figures as tables."""
    lines = [
        "| the default model's own answers | tokens | passes, drafts off | on | asked again"
        " | tokens a second, times those of off | asked again | same tokens |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, told in found["tasks"].items():
        off, first, again = (told[way] for way in ("off", "first", "again"))
        rates = " | ".join(f"{way['rate'] / off['rate']:.2f}" for way in (first, again))
        passes = " | ".join(f"{way['passes']:.0f}" for way in (off, first, again))
        same = "yes" if told["same"] else "no"
        lines.append(f"| {name} | {told['tokens']} | {passes} | {rates} | {same} |")
    lines += ["", *peers_report(found["tasks"])]
    looked = found["looking"]
    lines.append("")
    lines.append(
        f"Looking for a draft takes {looked['each']:.3f} ms a pass (at most 0.2) with 100,000"
        " tokens of prompt and 64,000 of other conversations; before the first one"
        f" {looked['first']:.0f} ms."
    )
    return "\n".join(lines) + "\n"


def faster(told: dict[str, Any]) -> float:
    """Tokens a second of a task with drafts, times those without."""
    return float(told["first"]["rate"] / told["off"]["rate"])


def peers_report(tasks: dict[str, Any]) -> list[str]:
    """mlx-lm's times for the same answers, in the same turns."""
    lines = [
        "| mlx-lm | passes | tokens a second, times those of ours without drafts | same tokens |",
        "|---|--:|--:|---|",
    ]
    for name, told in tasks.items():
        for way, took in told["peers"].items():
            rate = took["rate"] / told["off"]["rate"]
            same = "yes" if took["same"] else "no"
            lines.append(f"| {name}, {way} | {took['passes']:.0f} | {rate:.2f} | {same} |")
    return lines


def main() -> int:
    """Measure and print; status 1 where a token differs, or drafts or looking take too long."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft-model", default=DEFAULT_MODEL, help="for mlx-lm's own mode")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    loaded = load_model(DEFAULT_MODEL)
    model = counted(loaded.model)
    task(loaded, model, "repeat a list", 1)  # the model shows once that it may be drafted
    draft_model = load_model(asked.draft_model).model
    found = {
        "tasks": {name: task(loaded, model, name, asked.rounds, draft_model) for name in TASKS},
        "looking": looking(),
    }
    print(report(found))
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    same = all(told["same"] for told in found["tasks"].values())
    fast = all(faster(found["tasks"][name]) >= least for name, least in _LEAST_FASTER.items())
    return 0 if same and fast and found["looking"]["each"] <= _MOST_LOOKING else 1


if __name__ == "__main__":
    sys.exit(main())

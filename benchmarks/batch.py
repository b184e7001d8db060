"""The engine's own cost: one request and eight at once, beside mlx-lm's own loops, and memory.

    python benchmarks/batch.py [alone] [together] [trial] [memory] [--rounds 7] [--tokens 48]
                               [--keep docs]

The real default model, except where a table says otherwise. The compared sides alternate, so that
a busy machine slows both; figures are medians. `--keep docs` writes the tables into docs/reuse.md.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from harness import helper, write_part
from memory import build, row_bytes
from mlx_lm import batch_generate, stream_generate
from mlx_lm.models.cache import make_prompt_cache

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.trie import common_prefix
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.config import DEFAULT_MODEL
from llm_mlx_promptcache.engine.batch_layers import BatchForm
from llm_mlx_promptcache.engine.batch_probe import prove
from llm_mlx_promptcache.engine.chunks import ChunkPlanner
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.forward import forward, prefill
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.engine.scheduler import Scheduler
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.loading import LoadedModel, load_model

conversations, crowds = helper("conversations"), helper("crowds")
PREFIX, EIGHT = 1000, 8
MOST_OVER, LEAST_FASTER, MOST_ROWS = 1.05, 2.0, 1.25
STEPS, MOST_STEPS = 20, 40


class Found(NamedTuple):
    """A part's table, whether its bar held, and its figures as JSON data."""

    text: str
    held: bool
    figures: dict[str, Any]


@contextmanager
def engine_of(loaded: LoadedModel, disk: bool = True) -> Iterator[Engine]:
    """An engine over a loaded model, with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        cache = PromptCache("8GB", DiskStore(Path(folder), "20GB") if disk else None)

        def scheduler(_: object) -> Scheduler:
            made = scheduler_here(loaded, Identity("benchmark", "benchmark"), cache)
            assert made.batch_form is not BatchForm.ALONE  # known before anything is timed
            return made

        engine = Engine(scheduler)
        yield engine
        engine.close()


def seconds(work: Callable[[], object]) -> float:
    """The seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def prefilled_layers(loaded: LoadedModel, ids: list[int]) -> list[Any]:
    """mlx-lm's own layers, having run these tokens."""
    layers = make_prompt_cache(loaded.model)
    for start, end in ChunkPlanner().alone(len(ids)):
        prefill(loaded.model, layers, ids[start:end])
    return layers


def alone(loaded: LoadedModel, rounds: int, tokens: int) -> Found:
    """One request whose prompt is cached but for its last token, against mlx-lm's loop."""
    tokenizer = TemplateTokenizer(loaded.tokenizer)
    [messages] = crowds.crowd(tokenizer, 1, PREFIX)
    ids = list(render(messages, tokenizer, fingerprint="benchmark").ids)
    # Asked again, the answer would be drafted whole: not what is compared.
    request = GenerationRequest(messages, tokens, drafts=False)
    layers = prefilled_layers(loaded, ids[:-1])

    def theirs(held: list[Any], said: list[int]) -> None:
        told = stream_generate(loaded.model, loaded.tokenizer, ids[-1:], tokens, prompt_cache=held)
        said += [response.token for response in told]

    ours, upstream = [], []
    with engine_of(loaded) as engine:
        first = crowds.one(engine, request)
        for _ in range(rounds):
            said: list[int] = []
            held = copy.deepcopy(layers)
            mx.eval([layer.state for layer in held])
            upstream.append(seconds(lambda h=held, s=said: theirs(h, s)))  # type: ignore[misc]
            ends: list[Finished] = []
            ours.append(seconds(lambda e=ends: e.append(crowds.one(engine, request))))  # type: ignore[misc]
            assert ends[0].usage.prefilled == 1
            assert list(ends[0].ids) == list(first.ids)
            assert len(said) == len(first.ids)
            assert said[:-1] == list(first.ids)[:-1]
    ratio = statistics.median(a / b for a, b in zip(ours, upstream, strict=True))
    figures = {"ours": ours, "mlx-lm": upstream, "ratio": ratio}
    lines = [
        f"One request over a cached prompt of {len(ids):,} tokens, an answer of {len(first.ids)},"
        " drafts off\n",
        "| | seconds | times mlx-lm |\n|---|--:|--:|",
        f"| `stream_generate`, its cache ready | {statistics.median(upstream):.2f} | 1 |",
        f"| the engine, fetch to insert | {statistics.median(ours):.2f} | {ratio:.3f} |\n",
        f"Bar: {MOST_OVER}. Medians of {rounds}, taken in turns; the ratio is that of each pair.\n",
    ]
    return Found("\n".join(lines), ratio <= MOST_OVER, figures)


def together(loaded: LoadedModel, rounds: int, tokens: int) -> Found:
    """Eight requests over one prefix: sent together, one after the other, and by mlx-lm's batch."""
    tokenizer = TemplateTokenizer(loaded.tokenizer)
    asked = crowds.crowd(tokenizer, EIGHT, PREFIX)
    requests = [GenerationRequest(messages, tokens, drafts=False) for messages in asked]
    prompts = [list(render(each, tokenizer, fingerprint="benchmark").ids) for each in asked]
    prefix = min(common_prefix(prompts[0], ids) for ids in prompts[1:])
    layers = prefilled_layers(loaded, prompts[0][:prefix])
    rests = [ids[prefix:] for ids in prompts]
    rates: dict[str, list[float]] = {"in a row": [], "together": [], "mlx-lm": []}
    prefilled = {"mlx-lm": sum(map(len, rests))}
    for _ in range(rounds):
        for how, found in rates.items():
            if how == "mlx-lm":
                found.append(_upstream_rate(loaded, rests, layers, tokens))
                continue
            with engine_of(loaded) as engine:
                crowds.one(engine, GenerationRequest(asked[0][:1], warm=True))
                started = time.perf_counter()
                if how == "together":
                    ends = crowds.together(engine, requests)
                else:
                    ends = [crowds.one(engine, request) for request in requests]
                took = time.perf_counter() - started
            found.append(sum(end.usage.generated for end in ends) / took)
            prefilled[how] = sum(end.usage.prefilled for end in ends)
    return _compared(rates, prefilled, tokens)


def _upstream_rate(
    loaded: LoadedModel, rests: list[list[int]], layers: list[Any], tokens: int
) -> float:
    """Tokens a second of mlx-lm's batch; each gets a copy of the prefix, as its server gives it."""
    started = time.perf_counter()
    held = [copy.deepcopy(layers) for _ in rests]
    said = batch_generate(
        loaded.model, loaded.tokenizer, rests, held, max_tokens=tokens, return_token_ids=True
    ).token_ids
    took = time.perf_counter() - started
    # An answer's end token counts on our side, and isn't among its ids here.
    return sum(len(ids) + (len(ids) < tokens) for ids in said) / took


def _compared(rates: dict[str, list[float]], prefilled: dict[str, int], tokens: int) -> Found:
    ratios = {
        how: statistics.median(a / b for a, b in zip(found, rates["in a row"], strict=True))
        for how, found in rates.items()
    }
    names = {
        "in a row": "the engine, one after the other",
        "together": "the engine, from eight threads",
        "mlx-lm": "mlx-lm's `BatchGenerator`, each with its copy of the prefix",
    }
    lines = [
        f"Eight requests over a kept prefix of {PREFIX:,} tokens, {tokens} tokens each, drafts"
        " off\n",
        "| | prefilled | tokens a second | times |\n|---|--:|--:|--:|",
        *(
            f"| {name} | {prefilled[how]} | {statistics.median(rates[how]):.1f}"
            f" | {ratios[how]:.2f} |"
            for how, name in names.items()
        ),
        f"\nBar: {LEAST_FASTER}. Medians of {len(rates['together'])}, taken in turns.\n",
    ]
    figures = {"rates": rates, "prefilled": prefilled, "ratios": ratios}
    return Found("\n".join(lines), ratios["together"] >= LEAST_FASTER, figures)


def peak(loaded: LoadedModel, name: str, length: int) -> tuple[str, float]:
    """Peak memory of the last of three turns, fetch to insert, in the conversation's own rows."""
    tokenizer = TemplateTokenizer(loaded.tokenizer)
    [messages] = crowds.crowd(tokenizer, 1, length)
    history = list(messages)
    with engine_of(loaded) as engine:
        for question in ("And the next rule?", "And the last one?"):
            end = crowds.one(engine, GenerationRequest(tuple(history), 16))
            path = end.usage.prompt + end.usage.generated
            history += [Message("assistant", end.text, end.generated()), Message("user", question)]
        time.sleep(2)  # until the disk has what it was promised
        gc.collect()
        mx.clear_cache()
        before = mx.get_active_memory()
        end = crowds.one(engine, GenerationRequest(tuple(history), 32))
        highest = mx.get_peak_memory()
        assert end.usage.cached >= path, end.why
    own = end.usage.cached * row_bytes(loaded.model)
    ratio = (highest - before + own) / own
    return f"| {name} | {end.usage.cached:,} | {own / 1e6:.0f} | {ratio:.3f} |", ratio


def memory(loaded: LoadedModel) -> Found:
    """Both models' peaks."""
    with tempfile.TemporaryDirectory() as place:
        folder = conversations.write_model(Path(place) / "model")
        tiny = load_model(str(folder))
    random = build(8, tiny.config["vocab_size"])
    tiny = conversations.loaded_as(tiny, random, context=100_000)
    found = {
        name: peak(model, name, length)
        for name, model, length in (
            ("random llama, 8 layers", tiny, 8000),
            ("default model", loaded, 1500),
        )
    }
    lines = [
        "Peak memory of one turn on a long conversation that is in memory, fetch to insert\n",
        "| model | tokens | MB of rows | peak, times its own rows |\n|---|--:|--:|--:|",
        *(line for line, _ in found.values()),
        f"\nBar: {MOST_ROWS}.\n",
    ]
    ratios = {name: ratio for name, (_, ratio) in found.items()}
    return Found("\n".join(lines), max(ratios.values()) <= MOST_ROWS, ratios)


def trial(loaded: LoadedModel, rounds: int) -> Found:
    """The time of a model's trial before its first batch, beside single steps of one answer."""
    layers = prefilled_layers(loaded, list(range(8)))

    def steps() -> None:
        for _ in range(STEPS):
            mx.eval(forward(loaded.model, layers, mx.array([[1]])))

    pairs = [(seconds(lambda: prove(loaded.model)), seconds(steps)) for _ in range(rounds)]
    as_many = STEPS * statistics.median(one / other for one, other in pairs)
    took = statistics.median(one for one, _ in pairs)
    text = (
        f"The trial takes as long as {as_many:.0f} tokens of one answer.\n\n"
        f"Bar: {MOST_STEPS} tokens. Medians of {rounds}, taken in turns.\n"
    )
    return Found(text, as_many <= MOST_STEPS, {"seconds": took, "tokens": as_many})


KEPT_BY = "benchmarks/batch.py --keep docs"
PARTS = ("alone", "together", "trial", "memory")


def main() -> int:
    """Print the tables; the exit status says whether all bars held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="only these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--keep", type=Path, help="write the tables into FOLDER/reuse.md")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    loaded = load_model(DEFAULT_MODEL)
    mx.eval(loaded.model.parameters())
    found: dict[str, Found] = {}
    for part in asked.parts or PARTS:
        if part == "memory":
            found[part] = memory(loaded)
        elif part == "trial":
            found[part] = trial(loaded, asked.rounds)
        else:
            work = alone if part == "alone" else together
            found[part] = work(loaded, asked.rounds, asked.tokens)
        print(found[part].text, flush=True)
        if asked.keep is not None:
            write_part(asked.keep / "reuse.md", part, KEPT_BY, found[part].text)
    if asked.json is not None:
        asked.json.write_text(json.dumps({name: one.figures for name, one in found.items()}))
    return not all(one.held for one in found.values())


if __name__ == "__main__":
    sys.exit(main())

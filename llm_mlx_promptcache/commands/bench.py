"""`llm mlx-cached bench`: the gain from the cache with one model on this machine, as a table."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..config import HOME_VARIABLE, data_folder, load_settings
from ..models.blas_preload import blas_in_use
from ..models.names import resolve
from .bench_drafts import DraftedAnswer, compared, draft_prompts, drafts_json, drafts_table
from .replay import (
    CacheBudget,
    TokenCost,
    TraceReplay,
    replay,
    replay_json,
    replay_table,
    trace_paths,
)
from .shown import model_option

if TYPE_CHECKING:
    from ..chat.messages import Message
    from ..engine.events import Finished
    from ..engine.request import GenerationRequest

# Texts of our own, so that nobody pastes theirs into an issue.
_RULE = (
    "Rule {n}: whoever borrows book {n} brings it back to shelf {m} before day {d} of the month."
)
_QUESTIONS = (
    "Where does book 3 go?",
    "And when is it due?",
    "Who may borrow book 5?",
)
_ANSWER = 24
_DRAFTED_ANSWER = 120
_PACKAGES = ("llm-mlx-promptcache", "mlx", "mlx-lm", "llm", "langchain-core")
_COLUMNS = ("step", "prompt", "cached", "prefilled", "cached s", "without s", "ratio", "same")


class BenchStep(NamedTuple):
    """One prompt asked twice: tokens, and seconds to the first token with the cache and without."""

    step: str
    prompt: int
    cached: int
    prefilled: int
    with_cache: float
    without: float
    same: bool

    @property
    def ratio(self) -> float:
        """The factor by which the first token came sooner."""
        return self.without / self.with_cache


class BenchResult(NamedTuple):
    """The steps, the model's plain speed in tokens a second, and its peak memory where known."""

    model: str
    steps: list[BenchStep]
    prefill: float
    decode: float
    peak_bytes: int
    drafts: list[DraftedAnswer]


@click.command()
@model_option
@click.option("--rules", default=30, show_default=True, help="Length of the system prompt.")
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Replay this trace instead, by its times, in caches with this machine's limits.",
)
@click.option(
    "--block", type=click.IntRange(min=1), help="Tokens of a block; default: as the trace says."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(*, model: str, rules: int, trace: Path | None, block: int | None, as_json: bool) -> None:
    """Measure the cache's gain here, in a cache of its own, and print a table to share.

    With --trace (a file of `llm mlx-cached trace`, or a published one), print the share of its
    blocks that caches with this machine's limits would have had: with our eviction order, and with
    LRU.
    """
    if trace is not None:
        done = _replayed(trace, block, model)
        click.echo(replay_json(done) if as_json else replay_table(done))
        return
    if block is not None:
        raise click.UsageError("--block belongs to a trace; give --trace too")
    try:
        result = measure(resolve(model).reference, rules)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(_as_json(result) if as_json else table(result))
    if not all(step.same for step in result.steps):
        raise click.ClickException("an answer differs with the cache: please report this table")
    if not all(answer.same for answer in result.drafts):
        raise click.ClickException("an answer differs with drafts: please report this table")


def measure(model: str, rules: int) -> BenchResult:
    """Ask each step's prompt with the cache and without it, over an empty cache of its own."""
    from ..chat.messages import Message

    system = Message("system", "\n".join(_rules(rules)))
    first, second, other = (Message("user", question) for question in _QUESTIONS)
    with _own_cache():
        _say(f"loading {model}")
        _ask(model, (Message("user", "Say yes."),), use_cache=False)
        fresh, cold = _both(model, (system, first))
        answer = Message("assistant", fresh.text, generated=fresh.generated())
        following = (system, first, answer, second)
        steps = [_step("first prompt, nothing stored", (fresh, cold))]
        steps.append(_step("next turn", _both(model, following)))
        steps.append(_step("other chat, same system prompt", _both(model, (system, other))))
        _say("starting again, from the disk")
        _restart()
        _ask(model, (Message("user", "Say yes."),), use_cache=False)
        steps.append(_step("the same again, from the disk", _both(model, following)))
        drafts = _drafts(model)
    plain, times = cold.usage, cold.timings
    decode = max(plain.generated - 1, 1) / max(times.decode, 1e-9)
    peak = max(fresh.peak_bytes, cold.peak_bytes)
    return BenchResult(model, steps, plain.prompt / times.first_token, decode, peak, drafts)


def _replayed(trace: Path, block: int | None, model: str) -> TraceReplay:
    """The hits of caches with this machine's limits on a trace of prompts to this model."""
    from ..cache.sizes import parse_size
    from ..engine.pool import MEMORY, disk_store

    paths, block = trace_paths(trace, block)
    memory = load_settings().memory
    budgets = (
        CacheBudget("memory", parse_size(MEMORY if memory is None else memory, "memory")),
        CacheBudget("disk", disk_store().budget),
    )
    return replay(paths, block, _cost(resolve(model).reference), budgets)


def _cost(model: str) -> TokenCost:
    """The memory of a token's rows, measured on a prompt of our own."""
    from ..chat.messages import Message
    from ..engine.pool import cache_in_use

    messages = (Message("system", "\n".join(_rules(30))), Message("user", _QUESTIONS[0]))
    with _own_cache():
        _say(f"asking {model} once, to measure the memory of a token")
        _ask(model, messages, use_cache=True)
        cache = cache_in_use()
        assert cache is not None
        held = cache.stats()["memory"]
    return TokenCost(model, held["bytes"] / held["tokens"])


def table(result: BenchResult) -> str:
    """The steps as Markdown, and the machine, model and versions."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---|" + "--:|" * (len(_COLUMNS) - 1)]
    for step in result.steps:
        lines.append(
            f"| {step.step} | {step.prompt} | {step.cached} | {step.prefilled}"
            f" | {step.with_cache:.2f} | {step.without:.2f} | {step.ratio:.1f}"
            f" | {'yes' if step.same else 'NO'} |"
        )
    peak = f", peak {result.peak_bytes / 1e9:.2f} GB" if result.peak_bytes else ""
    lines += [
        "",
        f"Seconds to the first token. {result.model}: prefill {result.prefill:.0f}, decode"
        f" {result.decode:.0f} tokens a second{peak}.",
        "",
        drafts_table(result.drafts),
        "",
        machine_line(machine()),
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """The machine behind a figure: processor, memory, system, device, versions."""
    import mlx.core as mx

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": "GPU" if mx.default_device().type == mx.DeviceType.gpu else "CPU",
        "blas": blas_in_use(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }


def machine_line(found: dict[str, Any]) -> str:
    """The same in one sentence."""
    blas = f", {found['blas']}" if found["blas"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, {found['memory'] / 2**30:.0f} GiB,"
        f" {found['system']}, MLX on the {found['device']}{blas}; Python {found['python']},"
        f" {versions}."
    )


def _processor() -> str:
    """The processor's name, as its system calls it; macOS has no /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import mlx.core as mx

        named = mx.device_info() if hasattr(mx, "device_info") else mx.metal.device_info()
        return str(named.get("device_name", platform.processor()))
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue  # langchain-core is an extra


def _rules(count: int) -> Iterator[str]:
    return (_RULE.format(n=n, m=n * 7 % 31, d=n * 11 % 28 + 1) for n in range(1, count + 1))


def _step(name: str, answers: tuple[Finished, Finished]) -> BenchStep:
    warm, cold = answers
    usage, same = warm.usage, warm.ids == cold.ids
    seconds = (warm.timings.first_token, cold.timings.first_token)
    return BenchStep(name, usage.prompt, usage.cached, usage.prefilled, *seconds, same)


def _both(model: str, messages: tuple[Message, ...]) -> tuple[Finished, Finished]:
    """The same prompt with the cache and without it."""
    _say(f"asking with {len(messages)} messages, with the cache and without")
    return _ask(model, messages, use_cache=True), _ask(model, messages, use_cache=False)


def _ask(model: str, messages: tuple[Message, ...], *, use_cache: bool) -> Finished:
    from ..engine.request import GenerationRequest

    return _answer(model, GenerationRequest(messages, max_tokens=_ANSWER, use_cache=use_cache))


def _drafts(model: str) -> list[DraftedAnswer]:
    """Answers with drafts and without; the model's trial runs before, unmeasured."""
    _say("asking with drafts and without")
    prompts = draft_prompts()
    for text in list(prompts.values())[:1]:
        _said(model, text, drafts=True)
    return [
        compared(name, _said(model, text, drafts=True), _said(model, text, drafts=False))
        for name, text in prompts.items()
    ]


def _said(model: str, prompt: str, *, drafts: bool) -> Finished:
    """An answer drafted from its prompt and itself alone, whatever else was asked here."""
    from ..chat.messages import Message
    from ..engine.request import GenerationRequest

    messages = (Message("user", prompt),)
    return _answer(
        model,
        GenerationRequest(messages, max_tokens=_DRAFTED_ANSWER, use_cache=False, drafts=drafts),
    )


def _answer(model: str, request: GenerationRequest) -> Finished:
    from ..engine.events import Finished
    from ..engine.pool import engine_for

    for event in engine_for(model).generate(request):
        if isinstance(event, Finished):
            return event
    raise RuntimeError("the engine ended without an answer")


@contextmanager
def _own_cache() -> Iterator[None]:
    """An empty cache that is removed afterwards; the user's models and settings, nothing else."""
    from ..engine.pool import DISK_SWITCH

    kept = {name: os.environ.get(name) for name in (HOME_VARIABLE, DISK_SWITCH)}
    data = data_folder()
    with tempfile.TemporaryDirectory(prefix="mlx-cached-bench-") as folder:
        (Path(folder) / "data").symlink_to(data, target_is_directory=True)
        _restart()
        os.environ |= {HOME_VARIABLE: folder, DISK_SWITCH: "1"}
        try:
            yield
        finally:
            _restart()
            for name, value in kept.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _restart() -> None:
    """End the engines and drop the cache in memory, as a new process would; the disk stays."""
    from ..engine.pool import close_engines

    close_engines()


def _as_json(result: BenchResult) -> str:
    steps = [{**step._asdict(), "ratio": step.ratio} for step in result.steps]
    drafts = drafts_json(result.drafts)
    found = {**result._asdict(), "steps": steps, "drafts": drafts, "machine": machine()}
    return json.dumps(found, indent=1)


def _say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)

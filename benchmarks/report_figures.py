"""The report's form of a benchmark's figures: a line of ratios, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

OURS, OTHER, THIRD = "#0a7d5a", "#b8b8b8", "#d98f2b"


class Headline(NamedTuple):
    """One comparison; `ratio` is the factor by which ours is better than `beside`."""

    what: str
    beside: str
    other: str
    ours: str
    ratio: float


class Bars(NamedTuple):
    """A picture: a group of bars for each label, one bar for each series."""

    unit: str
    labels: Sequence[str]
    series: dict[str, Sequence[float]]
    log: bool = False


def headlines(name: str, figures: Any) -> list[Headline]:
    """The comparisons that a benchmark's figures hold; none for figures without such a form."""
    return list(_HEADLINES.get(name.partition("-")[0], _none)(name, figures))


def draw(name: str, figures: Any, target: Path) -> None:
    """Draw a benchmark's figures as SVG, where there is a form for them."""
    form = _PICTURES.get(name.partition("-")[0])
    if form is not None:
        _draw(form(figures), target)


def ran(record: dict[str, Any]) -> str:
    """The command, date and duration of a kept benchmark; a sentence without its full stop."""
    return (
        f"`{record['command']}` took {record['seconds']} s on {record['when']}, at a load of"
        f" {record['load']} before it began"
    )


def shown(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _none(name: str, figures: Any) -> Iterator[Headline]:
    return iter(())


def _demo(name: str, turns: list[dict[str, Any]]) -> Iterator[Headline]:
    warm, cold = (turns[-1][kind]["first_token"] for kind in ("cached", "without"))
    what = f"first token in turn {len(turns)}"
    yield Headline(what, "no cache", f"{cold:.2f} s", f"{warm:.2f} s", cold / warm)


def _trie(name: str, rows: list[dict[str, Any]]) -> Iterator[Headline]:
    for row in rows:
        if "`longer`" not in row["name"]:
            other, ours = (f"{shown(row[key])} {row['unit']}" for key in ("theirs", "ours"))
            yield Headline(row["name"], "mlx-lm", other, ours, row["ratio"])


def _memory(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    held = {row["cache"]: row["bytes"] for row in figures["shared"]}
    yield Headline(
        "bytes held of chats over one system prompt",
        "mlx-lm",
        f"{held['mlx-lm'] / 1e6:.1f} MB",
        f"{held['ours'] / 1e6:.1f} MB",
        held["mlx-lm"] / held["ours"],
    )
    for turn in dict.fromkeys(row["turn"] for row in figures["turns"]):
        peaks = {row["cache"]: row["peak"] for row in figures["turns"] if row["turn"] == turn}
        what = f"peak memory of a turn, in its own rows ({turn})"
        other, ours = peaks["mlx-lm"], peaks["ours"]
        yield Headline(what, "mlx-lm", f"{other:.2f}", f"{ours:.2f}", other / ours)


def _disk(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    for cold in (False, True):
        rows = {row["what"]: row["ms"] for row in figures["restores"] if row["cold"] == cold}
        state = "cold" if cold else "warm"
        what = f"restore of 10 spans, verified ({state})"
        other, ours = rows["mlx-lm"], rows["10"]
        took = f"{shown(other)} ms", f"{shown(ours)} ms"
        yield Headline(what, "mlx-lm's file, unverified", *took, other / ours)


def _eviction(run: str, figures: dict[str, Any]) -> Iterator[Headline]:
    trace, ratios = run.partition("-")[2], figures["ratios"]
    for at, blocks in enumerate(figures["blocks"]):
        what, ours = f"hit ratio, trace {trace}, {blocks:,} blocks", ratios["default"][at]
        for name, whose in (("mlx-lm", "mlx-lm's order"), ("lru", "LRU")):
            other = ratios[name][at]
            took = f"{other:.3f}", f"{ours:.3f}"
            yield Headline(what, whose, *took, ours / max(other, 1e-9))


def _startup(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    for command, runs in figures.items():
        without, with_it = (
            median(processor for _, processor in runs[key]) for key in ("without", "with_it")
        )
        took = f"{1e3 * without:,.0f} ms", f"{1e3 * with_it:,.0f} ms"
        yield Headline(f"`{command}`", "no plugin", *took, 1 / runs["ratio"])


def _turns(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    theirs, ours = (
        median(turn["wall"] for turn in figures[plugin])
        for plugin in ("llm-mlx", "llm-mlx-promptcache")
    )
    took = f"{theirs:.2f} s", f"{ours:.2f} s"
    yield Headline("`llm -c`, process start to first word", "llm-mlx", *took, theirs / ours)


def _agents(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    """With the cache and without; ChatLlamaCpp runs other weights over shorter prompts."""
    sides = {
        name.removeprefix("ChatMLXCached, "): steps for name, steps in figures["steps"].items()
    }
    ours, theirs = sides["with the cache"], sides["cache off"]
    took = [sum(step["seconds"] for step in steps) for steps in (theirs, ours)]
    what = f"an agent of {len(ours)} steps, to the first tokens of each"
    yield Headline(what, "no cache", *(f"{each:.2f} s" for each in took), took[0] / took[1])


def _reuse(name: str, rows: list[dict[str, Any]]) -> Iterator[Headline]:
    for model in dict.fromkeys(row["model"] for row in rows):
        for kind, told in (("one", ""), ("cut", ", a restart before each request")):
            sums = [row[kind] for row in rows if row["model"] == model]
            new, theirs, ours = (sum(s[key] for s in sums) for key in ("new", "theirs", "ours"))
            what = f"tokens prefilled, {model}{told} ({new:,} are new)"
            yield Headline(what, "mlx-lm's server", f"{theirs:,}", f"{ours:,}", theirs / ours)


def _batch(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    if "alone" in figures:
        other, ours = (median(figures["alone"][key]) for key in ("mlx-lm", "ours"))
        took = f"{other:.2f} s", f"{ours:.2f} s"
        what, ratio = "one request over a cached prompt", 1 / figures["alone"]["ratio"]
        yield Headline(what, "mlx-lm's `stream_generate`", *took, ratio)
    if "together" in figures:
        rates = {how: median(found) for how, found in figures["together"]["rates"].items()}
        ratios = figures["together"]["ratios"]
        named = {"mlx-lm": "mlx-lm's `BatchGenerator`", "in a row": "ours, one after the other"}
        for how, beside in named.items():
            told = (f"{rates[key]:.1f} tokens/s" for key in (how, "together"))
            ratio = ratios["together"] / ratios[how]
            yield Headline("eight requests over one prefix", beside, *told, ratio)


def _host(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    alone, hosted = (figures["turns"][how] for how in ("alone", "host"))
    took = f"{alone:.2f} s", f"{hosted:.2f} s"
    what = "a warm `llm -c` of 2,000 tokens, process start to first word"
    yield Headline(what, "no host", *took, alone / hosted)
    row, together = (figures["eight"][how] for how in ("row", "together"))
    rates = f"{row:.1f} tokens/s", f"{together:.1f} tokens/s"
    yield Headline("eight `llm` at once", "eight in a row", *rates, together / row)


def _loop_stalls(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    what = "the first answer: the model is loaded"
    here, hosted = (min(one[what] for one in figures[side]) for side in ("here", "resident"))
    took = f"{here:,.0f} ms", f"{hosted:,.0f} ms"
    yield Headline("an event loop's longest stall, first answer", "no host", *took, here / hosted)


def _drafts(name: str, figures: dict[str, Any]) -> Iterator[Headline]:
    for task, found in figures["tasks"].items():
        for kind, told in (("first", ""), ("again", ", asked again")):
            rates = [found[key]["rate"] for key in ("off", kind)]
            took = (f"{rate:.1f} tokens/s" for rate in rates)
            yield Headline(f"drafts: {task}{told}", "drafts off", *took, rates[1] / rates[0])


_HEADLINES: dict[str, Callable[[str, Any], Iterator[Headline]]] = {
    "demo": _demo,
    "trie": _trie,
    "memory": _memory,
    "disk": _disk,
    "eviction": _eviction,
    "startup": _startup,
    "llm_turns": _turns,
    "agents": _agents,
    "reuse": _reuse,
    "batch": _batch,
    "host": _host,
    "loop_stalls": _loop_stalls,
    "drafts": _drafts,
}


def _demo_bars(turns: list[dict[str, Any]]) -> Bars:
    labels = [f"turn {n}\n{t['cached']['prompt']} tokens" for n, t in enumerate(turns, 1)]
    kinds = {"without the cache": "without", "with it": "cached"}
    series = {n: [turn[key]["first_token"] for turn in turns] for n, key in kinds.items()}
    return Bars("seconds to the first token", labels, series)


def _trie_bars(rows: list[dict[str, Any]]) -> Bars:
    timed = [row for row in rows if row["unit"] == "ms"]
    labels = [
        row["name"].replace("`", "").replace(" over ", "\nover ").replace(", ", ",\n", 1)
        for row in timed
    ]
    series = {"mlx-lm": [row["theirs"] for row in timed], "ours": [row["ours"] for row in timed]}
    return Bars("milliseconds", labels, series, log=True)


def _memory_bars(figures: dict[str, Any]) -> Bars:
    shared = {row["cache"]: row["ratio"] for row in figures["shared"]}
    turns = list(dict.fromkeys(row["turn"] for row in figures["turns"]))
    series = {
        cache: [shared[cache], *(r["peak"] for r in figures["turns"] if r["cache"] == cache)]
        for cache in ("mlx-lm", "ours")
    }
    labels = ["held: chats over\none system prompt", *(f"peak of a turn:\n{t}" for t in turns)]
    return Bars("times the rows that there are", labels, series)


def _disk_bars(figures: dict[str, Any]) -> Bars:
    rows = figures["restores"]
    kinds = list(dict.fromkeys(row["what"] for row in rows))
    labels = ["mlx-lm's file" if kind == "mlx-lm" else f"{kind} spans" for kind in kinds]
    series = {
        f"{'cold' if cold else 'warm'} page cache": [r["ms"] for r in rows if r["cold"] == cold]
        for cold in (True, False)
    }
    return Bars("milliseconds", labels, series)


def _eviction_bars(figures: dict[str, Any]) -> Bars:
    names = {"lru": "LRU", "default": "ours", "belady": "clairvoyant optimum"}
    series = {shown: figures["ratios"][name] for name, shown in names.items()}
    return Bars("block hit ratio", [f"{blocks:,} blocks" for blocks in figures["blocks"]], series)


_PICTURES: dict[str, Callable[[Any], Bars]] = {
    "demo": _demo_bars,
    "trie": _trie_bars,
    "memory": _memory_bars,
    "disk": _disk_bars,
    "eviction": _eviction_bars,
}


def _draw(bars: Bars, target: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    # Without these, the same figures would give another file each time.
    matplotlib.rcParams["svg.hashsalt"] = target.name
    from matplotlib import pyplot

    count, places = len(bars.series), range(len(bars.labels))
    flat = len(bars.labels) > 6
    size = (7.0, 0.62 * len(bars.labels) + 1.0) if flat else (7.0, 3.4)
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    thick = 0.8 / count
    for number, (name, values) in enumerate(bars.series.items()):
        at = [place + (number - (count - 1) / 2) * thick for place in places]
        colour = (OTHER, OURS, THIRD)[number]
        plot = axes.barh if flat else axes.bar
        drawn = plot(at, values, thick, label=name, color=colour)
        axes.bar_label(drawn, fmt=shown, padding=2, fontsize=8)
    (axes.set_yticks if flat else axes.set_xticks)(list(places), bars.labels, fontsize=9)
    (axes.set_xlabel if flat else axes.set_ylabel)(bars.unit)
    if bars.log:
        axes.set_xscale("log") if flat else axes.set_yscale("log")
    if flat:
        axes.invert_yaxis()
    axes.margins(**{"x" if flat else "y": 0.14})
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=count, loc="lower left", bbox_to_anchor=(0, 1.0))
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)

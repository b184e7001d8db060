"""The picture that other sites show of a link to this one: `make card` writes docs/card.png.

Its figures are those of the demo, out of figures/demo.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

_DOCS = Path(__file__).resolve().parent
CARD = _DOCS / "card.png"
WIDTH, HEIGHT = 1200, 630  # pixels, as those sites ask
_BACK, _TEXT, _DIM, _OURS, _THEIRS = "#0f1720", "#f2f5f8", "#93a1af", "#5fd39a", "#55636f"


def main() -> int:
    """Draw the card."""
    turns = json.loads((_DOCS / "figures" / "demo.json").read_text(encoding="utf-8"))["figures"]
    figure = pyplot.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor=_BACK)
    figure.text(0.06, 0.84, "llm-mlx-promptcache", color=_TEXT, size=44, weight="bold")
    said = "llm and LangChain on Apple's MLX: no prefix is computed twice"
    figure.text(0.06, 0.74, said, color=_DIM, size=22)
    axes = figure.add_axes((0.06, 0.16, 0.88, 0.46), facecolor=_BACK)
    for shift, colour, side in ((-0.2, _THEIRS, "without"), (0.2, _OURS, "cached")):
        seconds = [turn[side]["first_token"] for turn in turns]
        places = [at + shift for at in range(len(turns))]
        bars = axes.bar(places, seconds, 0.36, color=colour)
        axes.bar_label(bars, fmt="%.1f s", padding=3, color=_TEXT, size=15)
    axes.set_xticks(range(len(turns)), [f"turn {at + 1}" for at in range(len(turns))])
    axes.tick_params(colors=_DIM, labelsize=16, length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    legend = "seconds to the first token, each turn a process: with the cache (green), and without"
    figure.text(0.06, 0.05, legend, color=_DIM, size=16)
    figure.savefig(CARD, facecolor=_BACK)
    return 0


if __name__ == "__main__":
    sys.exit(main())

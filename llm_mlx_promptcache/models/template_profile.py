"""What is learned of a chat template once: its form of calls, its marks, what it has no place for.

profile = learn_profile(apply, "enable_thinking")     # some forty renderings
TemplateProfile.from_json(profile.to_json())          # what is remembered of it, and checked
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..chat import forms
from ..chat.form_learning import learned_form
from ..chat.form_probes import Probe
from ..chat.forms import Form, Hole, Layout, NoForm, Reasoning
from ..chat.hand_forms import shown_marks
from ..chat.plain_data import from_plain, to_plain
from ..chat.prompt import UNMENDED, PromptForm
from ..chat.reasoning_learning import shown_reasoning
from .probes import find_prompt_form


@dataclass(frozen=True)
class TemplateProfile:
    """What a template's renderings tell; nothing of a vocabulary, which is the tokenizer's to know.

    `form` and `reasoning` are None where none is shown. `marks` are those by which forms by hand
    are known, of those that the template shows beside tools.
    """

    form: Form | None = None
    marks: tuple[str, ...] = ()
    reasoning: Reasoning | None = None
    prompt: PromptForm = UNMENDED

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the facts of a model."""
        return {
            "form": to_plain(self.form),
            "marks": list(self.marks),
            "reasoning": to_plain(self.reasoning),
            "prompt": self.prompt.to_json(),
        }

    @classmethod
    def from_json(cls, data: object) -> TemplateProfile | None:
        """What `to_json` gave; None for anything else."""
        if not isinstance(data, dict) or set(data) != {"form", "marks", "reasoning", "prompt"}:
            return None
        prompt = PromptForm.from_json(data["prompt"])
        try:
            form = None if data["form"] is None else from_plain(Form, data["form"])
            reasoning = data["reasoning"]
            reasoning = None if reasoning is None else from_plain(Reasoning, reasoning)
            marks = from_plain(_Marks, {"marks": data["marks"]}).marks
        except ValueError:
            return None
        if prompt is None or not (form is None or _is_whole(form)):
            return None
        return cls(form, marks, reasoning, prompt)


@dataclass(frozen=True)
class _Marks:
    marks: tuple[str, ...]


def learn_profile(apply: Callable[..., str], switch: str) -> TemplateProfile:
    """What `apply(messages, tools=..., add_generation_prompt=...)` shows.

    `switch` is what the template calls the wish for reasoning.
    """
    probe = Probe(apply)
    try:
        form = learned_form(probe)
    except NoForm:
        form = None
    marks = shown_marks(probe.whole_prompt() or "")
    return TemplateProfile(form, marks, shown_reasoning(probe, switch), find_prompt_form(apply))


def _is_whole(form: Form) -> bool:
    """Whether a form that was remembered has what reader and grammar take for granted."""
    holes = [piece for piece in form.call if isinstance(piece, Hole)]
    tagged = form.layout in (Layout.TAGS, Layout.INLINE)
    once = holes.count(Hole.NAME) == holes.count(Hole.ARGUMENTS) == 1
    learned = form.native and form.channels is None and not form.special
    return once and learned and tagged == (form.tags is not None) and bool(form.keys.name)


@cache
def learner() -> str:
    """The version of what learns, as a digest of its sources: another one asks templates again.

    A number that is to be raised by hand would be forgotten.
    """
    told = blake2b(digest_size=8)
    for folder in (Path(forms.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.glob("*.py")):
            told.update(path.read_bytes())
    return told.hexdigest()

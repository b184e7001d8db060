"""A chat template's profile, learned once: its form of calls, its marks, what it lacks.

profile = learn_profile(apply, "enable_thinking")     # some forty renderings
TemplateProfile.from_json(profile.to_json())          # as stored, and checked
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..chat import forms
from ..chat.call_forms import call_example
from ..chat.form_learning import learned_form
from ..chat.form_probes import Probe
from ..chat.forms import CallLayout, Form, Hole, NoForm, Reasoning, UnreadForm
from ..chat.hand_forms import GENERIC, hand_form, shown_marks
from ..chat.mends import GENERIC_TOOLS, Mend
from ..chat.plain_data import from_plain, to_plain
from ..chat.prompt import UNMENDED, Feature, PromptForm
from ..chat.reasoning_learning import shown_reasoning
from .probes import find_generic_tools, find_prompt_form


@dataclass(frozen=True)
class TemplateProfile:
    """The facts in a template's renderings; the vocabulary is left to the tokenizer.

    `form` and `reasoning` are None if none is shown; `unread`: calls are shown, in a way that can't
    be read. `marks` are those that identify forms by hand, if the template shows them beside tools.
    `generic` puts the generic prompt for tools in the place of its own.
    """

    form: Form | None = None
    unread: bool = False
    marks: tuple[str, ...] = ()
    reasoning: Reasoning | None = None
    prompt: PromptForm = UNMENDED
    generic: tuple[Mend, ...] = ()

    def call_form(self, vocabulary: Container[str]) -> Form:
        """The form of calls for a model with these tokens: learned, by hand, or the generic one."""
        form = hand_form(self.form, vocabulary, self.marks)
        moved = GENERIC_TOOLS.intersection(self.prompt.start([Feature.TOOLS]))
        told = self.unread or (moved and not self.prompt.example)
        return GENERIC if form.channels is None and told else form

    def prompt_for(self, form: Form) -> PromptForm:
        """The mends where calls are written in `form`: a generic form is told in the prompt."""
        if form.native or not self.generic:
            return self.prompt
        return PromptForm({**self.prompt.mends, Feature.TOOLS: self.generic})

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the facts of a model."""
        return {
            "shown": to_plain(_Learned(self.form, self.unread, self.marks, self.reasoning)),
            "prompt": self.prompt.to_json(),
            "generic": [mend.value for mend in self.generic],
        }

    @classmethod
    def from_json(cls, data: object) -> TemplateProfile | None:
        """Read the output of `to_json`; None for anything else."""
        if not isinstance(data, dict) or set(data) != {"shown", "prompt", "generic"}:
            return None
        prompt = PromptForm.from_json(data["prompt"])
        generic = PromptForm.from_json({Feature.TOOLS.value: data["generic"]})
        try:
            shown = from_plain(_Learned, data["shown"])
        except ValueError:
            return None
        if prompt is None or generic is None or not (shown.form is None or _is_whole(shown.form)):
            return None
        return cls(
            shown.form,
            shown.unread,
            shown.marks,
            shown.reasoning,
            prompt,
            generic.mends[Feature.TOOLS],
        )


@dataclass(frozen=True)
class _Learned:
    """The part of a profile that is learned from renderings, as plain dataclasses."""

    form: Form | None
    unread: bool
    marks: tuple[str, ...]
    reasoning: Reasoning | None


def learn_profile(apply: Callable[..., str], switch: str) -> TemplateProfile:
    """Learn from the renderings of `apply(messages, tools=..., add_generation_prompt=...)`.

    `switch` is the template's name for the argument that turns reasoning on.
    """
    probe = Probe(apply)
    form, unread = None, False
    try:
        form = learned_form(probe)
    except NoForm as error:
        unread = isinstance(error, UnreadForm)
    marks = shown_marks(probe.whole_prompt())
    example = "" if form is None else call_example(form)
    reasoning, prompt = shown_reasoning(probe, switch), find_prompt_form(apply, example)
    told = not GENERIC_TOOLS.intersection(prompt.start([Feature.TOOLS]))
    generic = find_generic_tools(apply, prompt) if form is None and told else ()
    return TemplateProfile(form, unread, marks, reasoning, prompt, generic)


def _is_whole(form: Form) -> bool:
    """True if a stored form has all that reader and grammar rely on."""
    holes = [piece for piece in form.call if isinstance(piece, Hole)]
    tagged = form.layout in (CallLayout.TAGS, CallLayout.INLINE)
    once = holes.count(Hole.NAME) == holes.count(Hole.ARGUMENTS) == 1
    learned = form.native and form.channels is None and not form.special
    return once and learned and tagged == (form.tags is not None) and bool(form.keys.name)


@cache
def learner() -> str:
    """The version of the learning code, as a digest of its sources: a change learns anew.

    A number to be raised by hand would be forgotten.
    """
    told = blake2b(digest_size=8)
    for folder in (Path(forms.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.glob("*.py")):
            told.update(path.read_bytes())
    return told.hexdigest()

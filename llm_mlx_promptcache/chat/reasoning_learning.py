"""The marks around a model's reasoning, learned from its template, or listed if it hides them.

A template shows them if an answer has a field of reasoning, or if thinking is switched on and off.
Marks that no rendering shows are looked for among the known marks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Container

from .form_probes import ANSWER, FIELDS, THOUGHT, Probe
from .forms import Reasoning, marks_in
from .text_edges import common_start, to_edge

# Marks that models have in their vocabulary while their templates do not show them.
_LISTED = (
    Reasoning("<think>", "</think>"),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<seed:think>", "</seed:think>"),
    Reasoning("<longcat_think>", "</longcat_think>"),
    Reasoning("<mm:think>", "</mm:think>"),
    Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    Reasoning("<|think:start|>", "<|think:end|>"),
    Reasoning("<|channel>thought", "<channel|>"),
    Reasoning("<|inner_prefix|>", "<|inner_suffix|>"),
    Reasoning("<thought>", "</thought>"),
    Reasoning("<thinking>", "</thinking>"),
    Reasoning("<reasoning>", "</reasoning>"),
)


# Marks that prompts name in words to the model; either the prompt opens the reasoning, or it does.
_NAMED = (Reasoning("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),)
_LONGEST_OPENER = 60


def shown_reasoning(probe: Probe, switch: str) -> Reasoning | None:
    """The marks that the template shows, if any; `switch` is its argument that turns them on."""
    for field in FIELDS:
        found = _from_field(probe, field)
        if found is not None:
            return found
    return _from_switch(probe, switch) or _from_prompt(probe)


def listed_reasoning(vocabulary: Container[str]) -> Reasoning | None:
    """The known marks that a vocabulary has; None if it has none of them."""
    return next((r for r in _LISTED if _known(r.start + r.end, vocabulary)), None)


def _known(marks: str, vocabulary: Container[str]) -> bool:
    """True if all marks in brackets are tokens."""
    return all(mark in vocabulary for mark in marks_in(marks) if mark[0] in "<[")


def _from_field(probe: Probe, field: str) -> Reasoning | None:
    text, plain = probe.thought({field: THOUGHT}), probe.plain()
    if text is None or plain is None or text.count(THOUGHT) != 1:
        return None
    head, _, rest = text.partition(THOUGHT)
    middle, found, _ = rest.partition(ANSWER)
    end = _mark(middle, first=True)
    if not found or not end:
        return None
    shared = to_edge(common_start(head, plain.partition(ANSWER)[0]))
    lead = head[len(shared) :].strip()
    start = lead if 0 < len(lead) <= 40 else _mark(head, first=False)
    if (start in plain and end not in plain) or start[:1] not in ("<", "["):
        # That is the turn's own mark: the thought has none, or the prompt has opened it.
        start = _opener(end) or _prompt_opener(probe)
    if start == end or "'" in start + end or (not start and end in plain):
        return None
    return Reasoning(start, end)


def _from_switch(probe: Probe, switch: str) -> Reasoning | None:
    """The marks of a switch: off, the prompt closes a block at once; on, it may open one."""
    on, off = (probe.switched({switch: value}) for value in (True, False))
    if on is None or off is None or on == off:
        return None
    shared = to_edge(common_start(on, off))
    marks = marks_in(off[len(shared) :])
    if len(marks) == 1:
        opened = marks_in(on[len(shared) :]) or (_opener(marks[0]),)
        marks = (opened[0], *marks)
    bracketed = [mark for mark in marks if mark[:1] and mark[0] in "<["]
    return Reasoning(bracketed[0], bracketed[1]) if len(bracketed) == 2 == len(marks) else None


def _from_prompt(probe: Probe) -> Reasoning | None:
    """Known marks that a prompt ends with, or names to the model, or that are cut out."""
    prompt = (probe.prompt() or "").rstrip()
    opened = next((marks for marks in _LISTED if prompt.endswith(marks.start)), None)
    if opened is not None:
        return opened
    if _is_cut_out(probe, _LISTED[0]):
        return _LISTED[0]
    # It may open the reasoning in words of its own.
    whole = probe.whole_prompt()
    named = next((marks for marks in _NAMED if marks.end in whole), None)
    if named is None:
        return None
    return Reasoning(_prompt_opener(probe) or named.start, named.end)


def _is_cut_out(probe: Probe, marks: Reasoning) -> bool:
    """True if reasoning in an answer's text is left out of later prompts."""
    text = probe.earlier(f"{marks.start}\n{THOUGHT}\n{marks.end}\n\n{ANSWER}")
    return text is not None and ANSWER in text and THOUGHT not in text


def _prompt_opener(probe: Probe) -> str:
    """The words that a prompt has behind the head of an answer; empty if there are none."""
    prompt, plain = probe.prompt() or "", probe.plain() or ""
    shared = common_start(prompt, plain.partition(ANSWER)[0])
    words = prompt[len(shared) :].strip()
    is_line = 0 < len(words) <= _LONGEST_OPENER and "\n" not in words
    return words if is_line and not any(mark[0] in "<[" for mark in marks_in(words)) else ""


def _opener(end: str) -> str:
    """`<x>` for `</x>`: the opening mark of a closing one; empty if that can't be told."""
    return end[0] + end[2:] if end[:2] in ("</", "[/") else ""


def _mark(text: str, *, first: bool) -> str:
    """The mark beside the reasoning: in brackets, or a short line of words."""
    marks = [mark for mark in marks_in(text) if mark[0] in "<[" and mark[-1] in ">]"]
    if marks:
        return marks[0 if first else -1]
    line = text.strip()
    return line if first and 0 < len(line) <= 40 else ""

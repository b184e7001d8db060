"""A model's form of calls, learned from its own chat template by rendering it and comparing.

The template is rendered with a call, with two, with other values and with words beside them. The
places of the words put in, and the constant text around them, are the form; it is proved by reading
back odd values as the template writes them. The idea is llama.cpp's (its "autoparser"); no
template's name or text is looked at.
"""

from __future__ import annotations

from dataclasses import replace

from .call_units import Unit, find_call
from .form_probes import (
    ANSWER,
    ARGUMENTS,
    FIELDS,
    ID,
    NAMES,
    OTHER_ID,
    PROOF,
    THOUGHT,
    TOOLS,
    Call,
    Probe,
    Refused,
)
from .form_reading import CallReader
from .forms import (
    ArgumentsAs,
    CallLayout,
    ContentAs,
    Form,
    FormPiece,
    Hole,
    Input,
    NoForm,
    UnreadForm,
    marks_in,
)
from .generated import ToolCall
from .tag_learning import with_tags
from .text_edges import common_end, common_start, from_edge, to_edge

# Kimi's: the only place of a result's tool is its id.
_NAMED_ID: tuple[FormPiece, ...] = ("functions.", Hole.NAME, ":", Hole.COUNT)
_MOST = 28
_NOT_SHOWN = 2  # rank of a reason; a refusal has less, a form that can't be read more
# The dicts to try, the plainest first.
_INPUTS = (
    *(Input(arguments, content) for content in ContentAs for arguments in ArgumentsAs),
    Input(named_ids=True),
    Input(ArgumentsAs.TEXT, named_ids=True),
    *(Input(arguments, follow=True) for arguments in ArgumentsAs),
)


def learned_form(probe: Probe) -> Form:
    """The form in which a template shows calls; `probe` may be one that others use too.

    NoForm gives the reason if there is none. At most some 30 renderings are made.
    """
    reasons = {"calls are refused": 0}
    for one in _INPUTS:
        given = replace(one, parts=probe.parts)
        if probe.renderings > _MOST:
            break
        try:
            text = probe.calls(given, [Call(NAMES[0], ARGUMENTS[0], ID)])
        except Refused as error:
            reasons.setdefault(f"calls are refused ({error})", 1)
            continue
        if ARGUMENTS[0]["alpha_key"] not in text:
            reasons["calls are not shown"] = _NOT_SHOWN
            continue
        try:
            return _proved(_learned(probe, given, text), probe)
        except NoForm as error:
            reasons.setdefault(str(error), _NOT_SHOWN + probe.renderings)
    reason = max(reasons, key=lambda reason: reasons[reason])
    raise (UnreadForm if reasons[reason] > _NOT_SHOWN else NoForm)(reason)


def _learned(probe: Probe, given: Input, one: str) -> Form:
    unit = find_call(one, Call(NAMES[0], ARGUMENTS[0], ID), given)
    if unit is None:
        raise NoForm("a call's name and arguments are not found in what is shown")
    two = _two(probe, given)
    form = _framed(probe, given, one, unit, two)
    if unit.layout in (CallLayout.TAGS, CallLayout.INLINE):
        form = with_tags(probe, given, form, one, unit)
    return form


def _two(probe: Probe, given: Input) -> tuple[str, Unit, Unit] | None:
    """Two calls in one answer, if the template shows both."""
    calls = [Call(NAMES[0], ARGUMENTS[0], ID), Call(NAMES[1], ARGUMENTS[1], OTHER_ID)]
    try:
        text = probe.calls(given, calls)
    except Refused:
        return None
    if ARGUMENTS[1]["alpha_key"] not in text:
        return None
    cut = text.find(ARGUMENTS[1]["alpha_key"])
    first = find_call(text[:cut], calls[0], given, text) or find_call(text, calls[0], given)
    second = find_call(text, calls[1], given, start=first.end if first else 0)
    return (text, first, second) if first and second and second.start >= first.end else None


def _framed(
    probe: Probe, given: Input, one: str, unit: Unit, two: tuple[str, Unit, Unit] | None
) -> Form:
    """The form with the text around a call, between two, and around all of them."""
    before, after = one[: unit.start], one[unit.end :]
    start, end = _start(probe, given, one, unit), _end(probe, after, given)
    head, foot, between = start, end, ""
    if two is not None:
        text, first, second = two
        middle = text[first.end : second.start]
        head = from_edge(common_end(start, middle).lstrip())
        foot = to_edge(common_start(after, middle)[: len(middle) - len(head)].rstrip())
        between = middle[len(foot) : len(middle) - len(head)]
        start = start.removesuffix(head)
        ends = [end, _end(probe, text[second.end :], given)]
        # Some close all calls behind the first one only if others follow.
        end = max((one[len(foot) :] for one in ends if one.startswith(foot)), key=len, default="")
    else:
        start, end = "", ""
    prompt = probe.prompt()
    if not (start + head).strip() and between and prompt and prompt.endswith(between):
        # The prompt has written the first call's mark; a second call shows it.
        head, between = between, ""
    pieces, id = _counted(unit, two, head, given, before)
    head = pieces[0] if isinstance(pieces[0], str) else ""
    return Form(
        unit.layout,
        tuple(piece for piece in (*pieces, foot) if piece != ""),
        start,
        between,
        end,
        unit.keys,
        id=id,
        parallel=two is not None,
        input=given,
        words=_words(probe, given),
    )


def _counted(
    unit: Unit, two: tuple[str, Unit, Unit] | None, head: str, given: Input, before: str
) -> tuple[tuple[FormPiece, ...], tuple[FormPiece, ...]]:
    """The pieces with the head, and those of an id; a number that counts is a hole."""
    pieces = unit.pieces
    if given.named_ids:
        # The id was `functions.NAME:0`: so the count stands right behind the name.
        middle = pieces[1]
        if isinstance(middle, str) and middle.startswith(":0") and head.endswith("functions."):
            return (head, Hole.NAME, ":", Hole.COUNT, middle[2:], *pieces[2:]), _NAMED_ID
        return (head, *pieces), ()
    own = Hole.ID in pieces or bool(unit.keys.id)
    if two is not None and not own:
        _, first, second = two
        for index, (a, b) in enumerate(zip(first.pieces, second.pieces, strict=False)):
            if a != b and isinstance(a, str) and isinstance(b, str):
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), -1)
                if at >= 0 and a[at].isdigit() and b[at].isdigit():
                    made = (*pieces[:index], a[:at], Hole.COUNT, a[at + 1 :], *pieces[index + 1 :])
                    named = index == 1 and a[:at] == ":" and head.endswith("functions.")
                    return (head, *made), _NAMED_ID if named else ()
    return (head, *pieces), ((Hole.ID,) if own else ())


def _start(probe: Probe, given: Input, one: str, unit: Unit) -> str:
    """The text before the first call that belongs to it.

    That is the text before it both behind other words and without them; if the template shows no
    words beside calls, the text that a plain answer does not begin with.
    """
    lead = one[: unit.start]
    starts = []
    beside = probe.beside(given)
    if beside is not None:
        found = find_call(beside, Call(NAMES[0], ARGUMENTS[0], ID), given)
        words = beside.find(ANSWER)
        if found is not None and 0 <= words < found.start:
            behind = beside[words + len(ANSWER) : found.start]
            starts.append(common_end(lead, behind).lstrip())
    plain = probe.plain()
    if plain is not None:
        shared = to_edge(common_start(lead, plain.partition(ANSWER)[0]))
        starts.append(lead[len(shared) :].lstrip())
    prompt = probe.prompt()
    if prompt is not None and lead.startswith(prompt):
        starts.append(lead[len(prompt) :].lstrip())
    if not starts:
        raise NoForm("what belongs to a call can't be told from the turn")
    return from_edge(min(starts, key=len))


def _words(probe: Probe, given: Input) -> str:
    """The mark in front of an answer's words, if the prompt does not write it."""
    prompt, beside = probe.prompt(), probe.beside(given)
    plain = probe.plain()
    for text in (beside, plain):
        if prompt is None or text is None or not text.startswith(prompt):
            continue
        lead = text[len(prompt) :].partition(ANSWER)
        if lead[1] and len(marks_in(lead[0])) == 1 and _apart(lead[0], probe):
            return lead[0].strip()
    return ""


def _apart(lead: str, probe: Probe) -> bool:
    """True if a mark in front of words is not the end of a thought."""
    if lead.lstrip().startswith(("</", "[/")):
        return False
    text = probe.thought(dict.fromkeys(FIELDS, THOUGHT)) or ""
    behind = text.partition(THOUGHT)[2].partition(ANSWER)[0]
    return lead.strip() not in behind and lead.strip() not in text.partition(THOUGHT)[0]


def _end(probe: Probe, after: str, given: Input) -> str:
    """The text behind the last call that does not end the turn."""
    plain = probe.plain()
    if plain is None:
        return "" if given.follow else after
    tail = plain.partition(ANSWER)[2]
    if given.follow:
        return after.partition(tail.strip())[0] if tail.strip() in after else ""
    if tail and after.endswith(tail):
        return after[: len(after) - len(tail)]
    # A turn that ends with a call may end with another, unknown mark; but a mark that
    # ends an answer or begins the next turn is no call's.
    turns = [*marks_in(tail)[:1], *marks_in(probe.prompt() or "")]
    starts = [at for mark in turns if mark[0] == "<" and (at := after.find(mark)) >= 0]
    return after[: min(starts, default=len(after))]


def _proved(form: Form, probe: Probe) -> Form:
    """The form itself, once it has read back the template's text; NoForm if it can't."""
    for calls in PROOF if form.parallel else [calls[:1] for calls in PROOF]:
        try:
            text = probe.calls(form.input, calls)
        except Refused:
            continue
        opening = (form.start + form.head).strip()
        at = text.find(opening) if opening else text.find(calls[0].name)
        reader = CallReader(form, TOOLS)
        reader.feed(text[max(at, 0) :])
        read = [
            (call.name, dict(call.arguments))
            for call in reader.finish(whole=True).calls
            if isinstance(call, ToolCall)
        ]
        if read != [(call.name, call.arguments) for call in calls]:
            raise NoForm("what the template writes is not read back")
    return form

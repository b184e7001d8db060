"""The gain from drafts with one model on this machine: passes and speed, with them and without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..engine.events import Finished

_LINE = "shelf {n}: book {m} of {d} pages, lent to reader {r}"
_REWRITE = "Write this list again, word for word, but with `box` in place of `shelf`:\n{lines}"
_PROSE = "Tell a short story about a lighthouse keeper and a storm."
_COLUMNS = ("answer", "tokens", "passes", "without", "tokens a second", "without", "ratio", "same")


class DraftedAnswer(NamedTuple):
    """One answer with drafts and without: tokens, passes, and tokens a second after the first."""

    answer: str
    tokens: int
    passes: int
    passes_without: int
    rate: float
    rate_without: float
    same: bool

    @property
    def ratio(self) -> float:
        """The factor by which the answer came faster."""
        return self.rate / self.rate_without


def draft_prompts() -> dict[str, str]:
    """Prompts by the name of their answer: one answer that copies, and one that does not."""
    lines = "\n".join(
        _LINE.format(n=n, m=n * 37 % 100, d=n * 91 % 400, r=n * 17 % 60) for n in range(1, 9)
    )
    return {"a list with one word changed": _REWRITE.format(lines=lines), "prose": _PROSE}


def compared(name: str, drafted: Finished, plain: Finished) -> DraftedAnswer:
    """An answer compared with the one without drafts."""
    same = drafted.ids == plain.ids
    passes = drafted.usage.generated - drafted.usage.accepted
    generated = plain.usage.generated
    return DraftedAnswer(name, generated, passes, generated, _rate(drafted), _rate(plain), same)


def drafts_table(answers: Sequence[DraftedAnswer]) -> str:
    """Markdown: a line for each answer."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---|" + "--:|" * (len(_COLUMNS) - 1)]
    lines += [
        f"| {one.answer} | {one.tokens} | {one.passes} | {one.passes_without} | {one.rate:.0f}"
        f" | {one.rate_without:.0f} | {one.ratio:.2f} | {'yes' if one.same else 'NO'} |"
        for one in answers
    ]
    return "\n".join(lines)


def drafts_json(answers: Sequence[DraftedAnswer]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [{**one._asdict(), "ratio": one.ratio} for one in answers]


def _rate(answer: Finished) -> float:
    return max(answer.usage.generated - 1, 1) / max(answer.timings.decode, 1e-9)

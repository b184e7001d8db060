"""Terms: what all ranks settle once the model is loaded, before the first request.

All of it decides how often the model is called, and with what: where they differed they would hang.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..cache.layers.device_memory import active
from ..cache.layers.layout import Cuts, NotCached, cuts_of, layout_of, position_of
from ..models.layers import make_layers
from ..models.needs import needs_of
from .admission import RequestMemory
from .batch_layers import can_batch, can_group

if TYPE_CHECKING:
    from .ranks import Ranks

_CUTS: Final = (Cuts.ANYWHERE, Cuts.IN_CHUNKS, Cuts.NOWHERE)
_MOST_TOKENS: Final = 1 << 31


class Terms(NamedTuple):
    """The least that all ranks can do.

    `uncached` says that one of them keeps nothing. `tokens` of a conversation fit on all of them;
    here `tokens_here` would. `batches` and `groups` say in which forms answers may go together.
    """

    cuts: Cuts
    position_known: bool
    uncached: str
    tokens: int
    tokens_here: int
    batches: bool
    groups: bool

    def memory(self, memory: RequestMemory) -> RequestMemory:
        """The share of requests here that lets them fit on every rank."""
        if self.tokens >= self.tokens_here:
            return memory
        limit = int(memory.limit * self.tokens / self.tokens_here)
        return RequestMemory(limit, refuses=memory.refuses)


def settle_terms(
    ranks: Ranks, model: Any, fingerprint: str, uncached: str, memory: RequestMemory | None
) -> Terms:
    """Called by every rank, which waits for all to have loaded; GroupEnded where they can't go on.

    `fingerprint` says what the model's files hold: weights, tokenizer and template must be the
    same on all ranks, and so must the versions of what runs them.
    """
    ranks.held = active()
    with ranks.loading():
        ranks.check_alike(
            {
                "the model's files": fingerprint[:16],
                "mlx": version("mlx"),
                "mlx-lm": version("mlx-lm"),
                "llm-mlx-promptcache": version("llm-mlx-promptcache"),
            }
        )
    layers = make_layers(model)
    cuts, known, why = Cuts.ANYWHERE, True, uncached
    try:
        layout = layout_of(layers)
        cuts, known = cuts_of(layout), position_of(layout, layers) is not None
    except NotCached as reason:
        why = why or str(reason)
    needs = needs_of(model)
    limit = (memory or RequestMemory.of_machine()).limit
    tokens = _MOST_TOKENS if needs is None else needs.fitting(limit)
    least, most = ranks.agree(
        _CUTS.index(cuts), known, bool(why), tokens, can_batch(layers), can_group(layers)
    )
    if most[2] and not why:
        why = "another rank keeps nothing of this model"
    return Terms(
        _CUTS[most[0]], bool(least[1]), why, least[3], tokens, bool(least[4]), bool(least[5])
    )

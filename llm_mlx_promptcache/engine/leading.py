"""Leader: rank 0's side of a model that several ranks run.

Rank 0's scheduler decides all: who is let in, when a chunk ends, which answers step together, what
a grammar forces. Whatever touches layers or the model is told as it is done, and the others do the
same to theirs (`followers.py`): leases, chunks, passes, insertions. They need no clock, no grammar
and no sampler. A token is chosen here alone, and reaches the others inside the graph.

Any error in the model's work is the group's end: nobody knows how far the others got.

    ranks = meet(group, address, secret, name, on_end=...)
    joined = connect(ranks)  # on the thread of the engine, as all that follows
    loaded = load_shard(reference, group, joined, report, step)
    identity = rank_identity(Identity(found.model, found.rows), ranks)
    report = LoadReport(name, seconds, found.uncached, ahead, memory)
    parts = Leader(ranks, joined).parts(loaded, identity, cache, report)  # waits for all ranks
    Scheduler(loaded, identity, parts, report)

`on_end` may be called on any thread, while the engine's hangs in a collective: it tells those who
ask, then ends the process. A group is closed (`ranks.close`) behind the engine's `close`, and never
loads again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import mlx.nn as nn

from ..cache.forgetting import Forgotten, Moment
from ..cache.identity import Identity
from ..cache.insertion import Rows
from ..cache.layers.device_memory import active
from ..cache.prompt_cache import PromptCache
from ..cache.trie import common_prefix
from ..models.facts import model_facts
from ..models.loading import LoadedModel
from .admission import RequestMemory
from .agreed_kv import AgreedKV, Belongings
from .batch import Batch
from .batch_layers import BatchForm
from .batch_probe import BatchProof, Verdict, prove
from .batches import Batches
from .chunks import ChunkPlanner
from .drafting import NO_DRAFTS, NoDrafting
from .group import GroupEnded
from .kv import KVHandle
from .parts import LoadReport, Parts
from .preparation import Prepared
from .slots import Slot, Step
from .terms import Terms, settle_terms

if TYPE_CHECKING:
    from .batch import LayersState
    from .ranks import Ranks


class Leader:
    """Tells the other ranks; `joined` is MLX's group. Used on the engine's thread only."""

    def __init__(self, ranks: Ranks, joined: Any) -> None:
        self._ranks = ranks
        self._joined = joined
        self._numbers = 0
        self._stepped: int | None = None  # the batch that an empty word steps

    def parts(
        self, loaded: LoadedModel, identity: Identity, cache: PromptCache, report: LoadReport
    ) -> Parts:
        """The parts of a scheduler that leads, once all ranks have loaded; GroupEnded."""
        model, memory = loaded.model, report.memory or RequestMemory.of_machine()
        terms = settle_terms(self._ranks, model, identity.model, report.uncached, memory)
        return Parts(
            LedKV(model, Belongings(cache, report.name, identity.rows), self, terms),
            LedBatches(model, LedProof(model, identity.model, self, terms), self),
            NoDrafting(NO_DRAFTS),
            # A part of a model is faster than the whole.
            ChunkPlanner(identity.rows),
            terms.memory(memory),
        )

    @property
    def ranks(self) -> Ranks:
        """The group's words."""
        return self._ranks

    def tell(self, do: str, **facts: Any) -> None:
        """Tell the others what is done now; what they are not told of is nothing, or None."""
        self._ranks.tell({"do": do, **facts})

    def tell_chunk(self, handle: int, start: int, end: int) -> None:
        """Tell them of a chunk of a prompt."""
        self._ranks.tell({"c": [handle, start, end]})

    def tell_step(self, batch: int, run: list[int] | None, least: int) -> None:
        """Tell them of a pass: over the token that was chosen last, or over a run of known ones."""
        word: dict[str, Any] = {} if batch == self._stepped else {"b": batch}
        if run is not None:
            word |= {"r": run, "l": least}
        self._stepped = batch
        self._ranks.tell(word)

    def share(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """The tokens, as all ranks will have them; nothing is evaluated."""
        return shared(tokens.astype(mx.int32), logits, self._joined)

    def number(self, one: mx.array) -> float:
        """A scalar as it is here, on every rank."""
        return cast("float", shared(one.astype(mx.float32), one, self._joined).item())

    def next_number(self) -> int:
        """A number that nothing told of has had."""
        self._numbers += 1
        return self._numbers

    @contextmanager
    def doing(self) -> Iterator[None]:
        """Watch what the model does inside: what goes wrong there ends the group. GroupEnded."""
        try:
            with self._ranks.step():
                yield
        except GroupEnded:
            raise
        except Exception as error:
            raise self.failed(error) from error
        self._ranks.held = active()

    def failed(self, error: BaseException) -> GroupEnded:
        """The end of the group for an error of this rank's; to be raised."""
        return self._ranks.failed(error)


def shared(part: mx.array, behind: mx.array, joined: Any) -> mx.array:
    """The sum of all ranks' parts, all of them nothing but rank 0's; nothing is evaluated.

    It comes behind an array that the model computed, whatever the part is made of: else the ranks'
    collectives would not come in one order.
    """
    (part,) = mx.depends([part], [behind])
    summed: mx.array = mx.distributed.all_sum(part, group=joined)
    return summed


class LedKV(AgreedKV):
    """Rank 0's leases and insertions, which the others make too."""

    def __init__(self, model: Any, mine: Belongings, leader: Leader, terms: Terms) -> None:
        super().__init__(model, mine, leader.ranks, terms)
        self._leader = leader
        # Of each handle that the others hold, the path that they know.
        self._told: dict[int, array[int]] = {}
        # Of each namespace here what it is made of; the others' have other names.
        self._made_of: dict[str, dict[str, Any]] = {mine.identity: {"cache_salt": "", "kv": None}}
        self._rests = True

    def lease(
        self,
        prepared: Prepared,
        ids: array[int],
        rows: Rows,
        speed: float | None = None,
        asked: Moment | None = None,
    ) -> KVHandle:
        """`KVManager.lease`, on all ranks."""
        facts: dict[str, Any] = {"rows": rows.name, "speed": speed}
        if asked is not None and asked.forgotten < self._cache.moment().forgotten:
            facts["forgotten"] = True  # it was asked before, so nothing of it is kept
        number = self._tell_lease("lease", prepared, ids, facts)
        with self._leader.doing():
            handle = super().lease(prepared, ids, rows, speed, asked)
        handle.number = number
        return handle

    def lease_ahead(self, prepared: Prepared, ids: array[int], since: Moment) -> KVHandle:
        """`KVManager.lease_ahead`, on all ranks."""
        number = self._tell_lease("lease_ahead", prepared, ids, {})
        with self._leader.doing():
            handle = super().lease_ahead(prepared, ids, since)
        handle.number = number
        return handle

    def running(self, handle: KVHandle, start: int, end: int) -> AbstractContextManager[None]:
        """Tokens of its prompt are run inside, by all ranks."""
        self._leader.tell_chunk(handle.number, start, end)
        return self._leader.doing()

    def insert(self, handle: KVHandle, path: array[int], rows: Rows = Rows.KEEP_OUT) -> None:
        """`KVManager.insert`, on all ranks."""
        self._leader.tell("insert", rows=rows.name, **self._path(handle, path))
        super().insert(handle, path, rows)

    def insert_prompt(self, handle: KVHandle, path: array[int], *, others: bool) -> None:
        """`KVManager.insert_prompt`, on all ranks."""
        self._leader.tell("insert_prompt", others=others, **self._path(handle, path))
        super().insert_prompt(handle, path, others=others)

    def release(self, handle: KVHandle, path: array[int]) -> None:
        """`KVManager.release`, on all ranks."""
        self._leader.tell("release", **self._path(handle, path))
        self._told.pop(handle.number, None)
        super().release(handle, path)

    def quantise(self, handle: KVHandle, done: int) -> None:
        """`KVManager.quantise`, on all ranks."""
        kv = handle.prepared.request.kv
        if kv is not None and done == kv.start:
            self._leader.tell("quantise", h=handle.number, done=done)
        super().quantise(handle, done)

    def pin(self, handle: KVHandle, path: array[int]) -> None:
        """`KVManager.pin`, on all ranks."""
        self._leader.tell("pin", **self._path(handle, path))
        super().pin(handle, path)

    def drop(self, handle: KVHandle) -> None:
        """`KVManager.drop`, on all ranks."""
        self._leader.tell("drop", h=handle.number)
        self._told.pop(handle.number, None)
        super().drop(handle)

    def set_pinned(self, namespace: str, path: array[int], *, pinned: bool) -> bool | None:
        """`KVManager.set_pinned`, on all ranks; None for a namespace not asked in since then."""
        made_of = self._made_of.get(namespace)
        if made_of is None:
            return None
        self._leader.tell("set_pinned", ids=path.tolist(), pinned=pinned, **made_of)
        with self._leader.doing():
            return super().set_pinned(namespace, path, pinned=pinned)

    def forget(self, days: float | None = None) -> Forgotten:
        """`KVManager.forget`, on all ranks."""
        self._leader.tell("forget", days=days)
        with self._leader.doing():
            return super().forget(days)

    def flush(self, *, last: bool = False) -> None:
        """`KVManager.flush`, on all ranks."""
        self._leader.tell("flush", last=last)
        super().flush(last=last)

    def rest(self) -> None:
        """Nobody asks any more for a while: nor do the others hold what answers need."""
        if not self._rests:
            self._rests = True
            self._leader.tell("rest")

    def _tell_lease(
        self, do: str, prepared: Prepared, ids: array[int], facts: dict[str, Any]
    ) -> int:
        """Tell of a request what its layers depend on; returns the number that they know it by."""
        self._rests = False
        number = self._leader.next_number()
        request = prepared.request
        ends: dict[str, list[int]] = {}
        for boundary in prepared.transcript.boundaries:
            ends.setdefault(boundary.tier, []).append(boundary.position)
        asked = {
            "cache_salt": request.cache_salt,
            "kv": None if request.kv is None else list(request.kv),
            "cache": request.use_cache,
            "disk": request.on_disk,
            "limit": prepared.limit,
        }
        made_of = {name: asked[name] for name in ("cache_salt", "kv")}
        self._made_of[prepared.namespace] = made_of
        self._made_of[prepared.plain_namespace] = {**made_of, "kv": None}
        self._leader.tell(do, h=number, ids=ids.tolist(), ends=ends, **asked, **facts)
        self._told[number] = ids
        return number

    def _path(self, handle: KVHandle, path: array[int]) -> dict[str, Any]:
        """A path of a handle, told as what is new of it."""
        told = self._told.get(handle.number, array("I"))
        same = common_prefix(told, path)
        if same < len(path):
            self._told[handle.number] = path
        return {"h": handle.number, "same": same, "new": path[same:].tolist()}


class LedBatches(Batches):
    """Rank 0's batches: who joins, steps and leaves, the others are told."""

    def __init__(self, model: nn.Module, proof: BatchProof, leader: Leader) -> None:
        super().__init__(model, proof)
        self._leader = leader

    def give_up(self) -> list[Slot]:
        """`Batches.give_up`, on all ranks."""
        self._leader.tell("give_up")
        return super().give_up()

    def layers_of(self, slot: Slot) -> list[Any]:
        """`Batches.layers_of`, on all ranks."""
        self._leader.tell("layers_of", h=slot.number)
        return super().layers_of(slot)

    def leave(self, slot: Slot, behind: int = 0) -> list[Any]:
        """`Batches.leave`, on all ranks."""
        self._leader.tell("leave", h=slot.number, behind=behind)
        layers = super().leave(slot, behind)
        if behind:
            with self._leader.doing():  # a pass may have been made again
                mx.eval([layer.state for layer in layers])
        return layers

    def suspend(self, slot: Slot) -> list[Any]:
        """`Batches.suspend`, on all ranks."""
        self._leader.tell("leave", h=slot.number, behind=0)
        return super().suspend(slot)

    def _begun(self, slot: Slot, layers: list[Any]) -> Batch:
        return LedBatch(self._model, slot, layers, self._leader)

    def _failed(self, slots: list[Slot], error: Exception, state: LayersState) -> list[Step]:
        raise self._leader.failed(error) from error


class LedBatch(Batch):
    """One of them: each pass is told, and behind each pass tokens are shared."""

    def __init__(self, model: nn.Module, slot: Slot, layers: list[Any], leader: Leader) -> None:
        super().__init__(model, slot, layers)
        self._leader = leader
        self._number = leader.next_number()
        self._run_told: tuple[list[int], int] | None = None
        self._unshared: mx.array | None = None  # logits behind which nothing was shared yet
        leader.tell("begin", b=self._number, h=slot.number, last=slot.last)

    def join(self, slot: Slot, layers: list[Any], form: BatchForm) -> None:
        """`Batch.join`, on all ranks."""
        self._leader.tell("join", b=self._number, h=slot.number, last=slot.last, form=form.value)
        super().join(slot, layers, form)

    def step(self) -> list[Step]:
        """`Batch.step`, on all ranks; whatever goes wrong in it ends the group."""
        with self._leader.doing():
            return super().step()

    def _run(self, tokens: list[int], least: int, *, masked: bool) -> mx.array:
        self._run_told = tokens, least
        logits = super()._run(tokens, least, masked=masked)
        if self._leader.ranks.group.split == "pipeline":
            self._ran = None  # stages of other kinds would go back in other ways
        return logits

    def _pass(self, tokens: mx.array, *, masked: bool) -> mx.array:
        if self._unshared is not None:  # the others share behind each pass
            likeliest = mx.argmax(self._unshared, axis=-1)
            mx.async_eval(self._leader.share(likeliest, self._unshared))  # type: ignore[no-untyped-call]
        (run, least), self._run_told = self._run_told or (None, 0), None
        self._leader.tell_step(self._number, run, least)
        self._unshared = super()._pass(tokens, masked=masked)
        return self._unshared

    def _chosen(self, logits: mx.array) -> mx.array:
        self._unshared = None
        return self._leader.share(super()._chosen(logits), logits)

    def _quantise(self, slot: Slot) -> None:
        if slot.kv is not None and len(slot.path) == slot.kv.start:
            self._leader.tell("quantise_batch", b=self._number)
        super()._quantise(slot)


class LedProof(BatchProof):
    """The form of batches on all ranks, found by asking the model with all of them."""

    def __init__(self, model: nn.Module, identity: str, leader: Leader, terms: Terms) -> None:
        super().__init__(model, identity, model_facts())
        self._leader = leader
        self._terms = terms

    def _remembered(self) -> Verdict | None:
        if not self._terms.batches:
            return Verdict(BatchForm.ALONE, "a rank's layers have no batched form", lasting=False)
        known = super()._remembered()
        grouped = known is not None and known.form is BatchForm.GROUPED
        return None if grouped and not self._terms.groups else known

    def _asked(self) -> Verdict:
        grouped = self._terms.groups
        self._leader.tell("prove", grouped=grouped)
        with self._leader.doing():
            return prove(self._model, self._leader.number, grouped=grouped)

"""Follower: what rank 0 decided, done by another rank, word by word.

    joined = connect(ranks)
    loaded = load_shard(reference, ranks.group, joined)
    identity = rank_identity(Identity(found.model, found.rows), ranks)
    follow(ranks, joined, FollowerParts(loaded, identity, cache, name))    # until rank 0 closes

It has layers, batches and a cache of its own, and no request: no text, no grammar, no sampler. Each
word is one thing that rank 0 does to its own at the same moment (`leading.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import mlx.core as mx

from ..cache.forgetting import Moment
from ..cache.identity import Identity, namespace_of
from ..cache.insertion import Rows
from ..cache.layers.device_memory import POOL_OF_STEPS, active, trim_pool
from ..cache.prompt_cache import PromptCache
from ..chat.transcript import Boundary, Tier, Transcript
from ..models.kv_settings import KVSettings
from ..models.layers import weights_in
from ..models.loading import LoadedModel
from ..models.quantisation import quantise
from .agreed_kv import AgreedKV, Belongings
from .batch import Batch
from .batch_layers import BatchForm
from .batch_probe import prove
from .forward import prefill
from .group import GroupEnded
from .kv import KVHandle
from .leading import shared
from .preparation import Prepared
from .request import GenerationRequest, Sampling
from .sampler import Sampler
from .slots import Slot
from .terms import settle_terms
from .wired import WIRED

if TYPE_CHECKING:
    from .admission import RequestMemory
    from .ranks import Ranks

_NEVER = -1  # before anything was forgotten
_TIERS: tuple[Tier, ...] = ("system", "user", "assistant")


def rank_identity(identity: Identity, ranks: Ranks) -> Identity:
    """A model's identity on one rank: its rows are a part's, and belong to no other part.

    What the model is stays the same, so that a chat begun on one machine keeps its exact ids.
    """
    return identity._replace(rows=namespace_of(identity.rows, ranks.group.shard))


class FollowerParts(NamedTuple):
    """A follower's means: its part of the model, and its cache.

    `identity` is `rank_identity`'s, `name` the model's for people, `uncached` why nothing of it
    may be kept; `memory` is what requests may take, None for what there is.
    """

    loaded: LoadedModel
    identity: Identity
    cache: PromptCache
    name: str = ""
    uncached: str = ""
    memory: RequestMemory | None = None


def follow(ranks: Ranks, joined: Any, parts: FollowerParts) -> None:
    """Do what rank 0 tells until it closes the group; GroupEnded where that ends otherwise.

    At the end all that was promised to the disk is there. Called by the thread that loaded the
    model, with the group as `connect` gave it (`joined`).
    """
    follower = Follower(ranks, joined, parts)
    while (word := ranks.hear()) is not None:
        try:
            with ranks.step():
                follower.do(word)
        except GroupEnded:
            raise
        except Exception as error:
            raise ranks.failed(error) from error
        ranks.held = active()
    parts.cache.flush()


class Follower:
    """One rank's layers and batches; `do` takes a word."""

    def __init__(self, ranks: Ranks, joined: Any, parts: FollowerParts) -> None:
        loaded, identity = parts.loaded, parts.identity
        self._ranks = ranks
        self._joined = joined
        self._model = loaded.model
        self._rows_identity = identity.rows
        terms = settle_terms(ranks, loaded.model, identity.model, parts.uncached, parts.memory)
        mine = Belongings(parts.cache, parts.name, identity.rows)
        self._kv = AgreedKV(loaded.model, mine, ranks, terms)
        self._weights = weights_in(loaded.model)
        self._handles: dict[int, KVHandle] = {}
        self._paths: dict[int, array[int]] = {}
        self._slots: dict[int, Slot] = {}
        self._batches: dict[int, FollowedBatch] = {}
        self._stepped = 0  # the batch that an empty word steps

    def do(self, word: Mapping[str, Any]) -> None:
        """One thing that rank 0 does; what goes wrong in it is raised."""
        if "do" in word:
            _WORDS[word["do"]](self, word)
        elif "c" in word:
            self._chunk(*word["c"])
        else:
            self._step(word)

    # Prompts.

    def _lease(self, word: Mapping[str, Any]) -> None:
        WIRED.hold(id(self), self._weights)
        prepared = self._prepared(word)
        ids, number = prepared.transcript.ids, word["h"]
        asked = Moment(0, _NEVER) if "forgotten" in word else None
        handle = self._kv.lease(prepared, ids, Rows[word["rows"]], word["speed"], asked)
        self._handles[number], self._paths[number] = handle, ids

    def _lease_ahead(self, word: Mapping[str, Any]) -> None:
        prepared = self._prepared(word)
        ids, number = prepared.transcript.ids, word["h"]
        self._handles[number] = self._kv.lease_ahead(prepared, ids, self._kv.moment())
        self._paths[number] = ids

    def _chunk(self, number: int, start: int, end: int) -> None:
        ids = self._paths[number][start:end]
        prefill(self._model, self._handles[number].layers, ids)

    def _insert(self, word: Mapping[str, Any]) -> None:
        self._kv.insert(self._handles[word["h"]], self._path(word), Rows[word["rows"]])
        if word["h"] in self._slots:  # what is answered now lent its layers for this
            self._handles[word["h"]].layers = []

    def _insert_prompt(self, word: Mapping[str, Any]) -> None:
        handle, path = self._handles[word["h"]], self._path(word)
        self._kv.insert_prompt(handle, path, others=word["others"])

    def _release(self, word: Mapping[str, Any]) -> None:
        path = self._path(word)
        del self._paths[word["h"]]
        self._kv.release(self._handles.pop(word["h"]), path)
        trim_pool()

    def _quantise(self, word: Mapping[str, Any]) -> None:
        self._kv.quantise(self._handles[word["h"]], word["done"])

    def _pin(self, word: Mapping[str, Any]) -> None:
        with suppress(ValueError):  # rank 0 has the same error, and an asker to tell
            self._kv.pin(self._handles[word["h"]], self._path(word))

    def _set_pinned(self, word: Mapping[str, Any]) -> None:
        namespace, _ = self._namespaces(word["cache_salt"], word["kv"])
        self._kv.set_pinned(namespace, array("I", word["ids"]), pinned=word["pinned"])

    def _forget(self, word: Mapping[str, Any]) -> None:
        self._kv.forget(word["days"])

    def _flush(self, word: Mapping[str, Any]) -> None:
        self._kv.flush(last=word["last"])
        trim_pool()

    def _rest(self, word: Mapping[str, Any]) -> None:
        try:
            WIRED.release(id(self))
        finally:
            trim_pool()

    # Answers.

    def _begin(self, word: Mapping[str, Any]) -> None:
        slot, layers = self._answer(word)
        self._batches[word["b"]] = FollowedBatch(self._model, slot, layers)

    def _join(self, word: Mapping[str, Any]) -> None:
        slot, layers = self._answer(word)
        self._batches[word["b"]].join(slot, layers, BatchForm(word["form"]))

    def _answer(self, word: Mapping[str, Any]) -> tuple[Slot, list[Any]]:
        """An answer's slot, and the layers that it takes along."""
        handle = self._handles[word["h"]]
        sampler = Sampler(Sampling(), (), ())  # which chooses nothing
        slot = Slot(array("I"), word["last"], sampler, 0, kv=handle.prepared.request.kv)
        self._slots[word["h"]] = slot
        layers, handle.layers = handle.layers, []
        return slot, layers

    def _step(self, word: Mapping[str, Any]) -> None:
        self._stepped = word.get("b", self._stepped)
        batch = self._batches[self._stepped]
        logits = batch.run(word["r"], word["l"]) if "r" in word else batch.run_chosen()
        if self._ranks.group.split == "pipeline":
            batch.forget_run()
        nothing = mx.zeros((logits.shape[0],), mx.int32)
        batch.choose(shared(nothing, logits, self._joined))
        trim_pool(POOL_OF_STEPS)

    def _layers_of(self, word: Mapping[str, Any]) -> None:
        slot = self._slots[word["h"]]
        self._handles[word["h"]].layers = self._batch_of(slot).layers_of(slot)

    def _leave(self, word: Mapping[str, Any]) -> None:
        slot = self._slots.pop(word["h"])
        batch = self._batch_of(slot)
        layers = batch.leave(slot, word["behind"])
        if word["behind"]:
            mx.eval([layer.state for layer in layers])
        self._handles[word["h"]].layers = layers
        if not batch.slots:
            self._batches = {at: one for at, one in self._batches.items() if one is not batch}

    def _quantise_batch(self, word: Mapping[str, Any]) -> None:
        self._batches[word["b"]].quantise_now()

    def _give_up(self, word: Mapping[str, Any]) -> None:
        for held in (self._handles, self._paths, self._batches, self._slots):
            held.clear()

    def _drop(self, word: Mapping[str, Any]) -> None:
        del self._handles[word["h"]], self._paths[word["h"]]

    def _prove(self, word: Mapping[str, Any]) -> None:
        prove(self._model, self._number, grouped=word["grouped"])

    def _number(self, one: mx.array) -> float:
        """A scalar as rank 0 has it."""
        return cast("float", shared(mx.zeros(one.shape, mx.float32), one, self._joined).item())

    # What a word names.

    def _batch_of(self, slot: Slot) -> FollowedBatch:
        return next(batch for batch in self._batches.values() if slot in batch.slots)

    def _path(self, word: Mapping[str, Any]) -> array[int]:
        path = self._paths[word["h"]][: word["same"]] + array("I", word["new"])
        if word["new"]:
            self._paths[word["h"]] = path
        return path

    def _namespaces(self, cache_salt: str, kv: list[Any] | None) -> tuple[str, str]:
        """The namespaces here of rows as they are asked for, and of plain ones."""
        settings = None if kv is None else (kv[0], kv[1] or 0, kv[2])
        named = namespace_of(self._rows_identity, cache_salt, settings)
        return named, namespace_of(self._rows_identity, cache_salt)

    def _prepared(self, word: Mapping[str, Any]) -> Prepared:
        """A request as far as its layers depend on it: ids and boundaries, and nothing said."""
        kv = None if word["kv"] is None else KVSettings(*word["kv"])
        request = GenerationRequest(
            (), use_cache=word["cache"], on_disk=word["disk"], cache_salt=word["cache_salt"], kv=kv
        )
        namespace, plain = self._namespaces(word["cache_salt"], word["kv"])
        boundaries = sorted(
            Boundary(position, tier) for tier in _TIERS for position in word["ends"].get(tier, ())
        )
        transcript = Transcript(array("I", word["ids"]), tuple(boundaries), 0)
        return Prepared(request, namespace, plain, transcript, word["limit"])


class FollowedBatch(Batch):
    """Answers that rank 0 steps: the same passes over the same layers, and tokens that it chose."""

    def run_chosen(self) -> mx.array:
        """Logits behind the token that was chosen last, of each answer."""
        self._ran = None
        return self._pass(self._tokens[:, None], masked=False)

    def run(self, tokens: list[int], least: int) -> mx.array:
        """Logits behind a run of known tokens, of the one answer."""
        self._ran = None
        return self._run(tokens, least, masked=False)

    def forget_run(self) -> None:
        """Let the tokens that were run stay, however the answer ends."""
        self._ran = None

    def choose(self, tokens: mx.array) -> None:
        """These come next; the pass before has to be done by now."""
        mx.async_eval(tokens)  # type: ignore[no-untyped-call]
        mx.eval(self._tokens)
        self._tokens = tokens

    def quantise_now(self) -> None:
        """Quantise the layers, which have come to where the settings say so."""
        slot = self.slots[0]
        assert slot.kv is not None
        quantise(self._layers, slot.kv)


_WORDS: dict[str, Callable[[Follower, Mapping[str, Any]], None]] = {
    name: getattr(Follower, f"_{name}")
    for name in (
        "lease",
        "lease_ahead",
        "insert",
        "insert_prompt",
        "release",
        "drop",
        "quantise",
        "pin",
        "set_pinned",
        "forget",
        "flush",
        "rest",
        "begin",
        "join",
        "layers_of",
        "leave",
        "quantise_batch",
        "give_up",
        "prove",
    )
}

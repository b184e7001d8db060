"""A prefix as one file, for somebody else with the same model: what it is of, and what must fit.

A model is asked here without its weights: its files' digest, its shapes and its tokenizer tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..cache.exchange import Prefix, export_prefix, import_prefix, open_prefix
from ..cache.identity import Identity, namespace_of
from ..cache.layers.kinds import QuantizedRows
from ..cache.prompt_cache import PromptCache
from ..cache.sizes import format_size
from ..config import DEFAULT_MODEL, MODEL_ID, cache_folder
from ..models.chat_tokenizer import TemplateTokenizer
from ..models.errors import ModelLoadError
from ..models.facts import environment_parts
from ..models.held_shapes import check_held
from ..models.here import folder_here
from ..models.identities import identify
from ..models.kv_settings import KVSettings, check_kv
from ..models.loading import LoadedModel, Weights, load_model
from ..models.references import is_hub_id, served_name, shown
from .explained import AnsweredPrompt, rendered
from .preparation import prepare

if TYPE_CHECKING:
    from ..cache.disk.listing import ListedSpan, Listing
    from ..cache.disk.store import DiskStore
    from ..cache.exchange import Exported, PrefixFile
    from ..cache.layers.layout import Layout
    from ..cache.trie import Tokens
    from .request import GenerationRequest

_MODEL: Final = "model files"
_KV: Final = "keys and values"
_MEMORY: Final = 1 << 62  # what leaves or comes in is held whole, whatever the cache may hold


@dataclass(frozen=True, eq=False)
class ModelHere:
    """A model of this machine, its weights left unread, and what its rows are known by."""

    reference: str
    loaded: LoadedModel
    identity: Identity

    @classmethod
    def of(cls, reference: str) -> ModelHere:
        """The model; ModelLoadError where it is damaged, or not here: none is fetched."""
        if name := served_name(reference):
            raise ModelLoadError(
                f"{MODEL_ID}/{name} runs over several machines, each of which has a part of every"
                " prefix; what it computed is neither exported nor imported"
            )
        if reference != DEFAULT_MODEL and folder_here(reference) is None:
            raise ModelLoadError(
                f"the model {shown(reference)!r} is not on this machine; llm mlx-cached download"
                " fetches one, and -m names another"
            )
        loaded = load_model(reference, weights=Weights.LEFT)
        found = identify(loaded, cache_folder())
        if found.uncached:
            raise ModelLoadError(found.uncached)
        return cls(reference, loaded, Identity(found.model, found.rows))

    def about(self, kv: KVSettings | None) -> dict[str, str]:
        """The facts that must match before rows of this model are used, in words."""
        return {_MODEL: self.identity.model, **environment_parts(), _KV: _told(kv)}

    def namespace(self, cache_salt: str, kv: KVSettings | None) -> str:
        """The namespace of such rows."""
        settings = None if kv is None else (kv.bits, kv.group_size or 0, kv.start)
        return namespace_of(self.identity.rows, cache_salt, settings)


class ChosenPath(NamedTuple):
    """A path that is to leave: of which model, with which settings, and where it is."""

    model: ModelHere
    namespace: str
    tokens: Tokens[int]
    kv: KVSettings | None
    tier: str


def span_chosen(
    listing: Listing, span: ListedSpan, layout: Layout | None, cache_salt: str
) -> ChosenPath:
    """The path to a stored span; ValueError where nobody can open it, or not under this salt."""
    model = ModelHere.of(span.model or DEFAULT_MODEL)
    for kv in _settings(layout):
        if model.namespace(cache_salt, kv) == span.namespace:
            return ChosenPath(model, span.namespace, listing.path(span), kv, span.tier)
    raise ValueError(
        f"the span {span.id} was stored under a cache salt, which --cache-salt says; or it is one"
        " machine's part of a prefix, which is not exported; or what is here of the model"
        f" {shown(span.model)!r}, or mlx, mlx-lm or the device, is another by now"
    )


def prompt_chosen(reference: str, request: GenerationRequest) -> ChosenPath:
    """The common start of prompts that begin like this request; ValueError if there is none."""
    model = ModelHere.of(reference)
    tokenizer = TemplateTokenizer(model.loaded.tokenizer)
    prepared = prepare(request, model.loaded, tokenizer, model.identity)
    ids = prepared.transcript.ids[:-1]  # the last of them is never run
    return ChosenPath(model, prepared.namespace, ids, prepared.request.kv, "system")


def answer_chosen(asked: AnsweredPrompt) -> ChosenPath:
    """The prompt of a logged answer; ValueError where its rows are another model's by now."""
    model = ModelHere.of(asked.reference)
    transcript = rendered(asked, TemplateTokenizer(model.loaded.tokenizer))
    kv = asked.request.kv
    kv = None if kv is None else model.loaded.fitting(kv)
    if model.namespace(asked.request.cache_salt, kv) != asked.namespace:
        raise ValueError(
            "that answer was computed with other files of the model, or another mlx, mlx-lm or"
            " device, than are here; ask again, and export that"
        )
    return ChosenPath(model, asked.namespace, transcript.ids, kv, "user")


def export_chosen(chosen: ChosenPath, store: DiskStore, file: Path) -> Exported:
    """Write what is stored of a path to a file; errors are `export_prefix`'s."""
    reference = chosen.model.reference
    # A folder's name is this machine's, and says nothing elsewhere.
    label = reference if reference == DEFAULT_MODEL or is_hub_id(reference) else ""
    about = chosen.model.about(chosen.kv)
    prefix = Prefix(chosen.namespace, chosen.tokens, about, chosen.tier, label)
    return export_prefix(PromptCache(_MEMORY, store), prefix, file)


class NotStored(ValueError):
    """A cache that could not take a `file`; its own warning says why."""

    def __init__(self, file: str, folder: Path) -> None:
        super().__init__(f"nothing of {file} is imported: it could not be stored in {folder}")
        self.file = file


class Imported(NamedTuple):
    """The tokens of a file that are kept now, those kept before, and their model."""

    tokens: int
    known: int
    model: str
    namespace: str
    path: Tokens[int]


def import_file(
    file: Path, store: DiskStore, *, reference: str | None = None, cache_salt: str = ""
) -> Imported:
    """Take in a file that somebody exported; nothing of it is kept unless all of it is right.

    ValueError, in one line, where it is damaged, of another model or environment, or too large.
    NotStored where the folder can't take it.
    """
    with open_prefix(file) as found:
        # An export names the default model or a hub's; a stranger's file may point anywhere.
        label = found.head.label
        named = reference or (label if label == DEFAULT_MODEL or is_hub_id(label) else "")
        if not named:
            raise ValueError(f"{found.name} does not say of which model it is; give it with -m")
        _check_size(found, store)
        model = ModelHere.of(named)
        kv = _kv_of(found)
        about = model.about(kv)
        found.check(about)
        count = len(found.head.tokens)
        longest = model.loaded.context_length
        if longest is not None and count > longest:
            raise ValueError(f"{found.name} has {count} tokens, and the model's context {longest}")
        check_held(model.loaded.model, kv, found.head.layout, found.outline())
        namespace, tokens = model.namespace(cache_salt, kv), found.head.tokens
        known = store.lookup(namespace, tokens).end
        cache = PromptCache(_MEMORY, store)
        cache.label(namespace, named, model.identity.rows)
        kept = import_prefix(cache, found, namespace, about)
    if store.lookup(namespace, tokens).end < kept:
        raise NotStored(found.name, store.folder)
    return Imported(kept, known, named, namespace, tokens)


def _check_size(found: PrefixFile, store: DiskStore) -> None:
    begin, end = found.extent(0, len(found.head.layout))
    if end - begin > store.budget:
        raise ValueError(
            f"{found.name} holds {format_size(end - begin)}, and the cache may have"
            f" {format_size(store.budget)}: free some of the disk, or give it more with llm"
            " mlx-cached settings --disk"
        )


def _told(kv: KVSettings | None) -> str:
    return json.dumps(None if kv is None else [kv.bits, kv.group_size or 0, kv.start])


def _kv_of(found: PrefixFile) -> KVSettings | None:
    """The settings of keys and values in a file; ValueError if they are none."""
    try:
        said: Any = json.loads(found.about.get(_KV, "null"))
        if said is None:
            return None
        bits, group_size, start = said
        if not all(type(one) is int and 0 <= one < 1 << 31 for one in said):
            raise ValueError("no numbers")
        kv = KVSettings(bits, group_size, start)
        check_kv(kv)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{found.name} has settings of keys and values that are none") from None
    return kv


def _settings(layout: Layout | None) -> Iterator[KVSettings | None]:
    """The settings of keys and values that rows of this layout may have been computed with."""
    packed = {kind for kind in layout or () if isinstance(kind, QuantizedRows)}
    if not packed:
        yield None
    for kind in packed:
        yield KVSettings(kind.bits, kind.group_size, 0)

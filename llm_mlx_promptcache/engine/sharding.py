"""Sharding: one rank's part of a model, checked, then cut before any of its weights is read.

mlx-lm cuts models itself (`shard`, `pipeline`), but its loader first holds the whole one on every
rank, and what it does not check gives wrong logits: heads that don't divide (llama).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..models.errors import ModelLoadError, one_line
from ..models.loading import LoadedModel, load_model, read_config, unread_model
from ..models.progress import BetweenSteps, Report, unasked, unreported
from ..models.references import adapter_of
from .group import Group

# Whatever a config calls its heads: of queries, of keys and values, of linear attention.
_HEADS: Final = re.compile(r"(^|_)(n|num)_.*heads?$|^n_heads?$")


class StandIn(NamedTuple):
    """A group as mlx-lm needs it to cut a model; it sends and receives nothing."""

    place: int
    places: int

    def rank(self) -> int:
        """The part that is wanted."""
        return self.place

    def size(self) -> int:
        """The number of parts."""
        return self.places


def check(reference: str, folder: Path, group: Group) -> None:
    """ModelLoadError, in words, where a model can't be run by such a group; nothing is loaded.

    `folder` is where the model of that `reference` is. Every rank's part is cut on trial, out of
    weights that are not read.
    """
    if adapter_of(reference) is not None:
        raise ModelLoadError(
            f"{reference} has an adapter, and a model that runs over several ranks can have none;"
            " fuse it into the model first (mlx_lm.fuse)"
        )
    config = read_config(folder)
    if group.split == "tensor":
        _check_heads(folder, config, group.size)
    for rank in range(group.size):
        try:
            model, _ = unread_model(folder)
        except Exception as error:
            raise _refused(folder, group, one_line(error)) from error
        _cut(model, StandIn(rank, group.size), folder, group)


def load_shard(
    reference: str,
    group: Group,
    joined: Any,
    report: Report = unreported,
    step: BetweenSteps = unasked,
) -> LoadedModel:
    """One rank's part of a model: cut unread, then read array by array; ModelLoadError.

    `joined` is MLX's group (`mlx_group.py`); who only wants the part can give a `StandIn`. What a
    rank holds meanwhile is its part, and the largest array whole.
    """

    def part(model: Any) -> None:
        _cut(model, joined, Path(), group)

    return load_model(reference, report, step, cut=part)


def _cut(model: Any, joined: Any, folder: Path, group: Group) -> None:
    """ModelLoadError where mlx-lm can't, with its reason."""
    if group.split == "tensor":
        cut = getattr(model, "shard", None)
    else:
        cut = getattr(getattr(model, "model", None), "pipeline", None)
    if cut is None:
        raise _refused(folder, group, f"mlx-lm can't: {type(model).__module__} has none")
    try:
        cut(joined)
    except Exception as error:
        raise _refused(folder, group, one_line(error)) from error
    if group.split == "pipeline" and not model.layers:
        raise _refused(folder, group, f"rank {group.rank} would have no layer")


def _check_heads(folder: Path, config: Mapping[str, Any], size: int) -> None:
    """Heads that don't divide are wrong logits, or an error in the first answer."""
    for name, heads in _heads_in(config):
        if heads % size:
            raise ModelLoadError(
                f"the model in {folder} can't be cut into {size} parts: its {name} is {heads},"
                f" which {size} does not divide; take another number of ranks, or --split pipeline"
            )


def _heads_in(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for name, value in part.items():
            if type(value) is int and _HEADS.search(name):
                yield name, value


def _refused(folder: Path, group: Group, why: str) -> ModelLoadError:
    where = f"the model in {folder}" if folder != Path() else "this model"
    return ModelLoadError(f"{where} can't be cut by {group.split} into {group.size} parts: {why}")

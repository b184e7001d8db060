"""A model that runs over several machines, as the settings have it; it is never loaded here.

Importing this file imports no MLX.
"""

from __future__ import annotations

from shlex import join

from ..config import MODEL_ID, ServedOver, load_settings
from .errors import ModelLoadError
from .references import served_name


def served_over(reference: str) -> ServedOver | None:
    """The description of such a model; None for others. ModelLoadError if it is gone."""
    name = served_name(reference)
    if not name:
        return None
    found = load_settings().model(name)
    if found is None or found.served is None:
        raise ModelLoadError(
            f"no model {name!r} is served; llm mlx-cached serve MODEL --hosts FILE serves one"
        )
    return found.served


def model_behind(reference: str) -> str:
    """The folder or hub id that a reference leads to: whose tokenizer and template it has."""
    served = served_over(reference)
    return reference if served is None else served.model


def how_to_serve(reference: str) -> str:
    """That such a model is not there now, and the command that starts it, in one line."""
    name = served_name(reference)
    return (
        f"{MODEL_ID}/{name} runs over several machines, and is not served now; start it:"
        f" {serve_command(reference)}"
    )


def never_loaded_here(reference: str) -> str:
    """That such a model is asked of its ranks alone, and what can be loaded, in one line."""
    return (
        f"{MODEL_ID}/{served_name(reference)} runs over several machines, and is not loaded in one"
        f" process; the model itself is {model_behind(reference)}"
    )


def serve_command(reference: str) -> str:
    """The command with which a user has such a model served."""
    name, served = served_name(reference), served_over(reference)
    assert served is not None
    told = ["llm", "mlx-cached", "serve", served.model, "--hosts", served.hosts]
    told += ["--split", served.split, "--backend", served.backend, "--name", name]
    return join(told)

"""Errors of the engine that a user can act on; each message is one line."""

from __future__ import annotations


class LoadingEnded(BaseException):
    """Nobody waits any more for a model that is being loaded; never reported as an error.

    A BaseException like KeyboardInterrupt, so that no handler on its way makes an answer of it.
    """


class ModelLoadError(ValueError):
    """A model can't be found, fetched or loaded; the message names it, and what to do."""


class ModelFetchError(ModelLoadError):
    """A model could not be fetched just now; a retry may succeed."""


class PromptTooLongError(ValueError):
    """A prompt has as many tokens as the model's context holds, or more."""


class PromptTooLargeError(PromptTooLongError):
    """A prompt needs more than the memory that this machine has beside the model."""


def one_line(error: BaseException | str, limit: int = 200) -> str:
    """The message of an error without its line breaks, at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shortened(name: str, limit: int = 200) -> str:
    """A name as a user gave it, at most `limit` characters."""
    return name if len(name) <= limit else name[: limit - 3] + "..."


class ConstraintError(RuntimeError):
    """A grammar that can't go on: over its limits, or given a token that it had masked."""


class NothingAllowedError(ConstraintError):
    """A token was chosen that its grammar had masked: nothing else was left to choose."""

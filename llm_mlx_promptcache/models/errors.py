"""Errors of the engine that a user can act on; each message is one line."""

from __future__ import annotations


class LoadingEnded(BaseException):
    """Nobody waits any more for a model that is being loaded; no error that anybody is told.

    Like KeyboardInterrupt it is none of the errors that are made an answer of on their way.
    """


class ModelLoadError(ValueError):
    """A model can't be found, fetched or loaded; the message names it, and what to do."""


class ModelFetchError(ModelLoadError):
    """A model could not be fetched just now: the same may succeed later."""


class PromptTooLongError(ValueError):
    """A prompt has as many tokens as the model's context holds, or more."""


class PromptTooLargeError(PromptTooLongError):
    """What a prompt needs is more than this machine's memory has beside the model."""


def one_line(error: BaseException | str, limit: int = 200) -> str:
    """The message of an error without its line breaks, at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def cut(name: str, limit: int = 200) -> str:
    """A name as somebody gave it, at most `limit` characters."""
    return name if len(name) <= limit else name[: limit - 3] + "..."


class ConstraintError(RuntimeError):
    """A grammar that can't go on: its limits are passed, or it was given what it had masked."""


class NothingAllowedError(ConstraintError):
    """A token was chosen that its grammar had masked: nothing else was left to choose."""

"""Errors as LangChain's own exceptions; each is a ValueError too.

Code that catches LangChain's classes (SummarizationMiddleware, retries) knows what to do, and code
that catches ValueError still works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
)

from llm_mlx_promptcache.models.errors import (
    ModelFetchError,
    ModelLoadError,
    PromptTooLongError,
)


class MLXContextOverflowError(ContextOverflowError, PromptTooLongError):
    """A prompt has as many tokens as the model's context holds, or more."""


class MLXModelNotFoundError(ModelNotFoundError, ModelLoadError):
    """A model can't be found or loaded."""


class MLXModelConnectionError(ModelConnectionError, ModelFetchError):
    """A model could not be fetched just now; the same may succeed later."""


class MLXInvalidRequestError(ModelInvalidRequestError, ValueError):
    """A request that can't be answered, however often it is sent."""


# The most specific class first.
_CLASSES: tuple[tuple[type[ValueError], type[ModelError]], ...] = (
    (PromptTooLongError, MLXContextOverflowError),
    (ModelFetchError, MLXModelConnectionError),
    (ModelLoadError, MLXModelNotFoundError),
    (ValueError, MLXInvalidRequestError),
)


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raise the engine's refusals as the matching class of LangChain's."""
    try:
        yield
    except ModelError:
        raise
    except ValueError as error:
        kind = next(kind for ours, kind in _CLASSES if isinstance(error, ours))
        raise kind(str(error)).with_traceback(error.__traceback__) from None


def worth_retrying(error: BaseException) -> bool:
    """True if the same call may succeed later: a wrong request or model stays wrong."""
    if isinstance(error, ModelError):
        return error.is_retryable
    return isinstance(error, Exception) and not isinstance(error, ValueError)

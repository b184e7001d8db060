"""The settings of ChatMLXCached, and the requests that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal, Self

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import DEFAULT_MODEL
from llm_mlx_promptcache.engine.request import (
    DEFAULT_MAX_TOKENS,
    Choice,
    GenerationRequest,
    Sampling,
)
from llm_mlx_promptcache.models.kv_settings import KVSettings

from .media import ToolMedia
from .messages import from_langchain
from .requests import answer_format, choice_of, openai_tools
from .words import in_our_words, unknown, warn_of_cache

ToolPolicy = Literal["auto", "call_first"]

_DISTRIBUTION = "llm-mlx-promptcache"

# Descriptions of LangChain's own fields, which it gives in the comments of its code alone.
_INHERITED = {
    "name": "A name for the model in traces.",
    "cache": "LangChain's cache of whole answers; prefixes of prompts are `use_cache`'s.",
    "verbose": "Print runs as they happen.",
    "callbacks": "Handlers that are told of each run.",
    "tags": "Tags of each run in traces.",
    "metadata": "Metadata of each run in traces; versions of packages are in `lc_versions`.",
    "custom_get_token_ids": "A function from a text to ids, in place of the model's own tokenizer.",
    "rate_limiter": "A limiter that is asked before each answer.",
    "disable_streaming": 'Make `stream` give the whole at once; "tool_calling": only with tools.',
    "output_version": 'The form of an answer\'s content: "v1" is blocks; None or "v0" is text.',
    "profile": "The model's capabilities and its context in tokens; read from its files.",
}

_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
# Arguments of a call beside the model's fields; the last two are LangChain's own.
_CALL_ONLY = frozenset(
    ["tools", "tool_choice", "strict", "parallel_tool_calls", "response_format", "regex"]
).union(["continue_final", "stream", "ls_structured_output_format"])
# The settings on which a `profile` depends that nobody gave.
_TELLING = frozenset(["model", "max_tokens"])

Stops = Annotated[
    list[str] | None, BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
]


_none_is_empty = BeforeValidator(lambda given: {} if given is None else given)


class ChatSettings(BaseChatModel):
    """The settings of every call unless it has its own; docs/langchain.md lists them all."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str = Field(default=DEFAULT_MODEL)
    """The model, as commands take it: "default" (the embedded one), a registered name or alias, a
    folder, or a hub id; `MODEL@FOLDER` with an adapter over it."""
    temperature: float | None = 0.0
    """Randomness of sampling; 0 takes the likeliest token."""
    top_p: float | None = 1.0
    """Draw from the likeliest tokens that together have this probability; 1: from all."""
    top_k: int | None = 0
    """Draw from this many of the likeliest tokens; 0: from all."""
    min_p: float | None = 0.0
    """Draw from tokens with this share of the likeliest one's probability; 0: from all."""
    repetition_penalty: float | None = 1.0
    """Divides the logits of recent tokens; 1: off."""
    presence_penalty: float | None = 0.0
    """Subtracted from the logits of recent tokens."""
    frequency_penalty: float | None = 0.0
    """Subtracted from a token's logit for each of its recent occurrences."""
    logit_bias: Annotated[dict[int, float], _none_is_empty] = Field(default_factory=dict)
    """Added to the logits of tokens, by their ids."""
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    """The most tokens of an answer, within the model's context; None: the rest of the context."""
    seed: int | None = None
    """Random seed; None: a new one for each answer."""
    stop: Stops = None
    """Strings before which an answer ends."""
    streaming: bool = False
    """Stream inside `invoke` too, so that callbacks see each chunk."""
    thinking: bool | None = None
    """Ask the chat template to let the model reason or not; None: the template's default."""
    template_arguments: Annotated[dict[str, Any], _none_is_empty] = Field(default_factory=dict)
    """Other arguments of the chat template, such as `{"reasoning_effort": "high"}`."""
    tool_policy: ToolPolicy = "auto"
    """With "call_first" the answer to a user's message is a call wherever tools are bound and no
    `tool_choice` is given; "auto" leaves it to the model."""
    tool_media: ToolMedia = "refuse"
    """Images, sound and files in tools' results: "placeholder" tells the model in a line that one
    was there, "refuse" ends the call."""
    max_calls: int = 8
    """The most calls in one answer."""
    max_string: int | None = None
    """The most characters of a string in a document or forced call whose schema sets no limit;
    None: as many as `max_tokens` allows."""
    logprobs: bool | int | None = None
    """Report each token's probability; a number: that many alternatives of it too."""
    top_logprobs: int | None = None
    """The number of alternatives reported for each token."""
    kv_bits: int | None = None
    """Bits of quantised keys and values: 2, 3, 4, 6 or 8; None: not quantised."""
    kv_group_size: int | None = None
    """Quantised values to a scale: 32, 64 or 128; None: the largest of 64 and 32 that fits."""
    kv_start: int = 0
    """The number of tokens from which on all keys and values are quantised."""
    use_cache: bool = True
    """Reuse and keep prefixes; LangChain's own `cache` holds whole answers."""
    on_disk: bool = True
    """Keep prefixes beyond this process."""
    cache_salt: str = ""
    """Keeps applications or tenants apart: only calls of one salt reuse each other's prefixes."""
    drafts: bool = True
    """Guess several tokens at a time from earlier text and check them in one pass; the answer is
    the same."""
    resident: bool = False
    """Run the model in the process that `llm` leaves running, which other programs share."""

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, given: Any) -> Any:
        """Other models' words as the fields that they mean; ValueError for unknown ones."""
        if not isinstance(given, dict):
            return given
        made = in_our_words(given, cls.model_fields)
        warn_of_cache(made)
        return made

    @model_validator(mode="after")
    def _set_mlx_cached_version(self) -> Self:
        """Record in traces which version answered, as LangChain's partner packages do."""
        self._add_version(_DISTRIBUTION, _version())
        return self

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        """Refuse values out of range where they are given, in the words of a request."""
        self.request([], {})
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field to a value that a call could give; ValueError for others, and it stays."""
        fields = type(self).model_fields
        if name in fields:
            value = self._checked(name, value)
            if _is_own(name):
                self.model_copy(update={name: value})  # refuses what is out of range
        elif not (name.startswith("_") or hasattr(type(self), name)):
            raise ValueError(unknown(name, fields))
        told = name in _TELLING and self.profile == self._resolve_model_profile()
        super().__setattr__(name, value)
        if told:
            self.profile = self._resolve_model_profile()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other settings, in any words that the constructor takes; ValueError."""
        fields = type(self).model_fields
        own = in_our_words(update or {}, fields)
        made = {name: self._checked(name, value) for name, value in own.items()}
        copied = super().model_copy(update=made, deep=deep)
        if any(map(_is_own, made)):
            copied.request([], {})  # out of range is refused here, and not by the next call
        told = _TELLING.intersection(made) and "profile" not in made
        if told and self.profile == self._resolve_model_profile():
            copied.profile = copied._resolve_model_profile()
        return copied

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "max_tokens", *_SAMPLING)}

    def given(self, stop: list[str] | None, call: dict[str, Any]) -> Self:
        """These settings with those of a call over them; ValueError if it names an unknown one."""
        fields = type(self).model_fields
        own = in_our_words(call, {*fields, *_CALL_ONLY})
        said = {name: value for name, value in own.items() if name in fields}
        if stop is not None:
            said["stop"] = stop
        made = {name: self._checked(name, said[name]) for name in said}
        return super().model_copy(update=made)  # a call needs no new profile

    def request(self, messages: list[BaseMessage], call: dict[str, Any]) -> GenerationRequest:
        """The request for these messages and a call's arguments, with this model's settings."""
        translated = tuple(from_langchain(messages, self.tool_media))
        tools = openai_tools(call.get("tools") or (), strict=call.get("strict"))
        choice = choice_of(call.get("tool_choice"), tools)
        if self._calls_first(translated, tools, call):
            choice = Choice("any")
        schema, json_object = answer_format(call.get("response_format"))
        return GenerationRequest(
            messages=translated,
            max_tokens=self.max_tokens,
            sampling=Sampling(
                logit_bias=tuple(sorted(self.logit_bias.items())),
                **{name: value for name, value in self._sampling() if value is not None},
            ),
            stop=tuple(self.stop or ()),
            use_cache=self.use_cache,
            on_disk=self.on_disk,
            cache_salt=self.cache_salt,
            tools=tuple(tools),
            tool_choice=choice.how,
            tool=choice.tool,
            max_calls=1 if call.get("parallel_tool_calls") is False else self.max_calls,
            schema=schema,
            json_object=json_object,
            regex=call.get("regex") or "",
            max_string=self.max_string,
            thinking=self.thinking,
            template_arguments=self.template_arguments,
            kv=self._kv(),
            drafts=self.drafts,
            logprobs=self._alternatives(),
            continue_final=call.get("continue_final") is True,
        )

    @classmethod
    def _checked(cls, name: str, value: Any) -> Any:
        """A value as the field itself would take it; ValueError names the setting."""
        if not (_is_own(name) or name == "output_version"):
            return value
        try:
            return _taker(cls, name).validate_python(value)
        except ValidationError as error:
            raise ValueError(
                f"{name} is {str(value)[:60]!r}: {error.errors()[0]['msg']}"
            ) from error

    def _calls_first(
        self, messages: Sequence[Message], tools: Sequence[Any], call: dict[str, Any]
    ) -> bool:
        """True if the policy, and nothing that the caller said, forces this answer to be a call."""
        if self.tool_policy == "auto" or not tools or call.get("tool_choice") is not None:
            return False
        return bool(messages) and messages[-1].role == "user"

    def _sampling(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in _SAMPLING)

    def _alternatives(self) -> int | None:
        """The number of alternatives reported for each token; None: no probabilities at all."""
        if self.top_logprobs is not None:
            if self.logprobs is False:
                raise ValueError(
                    f"top_logprobs is {self.top_logprobs} and logprobs is False; give True, or"
                    " leave top_logprobs out"
                )
            return self.top_logprobs
        if self.logprobs is None or self.logprobs is False:
            return None
        return 0 if self.logprobs is True else self.logprobs

    def _kv(self) -> KVSettings | None:
        if self.kv_bits is None:
            return None
        return KVSettings(self.kv_bits, self.kv_group_size, self.kv_start)


for _name, _words in _INHERITED.items():
    if _name in ChatSettings.model_fields:
        ChatSettings.model_fields[_name].description = _words


@cache
def _version() -> str:
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _is_own(name: str) -> bool:
    """True if a field is ours or a subclass's; LangChain itself checks its own."""
    return name not in BaseChatModel.model_fields


@cache
def _taker(settings: type[ChatSettings], name: str) -> TypeAdapter[Any]:
    return TypeAdapter(settings.model_fields[name].rebuild_annotation())

"""The settings of ChatMLXCached, and the requests that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Self

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import DEFAULT_MODEL
from llm_mlx_promptcache.engine.request import (
    DEFAULT_MAX_TOKENS,
    Choice,
    GenerationRequest,
    Sampling,
)
from llm_mlx_promptcache.models.kv_settings import KVSettings

from .asking import answer_format, choice_of, openai_tools
from .messages import from_langchain
from .words import in_our_words, warn_of_cache

ToolPolicy = Literal["auto", "call_first"]

_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
# What a call may say beside the fields of the model; the last two are LangChain's own.
_CALL_ONLY = frozenset(
    ["tools", "tool_choice", "strict", "parallel_tool_calls", "response_format", "regex"]
).union(["continue_final", "stream", "ls_structured_output_format"])


Stops = Annotated[
    list[str] | None, BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
]


class ChatSettings(BaseChatModel):
    """What every call is asked with where it says nothing else; docs/langchain.md has them all."""

    model: str = Field(default=DEFAULT_MODEL)
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    top_k: int | None = 0
    min_p: float | None = 0.0
    repetition_penalty: float | None = 1.0
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    logit_bias: dict[int, float] = Field(default_factory=dict)
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    seed: int | None = None
    stop: Stops = None
    streaming: bool = False
    thinking: bool | None = None
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    tool_policy: ToolPolicy = "auto"
    max_calls: int = 8
    max_string: int | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    kv_bits: int | None = None
    kv_group_size: int | None = None
    kv_start: int = 0
    use_cache: bool = True
    on_disk: bool = True
    cache_salt: str = ""
    resident: bool = False

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, given: Any) -> Any:
        """Other models' words as the fields that they mean; ValueError for what is no field."""
        if not isinstance(given, dict):
            return given
        made = in_our_words(given, cls.model_fields)
        warn_of_cache(made)
        return made

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "max_tokens", *_SAMPLING)}

    def given(self, stop: list[str] | None, call: dict[str, Any]) -> Self:
        """These settings with what a call says otherwise; ValueError where it names no setting."""
        fields = type(self).model_fields
        own = in_our_words(call, {*fields, *_CALL_ONLY})
        said = {name: value for name, value in own.items() if name in fields}
        if stop is not None:
            said["stop"] = stop
        return self.model_copy(update={name: _checked(name, said[name]) for name in said})

    def request(self, messages: list[BaseMessage], call: dict[str, Any]) -> GenerationRequest:
        """These messages and what this call binds, with the settings of this model."""
        translated = tuple(from_langchain(messages))
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
            logprobs=self._alternatives(),
            continue_final=call.get("continue_final") is True,
        )

    def _calls_first(
        self, messages: Sequence[Message], tools: Sequence[Any], call: dict[str, Any]
    ) -> bool:
        """Whether the policy, and nothing that the caller said, has this answer be a call."""
        if self.tool_policy == "auto" or not tools or call.get("tool_choice") is not None:
            return False
        return bool(messages) and messages[-1].role == "user"

    def _sampling(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in _SAMPLING)

    def _alternatives(self) -> int | None:
        """How many alternatives are told for each token; None: no probabilities at all."""
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


def _checked(name: str, value: Any) -> Any:
    """A call's value as the model's own field would take it; ValueError names the setting."""
    # What else there is belongs to LangChain, which says itself what it takes.
    if name not in ChatSettings.__annotations__ and name != "output_version":
        return value
    try:
        return _taker(name).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name} is {str(value)[:60]!r}: {error.errors()[0]['msg']}") from error


@cache
def _taker(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(ChatSettings.model_fields[name].rebuild_annotation())

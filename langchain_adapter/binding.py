"""Bindings of a chat model: tools, the form of its answers, and retries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.retry import ExponentialJitterParams
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from .errors import worth_retrying
from .requests import check_schema, choice_of, format_of, openai_tools
from .settings import ChatSettings
from .structured import Method, call_parser, document_parser, structured

RetryOn = tuple[type[BaseException], ...] | Callable[[BaseException], bool]


class BindingChat(ChatSettings):
    """A chat model that binds arguments to every later call."""

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call.

        `tool_choice`: "auto", "any" ("required", True), "none" (False), a tool's name, or OpenAI's
        dict. Calls follow their schemas with any `strict`. With a `response_format` an answer is
        a call or a document of it.
        """
        made = openai_tools(tools, strict=strict)
        choice_of(tool_choice, made)
        bound: dict[str, Any] = {"tools": made, **kwargs}
        if tool_choice is not None:
            bound["tool_choice"] = tool_choice
        if response_format is not None:
            bound["response_format"] = format_of(response_format)
        return self.bind(**bound)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model whose answers are objects of `schema`.

        "json_schema" holds the answer's text to it, "function_calling" forces a call of a tool of
        that shape, which shows the schema to the model too, and "json_mode" takes any JSON object
        if no schema is given.
        """
        if kwargs:
            raise ValueError(f"with_structured_output does not know {', '.join(sorted(kwargs))}")
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ValueError(
                f"method is {method!r}; use json_schema, function_calling or json_mode"
            )
        if schema is None and method != "json_mode":
            raise ValueError(f"schema is None; method {method!r} needs one")
        told = {
            "kwargs": {"method": method, "strict": strict},
            "schema": {"type": "object", "title": "answer"} if schema is None else schema,
        }
        if method == "function_calling":
            check_schema(schema)
            assert schema is not None
            name = convert_to_openai_tool(schema)["function"]["name"]
            caller = self.bind_tools(
                [schema],
                tool_choice=name,
                strict=strict,
                parallel_tool_calls=False,
                ls_structured_output_format=told,
            )
            return structured(caller, call_parser(schema, name), include_raw=include_raw)
        form = {"type": "json_object"} if schema is None else format_of(schema)
        bound = self.bind(response_format=form, ls_structured_output_format=told)
        return structured(bound, document_parser(schema), include_raw=include_raw)

    def with_retry(
        self,
        *,
        retry_if_exception_type: RetryOn = worth_retrying,
        wait_exponential_jitter: bool = True,
        exponential_jitter_params: ExponentialJitterParams | None = None,
        stop_after_attempt: int = 3,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model, retried where that may help: a wrong request or model stays wrong."""
        return super().with_retry(
            retry_if_exception_type=retry_if_exception_type,
            wait_exponential_jitter=wait_exponential_jitter,
            exponential_jitter_params=exponential_jitter_params,
            stop_after_attempt=stop_after_attempt,
        )

"""ChatMLXCached: LangChain's chat model interface over the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any

from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import BaseMessage

from llm_mlx_promptcache.engine.events import Event, Finished, Progress
from llm_mlx_promptcache.models.names import resolve

from .answers import PROVIDER
from .chat_call import ChatCall
from .errors import langchain_errors
from .generation import GeneratingChat
from .profile import profile_of
from .requests import Tool


class ChatMLXCached(GeneratingChat):
    """A chat model run with MLX that never computes the same prefix twice.

    ???+ info "Setup"

        ```bash
        pip install 'llm-mlx-promptcache[langchain]'
        ```

        There is no key and no server. The first call loads the model, once a process; the default
        one is fetched then (93 MB).

    ??? info "Key init args"

        | Param | Type | Description |
        | --- | --- | --- |
        | `model` | `str` | "default", a registered name or alias, a folder, or a hub id |
        | `temperature` | `float` | 0 takes the likeliest token |
        | `max_tokens` | `int | None` | The most tokens of an answer; None: to the context's end |
        | `cache_salt` | `str` | Only calls of one salt reuse each other's prefixes |
        | `use_cache` | `bool` | Reuse and keep prefixes |
        | `on_disk` | `bool` | Keep them beyond this process |
        | `resident` | `bool` | Run the model in the process that `llm` leaves running |
        | `tool_policy` | `str` | "call_first": small models begin with a call of a tool |

        All of them can be given again with each call, or bound.

    ??? info "Instantiate"

        ```python
        from langchain_mlx_cached import ChatMLXCached

        chat = ChatMLXCached(model="default", temperature=0, max_tokens=48)
        ```

    ??? info "Invoke"

        ```python
        messages = [
            ("system", "You are a guide to the old harbour. Answer in one sentence."),
            ("human", "What is a capstan?"),
        ]
        answer = chat.invoke(messages)
        print(answer.text)
        ```

    ??? info "Stream"

        ```python
        for chunk in chat.stream(messages):
            print(chunk.text, end="", flush=True)
        ```

        Chunks add up to the message that `invoke` gives:

        ```python
        stream = chat.stream(messages)
        full = next(stream)
        for chunk in stream:
            full += chunk
        ```

    ??? info "Async"

        ```python
        awaited = await chat.ainvoke(messages)

        async for chunk in chat.astream(messages):
            print(chunk.text, end="", flush=True)

        both = await chat.abatch([messages, messages])
        ```

    ??? info "Tool calling"

        ```python
        from typing import Literal

        from langchain_core.messages import ToolMessage


        def tide(place: Literal["Dover", "Harwich"]) -> str:
            '''Tell when the tide is high at a place.'''
            return f"At {place} the tide is high at six."


        sailor = chat.bind_tools([tide])
        asked = sailor.invoke("When is the tide high at Dover?", tool_choice="tide")
        call = asked.tool_calls[0]
        result = ToolMessage(tide(**call["args"]), tool_call_id=call["id"])
        told = sailor.invoke([("human", "When is the tide high at Dover?"), asked, result])
        ```

        `tool_choice` takes "auto", "any", "required", "none", a tool's name, or OpenAI's dict.
        A call that can't be made, or was cut, is in `invalid_tool_calls`.

    ??? info "Structured output"

        ```python
        from pydantic import BaseModel


        class Ship(BaseModel):
            '''A ship.'''

            kind: Literal["brig", "ketch", "schooner"]
            masts: int


        ship = chat.with_structured_output(Ship).invoke("The Marigold is a brig with two masts.")
        ```

        A grammar holds the answer to the schema. `method` is "json_schema" (the default),
        "function_calling" or "json_mode"; `include_raw=True` gives the message too.

    ??? info "JSON mode"

        ```python
        told_as_json = chat.bind(response_format={"type": "json_object"}, max_string=8)
        document = told_as_json.invoke("Describe the Marigold as a JSON object.")
        ```

    ??? info "Reasoning output"

        With `thinking=True` the template asks a model that can reason to do so; its reasoning is in
        `additional_kwargs["reasoning_content"]`, and a block of `content_blocks`.

    ??? info "Token usage"

        ```python
        usage = answer.usage_metadata
        print(usage["input_tokens"], usage["output_tokens"])
        print(usage["input_token_details"]["cache_read"], "tokens were there already")
        ```

    ??? info "Logprobs"

        ```python
        likely = chat.bind(logprobs=True, top_logprobs=2).invoke(messages)
        first = likely.response_metadata["logprobs"]["content"][0]
        print(first["token"], first["logprob"], first["top_logprobs"])
        ```

    ??? info "Response metadata"

        ```python
        metadata = answer.response_metadata
        print(metadata["model_name"], metadata["finish_reason"], metadata["timings"])
        print(metadata["cache"])  # what was read from memory and disk, what was prefilled, and why
        ```

    ??? info "Reusing prefixes"

        Give answers back as they are: they carry their exact tokens, and the next turn computes
        only what is new. The common start of all conversations can be computed before:

        ```python
        warm_tokens = chat.warm(messages[:1], tools=[tide])
        again = chat.invoke([*messages, answer, ("human", "And a bollard?")])
        print(again.usage_metadata["input_token_details"]["cache_read"])
        ```

        `explain` tells before a turn is asked whether it would reuse all that the last one had:

        ```python
        seen = chat.explain([*messages, answer, ("human", "And a mole?")])
        print(seen["state"])  # "healthy", or "lost" with a reason and the message's index
        ```

        `unload` frees the model's memory; the cache keeps what was computed for prompts.

    ??? info "Stored as plain data"

        ```python
        from langchain_core.load import dumps, loads

        stored = dumps(chat)
        own = {"allowed_objects": [ChatMLXCached], "valid_namespaces": ["langchain_mlx_cached"]}
        loaded = loads(stored, **own)  # both are needed
        ```
    """

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: all of its parts are plain data, and weights are not among them."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """The namespace where LangChain's loader finds the class."""
        return ["langchain_mlx_cached"]

    def _resolve_model_profile(self) -> ModelProfile:
        return profile_of(self.model, self.max_tokens)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def warm(
        self, messages: LanguageModelInput, *, tools: Sequence[Tool] | None = None, **kwargs: Any
    ) -> int:
        """Prefill and pin the common start of conversations with this system prompt and tools.

        Returns its tokens. `cache_salt` and all else that changes the prompt must be as in the
        calls to come.
        """
        with closing(self._warming(messages, tools, kwargs).events()) as events:
            return max((_warmed(event) for event in events), default=0)

    async def awarm(
        self, messages: LanguageModelInput, *, tools: Sequence[Tool] | None = None, **kwargs: Any
    ) -> int:
        """The same for an event loop, which is never blocked."""
        call = await asyncio.to_thread(self._warming, messages, tools, kwargs)
        async with aclosing(call.aevents()) as events:
            return max([_warmed(event) async for event in events], default=0)

    def unload(self, timeout: float = 30.0) -> bool:
        """Free the model's memory, here or with `resident=True` in the host's process.

        False if it is answering, and so stays. The cache stays too, and the next call loads the
        model again.
        """
        with langchain_errors():
            engine = self._engine()
        return engine.unload(timeout)

    async def aunload(self, timeout: float = 30.0) -> bool:
        """The same for an event loop, which is never blocked."""
        return await asyncio.to_thread(self.unload, timeout)

    def explain(
        self, messages: LanguageModelInput, *, tools: Sequence[Tool] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The reuse that these messages would have if they were asked now; the model is not asked.

        Returns the same as an answer's `response_metadata["cache"]`. Where the conversation lost
        rows of its last turn, `message` is the index of the message in which it leaves that path.
        `undrafted` says why this model's answers are not drafted, if they are known not to be.
        """
        call = self._looking(messages, tools, kwargs)
        with closing(call.events()) as events:
            return call.seen([event for event in events if isinstance(event, Finished)])

    async def aexplain(
        self, messages: LanguageModelInput, *, tools: Sequence[Tool] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The same for an event loop, which is never blocked."""
        call = await asyncio.to_thread(self._looking, messages, tools, kwargs)
        async with aclosing(call.aevents()) as events:
            ends = [event async for event in events if isinstance(event, Finished)]
        return await asyncio.to_thread(call.seen, ends)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens of the prompt that these messages and tools make; reads no weights."""
        from llm_mlx_promptcache.engine.counting import counter_for

        call = {} if tools is None else {"tools": tools}
        with langchain_errors():
            return counter_for(resolve(self.model).reference).count(self.request(messages, call))

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of a text, without a template around it."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        from llm_mlx_promptcache.engine.counting import counter_for

        with langchain_errors():
            return counter_for(resolve(self.model).reference).ids(text)

    def _looking(
        self, messages: LanguageModelInput, tools: Sequence[Tool] | None, kwargs: dict[str, Any]
    ) -> ChatCall:
        call = self._beforehand(messages, tools, kwargs)
        return call._replace(request=replace(call.request, look=True))

    def _warming(
        self,
        messages: LanguageModelInput,
        tools: Sequence[Tool] | None,
        kwargs: dict[str, Any],
    ) -> ChatCall:
        call = self._beforehand(messages, tools, kwargs)
        return call._replace(request=replace(call.request, warm=True, pin=True))

    def _beforehand(
        self,
        messages: LanguageModelInput,
        tools: Sequence[Tool] | None,
        kwargs: dict[str, Any],
    ) -> ChatCall:
        """A call with the bindings that later calls will have."""
        bound = {**kwargs, "tools": tools} if tools else kwargs
        return self._call(self._convert_input(messages).to_messages(), None, bound)


def _warmed(event: Event) -> int:
    """The prompt tokens that are done at an event of a warming."""
    return event.done if isinstance(event, Progress) else 0

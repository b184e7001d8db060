"""A conversation that grows too long, summed up by the conversation itself."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
)
from langchain.agents.middleware.internal_call_transformer import (
    InternalCallTransformer,
    internal_call_metadata,
)
from langchain.agents.structured_output import AutoStrategy, OutputToolBinding, ToolStrategy
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, RemoveMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.constants import TAG_NOSTREAM
from langgraph.types import Command

from .chat_model import ChatMLXCached
from .history import (
    ContextSize,
    Length,
    Trigger,
    checked_size,
    clauses_of,
    first_within,
    is_due,
    receding,
    safe_cuts,
    tokens_of,
)
from .reuse import SOURCE, SUMMED_UP
from .summary_settings import CountTokens, checked_counter, checked_model, question_of

SUMMARY_PROMPT = (
    "Everything above is about to be replaced by what you write now, so write down all that is"
    " needed to go on. In this order: what the user wants; what was found out and decided, and"
    " why; names, numbers, files and other exact values; what is still to be done. Write nothing"
    " else, and call no tool."
)
# LangChain's own words and mark, by which interfaces know a summary.
_HEAD = "Here is a summary of the conversation to date:\n\n"
_MARK = {SOURCE: SUMMED_UP}

_Request = ModelRequest[Any]
_Response = ModelResponse[Any]
# The model is asked each request that is yielded, and its reply is sent back.
_SummarySteps = Generator[_Request, "_Response | ContextOverflowError | None", Any]


class PrefixKeepingSummarization(AgentMiddleware[AgentState[Any], Any, Any]):
    """Sums up a conversation that grows too long by going on with it.

    The question for the summary follows the messages that it is about, under the agent's own system
    prompt and tools. All of them are cached, so that only the question is prefilled, where
    SummarizationMiddleware rewrites the messages as one text. Arguments are named as there:

    `model` writes the summaries; left out, the agent's own does. Another model, or one with
    another `cache_salt`, has no prefix to go on from.
    `trigger` says when: `("tokens", 3000)`, `("fraction", 0.8)`, `("messages", 50)`, a dict of
    them that must all be reached, or a list of which one must be. Tokens are those of the whole
    prompt, as the model's tokenizer counts them. With or without it, a conversation that does not
    fit the model's context is summed up.
    `keep` says how much of the end stays as it is: never a result without its call.
    `token_counter` replaces the count. `summary_prompt` is the question; `{messages}` in it becomes
    a reference to the conversation above.

    Put it last in the agent's list, where it sees the prompt as the model does. If the context has
    no room for a summary, one of fewer messages is asked for, and more of them stay.
    """

    transformers = (InternalCallTransformer,)

    def __init__(
        self,
        model: str | BaseChatModel | None = None,
        *,
        trigger: Trigger | None = None,
        keep: ContextSize = ("messages", 20),
        token_counter: CountTokens | None = None,
        summary_prompt: str = SUMMARY_PROMPT,
        **others: Any,
    ) -> None:
        super().__init__()
        for name in others:
            raise ValueError(
                f"{name} is no word of PrefixKeepingSummarization: what is summed up is read from"
                " the cache, as a whole, by the model that has it; leave it out"
            )
        self.model = checked_model(model)
        self.trigger, self.keep = trigger, checked_size("keep", keep)
        self.token_counter, self.summary_prompt = checked_counter(token_counter), summary_prompt
        self._asked = question_of(summary_prompt)
        self._clauses = clauses_of(trigger)

    def wrap_model_call(
        self, request: _Request, handler: Callable[[_Request], _Response]
    ) -> _Response | AIMessage | ExtendedModelResponse[Any]:
        """The model's answer, after a summary if one is due, which the agent's state gets."""
        asking = _Asking(self._steps(request))
        asked = asking.after(None)
        while asked is not None:
            reply: _Response | ContextOverflowError
            try:
                reply = handler(asked)
            except ContextOverflowError as error:
                reply = error
            asked = asking.after(reply)
        return cast("_Response | ExtendedModelResponse[Any]", asking.result)

    async def awrap_model_call(
        self, request: _Request, handler: Callable[[_Request], Awaitable[_Response]]
    ) -> _Response | AIMessage | ExtendedModelResponse[Any]:
        """The same for an event loop, with tokens counted on another thread."""
        asking = _Asking(self._steps(request))
        asked = await asyncio.to_thread(asking.after, None)
        while asked is not None:
            reply: _Response | ContextOverflowError
            try:
                reply = await handler(asked)
            except ContextOverflowError as error:
                reply = error
            asked = await asyncio.to_thread(asking.after, reply)
        return cast("_Response | ExtendedModelResponse[Any]", asking.result)

    def _steps(self, request: _Request) -> _SummarySteps:
        """Ask for a summary if due, then the request, and again with less if it does not fit."""
        done = _Shortened(request)
        if self._is_due(request):
            yield from self._shorten(done, self._kept_from(request))
        while True:
            reply = yield done.request
            if not isinstance(reply, ContextOverflowError):
                assert reply is not None
                return done.result(reply)
            if not (yield from self._shorten(done, self._kept_when_too_long(done.request))):
                raise reply

    def _shorten(self, done: _Shortened, wanted: int) -> Generator[_Request, Any, bool]:
        """Replace the messages before `wanted`, or fewer, by a summary; returns True if it came."""
        messages = done.request.messages
        for cut in receding([cut for cut in _cuts(messages) if cut <= wanted]):
            reply = yield self._question(done.request, cut)
            if isinstance(reply, ContextOverflowError):
                continue
            answer = cast("BaseMessage", reply.result[0])
            if _met_the_end(answer, _context(self.model or done.request.model)):
                continue
            return done.take(cut, answer)
        return False

    def _question(self, request: _Request, cut: int) -> _Request:
        """The agent's own request, for a summary of the messages before `cut`."""
        asked = HumanMessage(self._asked, additional_kwargs=dict(_MARK))
        model = self.model or request.model
        ours = isinstance(model, ChatMLXCached)
        return request.override(
            model=_unseen(model),
            messages=[*request.messages[:cut], asked],
            tools=_tools_shown(request),
            # Not every provider has a word for it.
            tool_choice="none" if ours and _tools_shown(request) else None,
            response_format=None,
        )

    def _is_due(self, request: _Request) -> bool:
        """True if the prompt is as long as `trigger` says, or longer."""
        counted = any(clause.keys() - {"messages"} for clause in self._clauses)
        tokens = self._count(request) if counted else 0
        length = Length(len(request.messages), tokens, _context(request.model))
        return is_due(self._clauses, length)

    def _count(self, request: _Request) -> int:
        """Tokens of the prompt: the model's own count if it can be had without asking it."""
        if self.token_counter is not None:
            return self.token_counter(request.messages)
        if isinstance(request.model, ChatMLXCached):
            return request.model.get_num_tokens_from_messages(_prompt(request), request.tools)
        return count_tokens_approximately(_prompt(request), tools=request.tools)

    def _kept_from(self, request: _Request) -> int:
        """The index of the first message that `keep` leaves as it is."""
        messages = request.messages
        if self.keep[0] == "messages":
            return len(messages) - int(self.keep[1])
        most = tokens_of(self.keep, _context(request.model))
        if self.token_counter is not None:
            return first_within([self.token_counter([one]) for one in messages], most)
        # The weights of messages are estimated, and scaled to the count of the whole.
        whole = count_tokens_approximately(_prompt(request), tools=request.tools)
        scale = self._count(request) / max(1, whole)
        return first_within([scale * count_tokens_approximately([one]) for one in messages], most)

    def _kept_when_too_long(self, request: _Request) -> int:
        """The same if a prompt does not fit; half of it if `keep` leaves nothing to sum up."""
        wanted, cuts = self._kept_from(request), _cuts(request.messages)
        if any(cut <= wanted for cut in cuts):
            return wanted
        half = len(request.messages) // 2
        return next((cut for cut in cuts if cut >= half), max(cuts, default=0))


class _Asking:
    """Steps that are asked one by one; `result` is their return value."""

    def __init__(self, steps: _SummarySteps) -> None:
        self._steps = steps
        self.result: Any = None

    def after(self, reply: _Response | ContextOverflowError | None) -> _Request | None:
        """The next request after `reply`; None at the end."""
        try:
            return self._steps.send(reply)
        except StopIteration as end:
            self.result = end.value
            return None


@dataclass
class _Shortened:
    """A request as far as it was shortened, and the changes that the agent's state needs."""

    request: _Request
    summary: HumanMessage | None = None
    covered: list[AnyMessage] = field(default_factory=list)

    def take(self, cut: int, answer: BaseMessage) -> bool:
        """Replace all before `cut` by the summary in `answer`; returns False if there is none."""
        text = answer.text.strip()
        if not text:
            _tell("the model was asked to sum up the conversation and said nothing; it stays whole")
            return False
        if answer.response_metadata.get("finish_reason") == "length":
            _tell(
                "a summary was cut by max_tokens; give PrefixKeepingSummarization a model with"
                " a larger one, as in chat.model_copy(update={'max_tokens': 2048})"
            )
        messages = self.request.messages
        self.covered += messages[:cut]
        self.summary = HumanMessage(_HEAD + text, additional_kwargs=dict(_MARK))
        self.request = self.request.override(messages=[self.summary, *messages[cut:]])
        return True

    def result(self, reply: _Response) -> _Response | ExtendedModelResponse[Any]:
        """The reply, with the changes in the state.

        The summary takes the place, and so the id, of the first message that it covers; the others
        are removed by their ids. Other changes to the state stay.
        """
        if self.summary is None:
            return reply
        ids = {message.id for message in self.covered if message.id}
        held = [one.id for one in self.request.state["messages"] if one.id in ids]
        self.summary.id = held[0] if held else None
        gone = [RemoveMessage(id=id) for id in held[1:] if id]
        return ExtendedModelResponse(reply, Command(update={"messages": [*gone, self.summary]}))


def _cuts(messages: Sequence[AnyMessage]) -> list[int]:
    """The places where these may be cut, so that more than an earlier summary is summed up."""
    alone = bool(messages) and messages[0].additional_kwargs.get(SOURCE) == SUMMED_UP
    return [cut for cut in safe_cuts(messages) if cut > alone]


def _prompt(request: _Request) -> list[BaseMessage]:
    system = [request.system_message] if request.system_message is not None else []
    return [*system, *request.messages]


def _tools_shown(request: _Request) -> list[Any]:
    """The tools that the agent shows the model, including those that stand for an answer's form."""
    form, profile = request.response_format, getattr(request.model, "profile", None) or {}
    if isinstance(form, AutoStrategy) and not profile.get("structured_output"):
        form = ToolStrategy(form.schema)
    if not isinstance(form, ToolStrategy):
        return list(request.tools)
    made = [OutputToolBinding.from_schema_spec(spec).tool for spec in form.schema_specs]
    return [*request.tools, *map(convert_to_openai_tool, made)]


def _unseen(model: BaseChatModel) -> BaseChatModel:
    """The model, with its answer kept out of the stream to the agent's user."""
    if not isinstance(model, BaseChatModel):
        return model  # bound to something, and without a place for tags
    tags = [*(model.tags or ()), TAG_NOSTREAM]
    metadata = {**(model.metadata or {}), **_MARK, **internal_call_metadata()}
    return model.model_copy(update={"tags": tags, "metadata": metadata})


def _context(model: Any) -> int | None:
    """Tokens that a model's context holds, if known."""
    held = (getattr(model, "profile", None) or {}).get("max_input_tokens")
    return held if isinstance(held, int) else None


def _met_the_end(answer: BaseMessage, context: int | None) -> bool:
    """True if the model's context, and not the model, ended an answer."""
    usage = getattr(answer, "usage_metadata", None)
    cut = answer.response_metadata.get("finish_reason") == "length"
    return bool(cut and usage and context is not None and usage["total_tokens"] >= context)


def _tell(what: str) -> None:
    warnings.warn(what, stacklevel=3)

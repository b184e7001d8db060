"""A request made ready before any token is computed: its ids, its limits and its constraints.

Everything that can be wrong with a request is refused here, by the name of its field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..cache.identity import Identity, namespace_of
from ..chat.call_forms import Thinking, thinking_of
from ..chat.forms import Form
from ..chat.generated import MOST_IDS
from ..chat.grammar import (
    Caps,
    Grammar,
    check_tools_end,
    json_object_grammar,
    regex_grammar,
    schema_grammar,
    told_unheld,
    tool_grammar,
)
from ..chat.hand_forms import GENERIC
from ..chat.history import History, history_of
from ..chat.mends import GENERIC_TOOLS, told
from ..chat.messages import Message, check_messages
from ..chat.rendering import render, render_continued
from ..chat.transcript import Transcript
from ..models.errors import PromptTooLongError

if TYPE_CHECKING:
    from ..models.chat_tokenizer import TemplateTokenizer
    from ..models.loading import LoadedModel
    from .request import GenerationRequest

# The last tokens of a prompt, which hold the marks of reasoning at its end, if any.
_PROMPT_END = 128
# The most tokens of an answer without a limit of its own: no record holds more.
_MOST_TOKENS = MOST_IDS
# A question that nobody asked: the part that it shares with any other one can be warmed.
_PROBE = Message("user", "Question?")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request, the ids that ask it, and how its answer is written, held and read.

    `plain_namespace` holds the rows of a path that is still too short to be quantised. `notes`
    are for the user: where the prompt or a constraint differs from what was asked. `history` is
    the record of the conversation's earlier answers.
    """

    request: GenerationRequest
    namespace: str
    plain_namespace: str
    transcript: Transcript
    limit: int
    form: Form | None = None
    thinking: Thinking | None = None
    grammar: Grammar | None = None
    notes: tuple[str, ...] = ()
    history: History = field(default_factory=History)


def prepare(
    request: GenerationRequest,
    loaded: LoadedModel,
    tokenizer: TemplateTokenizer,
    identity: Identity,
) -> Prepared:
    """The request ready to run; ValueError names the field and its fault."""
    plain = namespace_of(identity.rows, request.cache_salt)
    if request.kv is not None:
        request = replace(request, kv=loaded.fitting(request.kv))
    namespace = _namespace(request, identity)
    tools = () if request.tool_choice == "none" and not request.tool else request.tools
    _check_bias(request, loaded)
    # Tools that may not be called stay in the prompt: the next turn shares it.
    transcript = transcript_of(request, loaded, tokenizer, identity.model)
    check_tools_end(tools)
    limit = limit_of(request.max_tokens, loaded.context_length, len(transcript.ids))
    own = _form_told(transcript, tokenizer)
    # A model that writes in channels does so without tools too.
    form = own if tools or own.channels is not None else None
    grammar = _grammar(request, own, has_tools=bool(tools))
    thinking = _thinking(tokenizer, transcript)
    notes = (
        *told(transcript.mends),
        *told_unheld(grammar),
        *_told_thinking(request, tokenizer, thinking),
    )
    history = _history(request, transcript, identity)
    return Prepared(
        request, namespace, plain, transcript, limit, form, thinking, grammar, notes, history
    )


def _form_told(transcript: Transcript, tokenizer: TemplateTokenizer) -> Form:
    """The form of calls that the prompt tells the model: its own, or the generic one."""
    own = tokenizer.call_form
    generic = transcript.mends & GENERIC_TOOLS and not tokenizer.prompt_form.example
    if own.channels is None and generic:
        return replace(GENERIC, special=own.special)
    return own


def _history(request: GenerationRequest, transcript: Transcript, identity: Identity) -> History:
    """The record of the conversation's earlier answers; a prompt that is warmed has none."""
    if request.warm:
        return History()
    return history_of(request.messages, request.tools, transcript, identity.model)


def _namespace(request: GenerationRequest, identity: Identity) -> str:
    kv = request.kv
    settings = None if kv is None else (kv.bits, kv.group_size or 0, kv.start)
    return namespace_of(identity.rows, request.cache_salt, settings)


def _thinking(tokenizer: TemplateTokenizer, transcript: Transcript) -> Thinking | None:
    if tokenizer.reasoning is None:
        return None
    prompt = tokenizer.decode(transcript.ids[-_PROMPT_END:])
    return thinking_of(tokenizer.reasoning, prompt, lambda mark: tokenizer.encode(mark)[0])


def _told_thinking(
    request: GenerationRequest, tokenizer: TemplateTokenizer, thinking: Thinking | None
) -> tuple[str, ...]:
    """A note if the wish to think, or not to, changes nothing; ValueError if it can't be met."""
    wanted = request.thinking
    if wanted is None or tokenizer.thinking_switch:
        return ()
    if not tokenizer.reasons:
        if wanted and "thinking" not in request.if_possible:
            raise ValueError(
                "thinking is asked for, and this model has none; leave it out, or use one that has"
            )
        return ("thinking was asked for, and this model has none",) if wanted else ()
    if wanted and thinking is not None and thinking.opened:
        return ()
    return ("this model's chat template has no switch for thinking: the model does as it likes",)


def _check_bias(request: GenerationRequest, loaded: LoadedModel) -> None:
    """ValueError if a bias is for no token: MLX would write behind the logits."""
    for token, _ in request.sampling.logit_bias:
        if not 0 <= token < loaded.vocab_size:
            raise ValueError(
                f"logit_bias names token {token}; this model's are 0 to {loaded.vocab_size - 1}"
            )


def _check_ids(transcript: Transcript, loaded: LoadedModel) -> None:
    """ValueError if a token is none of the model's: MLX would read behind its embedding.

    A tokenizer may be another model's, and an id in a history anybody's.
    """
    if (most := max(transcript.ids, default=0)) >= loaded.vocab_size:
        raise ValueError(
            f"the prompt holds token {most} and the model's are 0 to {loaded.vocab_size - 1};"
            f" its tokenizer is another model's, or a record in the history is: see {loaded.folder}"
        )


def transcript_of(
    request: GenerationRequest, loaded: LoadedModel, tokenizer: TemplateTokenizer, model: str
) -> Transcript:
    """The ids that a request asks with; ValueError names its fault."""
    messages = request.messages
    if request.warm and not any(message.role == "user" for message in messages):
        messages = (*messages, _PROBE)
    check_messages(messages)
    make = render_continued if request.continue_final else render
    transcript = make(
        messages,
        tokenizer,
        fingerprint=model,
        tools=request.tools,
        template_arguments=arguments_of(request, tokenizer.thinking_argument),
    )
    _check_ids(transcript, loaded)
    if not request.warm:
        return transcript
    return _stable(transcript, probed=messages is not request.messages)


def _stable(transcript: Transcript, *, probed: bool) -> Transcript:
    """The beginning that later prompts share, and one token more, which is never run."""
    ends = [b.position for b in transcript.boundaries if not probed or b.tier == "system"]
    if not ends:
        raise ValueError(
            "messages hold nothing that every prompt shares; give a system message or tools"
        )
    last = ends[-1]
    boundaries = tuple(b for b in transcript.boundaries if b.position <= last)
    return transcript._replace(ids=transcript.ids[: last + 1], boundaries=boundaries)


def arguments_of(request: GenerationRequest, thinking: str) -> Mapping[str, Any]:
    """The template's arguments besides messages and tools; `thinking` is its word for that."""
    if request.thinking is None:
        return request.template_arguments
    return {**request.template_arguments, thinking: request.thinking}


def limit_of(max_tokens: int | None, context: int | None, prompt: int) -> int:
    """The most tokens that the answer may have; PromptTooLongError if the prompt leaves none."""
    most = _MOST_TOKENS if max_tokens is None else max_tokens
    if context is None:
        return most
    if prompt >= context:
        raise PromptTooLongError(
            f"the prompt has {prompt} tokens and the model's context holds {context};"
            " shorten the prompt or use a model with a longer context"
        )
    return min(most, context - prompt)


def _grammar(request: GenerationRequest, form: Form, *, has_tools: bool) -> Grammar | None:
    """The grammar of the answer; None if it may be any text."""
    if request.warm:
        return None
    schema = {"type": "object"} if request.json_object else request.schema
    caps = Caps(string=request.max_string)
    if has_tools:
        choice: str | Literal[True] | None = request.tool or None
        if choice is None and request.tool_choice == "any":
            choice = True
        if choice is None and schema is None:
            # The model's words are read as they come: a grammar would mask some of them.
            return None
        calls = 1 if request.tool else request.max_calls
        return tool_grammar(request.tools, choice, form, calls=calls, schema=schema, caps=caps)
    if request.json_object:
        return json_object_grammar(caps=caps, form=form)
    if schema is not None:
        return schema_grammar(schema, caps=caps, form=form)
    return regex_grammar(request.regex, form=form) if request.regex else None

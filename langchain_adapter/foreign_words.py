"""Words of other chat models that are no settings here, each with its substitute.

docs/langchain-from.md has all words of ChatOpenAI, ChatOllama and ChatMLX; a test holds the two
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_NOT_SENT: Final = "the model runs in this program and nothing is sent anywhere; leave it out"
_NO_KEY: Final = "there is no server and so no key; leave it out"
_HALTED: Final = "who stops reading a stream stops the model; leave it out"
_IN_A_CALL: Final = "it is said with a call, or bound: chat.bind({}=...)"
_WITH_TOOLS: Final = "it is said where tools are bound: chat.bind_tools(tools, {}=...)"
_TEMPLATES: Final = (
    "where the model's chat template knows it, it is one of template_arguments, as in"
    ' template_arguments={"reasoning_effort": "high"}'
)
_NO_EQUAL: Final = "there is nothing like it here; leave it out"
_A_FIELD: Final = "each setting is an argument of its own; give them one by one"

# ChatOpenAI's, and of those who are made like it.
_OPENAI: Final = {
    "reasoning_effort": _TEMPLATES,
    "extra_body": "what a chat template takes beside messages is template_arguments",
    "verbosity": "say in the system prompt how long answers are to be",
    "n": "ask chat.batch for the same prompt so many times; the prompt is computed once",
    "best_of": "ask chat.batch for the same prompt so many times; the prompt is computed once",
    "model_kwargs": _A_FIELD,
    "disabled_params": "leave out what you don't want to give",
    "stream_usage": "the last chunk of a stream has the usage always; leave it out",
    "stream_options": "the last chunk of a stream has the usage always; leave it out",
    "request_timeout": _HALTED,
    "stream_chunk_timeout": _HALTED,
    "openai_api_key": _NO_KEY,
    "openai_api_base": "there is no server; resident=True has a process of this machine stay",
    "organization": "what keeps users apart is cache_salt",
    "openai_organization": "what keeps users apart is cache_salt",
    "user": "what keeps users apart is cache_salt",
    "include_response_headers": "what is known of an answer is in its response_metadata",
    "tiktoken_model_name": (
        "tokens are counted by the model's own tokenizer; custom_get_token_ids counts otherwise"
    ),
    "prompt_cache_options": "prefixes are reused where use_cache is True, and chat.warm pins one",
    "store": "what is computed is kept on your own disk where on_disk is True",
    "service_tier": _NO_EQUAL,
    "include": _NO_EQUAL,
    "context_management": "middleware shortens conversations, as PrefixKeepingSummarization does",
    "truncation": "nothing is cut off a prompt: one that is too long is a ContextOverflowError",
    "use_previous_response_id": "give the messages back: only what is new of them is computed",
    "use_responses_api": 'output_version="v1" has content as blocks',
    **dict.fromkeys(
        [
            *("openai_proxy", "client", "async_client", "root_client", "root_async_client"),
            *("http_client", "http_async_client", "http_socket_options"),
            *("default_headers", "default_query"),
        ],
        _NOT_SENT,
    ),
}

_OLLAMA: Final = {
    "num_ctx": (
        "the context is the model's own, and a prompt that it can't hold is an error; max_tokens"
        " bounds an answer"
    ),
    "repeat_last_n": "penalties look at the last 256 tokens; leave it out",
    "format": "the form of answers is response_format, said with a call, or with_structured_output",
    "mirostat": "there is no Mirostat here; min_p is near to it",
    "mirostat_eta": "there is no Mirostat here; min_p is near to it",
    "mirostat_tau": "there is no Mirostat here; min_p is near to it",
    "tfs_z": "there is no tail-free sampling here; min_p is near to it",
    "num_gpu": "MLX runs the whole model on one device; leave it out",
    "num_thread": "MLX chooses its threads; on Linux OPENBLAS_NUM_THREADS bounds them",
    "num_batch": "prompts are computed in pieces that fit the machine; leave it out",
    "keep_alive": (
        "a model stays as long as this process, and with resident=True as long as the host"
    ),
    "validate_model_on_init": "the first call loads the model, and says what is wrong with it",
    **dict.fromkeys(["client_kwargs", "async_client_kwargs", "sync_client_kwargs"], _NOT_SENT),
}

_MLX: Final = {
    "llm": 'the model is named, as in ChatMLXCached(model="mlx-community/...")',
    "model_id": 'the model is named, as in ChatMLXCached(model="mlx-community/...")',
    "tokenizer": "the tokenizer is the model's own; leave it out",
    "tokenizer_config": "what a chat template takes beside messages is template_arguments",
    "adapter_file": 'an adapter stands in the name of the model: model="MODEL@FOLDER"',
    "adapter_path": 'an adapter stands in the name of the model: model="MODEL@FOLDER"',
    "lazy": "the first call loads the model, as a whole; leave it out",
    "system_message": "give it as the first message",
    "pipeline_kwargs": _A_FIELD,
    "temp": "it is called temperature",
    "min_tokens_to_keep": "min_p always leaves one token; leave it out",
    "repetition_context_size": "penalties look at the last 256 tokens; leave it out",
    "formatter": _NO_EQUAL,
}

# Arguments of each call, which are no settings of the model.
_OF_CALLS: Final = {
    **{name: _IN_A_CALL.format(name) for name in ("response_format", "regex", "continue_final")},
    **{name: _WITH_TOOLS.format(name) for name in ("tool_choice", "strict", "parallel_tool_calls")},
    "tools": "they are bound: chat.bind_tools(tools)",
}

# The reason why a word is no setting: its substitute, or that there is none.
WHY_NOT: Final[Mapping[str, str]] = MappingProxyType({**_OPENAI, **_OLLAMA, **_MLX, **_OF_CALLS})

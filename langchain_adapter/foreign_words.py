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
_HALTED: Final = "when you stop reading a stream, the model stops; leave it out"
_IN_A_CALL: Final = "give it with a call, or bind it: chat.bind({}=...)"
_WITH_TOOLS: Final = "give it where you bind tools: chat.bind_tools(tools, {}=...)"
_TEMPLATES: Final = (
    "if the model's chat template has it, give it in template_arguments, as in"
    ' template_arguments={"reasoning_effort": "high"}'
)
_NO_EQUAL: Final = "there is nothing like it here; leave it out"
_A_FIELD: Final = "each setting is an argument of its own; give them one by one"

# ChatOpenAI's, and of those who are made like it.
_OPENAI: Final = {
    "reasoning_effort": _TEMPLATES,
    "extra_body": "give a chat template's other arguments as template_arguments",
    "verbosity": "write into the system prompt how long answers should be",
    "n": "ask chat.batch for the same prompt so many times; the prompt is computed once",
    "best_of": "ask chat.batch for the same prompt so many times; the prompt is computed once",
    "model_kwargs": _A_FIELD,
    "disabled_params": "leave out what you don't want to give",
    "stream_usage": "the last chunk of a stream always has the usage; leave it out",
    "stream_options": "the last chunk of a stream always has the usage; leave it out",
    "request_timeout": _HALTED,
    "stream_chunk_timeout": _HALTED,
    "openai_api_key": _NO_KEY,
    "openai_api_base": "there is no server; resident=True uses a local process that stays",
    "organization": "cache_salt separates users",
    "openai_organization": "cache_salt separates users",
    "user": "cache_salt separates users",
    "include_response_headers": "see the answer's response_metadata",
    "tiktoken_model_name": (
        "the model's own tokenizer counts tokens; custom_get_token_ids replaces it"
    ),
    "prompt_cache_options": "prefixes are reused unless use_cache is False, and chat.warm pins one",
    "store": "everything is kept on your own disk, unless on_disk is False",
    "service_tier": _NO_EQUAL,
    "include": _NO_EQUAL,
    "context_management": "use middleware that shortens conversations: PrefixKeepingSummarization",
    "truncation": "a prompt that is too long is a ContextOverflowError; nothing is cut off",
    "use_previous_response_id": "send the messages again: only what is new is computed",
    "use_responses_api": 'output_version="v1" gives content as blocks',
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
        " limits an answer"
    ),
    "repeat_last_n": "penalties count the last 256 tokens; leave it out",
    "format": "give response_format with a call, or use with_structured_output",
    "mirostat": "there is no Mirostat here; min_p is similar",
    "mirostat_eta": "there is no Mirostat here; min_p is similar",
    "mirostat_tau": "there is no Mirostat here; min_p is similar",
    "tfs_z": "there is no tail-free sampling here; min_p is similar",
    "num_gpu": "MLX runs the whole model on one device; leave it out",
    "num_thread": "MLX chooses its threads; on Linux OPENBLAS_NUM_THREADS limits them",
    "num_batch": "prompts are computed in chunks that suit the machine; leave it out",
    "keep_alive": (
        "a model stays loaded as long as this process; with resident=True, as long as the host"
    ),
    "validate_model_on_init": "the first call loads the model and reports what is wrong with it",
    **dict.fromkeys(["client_kwargs", "async_client_kwargs", "sync_client_kwargs"], _NOT_SENT),
}

_MLX: Final = {
    "llm": 'give the model by its name, as in ChatMLXCached(model="mlx-community/...")',
    "model_id": 'give the model by its name, as in ChatMLXCached(model="mlx-community/...")',
    "tokenizer": "the tokenizer is the model's own; leave it out",
    "tokenizer_config": "give a chat template's other arguments as template_arguments",
    "adapter_file": 'give an adapter with the name of the model: model="MODEL@FOLDER"',
    "adapter_path": 'give an adapter with the name of the model: model="MODEL@FOLDER"',
    "lazy": "the first call loads the whole model; leave it out",
    "system_message": "give it as the first message",
    "pipeline_kwargs": _A_FIELD,
    "temp": "it is called temperature",
    "min_tokens_to_keep": "min_p always leaves one token; leave it out",
    "repetition_context_size": "penalties count the last 256 tokens; leave it out",
    "formatter": _NO_EQUAL,
}

# Arguments of each call, which are no settings of the model.
_OF_CALLS: Final = {
    **{name: _IN_A_CALL.format(name) for name in ("response_format", "regex", "continue_final")},
    **{name: _WITH_TOOLS.format(name) for name in ("tool_choice", "strict", "parallel_tool_calls")},
    "tools": "bind them: chat.bind_tools(tools)",
}

# The reason why a word is no setting: its substitute, or that there is none.
WHY_NOT: Final[Mapping[str, str]] = MappingProxyType({**_OPENAI, **_OLLAMA, **_MLX, **_OF_CALLS})

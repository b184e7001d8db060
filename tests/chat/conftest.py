"""A byte-level BPE tokenizer trained here, and chat templates of the families people run."""

import json

import jinja2
import pytest
import tool_templates
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.chat.prompt import UNMENDED

TEXT = """Paris is the capital of France. The capital of Italy is Rome, and that of Spain is
Madrid. What is the capital of Norway? Answer in one short sentence. You are a helpful assistant
who knows geography and history. The user asks, the system decides, the assistant answers."""

START, END = "<|im_start|>", "<|im_end|>"
FINGERPRINT = "model-a"

_TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + CONTENT + '<|im_end|>\\n' }}"
_LOOP = "{% for m in messages %}" + _TURN + "{% endfor %}"
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and loop.index0 < ns.last and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    + _TURN.replace("CONTENT", "c")
    + "{% endfor %}"
)
# Gemma: the system's text goes into the first user turn, roles must alternate, "model" answers.
_GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}"
    "{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant') }}"
    "{% endif %}{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ (first if loop.first else '') + m['content'] | trim }}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"
)
# Mistral: the system's text goes into the LAST user turn, answers have spaces round them.
_MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{% elif m['role'] == 'user' %}"
    "{{ '[INST] ' }}{% if loop.last and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + '\\n\\n' }}{% endif %}{{ m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' <|im_end|>' }}{% endif %}{% endfor %}"
)
_SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TEMPLATES = {
    "chatml": _LOOP.replace("CONTENT", "m['content']") + _PROMPT,
    "smollm2": _SMOLLM2,
    "trim": _LOOP.replace("CONTENT", "m['content'] | trim") + _PROMPT,
    "gemma": _GEMMA,
    "mistral": _MISTRAL,
    "thinking": _THINKING + _PROMPT,
    "empty_think": _LOOP.replace("CONTENT", "m['content']")
    + _PROMPT.replace("assistant\\n", "assistant\\n<think>\\n\\n</think>\\n\\n"),
    # An empty think block before every answer that is shown, and none before the one to come.
    "late_think": _LOOP.replace(
        "CONTENT", "('<think></think>' if m['role'] == 'assistant' else '') + m['content']"
    )
    + _PROMPT,
    "twice": _LOOP.replace("CONTENT", "m['content'] + '|' + m['content']") + _PROMPT,
    # The text behind an answer depends on it, and so does the text before all of them on each.
    "echo": _LOOP.replace("CONTENT", "m['content'] + '<|im_end|>' + m['content'][0]") + _PROMPT,
    "counting": "{{ messages | length }}" + _LOOP.replace("CONTENT", "m['content']") + _PROMPT,
    "no_turn_end": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    "json": _LOOP.replace("CONTENT", "m['content'] | tojson") + _PROMPT,
    # Refuses whatever is not part of the real conversation in the tests that use it.
    "suspicious": "{% for m in messages %}{% if 'capital' not in m['content'] %}"
    "{{ raise_exception('not about a capital') }}{% endif %}{% endfor %}"
    + _LOOP.replace("CONTENT", "m['content']")
    + _PROMPT,
    **tool_templates.TEMPLATES,
}


class Chat:
    """`ChatTokenizer` over a template and a tokenizer; counts what it is asked for."""

    def __init__(self, tokenizer, template):
        self.tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = self._refuse
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(template)
        self.stop_ids = frozenset([tokenizer.token_to_id(END)])
        self.prompt_form = UNMENDED
        self.applied = 0
        self.encoded = []

    def _refuse(self, message):
        raise jinja2.TemplateError(message)

    def apply(self, messages, *, add_generation_prompt, **arguments):
        self.applied += 1
        return self._template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, **arguments
        )

    def encode(self, text):
        self.encoded.append(text)
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, [end for _, end in encoded.offsets]

    def decode(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def whole(self, messages, **arguments):
        """The conversation's text, rendered and encoded without this project's code."""
        return self.apply(
            [{"role": m.role, "content": m.content} for m in messages],
            add_generation_prompt=True,
            **arguments,
        )

    def drifted(self, text):
        """Ids of `text`, one byte each: never what encoding it gives, where merges apply."""
        ids = []
        for character in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text):
            ids += [self.tokenizer.token_to_id(byte) for byte in character[0]]
        return ids

    def answer(self, text, *, stop=True, fingerprint=FINGERPRINT, content=None, **record):
        """An assistant's message that was generated as drifted ids."""
        ids = self.drifted(text) + (sorted(self.stop_ids) if stop else [])
        content = text if content is None else content
        return Message("assistant", content, Generated.of(ids, text, fingerprint, **record))

    def generated(self, raw, content="", reasoning="", calls=(), stop=True):
        """An answer of parts, generated as the drifted ids of `raw`."""
        ids = self.drifted(raw) + (sorted(self.stop_ids) if stop else [])
        parts = {"reasoning": reasoning, "tool_calls": tuple(calls)}
        kept = Generated.of(ids, content, FINGERPRINT, **parts)
        return Message("assistant", content, kept, **parts)


def train(prepend=False, swallow=False):
    """A tokenizer; `swallow`: the end token takes the white space behind it, like Phi's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prepend)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    if swallow:
        tokenizer.add_special_tokens([AddedToken(END, rstrip=True, special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def trained():
    """One trained tokenizer a variant, since training is what takes time."""
    return {
        "plain": train(),
        "prepend": train(prepend=True),
        "swallow": train(swallow=True),
    }


@pytest.fixture(scope="session")
def chat(trained):
    """Make a `Chat` by the template's name, or from a template's text."""

    def make(template="chatml", variant="plain"):
        return Chat(trained[variant], TEMPLATES.get(template, template))

    return make

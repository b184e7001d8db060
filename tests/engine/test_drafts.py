"""Law 17: a draft changes no token. Right and wrong ones are played into every way of choosing."""

import dataclasses

import pytest
from played_drafts import WAYS, chances, plainly, playing, same, scheduler_over
from readers import MAGIC, Counting, Reader, request, steady_clock, together
from test_kinds import KINDS

from llm_mlx_promptcache.cache import device
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine.answers import AnswerStream
from llm_mlx_promptcache.engine.events import TextDelta
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import Sampling
from llm_mlx_promptcache.models.kv_settings import KVSettings

pytestmark = pytest.mark.drafts

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["lamp", "lantern", "lens"]},
        "lit": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    },
    "required": ["name", "kind", "lit"],
}


@pytest.mark.parametrize(
    "how",
    [
        {"schema": SCHEMA, "max_tokens": 90},
        {"tools": (MAGIC,), "tool": "magic", "max_tokens": 90},
        {"regex": "[a-c]{3}(one|two|three)[0-9]{4}", "max_tokens": 60},
        {"schema": SCHEMA, "max_tokens": 90, "sampling": Sampling(temperature=1, seed=4)},
        {"schema": SCHEMA, "max_tokens": 90, "logprobs": 1},
        {"stop": ("ee",), "max_tokens": 60, "sampling": Sampling(temperature=1.3, seed=2)},
    ],
    ids=lambda how: "-".join(how),
)
def test_law_17_nor_with_grammars_stop_strings_and_quantised_rows(scheduler_of, drafted, how):
    one = request("Two?", system=False, **how)
    scheduler = scheduler_of()
    right = plainly(scheduler, one).last
    whole = plainly(scheduler, dataclasses.replace(one, stop=())).last
    offered = 0
    for seed in range(6):
        reader, played = drafted(scheduler, one, whole, seed)
        last = reader.last
        offered += played.offered
        assert (last.ids, last.text, last.reason) == (right.ids, right.text, right.reason), seed
        assert [c.arguments for c in last.tool_calls] == [c.arguments for c in right.tool_calls]
        assert chances(last) == pytest.approx(chances(right), abs=1e-3)
    assert offered


def test_law_17_what_a_grammar_forces_comes_though_a_bias_forbids_it(scheduler_of, drafted):
    """Alone it comes in runs without a choice: so it does one by one, at drafts' ends, in a batch.

    `never` is in the only answer that there is, and the end of answers is forbidden too.
    """
    scheduler = scheduler_of()
    never = scheduler._intake._loaded.tokenizer.encode("never", add_special_tokens=False)
    sampling = Sampling(logit_bias=tuple((one, -float("inf")) for one in (*never, 0, 1, 2)))
    one = request("Two?", regex="(ab|cd){3}never(ab|cd){9}never", max_tokens=60, sampling=sampling)
    right = plainly(scheduler, one).last
    assert right.reason == "stop"
    for seed in range(6):
        reader, played = drafted(scheduler, one, right, seed, wrong=0.1)
        same(reader.last, right)
        assert played.offered
    for last in (
        together(scheduler, dataclasses.replace(one, logprobs=1, drafts=False))[0].last,
        *(reader.last for reader in together(scheduler, one, one)),
    ):
        assert (last.ids, last.text, last.reason) == (right.ids, right.text, right.reason)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_law_17_nor_where_rows_are_quantised_in_the_middle(loaded_kind, drafted, kind):
    loaded = loaded_kind(kind, head_dim=32)
    scheduler = scheduler_here(
        loaded, Identity(kind, kind), PromptCache("9MB"), clock=steady_clock()
    )
    one = request("Two?", max_tokens=40)
    start = plainly(scheduler, one).last.usage.prompt + 9
    one = dataclasses.replace(one, kv=KVSettings(8, 32, start))
    right = plainly(scheduler, one).last
    for seed in range(4):
        reader, played = drafted(scheduler, one, right, seed)
        assert reader.last.ids == right.ids
        assert played.offered


def test_law_17_a_limit_is_met_exactly(scheduler_of, drafted):
    scheduler = scheduler_of()
    right = plainly(scheduler, request("Two?", max_tokens=30)).last
    for most in range(1, 20):
        one = request("Two?", max_tokens=most)
        reader, _ = drafted(scheduler, one, right, most, wrong=0.0)
        assert reader.last.ids == right.ids[:most]
        assert reader.last.reason == "length"


def test_right_drafts_save_passes_and_wrong_ones_cost_none(scheduler_of, drafted):
    scheduler = scheduler_of()
    one = request("Two?", max_tokens=40)
    right = plainly(scheduler, one).last
    passes = {}
    for wrong in (0.0, 1.0):
        model = scheduler._decode._batches._model = Counting(scheduler._prefill._model)
        drafted(scheduler, one, right, 1, wrong=wrong, widest=8)
        passes[wrong] = model.passes
    assert passes[0.0] < 16
    assert passes[1.0] <= 41


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba2", "falcon_h1"])
def test_law_17_who_steps_with_others_drafts_nothing_and_again_when_it_is_alone(loaded_kind, kind):
    """The rest of an answer takes as few passes as if the others had never been there."""
    loaded = loaded_kind(kind)
    scheduler = scheduler_over(loaded)
    endless = Sampling(logit_bias=((0, -1e3), (1, -1e3), (2, -1e3)))
    beside = request("Two?", max_tokens=12, sampling=endless, drafts=False)
    one = request("What comes after two?", max_tokens=60, sampling=endless)
    right, other = plainly(scheduler, one).last, plainly(scheduler, beside).last
    model = scheduler._decode._batches._model = Counting(loaded.model)
    with playing(right.ids, 2, wrong=0.0, silent=0.0) as made:
        readers = together(scheduler, beside, one)
    same(readers[0].last, other)
    same(readers[1].last, right)
    shared = [at for at, (answers, _) in enumerate(model.shapes) if answers == 2]
    assert len(shared) >= 9
    assert {model.shapes[at] for at in shared} == {(2, 1)}
    alone = model.shapes[shared[-1] + 1 :]
    told = sum(tokens for _, tokens in alone)
    assert told >= 60 - 12
    assert len(alone) <= told / 3
    assert made[0].accepted == readers[1].last.usage.accepted >= told - len(alone)


def told(reader):
    return [event for event in reader.events if isinstance(event, TextDelta)]


class Pieces(Reader):
    """A reader that keeps apart what it is told at once."""

    def __init__(self, request):
        super().__init__(request)
        self.pieces = []

    def send(self, *told):
        super().send(*told)
        self.pieces.append(told)


def test_what_a_pass_brings_is_told_at_once(loaded_kind, drafted, monkeypatch):
    """A reader in another process wakes once for it; a token that can't be told hides no other."""
    loaded = loaded_kind(next(iter(KINDS)))
    scheduler = scheduler_here(loaded, Identity("m", "m"), PromptCache("100MB"))
    one = request("What is it that comes after two?", max_tokens=40)
    right = plainly(scheduler, one).last
    reader, _ = drafted(scheduler, Pieces(one), right, seed=1, wrong=0, widest=8)
    assert reader.last.ids == right.ids
    texts = [[one for one in piece if isinstance(one, TextDelta)] for piece in reader.pieces]
    assert max(map(len, texts)) > 1
    assert [one for piece in texts for one in piece] == told(reader)

    real, taken, yielded = AnswerStream.take, [], []

    def take(stream, token, logprobs=None):
        taken.append(token)
        if len(taken) == len(right.ids) - 1:
            raise ValueError("this token can't be told")
        for event in real(stream, token, logprobs):
            yielded.append(event)
            yield event

    monkeypatch.setattr(AnswerStream, "take", take)
    reader, _ = drafted(scheduler, Pieces(one), right, seed=1, wrong=0, widest=8)
    *_, error, end = reader.events
    assert (str(error), end) == ("this token can't be told", None)
    assert taken == list(right.ids[:-1])
    assert told(reader) == yielded
    assert yielded


@pytest.mark.parametrize("kind", KINDS)
def test_law_17_rows_behind_the_answers_end_are_not_kept(loaded_kind, drafted, kind):
    loaded = loaded_kind(kind)
    one = request("What is it that comes after two?", max_tokens=60, **WAYS["seed"])
    schedulers = [
        scheduler_here(loaded, Identity("m", "m"), PromptCache("100MB"), clock=steady_clock())
        for _ in range(2)
    ]
    whole = plainly(schedulers[0], one).last
    behind = 0
    for at in range(3, len(whole.text) // 2, 7):
        stopped = dataclasses.replace(one, stop=(whole.text[at : at + 3],))
        plain = together(schedulers[0], dataclasses.replace(stopped, drafts=False))[0].last
        reader, played = drafted(schedulers[1], stopped, whole, at, wrong=0.1, widest=16)
        assert (reader.last.ids, reader.last.text) == (plain.ids, plain.text)
        behind += max(0, played.accepted - len(plain.ids))
        assert reader.last.usage.accepted <= plain.usage.generated
        held = [each._kv._cache.stats()["memory"]["tokens"] for each in schedulers]
        assert held[0] == held[1], at
    assert behind
    said = Message("assistant", plain.text, Generated.of(plain.ids, plain.text, plain.fingerprint))
    again = dataclasses.replace(
        stopped, stop=(), messages=(*one.messages, said, Message("user", "And then?")), drafts=False
    )
    warm, cold = together(schedulers[1], again)[0].last, plainly(schedulers[1], again).last
    assert warm.usage.cached
    assert warm.ids == cold.ids
    assert schedulers[1]._kv._cache.check() == []


class Disturbed:
    """A model beside which another one's work fails while its `at`th draft is run."""

    def __init__(self, model, at):
        self._model, self._at = model, at
        self.wide = 0

    def __call__(self, tokens, cache=None):
        self.wide += 1 < tokens.size < 60
        if 1 < tokens.size < 60 and self.wide == self._at:
            device.note(RuntimeError("[metal] another model's command failed"))
        return self._model(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_law_17_what_a_grammar_forced_is_not_lost_where_another_models_work_fails(
    scheduler_of, drafted
):
    one = request("Two?", schema=SCHEMA, max_tokens=90)
    scheduler = scheduler_of()
    right = plainly(scheduler, one).last
    model = scheduler._prefill._model
    passes = at = 0
    while passes >= at:
        at += 1
        disturbed = scheduler._decode._batches._model = Disturbed(model, at)
        reader, _ = drafted(scheduler, one, right, 3, wrong=0.0, widest=3)
        assert (reader.last.ids, reader.last.text) == (right.ids, right.text), at
        passes = disturbed.wide
    assert at > 5

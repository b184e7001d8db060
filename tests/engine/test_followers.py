"""Law 18 with ranks as processes: all that an engine does, as the whole model does it."""

import json
import shutil

import pytest
from rank_groups import RankGroup
from readers import MAGIC, request
from whole_models import SYSTEM, TURNS, Chat, Whole, same

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.drafting import NO_DRAFTS
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.models.kv_settings import KVSettings

pytestmark = pytest.mark.slow


SCHEMA = {
    "type": "object",
    "properties": {"lit": {"type": "boolean"}, "hours": {"type": "integer", "maximum": 24}},
    "required": ["lit", "hours"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(layers=4, hidden=128)


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    return tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def whole(folder, disks):
    return Whole(folder, disks / "whole")


@pytest.fixture(scope="module")
def pair(folder, disks):
    with RankGroup(folder, disks) as group:
        yield group.ready()
        group.close()


def test_law_18_a_chat_of_three_turns_is_the_whole_model_s(whole, pair):
    chat = Chat(whole, pair)
    assert chat.say(TURNS[0]).usage.cached == 0
    for said in TURNS[1:]:
        before = chat.before
        usage = chat.say(said).usage
        assert usage.cached >= before  # prefilled / new is 1.00
        assert usage.drafted == 0


def test_control_words_are_few_and_small(whole, pair):
    chat = Chat(whole, pair)
    answer = chat.say("How many ships?", max_tokens=40)
    told = pair.told
    steps, size = told.pop("step")
    assert steps >= answer.usage.generated - 1
    assert size <= 8 * steps + 8
    assert sum(size for _, size in told.values()) <= 1024


def test_law_18_tools_are_called_as_the_whole_model_calls_them(whole, pair):
    chat = Chat(whole, pair, tools=(MAGIC,), tool_choice="any", max_tokens=150, max_calls=1)
    answer = chat.say("Do magic with 7.")
    (call,) = answer.tool_calls
    result = Message("tool", "Done.", name="magic", tool_call_id=call.id)
    assert chat.say(result, tool_choice="auto").usage.cached >= answer.usage.prompt


def test_law_18_a_schema_holds_as_in_the_whole_model(whole, pair):
    answer = Chat(whole, pair).say("Give a report.", schema=SCHEMA, max_tokens=60)
    assert answer.text.startswith('{"')
    assert answer.reason == "stop"


@pytest.mark.parametrize("start", [0, 40, 10_000])
def test_law_18_quantised_keys_and_values(whole, pair, start):
    chat = Chat(whole, pair, kv=KVSettings(8, 32, start))
    for said in TURNS[:2]:
        chat.say(said)


def test_law_18_sampling_logprobs_and_stop_strings(whole, pair):
    chat = Chat(whole, pair, sampling=Sampling(temperature=1.0, seed=5, top_p=0.9))
    first = chat.say(TURNS[0], logprobs=2)
    assert len(first.logprobs) == len(first.ids)
    text = first.text
    again = Chat(whole, pair, sampling=Sampling(temperature=1.0, seed=5, top_p=0.9))
    stopped = again.say(TURNS[0], stop=(text[3:5],))
    assert stopped.text == text[: text.index(text[3:5])]
    again.say(TURNS[1])
    # Without a seed rank 0 draws one: all ranks go on with its tokens.
    (free,) = pair.ask(request("Free.", sampling=Sampling(temperature=1.5)))
    assert free.usage.generated > 0


def test_law_18_five_in_a_batch_one_of_them_gone(whole, pair):
    asked = [
        request(f"Number {n}?", max_tokens=12 + 4 * n, drafts=False, cache_salt="batch")
        for n in range(5)
    ]
    asked[3] = request("Report.", schema=SCHEMA, max_tokens=60, drafts=False, cache_salt="batch")
    gone = [None, None, 6, None, None]
    right, answers = whole.ask(*asked, gone=gone), pair.ask(*asked, gone=gone)
    for at in (0, 1, 3, 4):
        same([right[at]], [answers[at]])
    follow_up = [
        request(f"Number {n}?", max_tokens=30, drafts=False, cache_salt="batch") for n in (0, 2)
    ]
    same(whole.ask(*follow_up), pair.ask(*follow_up))


def test_law_18_what_is_wrong_with_one_request_ends_no_group(whole, pair):
    (error,) = pair.ask(request("word " * 4000))
    assert error["kind"] == "PromptTooLongError"
    Chat(whole, pair, cache_salt="after an error").say(TURNS[0])


def test_law_18_warm_pin_salt_off_and_look(whole, pair):
    warm = GenerationRequest((SYSTEM,), warm=True, pin=True, cache_salt="warm")
    for ask in (whole.ask, pair.ask):
        (found,) = ask(warm)
        assert found.usage.prefilled > 0
    chat = Chat(whole, pair, cache_salt="warm")
    assert chat.say(TURNS[0]).usage.cached > 20
    (looked,) = pair.ask(request("Look.", look=True))
    assert looked.undrafted == NO_DRAFTS
    assert Chat(whole, pair, use_cache=False).say(TURNS[0]).usage.cached == 0
    Chat(whole, pair, on_disk=False).say("Not on the disk.")


@pytest.mark.soak
def test_law_18_next_turns_are_prefilled_ahead_on_all_ranks(folder, tmp_path):
    """The template writes more behind an answer once it is history: that is known before."""
    told = shutil.copytree(folder, tmp_path / "told")
    settings = json.loads((told / "tokenizer_config.json").read_text())
    behind = "{{ ', said the keeper of the light' if message['role'] == 'assistant' else '' }}"
    end = "+ '<|im_end|>\\n' }}"
    assert end in settings["chat_template"]
    settings["chat_template"] = settings["chat_template"].replace(
        end, "}}" + behind + "{{ '<|im_end|>\\n' }}"
    )
    (told / "tokenizer_config.json").write_text(json.dumps(settings))
    whole = Whole(told, tmp_path / "whole", ahead=True)
    with RankGroup(told, tmp_path, ahead=True) as group:
        chat = Chat(whole, group.ready())
        chat.say(TURNS[0])
        before = chat.before
        assert chat.say(TURNS[1]).usage.cached > before + 16
        group.head.say(do="stats")
        assert group.head.line()["stats"]["tokens_ahead"] > 16
        group.close()


@pytest.fixture
def switch(disks):
    """`switch(name)`: a file that rank 1 looks for, which is there until the test's end."""
    folder, made = disks / "1" / "switches", []

    def on(name):
        folder.mkdir(exist_ok=True)
        made.append(folder / name)
        made[-1].touch()
        return made[-1]

    yield on
    for one in made:
        one.unlink(missing_ok=True)


def test_law_18_a_rank_that_keeps_less_than_it_should_is_noticed(whole, pair, switch):
    """It skips an insertion: all go on from what it has, and the answer is right."""
    chat = Chat(whole, pair, cache_salt="skipped", same_counts=False)
    chat.say(TURNS[0])
    before, skips = chat.before, switch("skip")
    kept_by_rank_0 = chat.say(TURNS[1]).usage.prompt
    skips.unlink()
    answer = chat.say(TURNS[2])
    assert before <= answer.usage.cached < kept_by_rank_0
    assert answer.why.startswith("another rank holds less")
    assert chat.say("And tomorrow?").usage.cached >= answer.usage.prompt


def test_law_18_a_span_is_pinned_on_every_rank_or_on_none(whole, pair, disks, switch):
    def pins():
        listings = (DiskStore(disks / rank / "spans").listing() for rank in "01")
        return [sum(span.pinned for span in listing.spans) for listing in listings]

    def set_pinned(salt, *, pinned):
        pair.head.say(do="set_pinned", salt=salt, pinned=pinned)
        return pair.head.line()["done"]

    Chat(whole, pair, cache_salt="pins").say(TURNS[0])
    before = pins()
    assert set_pinned("pins", pinned=True)
    assert pins() == [number + 1 for number in before]
    assert set_pinned("pins", pinned=False)
    assert pins() == before
    assert set_pinned("nobody asked", pinned=True) is None
    switch("skip")
    Chat(whole, pair, cache_salt="half").say(TURNS[0])
    assert set_pinned("half", pinned=True) is False
    assert pins() == before


def spans_of(disks):
    return {rank: len(list((disks / rank).rglob("*.safetensors"))) for rank in "01"}


def test_p8_what_is_forgotten_is_gone_on_every_rank(whole, pair, disks):
    chat = Chat(whole, pair, cache_salt="forgotten", same_counts=False)
    for said in TURNS:
        chat.say(said)
    assert all(spans_of(disks).values())
    memory, disk, left = pair.forget()
    assert (memory > 0, disk > 0, left) == (True, True, [])
    assert spans_of(disks) == {"0": 0, "1": 0}
    assert pair.forget() == [0, 0, []]
    assert chat.say("And tomorrow?").usage.cached == 0
    assert all(spans_of(disks).values())


@pytest.mark.parametrize("turns", [0, 1, 12])
def test_p8_what_is_asked_while_it_is_forgotten_is_kept_by_no_rank(whole, pair, turns):
    """Waiting, in the middle of prompts, and while they are answered."""
    asked = [
        request(f"Number {n}?", max_tokens=20, drafts=False, cache_salt=f"meanwhile {turns}")
        for n in range(3)
    ]
    pair.forget()
    answers = pair.ask(*asked, forget=turns)
    assert [one.ids for one in answers] == [one.ids for one in whole.ask(*asked)]
    assert pair.forget() == [0, 0, []]


def test_law_18_each_rank_holds_its_part(pair):
    pair.head.say(do="seen")
    (head, other) = pair.head.line()["seen"]
    assert (head[0], head[1], other[0], other[1]) == (0, "mac0", 1, "mac1")
    assert other[2] < 10
    assert min(head[3], other[3]) > 0


def test_law_18_a_full_disk_of_one_rank_costs_no_answer(whole, pair, switch):
    """The last of all: nothing more is written to it for a while."""
    chat = Chat(whole, pair, cache_salt="full")
    chat.say(TURNS[0])
    switch("full")
    for said in TURNS[1:]:
        before = chat.before
        assert chat.say(said).usage.cached >= before

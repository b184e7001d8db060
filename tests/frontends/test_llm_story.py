"""A user's way with `llm`, from the first question to a tool loop: only new tokens are run.

Each command is a process, with a host that answers them all, as `llm` has it, and without
(law 15): over a tiny model, and once over the real default one; all of both is in the soak.
"""

import json
from itertools import pairwise

import pytest

from llm_mlx_promptcache.config import Settings, save_settings
from llm_mlx_promptcache.engine.request import Choice

SYSTEM = "You are a terse assistant who answers questions of geography in one sentence."
LIMIT = ("-o", "max_tokens", "12")
# Random weights would not end a string by themselves.
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "population": {"type": "integer"},
        },
        "required": ["name", "population"],
    }
)
FUNCTIONS = """
import typing

def weather(city: typing.Literal["Paris", "Rome", "Oslo"]) -> str:
    "The weather in a city now."
    return "It is sunny in " + city
"""


USERS = {
    "tiny": "bare_home",
    "host": "bare_hosted_home",
    "real": "home",
    "real, host": "hosted_home",
}


def users(*often):
    """All users as parameters; those not named run only in the soak."""
    return [
        pytest.param(
            fixture,
            id=name,
            marks=[pytest.mark.real_model] * ("real" in name)
            + [pytest.mark.soak] * (name not in often),
        )
        for name, fixture in USERS.items()
    ]


def with_a_model(request, tiny_llama):
    """The user of a fixture's parameter, with a tiny model where they have none."""
    home = request.getfixturevalue(request.param)
    if request.param.startswith("bare"):
        home.ours("default", str(tiny_llama(context=16384)))
    return home


@pytest.fixture(params=users("tiny"))
def user(request, tiny_llama):
    """A user who has never asked anything."""
    return with_a_model(request, tiny_llama)


@pytest.fixture(params=users("tiny", "host", "real"))
def chatting(request, tiny_llama):
    """The same, for what is asked of all of them each time."""
    return with_a_model(request, tiny_llama)


@pytest.fixture(params=users("real")[2:])
def real_user(request):
    """The same, for what takes the real model."""
    return request.getfixturevalue(request.param)


def path_of(entry):
    """The tokens of a prompt and its answer."""
    return entry["input_tokens"] + entry["output_tokens"]


def goes_on(entry, before):
    """Check that only new tokens were prefilled, and the path's last token, which was never run.

    A host may have prefilled some of it since the answer before.
    """
    at_most_new(entry, before)
    told = entry["response_json"]
    assert told["from_memory"] + told["from_disk"] == entry["details"]["cached"]
    if entry["hosted"]:
        assert told["from_disk"] == 0
    else:
        # Some templates show an answer's end in another way than it was generated.
        assert entry["details"]["prefilled"] >= entry["input_tokens"] - path_of(before)


def at_most_new(entry, before):
    """The same, where some of what is new had been seen elsewhere."""
    details, new = entry["details"], entry["input_tokens"] - path_of(before)
    assert details["cached"] + details["prefilled"] == entry["input_tokens"]
    assert 0 < details["prefilled"] <= new + 1, entry["response_json"]
    assert entry["input_tokens"] > path_of(before)


def test_a_chat_of_four_turns_and_a_fork(chatting):
    user = chatting
    first = ("-s", SYSTEM, "What is the capital of France?", *LIMIT)
    user.llm("-m", "mlx-cached", *first)
    one = user.last()
    assert one["details"]["cached"] == 0
    user.llm("-c", "And of Italy?", *LIMIT)
    two = user.last()
    goes_on(two, one)
    if not two["hosted"]:
        assert two["response_json"]["from_memory"] == 0  # the process before had it

    user.llm("-m", "mlx-cached", *first)
    fork = user.last()
    assert fork["details"]["prefilled"] == 1
    assert fork["response"] == one["response"]
    user.llm("--cid", fork["conversation_id"], "Spain?", *LIMIT)
    at_most_new(user.last(), fork)  # the first conversation has the words around the question

    user.llm("--cid", one["conversation_id"], "And of Portugal?", *LIMIT)
    three = user.last()
    goes_on(three, two)
    user.llm("--cid", one["conversation_id"], "And of Norway?", *LIMIT, "--no-stream", "--async")
    goes_on(user.last(), three)


def test_llm_chat_with_a_script(user):
    script = "What is the capital of France?\nAnd of Italy?\nAnd of Spain?\nexit\n"
    user.llm("chat", "-m", "mlx-cached", "-s", SYSTEM, *LIMIT, stdin=script)
    one, two, three = user.logged(3)
    assert one["details"]["cached"] == 0
    assert two["response_json"]["from_disk"] == 0
    goes_on(two, one)
    goes_on(three, two)


def test_a_schema_is_kept_to(user):
    asked = ("-m", "mlx-cached", "Paris", "--schema", SCHEMA, "-o", "max_tokens", "400")
    answer = json.loads(user.llm(*asked)[0])
    one = user.last()
    assert list(answer) == ["name", "population"]
    assert isinstance(answer["population"], int)
    assert one["response_json"]["finish_reason"] == "stop"
    assert json.loads(user.llm(*asked, "--async")[0]) == answer
    assert user.last()["details"]["prefilled"] == 1
    user.llm("-c", "And Rome?", "--schema", SCHEMA, "-o", "max_tokens", "400")
    goes_on(user.last(), one)
    cut, _ = user.llm(*asked[:-1], "3")
    assert user.last()["response"] == cut
    assert user.last()["response_json"]["cut"] == "a JSON document"


@pytest.fixture
def tools(tmp_path):
    """The arguments that give a command one tool of a plugin and one of the user's own."""
    (tmp_path / "tools.py").write_text(FUNCTIONS)
    limit = ("-o", "max_tokens", "900", "-o", "tool_choice", "any")
    return ("-T", "llm_version", "--functions", str(tmp_path / "tools.py"), *limit)


def test_tools_are_called_and_their_results_are_all_that_is_new(user, tools):
    user.llm("-m", "mlx-cached", "What is the weather in Paris?", *tools)
    call, answer = user.logged(2)
    assert {one["name"] for one in call["tool_calls"]} <= {"weather", "llm_version"}
    assert [one["tool_call_id"] for one in answer["tool_results"]] == [
        one["tool_call_id"] for one in call["tool_calls"]
    ]
    assert call["response_json"]["finish_reason"] == "tool_calls"
    goes_on(answer, call)
    # Tools in another order are the same prompt.
    user.llm("-c", "And in Rome?", *tools[2:4], *tools[:2], *tools[4:])
    again, last = user.logged(2)
    goes_on(again, answer)
    goes_on(last, again)
    # A third step of the loop, each in a process of its own.
    user.llm("-c", "And in Oslo?", *tools)
    third, end = user.logged(2)
    assert third["tool_calls"]
    goes_on(third, last)
    goes_on(end, third)
    # llm gives a conversation only its plugins' tools back.
    user.llm("-c", "Thanks.", "-o", "max_tokens", "12")
    assert user.last()["response_json"]["lost_tools"] == ["weather"]


def test_a_loop_of_three_steps(quick_home, tools, monkeypatch):
    # Random weights don't call by themselves: here they must, until two results are there.
    def choice(options, chain, names):
        return Choice("any" if sum(message.role == "tool" for message in chain) < 2 else "none")

    monkeypatch.setattr("llm_mlx_promptcache.llm_adapter.requests._choice", choice)
    quick_home.llm(
        "-m", "mlx-cached", "What is the weather?", *tools[2:], "--schema", "population int"
    )
    first, second, third = quick_home.logged(3)
    assert first["tool_calls"]
    assert second["tool_calls"]
    assert not third["tool_calls"]
    assert list(json.loads(third["response"])) == ["population"]
    goes_on(second, first)
    goes_on(third, second)


CALL = '<tool_call>{"name": "step", "arguments": {"number": %d}}</tool_call>'
STEPS = f"""
def step(number: int) -> str:
    "Do one step of the work."
    if number < 3:
        return 'Next: {CALL}' % (number + 1)
    return "All steps are done."
"""


def test_a_loop_of_three_steps_that_nobody_forces(real_user, tmp_path):
    """The model is small; what it copies well is a call that it has just read."""
    (tmp_path / "steps.py").write_text(STEPS)
    asked = "Say exactly this: " + CALL % 1
    tools = ("-T", "llm_version", "--functions", str(tmp_path / "steps.py"))
    real_user.llm("-m", "mlx-cached", asked, *tools, "-o", "max_tokens", "60")
    *steps, end = real_user.logged(4)
    assert [call["arguments"] for one in steps for call in one["tool_calls"]] == [
        {"number": number} for number in (1, 2, 3)
    ]
    assert not end["tool_calls"]
    for before, after in pairwise([*steps, end]):
        goes_on(after, before)
        assert after["response_json"]["from_disk"] == 0


def test_a_json_object_and_the_options_of_sampling(user):
    options = ("temperature", "1"), ("seed", "0"), ("json_object", "1"), ("max_tokens", "400")
    said = [word for name, value in options for word in ("-o", name, value)]
    answer, _ = user.llm("-m", "mlx-cached", "Describe Paris.", *said)
    assert isinstance(json.loads(answer), dict)
    assert user.llm("-m", "mlx-cached", "Describe Paris.", *said, "--no-stream")[0] == answer
    assert user.last()["details"]["prefilled"] == 1


def test_fewer_bits_go_on_with_the_conversation(real_user):
    real_user.llm("-m", "mlx-cached", "-s", SYSTEM, "What is the capital of France?", *LIMIT)
    asked = ("-m", "mlx-cached", "-s", SYSTEM, "What is the capital of France?", *LIMIT)
    real_user.llm(*asked, "-o", "kv_bits", "8")
    one = real_user.last()
    assert one["details"]["cached"] == 0
    real_user.llm("-c", "And of Italy?", *LIMIT)
    goes_on(real_user.last(), one)


def test_salts_share_with_themselves_only(user):
    asked = ("-m", "mlx-cached", "What is the capital of France?", *LIMIT)
    for name, cached in (("a", False), ("b", False), ("a", True)):
        user.llm(*asked, "-o", "cache_salt", name)
        assert bool(user.last()["details"]["cached"]) is cached


THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def test_thinking_is_told_apart_and_goes_on_until_it_is_said_otherwise(quick_home, tiny_llama):
    folder = tiny_llama(special=("<think>", "</think>"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = THINKING
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    save_settings(Settings(default_model=str(folder)))

    # Cut in its thoughts it has neither words nor a call: status 1.
    asked = ("-m", "mlx-cached", "Hello", *LIMIT, "-o", "thinking", "1")
    text, thought = quick_home.llm(*asked, status=1)
    first = quick_home.last()
    assert (text, first["reasoning"]) == ("", thought)
    assert first["details"]["reasoning"] == first["output_tokens"]
    _, hidden = quick_home.llm("-c", "Again", *LIMIT, "-R", status=1)
    second = quick_home.last()
    assert (hidden, second["response"]) == ("", "")
    assert second["details"]["reasoning"] == second["output_tokens"]
    quick_home.llm("-c", "Again", *LIMIT, "-o", "thinking", "0")
    third = quick_home.last()
    assert third["response"]
    assert third["details"]["reasoning"] == 0
    assert third["details"]["cached"] >= first["input_tokens"] - 8


def test_what_an_answer_tells_of_itself(user):
    user.llm("-m", "mlx-cached", "Hello", *LIMIT)
    told = user.last()["response_json"]
    assert told["finish_reason"] in ("stop", "length")
    assert told["cache"] == "no cached prompt starts like this"
    assert told["peak_memory"] >= 0
    assert min(told["prompt_tps"], told["generation_tps"]) > 0


@pytest.fixture(params=["bare_home", "bare_hosted_home"])
def namer(request):
    """A user who has no model yet, without a host and with one."""
    return request.getfixturevalue(request.param)


def test_c3_to_c7_models_by_their_names(namer, tiny_llama, tmp_path):
    def refused(*command):
        (line,) = namer.ours(*command, status=1)[1].splitlines()
        return line.partition("Error: ")[2]

    def asked(*arguments, status=0):
        _, error = namer.llm(*arguments, *LIMIT, status=status)
        return [line for line in error.splitlines() if not line.startswith("the answer was cut")]

    folders = {name: tiny_llama(seed=seed) for seed, name in enumerate(("one", "two", "base"))}
    (tmp_path / "notes.txt").write_text("no model")
    # C7: what can't work is not added.
    assert "is a file, and a model is a folder" in refused("add", str(tmp_path / "notes.txt"))
    assert "holds no model" in refused("add", str(tmp_path))
    assert f"did you mean '{folders['one']}'" in refused("add", f"{folders['one']}x")
    for name, folder in folders.items():
        namer.ours("add", str(folder), "--name", name)
    # C3: a registered name is one everywhere, and no owner on a hub.
    if not namer.hosted:  # it runs in its own process, host or not
        bench = namer.told("bench", "-m", "mlx-cached/one", "--rules", "2")
        assert bench["model"] == str(folders["one"])
    assert "did you mean 'mlx-cached/one'" in refused("bench", "-m", "mlx-cached/onn")
    assert asked("-m", "mlx-cached/one", "Hello") == []
    assert namer.last()["response_json"]["reference"] == str(folders["one"])
    # C4: a base model is told in one line that contradicts nothing.
    config = folders["base"] / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": None}))
    (line,) = asked("-m", "mlx-cached/base", "Hello", status=1)
    assert line.startswith(f"Error: the model in {folders['base']} has no chat template: it is a")
    # C5: another model answers than before, and says so once.
    namer.ours("default", "one")
    assert asked("-m", "mlx-cached", "Hello") == []
    namer.ours("default", "two")
    one, two = folders["one"], folders["two"]
    other = f"this conversation was with {one} until now; {two} answers from here on"
    assert asked("-c", "More") == [other]
    assert asked("-c", "And more") == []
    # C6: what is removed is the default no longer.
    gone = namer.told("remove", "two")
    assert (gone["model"], gone["was_default"]) == ("mlx-cached/two", True)
    assert namer.told("default")["default_model"] == "default"


def test_l9_a_schema_without_an_instance_is_refused_in_words(user):
    part = '{"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}'
    _, error = user.llm("-m", "mlx-cached", "Paris", "--schema", part, status=1)
    assert error == (
        "Error: schema has no instance that ends: what stands at /properties/next must hold what"
        " it is part of; leave it out of what is required, or let it be null or an empty list"
    )

"""Law 18 where something goes wrong: it is told in bounded time, and what was flushed is reused."""

import json
import shutil
import signal

import pytest
from rank_groups import RankGroup
from readers import request
from whole_models import TURNS, Chat, Whole

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.ranks import EXIT_STATUS
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.engine.wire import to_json

pytestmark = pytest.mark.slow
soak = pytest.mark.soak


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(layers=4, hidden=128)


def talk(group, whole):
    """Two turns, after which the group is at home."""
    chat = Chat(whole, group)
    for said in TURNS[:2]:
        chat.say(said)
    return chat


def how_it_ended(group):
    """The reason that rank 0 gave its asker; all other ranks have ended by themselves."""
    told = group.head.line()
    while "ended" not in told:
        told = group.head.line()
    statuses = [one.wait() for one in group.ranks]
    killed = (-signal.SIGKILL, 1)  # a forked rank's stand-in says the second
    assert all(status in (EXIT_STATUS, *killed) for status in statuses), statuses
    return told["ended"]


def test_law_18_after_a_restart_all_is_reused_also_where_ranks_share_a_folder(folder, tmp_path):
    whole = Whole(folder, tmp_path / "whole")
    shared = {1: {"disk": str(tmp_path / "0")}}
    with RankGroup(folder, tmp_path, own=shared) as group:
        chat = talk(group.ready(), whole)
        group.close()
    whole.close()
    whole.restart()
    with RankGroup(folder, tmp_path, own=shared) as group:
        chat.group = group.ready()
        before = chat.before
        assert chat.say(TURNS[2]).usage.cached >= before  # 1.00 from the disk
        group.close()


def damage(folder):
    for file in folder.rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)


@pytest.mark.soak
@pytest.mark.parametrize(("rank", "harm"), [(0, shutil.rmtree), (1, damage)])
def test_law_18_with_less_on_one_rank_all_go_on_from_less(folder, tmp_path, rank, harm):
    whole = Whole(folder, tmp_path / "whole")
    with RankGroup(folder, tmp_path) as group:
        chat = talk(group.ready(), whole)
        group.close()
    harm(tmp_path / str(rank) / "spans")
    with RankGroup(folder, tmp_path) as group:
        group.ready()
        (right,), (answer,) = (ask(request_of(chat)) for ask in (whole.ask, group.ask))
        assert (answer.ids, answer.usage.cached) == (right.ids, 0)
        if rank:
            assert answer.why.startswith("another rank holds less")
        (again,) = group.ask(request_of(chat))
        assert (again.ids, again.usage.prefilled) == (right.ids, 1)
        group.close()


def request_of(chat):
    """One more turn of it, which it does not keep."""
    messages = (*chat.messages, Message("user", "Are you there?"))
    return GenerationRequest(messages, max_tokens=20, drafts=False)


@pytest.mark.soak
def test_law_18_what_a_full_disk_did_not_take_is_computed_again_after_a_restart(folder, tmp_path):
    whole = Whole(folder, tmp_path / "whole")
    with RankGroup(folder, tmp_path) as group:
        chat = Chat(whole, group.ready())
        chat.say(TURNS[0])
        kept = chat.before
        switches = tmp_path / "1" / "switches"
        switches.mkdir()
        (switches / "full").touch()
        chat.say(TURNS[1])
        group.close()
    (switches / "full").unlink()
    with RankGroup(folder, tmp_path) as group:
        (right,), (answer,) = (ask(request_of(chat)) for ask in (whole.ask, group.ready().ask))
        assert answer.ids == right.ids
        assert 0.8 * kept < answer.usage.cached < chat.before
        (again,) = group.ask(request_of(chat))
        assert (again.ids, again.usage.prefilled) == (right.ids, 1)
        group.close()


def test_law_18_a_rank_that_is_gone_while_mlx_meets_leaves_none_that_hangs(folder, tmp_path):
    """MLX accepts for ever then, and no thread of Python runs meanwhile."""
    with RankGroup(folder, tmp_path, own={1: {"gone": True}}, deadlines={"joining": 3.0}) as group:
        assert group.ranks[1].wait() not in (0, EXIT_STATUS)  # it was killed
        assert group.head.wait(30) != 0


def test_law_18_a_rank_that_is_late_to_mlx_s_meeting_is_waited_for(folder, tmp_path):
    with RankGroup(folder, tmp_path, own={1: {"late": 4.0}}, deadlines={"silence": 2.0}) as group:
        group.ready()


# What is cut, the deadline for it, and what each rank then says. MLX's own start takes a while.
DARK = [
    pytest.param("words", {"silence": 5.0}, "has said nothing for 5 seconds"),
    pytest.param("model", {"step": 10.0}, "waits for a step since 10 seconds", marks=soak),
]


@pytest.mark.parametrize(("through", "deadlines", "why"), DARK)
def test_law_18_a_network_that_carries_nothing_is_told_in_bounded_time(
    folder, tmp_path, through, deadlines, why
):
    """No connection ends: what one rank says never comes to the other."""
    with RankGroup(folder, tmp_path, through=through, deadlines=deadlines) as group:
        group.ready()
        (before,) = group.ask(request("One.", drafts=False))
        group.line.dark()
        group.head.say(do="ask", requests=[to_json(request("One, and more."))], gone=None)
        for one in group.ranks:
            assert why in one.line()["ended"]
            assert one.wait() == EXIT_STATUS
    with RankGroup(folder, tmp_path) as group:
        (again,) = group.ready().ask(request("One.", drafts=False))
        assert (again.ids, again.usage.prefilled) == (before.ids, 1)
        group.close()


@pytest.mark.soak
def test_law_18_a_rank_that_is_killed_is_told_at_once_and_little_is_lost(folder, tmp_path):
    whole = Whole(folder, tmp_path / "whole")
    with RankGroup(folder, tmp_path) as group:
        chat = talk(group.ready(), whole)
        group.ranks[1].process.kill()
        assert how_it_ended(group) == "rank 1 (mac1) is gone"
    with RankGroup(folder, tmp_path) as group:
        (answer,) = group.ready().ask(request_of(chat))
        assert answer.usage.cached > 0.8 * chat.before
        group.close()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("rank", "error"), [(1, "kill"), (1, "stop"), (1, "memory"), (0, "memory")]
)
def test_law_18_a_rank_that_fails_in_a_pass_ends_all_in_words(folder, tmp_path, error, rank):
    own = {rank: {"fault": {"after": 40, "error": error}}}
    deadlines = {"silence": 3.0}
    with RankGroup(folder, tmp_path, own=own, deadlines=deadlines) as group:
        group.ready()
        group.head.say(do="ask", requests=[to_json(request("One.", max_tokens=200))], gone=None)
        if error == "stop":
            told = group.head.line()["ended"]
            assert told == "rank 1 (mac1) has said nothing for 3 seconds"
            assert group.head.wait() == EXIT_STATUS
            return
        told = how_it_ended(group)
    if error == "kill":
        assert told == "rank 1 (mac1) is gone"
    else:
        assert told == f"rank {rank} (mac{rank}) failed: [metal::malloc] no more memory"


@pytest.mark.soak
@pytest.mark.parametrize("error", ["kill", "stop"])
def test_law_18_no_rank_outlives_rank_0(folder, tmp_path, error):
    own = {0: {"fault": {"after": 40, "error": error}}}
    with RankGroup(folder, tmp_path, own=own, deadlines={"silence": 3.0}) as group:
        group.ready()
        group.head.say(do="ask", requests=[to_json(request("One.", max_tokens=200))], gone=None)
        why = {"kill": "is gone", "stop": "has said nothing for 3 seconds"}[error]
        assert group.ranks[1].line() == {"ended": f"rank 0 (mac0) {why}"}
        assert group.ranks[1].wait() == EXIT_STATUS


def test_law_18_a_skewed_prompt_is_refused_before_it_runs(folder, tmp_path):
    with RankGroup(folder, tmp_path, own={1: {"skew": True}}) as group:
        group.ready()
        group.head.say(do="ask", requests=[to_json(request("One."))], gone=None)
        assert how_it_ended(group) == "the ranks were given different prompts"


@pytest.mark.soak
def test_law_18_ranks_of_other_files_do_not_begin(folder, tmp_path):
    """Another template, tokenizer or weights: the same digest tells."""
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] += " "
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with RankGroup(folder, tmp_path, own={1: {"folder": str(other)}}) as group:
        told = how_it_ended(group)
        assert told.startswith("rank 1 (mac1) has the model's files ")
        assert told.endswith(": they must be the same")

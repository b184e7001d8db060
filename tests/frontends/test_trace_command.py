"""`llm mlx-cached trace`: which prompts began alike and when they came, no word more."""

import io
import json
import subprocess
from contextlib import closing
from pathlib import Path

import forks
import pytest
import sqlite_utils
from click.testing import CliRunner
from llm.cli import cli

from llm_mlx_promptcache.cache.memory.simulation import most_hits
from llm_mlx_promptcache.cache.traces import read_trace
from llm_mlx_promptcache.commands.replay import trace_paths
from llm_mlx_promptcache.engine.pool import close_engines

LIMIT = ("-o", "max_tokens", "4")
SYSTEM = "the answer of the system and the capital of the user and the answer"


@pytest.fixture(scope="module")
def asked_once(new_home, tiny_llama):
    """A user with a conversation of two turns, and two more questions."""
    home = new_home()
    home.ours("default", str(tiny_llama(context=4096)))

    def ask(*arguments):
        done = CliRunner().invoke(cli, [*arguments, *LIMIT], env=home.own())
        close_engines()
        assert done.exit_code == 0, done.output

    ask("-m", "mlx-cached", "-s", SYSTEM, "Hello capital of the user")
    ask("-c", "and of the system")
    ask("-m", "mlx-cached", "-s", SYSTEM, "Another one", "-o", "prefill", "the answer")
    ask("-m", "mlx-cached", "Hello", "-o", "cache_salt", "mine")
    return home


def exported(home, *arguments):
    out, told = home.ours("trace", *arguments)
    return read_trace(io.BytesIO(out.encode()), "trace") if out else [], told


def shared(one, other):
    """The number of blocks that two prompts share at their beginning."""
    pairs = zip(one.hash_ids, other.hash_ids, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(one.hash_ids))


def test_a_trace_has_what_was_asked_in_tokens_and_times(asked):
    entries = asked.logged(4)
    found, told = exported(asked, "--block", "4")
    assert told.startswith("4 prompts. It lacks what llm did not log")
    assert "logs off" in told
    assert [one.input_length for one in found] == [one["input_tokens"] for one in entries]
    assert [one.output_length for one in found] == [one["output_tokens"] for one in entries]
    assert found[0].timestamp == 0
    times = [one.timestamp for one in found]
    assert times == sorted(set(times))
    for one in found:
        assert len(one.hash_ids) == len(one.tiers) == -(-one.input_length // 4)
    first, turn, other, salted = found
    # All of the first turn's prompt, but for a last block that was not full.
    assert shared(first, turn) >= first.input_length // 4
    system = entries[2]["details"]["cached"]
    assert shared(first, other) == system // 4
    assert set(first.tiers[: system // 4]) == {"system"}
    assert shared(first, salted) == 0  # what is never reused is no hit in a replay either
    assert turn.tiers[-1] == "user"


def test_nothing_in_it_tells_a_text_or_a_token(asked):
    out, _ = asked.ours("trace")
    for line in out.splitlines():
        found = json.loads(line)
        assert set(found) == {"timestamp", "input_length", "output_length", "hash_ids", "tiers"}
        assert set(found["tiers"]) <= {"s", "u", "a"}
    again, _ = asked.ours("trace")
    first, second = (
        {id for line in text.splitlines() for id in json.loads(line)["hash_ids"]}
        for text in (out, again)
    )
    assert first.isdisjoint(second)  # another salt, and nobody has the first one any more
    assert len(first) == len(second)


def test_it_goes_to_a_file_and_reads_the_log_only(asked, tmp_path):
    before = (asked.folder / "llm" / "logs.db").read_bytes()
    out, _ = asked.ours("trace", "-o", str(tmp_path / "trace.jsonl"))
    assert out == ""
    with (tmp_path / "trace.jsonl").open("rb") as file:
        assert len(read_trace(file, "trace")) == 4
    assert (asked.folder / "llm" / "logs.db").read_bytes() == before


def test_what_cant_be_told_again_is_left_out_and_counted(asked):
    with closing(sqlite_utils.Database(asked.folder / "llm" / "logs.db")) as database:
        first, second, *_ = (
            row["id"] for row in database.query("select id from turns order by id")
        )
        database.execute("update turns set input_tokens = 9 where id = ?", [first])
        database.execute("update turns set datetime_utc = 'then' where id = ?", [second])
        database.conn.commit()
    found, told = exported(asked)
    assert len(found) == 2
    assert told.splitlines()[:-1] == [
        "1 left out: they render differently now (a new template, a later turn's system prompt)",
        "1 left out: their log is incomplete (answers that were stopped)",
    ]


def test_a_model_that_is_gone_leaves_nothing_to_tell(asked, tmp_path, monkeypatch):
    from llm_mlx_promptcache.engine import explained

    def gone(reference):
        raise ValueError("it is not on this machine")

    monkeypatch.setattr(explained, "tokenizer_here", gone)
    found, told = exported(asked)
    assert (found, told.splitlines()[0]) == ([], "4 left out: their model is not on this machine")


def test_who_never_asked_is_told(bare_home):
    (line,) = bare_home.ours("trace", status=1)[1].splitlines()
    assert line.startswith("Error: llm has logged nothing yet")


def test_a_log_that_is_damaged_is_one_line(bare_home):
    bare_home.ours("models")  # the folders are there
    log = Path(bare_home.environment()["LLM_USER_PATH"]) / "logs.db"
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"no log" * 100)
    for command in ("trace", "explain"):
        (line,) = bare_home.ours(command, status=1)[1].splitlines()
        assert line.startswith("Error: llm's log ")
        assert "file is not a database" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_where_nothing_can_be_written_is_one_line(bare_home):
    environment = bare_home.environment()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [forks.llm(), "mlx-cached", "path"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_trace_is_replayed_at_this_machines_limits(asked, tmp_path):
    trace = tmp_path / "trace.jsonl"
    asked.ours("trace", "--block", "8", "-o", str(trace))
    asked.ours("settings", "--memory", "20KB", "--disk", "1GB")
    found = asked.told("bench", "--trace", str(trace))
    with trace.open("rb") as file:
        requests = read_trace(file, "trace")
    assert found["requests"] == 4
    assert found["block"] == 8
    assert found["blocks"] == sum(len(one.hash_ids) for one in requests)
    assert found["most"] == most_hits([one.path for one in requests])
    # Two layers, two heads of keys and of values, in four bytes a number.
    memory, disk = found["budgets"]
    assert (memory["where"], memory["bytes"]) == ("memory", 20_000)
    assert memory["blocks"] == int(20_000 / (found["per_token"] * 8))
    assert memory["ours"] <= found["most"]
    assert (disk["where"], disk["bytes"]) == ("disk", 1_000_000_000)
    assert disk["ours"] == disk["lru"] == found["most"] > 0
    table, told = asked.ours("bench", "--trace", str(trace))
    assert table.splitlines()[0].startswith("| cache | budget | blocks | ours | LRU |")
    assert "to measure the memory of a token" in told


def test_a_trace_that_does_not_tell_its_blocks_needs_them_told(asked, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"hash_ids": [1, 2]}\n{"hash_ids": [1, 3]}\n')
    (line,) = asked.ours("bench", "--trace", str(trace), status=1)[1].splitlines()
    assert line.endswith("does not say how many tokens a block has; give --block")
    assert asked.told("bench", "--trace", str(trace), "--block", "64")["most"] == 0.25
    assert asked.ours("bench", "--block", "64", status=2)[1].endswith("give --trace too")
    trace.write_text('{"hash_ids": "x"}\n')
    (line,) = asked.ours("bench", "--trace", str(trace), status=1)[1].splitlines()
    assert line.endswith("line 1: hash_ids is no list of whole numbers")


def test_the_lines_of_a_trace_are_taken_by_their_times(tmp_path):
    trace = tmp_path / "trace.jsonl"
    times = ((30, 1), (10, 2), (20, 3), (10, 4), (None, 5))
    lines = [{"hash_ids": [id]} | ({} if at is None else {"timestamp": at}) for at, id in times]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths, _ = trace_paths(trace, 16)
    assert [list(path.blocks) for path in paths] == [[5], [2], [4], [3], [1]]

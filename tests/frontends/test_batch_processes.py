"""`llm mlx-cached batch` as users run it: real processes, with a host and without, and Ctrl-C."""

import json
import select
import signal
import subprocess

import forks
import pytest
from click.testing import CliRunner
from llm.cli import cli
from real_families import Played, every_family
from scripted_model import environment

from llm_mlx_promptcache.config import Settings, save_settings

SYSTEM = " ".join(["Answer in one word."] * 12)
LONG = 1500  # words of an answer that is stopped
ASKED = ("France?", "Italy?", "Spain?", "Norway?", "Japan?")


def script(played):
    words = {f"The capital of {place}": played.words(f"It is in {place}") for place in ASKED}
    return {**words, "Tell it.": played.words("word " * LONG), "": played.words("Nothing.")}


class User:
    """Someone with the model of a family, and a process of `llm` for each command."""

    def __init__(self, home, model, folder):
        self.home, self.folder = home, folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLM_MLX_CACHED_HOME", home.own()["LLM_MLX_CACHED_HOME"])
            save_settings(Settings(default_model=str(model)))

    def start(self, *arguments):
        return subprocess.Popen(
            [forks.llm(), *arguments],
            cwd=self.folder,
            env=self.home.environment(PYTHONPATH=environment()["PYTHONPATH"]),
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
            text=True,
        )

    def llm(self, *arguments, stdin="", status=0):
        process = self.start(*arguments)
        out, error = process.communicate(stdin)
        assert process.returncode == status, (out, error)
        assert "Traceback" not in error
        return out, error

    def logged(self):
        """All that llm's log shows, within this process."""
        done = CliRunner().invoke(cli, ["logs", "list", "--json", "-n", "0"], env=self.home.own())
        return json.loads(done.stdout)


@pytest.fixture(params=["bare_home", "bare_hosted_home"], ids=["here", "hosted"])
def user(request, tmp_path):
    """With a real tokenizer (Qwen3's) and a played model; without a host, and with one."""
    (qwen,) = (one.values[0] for one in every_family() if one.id == "Qwen3")
    played = Played(qwen)
    folder = played.folder(tmp_path / "model", script(played))
    (tmp_path / "work").mkdir()
    return User(request.getfixturevalue(request.param), folder, tmp_path / "work")


def test_what_prompts_share_is_prefilled_once_and_all_is_in_llms_log(user):
    lines = [{"prompt": f"The capital of {place}", "system": SYSTEM} for place in ASKED]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    out, told = user.llm("mlx-cached", "batch", "-", stdin=text)
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["text"] for one in found] == [f"It is in {place}" for place in ASKED]
    usage = [one["usage"] for one in found]
    assert all(one["cached"] + one["prefilled"] == one["input"] for one in usage)
    first, *others = sorted(usage, key=lambda one: -one["prefilled"])
    assert (first["cached"], first["prefilled"]) == (0, first["input"])
    shared = min(one["cached"] for one in others)
    assert shared > 60  # the system prompt; beside it each has its own few words
    assert all(one["prefilled"] < 20 for one in others)
    cached = sum(one["cached"] for one in usage)
    all_of_them = sum(one["input"] for one in usage)
    assert told.splitlines()[-1] == (
        f"5 answered; of {all_of_them} prompt tokens {cached} were cached,"
        f" {all_of_them - cached} were prefilled"
    )
    logs = {entry["id"]: entry for entry in user.logged()}
    for line, one in zip(lines, found, strict=True):
        entry = logs[one["response"]]
        assert (entry["prompt"], entry["system"]) == (line["prompt"], SYSTEM)
        assert (entry["response"], entry["input_tokens"]) == (one["text"], one["usage"]["input"])
    assert len(logs) == 5
    # Each is a conversation of its own, which goes on.
    assert user.llm("-c", "The capital of Japan?")[0].strip() == "It is in Japan?"
    traced = user.home.ours("trace", "--block", "8")[0].splitlines()
    requests = [json.loads(line) for line in traced]
    lengths = [one["usage"]["input"] for one in found]
    assert sorted(one["input_length"] for one in requests[:5]) == sorted(lengths)
    for one in requests[:5]:
        assert one["hash_ids"][: shared // 8] == requests[0]["hash_ids"][: shared // 8]
    assert len({tuple(one["hash_ids"]) for one in requests}) == 6


def test_ctrl_c_ends_a_batch_and_keeps_what_was_answered(user):
    prompts = ["The capital of France?", "Tell it.", "Tell it. Now."]
    lines = [{"prompt": one, "options": {"unlimited": True}} for one in prompts]
    (user.folder / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    process = user.start("mlx-cached", "batch", "in", "--unordered")
    with process.stdin, process.stdout, process.stderr:
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, told = process.stdout.read(), process.stderr.read()
    assert process.wait() == 130, told
    assert "Traceback" not in told
    assert (first["id"], rest) == (1, "")
    assert told.splitlines()[-2].startswith("1 answered; ")
    assert [entry["id"] for entry in user.logged()] == [first["response"]]


def wait_for_results(path, count, process):
    """Return once the file has so many whole results; the process may not end before."""
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        ended, _, _ = select.select([process.stdout], [], [], 0.02)
        assert not ended, process.stderr.read()


def test_after_ctrl_c_the_same_command_asks_what_is_left_alone(user):
    # Asked one by one, in the order of their words: the long one is third, and one is behind it.
    prompts = ["Yes?", "The capital of Italy?", "Why? Tell it.", "The capital of France?"]
    lines = [{"prompt": one, "options": {"unlimited": True}} for one in prompts]
    (user.folder / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output, command = user.folder / "out", ("mlx-cached", "batch", "in", "-o", "out", "-j", "1")
    process = user.start(*command)
    with process.stdin, process.stdout, process.stderr:
        wait_for_results(output, 2, process)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert process.wait() == 130, told
    assert "Traceback" not in told
    first = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["id"] for one in first] == [2, 4]
    (*_, how) = told.splitlines()
    assert how == f"stopped; what is left is asked by: llm {' '.join(command)}"
    answered = {one["response"] for one in first}
    assert {entry["id"] for entry in user.logged()} == answered
    _, told = user.llm(*command)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["id"] for one in found] == [1, 2, 3, 4]
    assert [found[1], found[3]] == first
    assert [len(one["text"].split()) for one in (found[0], found[2])] == [1, LONG]
    assert told.splitlines()[-1].startswith("2 answered; 2 were there already; ")
    # What was answered before the signal was asked once, and what was cut then is not kept.
    assert {entry["id"] for entry in user.logged()} == {one["response"] for one in found}

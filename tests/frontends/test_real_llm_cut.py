"""Answers that are cut, as users of the real `llm` have them: fresh processes, real tokenizers.

With a host and without one: what stands on stdout and stderr, what is logged, and how it ends.
"""

import json
import signal
import subprocess
import time

import forks
import pytest
from real_families import Played, every_family
from scripted_model import environment

from llm_mlx_promptcache.config import Settings, save_settings

FUNCTIONS = """
def find_place(city: str) -> str:
    "Find a place in a city."
    return "Found " + city
"""
PLACE = ("find_place", {"city": "a city with a name as long as names of cities can be"})
WORDS = "word " * 3000
ASK = ("-m", "mlx-cached")
TOOLS = ("--functions", "tools.py")


def script(played):
    return {
        "Tell it.": played.words(WORDS),
        "A document.": played.words(json.dumps({"a": "b" * 400})),
        "Plan it.": played.calls(PLACE),
        "And then?": played.words("Then it is over."),
        "Nothing.": "",
        "Go.": "",
        "Bad": "Better.",
    }


class User:
    """Someone with a model and a function, in a folder of their own."""

    def __init__(self, home, folder, model):
        self._home, self._folder = home, folder
        folder.mkdir(exist_ok=True)
        (folder / "tools.py").write_text(FUNCTIONS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLM_MLX_CACHED_HOME", home.own()["LLM_MLX_CACHED_HOME"])
            save_settings(Settings(default_model=str(model)))

    def start(self, *arguments, stderr=subprocess.PIPE):
        """`llm` in a new process."""
        return subprocess.Popen(
            [forks.llm(), *arguments],
            cwd=self._folder,
            env=self._home.environment(PYTHONPATH=environment()["PYTHONPATH"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    def llm(self, *arguments, status=0, stdin="", together=False):
        """The output of `llm` on stdout and stderr, or on both `together`."""
        stderr = subprocess.STDOUT if together else subprocess.PIPE
        process = self.start(*arguments, stderr=stderr)
        out, error = process.communicate(stdin.encode())
        assert process.returncode == status, (out, error)
        return out.decode() if together else (out.decode(), error.decode())

    def computed(self):
        """Tokens of the longest path that there is, once a host has ended what it was at."""
        until = time.monotonic() + 60
        while self._home.told("ps").get("busy"):
            assert time.monotonic() < until
        return max(span["end"] for span in self._home.told("tree"))

    def logged(self, count=1):
        """The last answers in llm's log, in their order."""
        out, _ = self.llm("logs", "list", "--json", "-n", str(count))
        entries = json.loads(out)
        return [one | {"details": json.loads(one["token_details"] or "{}")} for one in entries]


@pytest.fixture(params=["here", "hosted"])
def user_of(request, tmp_path):
    """`user_of(played)`: someone whose model is of that family."""

    def made(played):
        home = request.getfixturevalue(
            "bare_home" if request.param == "here" else "bare_hosted_home"
        )
        return User(home, tmp_path / "user", played.folder(tmp_path / "model", script(played)))

    return made


FAMILIES = every_family(often=("Qwen3", "Llama 3.1"))


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_cut_is_said_and_kept_and_gone_on_from(family, user_of):
    played = Played(family)
    user = user_of(played)
    out, error = user.llm(*ASK, "Tell it.", "-o", "max_tokens", "40")
    assert set(out.split()) == {"word"}
    line = "the answer was cut after 40 tokens (max_tokens is 40); llm -c goes on from it"
    assert error.splitlines()[-1] == line
    [cut] = user.logged()
    assert (cut["response_json"]["finish_reason"], cut["response"]) == ("length", out[:-1])
    assert cut["output_tokens"] == 40
    user.llm("-c", "And then?", "-o", "max_tokens", "60")
    [after] = user.logged()
    assert after["conversation_id"] == cut["conversation_id"]
    if played.keeps:
        assert after["details"]["cached"] == cut["input_tokens"] + 40

    document = ("--schema", "a str", "-o", "max_tokens", "60", "--no-stream")
    out, error = user.llm(*ASK, "A document.", *document)
    [cut] = user.logged()
    assert cut["response_json"]["cut"] == "a JSON document"
    assert (cut["response"], out.startswith('{"a": "bbb')) == (out[:-1], True)
    assert "cut inside a JSON document after 60 tokens" in error
    assert "Error" not in error

    most = str(len(played.calls(PLACE)) // 6)
    out, error = user.llm(*ASK, "Plan it.", *TOOLS, "-o", "max_tokens", most)
    [cut] = user.logged()
    assert "find_place" in out
    assert cut["response"] == out[:-1]
    assert cut["response_json"]["cut"] == "a call of a tool"
    assert (cut["tool_calls"], cut["tool_results"]) == ([], [])
    out, _ = user.llm("-c", "And then?", *TOOLS)
    assert out == "Then it is over.\n"


@pytest.mark.parametrize("family", FAMILIES[:1])
def test_c8_ctrl_c_ends_an_answer_and_keeps_what_was_said(family, user_of):
    user = user_of(Played(family))
    process = user.start(*ASK, "Tell it.", "-o", "unlimited", "1")
    with process.stdin, process.stdout, process.stderr:
        process.stdin.close()
        begun = process.stdout.read(9)
        process.send_signal(signal.SIGINT)
        out, error = (begun + process.stdout.read()).decode(), process.stderr.read().decode()
    assert process.wait() == 130, error
    assert "Traceback" not in error
    assert "the answer was stopped; llm -c goes on from it" in error
    [kept] = user.logged()
    assert kept["response_json"] == {"finish_reason": "stopped"}
    assert kept["response"] == out[:-1]
    assert out.startswith("word word")
    assert user.computed() < len(WORDS.split()) / 2  # it did not go on behind that
    assert user.llm("-c", "And then?", "-R") == ("Then it is over.\n", "")
    [after] = user.logged()
    assert after["conversation_id"] == kept["conversation_id"]
    # Qwen3's template leaves out what was thought before what was said.
    assert after["details"]["cached"] >= kept["input_tokens"]


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.id == "Llama 3.1"])
def test_an_answer_that_has_begun_goes_on(family, user_of):
    user = user_of(Played(family))
    assert user.llm(*ASK, "Go.", "-o", "prefill", "Bad") == ("BadBetter.\n", "")
    [first] = user.logged()
    user.llm("-c", "Nothing.")
    [second] = user.logged()
    assert second["details"]["cached"] == first["input_tokens"] + first["output_tokens"]

"""mlx-lm's own server with our class in place of its own, asked over HTTP."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

WAIT = 60  # seconds, for a machine that is busy; a start takes one or two

# A process of its own: the server's thread ends with MLX streams that it does not give back.
SERVE = """
import sys
from mlx_lm import server
from llm_mlx_promptcache.cache.compat import LRUPromptCache
server.LRUPromptCache = LRUPromptCache
sys.exit(server.main())
"""


@pytest.fixture(scope="module", params=["batched", "sequential"])
def ask(request, tiny_llama, tmp_path_factory):
    """Ask a running server: (path, body) -> the decoded answer."""
    folder = tiny_llama()
    port = _free_port()
    options = ["--model", str(folder), "--port", str(port), "--max-tokens", "8"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVE, *options],
            stdout=out,
            stderr=out,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    # A seed is what makes the server answer one request after the other.
    extra = {"seed": 1} if request.param == "sequential" else {}

    def post(path, body):
        data = json.dumps({**body, **extra}).encode()
        url = f"http://127.0.0.1:{port}{path}"
        headers = {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data, headers), timeout=WAIT
            ) as reply:
                return json.load(reply)
        except OSError as error:
            raise AssertionError(f"{error}: {log.read_text()[-2000:]}") from error

    try:
        _wait_until_up(process, port, log)
        yield post
    finally:
        process.kill()
        process.wait()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(process, port, log):
    ends = time.monotonic() + WAIT
    while time.monotonic() < ends and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
        ):
            return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_d1_a_prompt_that_is_all_cached_is_answered(ask):
    whole = 0
    for word in ("Hello", " the", " and", " capital", " of", " answer"):
        prompt = {"prompt": f"Hello the capital{word}", "temperature": 0, "max_tokens": 1}
        said = ask("/v1/completions", prompt)["choices"][0]["text"]
        # What was said is stored after the prompt: mlx-lm's class leaves no token to run of this.
        prompt["prompt"] += said
        answer = ask("/v1/completions", prompt)
        assert cached(answer) < answer["usage"]["prompt_tokens"]
        whole += cached(answer) == answer["usage"]["prompt_tokens"] - 1
    assert whole


def test_the_same_prompt_again_has_the_same_answer(ask):
    prompt = {"prompt": "Hello the capital of the answer and of the system", "temperature": 0}
    text = ask("/v1/completions", prompt)["choices"][0]["text"]
    for _ in range(2):
        again = ask("/v1/completions", prompt)
        assert again["choices"][0]["text"] == text
        assert cached(again) == again["usage"]["prompt_tokens"] - 1


def test_a_conversation_goes_on_from_what_is_cached(ask):
    messages = [
        {"role": "system", "content": "answer and answer"},
        {"role": "user", "content": "Hello the capital"},
    ]
    reused = []
    for question in ("of the user", "and the system", "Hello"):
        answer = ask("/v1/chat/completions", {"messages": messages, "temperature": 0})
        said = answer["choices"][0]["message"]["content"]
        messages += [
            {"role": "assistant", "content": said},
            {"role": "user", "content": question},
        ]
        reused.append(cached(answer))
        least = reused[-2] if len(reused) > 1 else -1
        assert reused[-1] > least
    assert reused[-1] > 20

"""llm-chat-completions-server: OpenAI's own client, which knows nothing of our metadata."""

import json
import signal
import socket
import subprocess
from contextlib import contextmanager
from itertools import pairwise

from driven_llm import goes_on
from forks import LLM
from openai import OpenAI

PLACE = ("find_place", {"city": "Zürich", "days": 2})
TOOL = {
    "type": "function",
    "function": {
        "name": "find_place",
        "description": "Find a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
OTHER = {"type": "function", "function": {"name": "wait", "parameters": {"type": "object"}}}
FORCED = {"type": "function", "function": {"name": "find_place"}}
SHIP = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "masts": {"type": "integer"}},
    "required": ["name", "masts"],
}
ADA = {"name": "Ada", "masts": 2}


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@contextmanager
def served(user):
    """A client of a server in a process of its own."""
    port = free_port()
    command = [LLM, "chat-completions-server", "-p", str(port)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command, cwd=user.folder, env=user.environment(), text=True, **pipes
    ) as server:
        try:
            assert any("Uvicorn running" in line for line in server.stderr)
            url = f"http://127.0.0.1:{port}/v1"
            with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                yield client.chat.completions
        finally:
            server.send_signal(signal.SIGINT)
        told = server.stderr.read()
    user.ran()
    assert "Traceback" not in told, told


def test_a_loop_a_stream_and_a_document(played, user_of):
    user = user_of(
        {
            "Plan it.": played.calls(PLACE),
            "By the lake": played.words("It takes two days."),
            "And then?": played.words("Then it is over."),
            "Now in verse.": played.words("It is over, over and out."),
            "A ship.": played.words(json.dumps(ADA)),
            "In a word.": played.words("word " * 60),
        }
    )
    talk = [
        {"role": "system", "content": "You plan trips, and you are brief about it."},
        {"role": "user", "content": "Plan it."},
    ]
    tools = {"model": "mlx-cached", "tools": [OTHER, TOOL]}
    with served(user) as completions:
        asked = completions.create(messages=talk, tool_choice=FORCED, **tools)
        [choice] = asked.choices
        [call] = choice.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == PLACE
        assert choice.finish_reason == "tool_calls"
        result = {"role": "tool", "tool_call_id": call.id, "content": "By the lake, for 80 francs."}
        talk += [choice.message.model_dump(exclude_none=True), result]
        answered = completions.create(messages=talk, **tools)
        assert answered.choices[0].message.content == "It takes two days."
        said = {"role": "assistant", "content": answered.choices[0].message.content}
        talk += [said, {"role": "user", "content": "And then?"}]
        chunks = list(
            completions.create(
                messages=talk, stream=True, stream_options={"include_usage": True}, **tools
            )
        )
        text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        assert text == "Then it is over."
        usage = chunks[-1].usage
        # What opens reasoning at a prompt's end is dropped later.
        assert usage.prompt_tokens_details.cached_tokens >= asked.usage.prompt_tokens - 2
        talk += [
            {"role": "assistant", "content": text},
            {"role": "developer", "content": "From now on you rhyme."},
            {"role": "user", "content": "Now in verse."},
        ]
        rhymed = completions.create(messages=talk, stop=["never", " and out"], **tools)
        assert rhymed.choices[0].message.content == "It is over, over"
        # The server repeats all system messages beside the history: they stand once, where they
        # were said.
        assert rhymed.usage.prompt_tokens_details.cached_tokens >= asked.usage.prompt_tokens - 2
        document = {"type": "json_schema", "json_schema": {"name": "ship", "schema": SHIP}}
        made = completions.create(
            model="mlx-cached",
            messages=[{"role": "user", "content": "A ship."}],
            response_format=document,
        )
        assert json.loads(made.choices[0].message.content) == ADA
        # The server has no other word for the end of an answer; llm's log has.
        talk[-1] = {"role": "user", "content": "In a word."}
        cut = completions.create(messages=talk, max_completion_tokens=20, **tools)
        assert cut.choices[0].finish_reason == "stop"
        assert cut.usage.completion_tokens == 20
    entries = user.check(answers=6, cut=1)
    if not played.family.thinks:  # reasoning is not sent to clients, so they send none back
        for before, after in pairwise(entries[:3]):
            goes_on(after, before)

"""llm's own command around an answer: its exit status, lines of their own, Ctrl-C."""

import json
import signal

import pytest
from click.testing import CliRunner
from llm.cli import cli

from llm_mlx_promptcache.engine.events import (
    CallArguments,
    CallName,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from llm_mlx_promptcache.llm_adapter import command

ASK = ("-m", "mlx-cached", "Go.")
CUT = {"reason": "length", "usage": Usage(10, 6, 4, 7)}
KINDS = pytest.mark.parametrize("more", [(), ("--async",), ("--no-stream",)])
TOOLS = ("--functions", "def look(at: str = 'here') -> str:\n    return 'nothing ' + at\n")
CALL = [CallName("c1", "look"), CallArguments("c1", '{"at": "y"}')]


@pytest.fixture(autouse=True)
def one_place(monkeypatch):
    """Stdout and stderr are one terminal."""
    monkeypatch.setattr(command, "_one_place", lambda: True)


def run(*arguments, status=0, stdin=""):
    """Run `llm`; returns the text on the terminal."""
    done = CliRunner().invoke(cli, arguments, input=stdin)
    assert done.exit_code == status, done.output
    return done.output


def logged():
    """The entries of llm's log, in its order."""
    done = CliRunner().invoke(cli, ["logs", "list", "--json", "-n", "0"])
    return json.loads(done.output) if done.exit_code == 0 else []


class CtrlC(TextDelta):
    """An event that comes together with Ctrl-C."""


def pressed(events):
    """An answer in which Ctrl-C is pressed while the next event is waited for."""
    for event in events:
        if isinstance(event, CtrlC):
            signal.raise_signal(signal.SIGINT)
        yield event


@pytest.fixture
def keyboard(scripted, monkeypatch):
    """The engine, where a `CtrlC` among its events is one."""
    events = scripted._events
    monkeypatch.setattr(scripted, "_events", lambda request: pressed(events(request)))
    return scripted


@KINDS
def test_a_cut_that_left_nothing_to_read_ends_with_1(scripted, more):
    scripted.answers = [[ReasoningDelta("Hm, ")], [], [TextDelta(" ")]]
    scripted.end = CUT
    for _ in range(3):
        run(*ASK, *more, status=1)
    assert [entry["response_json"]["finish_reason"] for entry in logged()] == ["length"] * 3
    assert logged()[0]["reasoning"] == "Hm, "


@KINDS
def test_a_cut_that_left_something_ends_with_0(scripted, more, caplog):
    scripted.answers = [[TextDelta("Yes")]]
    scripted.end = CUT
    assert "Yes" in run(*ASK, *more)
    assert caplog.messages[-1].endswith("; llm -c goes on from it")
    assert logged()[0]["response"] == "Yes"


@KINDS
def test_what_is_not_logged_is_not_said_to_be(scripted, more, caplog):
    scripted.end = CUT
    run(*ASK, *more, "-n")
    run("logs", "off")
    run(*ASK, *more)
    assert not any("llm -c" in line for line in caplog.messages)
    run(*ASK, *more, "--log")
    assert "llm -c" in caplog.messages[-1]


def test_an_empty_answer_ends_with_0(scripted):
    scripted.answers = [[]]
    assert run(*ASK) == "\n"
    assert len(logged()) == 1


def test_the_last_answer_of_a_loop_decides(scripted):
    scripted.answers = [CALL, [TextDelta("Oh.")]]
    scripted.end = {"reason": "length"}  # both, and both left something
    assert "Oh." in run(*ASK, *TOOLS)
    scripted.answers = [CALL, [ReasoningDelta("Hm, ")]]
    run(*ASK, *TOOLS, status=1)
    assert len(logged()) == 4


@KINDS
def test_ctrl_c_ends_an_answer_that_is_kept(keyboard, more, caplog):
    keyboard.answers = [[ReasoningDelta("Hm."), TextDelta("So "), CtrlC("what"), TextDelta("?")]]
    said = run(*ASK, *more, status=130)
    assert "So " in said
    assert "?" not in said
    assert "Aborted" not in said
    [entry] = logged()
    assert (entry["response"], entry["reasoning"]) == ("So ", "Hm.")
    assert entry["response_json"] == {"finish_reason": "stopped"}
    assert caplog.messages == ["the answer was stopped; llm -c goes on from it"]
    assert keyboard.closed == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # What shaped the prompt holds on.
    run("-c", "And?", *more)
    assert len({entry["conversation_id"] for entry in logged()}) == 1


@KINDS
def test_ctrl_c_before_an_answer_leaves_nothing(keyboard, more):
    keyboard.answers = [[CtrlC("So")]]
    run(*ASK, *more, status=130)
    assert logged() == []


@KINDS
def test_a_call_that_ctrl_c_met_is_words_and_not_run(keyboard, more):
    keyboard.answers = [[*CALL, CtrlC("So")]]
    run(*ASK, *TOOLS, *more, status=130)
    [entry] = logged()
    assert entry["response"] == 'look {"at": "y"}'
    assert (entry["tool_calls"], entry["tool_results"]) == ([], [])


def test_ctrl_c_while_llm_shows_what_came(scripted, monkeypatch):
    scripted.answers = [[TextDelta("So "), TextDelta("what")]]
    shown = []

    def echo(text="", *rest, **more):
        if text == "So ":
            signal.raise_signal(signal.SIGINT)
        shown.append(text)

    monkeypatch.setattr("llm.cli.click.echo", echo)
    run(*ASK, status=130)
    monkeypatch.undo()
    assert "So " in shown
    assert "what" not in shown


def test_ctrl_c_ends_an_answer_of_a_chat_and_not_the_chat(keyboard):
    keyboard.answers = [[TextDelta("So "), CtrlC("what")], [TextDelta("Well.")]]
    said = run("chat", "-m", "mlx-cached", stdin="Go.\nAnd?\nexit\n")
    assert "Well." in said
    assert [entry["response"] for entry in logged()] == ["So ", "Well."]


def test_applications_have_pythons_own_ctrl_c(keyboard):
    from llm_mlx_promptcache.llm_adapter.models import MlxCached

    keyboard.answers = [[TextDelta("So "), CtrlC("what")]]
    with pytest.raises(KeyboardInterrupt):
        MlxCached().prompt("Go.").text()


@pytest.mark.parametrize("more", [(), ("--async",)])
@pytest.mark.parametrize(
    ("said", "before"),
    [
        ([TextDelta("So")], "So\n"),
        ([TextDelta("So\n")], "So\n"),
        ([ReasoningDelta("Hm")], "Hm\n"),
        ([], ""),
    ],
)
def test_c10_an_error_stands_on_a_line_of_its_own(scripted, monkeypatch, said, before, more):
    def broken(events):
        yield from events
        raise ValueError("it broke")

    monkeypatch.setattr(scripted, "_events", lambda request: broken(said))
    assert run(*ASK, *more, status=1) == f"{before}Error: it broke\n"


def test_an_error_says_nothing_of_lines_that_are_elsewhere(scripted, monkeypatch):
    def broken(request):
        yield TextDelta("So")
        raise ValueError("it broke")

    monkeypatch.setattr(command, "_one_place", lambda: False)
    monkeypatch.setattr(scripted, "_events", broken)
    done = CliRunner().invoke(cli, ASK)
    assert (done.stdout, done.stderr) == ("So", "Error: it broke\n")

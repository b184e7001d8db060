"""llm-cmd: a command that is shown on a terminal, and run when Enter says so."""

from forks import LLM
from terminals import on_a_terminal


def test_commands_that_are_run(played, user_of):
    user = user_of(
        {
            "say hello": played.words("echo 'hello ships'"),
            "greet them": played.words("echo 'hello ships'"),
            "say it twice": played.words("echo one &&\necho two"),
        }
    )
    for words, typed, said in (
        ("say hello", "\r", "hello ships\n"),
        ("say it twice", "\x1b\r", "one\ntwo\n"),
        ("greet them", " again\r", "hello ships again\n"),
    ):
        command = [LLM, "cmd", "-m", "mlx-cached", words]
        status, shown = on_a_terminal(command, user.environment(), typed=typed, behind="> ")
        user.ran()
        assert status == 0, shown
        assert said in shown
        assert "Traceback" not in shown
    user.check_new(answers=3)

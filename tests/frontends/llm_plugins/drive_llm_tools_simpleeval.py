"""llm-tools-simpleeval: a tool that is a plain function, in commands and in a chat."""

from driven_llm import results


def script(played):
    return {
        "What is 6 x 7?": played.calls(("simple_eval", {"expression": "6 * 7 if 1 < 2 else 0"})),
        "42": played.words("It is forty-two."),
        "By zero?": played.calls(("simple_eval", {"expression": "1 / 0"})),
        "division by zero": played.words("Nobody knows."),
    }


def test_commands(played, user_of):
    user = user_of(script(played))
    tool = ("-T", "simple_eval")
    assert user.llm("-m", "mlx-cached", *tool, "What is 6 x 7?") == "It is forty-two."
    assert user.llm("-c", "By zero?") == "Nobody knows."
    assert results(user.check(answers=4)) == ["42", "Error: division by zero"]


def test_a_chat(played, user_of):
    user = user_of(script(played))
    typed = "What is 6 x 7?\nBy zero?\nquit\n"
    said = user.llm("chat", "-m", "mlx-cached", "-T", "simple_eval", stdin=typed)
    assert said.index("It is forty-two.") < said.index("Nobody knows.")
    assert results(user.check(answers=4)) == ["42", "Error: division by zero"]

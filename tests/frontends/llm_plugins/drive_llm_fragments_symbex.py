"""llm-fragments-symbex: one folder's symbols, asked about more than once."""

PART = """

def sail_{number}(ship: str, speed: float = {number}.5) -> float:
    "Sail a ship of the line, {number}."
    return speed


class Port{number}:
    "Where ship {number} lies."

    def enter(self, ship: str) -> None:
        "Let it in."
"""


def test_questions_on_the_same_symbols(played, user_of):
    user = user_of(
        {
            "How do I sail?": played.words("With sail_1."),
            "Where does it lie?": played.words("In Port3."),
            "And who lets it in?": played.words("enter does."),
        }
    )
    source = user.folder / "source"
    source.mkdir()
    for number in range(6):
        (source / f"ships_{number}.py").write_text(PART.format(number=number))
    fragment = ("-f", f"symbex:{source}")
    assert user.llm("-m", "mlx-cached", *fragment, "How do I sail?") == "With sail_1."
    assert user.llm("-m", "mlx-cached", *fragment, "Where does it lie?") == "In Port3."
    assert user.llm("-c", "And who lets it in?") == "enter does."
    first, other, _ = user.check(answers=3)
    # Only the question is new of the second conversation.
    assert first["details"]["prefilled"] > 400
    assert other["details"]["prefilled"] < 30

"""A beginning computed before anybody asks is one that prompts then start from."""

import pytest

LIMIT = ("-o", "max_tokens", "4")
SYSTEM = "the answer of the system and the capital of the user"


@pytest.fixture
def warmed(bare_home, tiny_llama, tmp_path):
    """A home with a model, and the file of a system prompt."""
    bare_home.ours("default", str(tiny_llama()))
    file = tmp_path / "system.txt"
    file.write_text(SYSTEM)
    return bare_home, str(file)


def test_a_prompt_starts_from_what_was_warmed(warmed):
    home, file = warmed
    out, _ = home.llm("mlx-cached", "warm", "-s", file)
    (span,) = home.told("tree")
    assert out == f"0 tokens were cached, {span['end']} were prefilled"
    assert not span["pinned"]
    home.llm("-m", "mlx-cached", "-s", SYSTEM, "Hello", *LIMIT)
    assert home.last()["details"]["cached"] == span["end"]


def test_what_is_pinned_is_told_and_stays(warmed):
    home, file = warmed
    out, _ = home.llm("mlx-cached", "warm", "-s", file, "--pin")
    (span,) = home.told("tree")
    assert span["pinned"]
    assert out.endswith(f"pinned: {span['id'][:8]}")
    again, _ = home.llm("mlx-cached", "warm", "-s", file, "--pin")
    assert again == f"{span['end']} tokens were cached, 0 were prefilled; it was pinned already"
    # Warmed again without --pin, a pin of somebody's is left alone.
    home.llm("mlx-cached", "warm", "-s", "-", stdin=SYSTEM)
    assert [s["pinned"] for s in home.told("tree")] == [True]


def test_tools_are_part_of_what_is_warmed(warmed, show_tools):
    home, file = warmed
    show_tools(home.ours("default")[0])
    home.llm("mlx-cached", "warm", "-s", file, "-T", "llm_time", "-T", "llm_version")
    (span,) = home.told("tree")
    home.llm("-m", "mlx-cached", "-s", SYSTEM, "-T", "llm_version", "-T", "llm_time", "Hi", *LIMIT)
    assert home.last()["details"]["cached"] == span["end"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "give a system prompt"),
        (("-s", "/nowhere"), 2, "/nowhere"),
        (("-T", "no_such_tool"), 1, "llm has no tool 'no_such_tool'"),
    ],
)
def test_what_cannot_be_warmed_is_told(warmed, arguments, status, words):
    assert words in warmed[0].ours("warm", *arguments, status=status)[1]

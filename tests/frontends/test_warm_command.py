"""A beginning computed before anybody asks is one that prompts then start from."""

import os

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
        (("-s", os.devnull), 1, "the system prompt is empty"),
    ],
)
def test_what_cannot_be_warmed_is_told(warmed, arguments, status, words):
    assert words in warmed[0].ours("warm", *arguments, status=status)[1]


def test_what_would_not_be_kept_is_refused(warmed):
    home, file = warmed
    command = ("mlx-cached", "warm", "-s", file, "--pin")

    def refused(**variables):
        (line,) = home.llm(*command, status=1, **variables)[1].splitlines()
        assert line.startswith("Error: nothing would be kept")
        assert home.told("tree") == []
        return line

    assert "LLM_MLX_CACHED_DISK is 0" in refused(LLM_MLX_CACHED_DISK="0")
    home.llm("logs", "off")
    assert "llm logs on" in refused()
    home.llm("logs", "on")
    home.llm("mlx-cached", "settings", "--disk", "0")
    assert "settings --disk auto" in refused()
    home.llm("mlx-cached", "settings", "--disk", "auto")
    home.llm("models", "options", "set", "mlx-cached", "cache", "false")
    assert "cache is false" in refused()
    home.llm("models", "options", "clear", "mlx-cached")
    assert "pinned: " in home.llm(*command)[0]


def test_a_registered_model_is_warmed_with_its_own_options(warmed, tiny_llama):
    home, file = warmed
    folder = tiny_llama(seed=3)
    home.ours("add", str(folder), "--name", "small", "-a", "s")
    home.llm("models", "options", "set", "mlx-cached/small", "cache_salt", "mine")
    home.llm("mlx-cached", "warm", "-m", "s", "-s", file)
    (span,) = home.told("tree")
    assert span["model"] == str(folder)
    home.llm("-m", "s", "-s", SYSTEM, "Hello", *LIMIT)
    assert home.last()["details"]["cached"] == span["end"]
    # The folder itself is no model of llm's, and has no options.
    out, _ = home.llm("mlx-cached", "warm", "-m", str(folder), "-s", file)
    assert out.startswith("0 tokens were cached")


def test_options_that_are_none_of_ours_are_one_line(warmed):
    home, file = warmed
    (home.folder / "llm").mkdir(exist_ok=True)
    (home.folder / "llm" / "model_options.json").write_text('{"mlx-cached": {"top_p": "x"}}')
    (line,) = home.llm("mlx-cached", "warm", "-s", file, status=1)[1].splitlines()
    assert "the options set for mlx-cached can't be used (top_p" in line

"""`llm -m mlx-cached` as users run it: fresh processes, the real default model."""

import pytest

pytestmark = pytest.mark.real_model

SYSTEM = "You are a terse assistant who answers questions of geography in one sentence."
LIMIT = ("-o", "max_tokens", "12")


def test_a_second_process_goes_on_where_the_first_one_ended(home, tmp_path):
    first, _ = home.llm("-m", "mlx-cached", "-s", SYSTEM, "What is the capital of France?", *LIMIT)
    one = home.last()
    assert "Paris" in first
    # What is guessed from the prompt's own words is the model's affair, not this test's.
    assert one["details"].pop("drafted") >= one["details"].pop("accepted")
    assert one["details"] == {
        "cached": 0,
        "prefilled": one["input_tokens"],
        "reasoning": 0,
        "prompt_tokens_details": {"cached_tokens": 0},
    }

    copied = home.copied_to(tmp_path / "moved")
    second, told = home.llm("-c", "And of Italy?", "-u", *LIMIT)
    two = home.last()
    path = one["input_tokens"] + one["output_tokens"]
    assert two["details"]["cached"] >= path - 1
    assert two["details"]["prefilled"] == two["input_tokens"] - two["details"]["cached"]
    # What the turn added: the line's end, the user's message, and the call for an answer.
    assert two["input_tokens"] - path < 20
    assert f'"cached": {two["details"]["cached"]}' in told

    third, _ = home.llm("-c", "And of Spain?", "--no-stream", *LIMIT)
    three = home.last()
    assert three["details"]["cached"] >= two["input_tokens"] + two["output_tokens"] - 1

    moved, _ = copied.llm("-c", "And of Italy?", *LIMIT)
    assert moved == second
    assert copied.last()["details"] == two["details"]

    off = (*LIMIT, "-o", "cache", "false")
    home.llm("-m", "mlx-cached", "-s", SYSTEM, "What is the capital of France?", *off)
    assert home.last()["details"]["cached"] == 0
    assert home.last()["response_json"]["cache"] == "the cache is switched off"
    assert home.llm("-c", "And of Italy?", *off)[0] == second
    assert home.llm("-c", "And of Spain?", *off)[0] == third
    assert home.last()["details"]["cached"] == 0


def test_clear_and_stats_tell_what_is_on_the_disk(home):
    home.llm("-m", "mlx-cached", "Hello", "-o", "max_tokens", "2")
    stats, _ = home.llm("mlx-cached", "stats")
    folder, _ = home.llm("mlx-cached", "path")
    assert folder in stats
    assert not stats.startswith("0 spans")
    assert home.llm("mlx-cached", "clear")[0].startswith("freed ")
    assert home.llm("mlx-cached", "stats")[0].startswith("0 spans, 0 tokens, 0 B")


def test_seeded_answers_repeat_and_a_temperature_is_used(home):
    warm = ("-m", "mlx-cached", "Name a colour.", "-o", "temperature", "1.5", *LIMIT[:2], "8")
    answers = {seed: home.llm(*warm, "-o", "seed", seed)[0] for seed in ("0", "1", "2")}
    assert home.llm(*warm, "-o", "seed", "0")[0] == answers["0"]
    assert len(set(answers.values())) > 1

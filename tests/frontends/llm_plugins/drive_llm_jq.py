"""llm-jq: a program for what comes through a pipe, asked without llm's log."""

import json
import shutil

import pytest

DATA = json.dumps({"ships": [{"name": "Ada", "built": 1850}, {"name": "Eve", "built": 1890}]})


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_programs_that_are_run(played, user_of):
    user = user_of(
        {
            "The names.": played.words(".ships[].name"),
            "How many.": played.words(".ships | length"),
            "The first.": played.words(".ships[0]"),
            "Nonsense.": played.words('.ships | error("no ship")'),
        }
    )
    assert user.llm("jq", "-m", "mlx-cached", "The names.", stdin=DATA) == '"Ada"\n"Eve"'
    assert user.llm("jq", "-m", "mlx-cached", "How many.", stdin=DATA) == "2"
    assert user.llm("jq", "-m", "mlx-cached", "-o", "The first.", stdin=DATA) == ".ships[0]"
    assert user.llm("jq", "-m", "mlx-cached", "Nonsense.", stdin=DATA, status=5) == ""
    *programs, error = user.told
    assert programs == [".ships[].name", ".ships | length", ""]
    assert "no ship" in error
    user.check_new(answers=4)

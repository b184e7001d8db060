"""Several `llm` at once, as `llm ... &` starts them: what they share while all of them answer."""

import subprocess
from contextlib import closing

import forks
import sqlite_utils
from llm.migrations import migrate

SYSTEM = "You keep a lighthouse, and write down which ships you see. " * 10
LIMIT = ("-o", "max_tokens", "4")
SIX = range(6)
OWN = 40  # tokens behind what they share, at most


def test_c16_six_at_once_load_one_model_and_prefill_what_they_share_once(
    bare_hosted_home, tiny_llama
):
    home = bare_hosted_home
    home.ours("default", str(tiny_llama()))
    (home.folder / "llm").mkdir()
    with closing(sqlite_utils.Database(home.folder / "llm" / "logs.db")) as database:
        migrate(database)  # several that make llm's log at once are llm's own matter
    asked = ("-m", "mlx-cached", "-s", SYSTEM, *LIMIT)
    processes = [
        subprocess.Popen(
            [forks.llm(), *asked, f"Question {number}?"],
            env=home.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in SIX
    ]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0 for _ in SIX], said
    answers = home.logged(len(SIX))
    assert {answer["prompt"] for answer in answers} == {f"Question {n}?" for n in SIX}
    assert sum(answer["response_json"]["load_seconds"] > 0 for answer in answers) == 1
    assert len({answer["response_json"]["fingerprint"] for answer in answers}) == 1
    # The system prompt is most of each prompt; of it only the first to come computes anything.
    whole = answers[0]["input_tokens"]
    assert whole > 10 * OWN
    assert sum(answer["details"]["prefilled"] for answer in answers) <= whole + len(SIX) * OWN

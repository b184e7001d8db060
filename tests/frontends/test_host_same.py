"""Law 15: `llm` says and logs the same with a host as without one, to the exit status.

A process for each command, real tokenizers, weights that play a script.
What is reused may only be more.
"""

import json
import re
import subprocess

import forks
import pytest
from click.testing import CliRunner
from llm.cli import cli
from real_families import Played, every_family
from scripted_model import SPLIT, environment, scripted_folder

from llm_mlx_promptcache.config import RegisteredModel, Settings, save_settings

FUNCTIONS = """
def find_place(city: str, days: int, far: bool = False, tags: list[str] | None = None) -> str:
    "Find a place in a city."
    if city == "Nowhere":
        raise ValueError("there is no such city")
    return "Found " + repr((city, days, far, tags))

def add_up(numbers: list[float], note: str | None = None) -> str:
    "Add numbers."
    return "Sum " + repr((numbers, note))
"""
PLACE = ("find_place", {"city": "Zürich", "days": 2, "far": True, "tags": ["a", 'b "c"']})
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}})
# What depends on where and when an answer was made; tokens from the cache may be more.
_OWN = {"cache", "from_memory", "from_disk", "prompt_tps", "generation_tps", "peak_memory"}
_CALL_ID = re.compile(r"call_[0-9a-f]{24}")
_OWN_ENTRY = {"id", "conversation_id", "datetime_utc", "duration_ms", "token_details"}


def script(played):
    return {
        "Plan it.": played.calls(PLACE),
        "Found (": played.calls(("add_up", {"numbers": [1, 2.5], "note": None})),
        "Sum (": played.words(f"It takes 3.5 da{SPLIT}ys. 🌍"),
        "And then?": played.words("Then it is over."),
        "No tool.": played.calls(("no_such_tool", {"a": 1})),
        "no_such_tool": played.words("There is no such tool."),
        "Wrong words.": played.calls(("find_place", {"city": 3, "days": "many"})),
        "Fail.": played.calls(("find_place", {"city": "Nowhere", "days": 1})),
        "there is no such city": played.words("It failed."),
        "A document.": played.words('{"a": 5}'),
        "A long one.": played.words("word " * 200),
        "": played.words("Nothing else."),
    }


TOOLS = ("-T", "llm_version", "--functions", "tools.py")
ASK = ("-m", "mlx-cached")
WITH_TOOLS = {
    "a loop of tools": (*ASK, "-s", "Be brief.", "Plan it.", *TOOLS),
    "its next turn": ("-c", "And then?", *TOOLS),
    "its tools are lost": ("-c", "And then?", "-R"),
    "a call of no tool": (*ASK, "No tool.", *TOOLS),
    "a call that can't be made": (*ASK, "Wrong words.", *TOOLS),
    "a tool that fails": (*ASK, "Fail.", *TOOLS, "--no-stream"),
}
OTHERS = {
    "a document": (*ASK, "A document.", "--schema", SCHEMA, "-o", "max_tokens", "60"),
    "one that is cut": (*ASK, "A document.", "--schema", SCHEMA, "-o", "max_tokens", "2"),
    "an answer that is cut": (*ASK, "A long one.", "-o", "max_tokens", "20", "--async"),
    "a stop string": (*ASK, "A long one.", "-o", "stop", "word word"),
    "a bad option": (*ASK, "Hello", "-o", "top_p", "3"),
    "a bad schema": (*ASK, "Hello", "--schema", '{"type": "nothing"}'),
    "too long a prompt": ASK,
    "no such model": ("-m", "mlx-cached/gone", "Hello"),
    "a damaged one": ("-m", "mlx-cached/damaged", "Hello", "--async"),
    "no tools but a choice": (*ASK, "Hello", "-o", "tool_choice", "any", *TOOLS),
    "fewer bits": (*ASK, "And then?", "-o", "kv_bits", "8"),
    "logs are off": ("logs", "off"),
    "nothing on the disk": (*ASK, "And then?", "-o", "cache", "0"),
}


STDIN = {"too long a prompt": "word " * 40_000}


class Teller:
    """One user, and all that each command says and logs."""

    def __init__(self, home, folder, model):
        self._home, self._folder, self._heard = home, folder, 0
        folder.mkdir(exist_ok=True)
        (folder / "tools.py").write_text(FUNCTIONS)
        damaged = folder / "damaged"
        damaged.mkdir()
        (damaged / "config.json").write_text("{")
        named = (
            RegisteredModel(name="gone", reference=str(model / "gone")),
            RegisteredModel(name="damaged", reference=str(damaged)),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLM_MLX_CACHED_HOME", home.own()["LLM_MLX_CACHED_HOME"])
            save_settings(Settings(default_model=str(model), models=named))

    def says(self, arguments, stdin):
        """Exit status, stdout and stderr of a command, and what it logged, line by line."""
        done = subprocess.run(
            [forks.llm(), *arguments],
            cwd=self._folder,
            env=self._home.environment(PYTHONPATH=environment()["PYTHONPATH"]),
            input=stdin,
            capture_output=True,
            text=True,
        )
        told = {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        told["log"] = [_kept(entry) for entry in self._logged()[self._heard :]]
        self._heard += len(told["log"])
        lines = json.dumps(told, indent=1, ensure_ascii=False, sort_keys=True)
        ids = list(dict.fromkeys(_CALL_ID.findall(lines)))  # the calls' ids are drawn anew
        lines = _CALL_ID.sub(lambda found: f"call {ids.index(found[0])}", lines)
        return lines.replace(str(self._folder), "FOLDER").splitlines()

    def _logged(self):
        wanted = ["logs", "list", "--json", "-n", "0"]
        done = CliRunner().invoke(cli, wanted, env=self._home.own())
        return json.loads(done.output) if done.exit_code == 0 else []


def _kept(entry):
    """The part of a log entry that is the same whoever answered."""
    told = entry["response_json"]
    if told is not None:
        told = {k: v for k, v in told.items() if k not in _OWN and not k.endswith("_seconds")}
    details = json.loads(entry["token_details"] or "{}")
    prompt = details.get("cached", 0) + details.get("prefilled", 0)
    kept = {k: v for k, v in entry.items() if k not in _OWN_ENTRY}
    return kept | {"response_json": told, "prompt": prompt}


FEW = ("Qwen3", "Llama 3.1", "gpt-oss")
FAMILIES = [one for one in every_family(often=FEW[:1]) if one.id in FEW]


@pytest.fixture
def told_the_same(bare_home, bare_hosted_home, tmp_path):
    """`told_the_same(model, steps)`: two users, one of them with a host, see the same each time."""

    def run(model, steps):
        here = Teller(bare_home, tmp_path / "here", model)
        hosted = Teller(bare_hosted_home, tmp_path / "there", model)
        tell(steps, here, hosted)

    return run


def tell(steps, here, hosted):
    for name, arguments in steps.items():
        stdin = STDIN.get(name, "")
        told = hosted.says(arguments, stdin)
        assert told == here.says(arguments, stdin), name
        assert "runs the model itself" not in "".join(told), name


@pytest.mark.parametrize("family", FAMILIES)
def test_law_15_llm_is_the_same_with_a_host(family, told_the_same, tmp_path):
    played = Played(family)
    told_the_same(played.folder(tmp_path / "model", script(played)), WITH_TOOLS)


PLAIN = {
    "A document.": '{"a": 5}',
    "A long one.": "word " * 200,
    "And then?": "Then it is over.",
    "": "Nothing else.",
}


def test_law_15_what_is_cut_refused_or_lost_is_the_same(told_the_same, tiny_llama, tmp_path):
    """A tokenizer of few words: here it does not matter, and each command reads one."""
    told_the_same(scripted_folder(tmp_path / "model", tiny_llama(), None, PLAIN), OTHERS)


@pytest.mark.soak
def test_law_15_it_is_so_with_a_real_tokenizer_too(told_the_same, tmp_path):
    played = Played(FAMILIES[0].values[0])
    told_the_same(played.folder(tmp_path / "model", script(played)), OTHERS)

"""Names of the user's own in what `llm mlx-cached doctor` tells: none, however they are written."""

from pathlib import Path

import pytest

from llm_mlx_promptcache.commands.doctor_names import Names, folder_name
from llm_mlx_promptcache.config import HOME_VARIABLE

JANE = Path("/Users/Jane Doe")


@pytest.fixture
def jane(monkeypatch):
    """Names as somebody's are, whose folders have spaces."""
    monkeypatch.setattr(Path, "home", lambda: JANE)
    ours = JANE / "Library" / "Caches" / "ours"
    return Names([(ours, "~/Library/Caches/ours"), ("/data/my model", "the model")])


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (
            "/Users/Jane Doe/Library/Caches/ours/spans/12.gguf",
            "~/Library/Caches/ours/spans/12.gguf",
        ),
        ("/Users/Jane Doe/Library/Caches/ours is open", "~/Library/Caches/ours is open"),
        ("chmod 700 /Users/Jane Doe/Library/Caches/ours; x", "chmod 700 ~/Library/Caches/ours; x"),
        ("/Users/Jane Doe/Library/Caches/ours-too is full", "~/… is full"),
        ("/Users/Jane Doe is no folder", "/… is no folder"),
        ("/data/my model/config.json", "the model/config.json"),
        ("/data/my model 2/config.json", "/…"),
        ("no '/data/my model/config.json'", "no 'the model/config.json'"),
        # Spaces, punctuation and quotes in names; in quotes and without.
        ("can't read /Users/Jane Doe/her plans/x (EIO)", "can't read ~/… (EIO)"),
        ("can't read /Users/John Roe/his plans/x: EIO", "can't read /…: EIO"),
        ("/Users/Roe, John/x y/z is full; look", "/… is full; look"),
        ("/Users/John (old)/x y", "/…"),
        (r"/Users/John\ Roe/x y", "/…"),
        ("no such file: '/Users/John Roe/x y', so", "no such file: '/…', so"),
        ('no such file: "/Volumes/John\'s Disk/x y"', 'no such file: "/…"'),
        ("'/Volumes/John's Disk/x y' can't be used: no 'z'", "'/…' can't be used: no 'z'"),
        ("'/Volumes/Johns' Disk/x y' is full", "'/…' is full"),
        ("'/Volumes/Johns' Disk/x y' is no 'z' and 'a b'", "'/…' is no 'z' and 'a b'"),
        ("/Volumes/Johns' Disk/x y is full", "/… is full"),
        ("`/Users/John Roe/x y` and '~/x y'", "`/…` and '~/…'"),
        # Homes, variables, and what begins here.
        ("~/Clients/secret plans is no folder", "~/… is no folder"),
        ("~john/x y is no folder", "~/… is no folder"),
        ("$HOME/x y, ${SECRET}/x y", "…, …"),
        ("../John/x y, ./x y (why)", "…, … (why)"),
        ("models/secret/thing, models/secret.gguf", "…, …"),
        ("'my models/x' is no folder", "'…' is no folder"),
        (
            "no '/Users/x/Roe (old)'; did you mean '/Users/x/Roe (new)'?",
            "no '/…'; did you mean '/…'?",
        ),
        ("file:///Users/John%20Roe/x", "file://…"),
        ("https://john:hf_x@inside.corp/y is slow", "https://… is slow"),
        ("some/model@/Users/Jane Doe/adapters/her x", "…~/…"),
        ("HF_HOME=/Users/John Roe/x", "HF_HOME=/…"),
        # What is nobody's.
        ("/usr/lib/libblas.so.0, /proc/self", "/usr/lib/libblas.so.0, /proc/self"),
        (
            "mlx-community/Qwen3-0.6B-4bit is not here.",
            "mlx-community/Qwen3-0.6B-4bit is not here.",
        ),
        ("'some/Model.v2' and 3 and/or 4", "'some/Model.v2' and 3 and/or 4"),
        ("12/14 at 5 tokens/s, docs/linux.md", "12/14 at 5 tokens/s, docs/linux.md"),
        ("'llm mlx-cached download a/b' fetches it", "'llm mlx-cached download a/b' fetches it"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("a \0000\000 b", "a 0 b"),
    ],
)
def test_p7_no_path_of_a_user_s_is_in_a_line(text, public, jane):
    assert jane.public(text) == public


def test_p7_a_word_that_is_a_path_here_is_not_taken_for_a_model_s_id(jane, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert jane.public("clients/secret is no model") == "clients/secret is no model"
    (tmp_path / "clients" / "secret").mkdir(parents=True)
    assert jane.public("clients/secret is no model") == "… is no model"


def test_a_user_without_a_home_has_names_too(monkeypatch):
    """As in a container whose user nobody knows."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    assert Names([("/data/ours", "ours")]).public("/data/ours/x, /Users/Roe/y") == "ours/x, /…"
    assert folder_name(Path("/data/ours")) == "…/ours"

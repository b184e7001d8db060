"""README and docs mention only what exists: links, pages, messages, figures, running blocks."""

import ast
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from xml.etree import ElementTree

import forks
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ITEM = re.compile(r" *(?:[-*]|\d+\.) ")


def module(path):
    """A script of ours that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def prose(page):
    """A page's text without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text()))


def anchors(page):
    """The anchors that a page's headings get, as the site and GitHub make them."""
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())


def blocks(page, language):
    """A page's code blocks of a language, from top to bottom."""
    return [code for found, code in FENCED.findall(page.read_text()) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        if anchor:
            assert anchor in set(anchors(there)), target
        # The site holds docs/ and nothing else.
        if page.parent == DOCS:
            assert there.is_relative_to(DOCS), target


def torn_lists(text):
    """Lines that the site does not show as their list has them, though GitHub does.

    Python-Markdown begins a list only behind an empty line, and goes on with an item's paragraph
    or table only where that is indented by four spaces.
    """
    for block in re.split(r"\n\s*\n", FENCED.sub("", text)):
        first, *others = block.strip("\n").split("\n")
        if not ITEM.match(first):
            yield from [first] if re.match(r" {1,3}\S", first) else []
            yield from filter(ITEM.match, others)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_are_whole_on_the_site_too(page):
    assert list(torn_lists(page.read_text())) == []


@pytest.mark.parametrize(
    ("torn", "whole"),
    [
        ("Text:\n- an item", "Text:\n\n- an item"),
        ("- an item\n\n  its text\n- another", "- an item\n\n    its text\n\n- another"),
    ],
)
def test_a_torn_list_is_noticed(torn, whole):
    assert list(torn_lists(torn))
    assert not list(torn_lists(whole))


def test_every_page_stands_once_in_the_navigation():
    yaml = pytest.importorskip("yaml", reason="the site's own packages bring it")
    text = (ROOT / "mkdocs.yml").read_text()
    sections = yaml.safe_load(text)["extra"]["sections"]
    found = module(DOCS / "navigation.py").navigation(DOCS, sections)
    entries = [entry for section in found for entries in section.values() for entry in entries]
    listed = [n for e in entries for n in ([e] if isinstance(e, str) else e.values())]
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_site_says_where_the_code_is_and_asks_nobody_else():
    navigation = module(DOCS / "navigation.py")
    config = SimpleNamespace(docs_dir=str(DOCS), extra={"sections": {}}, repo_name=None)
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    navigation.on_config(config)
    assert (config.site_url, config.repo_url) == (urls["Documentation"], urls["Repository"])
    assert config.repo_name == "github.com"
    link = '<head></head><a class="md-source" data-md-component="source">github.com</a>'
    shown = navigation.on_post_page(link, SimpleNamespace(title="A page"), config)
    assert '<a class="md-source">github.com</a>' in shown


def said():
    """The strings of the code that it can say, with … for what is filled in."""
    for folder in ("llm_mlx_promptcache", "langchain_adapter", "langchain_mlx_cached"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        v.value if isinstance(v, ast.Constant) else "…" for v in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%[sd]|\{\w+\}", "…", node.value)


def quoted():
    """The messages that the page is sorted by."""
    text = (DOCS / "troubleshooting.md").read_text()
    return re.findall(r"^### `(.+)`$", text, re.MULTILINE)


class Template(NamedTuple):
    """A string of the code, and what it says however its gaps are filled in."""

    text: str
    filled: re.Pattern

    def says(self, message):
        """True if a message begins like this one, filled in somehow."""
        return self.filled.match(message) or self.text.startswith(message)


@pytest.fixture(scope="module")
def everything_said():
    # A template of next to nothing but gaps would match any message.
    templates = {text for text in said() if len(text.replace("…", "")) > 10}
    parts = {text: map(re.escape, text.split("…")) for text in templates}
    return [Template(text, re.compile(".*?".join(parts[text]), re.DOTALL)) for text in templates]


@pytest.mark.parametrize("message", quoted())
def test_the_code_still_says_each_message(message, everything_said):
    assert any(template.says(message) for template in everything_said), message


def test_a_message_that_the_code_does_not_say_is_noticed(everything_said):
    for message in ("the disk cache in … is on for this process: …", "unknown modem …"):
        assert not any(template.says(message) for template in everything_said), message


SHOWN = re.compile(r"^\$ llm mlx-cached .*\n((?:(?!\$ ).*\n)+)", re.MULTILINE)


def shown_lines():
    """The sentences that pages show as what our commands print, without tables and trees."""
    for page in PAGES:
        for _, code in FENCED.findall(page.read_text()):
            for line in "".join(SHOWN.findall(code)).splitlines():
                if re.match(r" *[a-zA-Z](?:\S| (?! ))+$", line) and len(line.split()) > 3:
                    yield pytest.param(line, id=f"{page.stem}: {line[:40]}")


@pytest.mark.parametrize("line", list(shown_lines()))
def test_the_code_still_says_each_line_that_a_page_shows(line, everything_said):
    ways = line, line.strip()
    assert any(template.filled.match(way) for template in everything_said for way in ways), line


def recorded_lines():
    """The recording's lines of our commands, each whole that the terminal had broken."""
    picture = ElementTree.parse(DOCS / "terminal.svg")
    lines = ["".join(t.itertext()) for t in picture.iter("{http://www.w3.org/2000/svg}text")]
    text = re.sub(r"\n  (?=\S)", " ", "\n".join(lines) + "\n")
    return [line for line in "".join(SHOWN.findall(text)).splitlines() if len(line.split()) > 8]


def test_the_code_still_says_what_was_recorded(everything_said):
    lines = recorded_lines()
    assert len(lines) > 3
    for line in lines:
        assert any(template.filled.match(line) for template in everything_said), line


def test_the_report_is_what_its_figures_give():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        report = module(ROOT / "benchmarks" / "report.py")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    found = report.kept(DOCS / "figures")
    assert found
    assert (DOCS / "benchmarks.md").read_text() == report.page(found, DOCS / "figures")


# The columns of docs/eviction.md's table: the ratio of a policy, over another's.
POLICIES = (
    ("lru", None),
    ("default", "lru"),
    ("history", "lru"),
    ("recency", "lru"),
    ("belady", "lru"),
    ("default", "mlx-lm"),
)


@pytest.mark.parametrize(
    "path", sorted((DOCS / "figures").glob("eviction-*.json")), ids=lambda path: path.stem
)
def test_evictions_table_tells_what_was_measured(path):
    figures = json.loads(path.read_text())["figures"]
    ratios, trace = figures["ratios"], path.stem.removeprefix("eviction-").split("-")
    rows = re.findall(r"^\| (.+) \|$", (DOCS / "eviction.md").read_text(), re.MULTILINE)
    start = re.compile(rf"{trace[0]}\b.*{' '.join(trace[1:])}", re.IGNORECASE)
    cells = next(c for c in (r.split(" | ") for r in rows if start.match(r)) if len(c) == 8)
    assert cells[1] == " ".join(f"{blocks:,}" for blocks in figures["blocks"])
    for cell, (policy, beside) in zip(cells[2:], POLICIES, strict=True):
        under = ratios[beside] if beside else [1.0] * len(ratios[policy])
        found = [ours / theirs for ours, theirs in zip(ratios[policy], under, strict=True)]
        shown = cell.split(" ")
        assert [f"{x:.{len(s.split('.')[1])}f}" for x, s in zip(found, shown, strict=True)] == shown


# A measured time, rate or share; what is set in the code (a wait, a limit) has no decimals.
FIGURE = re.compile(
    r"(?<![\w.])\d+(?:[.,]\d+)* ?(?:µs|tokens/s|tokens a second|GFLOP/s|GB/s|MB/s)(?!\w)"
    r"|(?<![\w.])\d+\.\d+ ?(?:s|ms|seconds|times|%)(?!\w)"
)
FROM = re.compile(r"`(?:make|python) [^`]+`|`(?:benchmarks|tests)/[^`]+`|benchmarks\.md|`test_\w+`")


# Times on the design's page are what it sets: waits, chunks, deadlines.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "design.md"], ids=lambda page: page.stem
)
def test_a_measured_figure_stands_beside_its_command(page):
    for section in re.split(r"^#+ ", FENCED.sub("", page.read_text()), flags=re.MULTILINE):
        figures = FIGURE.findall(section)
        title = section.partition("\n")[0]
        assert not figures or FROM.search(section), f"{title}: {figures} are from no command"


def test_the_recording_shows_what_was_printed_and_when():
    recording = module(DOCS / "recording.py")
    ran = [
        recording.Ran("llm 'a & b'", ["1 < 2", "x" * 100], 0.5),
        recording.Ran("llm -c", ["three"], 9.0),
    ]
    picture = ElementTree.fromstring(recording.drawn(ran))
    lines = picture.findall("{http://www.w3.org/2000/svg}text")
    shown = ["".join(line.itertext()) for line in lines]
    assert shown == ["$ llm 'a & b'", "1 < 2", "x" * 80, "x" * 20, "$ llm -c", "three"]
    times = [float(re.search(r"[\d.]+", line.get("style"))[0]) for line in lines]
    assert times == sorted(times)
    assert times[1] - times[0] == pytest.approx(0.5 + 11 * 0.03)
    assert times[5] - times[4] == pytest.approx(4.0 + 6 * 0.03, abs=0.01)  # no longer wait is shown


def test_the_card_has_the_size_that_sites_ask():
    head = (DOCS / "card.png").read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">II", head[16:]) == (1200, 630)
    page = SimpleNamespace(title="A & B")
    config = SimpleNamespace(site_url="https://example.org/x/", site_name="x")
    found = module(DOCS / "navigation.py").on_post_page("<head></head>", page, config)
    assert 'og:image" content="https://example.org/x/card.png"' in found
    assert 'og:title" content="A &amp; B"' in found


def test_a_picture_that_a_page_shows_is_text_that_scales():
    for page in PAGES:
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", prose(page)):
            path = page.parent / picture
            if path.suffix == ".png":  # a page of somebody else's, as a browser shows it
                assert path.read_bytes().startswith(b"\x89PNG")
                assert path.stat().st_size < 200_000
                continue
            text = path.read_text()
            assert "<svg" in text, picture
            # Nothing in a picture is fetched from elsewhere when it is looked at.
            assert not re.search(r"(?:href|src)=\"https?:|@import", text), picture


@pytest.fixture
def user(tmp_path, real_model_folder):
    """A user's folders with the default model, an answer's length that a test can wait for."""
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    # Only the models are the machine's: a command of README's sets another default.
    (home / "data" / "models").symlink_to(real_model_folder.parent)
    (tmp_path / "work").mkdir()
    programs = Path(forks.llm()).parent, Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        "LLM_USER_PATH": str(tmp_path / "llm"),
        "LLM_MLX_CACHED_HOME": str(home),
        "PYTHONPATH": "",
    }

    def run(*command):
        # llm reads what is piped to it, so there is nothing to read.
        given = {"env": environment, "cwd": tmp_path / "work", "stdin": subprocess.DEVNULL}
        done = subprocess.run(command, **given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    run("llm", "models", "options", "set", "mlx-cached", "max_tokens", "40")
    (tmp_path / "work" / "system.txt").write_text("You answer in one word.")
    return run


def commands(script):
    """A block's commands but those that install, which tests/test_wheel.py does from the wheel."""
    return "\n".join(
        line for line in script.splitlines() if not re.match(r"(llm|pip) install ", line)
    )


@pytest.mark.real_model
def test_readmes_commands_run_as_printed(user):
    user("llm", "models", "options", "set", "mlx-cached", "max_tokens", "12")
    for script in blocks(ROOT / "README.md", "sh"):
        # As at a prompt: what fails ends the block, and a variable that isn't set is a mistake.
        user("bash", "-euo", "pipefail", "-c", commands(script))


@pytest.mark.real_model
def test_readmes_first_commands_print_what_it_shows(user):
    (shown,) = blocks(ROOT / "README.md", "console")
    turns = re.findall(r"^\$ (llm (?!install).+)\n((?:[^$].*\n)*)", shown, re.MULTILINE)
    assert len(turns) == 2
    for command, printed in turns:
        # What is said while the model is fetched: it is here already.
        expected = [line for line in printed.splitlines() if not line.endswith("once)")]
        assert user("bash", "-c", f"{command} 2>&1").splitlines() == expected


@pytest.mark.real_model
def test_readmes_python_runs_as_printed(user, real_model_folder):
    found = blocks(ROOT / "README.md", "python")
    assert found
    for code in found:
        # No hub is in reach of the tests.
        here = code.replace("mlx-community/Qwen3-0.6B-4bit", str(real_model_folder))
        user(forks.python(), "-c", here)


def test_the_page_that_an_index_shows_leads_somewhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"]
    page = module(ROOT / "hatch_build.py").absolute(
        (ROOT / "README.md").read_text(), repository, f"v{project['version']}"
    )
    assert "[[[" not in page
    targets = LINK.findall(FENCED.sub("", page))
    assert len(targets) > 20
    for target in targets:
        assert target.startswith("https://"), target
        at = re.fullmatch(
            rf"{repository}/(?:blob|raw)/v{project['version']}/([^#]+)(?:#.*)?", target
        )
        assert at is None or (ROOT / at[1]).exists(), target
    assert any(f"{repository}/raw/" in target and target.endswith(".svg") for target in targets)


def test_every_python_block_compiles():
    for page in PAGES:
        for code in blocks(page, "python"):
            compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for text in blocks(page, "json"):
            json.loads(text)


def test_actions_are_pinned_to_commits_and_may_do_nothing_by_default():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    for path in workflows:
        text = path.read_text()
        assert re.search(r"^permissions: \{\}$", text, re.MULTILINE), path
        used = re.findall(r"uses: (.+)$", text, re.MULTILINE)
        assert used
        for action in used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+(\.\d+)+", action), action

"""Help texts and tables in the documentation are those of the code."""

import re
import subprocess
import sys
from pathlib import Path

import llm
import pytest

ROOT = Path(__file__).parent.parent
COG = str(Path(sys.executable).with_name("cog"))


def pages():
    """The pages that the Makefile has cog write."""
    (line,) = re.findall(r"^COG_PAGES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return line.split()


def checked(*names):
    command = [COG, "--check", "--diff", "-I", "docs", *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_generated_parts_are_up_to_date():
    done = checked(*pages())
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nmake cog writes them anew"


def test_the_documented_options_are_the_options():
    text = (ROOT / "docs" / "llm.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    fields = llm.get_model("mlx-cached").Options.model_fields
    assert documented == [(name, field.description) for name, field in fields.items()]


def test_every_page_with_generated_parts_is_checked():
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    with_parts = {str(p.relative_to(ROOT)) for p in found if "[[[cog" in p.read_text()}
    assert with_parts == set(pages())


@pytest.mark.parametrize("gone", ["llm mlx-cached tree", "temperature"])
def test_what_is_out_of_date_is_found(tmp_path, gone):
    page = tmp_path / "commands.md"
    text = (ROOT / "docs" / "commands.md").read_text()
    head, mark, rest = text.partition("]]] -->")
    assert gone in rest
    page.write_text(head + mark + rest.replace(gone, "something else", 1))
    assert checked(str(page)).returncode != 0

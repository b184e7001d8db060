"""The lines of a batch, which nobody vouches for: what is wrong is refused by line and name."""

import io
import json

import pytest

from llm_mlx_promptcache.commands import batch_lines
from llm_mlx_promptcache.commands.batch_lines import BatchDefaults, in_asking_order, read_lines

SHARED = BatchDefaults("default", {"max_tokens": "5"})


def read(*lines, shared=SHARED):
    text = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    return read_lines(io.BytesIO(text), "in.jsonl", shared)


def refused(*lines):
    with pytest.raises(ValueError, match=r"^in\.jsonl") as caught:
        read(*lines)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_line_is_a_prompt_and_what_it_is_asked_with():
    found = read(
        {"prompt": "One"},
        b"  ",
        {"prompt": "Two", "system": "Be brief.", "id": "two", "options": {"seed": 3}},
        {"prompt": "Three", "id": 30, "schema": "name, age int", "system": None},
    )
    assert [(line.number, line.id, line.system) for line in found] == [
        (1, 1, ""),
        (3, "two", "Be brief."),
        (4, 30, ""),
    ]
    assert [dict(line.options) for line in found] == [
        {"max_tokens": "5"},
        {"max_tokens": "5", "seed": 3},
        {"max_tokens": "5"},
    ]
    assert list(found[2].schema["properties"]) == ["name", "age"]
    assert found[2].schema["properties"]["age"]["type"] == "integer"


def test_a_digest_is_of_all_that_is_asked_and_of_whom():
    line = {"prompt": "a", "system": "b", "options": {"seed": 1}, "schema": {"type": "object"}}
    others = [
        {**line, "prompt": "c"},
        {**line, "system": ""},
        {**line, "options": {"seed": 2}},
        {**line, "schema": {"type": "array"}},
    ]
    found = [read(one)[0].digest for one in (line, *others)]
    found.append(read(line, shared=BatchDefaults("another", SHARED.options))[0].digest)
    found.append(read(line, shared=BatchDefaults("default", {}))[0].digest)
    assert len(set(found)) == len(found)
    # Where it stands and what it is called is no part of it.
    assert read({"prompt": "x"}, {**line, "id": "y"})[1].digest == found[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "it is no JSON object (Expecting"),
        (b"[1]", "it is no JSON object"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "a", "options": {"seed": NaN}}', "it is no JSON object"),
        (b"[" * 100_000, "too deep"),
        (b'{"prompt": "a", "id": ' + b"9" * 5000 + b"}", "a number in it has too many digits"),
        ({}, "prompt is missing or empty"),
        ({"prompt": " "}, "prompt is missing or empty"),
        ({"prompt": 3}, "prompt is no text"),
        ({"prompt": "\ud800"}, "half a character"),
        ({"prompt": "a", "system": ["b"]}, "system is no text"),
        ({"prompt": "a", "prmpt": "b"}, "there is no field 'prmpt'; a line has prompt, system"),
        ({"prompt": "a", "\x1b[2J": 1}, "there is no field"),
        ({"prompt": "a", "seed": 3}, "seed is an option; options stand in"),
        ({"prompt": "a", "options": [1]}, "options are no object"),
        ({"prompt": "a", "options": {"sed": 1}}, "sed: Extra inputs are not permitted"),
        ({"prompt": "a", "options": {"top_p": 3}}, "top_p: Input should be less than"),
        ({"prompt": "a", "schema": 3}, "schema is no JSON Schema object"),
        ({"prompt": "a", "schema": ""}, "schema is no JSON Schema object"),
        ({"prompt": "a", "schema": "name, : x"}, "missing a name"),
        ({"prompt": "a", "id": True}, "id is no whole number"),
        ({"prompt": "a", "id": 1.5}, "id is no whole number"),
        ({"prompt": "a", "id": ""}, "id is no whole number"),
        ({"prompt": "a", "id": "x" * 257}, "id is no whole number"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_name(line, words):
    told = refused({"prompt": "fine"}, line)
    assert told.startswith("in.jsonl, line 2: ")
    assert words in told
    assert "\x1b" not in told


def test_two_prompts_of_one_id_are_told_apart():
    assert refused({"prompt": "a", "id": 2}, {"prompt": "b"}).endswith("is that of line 1 too")
    assert [line.id for line in read({"prompt": "a", "id": "2"}, {"prompt": "b"})] == ["2", 2]


def test_an_empty_file_is_told():
    assert "holds no prompts" in refused(b"", b" ")


def test_lines_and_files_are_bounded(monkeypatch):
    class Counted(io.BytesIO):
        asked = 0

        def readline(self, size=-1):
            assert 0 < size <= 101
            self.asked += 1
            return super().readline(size)

    monkeypatch.setattr(batch_lines, "MOST_LINE", 100)
    endless = Counted(b'{"prompt": "' + b"a" * 10_000)
    with pytest.raises(ValueError, match="line 1: it has more than"):
        read_lines(endless, "in.jsonl", SHARED)
    assert endless.asked == 1
    monkeypatch.setattr(batch_lines, "MOST_BYTES", 60)
    assert "split it" in refused(*[{"prompt": "a" * 10}] * 9)


def test_prompts_that_begin_alike_follow_each_other():
    lines = read(
        {"prompt": "b 1", "system": "S"},
        {"prompt": "x"},
        {"prompt": "a 1", "system": "T"},
        {"prompt": "a 1", "system": "S"},
        {"prompt": "b 0", "system": "S"},
        {"prompt": "a"},
    )
    assert [line.id for line in in_asking_order(lines)] == [4, 5, 1, 6, 2, 3]

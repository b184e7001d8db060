"""The results of a batch: nothing is lost, and no file of others is touched."""

import io
import json
import os

import pytest

from llm_mlx_promptcache.commands.batch_lines import BatchDefaults, read_lines
from llm_mlx_promptcache.commands.batch_results import ResultOrder, ResultsFile, ShownResults


def lines_of(count):
    text = "".join(f'{{"prompt": "number {n}"}}\n' for n in range(1, count + 1))
    return read_lines(io.BytesIO(text.encode()), "in", BatchDefaults("default", {}))


LINES = lines_of(4)


def written(path, *places, order=ResultOrder.INPUT):
    """A run that had these answers, by their places; what was there before."""
    results = ResultsFile(path, LINES, order)
    done = set(results.done)
    for place in places:
        results.add(LINES[place], {"text": f"answer {place}"})
    results.close()
    return done


def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_results_are_there_at_once_and_in_order_at_the_end(tmp_path):
    path = tmp_path / "out"
    results = ResultsFile(path, LINES, ResultOrder.INPUT)
    for place in (2, 0, 3):
        results.add(LINES[place], {"text": "é"})
        assert ids(path)[-1] == LINES[place].id
    assert ids(path) == [3, 1, 4]
    results.close()
    assert ids(path) == [1, 3, 4]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert written(path, 1) == {1, 3, 4}
    assert ids(path) == [1, 2, 3, 4]


def test_unordered_they_stay_as_they_came(tmp_path):
    path = tmp_path / "out"
    written(path, 2, 0, order=ResultOrder.CAME)
    inode = path.stat().st_ino
    written(path, 1, order=ResultOrder.CAME)
    assert ids(path) == [3, 1, 2]
    assert path.stat().st_ino == inode


def test_an_error_is_asked_again_and_its_place_taken(tmp_path):
    path = tmp_path / "out"
    results = ResultsFile(path, LINES, ResultOrder.CAME)
    results.add(LINES[0], {"error": "too long"})
    results.add(LINES[1], {"text": "yes"})
    results.close()
    assert written(path, 0, order=ResultOrder.CAME) == {2}
    assert ids(path) == [2, 1]
    assert "error" not in path.read_text()


def test_whatever_a_crash_cuts_off_the_rest_is_taken(tmp_path):
    """A file that ends anywhere: the whole lines count, and nothing is asked twice."""
    path, whole = tmp_path / "out", tmp_path / "whole"
    written(whole, 0, 1)
    data = whole.read_bytes()
    first = data.index(b"\n")
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        # A line that lacks nothing but its end is whole.
        expected = {1, 2} if end >= len(data) - 1 else {1} if end >= first else set()
        assert written(path) == expected, end
        assert set(ids(path)) == expected, end  # and no byte behind them
        left = [place for place in range(4) if LINES[place].id not in expected]
        assert written(path, *left) == expected, end
        assert ids(path) == [1, 2, 3, 4]
        path.unlink()


OURS = b'{"id": 1, "text": "x", "digest": "%s"}\n' % LINES[0].digest.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"notes of mine",
        b"notes\n",
        b"{",
        b'{"id": 1, "text": "another program\'s"}',
        b'{"id": 1, "text": "another program\'s"}\n',
        b'{"id": 1, "digest": 3}\n',
        b'{"id": [1], "digest": "a"}\n',
        b'{"id": 1, "digest": "a"\n',
        OURS + b"notes",
        OURS + b"\n" + OURS,
        OURS.replace(b"1", b"true", 1),
    ],
)
def test_a_file_that_is_none_of_ours_is_left_alone(tmp_path, content):
    path = tmp_path / "out"
    path.write_bytes(content)
    if content == b"{":  # may be the first byte of ours
        assert written(path) == set()
        return
    with pytest.raises(ValueError, match=r"line \d: it is not a batch's result"):
        ResultsFile(path, LINES, ResultOrder.INPUT)
    assert path.read_bytes() == content


def test_answers_to_another_prompt_are_refused(tmp_path):
    path = tmp_path / "out"
    written(path, 0, 1)
    before = path.read_bytes()
    others = read_lines(io.BytesIO(b'{"prompt": "other"}\n'), "in", BatchDefaults("default", {}))
    with pytest.raises(ValueError, match="line 1: it answers another prompt"):
        ResultsFile(path, others, ResultOrder.INPUT)
    assert path.read_bytes() == before


def test_results_of_prompts_that_are_not_asked_now_stay(tmp_path):
    path = tmp_path / "out"
    written(path, 3, 1)
    results = ResultsFile(path, LINES[:1], ResultOrder.INPUT)
    results.add(LINES[0], {"text": "a"})
    results.close()
    assert ids(path) == [2, 4, 1]


def test_two_batches_never_write_one_file(tmp_path):
    path = tmp_path / "out"
    first = ResultsFile(path, LINES, ResultOrder.INPUT)
    with pytest.raises(ValueError, match="another batch is writing"):
        ResultsFile(path, LINES, ResultOrder.INPUT)
    first.close()
    written(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "no/such/folder"):
        with pytest.raises(ValueError, match=r"can't be written: "):
            ResultsFile(tmp_path / name, LINES, ResultOrder.INPUT)


def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "out"
    results = ResultsFile(path, LINES, ResultOrder.INPUT)
    results.add(LINES[0], {"text": "a"})
    real = os.pwrite

    def full(descriptor, data, at):
        if at > path.stat().st_size - 1 and len(data) > 9:
            return real(descriptor, data[:9], at)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ValueError, match="No space left"):
        results.add(LINES[1], {"text": "b"})
    assert ids(path) == [1]
    results.close()


def test_modes_and_links_of_a_file_stay(tmp_path):
    path, link = tmp_path / "out", tmp_path / "link"
    written(path, 3)
    path.chmod(0o644)
    link.symlink_to(path)
    written(link, 0)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o644
    assert ids(path) == [1, 4]


def test_on_stdout_results_wait_for_those_before_them(capsys):
    results = ShownResults(LINES, ResultOrder.INPUT)
    shown = []
    for place in (1, 0, 3):
        results.add(LINES[place], {"text": "a"})
        shown.append([json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()])
    assert shown == [[], [1, 2], []]
    results.close()  # the third will not come
    assert json.loads(capsys.readouterr().out)["id"] == 4
    results = ShownResults(LINES, ResultOrder.CAME)
    results.add(LINES[1], {"text": "a"})
    assert json.loads(capsys.readouterr().out)["id"] == 2

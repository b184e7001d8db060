"""Versions that all machines must share, and the words where they do not."""

from llm_mlx_promptcache.machines.versions import (
    files_differ,
    files_of,
    versions,
    versions_differ,
)


def test_a_process_fits_itself():
    assert versions_differ(versions(), versions()._asdict()) == ""
    assert versions().mlx
    assert len(versions().digest) == 64


def test_the_first_difference_is_told_with_both_values():
    mine = versions()
    told = mine._asdict()
    for changes, words in (
        ({"protocol": 2}, "it runs protocol 2, and this machine 1; install the same"),
        ({"mlx": "0.1"}, f"it runs mlx 0.1, and this machine {mine.mlx}; install the same"),
        ({"mlx_lm": "0.1"}, f"it runs mlx-lm 0.1, and this machine {mine.mlx_lm}; install"),
        ({"digest": "0"}, f"its files of llm-mlx-promptcache {mine.package} are others"),
        ({"mlx": "0.1", "digest": "0"}, "it runs mlx 0.1"),
        ({"package": "\x1b[2J" + "x" * 200}, "it runs llm-mlx-promptcache ?[2Jxx"),
    ):
        why = versions_differ(mine, {**told, **changes})
        assert why.startswith(words)
        assert len(why) < 200
    for nonsense in (None, [], "x", {}):
        assert versions_differ(mine, nonsense).startswith("it runs protocol None")


def test_files_of_a_model_are_compared_by_name_and_bytes(tmp_path):
    for name, size in (("config.json", 3), ("model.safetensors", 5), (".lock", 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "folder").mkdir()
    mine = files_of(tmp_path)
    assert mine == {"config.json": 3, "model.safetensors": 5}
    assert files_differ(mine, dict(mine)) == ""
    assert files_differ(mine, {**mine, "config.json": 4}) == (
        "its config.json has 4 bytes, and here it has 3 bytes; copy the model again"
    )
    assert "its model.safetensors is not there" in files_differ(mine, {"config.json": 3})
    assert "its x is not there" not in files_differ(mine, {**mine, "x": 1})
    assert "and here it is not there" in files_differ(mine, {**mine, "x": 1})
    assert files_differ(mine, None)

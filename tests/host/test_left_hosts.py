"""The tests' own watch over hosts: one that is left is found, and ended."""

import left_hosts
import pytest


@pytest.mark.parametrize("by", ["token", "folder"])
def test_a_host_that_is_left_is_found_and_ended(start, monkeypatch, tmp_path, by):
    monkeypatch.setenv("LLM_MLX_CACHED_TESTS", "the token of this test")
    host = start()
    host.connected().close()
    assert left_hosts.of_session("another token", tmp_path / "elsewhere") == []
    if by == "token":
        (left,) = left_hosts.of_session("the token of this test", tmp_path / "elsewhere")
    else:
        (left,) = left_hosts.of_session("another token", tmp_path)
    assert left.startswith(f"{host.process.pid}:")
    assert host.ended() == 0

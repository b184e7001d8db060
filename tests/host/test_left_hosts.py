"""The tests' own watch over hosts: one that is left is found, and ended."""

from functools import partial

import left_hosts
import pytest


@pytest.mark.parametrize("by", ["token", "folder"])
def test_a_host_that_is_left_is_found_and_ended(start, monkeypatch, tmp_path, by):
    monkeypatch.setenv("LLM_MLX_CACHED_TESTS", "the token of this test")
    found = partial(left_hosts.of_session, seconds=0)  # it is not about to leave
    host = start()
    host.connected().close()
    assert found("another token", tmp_path / "elsewhere") == []
    if by == "token":
        (left,) = found("the token of this test", tmp_path / "elsewhere")
    else:
        (left,) = found("another token", tmp_path)
    assert left.startswith(f"{host.process.pid}:")
    assert host.ended() == 0

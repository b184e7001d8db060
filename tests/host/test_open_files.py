"""A host may have many connections and spans open, where its starter may have few."""

import resource

import pytest

from llm_mlx_promptcache.host import main

MOST = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ((256, MOST), [(4096, MOST)]),  # as macOS has them
        ((256, 1024), [(1024, 1024)]),
        ((8192, 8192), []),
        ((MOST, MOST), []),
    ],
)
def test_a_host_asks_for_more_files_and_never_for_fewer(monkeypatch, limits, asked):
    made = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: made.append(wanted))
    main._open_more_files()
    assert made == asked

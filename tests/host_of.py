"""The host of a home in tests: found, and ended."""

import logging
import os
import subprocess
import time
from contextlib import closing, suppress

import pytest

from llm_mlx_promptcache.config import HOME_VARIABLE
from llm_mlx_promptcache.host.place import host_place
from llm_mlx_promptcache.host.start import find

LONG = 60


def asked(home, ask):
    """The answer of a home's host, its pid alone if it is ending; None if there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, os.fspath(home))
        channel = find(host_place())
    if channel is None:
        return None
    frame = None
    with closing(channel), suppress(ConnectionError):
        channel.send(ask, LONG)
        frame = channel.receive(LONG)
    return {"pid": channel.welcome["pid"]} if frame is None else frame["result"]


def end(home):
    """End the host of a home, if there is one, and wait until it is gone."""
    told = asked(home, {"ask": "stop", "why": "the test is over"})
    if told is not None:
        until = time.monotonic() + LONG
        while _runs(told["pid"]):
            assert time.monotonic() < until, told
            time.sleep(0.01)


def _runs(pid):
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


def warnings_of(caplog):
    """The warnings that this process logged."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

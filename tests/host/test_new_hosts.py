"""A host that must be new: never one that somebody else has started, and none is left behind."""

import os
from contextlib import closing

import pytest
from homes import command, reapers

from llm_mlx_promptcache.host import start
from llm_mlx_promptcache.host.child import Program
from llm_mlx_promptcache.host.start import (
    HostPresent,
    HostRefused,
    check_absent,
    start_new,
    starting_alone,
)


def started(home, *kinds):
    """The channel to a new host, and its process, as who is alone starts it."""
    with starting_alone(home.place):
        check_absent(home.place)
        return start_new(home.place, Program(command(*kinds)))


def test_it_is_started_where_there_is_none_and_a_second_one_is_refused_with_its_process(home):
    channel, child = started(home)
    with closing(channel):
        assert home.started() == [channel.welcome["pid"]] == [child.pid]
    for begin in (lambda: started(home), lambda: start_new(home.place, Program(command()))):
        with pytest.raises(HostPresent) as error:
            begin()
        assert error.value.pid == child.pid
    assert home.started() == [child.pid]
    os.kill(child.pid, 0)


@pytest.mark.parametrize("kind", ["old", "busy"])
def test_one_of_another_build_is_there_too_and_is_not_ended(home, kind):
    with pytest.raises(HostRefused):
        home.connect(kind)
    with pytest.raises(HostPresent) as error:
        started(home)
    assert [error.value.pid] == home.started()
    os.kill(error.value.pid, 0)


def test_one_that_is_ending_is_none(home, monkeypatch):
    def ending(*_, **__):
        raise HostRefused("it is ending", busy=1, stopping=True)

    monkeypatch.setattr(start, "find", ending)
    check_absent(home.place)


def test_one_that_is_ending_is_waited_for(home):
    with pytest.raises(HostRefused, match="stopping"):
        home.connect("stopping")
    channel, child = started(home, "stopping", "current")
    channel.close()
    assert home.started()[1:] == [child.pid]


def test_one_that_comes_first_after_all_is_not_taken_for_it(home, monkeypatch):
    """Its own starter was killed before it listened."""
    home.connect().close()
    monkeypatch.setattr(start, "_outlived", lambda *_: None)
    with pytest.raises(HostPresent) as error:
        start_new(home.place, Program(command()))
    assert [error.value.pid] == home.started()
    for thread in reapers()[1:]:
        thread.join(60)
    assert len(reapers()) == 1  # the other one was ended


def test_who_is_interrupted_leaves_none(home, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "_first_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        started(home, "never listens")
    for thread in reapers():
        thread.join(60)
    assert reapers() == []

"""The end of a host's life: a clock that is played, and no process."""

import pytest

from llm_mlx_promptcache.host.life import DRAIN_SECONDS, LOOK_SECONDS, Life, Signs, Stage

KEEP = 300.0
NOTHING = Signs()


@pytest.fixture
def life():
    """A host that was started at second 1000."""
    return Life(KEEP, 1000.0)


def test_a_host_that_nobody_asks_leaves_when_its_time_is_over(life):
    assert life.look(1000.0 + KEEP - 0.01, NOTHING) is Stage.SERVING
    assert life.look(1000.0 + KEEP, NOTHING) is Stage.LEAVING
    assert life.why == "nobody asked any more"


def test_the_last_ask_says_how_long_it_stays(life):
    life.opened()
    life.begin(10.0)
    life.end(2000.0)
    life.closed()
    assert life.look(2009.0, NOTHING) is Stage.SERVING
    assert life.look(2010.0, NOTHING) is Stage.LEAVING


def test_it_may_stay_for_ever(life):
    life.opened()
    life.begin(None)
    life.end(2000.0)
    life.closed()
    assert life.look(1e9, NOTHING) is Stage.SERVING
    assert life.pause(1e9) == LOOK_SECONDS
    assert life.status(1e9).left is None


def test_it_never_leaves_while_somebody_is_answered_or_may_ask(life):
    life.opened()
    assert life.look(5000.0, Signs(pressure=True, replaced=True, socket_gone=True)) is Stage.SERVING
    life.begin(KEEP)
    assert life.look(9000.0, Signs(replaced=True)) is Stage.SERVING
    assert life.pause(9000.0) is None
    life.end(9000.0)  # computed, and not yet delivered
    assert life.look(9000.0 + 2 * KEEP, NOTHING) is Stage.SERVING
    life.closed()
    assert life.look(9000.0 + 2 * KEEP, NOTHING) is Stage.LEAVING


def test_who_only_looks_at_it_keeps_it_no_longer(life):
    life.opened()
    life.closed()
    assert life.status(1100.0).idle == 100.0
    assert life.status(1100.0).left == KEEP - 100.0
    assert life.look(1000.0 + KEEP, NOTHING) is Stage.LEAVING


@pytest.mark.parametrize("sign", Signs._fields)
def test_each_sign_ends_an_idle_host_and_is_named(life, sign):
    assert life.look(1001.0, Signs(**{sign: True})) is Stage.LEAVING
    assert life.why


def test_a_host_that_is_stopped_finishes_what_was_asked(life):
    life.opened()
    life.begin(KEEP)
    life.stop(1001.0, "asked")
    assert not life.welcomes
    assert life.look(1001.0 + DRAIN_SECONDS - 0.01, NOTHING) is Stage.DRAINING
    assert life.pause(1001.0) == DRAIN_SECONDS
    life.end(1002.0)
    life.closed()
    assert life.look(1002.0, NOTHING) is Stage.LEAVING
    assert life.why == "asked"


def test_what_does_not_end_in_time_is_cancelled(life):
    life.opened()
    life.begin(KEEP)
    life.stop(1001.0, "asked")
    assert life.look(1001.0 + DRAIN_SECONDS, NOTHING) is Stage.CANCELLING
    assert life.pause(1001.0 + DRAIN_SECONDS) is None
    life.end(1010.0)
    life.closed()
    assert life.look(1010.0, NOTHING) is Stage.LEAVING


def test_who_asks_twice_to_stop_does_not_wait(life):
    life.opened()
    life.stop(1001.0, "asked")
    life.stop(1001.0, "asked again")
    assert life.look(1001.0, NOTHING) is Stage.CANCELLING
    assert life.why == "asked"


def test_an_idle_host_that_is_stopped_leaves_at_once(life):
    life.stop(1001.0, "asked")
    assert life.look(1001.0, NOTHING) is Stage.LEAVING
    assert life.look(1002.0, NOTHING) is Stage.LEAVING


def test_an_idle_host_wakes_up_once_in_five_seconds():
    """Counted over an hour: each look is a wake-up, and there is no other."""
    now, looks, life = 0.0, 0, Life(3600.0, 0.0)
    while life.look(now, NOTHING) is Stage.SERVING:
        now += life.pause(now)
        looks += 1
    assert now == 3600.0
    assert looks == 3600 / LOOK_SECONDS


def test_it_looks_when_its_time_is_over_and_not_five_seconds_later():
    life = Life(7.0, 0.0)
    assert life.pause(0.0) == LOOK_SECONDS
    assert life.pause(5.0) == 2.0
    assert life.pause(8.0) == 0.0


def test_its_status_tells_seconds(life):
    life.opened()
    life.begin(60.0)
    assert life.status(1500.0) == (Stage.SERVING, 1, 500.0, None, None, 60.0)
    life.end(1500.0)
    life.closed()
    assert life.status(1520.0) == (Stage.SERVING, 0, 520.0, 20.0, 40.0, 60.0)

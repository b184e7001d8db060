"""Asks beside answers are checked, and a host that is ending takes none."""

import pytest

from llm_mlx_promptcache.host.errors import HostStopped
from llm_mlx_promptcache.host.hello import bare_hello


@pytest.mark.parametrize(
    "ask",
    [
        {"ask": "clear", "model": 3},
        {"ask": "clear", "days": "7d"},
        {"ask": "clear", "days": -1},
        {"ask": "clear", "days": 1e9},
        {"ask": "clear", "days": 10**400},
        {"ask": "clear", "days": float("nan")},
        {"ask": "held"},
        {"ask": "held", "namespace": "n", "tokens": []},
        {"ask": "held", "namespace": "n", "tokens": [1, -1]},
        {"ask": "held", "namespace": "n", "tokens": [1, True]},
        {"ask": "held", "namespace": ["n"], "tokens": [1]},
        {"ask": "explain"},
        {"ask": "explain", "request": {"is": "Usage", "of": {}}, "rendered": {}},
        {"ask": "explain", "request": {"is": "os.system", "of": {}}, "rendered": {}},
        {"ask": "nothing of the kind"},
        {"ask": None},
        {},
    ],
)
async def test_an_ask_that_is_none_is_an_error_of_its_own(client, ask):
    asking = await client({"hello": bare_hello()}, ask)
    welcome, answer = await asking.frames()
    assert "welcome" in welcome
    assert answer["error"]["kind"] == "ValueError"


@pytest.mark.parametrize(
    ("ask", "result"),
    [
        ({"ask": "stats"}, {"memory": None, "models": []}),
        ({"ask": "tree"}, {"held": {}, "alone": []}),
        ({"ask": "tree", "text": True}, {"held": {}, "alone": [], "texts": {}}),
        ({"ask": "clear"}, {"memory": 0, "disk": 0}),
        ({"ask": "clear", "model": "m", "days": 7}, {"memory": 0, "disk": 0}),
        ({"ask": "pin", "id": "0" * 8}, {"found": 0}),
        ({"ask": "pin", "id": ["0"]}, {"found": 0}),
        ({"ask": "held", "namespace": "n", "tokens": [1]}, {"tokens": 0}),
        ({"ask": "flush"}, {}),
    ],
)
async def test_any_build_may_ask_a_host_that_has_computed_nothing(client, ask, result):
    asking = await client({"hello": bare_hello()}, ask)
    assert (await asking.frames())[1:] == [{"result": result}]


@pytest.mark.parametrize("name", ["clear", "stats", "tree", "pin", "flush", "held", "explain"])
async def test_p8_a_host_that_is_ending_clears_nothing_and_says_so(served, name):
    """Its contents are on their way to the disk: a client waits for its end, and clears that."""
    served.stop("the test wants it")
    with pytest.raises(HostStopped, match="the host is ending"):
        await served.control({"ask": name})
    assert (await served.control({"ask": "ps"}))["models"] == []

"""A model over two ranks as users have it: served, asked, shown, stopped, and lost."""

import json
import os
import re
import signal
import subprocess
import sys

import left_hosts
import pytest
from hostfiles import local, macs, written
from served_homes import LONG

LATER = pytest.mark.soak


def test_a_served_model_is_asked_by_its_name_and_goes_on(tiny):
    asked = ("-o", "max_tokens", "6", "-o", "temperature", "0")
    answer, _ = tiny.llm("-m", "mlx-cached/tiny", *asked, "Hello the capital")
    tiny.llm("-c", *asked, "and the answer")
    first, second = json.loads(tiny.llm("logs", "-n", "2", "--json")[0])
    assert first["response"].strip() == answer
    usage = json.loads(second["token_details"] or "{}")
    assert second["conversation_id"] == first["conversation_id"]
    assert usage["cached"] > 0


def test_langchain_reaches_it_too(tiny):
    code = (
        "from langchain_mlx_cached import ChatMLXCached;"
        "model = ChatMLXCached(model='mlx-cached/tiny', max_tokens=4);"
        "print(len(model.invoke('Hello the capital').content) > 0,"
        " model.get_num_tokens('Hello') > 0, model.profile['max_input_tokens'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=tiny.environment, capture_output=True, text=True
    )
    assert done.stdout == "True True 2048\n", done.stderr


def test_ps_shows_the_ranks_and_what_they_hold(tiny):
    group = tiny.told_by_all("tiny")
    assert [(one["rank"], one["host"]) for one in group["ranks"]] == [(0, "127.0.0.1"), (1, "mac1")]
    assert all(0 <= one["seconds"] < 10 and one["held"] > 0 for one in group["ranks"])
    assert (group["split"], group["backend"], group["keep"]) == ("tensor", "ring", None)
    assert group["model"] == tiny.model
    shown, _ = tiny.ours("ps")
    head, first, second = shown.splitlines()
    assert head.startswith("mlx-cached/tiny over 2 ranks (tensor, ring): process ")
    assert "stays forever" in head
    assert re.fullmatch(r"0\t127\.0\.0\.1\t[\d.]+ \w?B\t[\d.]+ s ago", first)
    assert re.fullmatch(r"1\tmac1\t[\d.]+ \w?B\t[\d.]+ s ago", second)


def test_the_other_machine_is_asked_by_ssh_alone_and_told_nothing_in_words(tiny):
    (line, *_) = tiny.ssh_log.read_text().splitlines()
    assert line.split("\t") == ["mac1", f"{sys.executable} -P -m llm_mlx_promptcache.machines"]
    told = dict(left_hosts.processes())
    for pid in tiny.processes():
        assert not re.search(r"[0-9a-f]{64}", told[pid])  # no secret of 32 bytes


def test_it_is_never_loaded_here_and_its_tokenizer_is(tiny):
    models = tiny.told("models")["models"]
    (entry,) = [one for one in models if one["model"] == "mlx-cached/tiny"]
    assert (entry["reference"], entry["folder"]) == ("served:tiny", tiny.model)
    _, errors = tiny.ours("bench", "--model", "mlx-cached/tiny", status=1)
    assert errors.splitlines()[-1] == (
        "Error: mlx-cached/tiny runs over several machines, and is not loaded in one process; the"
        f" model itself is {tiny.model}"
    )


def test_one_that_is_served_is_not_served_again(tiny):
    _, errors = tiny.serve("tiny", status=1)
    assert re.search(
        r"mlx-cached/tiny is served already \(process \d+\); llm mlx-cached stop tiny", errors
    )
    _, errors = tiny.ours("serve", "mlx-cached/tiny", "--hosts", tiny.hosts, status=1)
    assert "mlx-cached/tiny is served already; give the model that it is" in errors


def test_stop_ends_all_ranks_and_says_how_to_start_them(home):
    home.serve("stopped", hosts=written(home.folder / "local.json", local()))
    before = set(home.processes())
    pids = set(home.ranks("stopped"))
    assert pids <= before
    told = home.told("stop", "stopped")
    assert [one["name"] for one in told["served"]] == ["stopped"]
    home.wait_for(before - pids)
    _, errors = home.llm("-m", "mlx-cached/stopped", "Hello", status=1)
    assert errors.splitlines() == [
        "Error: mlx-cached/stopped runs over several machines, and is not served now; start it:"
        f" llm mlx-cached serve {home.model} --hosts {home.folder / 'local.json'} --split tensor"
        " --backend ring --name stopped"
    ]
    assert home.ours("stop", "stopped")[0] == "stopped is not served"
    away = "stopped is not served now: what it has on other machines stays; clear it there"
    assert away in home.ours("clear")[1].splitlines()
    _, errors = home.ours("stop", "nobody", status=1)
    assert "'nobody' is no model that is served over several machines" in errors


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_all_and_is_told(home, rank):
    home.serve("killed")
    pids = home.ranks("killed")
    others = set(home.processes()) - set(pids)
    os.kill(pids[rank], signal.SIGKILL)
    home.wait_for(others)
    _, errors = home.llm("-m", "mlx-cached/killed", "Hello", status=1)
    assert "mlx-cached/killed runs over several machines, and is not served now" in errors
    if rank:  # rank 0 itself could write nothing down
        why = r"\(it ended at [-\d]+ [:\d]+: rank 1 \(mac1\) is gone; mac1: it (was killed|ended)"
        assert re.search(why, errors)


@pytest.mark.parametrize(
    ("hosts", "options", "words"),
    [
        ("{", (), "holds no JSON; mlx.distributed_config writes one"),
        (local(1), (), "it names 1 hosts; give 2 to 64"),
        (local(), ("--backend", "jaccl"), "lists no RDMA device from '127.0.0.1'"),
        (macs(), ("--backend", "ring"), "10.0.0.1 is no address of this machine; rank 0 runs"),
        (
            local(),
            ("--address", "0.0.0.0"),
            "0.0.0.0 is no address of this machine; with --address",
        ),
        (local(), ("--name", "a/b"), "'a/b' is no name for a model that is served"),
        (local(), ("--keep", "soon"), "--keep is 'soon'; give"),
        (local(), ("--keep", "0"), "--keep is 0"),
        (
            [local(1)[0], {"ssh": "unknown", "ips": ["127.0.0.1"]}],
            (),
            "unknown: it ended (status 1",
        ),
    ],
)
def test_what_can_not_be_served_is_told_in_a_line(home, hosts, options, words):
    before = home.processes()
    path = written(home.folder / "bad.json", hosts)
    _, errors = home.serve("bad", *options, hosts=path, status=1)
    assert words in errors.splitlines()[-1]
    home.wait_for(before)
    assert "mlx-cached/bad" not in [one["model"] for one in home.told("models")["models"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            "real = rank_main.versions; rank_main.versions = lambda: real()._replace(mlx='0.1')",
            "mac1: it runs mlx 0.1, and this machine ",
            marks=LATER,
        ),
        (
            "rank_main.files_of = lambda folder: {'config.json': 1}",
            "mac1: its config.json has 1 bytes, and here it has ",
        ),
        (
            "real = rank_main.rank_order;"
            " rank_main.rank_order = lambda line: real(line)._replace(secret='00' * 32)",
            "refused this rank's secret",
        ),
        pytest.param(
            "from llm_mlx_promptcache.machines import loading;"
            " loading.shared_cache = lambda: open('/no/where')",
            "rank 1 (mac1) failed: [Errno 2] No such file or directory: '/no/where'",
            marks=LATER,
        ),
    ],
)
def test_another_machine_that_is_not_the_same_is_told_by_its_host(home, change, words):
    before = home.processes()
    _, errors = home.serve("other", "--python", home.other_python(change), status=1)
    assert words in errors.splitlines()[-1]
    home.wait_for(before)


HANGS = {
    "before it says what it is": "import time; rank_main.versions = lambda: time.sleep(600)",
    "before it meets": "import time; rank_main.meet = lambda *_, **__: time.sleep(600)",
    "while it loads": (
        "import time; from llm_mlx_promptcache.machines import loading;"
        " loading.load_shard = lambda *_, **__: time.sleep(600)"
    ),
}


@pytest.mark.parametrize(
    "hangs", [pytest.param(HANGS[at], id=at, marks=() if "what" in at else LATER) for at in HANGS]
)
def test_law_18_stop_ends_what_is_being_started_whoever_started_it(home, hangs):
    """The process that typed it is gone, and the other machine says nothing."""
    before = home.processes()
    given = ("--hosts", home.hosts, "--name", "begun", "--python", home.other_python(hangs))
    typed = home.begin("mlx-cached", "serve", home.model, *given)
    home.wait_until(lambda: len(home.processes()) >= len(before) + 2)
    if "loading" in hangs:
        home.wait_until(lambda: home.group("begun")["ranks"][1]["seconds"] is not None)
    typed.kill()
    typed.wait(LONG)
    assert [one["name"] for one in home.told("stop", "begun")["served"]] == ["begun"]
    home.wait_for(before)
    _, errors = home.llm("-m", "mlx-cached/begun", "Hello", status=1)
    assert "is not served now; start it: " in errors
    assert "it ended at" not in errors  # it was wished
    home.ours("remove", "begun")


@pytest.mark.soak
def test_a_rank_that_is_stopped_is_told_and_does_not_stay(home):
    """Ten seconds of silence, and it is ended by a signal that it can't put off."""
    before = home.processes()
    home.serve("still")
    os.kill(home.ranks("still")[1], signal.SIGSTOP)
    home.wait_for(before)
    _, errors = home.llm("-m", "mlx-cached/still", "Hello", status=1)
    assert "rank 1 (mac1) has said nothing for 10 seconds" in errors


def test_what_is_served_is_not_removed(tiny):
    _, errors = tiny.ours("remove", "tiny", status=1)
    assert errors == "Error: mlx-cached/tiny is served now; llm mlx-cached stop tiny ends it"


def test_p8_clear_clears_what_the_ranks_hold(tiny):
    """Their memory, and their disks, which are one here."""
    asked = ("-m", "mlx-cached/tiny", "-o", "max_tokens", "4", "Hello the capital of the light")
    tiny.llm(*asked)
    tiny.llm(*asked)
    log = ("logs", "-n", "1", "--json")
    assert json.loads(json.loads(tiny.llm(*log)[0])[0]["token_details"])["cached"] > 0
    assert tiny.ours("clear", "--model", "tiny", "--older-than", "1d")[0] == "freed 0 B"
    told = tiny.told("clear", "--model", "tiny")
    assert min(told["freed"], told["freed_memory"]) > 0
    assert [one for one in tiny.told("tree") if one["model"] == tiny.model] == []
    assert tiny.told("clear") == {"freed": 0, "freed_memory": 0}
    tiny.llm(*asked)
    details = json.loads(json.loads(tiny.llm(*log)[0])[0]["token_details"] or "{}")
    assert not details.get("cached")


def test_a_span_of_its_part_is_pinned_by_all_ranks(tiny):
    """Both ranks have one folder here; that each pins its own is tested beside their engine."""
    tiny.llm("-m", "mlx-cached/tiny", "-o", "max_tokens", "4", "Hello the capital")
    spans = tiny.told("tree", "--model", "tiny")
    end, counts = max(one["end"] for one in spans), []
    for span in (one for one in spans if one["end"] == end):
        assert tiny.told("pin", span["id"])["pinned"] is True
        counts.append(sum(one["pinned"] for one in tiny.told("tree", "--model", "tiny")))
        assert tiny.told("unpin", span["id"])["pinned"] is False
        assert not any(one["pinned"] for one in tiny.told("tree", "--model", "tiny"))
    assert sorted(counts) == [1, 2]  # the other rank's own part is that rank's alone


def test_p8_a_part_s_namespace_is_no_name_for_all_parts(tiny):
    tiny.llm("-m", "mlx-cached/tiny", "-o", "max_tokens", "4", "Hello the capital")
    namespace = next(one["namespace"] for one in tiny.told("tree", "--model", "tiny"))
    _, errors = tiny.ours("clear", "--model", namespace, status=1)
    assert errors.splitlines()[-1] == (
        "Error: tiny is served over several machines, and is not cleared there (each rank's part"
        " has another namespace: give the model's name): llm mlx-cached stop tiny, then clear here"
        " and on each of them"
    )


def test_a_part_of_a_prefix_is_not_exported(tiny):
    tiny.llm("-m", "mlx-cached/tiny", "-o", "max_tokens", "4", "Hello the capital " * 20)
    (answer,) = json.loads(tiny.llm("logs", "-n", "1", "--json")[0])
    span, file = tiny.told("tree", "--model", "tiny")[0]["id"], tiny.folder / "prefix"
    whole = "mlx-cached/tiny runs over several machines, each of which has a part of every prefix"
    for chosen, why in (
        (("-m", "mlx-cached/tiny", "-s", tiny.hosts), whole),
        (("--response", answer["id"]), whole),
        (("--span", span), "or it is one machine's part of a prefix, which is not exported"),
    ):
        assert why in tiny.ours("export", file, *chosen, status=1)[1]
    assert not file.exists()


def test_an_adapter_is_refused_before_anything_starts(home):
    adapter = home.folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    _, errors = home.ours(
        "serve", f"{home.model}@{adapter}", "--hosts", home.hosts, "--name", "adapted", status=1
    )
    assert "adapters are not cut for several machines; fuse it into" in errors

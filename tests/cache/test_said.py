"""Text behind an earlier prompt is found again, on the disk too, by its own namespace; cheaply."""

import sqlite3
import threading
from array import array

import pytest
from played_layers import layers_of, play

from llm_mlx_promptcache.cache.disk import shared_index
from llm_mlx_promptcache.cache.disk.index_rows import SELECT_ROWS, digest_of, row_from
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.memory import said as said_module
from llm_mlx_promptcache.cache.memory.recent import RecentSpans
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

PROMPT = [*range(100, 140)]
FIRST, SECOND, THIRD = [1, 2, 3, 4], [1, 2, 7, 8, 9], [50, 51]
MOST = 1000


def insert(cache, namespace, *paths):
    for ids in paths:
        cache.insert(namespace, ids, play(layers_of("rows"), ids))
    return cache


@pytest.fixture(params=["memory", "disk"])
def said_of(request, tmp_path):
    """`said_of(paths, ids, namespace, most)`: the ids known behind these, as a list."""

    def behind(paths, ids, namespace="ours", most=MOST):
        cache = PromptCache("100MB", DiskStore(tmp_path))
        for path in paths:
            insert(cache, "ours", path)
            cache.flush()
        if request.param == "disk":
            cache = PromptCache("100MB", DiskStore(tmp_path))
        cache.fetch(namespace, [*ids, 1])
        return cache.said(namespace, ids, most).behind.tolist()

    return behind


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], []),
        ([FIRST], FIRST),
        ([FIRST, SECOND], SECOND),  # which hangs in the middle of the first one
        ([FIRST, SECOND, THIRD], THIRD),
        ([SECOND, FIRST], FIRST),
        ([FIRST, [*FIRST, 5, 6]], [*FIRST, 5, 6]),
    ],
)
def test_what_came_last_behind_a_prompt_is_found(said_of, answers, expected):
    paths = [[*PROMPT[:-5]], *([*PROMPT, *answer] for answer in answers)]
    assert said_of(paths, PROMPT) == expected


@pytest.mark.parametrize("most", [1, 3, 5, 8])
def test_no_more_of_it_than_is_asked_for(said_of, most):
    found = said_of([PROMPT, [*PROMPT, *SECOND], [*PROMPT, *SECOND, *FIRST]], PROMPT, most=most)
    # What is too long to be read at once may be left out.
    assert found == [*SECOND, *FIRST][: len(found)]
    assert len(found) <= most


@pytest.mark.parametrize("ids", [[*PROMPT[:-1], 7], [*PROMPT, 9], [9, *PROMPT]])
def test_nothing_is_found_behind_another_prompt(said_of, ids):
    assert said_of([PROMPT, [*PROMPT, *FIRST]], ids) == []


def test_p8_nothing_of_another_namespace_is_found(said_of):
    assert said_of([PROMPT, [*PROMPT, *FIRST]], PROMPT, namespace="theirs") == []


def test_p8_nothing_of_another_namespace_even_where_the_index_is_forged(tmp_path):
    cache = PromptCache("100MB", DiskStore(tmp_path))
    insert(cache, "theirs", [*PROMPT, 9, *FIRST])
    insert(cache, "ours", PROMPT)
    cache.flush()
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        [(parent,)] = db.execute("SELECT file_id FROM spans WHERE namespace = 'ours'")
        select = SELECT_ROWS + " WHERE namespace = 'theirs'"
        row = row_from(db.execute(select).fetchone())._replace(parent=parent, start=40)
        change = "UPDATE spans SET parent = ?, start = 40, digest = ? WHERE namespace = 'theirs'"
        db.execute(change, (parent, digest_of(row)))
    db.close()
    later = PromptCache("100MB", DiskStore(tmp_path))
    later.fetch("ours", [*PROMPT, 1])
    assert later.said("ours", PROMPT, MOST).behind.tolist() == []


def test_what_was_cleared_is_not_found(tmp_path):
    cache = insert(PromptCache("100MB", DiskStore(tmp_path)), "ours", PROMPT, [*PROMPT, *FIRST])
    cache.flush()
    others = PromptCache("100MB", DiskStore(tmp_path))
    others.fetch("ours", [*PROMPT, 1])
    assert others.said("ours", PROMPT, MOST).behind.tolist() == FIRST
    cache.forget()
    assert cache.said("ours", PROMPT, MOST).behind.tolist() == []
    assert others.said("ours", PROMPT, MOST).behind.tolist() == []


def test_who_looks_leaves_no_trace(tmp_path):
    """No hit or use is counted, and pins stay as they are."""
    cache = insert(PromptCache("100MB", DiskStore(tmp_path)), "ours", PROMPT, [*PROMPT, *FIRST])
    cache.pin("ours", [*PROMPT, *FIRST])
    cache.flush()
    later = PromptCache("100MB", DiskStore(tmp_path))
    later.fetch("ours", [*PROMPT, 1])
    later.flush()
    before = rows(tmp_path)
    for _ in range(3):
        assert later.said("ours", PROMPT, MOST).behind.tolist() == FIRST
    later.flush()
    assert rows(tmp_path) == before
    assert later.check() == []


def rows(folder):
    with sqlite3.connect(folder / "index.sqlite") as db:
        found = db.execute("SELECT * FROM spans").fetchall(), db.execute("SELECT * FROM totals")
        found = found[0], found[1].fetchall()
    db.close()
    return found


def test_nobody_is_waited_for_long(tmp_path):
    """If the index is locked nothing is found, and the next lookup tries as ever."""
    cache = insert(PromptCache("100MB", DiskStore(tmp_path)), "ours", PROMPT, [*PROMPT, *FIRST])
    cache.flush()
    store = DiskStore(tmp_path)
    assert store.said_behind("ours", array("I", PROMPT), MOST).tolist() == []  # nothing is open
    assert store.lookup("ours", array("I", PROMPT)).end == len(PROMPT)
    free, store._index._looking = store._index._looking, Taken()
    assert store.said_behind("ours", array("I", PROMPT), MOST).tolist() == []
    store._index._looking = free
    assert not store.unseen
    assert store.said_behind("ours", array("I", PROMPT), MOST).tolist() == FIRST


class Taken:
    """A lock that another thread has; a caller that would wait long for it is found out."""

    def acquire(self, blocking=True, timeout=-1):
        assert 0 <= timeout <= 0.01
        return False


def test_what_another_thread_of_this_process_looks_up_is_waited_for(tmp_path, monkeypatch):
    """Upkeep begins when the first prompt is asked, and looks at the index just then."""
    cache = insert(PromptCache("100MB", DiskStore(tmp_path)), "ours", PROMPT, [*PROMPT, *FIRST])
    cache.flush()
    store = DiskStore(tmp_path)
    store.lookup("ours", array("I", PROMPT))
    monkeypatch.setattr(shared_index, "PEEK_SECONDS", 30)
    looking, asked = threading.Event(), threading.Event()
    tends = threading.Thread(
        target=store._index.look, args=(lambda _: looking.set() or asked.wait(30), None)
    )
    tends.start()
    assert looking.wait(30)
    store._index._looking = Told(store._index._looking, asked)
    assert store.said_behind("ours", array("I", PROMPT), MOST).tolist() == FIRST
    tends.join(30)


class Told:
    """A lock that tells that it is asked for."""

    def __init__(self, lock, asked):
        self._lock, self._asked = lock, asked
        self.release = lock.release

    def acquire(self, *how, **more):
        self._asked.set()
        return self._lock.acquire(*how, **more)


@pytest.mark.parametrize("spans", [100, 800])
def test_what_others_said_takes_no_longer_where_there_are_more(monkeypatch, spans):
    looked = []

    class Counted(RecentSpans):
        def newest(self, namespace):
            for node in super().newest(namespace):
                looked.append(node)
                yield node

    monkeypatch.setattr("llm_mlx_promptcache.cache.memory.span_tree.RecentSpans", Counted)
    cache = PromptCache("100MB")
    for number in range(spans):
        insert(cache, "ours", [number, number + 1])
    insert(cache, "theirs", FIRST)
    nodes = cache._tree._trie.nodes
    monkeypatch.setattr(cache._tree._trie, "nodes", lambda: pytest.fail("all are looked at"))
    texts = cache.said("ours", PROMPT, MOST).texts
    assert len(looked) == len(texts) == said_module._MOST_SPANS
    assert [text.tolist() for text in texts] == [
        [number, number + 1] for number in range(spans - 1, spans - 65, -1)
    ]
    cache.fetch("ours", [3, 4, 5])
    assert cache.said("ours", PROMPT, 2).texts[0].tolist() == [3, 4]
    monkeypatch.setattr(cache._tree._trie, "nodes", nodes)
    assert cache.check() == []
    cache.clear()
    assert cache.said("ours", PROMPT, MOST).texts == ()


def test_of_a_span_on_which_many_hang_some_are_looked_at(monkeypatch):
    cache = insert(PromptCache("100MB"), "ours", PROMPT)
    for number in range(300):
        insert(cache, "ours", [*PROMPT, number, 7])
    assert cache.said("ours", PROMPT, MOST).behind.tolist() == [299, 7]
    node = cache._tree.walk("ours", array("I", PROMPT)).nodes[-1]
    read = []

    class Children(dict):
        def values(self):
            found = super().values()

            class Once:
                def __iter__(self):
                    return iter(found)

                def __reversed__(self):
                    for one in reversed(found):
                        read.append(one)
                        yield one

            return Once()

    node.children = Children(node.children)
    assert cache.said("ours", PROMPT, MOST).behind.tolist() == [299, 7]
    assert len(read) == 16

"""Files that become a pack: runs of one path, never across a pin or a fork that is in use."""

from llm_mlx_promptcache.cache.disk.chains import LEAST_FILES, Link, Thrift, to_pack

ALL = Thrift(1 << 30, 100, growing=False)
GROWING = ALL._replace(growing=True)


def link(name, parent="", start=0, **more):
    made = Link(name, parent, start, 10, 100, "", False, 0, 0, 50)
    return made._replace(**more)


def chain(count, **more):
    """Spans that hang on each other's ends: a, b, c, ..."""
    names = [chr(ord("a") + n) for n in range(count)]
    return [link(name, names[n - 1] if n else "", 10 * n, **more) for n, name in enumerate(names)]


def packed(links, thrift=ALL):
    """The names of each pack's spans, by the files that they are in."""
    found = to_pack(links, thrift)
    return [["".join(one.file_id for one in unit.links) for unit in units] for units in found]


def test_a_path_is_one_pack():
    assert packed(chain(5)) == [["a", "b", "c", "d", "e"]]


def test_a_single_file_is_none():
    assert packed(chain(1)) == []


def test_never_across_a_pin():
    links = chain(5)
    links[2] = links[2]._replace(pinned=True)
    assert packed(links) == [["a", "b", "c"], ["d", "e"]]


def test_never_across_a_fork_that_is_in_use():
    links = [*chain(4), link("x", "b", 20, hits=1), link("y", "x", 30)]
    links[2] = links[2]._replace(hits=1)
    assert sorted(packed(links)) == [["a", "b"], ["c", "d"], ["x", "y"]]


def test_a_branch_that_never_came_back_is_left_aside():
    links = [*chain(4, hits=1), link("x", "b", 20), link("y", "x", 30)]
    assert sorted(packed(links)) == [["a", "b", "c", "d"], ["x", "y"]]


def test_of_branches_that_never_came_back_the_last_goes_on():
    links = [*chain(3), link("x", "b", 20, last_use=7)]
    assert packed(links) == [["a", "b", "x"]]


def test_what_hangs_in_the_midst_of_a_span_begins_anew():
    links = [*chain(2), link("x", "b", 15), link("y", "x", 25)]
    assert packed(links) == [["a", "b"], ["x", "y"]]


def test_what_was_used_just_now_waits():
    links = chain(5)
    links[4] = links[4]._replace(used_at=101)
    assert packed(links) == []


def test_a_pack_has_a_most():
    assert packed(chain(5), ALL._replace(most=250)) == [["a", "b"], ["c", "d"]]


def test_a_pack_with_what_follows_is_packed_again_by_who_asks():
    links = [one._replace(pack="p") for one in chain(3)] + chain(5)[3:]
    assert packed(links) == [["abc", "d", "e"]]


def test_a_pack_that_lies_across_a_fork_stays():
    links = [one._replace(pack="p", hits=1) for one in chain(4)] + chain(6)[4:]
    links.append(link("x", "b", 20, hits=1))
    assert packed(links) == [["e", "f"]]


def test_few_files_wait_while_the_conversation_may_go_on():
    assert packed(chain(LEAST_FILES - 1), GROWING) == []
    assert packed(chain(LEAST_FILES), GROWING) == [["a", "b", "c", "d"]]


def test_a_growing_conversation_is_copied_a_logarithm_of_times_and_stays_few_files():
    """Packed after each turn, so that each byte is copied again and again if it is done badly."""
    files, copied, most = [], 0, 0
    for turn in range(200):
        files.append([turn])
        links = [
            link(str(turn), str(turn - 1) if turn else "", 10 * turn, pack=pack)
            for number, held in enumerate(files)
            for turn in held
            for pack in [f"p{number}" if len(held) > 1 else ""]
        ]
        for units in to_pack(links, GROWING):
            tail = [turn for held in files[-len(units) :] for turn in held]
            files[-len(units) :] = [tail]
            copied += len(tail)
        most = max(most, len(files))
    assert most <= 10
    assert copied <= 200 * 5

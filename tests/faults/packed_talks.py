"""The talks that the tests of packs use: the files of a conversation, and a check of the whole."""

from llm_mlx_promptcache.cache.disk.store import DiskStore


def names(folder):
    return sorted(path.name for path in (folder / "spans").iterdir())


def whole(worlds, folder, paths):
    """All is found, before and after a sweep, which leaves nothing; and nothing is wrong then."""
    for path in paths:
        assert worlds.get(DiskStore(folder, "20MB"), path) == len(path)
    store = DiskStore(folder, "20MB")
    store.sweep()
    assert store.check() == []
    assert not [name for name in names(folder) if name.startswith(".")]
    assert (
        sum((folder / "spans" / name).stat().st_size for name in names(folder))
        == (store.stats()["bytes"])
    )
    for path in paths:
        assert worlds.get(DiskStore(folder, "20MB"), path) == len(path)
    store.close()


def dropped_alone(index, file_id):
    """Drop a span's row, and leave its file."""
    with index.transaction():
        index.drop(file_id)

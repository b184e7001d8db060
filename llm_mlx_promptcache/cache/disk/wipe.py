"""A whole store removed while other processes may go on storing."""

from __future__ import annotations

from .budget import ROWS
from .file_ids import PACK_SUFFIX, SUFFIX, file_ids_in, id_of, is_temporary, packs_in
from .folder import StoreFolder
from .index import Index
from .pins import Pins
from .upkeep import Upkeep


def wiped(index: Index, folder: StoreFolder, pins: Pins, upkeep: Upkeep) -> int:
    """Forget all rows and pins and remove the files that they had; returns bytes freed."""
    with index.transaction():
        index.wipe()
    pins.clear()
    names = folder.names()
    ours = [file_id + SUFFIX for file_id in file_ids_in(names)]
    ours += [pack + PACK_SUFFIX for pack in packs_in(names)]
    ours += [name for name in names if is_temporary(name)]
    freed = 0
    for start in range(0, len(ours), ROWS):
        # Nobody publishes a file meanwhile; one that was since has a row, and is not of these.
        with index.transaction():
            for name in ours[start : start + ROWS]:
                held = index.row(id_of(name))
                if index.packs.get(id_of(name)) is None and (held is None or held.pack):
                    freed += _removed(folder, name, upkeep)
    upkeep.shrink(index)
    return freed


def _removed(folder: StoreFolder, name: str, upkeep: Upkeep) -> int:
    """Remove a file; returns its bytes."""
    path = folder.spans / name
    try:
        size = path.lstat().st_size
        return size if folder.files.unlink(path) else 0
    except FileNotFoundError:
        return 0
    except OSError as error:
        upkeep.not_removed(error)
        return 0

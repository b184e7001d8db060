"""The picture of the rooms, from what their files import: `make cog` writes docs/rooms.svg."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "llm_mlx_promptcache"
PACKAGES = (PACKAGE, "langchain_adapter", "langchain_mlx_cached")
SHARED = "cache: shared"  # what the cache's own files have that its sub-rooms stand on
FOLDER = Path(__file__).parent


class Room(NamedTuple):
    """A room's place from left to right, and its purpose in a few words."""

    column: float
    words: str


ROOMS = {
    "plugin": Room(0.5, "llm's hooks"),
    "commands": Room(0.5, "llm mlx-cached ..."),
    "llm_adapter": Room(0.5, "llm on one side, the engine on the other"),
    "langchain_mlx_cached": Room(1.5, "the name that programs import"),
    "langchain_adapter": Room(1.5, "ChatMLXCached"),
    "machines": Room(2.5, "one model over several machines"),
    "host": Room(2.5, "the process that stays, and its clients"),
    "engine": Room(1, "requests, and the one thread for MLX"),
    "models": Room(1, "files, layers, tokenizers, profiles"),
    "chat": Room(0, "text, templates and grammars"),
    "cache": Room(1, "fetch, insert: memory and disk together"),
    "config": Room(2, "the user's settings and folders"),
    "cache/memory": Room(0.5, "spans in memory, and their order"),
    "cache/disk": Room(1.5, "spans in a folder that is shared"),
    SHARED: Room(1, "spans, the trie, worth, the protocol"),
    "cache/layers": Room(1, "what a model's layers hold"),
}

Arrow = tuple[str, str]

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _EDGE = 236, 46, 252, 76, 10


def imported(path: Path, root: Path) -> Iterator[str]:
    """The imports of a file, at its top or anywhere in it, each name in full."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files_of(root: Path) -> dict[str, set[Path]]:
    """The files of each room."""
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    rooms: dict[str, set[Path]] = {}
    for path in files:
        rooms.setdefault(_folder_of(path, root), set()).add(path)
    del rooms[""]  # the package's own __init__, which has the public names
    inner = [path for room in rooms if room.startswith("cache/") for path in rooms[room]]
    rooms[SHARED] = _below(inner, rooms["cache"], root)
    rooms["cache"] -= rooms[SHARED]
    return rooms


def arrows(rooms: dict[str, set[Path]], root: Path) -> set[Arrow]:
    """The pairs of rooms where one imports from the other."""
    homes = {path: room for room, paths in rooms.items() for path in paths}
    found = {(homes[path], homes[other]) for path in homes for other in _targets(path, homes, root)}
    return {(one, other) for one, other in found if one != other}


def reduced(found: set[Arrow]) -> set[Arrow]:
    """The arrows without those that follow from others."""
    reach = {start: _reached(start, found) for start, _ in found}
    return {
        (start, end)
        for start, end in found
        if not any(end in reach.get(other, ()) for first, other in found if first == start)
    }


def picture(root: Path) -> str:
    """The rooms as SVG, each above those that it imports from."""
    rooms = files_of(root)
    unknown = sorted(set(rooms) ^ set(ROOMS))
    if unknown:
        raise ValueError(f"ROOMS and the folders differ in {', '.join(unknown)}; change ROOMS")
    drawn = reduced(arrows(rooms, root))
    rows = _rows(drawn)
    width = round(max(room.column for room in ROOMS.values()) * _ACROSS) + _WIDTH + 2 * _EDGE
    height = max(rows.values()) * _DOWN + _HEIGHT + 2 * _EDGE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" aria-labelledby="title" font-family="system-ui,'
        ' -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="11">',
        '  <title id="title">The rooms, and which imports from which</title>',
        '  <defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>',
        f'  <rect width="{width}" height="{height}" fill="#fff"/>',
        '  <g fill="none" stroke="#555" stroke-width="1.4" marker-end="url(#to)">',
        *(f'    <path d="{_path(one, other, rows)}"/>' for one, other in sorted(drawn)),
        "  </g>",
        '  <g stroke="#0a7d5a" stroke-width="1.4" fill="#eef7f3">',
    ]
    for name in ROOMS:
        x, y = _corner(name, rows)
        lines.append(f'    <rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>')
    lines += ["  </g>", '  <g text-anchor="middle" fill="#1b1b1b">']
    for name, room in ROOMS.items():
        x, y = _corner(name, rows)
        middle = x + _WIDTH // 2
        lines.append(
            f'    <text x="{middle}" y="{y + 19}" font-size="13" font-weight="600">{name}</text>'
            f'<text x="{middle}" y="{y + 36}">{room.words}</text>'
        )
    return "\n".join([*lines, "  </g>", "</svg>", ""])


def _folder_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    inside = parts[1:] if parts[0] == PACKAGE else parts
    if inside[0] == "cache" and len(inside) > 2:
        return "/".join(inside[:2])
    return inside[0].removesuffix("__init__")


def _targets(path: Path, known: dict[Path, str] | set[Path], root: Path) -> Iterator[Path]:
    """The known files that a file imports, or imports names from."""
    for name in imported(path, root):
        parts = name.split(".")
        modules = [root.joinpath(*parts[:end]) for end in (len(parts), len(parts) - 1)]
        files = [f for m in modules for f in (m.with_suffix(".py"), m / "__init__.py")]
        yield from [file for file in files if file in known][:1]


def _below(start: list[Path], among: set[Path], root: Path) -> set[Path]:
    """The files `among` those that `start` imports, directly or through one another."""
    found: set[Path] = set()
    waiting = list(start)
    while waiting:
        for file in _targets(waiting.pop(), among, root):
            if file not in found and file.stem != "__init__":
                found.add(file)
                waiting.append(file)
    return found


def _reached(start: str, found: set[Arrow]) -> set[str]:
    """The rooms that one imports from, also through others; ValueError if it is in a cycle."""
    reach: set[str] = set()
    waiting = [start]
    while waiting:
        one = waiting.pop()
        more = {end for first, end in found if first == one} - reach
        reach |= more
        waiting += more
    if start in reach:
        raise ValueError(f"{start} imports from itself through other rooms; turn an arrow round")
    return reach


def _rows(drawn: set[Arrow]) -> dict[str, int]:
    """Each room's row: below all that import from it, and no higher than it must be."""
    rows = dict.fromkeys(ROOMS, 0)
    for _ in ROOMS:
        for one, other in drawn:
            rows[other] = max(rows[other], rows[one] + 1)
    for room in set(ROOMS) - {other for _, other in drawn}:
        rows[room] = min(rows[other] for one, other in drawn if one == room) - 1
    return rows


def _corner(name: str, rows: dict[str, int]) -> tuple[int, int]:
    return round(ROOMS[name].column * _ACROSS) + _EDGE, rows[name] * _DOWN + _EDGE


def _path(one: str, other: str, rows: dict[str, int]) -> str:
    """A straight line to the next row; to one further down, around what stands between."""
    (x, y), (to_x, to_y) = _corner(one, rows), _corner(other, rows)
    start, end = x + _WIDTH // 2, to_x + _WIDTH // 2
    if rows[other] == rows[one] + 1:
        return f"M{start} {y + _HEIGHT} {end} {to_y}"
    side = to_x + _WIDTH if start > end else to_x
    return f"M{start} {y + _HEIGHT}V{to_y + _HEIGHT // 2}H{side}"


if __name__ == "__main__":
    (FOLDER / "rooms.svg").write_text(picture(FOLDER.parent), encoding="utf-8")

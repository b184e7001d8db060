"""The index's tables of namespaces, and of the models opened under them."""

from __future__ import annotations

import sqlite3
from typing import Final

from .index_rows import MOST_LABEL, Namespace, digest_of_namespace, namespace_from, typed

# Openings of others after which a model that came back once counts as no longer opened.
_ALTERNATING: Final = 100
_NAMESPACES = "SELECT name, layout, label, identity, digest FROM namespaces"
# All names that a model was opened under have been given to another one since. Where two take
# turns (environments with other versions of mlx, say), both stay.
_SUPERSEDED = """
SELECT name FROM namespaces AS n JOIN models AS m ON m.identity = n.identity GROUP BY name
HAVING min((SELECT max(opened) FROM models WHERE label = m.label) - m.opened
    - m.came_back * ?) > 0
"""


class Namespaces:
    """The tables of namespaces and models, on an index's connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def layout(self, name: str) -> str | None:
        """A namespace's layout as text; None if it is unknown."""
        known = self.get(name)
        return known.layout if known is not None else None

    def get(self, name: str) -> Namespace | None:
        """A namespace's row, if there is one."""
        values = self._db.execute(_NAMESPACES + " WHERE name = ?", (name,)).fetchone()
        return namespace_from(values) if values is not None else None

    def all(self) -> list[Namespace]:
        """All namespaces."""
        return [namespace_from(values) for values in self._db.execute(_NAMESPACES)]

    def labels(self) -> dict[str, str]:
        """The user's name for the model of each namespace."""
        return {known.name: known.label for known in self.all()}

    def superseded(self) -> list[str]:
        """Namespaces of models that nobody can open any more, as far as is known."""
        return [name for (name,) in self._db.execute(_SUPERSEDED, (_ALTERNATING,))]

    def matching(self, model: str | None) -> list[str]:
        """Namespaces of a model (a label, or the beginning of a namespace), or all."""
        return [
            name
            for name, _, label, _ in self.all()
            if model is None or model == label or (len(model) >= 8 and name.startswith(model))
        ]

    def by_model(self) -> list[tuple[str, int, int]]:
        """Each label with its spans and bytes; the largest first."""
        return self._by_label(None)

    def superseded_by_model(self) -> list[tuple[str, int, int]]:
        """Each label with its spans and bytes that nobody can open any more."""
        return self._by_label(set(self.superseded()))

    def _by_label(self, only: set[str] | None) -> list[tuple[str, int, int]]:
        labels = self.labels()
        query = "SELECT namespace, count(*), sum(bytes) FROM spans GROUP BY namespace"
        held: dict[str, tuple[int, int]] = {}
        for values in self._db.execute(query):
            name, spans, size = typed(values, str, int, int)
            if only is None or name in only:
                label = labels.get(name, "")
                before = held.get(label, (0, 0))
                held[label] = (before[0] + spans, before[1] + size)
        counted = [(label, *amounts) for label, amounts in held.items()]
        return sorted(counted, key=lambda model: -model[2])

    # Changing; each of these inside a transaction.

    def put(self, namespace: Namespace) -> None:
        """Enter or replace a namespace."""
        told = namespace._replace(label=namespace.label[:MOST_LABEL])
        if told != self.get(namespace.name):
            change = "INSERT OR REPLACE INTO namespaces VALUES (?, ?, ?, ?, ?)"
            self._db.execute(change, (*told, digest_of_namespace(told)))

    def name(self, namespace: str, label: str, identity: str) -> None:
        """Record the label and the identity of a known namespace's model."""
        known = self.get(namespace)
        if known is not None:
            self.put(known._replace(label=label, identity=identity))

    def opened(self, identity: str, label: str) -> None:
        """Note that a process opened the model called `label`.

        It came back if another one was opened under that name since it was last opened.
        """
        query = "SELECT identity, opened FROM models WHERE label = ? ORDER BY opened DESC LIMIT 1"
        latest = self._db.execute(query, (label,)).fetchone() or (identity, 0)
        last, count = typed(latest, str, int)
        self._db.execute(
            "INSERT INTO models VALUES (?, ?, ?, 0) ON CONFLICT (identity, label) DO UPDATE"
            " SET opened = excluded.opened, came_back = max(came_back, ?)",
            (identity, label, count + 1, last != identity),
        )

    def forget_empty(self) -> None:
        """Forget namespaces of which nothing is stored, and models that are long gone."""
        self._db.execute(
            "DELETE FROM namespaces WHERE NOT EXISTS (SELECT 1 FROM spans WHERE namespace = name)"
        )
        self._db.execute(
            "DELETE FROM models AS m WHERE identity NOT IN (SELECT identity FROM namespaces)"
            " AND opened + ? < (SELECT max(opened) FROM models WHERE label = m.label)",
            (_ALTERNATING,),
        )

    def check(self) -> None:
        """DamagedIndex if one of their rows is none that we wrote."""
        self.all()
        for values in self._db.execute("SELECT identity, label, opened, came_back FROM models"):
            typed(values, str, str, int, int)

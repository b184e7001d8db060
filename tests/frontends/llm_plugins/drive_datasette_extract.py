"""datasette-extract: rows out of a text, held to the schema of a table's columns as they come."""

import json
import sqlite3
from contextlib import closing

from driven_datasette import worked_off

SHIPS = [{"name": "Ada", "built": 1850}, {"name": 'Ève "2"', "built": 1890}]
MORE = [{"name": "Una", "built": 1901}]
TEXT = "In port lie the Ada of 1850 and the Eve of 1890, both of them in need of paint. " * 5


def test_rows_out_of_a_text(played, datasette_user):
    user = datasette_user(
        {
            "those in port": played.words(json.dumps({"items": SHIPS}, ensure_ascii=False)),
            "the Una of 1901": played.words(json.dumps({"items": MORE})),
        }
    )
    path = user.folder / "ships.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table ships (name text, built integer)")
    asked = {"model": "mlx-cached", "use_name": "on", "use_built": "on"}
    wanted = ("Take those in port.", "Take the Una of 1901.")
    forms = [
        {**asked, "instructions": "Take every ship.", "content": TEXT + words} for words in wanted
    ]

    made = worked_off(path, "/ships/ships/-/extract", forms, "_datasette_extract")
    user.ran()
    assert [(one["num_items"], one["error"]) for one in made] == [(2, None), (1, None)]
    with closing(sqlite3.connect(path)) as db:
        assert list(db.execute("select name, built from ships")) == [
            (row["name"], row["built"]) for row in SHIPS + MORE
        ]
    user.check_new(answers=2)

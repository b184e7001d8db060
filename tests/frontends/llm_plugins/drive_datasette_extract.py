"""datasette-extract: rows out of a text, held to the schema of a table's columns as they come."""

import asyncio
import json
import sqlite3
from contextlib import closing

from datasette.app import Datasette

SHIPS = [{"name": "Ada", "built": 1850}, {"name": 'Ève "2"', "built": 1890}]
MORE = [{"name": "Una", "built": 1901}]
TEXT = "In port lie the Ada of 1850 and the Eve of 1890, both of them in need of paint. " * 5


def test_rows_out_of_a_text(played, datasette_user):
    user = datasette_user(
        {
            "those in port": json.dumps({"items": SHIPS}, ensure_ascii=False),
            "the Una of 1901": json.dumps({"items": MORE}),
        }
    )
    path = user.folder / "ships.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table ships (name text, built integer)")
    forms = [
        {"instructions": "Take every ship.", "content": f"{TEXT}Take those in port."},
        {"instructions": "Take every ship.", "content": f"{TEXT}Take the Una of 1901."},
    ]

    async def extract():
        datasette = Datasette([str(path)])
        datasette.root_enabled = True
        await datasette.invoke_startup()
        for form in forms:
            others = asyncio.all_tasks()
            asked = {"model": "mlx-cached", "use_name": "on", "use_built": "on", **form}
            done = await datasette.client.post(
                "/ships/ships/-/extract", data=asked, actor={"id": "root"}
            )
            assert done.status_code == 302, done.text
            await asyncio.gather(*(asyncio.all_tasks() - others))
        runs = await datasette.get_database("ships").execute("select * from _datasette_extract")
        datasette.close()
        return [dict(run) for run in runs.rows]

    made = asyncio.run(extract())
    user.ran()
    assert [(one["num_items"], one["error"]) for one in made] == [(2, None), (1, None)]
    with closing(sqlite3.connect(path)) as db:
        assert list(db.execute("select name, built from ships")) == [
            (row["name"], row["built"]) for row in SHIPS + MORE
        ]
    user.check_new(answers=2)

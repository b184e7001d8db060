"""datasette-enrichments-llm: a prompt for each row of a table, in Datasette's own process."""

import asyncio
import sqlite3
from contextlib import closing

from datasette.app import Datasette

SYSTEM = (
    "You sort ships by what is told of them: say `sail` or `steam` and nothing else of it. " * 4
)
ROWS = [
    (1, "Ada", "two masts"),
    (2, "Eve", "a funnel"),
    (3, "Ida", "a mast"),
    (4, "Una", "a paddle"),
]


def test_rows_of_a_table(played, datasette_user):
    user = datasette_user(
        {
            "two masts": played.words("sail"),
            "a funnel": played.words("steam"),
            "a mast": played.words("sail"),
            "a paddle": played.words("steam"),
        }
    )
    path = user.folder / "ships.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table ships (id integer primary key, name text, told text)")
        db.executemany("insert into ships values (?, ?, ?)", ROWS)
    form = {
        "model": "mlx-cached",
        "prompt": "Ship {{ name }}: {{ told }}",
        "system_prompt": SYSTEM,
        "output_column": "kind",
    }

    async def enrich():
        datasette = Datasette([str(path)])
        datasette.root_enabled = True
        await datasette.invoke_startup()
        others = asyncio.all_tasks()
        done = await datasette.client.post(
            "/-/enrich/ships/ships/llm", data=form, actor={"id": "root"}
        )
        assert done.status_code == 302, done.text
        await asyncio.gather(*(asyncio.all_tasks() - others))
        jobs = await datasette.get_database("ships").execute("select * from _enrichment_jobs")
        datasette.close()
        return [dict(job) for job in jobs.rows]

    [job] = asyncio.run(enrich())
    user.ran()
    assert (job["status"], job["done_count"], job["error_count"]) == ("finished", 4, 0)
    with closing(sqlite3.connect(path)) as db:
        kinds = [kind for (kind,) in db.execute("select kind from ships order by id")]
    assert kinds == ["sail", "steam", "sail", "steam"]
    # The instruction is run for the first row; of each other one its own words are.
    user.check_new(answers=4)

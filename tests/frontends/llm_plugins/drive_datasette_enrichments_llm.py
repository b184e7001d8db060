"""datasette-enrichments-llm: a prompt for each row of a table, in Datasette's own process."""

import sqlite3
from contextlib import closing

from driven_datasette import worked_off

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

    [job] = worked_off(path, "/-/enrich/ships/ships/llm", [form], "_enrichment_jobs")
    user.ran()
    assert (job["status"], job["done_count"], job["error_count"]) == ("finished", 4, 0)
    with closing(sqlite3.connect(path)) as db:
        kinds = [kind for (kind,) in db.execute("select kind from ships order by id")]
    assert kinds == ["sail", "steam", "sail", "steam"]
    # The instruction is run for the first row; of each other one its own words are.
    user.check_new(answers=4)

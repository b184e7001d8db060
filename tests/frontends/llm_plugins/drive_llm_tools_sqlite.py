"""llm-tools-sqlite: a toolbox over a file, which the next `llm -c` has again."""

import sqlite3
from contextlib import closing

from driven_llm import called, results

SHIPS = "CREATE TABLE [ships] ([name] TEXT, [built] INTEGER)"
COUNT = ("SQLite_query", {"sql": "select count(*) as n from ships where built < 1900"})
OLDEST = ("SQLite_query", {"sql": 'select name from ships\norder by built limit 1 -- "one"'})
WRONG = ("SQLite_query", {"sql": "selec 1"})


def test_a_database_is_asked_and_asked_again(played, user_of):
    user = user_of(
        {
            "How many are old?": played.calls(("SQLite_schema", {})),
            "CREATE TABLE": played.calls(COUNT),
            ": 2}]": played.words("Two of them."),
            "Which is the oldest?": played.calls(OLDEST),
            "Ada": played.words("The Ada."),
            "Say it wrongly.": played.calls(WRONG),
            "syntax error": played.words("That was no SQL."),
        }
    )
    with closing(sqlite3.connect(user.folder / "ships.db")) as db, db:
        db.execute(SHIPS)
        db.executemany(
            "insert into ships values (?, ?)", [("Ada", 1850), ("Eve", 1890), ("X", 2000)]
        )
    toolbox = ("-T", 'SQLite("ships.db")')
    assert user.llm("-m", "mlx-cached", *toolbox, "How many are old?") == "Two of them."
    assert user.llm("-c", "Which is the oldest?") == "The Ada."
    assert user.llm("-c", "Say it wrongly.", "--no-stream") == "That was no SQL."
    entries = user.check(answers=7)
    calls = [call for entry in entries for call in called(entry)]
    assert calls == [("SQLite_schema", {}), COUNT, OLDEST, WRONG]
    schema, *others, error = results(entries)
    assert schema.startswith(SHIPS)
    assert others == ['[{"n": 2}]', '[{"name": "Ada"}]']
    assert error.startswith("Error: ")

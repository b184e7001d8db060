"""Datasette's plugins that work in the background, driven through their own pages."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasette.app import Datasette


def worked_off(
    database: Path, page: str, forms: Sequence[Mapping[str, str]], jobs: str
) -> list[dict[str, Any]]:
    """Send forms to a page, one when the work for the one before is done; the rows of `jobs`."""
    return asyncio.run(_worked_off(database, page, forms, jobs))


async def _worked_off(
    database: Path, page: str, forms: Sequence[Mapping[str, str]], jobs: str
) -> list[dict[str, Any]]:
    datasette = Datasette([str(database)])
    datasette.root_enabled = True
    try:
        await datasette.invoke_startup()
        for form in forms:
            others = asyncio.all_tasks()
            sent = await datasette.client.post(page, data=form, actor={"id": "root"})
            assert sent.status_code == 302, sent.text
            await asyncio.gather(*(asyncio.all_tasks() - others))
        rows = await datasette.get_database(database.stem).execute(f"select * from [{jobs}]")
        return [dict(row) for row in rows.rows]
    finally:
        datasette.close()

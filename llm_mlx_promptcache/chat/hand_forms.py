"""Forms that no rendering shows: the generic one, and those of few families.

They are chosen by marks that stand in a model's vocabulary or in what its template renders, never
by a name.
"""

from __future__ import annotations

from .forms import Form, Hole, Layout

GENERIC = Form(
    Layout.OBJECT,
    ('<tool_call>\n{"name": "', Hole.NAME, '", "arguments": ', Hole.ARGUMENTS, "}\n</tool_call>"),
    between="\n",
    native=False,
)

"""The server whose tools drive_langchain_mcp_adapters.py calls."""

import base64
from typing import Literal

from mcp.server.fastmcp import FastMCP, Image
from pydantic import BaseModel

server = FastMCP("Math", log_level="ERROR")
# One grey dot.
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


class Place(BaseModel):
    """A place by its name."""

    name: str
    kind: Literal["city", "lake"] = "city"


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"The sum is {a + b}"


@server.tool()
def multiply(a: int, b: int) -> str:
    """Multiply two numbers."""
    return f"The product is {a * b}"


@server.tool()
def divide(a: int, b: int) -> float:
    """Divide a number by another."""
    if b == 0:
        raise ValueError("nothing can be divided by 0")
    return a / b


@server.tool()
def locate(place: Place) -> dict[str, float]:
    """Find a place."""
    return {"latitude": 59.9, "longitude": 10.7}


@server.tool()
def draw() -> Image:
    """Draw a dot."""
    return Image(data=DOT, format="png")


if __name__ == "__main__":
    server.run(transport="stdio")

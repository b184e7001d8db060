"""langchain_mlx_cached: the name to import langchain_adapter by."""

import ast
from pathlib import Path

import pytest

import langchain_adapter
import langchain_mlx_cached

ROOT = Path(__file__).parents[2]


def test_l13_both_names_give_the_same_objects():
    assert sorted(langchain_mlx_cached.__all__) == sorted(langchain_adapter.__all__)
    for name in langchain_adapter.__all__:
        assert getattr(langchain_mlx_cached, name) is getattr(langchain_adapter, name), name


def test_what_needs_langchain_is_the_same_object_too():
    """Names that are imported when they are asked for: type checkers see each of them."""
    lazy = typed_only(langchain_adapter)
    assert "PrefixKeepingSummarization" in lazy
    assert typed_only(langchain_mlx_cached) == lazy
    for name in lazy:
        assert getattr(langchain_mlx_cached, name) is getattr(langchain_adapter, name), name
    with pytest.raises(AttributeError, match="has no attribute 'Summarization'"):
        langchain_mlx_cached.Summarization  # noqa: B018


def typed_only(package):
    """The names that a package imports for type checkers, and else when they are asked for."""
    tree = ast.parse(Path(package.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name for block in blocks for node in block.body for alias in node.names}


def test_it_is_a_typed_package():
    assert (Path(langchain_mlx_cached.__file__).parent / "py.typed").exists()


def test_what_users_read_imports_this_name():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    found = [page.name for page in pages if "langchain_mlx_cached import" in page.read_text()]
    assert {"README.md", "langchain.md", "agent.py", "graph.py"} <= set(found)
    for page in pages:
        assert "from langchain_adapter" not in page.read_text(), page

"""Every field of ChatMLXCached says what it is for, and every trace which version answered."""

from importlib.metadata import version
from pathlib import Path

import pytest
from langchain_core.language_models import BaseChatModel

from langchain_mlx_cached import ChatMLXCached

PAGE = (Path(__file__).parents[2] / "docs" / "langchain.md").read_text()
OWN = [name for name in ChatMLXCached.model_fields if name not in BaseChatModel.model_fields]


@pytest.mark.parametrize("name", ChatMLXCached.model_fields)
def test_l12_a_field_is_described(name):
    told = ChatMLXCached.model_fields[name].description
    assert told, f"{name} has no description"
    assert told[0].isupper()
    assert told.endswith(".")


def test_no_two_fields_have_one_description():
    told = [field.description for field in ChatMLXCached.model_fields.values()]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("name", OWN)
def test_the_page_has_each_field(name):
    assert f"`{name}`" in PAGE


def test_a_subclass_keeps_the_descriptions():
    class Mine(ChatMLXCached):
        shop: str = ""
        """Whose it is."""

    assert Mine.model_fields["shop"].description == "Whose it is."
    assert Mine.model_fields["cache"].description == ChatMLXCached.model_fields["cache"].description


def test_traces_tell_the_version_beside_langchains(engine):
    given = {"lc_versions": {"mine": "1"}, "a": 1}
    told = ChatMLXCached(metadata=given).metadata
    assert told["lc_versions"]["llm-mlx-promptcache"] == version("llm-mlx-promptcache")
    assert told["lc_versions"]["langchain-core"] == version("langchain-core")
    assert (told["lc_versions"]["mine"], told["a"]) == ("1", 1)

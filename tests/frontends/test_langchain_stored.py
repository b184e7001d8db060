"""ChatMLXCached as plain data, and back."""

import pytest
from langchain_core.load import dumpd, load

from langchain_adapter import ChatMLXCached


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_it_is_stored_and_loaded_without_weights():
    chat = ChatMLXCached(model="mine", max_tokens=9, cache_salt="me", template_arguments={"a": 1})
    again = load(
        dumpd(chat), allowed_objects=[ChatMLXCached], valid_namespaces=["langchain_adapter"]
    )
    assert again == chat

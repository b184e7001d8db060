"""Front ends' knowledge of a model over several machines: its place, its end, how to start it."""

import os
import stat

import pytest

from llm_mlx_promptcache.config import (
    RegisteredModel,
    ServedOver,
    Settings,
    load_settings,
    save_settings,
)
from llm_mlx_promptcache.engine.request import GenerationRequest, Message
from llm_mlx_promptcache.host.engines import Where, engine_for
from llm_mlx_promptcache.host.place import existing_place, host_place
from llm_mlx_promptcache.host.served import remember_end, served_names, why_ended
from llm_mlx_promptcache.models.errors import ModelLoadError
from llm_mlx_promptcache.models.here import folder_here
from llm_mlx_promptcache.models.loading import load_model, model_folder
from llm_mlx_promptcache.models.references import divided, served_name, shown, spelled

COMMAND = (
    "llm mlx-cached serve {} --hosts '/my hosts.json' --split tensor --backend ring --name big"
)
ASKED = GenerationRequest((Message("user", "Hello"),))


@pytest.fixture
def big(place, tiny_llama):
    """A model called `big` that was served once; its folder."""
    folder = str(tiny_llama())
    over = ServedOver(model=folder, hosts="/my hosts.json", split="tensor", backend="ring")
    made = RegisteredModel(name="big", reference="served:big", served=over)
    save_settings(Settings(models=(made,)))
    return folder


def test_it_has_a_place_of_its_own_beside_the_users_host(place):
    assert existing_place("big") is None
    own, other = host_place("big"), host_place("bigger")
    assert len({place.folder, own.folder, other.folder}) == 3
    assert own.folder.parent == place.folder.parent
    assert stat.S_IMODE(own.folder.stat().st_mode) == 0o700
    assert existing_place("big") == own == host_place("big")


def test_an_end_may_quote_any_name_of_a_file(place):
    remember_end(host_place("big"), "no file /caf\udce9")
    assert why_ended(host_place("big")).endswith(": no file /caf\\udce9")


@pytest.mark.parametrize("letter", ["a", "\U0001f600", "\udce9"])
def test_an_end_in_many_words_is_told_by_the_first_of_them(place, letter):
    """The last words of a rank may be a whole page."""
    remember_end(host_place("big"), f"rank 1 is gone: {letter * 9000}")
    assert ": rank 1 is gone: " in why_ended(host_place("big"))
    assert (host_place("big").folder / "ended").stat().st_size < 4096


def test_settings_keep_what_it_is(big):
    (model,) = load_settings().models
    assert (model.served.model, model.served.hosts) == (big, "/my hosts.json")
    assert served_names() == ("big",)


def test_its_reference_is_no_folder_and_no_adapter(place, tmp_path, monkeypatch):
    (tmp_path / "served:big").mkdir()
    monkeypatch.chdir(tmp_path)
    assert served_name("served:big") == "big"
    assert spelled("served:big") == shown("served:big") == "served:big"
    assert divided("served:big") == ("served:big", "")
    assert served_name("owner/model") == served_name(os.fspath(tmp_path)) == ""


@pytest.mark.parametrize("where", Where)
def test_wherever_it_is_asked_it_is_not_loaded_here(big, where):
    engine = engine_for("served:big", where)
    with pytest.raises(ModelLoadError) as error:
        list(engine.generate(ASKED))
    assert str(error.value) == (
        "mlx-cached/big runs over several machines, and is not served now; start it: "
        + COMMAND.format(big)
    )
    assert not engine.loaded
    assert not engine.unload()
    with pytest.raises(ModelLoadError, match="not loaded in one process; the model itself is /"):
        load_model("served:big")


def test_an_event_loop_is_told_the_same(big):
    import asyncio

    async def ask():
        return [event async for event in engine_for("served:big").agenerate(ASKED)]

    with pytest.raises(ModelLoadError, match="and is not served now; start it"):
        asyncio.run(ask())


def test_its_folder_is_the_models_own(big):
    assert str(folder_here("served:big")) == str(model_folder("served:big")) == big
    with pytest.raises(ModelLoadError, match="no model 'gone' is served"):
        folder_here("served:gone")


def test_why_it_ended_is_told_until_it_is_served_again(big):
    place = host_place("big")
    assert why_ended(place) == ""
    remember_end(place, "rank 1 (mac1) is gone")
    with pytest.raises(ModelLoadError, match=r"\(it ended at .*: rank 1 \(mac1\) is gone\)$"):
        list(engine_for("served:big").generate(ASKED))
    remember_end(place, "")
    assert why_ended(place) == ""


@pytest.mark.parametrize("text", ["", "now it is gone", "\0", "1" * 5000, "9" * 400 + " why"])
def test_a_damaged_note_of_its_end_says_nothing(big, text):
    place = host_place("big")
    (place.folder / "ended").write_text(text)
    assert why_ended(place) == ""

"""Each command takes each kind of name, and means the same model by it; so does ChatMLXCached."""

import pytest
from test_model_commands import LIMIT, one_line

from langchain_adapter import ChatMLXCached

NAME = "smäll model.v1"
HUB = "somebody/not-here-4bit"
# A name, and what it stands for: the model of the folder, a hub's, the embedded one; or nothing.
KINDS = {
    "name": (NAME, "folder"),
    "our-name": (f"mlx-cached/{NAME}", "folder"),
    "alias": ("s", "folder"),
    "alias-of-llm": ("zz", "folder"),
    "absolute": ("{folder}", "folder"),
    "absolute-slash": ("{folder}/", "folder"),
    "home": (f"~/models/{NAME}", "folder"),
    "dot": (f"./models/{NAME}/", "folder"),
    "relative": (f"models/{NAME}", "folder"),
    "the-default": ("mlx-cached", "folder"),
    "hub": (HUB, "hub"),
    "default": ("default", "default"),
    "typo": (NAME[:-1], None),
    "our-typo": (f"mlx-cached/{NAME[:-1]}", None),
    "path-typo": (f"./models/{NAME[1:]}", None),
}


class World:
    """A user with one registered model, which is the default, and what is stored of it."""

    def __init__(self, home, folder):
        self.home, self.folder = home, folder
        self.cache = home.folder / "mlx" / "cache"
        self.references = {"folder": str(folder), "hub": HUB, "default": "default"}

    def called(self, kind):
        """The name, and the reference that it stands for."""
        name, means = KINDS[kind]
        return name.format(folder=self.folder), self.references.get(means)

    def refused(self, *command):
        return one_line(self.home.ours(*command, status=1)[1])


@pytest.fixture(scope="module")
def asked(new_home, tiny_llama):
    """A home in which one prompt was answered."""
    home = new_home()
    folder = home.folder / "user" / "models" / NAME
    folder.parent.mkdir(parents=True)
    tiny_llama().rename(folder)
    home.ours("add", str(folder), "-a", "s")
    home.ours("default", "s")
    home.llm("-m", "mlx-cached", "Hello", *LIMIT)
    home.llm("aliases", "set", "zz", f"mlx-cached/{NAME}")
    return home, folder


@pytest.fixture
def world(asked, tmp_path, monkeypatch):
    home, folder = asked
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.setenv("HOME", str(folder.parent.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, value in home.own().items():
        monkeypatch.setenv(name, value)
    return World(home.copied_to(tmp_path / "copy"), folder)


def heard(world, monkeypatch, command, name):
    """The reference that a command comes to, with what would be long cut off behind that."""

    class Heard(Exception):
        pass

    def hear(reference, *given):
        raise Heard(reference)

    monkeypatch.setattr("llm_mlx_promptcache.models.loading.model_folder", hear)
    monkeypatch.setattr("llm_mlx_promptcache.host.engines.engine_for", hear)
    monkeypatch.setattr("llm_mlx_promptcache.commands.bench.measure", hear)
    from click.testing import CliRunner

    from llm_mlx_promptcache.commands import mlx_cached

    done = CliRunner().invoke(mlx_cached, [*command, name], env=world.home.own())
    if isinstance(done.exception, Heard):
        return done.exception.args[0]
    return one_line(done.stderr.strip())


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_is_set_by_each_kind_of_name(world, kind):
    name, reference = world.called(kind)
    if reference is None:
        assert "did you mean" in world.refused("default", name)
    else:
        assert world.home.told("default", name)["default_model"] == reference


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_registered_by_each_kind_of_name(world, kind):
    name, reference = world.called(kind)
    if reference is None:
        assert "did you mean" in world.refused("add", name)
    else:
        assert world.home.told("add", name, "--name", "other")["reference"] == reference
        assert world.home.told("default", "other")["default_model"] == reference


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_removed_by_each_kind_of_name(world, kind):
    name, reference = world.called(kind)
    if reference is None:
        assert "did you mean" in world.refused("remove", name)
    elif reference != str(world.folder):
        words = "is not a registered model" if reference == "default" else "is registered"
        assert words in world.refused("remove", name)
    else:
        gone = world.home.told("remove", name)
        assert (gone["model"], gone["was_default"]) == (f"mlx-cached/{NAME}", True)


@pytest.mark.parametrize(
    "command", [("download",), ("bench", "-m"), ("warm", "-s", "system.txt", "-m")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_c3_a_model_is_run_or_fetched_by_each_kind_of_name(world, kind, command, monkeypatch):
    (world.folder.parent.parent / "system.txt").write_text("Be brief.")
    name, reference = world.called(kind)
    found = heard(world, monkeypatch, command, name)
    assert found == reference if reference else "did you mean" in found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("hub", "default")])
def test_what_is_stored_of_a_model_is_shown_and_cleared_by_each_kind_of_name(world, kind):
    name, reference = world.called(kind)
    if reference is None:
        for command in ("tree", "clear"):
            assert "nothing is stored of" in world.refused(command, "--model", name)
    else:
        shown = world.home.told("tree", "--model", name)
        assert len(shown) == len(world.home.told("tree"))
        assert world.home.told("clear", "--model", name)["freed"] > 0
        assert world.home.told("stats")["spans"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_c3_langchain_takes_each_kind_of_name(world, kind, monkeypatch):
    from langchain_adapter import generation

    class Heard(Exception):
        pass

    def hear(reference, where):
        raise Heard(reference)

    for variable, value in world.home.own().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(generation, "engine_for", hear)
    name, reference = world.called(kind)
    with pytest.raises(Heard if reference else ValueError) as caught:
        ChatMLXCached(model=name).invoke("Hello")
    assert caught.value.args == (reference,) if reference else "did you mean" in str(caught.value)

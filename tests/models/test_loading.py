"""Loading: a whole model runs, and damage is named in one line."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from llm_mlx_promptcache.cache import identity
from llm_mlx_promptcache.cache.identity import fingerprint
from llm_mlx_promptcache.cache.manifest import FilesChanged, Manifest
from llm_mlx_promptcache.models import loading
from llm_mlx_promptcache.models.errors import ModelLoadError
from llm_mlx_promptcache.models.identities import identify
from llm_mlx_promptcache.models.loading import describe, load_model, load_tokenizer


@pytest.fixture
def folder(tiny_llama):
    return tiny_llama()


def refused(reference):
    """The one-line message with which a model is refused."""
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(reference))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def edit_json(path, **changes):
    kept = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


def test_a_folder_is_loaded_with_all_that_an_engine_needs(folder):
    loaded = load_model(str(folder))
    assert loaded.folder == folder
    assert loaded.context_length == 2048
    assert loaded.config["model_type"] == "llama"
    assert loaded.tokenizer.eos_token_ids == {2}
    text = "Hello the capital\n  naïve 日本 🎉 <|im_end|>"
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    assert loaded.tokenizer.decode(ids) == text
    assert loaded.model(mx.array([ids])).shape == (1, len(ids), loaded.config["vocab_size"])
    assert json.loads(json.dumps(describe(loaded))) == describe(loaded)


class Left(BaseException):
    """Nobody waits for the model any longer."""


def test_c8_weights_are_read_in_parts_and_between_them_the_work_can_end(folder, monkeypatch):
    read, evaluate = [], mx.eval
    monkeypatch.setattr(loading, "PART", 1 << 15)
    monkeypatch.setattr(mx, "eval", lambda *given: (read.append(given), evaluate(*given))[1])
    whole = tree_flatten(load_model(str(folder)).model.parameters())
    parts = [part for (part, *_) in read if isinstance(part, list)]
    assert len(parts) > 5
    for part in parts:
        assert len(part) == 1 or sum(array.nbytes for array in part) <= 1 << 15
    assert sum(map(len, parts)) == len(whole)

    for steps in (1, 2, 3, 6):
        read.clear()
        left = iter(range(steps))

        def step(left=left):
            if next(left, None) is None:
                raise Left

        with pytest.raises(Left):
            load_model(str(folder), step=step)
        # Before the tokenizer, before the weights, and behind each part of them.
        assert len([part for (part, *_) in read if isinstance(part, list)]) == max(0, steps - 1)


def test_c8_files_are_digested_in_pieces_and_between_them_the_work_can_end(folder, monkeypatch):
    monkeypatch.setattr(identity, "BLOCK", 1 << 14)
    files, steps = Manifest.of([folder]), []
    whole = fingerprint(files, {}, lambda: steps.append(1))
    sizes = [entry.read.size for entry in files.plain()]
    assert len(steps) == sum(-(-size // (1 << 14)) for size in sizes) > 10
    assert fingerprint(files, {}) == whole

    def leave():
        raise Left

    with pytest.raises(Left):
        identify(load_model(str(folder)), folder, leave)


def test_tiny_models_are_the_same_for_a_seed_and_no_ties(tiny_llama):
    prompt = mx.array([[1, 50, 60, 70, 2]])

    def logits(seed):
        return load_model(str(tiny_llama(seed=seed))).model(prompt)[0, -1]

    first = logits(0)
    assert mx.array_equal(first, logits(0))
    assert not mx.allclose(first, logits(1))
    best = mx.sort(first)[-2:].tolist()
    assert best[1] - best[0] > 1e-2


def test_the_chat_template_comes_along(folder):
    tokenizer = load_model(str(folder)).tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    message = refused(folder)
    assert name in message
    assert str(folder) in message


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\x00"])
def test_a_config_that_is_no_object_is_named(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)


@pytest.mark.parametrize("model_type", [None, 7, "no_such_model", "../../evil", "base", ""])
def test_a_model_type_that_cannot_be_is_refused(folder, model_type):
    edit_json(folder / "config.json", model_type=model_type)
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("kept", [0, 4, 50, 5000, -1000])
def test_truncated_weights_are_refused(folder, kept):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "weights" in refused(folder)


def test_garbage_for_weights_is_refused(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    assert "weights" in refused(folder)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_weights_that_do_not_match_are_refused(folder, changes):
    edit_json(folder / "config.json", **changes)
    assert "weights" in refused(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "model-00002-of-00002.safetensors is missing" in refused(folder)


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text('{"model": 1}')
    assert "tokenizer" in refused(folder)


def test_code_of_a_model_is_never_run(folder, tmp_path):
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (folder / "evil.py").write_text(trap)
    edit_json(folder / "config.json", model_file="evil.py")
    assert "evil.py" in refused(folder)
    edit_json(folder / "config.json", model_file=None)
    edit_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
        tokenizer_class="Tokenizer",
    )
    # Whether the tokenizer loads without its code is the library's choice; the code stays unread.
    with suppress(ModelLoadError):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "reference", ["", "nothing", "/no/such/folder", "~/no/such", "a/b/c", "\0"]
)
def test_what_is_no_model_is_named(reference):
    message = refused(reference)
    assert repr(reference) in message
    assert "hub id" in message


def test_an_unreachable_hub_says_so(monkeypatch):
    def offline(*_, **options):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("llm_mlx_promptcache.models.hub.snapshot_download", offline)
    assert "'nobody/no-such-model' can't be fetched from the hub (no route)" in refused(
        "nobody/no-such-model"
    )


def test_a_hub_model_that_is_here_is_not_asked_for_again(folder, tmp_path, monkeypatch):
    def asked(*arguments, **options):
        raise AssertionError("the hub is asked for what is here")

    commit = "c" * 40
    held = tmp_path / "hub" / "models--someone--model"
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text(commit)
    here = shutil.copytree(folder, held / "snapshots" / commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("llm_mlx_promptcache.models.hub.snapshot_download", asked)
    assert load_model("someone/model").folder == here.resolve()


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 77}}, 77),
        ({"max_position_embeddings": None}, 2048),
        ({"max_position_embeddings": -1}, 2048),
    ],
)
def test_the_context_is_found_where_a_model_tells_it(folder, changes, length):
    edit_json(folder / "config.json", **changes)
    assert load_model(str(folder)).context_length == length


def test_no_limit_is_none(folder):
    edit_json(folder / "config.json", max_position_embeddings=None)
    edit_json(folder / "tokenizer_config.json", model_max_length=10**30)
    assert load_model(str(folder)).context_length is None


def test_loading_says_nothing_on_the_terminal(folder):
    script = (
        "import sys; from llm_mlx_promptcache.models.loading import load_model as l; l(sys.argv[1])"
    )
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "extra.jinja"])
def test_a_file_that_would_fill_the_memory_is_not_read(tiny_llama, name):
    folder = tiny_llama()
    with (folder / name).open("ab") as file:
        file.truncate(10 << 30)  # takes no room on the disk
    with pytest.raises(ModelLoadError, match=rf"{name} has 10737418240 bytes, more than"):
        load_model(str(folder))
    with pytest.raises(ModelLoadError, match=rf"{name} has 10737418240 bytes, more than"):
        load_tokenizer(folder)


def test_a_large_file_that_no_model_is_read_from_is_left_alone(tiny_llama):
    folder = tiny_llama()
    with (folder / "measurements.json").open("wb") as file:
        file.truncate(10 << 30)
    files = load_model(str(folder)).files
    known = {}
    before = fingerprint(files, known)
    files.check()
    assert fingerprint(Manifest.of([folder]), known) == before
    with (folder / "measurements.json").open("r+b") as file:
        file.write(b"{}")
    # Nobody reads it, so nobody knows whether it matters.
    with pytest.raises(FilesChanged, match=r"measurements\.json changed"):
        files.check()
    assert fingerprint(Manifest.of([folder]), known) != before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, "\0", "\udcff"])
def test_a_file_of_json_that_is_none_is_named(tiny_llama, name, content):
    folder = tiny_llama()
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelLoadError, match=rf"^[^\n]*{name} can't be read"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_json_without_end_in_other_files_is_one_clear_error(tiny_llama, name):
    folder = tiny_llama()
    (folder / name).write_text('{"a": ' * 100_000)
    with pytest.raises(ModelLoadError, match=r"^[^\n]*can't be (used|loaded)[^\n]*$"):
        load_model(str(folder))


@pytest.mark.parametrize("shard", ["a\0b", "x" * 5000, "loop", "../" * 3000, "\n\n"])
def test_a_shard_with_a_name_that_no_file_has_is_missing(tiny_llama, shard):
    folder = tiny_llama()
    (folder / "loop").symlink_to(folder / "loop")
    index = json.dumps({"weight_map": {"w": shard}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelLoadError, match=r"^[^\n]{,600} is missing[^\n]*$"):
        load_model(str(folder))


@pytest.mark.parametrize("where", ["config", "inside"])
def test_a_model_that_would_be_built_for_ever_is_refused(tiny_llama, where):
    folder = tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    deep = {"num_hidden_layers": 10**9}
    config |= deep if where == "config" else {"text_config": deep}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"asks for num_hidden_layers 1e\+09, more than 4096"):
        load_model(str(folder))

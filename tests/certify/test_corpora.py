"""Texts for certificates: documents and their held-out part, limits on tokens, and an issue that scores once."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tests.certify.certificates import linear_certificate

from forethought.app.certify.recipes import MANY_TOKENS, spec_of, transformer
from forethought.app.certify.subjects import read_pair
from forethought.certify.certificate import derive, issue
from forethought.certify.certificate.data import Examples, Tokens
from forethought.certify.ledger import DeltaLedger
from forethought.certify.tokens import certify_tokens
from forethought.certify.tokens_from_text import PRINTABLE, characters, read_documents
from forethought.certify.verifying import verify
from forethought.core.errors import ArtefactError, DataError


def corpus(folder: Path, *, name: str = "corpus.jsonl.gz") -> Path:
    rows = [{"text": "first \u2028 book\n" * 100, "split": "train"}, {"text": "held out\n" * 50, "split": "val"}]
    rows.append({"text": "last book\n" * 60})
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder / name


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_documents_are_joined_and_another_split_is_held_out(tmp_path: Path, name: str):
    train, test = read_documents(corpus(tmp_path, name=name))
    assert np.array_equal(train, characters("first \u2028 book\n" * 100 + "\n" + "last book\n" * 60 + "\n"))
    assert np.array_equal(test, characters("held out\n" * 50 + "\n"))


def test_max_tokens_keeps_the_first_and_a_tenth_of_the_test(tmp_path: Path):
    path = corpus(tmp_path)
    train, test = read_pair("text", path, max_tokens=1001)
    whole, _ = read_pair("text", path)
    assert isinstance(train, Tokens)
    assert isinstance(test, Tokens)
    assert isinstance(whole, Tokens)
    assert np.array_equal(train.tokens, whole.tokens[:1001])
    assert len(test.tokens) == 101


def test_max_tokens_is_for_tokens(tmp_path: Path):
    np.savez(tmp_path / "own.npz", inputs=np.zeros((4, 2)), labels=np.arange(4))
    with pytest.raises(DataError, match="max_tokens 2"):
        read_pair("file", tmp_path / "own.npz", max_tokens=2)
    with pytest.raises(DataError, match="max_tokens 0"):
        read_pair("text", corpus(tmp_path), max_tokens=0)


@pytest.mark.parametrize("line", ["not json", "[1]", '{"body": "x"}', '{"text": 3}'])
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        read_documents(tmp_path / "bad.jsonl")


def test_a_transformer_is_certified_on_documents_and_what_was_derived_once_is_not_scored_again(tmp_path: Path):
    train, _ = read_pair("text", corpus(tmp_path))
    assert isinstance(train, Tokens)
    spec = transformer(len(PRINTABLE), hidden=16, layers=1, context=16)
    training = dataclasses.replace(spec.training, steps=4, quantise_steps=4, batch_size=4)
    found = certify_tokens(None, train, dataclasses.replace(spec, training=training), directory=tmp_path, show=False)
    place = found.save(tmp_path / "certificate")
    assert verify(place, train).bound == found.bound
    with pytest.raises(ArtefactError):
        verify(place, Tokens(train.tokens[:-1]))


def test_a_derivation_of_something_else_does_not_verify(tmp_path: Path):
    first, data = linear_certificate()
    prior, recipe = first.document.prior, first.document.prior.resolve(first.document.chosen)
    other = Examples(data.inputs, (data.labels + 1) % 3)
    wrong = derive(prior, first.document.chosen, first.message, other, 0.05)
    ledger = DeltaLedger(data.sha256, 0.05)
    issue(prior, recipe, first.message, data, ledger=ledger, delta=0.05, derived=wrong).save(tmp_path / "wrong")
    with pytest.raises(ArtefactError, match="result"):
        verify(tmp_path / "wrong", data)


def test_few_tokens_get_a_narrow_transformer_that_trains_longer():
    few, many = (
        spec_of("text", Tokens(np.zeros(n, dtype=np.uint8)), "transformer") for n in (MANY_TOKENS - 1, MANY_TOKENS)
    )
    assert few.attempt["settings.hidden_size"] == [16]
    assert many.attempt["settings.hidden_size"] == [32]
    assert few.training.steps > many.training.steps
    assert few.prior.choices == many.prior.choices  # the width is a choice that was paid for, whatever the tokens

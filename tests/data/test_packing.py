"""Shards and packing: every token once an epoch, the same batches everywhere, and files that do not hold together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import ConfigError, DataError
from forethought.data import IGNORED_TARGET, PackedBatches, TokenDataset, evaluation_batches, open_shard
from forethought.data.shards import ShardWriter

HASHES = {"source_hash": "s", "tokenizer_hash": "t"}


def _write(folder: Path, documents: list[list[int]], vocab_size: int = 60_000, end_of_text: int = 0) -> TokenDataset:
    with ShardWriter(folder, "train", vocab_size=vocab_size, end_of_text=end_of_text) as writer:
        for document in documents:
            writer.begin()
            writer.extend(np.array(document), 3 * len(document))
        writer.finish(**HASHES)
    return open_shard(folder, "train")


@contextmanager
def _dataset(lengths: list[int]) -> Iterator[tuple[TokenDataset, list[list[int]]]]:
    """A split in which every token but the separators is unique, so that its place can be told from its value."""
    numbers = iter(range(1, 60_000))
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        yield _write(Path(folder), documents), documents


LENGTHS = st.lists(st.integers(1, 25), min_size=1, max_size=12)


@settings(deadline=None, max_examples=80)
@given(LENGTHS, st.integers(1, 16), st.integers(1, 9), st.integers(0, 3))
def test_every_token_is_predicted_exactly_once_an_epoch(
    lengths: list[int], context: int, batch_size: int, seed: int
) -> None:
    with _dataset(lengths) as (dataset, documents):
        batches = PackedBatches(dataset, batch_size=batch_size, context=context, seed=seed)
        epochs = 3
        rows = epochs * batches.windows_per_epoch
        assert batches.steps_for(epochs) == -(-rows // batch_size)
        seen: list[tuple[int, int]] = []
        for step in range(batches.steps_for(epochs)):
            batch = batches.batch(step)
            assert batch.tokens_BT.shape == batch.targets_BT.shape == (batch_size, context)
            assert batches.epoch_of(step) == step * batch_size // batches.windows_per_epoch
            for row in range(batch_size):
                number = step * batch_size + row
                epoch = number // batches.windows_per_epoch
                kept = batch.targets_BT[row] != IGNORED_TARGET
                np.testing.assert_array_equal(batch.tokens_BT[row, 1:][kept[1:]], batch.targets_BT[row, :-1][kept[1:]])
                if number < rows:
                    seen.extend((epoch, int(target)) for target in batch.targets_BT[row][kept])
        wanted = [0] * len(documents) + [token for document in documents for token in document]
        assert Counter(seen) == Counter((epoch, token) for epoch in range(epochs) for token in wanted)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 16), st.integers(0, 3))
def test_inputs_precede_their_targets_and_documents_are_told_apart(lengths: list[int], context: int, seed: int) -> None:
    with _dataset(lengths) as (dataset, documents):
        owner = {token: number for number, document in enumerate(documents) for token in document}
        first = {document[0] for document in documents}
        last = {document[-1] for document in documents}
        batches = PackedBatches(dataset, batch_size=2, context=context, seed=seed, document_mask=True)
        for step in range(batches.steps_per_epoch):
            batch = batches.batch(step)
            assert batch.documents_BT is not None
            for tokens, targets, segments in zip(batch.tokens_BT, batch.targets_BT, batch.documents_BT, strict=True):
                assert segments[0] == 1
                owners: dict[int, set[int]] = {}
                for token, target, segment in zip(tokens.tolist(), targets.tolist(), segments.tolist(), strict=True):
                    if target == IGNORED_TARGET:
                        continue
                    owners.setdefault(segment, set()).update(owner[x] for x in (token, target) if x)
                    follows = target == token + 1 and token not in last
                    assert follows or (token == 0 and target in first) or (token in last and target == 0)
                assert all(len(found) <= 1 for found in owners.values())
                assert len(owners) == len({frozenset(found) for found in owners.values()})


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 8), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 40))
def test_the_ranks_together_see_the_same_rows(lengths: list[int], context: int, world_size: int, step: int) -> None:
    with _dataset(lengths) as (dataset, _):
        whole = PackedBatches(dataset, batch_size=12, context=context, seed=1).batch(step)
        parts = [
            PackedBatches(dataset, batch_size=12, context=context, seed=1, rank=rank, world_size=world_size).batch(step)
            for rank in range(world_size)
        ]
        np.testing.assert_array_equal(np.concatenate([part.tokens_BT for part in parts]), whole.tokens_BT)
        np.testing.assert_array_equal(np.concatenate([part.targets_BT for part in parts]), whole.targets_BT)


def test_a_batch_depends_on_its_step_only_and_survives_a_new_process(tmp_path: Path) -> None:
    dataset = _write(tmp_path, [list(range(1 + 37 * i, 38 + 37 * i)) for i in range(50)])
    forward = PackedBatches(dataset, batch_size=4, context=32, seed=7, document_mask=True)
    straight = [forward.batch(step) for step in range(60)]
    shuffled = PackedBatches(dataset, batch_size=4, context=32, seed=7, document_mask=True)
    for step in np.random.default_rng(0).permutation(60).tolist():
        np.testing.assert_array_equal(shuffled.batch(step).tokens_BT, straight[step].tokens_BT)
        np.testing.assert_array_equal(shuffled.batch(step).documents_BT, straight[step].documents_BT)
    program = (
        "import sys\nfrom forethought.data import PackedBatches, open_shard\n"
        f"batches = PackedBatches(open_shard({str(tmp_path)!r}, 'train'), batch_size=4, context=32, seed=7)\n"
        "sys.stdout.write(repr(batches.batch(41).targets_BT.tolist()))\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == straight[41].targets_BT.tolist()


def test_epochs_seeds_and_streams_differ_and_documents_are_reshuffled(tmp_path: Path) -> None:
    dataset = _write(tmp_path, [list(range(1 + 64 * i, 64 + 64 * i)) for i in range(64)])

    def epoch(seed: int, number: int, stream: str = "train") -> np.ndarray:
        batches = PackedBatches(dataset, batch_size=64, context=64, seed=seed, stream=stream)
        return batches.batch(number).targets_BT

    assert not np.array_equal(epoch(0, 0), epoch(0, 1))
    assert not np.array_equal(epoch(0, 0), epoch(1, 0))
    assert not np.array_equal(epoch(0, 0), epoch(0, 0, "other"))
    pairs = [{(int(r[0]) // 64, int(r[62]) // 64) for r in epoch(0, n)} for n in range(2)]
    assert pairs[0] == pairs[1]  # one document a window here, so only the order differs
    halves = PackedBatches(dataset, batch_size=32, context=128, seed=0)
    neighbours = [{frozenset((r[r > 0] // 64).tolist()) for r in halves.batch(n).targets_BT} for n in range(2)]
    assert len(neighbours[0] & neighbours[1]) < 8


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 16), st.integers(1, 5), st.integers(0, 150))
def test_evaluation_covers_each_token_once_in_order(
    lengths: list[int], context: int, batch_size: int, limit: int
) -> None:
    with _dataset(lengths) as (dataset, documents):
        batches = list(evaluation_batches(dataset, batch_size, context, limit, document_mask=True))
        targets = np.concatenate([batch.targets_BT.ravel() for batch in batches])
        expected = [token for document in documents for token in [*document, 0]][: limit or None]
        assert targets[targets != IGNORED_TARGET].tolist() == expected
        inputs = np.concatenate([batch.tokens_BT.ravel() for batch in batches])
        assert inputs[targets != IGNORED_TARGET].tolist() == [0, *expected][:-1]
        assert all(batch.tokens_BT.shape[1] == context for batch in batches)
        assert sum(batch.tokens_BT.shape[0] for batch in batches) == -(-len(expected) // context)


def test_the_cache_of_plans_is_bounded(tmp_path: Path) -> None:
    dataset = _write(tmp_path, [[1, 2, 3]])
    batches = PackedBatches(dataset, batch_size=8, context=4, seed=0)
    for step in range(50):
        batches.batch(step)
    assert len(batches._plans) <= 10


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"context": 0},
        {"world_size": 3},
        {"rank": 2, "world_size": 2},
        {"rank": -1},
    ],
)
def test_shapes_that_cannot_be_are_refused(arguments: dict[str, int], tmp_path: Path) -> None:
    dataset = _write(tmp_path, [[1, 2, 3]])
    with pytest.raises(ConfigError, match="must be"):
        PackedBatches(dataset, **({"batch_size": 4, "context": 2, "seed": 0} | arguments))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="negative"):
        PackedBatches(dataset, batch_size=4, context=2, seed=0).batch(-1)


def test_an_empty_split_opens_and_refuses_batches(tmp_path: Path) -> None:
    dataset = _write(tmp_path, [])
    assert dataset.num_tokens == 0
    with pytest.raises(DataError, match="no tokens"):
        PackedBatches(dataset, batch_size=1, context=1, seed=0)
    with pytest.raises(DataError, match="no tokens"):
        evaluation_batches(dataset, 1, 1)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_type_fits_the_vocabulary(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    dataset = _write(tmp_path, [[1, vocab_size - 1], [7]], vocab_size)
    assert dataset.tokens.dtype == np.dtype(dtype)
    assert dataset.tokens.tolist() == [1, vocab_size - 1, 0, 7, 0]
    assert dataset.document_starts.tolist() == [0, 3]
    assert dataset.document(1).tolist() == [7, 0]
    assert (dataset.num_tokens, dataset.num_documents, dataset.num_bytes) == (5, 2, 9)


def _edit(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        facts = json.loads((folder / "train.json").read_text()) | fields
        (folder / "train.json").write_text(json.dumps(facts))

    return edit


def _link(folder: Path) -> None:
    (folder / "elsewhere").write_bytes((folder / "train.bin").read_bytes())
    (folder / "train.bin").unlink()
    (folder / "train.bin").symlink_to(folder / "elsewhere")


def _starts(*values: int) -> Callable[[Path], object]:
    return lambda folder: (folder / "train.starts").write_bytes(np.array(values, "<u8").tobytes())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "path in the sidecar": (_edit(file="../../etc/passwd"), "train.json does not fit ShardFacts: file"),
    "type of the ids": (_edit(dtype="object"), "train.json does not fit ShardFacts: dtype"),
    "more tokens than bytes": (_edit(num_tokens=6), "train.bin has 10 bytes where its sidecar says 12"),
    "huge count": (_edit(num_tokens=1 << 62), "train.bin has 10 bytes"),
    "negative count": (_edit(num_documents=-1), "train.json has counts that cannot be"),
    "separator outside": (_edit(end_of_text=99_999), "train.json has vocab_size"),
    "vocabulary too large": (_edit(vocab_size=1 << 20), "train.json has vocab_size"),
    "other format": (_edit(format=2), "train.json has format 2"),
    "sidecar is no JSON": (lambda f: (f / "train.json").write_text("{"), "train.json is not valid JSON"),
    "no sidecar": (lambda f: (f / "train.json").unlink(), "train.json does not exist"),
    "no tokens": (lambda f: (f / "train.bin").unlink(), "train.bin does not exist"),
    "tokens cut off": (lambda f: os.truncate(f / "train.bin", 9), "train.bin has 9 bytes"),
    "tokens too many": (lambda f: os.truncate(f / "train.bin", 12), "train.bin has 12 bytes"),
    "starts cut off": (lambda f: os.truncate(f / "train.starts", 8), "train.starts has 8 bytes"),
    "starts not rising": (_starts(0, 0), "train.starts: document starts do not rise"),
    "starts beyond the end": (_starts(0, 5), "train.starts: document starts do not rise"),
    "starts not at zero": (_starts(1, 3), "train.starts: document starts do not rise"),
    "link": (_link, "train.bin is a link"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_shards_are_refused_by_name(name: str, tmp_path: Path) -> None:
    _write(tmp_path, [[1, 2], [7]], vocab_size=10)
    harm, message = BROKEN[name]
    harm(tmp_path)
    with pytest.raises(DataError) as caught:
        open_shard(tmp_path, "train")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_id_above_the_vocabulary_is_named_when_it_is_read(tmp_path: Path) -> None:
    _write(tmp_path, [[1, 2], [7]], vocab_size=10)
    data = bytearray((tmp_path / "train.bin").read_bytes())
    data[2] = 11
    (tmp_path / "train.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"train\.bin holds the id 11 where ids are below 10"):
        PackedBatches(open_shard(tmp_path, "train"), batch_size=2, context=3, seed=0).batch(0)

"""What a run reads: the corpus, prepared once, and the record of which one it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import forethought.core.files as files
from forethought.core.artefact import ARTEFACT, read_kind
from forethought.core.errors import ConfigError, DataError
from forethought.core.progress import track
from forethought.core.run import Run
from forethought.data import Corpus, CorpusConfig, TokenDataset, open_corpus, prepare_corpus
from forethought.pretrain.config import FitConfig
from forethought.train import Parallel

INPUTS = "inputs.json"
_NGRAM = 13
_CHUNK = 1 << 20
_BASE = np.uint64(0x9E3779B97F4A7C15)


def open_or_prepare(settings: FitConfig, out: Path, parallel: Parallel) -> Corpus:
    """Open a prepared corpus where one was given; else prepare it inside the run, once, on the main rank.

    Raises:
        InputError: as data.prepare_corpus and data.open_corpus.
    """
    prepared = prepared_corpus(settings.sources)
    if prepared is not None:
        return open_corpus(prepared)
    place = out / "corpus"
    if parallel.is_main:
        prepare(settings.sources, place, settings.corpus)
    parallel.barrier()
    return open_corpus(place)


def prepare(sources: Sequence[str], place: Path, settings: CorpusConfig) -> Corpus:
    """Prepare a corpus and show how far it is; what is there already is opened.

    Raises:
        InputError: as data.prepare_corpus.
    """
    with track("corpus", None, unit="bytes") as progress:
        return prepare_corpus(sources, place, settings, lambda stage, done, _total: progress.update(done, stage=stage))


def check_corpus(run: Run, corpus: Corpus) -> None:
    """Refuse to resume on another corpus than the one the run began with: batches would silently be others.

    Raises:
        ConfigError: the recorded corpus is another one; the message has both hashes.
    """
    path = run.directory / INPUTS
    if path.exists():
        recorded = files.read_json(path, what="run inputs").get("corpus")
        if recorded != corpus.identity:
            raise ConfigError(
                f"{run.directory} was trained on another corpus ({str(recorded)[:16]}) than {corpus.path} is now "
                f"({corpus.identity[:16]}); restore that corpus, or start anew with --exists replace"
            )
    else:
        files.write_json(path, {"corpus": corpus.identity})


def prepared_corpus(sources: tuple[str, ...]) -> Path | None:
    """Return the prepared corpus that the sources name, if they name one.

    Raises:
        ConfigError: the sources mix an artefact with text, or name one that is no corpus.
    """
    places = [Path(source) for source in sources if (Path(source) / ARTEFACT).is_file()]
    if not places:
        return None
    kinds = [read_kind(place) for place in places]
    if len(sources) != 1 or kinds != ["corpus"]:
        held = ", ".join(f"{place} is a {kind}" for place, kind in zip(places, kinds, strict=True))
        raise ConfigError(
            f"the sources {', '.join(sources)} cannot be read as text: {held}; give text, or one prepared corpus alone"
        )
    return places[0]


def check_mixture(mixture: Corpus, held_out: Mapping[str, TokenDataset], threshold: float) -> None:
    """Refuse text to mix in that holds held-out documents: losses on them would be those of text seen in training.

    Compared are 13-grams of tokens of the mixture's training split with those of each held-out document; a document
    with more than the share `threshold` of its own there leaks.

    Raises:
        DataError: a document leaks; the message says how many do in which slice.
    """
    grams = {name: _ngrams(np.asarray(dataset.tokens)) for name, dataset in held_out.items()}
    seen = {name: np.zeros(len(own), dtype=bool) for name, own in grams.items()}
    for start in range(0, mixture.train.num_tokens, _CHUNK):
        known = np.unique(_ngrams(np.asarray(mixture.train.tokens[start : start + _CHUNK + _NGRAM - 1])))
        for name, own in grams.items():
            seen[name] |= np.isin(own, known)
    for name, hits in seen.items():
        parts = np.split(hits, np.asarray(held_out[name].document_starts)[1:])
        leaked = sum(bool(len(part)) and float(part.mean()) > threshold for part in parts)
        if leaked:
            raise DataError(
                f"{leaked} of {len(parts)} held-out documents of the slice {name!r} stand in the training text of "
                f"{mixture.path}, which is to be mixed in (more than {threshold:.0%} of their 13-grams); prepare the "
                "mixture from text without them"
            )


def _ngrams(tokens: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Hash every run of 13 tokens: a polynomial modulo 2^64, in which a chance meeting is as good as impossible."""
    values = tokens.astype(np.uint64) + np.uint64(1)
    count = max(0, len(values) - _NGRAM + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(_NGRAM):
        hashes = hashes * _BASE + values[offset : offset + count]
    return hashes

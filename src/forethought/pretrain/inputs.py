"""What a run reads: the corpus, prepared once, and the record of which one it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import forethought.core.files as files
from forethought.core.artefact import ARTEFACT, read_kind
from forethought.core.errors import ConfigError
from forethought.core.progress import track
from forethought.core.run import Run
from forethought.data import Corpus, CorpusConfig, open_corpus, prepare_corpus
from forethought.pretrain.config import FitConfig
from forethought.train import Parallel

INPUTS = "inputs.json"


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

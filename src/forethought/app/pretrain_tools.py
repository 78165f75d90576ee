"""Verbs around a trained model: multiple-choice and minimal-pair evaluation, and export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from forethought.app.arguments import parse, say, table
from forethought.core.artefact import resolve
from forethought.core.errors import ConfigError
from forethought.data import load_tokenizer
from forethought.nn import load_language_model
from forethought.pretrain.choices import choice_accuracy, pair_accuracy, read_questions
from forethought.pretrain.export import write_gguf


@dataclass(frozen=True)
class EvaluateArguments:
    """Measure a model, or the averaged probabilities of several, on multiple choice and minimal pairs."""

    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """One model or run; several of one vocabulary are an ensemble."""
    questions: tuple[Path, ...] = ()
    """Files of questions, .jsonl or .jsonl.gz."""
    pairs: Path | None = None
    """BLiMP's archive."""
    limit: int = 0
    """At most so many questions a file, and pairs a paradigm; 0: all."""
    json: bool = False
    """Print the result as one last line on standard output."""


@dataclass(frozen=True)
class ExportArguments:
    """Write a model as a GGUF file for llama.cpp; the Hugging Face directory is there already."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run or a model directory."""
    gguf: Path
    """The file to write."""
    replace: bool = False
    """Overwrite the file if it is there."""
    json: bool = False
    """Print the result as one last line on standard output."""


def evaluate_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain evaluate` and return accuracies with their intervals.

    Raises:
        InputError: a model, a file or the archive cannot be used.
    """
    given = parse(EvaluateArguments, arguments, verb="pretrain evaluate")
    if not given.models or (not given.questions and given.pairs is None):
        raise ConfigError("give a model, and --questions FILE ... or --pairs BLiMP.zip, or both")
    places = [resolve(model)[1] for model in given.models]
    models = [load_language_model(place) for place in places]
    tokenizers = [load_tokenizer(place) for place in places]
    if len({tokenizer.digest for tokenizer in tokenizers}) != 1:
        raise ConfigError("the models have different vocabularies; an ensemble averages over the same tokens")
    found: dict[str, Any] = {}
    for path in given.questions:
        name = path.name.partition(".")[0]
        found[name] = choice_accuracy(models, tokenizers[0], read_questions(path, given.limit))
    if given.pairs is not None:
        found[given.pairs.stem] = pair_accuracy(models, tokenizers[0], given.pairs, limit=given.limit)
    say(table({name: _line(values) for name, values in found.items()}), as_json=given.json)
    return {"kind": "pretrain.evaluate", "models": [str(place) for place in places], "results": found}


def export_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain export` and return the file's place and size.

    Raises:
        InputError: the model or the file cannot be used.
        MissingExtraError: the gguf package is not installed.
    """
    given = parse(ExportArguments, arguments, verb="pretrain export")
    path = write_gguf(resolve(given.model)[1], given.gguf, replace=given.replace)
    say(f"wrote {path} ({path.stat().st_size:,} bytes)", as_json=given.json)
    return {"kind": "pretrain.export", "gguf": str(path), "bytes": path.stat().st_size}


def _line(values: dict[str, Any]) -> str:
    low, high = values["accuracy_interval"]
    text = f"{values['accuracy']:.3f} (95 % {low:.3f} to {high:.3f})"
    if "guessing" in values:
        text += f", by bytes {values['normalised_accuracy']:.3f}, guessing {values['guessing']:.3f}"
    return text

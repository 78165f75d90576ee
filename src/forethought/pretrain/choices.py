"""Multiple choice and minimal pairs by log-likelihood, for one model or for an ensemble's averaged probabilities.

The rules are those that language models are usually measured by: a choice's score is the sum of log p of its tokens
behind the context (accuracy), or that sum divided by its length in bytes (normalised accuracy); the context's last
blank belongs to the choice; a text too long loses its front. A minimal pair is right where the good sentence is the
more probable one.

Legend: B rows, T time, V vocabulary.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.core.errors import DataError
from forethought.data import Tokenizer
from forethought.nn import LanguageModel
from forethought.stats import clopper_pearson

_MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Question:
    """Contexts and continuations to compare, and which of them is right."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int


def read_questions(path: Path | str, limit: int = 0) -> list[Question]:
    """Read a JSONL file (plain or gzip) of questions: query/choices/gold, contexts/continuation/gold, or SciQ's fields.

    Raises:
        DataError: the file is missing, or a line is none of these; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not there; give a .jsonl or .jsonl.gz file of questions")
    questions: list[Question] = []
    for number, values in enumerate(_objects(path), start=1):
        try:
            questions.append(_question(values))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} line {number}: no question can be read ({error!r}); a line has query, choices and gold, or "
                "context_options, continuation and gold, or context and continuation, or SciQ's fields"
            ) from error
        if limit and len(questions) == limit:
            break
    if not questions:
        raise DataError(f"{path} holds no questions")
    return questions


def choice_accuracy(
    models: Sequence[LanguageModel], tokenizer: Tokenizer, questions: Sequence[Question], *, batch_size: int = 16
) -> dict[str, Any]:
    """Return accuracy and byte-normalised accuracy with exact 95 % intervals, and the share that guessing would get."""
    pairs = [pair for question in questions for pair in zip(question.contexts, question.continuations, strict=True)]
    scores = iter(continuation_scores(models, tokenizer, pairs, batch_size=batch_size))
    right = {"accuracy": 0, "normalised_accuracy": 0}
    for question in questions:
        sums = np.array([next(scores) for _ in question.contexts])
        # Without the blank before it, as lm-evaluation-harness counts.
        lengths = np.array([max(1, len(text.removeprefix(" ").encode())) for text in question.continuations])
        right["accuracy"] += int(sums.argmax() == question.gold)
        right["normalised_accuracy"] += int((sums / lengths).argmax() == question.gold)
    count = len(questions)
    guess = float(np.mean([1.0 / len(question.contexts) for question in questions]))
    found: dict[str, Any] = {"questions": count, "guessing": guess}
    for name, number in right.items():
        found |= {name: number / count, f"{name}_interval": list(clopper_pearson(number, count))}
    return found


def pair_accuracy(
    models: Sequence[LanguageModel],
    tokenizer: Tokenizer,
    archive: Path | str,
    *,
    limit: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Return the accuracy on minimal pairs (BLiMP's archive) by paradigm and over all; `limit` pairs a paradigm.

    Raises:
        DataError: the archive is missing or damaged, or holds no pairs.
    """
    by_paradigm: dict[str, float] = {}
    total, count = 0, 0
    for name, sentences in _paradigms(Path(archive), limit):
        texts = [("", sentence) for pair in sentences for sentence in pair]
        sums = np.array(continuation_scores(models, tokenizer, texts, batch_size=batch_size)).reshape(-1, 2)
        right = int((sums[:, 0] > sums[:, 1]).sum())
        by_paradigm[name] = right / len(sentences)
        total, count = total + right, count + len(sentences)
    if not count:
        raise DataError(f"{archive} holds no minimal pairs; give BLiMP's archive of .jsonl files")
    interval = list(clopper_pearson(total, count))
    return {"pairs": count, "accuracy": total / count, "accuracy_interval": interval, "paradigms": by_paradigm}


def continuation_scores(
    models: Sequence[LanguageModel], tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, batch_size: int
) -> list[float]:
    """Return the sum of log p of each continuation behind its context; several models average their probabilities."""
    longest = models[0].config.max_positions
    rows = [_tokens(tokenizer, context, continuation, longest) for context, continuation in pairs]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
    scores = [0.0] * len(rows)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        values = _batch_scores(models, [rows[row] for row in chosen], tokenizer.end_of_text)
        for row, value in zip(chosen, values, strict=True):
            scores[row] = value
    return scores


@torch.no_grad()
def _batch_scores(models: Sequence[LanguageModel], rows: Sequence[tuple[list[int], int]], filling: int) -> list[float]:
    device = next(models[0].parameters()).device
    length = max(len(tokens) for tokens, _ in rows)
    # Filling stands behind the text, where a causal model does not see it.
    tokens_BT = torch.tensor([tokens + [filling] * (length - len(tokens)) for tokens, _ in rows], device=device)
    targets_BT1 = tokens_BT[:, 1:, None]
    kept: list[Tensor] = []
    for model in models:
        kept.append(torch.log_softmax(model(tokens_BT[:, :-1]).float(), dim=-1).gather(-1, targets_BT1)[..., 0])
    logs_BT = torch.stack(kept).logsumexp(0) - float(np.log(len(models)))
    return [
        float(logs_BT[row, len(tokens) - 1 - count : len(tokens) - 1].sum()) for row, (tokens, count) in enumerate(rows)
    ]


def _tokens(tokenizer: Tokenizer, context: str, continuation: str, longest: int) -> tuple[list[int], int]:
    """Return the tokens of context and continuation and how many belong to the continuation."""
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole = tokenizer.encode(kept + continuation)
    # The tokens that the context has alone, as far as they are a prefix of the whole.
    own = tokenizer.encode(kept) if kept else []
    shared = next((at for at, (a, b) in enumerate(zip(own, whole, strict=False)) if a != b), min(len(own), len(whole)))
    count = max(1, len(whole) - shared)
    tokens = [tokenizer.end_of_text, *whole]
    tokens = tokens[max(0, len(tokens) - longest - 1) :]
    return tokens, min(count, len(tokens) - 1)


def _question(values: Mapping[str, Any]) -> Question:
    if "distractor1" in values:
        support = f"{values['support']}\n" if values.get("support") else ""
        context = f"{support}Question: {values['question']}\nAnswer:"
        texts = [values["distractor1"], values["distractor2"], values["distractor3"], values["correct_answer"]]
        return Question((context,) * 4, tuple(f" {text}" for text in texts), 3)
    if "context_options" in values:
        contexts = tuple(str(each) for each in values["context_options"])
        return Question(contexts, (f" {values['continuation']}",) * len(contexts), _gold(values, len(contexts)))
    if "choices" in values:
        context = str(values["query"]).rstrip()
        if context.startswith(("Question:", "Passage:")) and not context.endswith("Answer:"):
            context += "\nAnswer:"
        texts = tuple(f" {text}" for text in values["choices"])
        return Question((context,) * len(texts), texts, _gold(values, len(texts)))
    raise ValueError("no choices")


def _gold(values: Mapping[str, Any], count: int) -> int:
    gold = int(values["gold"])
    if not 0 <= gold < count:
        raise ValueError(f"gold {gold} of {count} choices")
    return gold


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as lines:
        while line := lines.readline(_MAX_LINE):
            yield _object(line, str(path))


def _object(line: bytes, source: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(f"{source}: a line is not JSON ({error}); mend or remove it") from error
    if not isinstance(values, dict):
        raise DataError(f"{source}: a line holds no JSON object; mend or remove it")
    return values


def _paradigms(archive: Path, limit: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    if not archive.is_file():
        raise DataError(f"{archive} is not there; give BLiMP's archive")
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(name for name in opened.namelist() if name.endswith(".jsonl") and "MACOSX" not in name):
                with opened.open(name) as lines:
                    values = [_object(line, name) for _, line in zip(range(limit or 1 << 30), lines, strict=False)]
                yield Path(name).stem, [(str(each["sentence_good"]), str(each["sentence_bad"])) for each in values]
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{archive} is no archive of minimal pairs ({error}); give BLiMP's") from error

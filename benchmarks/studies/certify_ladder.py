"""The certificate against model size: transformers of six widths on one text of novels, three orders of training each.

    python benchmarks/studies/certify_ladder.py --data ../shared/data

Data, steps and settings are one for all widths, and the widths stand in the prior's grid. Every eleventh stretch of
10,000 characters is held out, so the test loss is one of the same books. The picture goes to WORK/certify_ladder.html.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from certify_common import STUDIES, Study, arguments

from forethought.app.certify.pages import outcome_sections
from forethought.app.page import Figure, Page, environment_line, render
from forethought.certify.phenomena.ladder import FIGURES, LadderEffort, ladder_cell, ladder_outcome
from forethought.certify.tokens import counting_losses
from forethought.certify.tokens_from_text import PRINTABLE, read_documents
from forethought.core import files
from forethought.core.environment import environment

NAME = "certify_ladder"
CORPUS = Path("text_general") / "novels100.jsonl.gz"
EFFORT = LadderEffort(tokens=2_000_000, steps=700, quantise_steps=400, num_seeds=3, widths=(8, 12, 16, 24, 32, 48))
QUICK = LadderEffort(tokens=200_000, steps=30, quantise_steps=20, num_seeds=2, widths=(4, 8, 12))
STRETCH, EVERY = 10_000, 11


def main() -> None:
    """Certify every width under every seed, and draw the curve."""
    torch.set_num_threads(1)
    given = arguments(main.__doc__ or "")
    effort = QUICK if given.quick else EFFORT
    train, test = split_text(given.data / CORPUS, effort.tokens)
    settings = {name: getattr(effort, name) for name in ("tokens", "steps", "quantise_steps", "num_seeds", "widths")}
    study = Study(given.out or STUDIES / f"{NAME}.json", NAME, {**settings, "text": CORPUS.as_posix()})
    for seed in range(effort.num_seeds):
        for width in effort.widths:
            if given.only not in (None, f"{width}-{seed}"):
                continue
            study.cell({"seed": seed, "width": width}, lambda s=seed, w=width: _row(w, effort, train, test, s))
            sys.stderr.write(f"seed {seed}, width {width}: {study.rows[-1]['certificate']:.4f}\n")
    if len(study.rows) < effort.num_seeds * len(effort.widths):
        return
    cells = {
        width: [[row[name] for name in FIGURES] for row in study.rows if row["width"] == width]
        for width in effort.widths
    }
    where = "English novels; the test text is every eleventh stretch of 10,000 characters of the same books"
    counted = counting_losses(train, test, len(PRINTABLE))
    outcome = ladder_outcome(cells, effort, counted, where, "full", 0).to_dict()
    study.write({name: outcome[name] for name in ("sentence", "tables", "holds")} | counted)
    _draw(outcome, given.work / f"{NAME}.html")


def split_text(path: Path, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return num_tokens characters for training and a tenth as many between them for the test."""
    text, _ = read_documents(path)
    blocks = text[: num_tokens // (EVERY - 1) // STRETCH * EVERY * STRETCH].reshape(-1, EVERY, STRETCH)
    return blocks[:, :-1].reshape(-1), blocks[:, -1].reshape(-1)


def _row(width: int, effort: LadderEffort, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, float]:
    began = time.process_time()
    figures = dict(zip(FIGURES, ladder_cell(width, effort, train, test, seed), strict=True))
    return figures | {"cpu_seconds": round(time.process_time() - began, 1)}


def _draw(outcome: dict[str, object], path: Path) -> None:
    page = Page(
        title="The certificate against model size",
        lead=str(outcome["sentence"]),
        command=f"python benchmarks/studies/{NAME}.py",
        environment=environment_line(environment()),
        figures=[Figure("seeds", str(EFFORT.num_seeds))],
        sections=outcome_sections(outcome),
    )
    files.replace_file(path, render(page).encode())


if __name__ == "__main__":
    main()

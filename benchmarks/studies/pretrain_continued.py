"""Continued pre-training: a model of English novels learns LaTeX mathematics from little text, or from more and more.

    python benchmarks/studies/pretrain_continued.py --data DIR --work DIR [--quick --out FILE]

--data holds text_general and text_math. The base is trained here on the novels; plain training is one pass over more
and more mathematics at the best of its rates, the recipe several passes with replay over the smallest budget, its
memory, rate and passes searched. Everything is kept under --work and goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pretrain_study import passages, shape, timed, write_study

from forethought.data import CorpusConfig, prepare_corpus
from forethought.pretrain import ContinueConfig, FitConfig, Grid, Member, MembersConfig, continue_training
from forethought.pretrain.members import train_members
from forethought.train import LoopConfig, OptimiserConfig

NAME = "pretrain_continued"
GENERAL, MATHEMATICS = "text_general/novels100.jsonl.gz", "text_math/stacks_project.jsonl.gz"


@dataclass(frozen=True)
class Scale:
    """What a run of the study costs."""

    size: tuple[int, int]
    base_tokens: int
    base_epochs: float
    data: int
    plain: tuple[int, ...]
    epochs: tuple[float, ...]
    members: int
    evaluation_tokens: int


FULL = Scale((64, 1), 524_288, 2.0, 16_384, tuple(16_384 << k for k in range(6)), (4, 8, 16), 5, 16_384)
QUICK = Scale((16, 1), 8192, 1.0, 1024, (1024, 2048, 4096), (1, 2), 2, 2048)


def base(scale: Scale, data: Path, work: Path) -> tuple[Path, Path]:
    """Train the base on novels; return its model directory and its corpus."""
    source = passages(data / GENERAL, work / "general.jsonl", per_document=20)
    config = CorpusConfig(vocab_size=512, validation_share=0.05, test_share=0.05)
    corpus = prepare_corpus([source], work / "general", config).path
    fit = fit_of(scale, corpus)
    members = (Member(seed=0, lr=3e-3, weight_decay=0.1),)
    settings = MembersConfig(fit=fit, members=members, epochs=scale.base_epochs, train_tokens=scale.base_tokens)
    train_members(settings, work / "base", exists="resume")
    return work / "base" / "models" / "member-0", corpus


def fit_of(scale: Scale, corpus: Path) -> FitConfig:
    """Return what all runs share: windows of 64, batches of 4."""
    return FitConfig(
        sources=(str(corpus),),
        model=shape(*scale.size),
        optimiser=OptimiserConfig(lr=3e-3),
        loop=LoopConfig(evaluate_every=0, checkpoint_every=0, log_every=50),
        batch_size=4,
        context=64,
        max_positions=512,
        evaluation_tokens=scale.evaluation_tokens,
    )


def compare(scale: Scale, data: Path, work: Path, replay_share: float) -> dict[str, Any]:
    """Run the product's comparison with a share of replay, 0 for none."""
    model, general = base(scale, data, work)
    source = passages(data / MATHEMATICS, work / "mathematics.jsonl", per_document=15)
    config = CorpusConfig(vocab_size=512, validation_share=0.1, test_share=0.1, tokenizer=str(general))
    corpus = prepare_corpus([source], work / "mathematics", config).path
    settings = ContinueConfig(
        fit=fit_of(scale, corpus),
        base=str(model),
        replay=str(general) if replay_share else None,
        replay_share=replay_share,
        data=scale.data,
        epochs=scale.epochs[-1],
        lr=1e-3,
        tau=8.0,
        members=scale.members,
        grid=Grid(tau=(2.0, 4.0, 8.0, 16.0, 32.0), lr=(3e-4, 1e-3, 3e-3), epochs=scale.epochs),
        plain_data=scale.plain,
        plain_lrs=(1e-3, 3e-3),
        group=scale.members,
    )
    return continue_training(settings, work / f"compare-{replay_share:g}", exists="resume", cache=work / "points")


def rows_of(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the arms of all comparisons as flat rows; plain runs are those of the first."""
    rows = [{"arm": "base", "loss": results[0]["base_loss"]}, *results[0]["plain"]]
    for result in results:
        own = {"replay_share": result["replay_share"]}
        rows.append(result["recipe"] | own)
        rows += [{"arm": name, "loss": result[f"{name}_loss"], **own} for name in ("ensemble", "soup")]
    return rows


def main() -> None:
    """Train, compare and write the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--replay", type=float, nargs="*", default=[0.0], help="shares of replay to compare")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    scale = QUICK if given.quick else FULL
    results: list[dict[str, Any]] = []
    seconds = 0.0
    for share in given.replay:
        result, spent = timed(
            given.work, f"compare-{share:g}", lambda share=share: compare(scale, given.data, given.work, share)
        )
        results.append(result)
        seconds += spent
    summary = {f"replay {result['replay_share']:g}": result["efficiency"] for result in results}
    settings = {"scale": vars(scale), "general": GENERAL, "mathematics": MATHEMATICS, "replay": given.replay}
    write_study(
        NAME,
        given,
        seeds=list(range(scale.members + 1)),
        cpu_seconds=seconds,
        settings=settings,
        rows=rows_of(results),
        summary=summary,
    )


if __name__ == "__main__":
    main()

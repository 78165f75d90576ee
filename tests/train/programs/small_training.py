"""Train a tiny tied language model as a plan of jobs says; runs alone, under torchrun, or imported by a test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from forethought.core.config import config
from forethought.core.errors import ForethoughtError
from forethought.core.rng import generator, torch_generator
from forethought.train import LoopConfig, OptimiserConfig, ScheduleConfig, build_optimisers, train
from forethought.train.parallel import Parallel, open_parallel, open_run

# B batch rows, T positions, D width, V vocabulary
VOCABULARY, WIDTH, ROWS, POSITIONS = 23, 10, 4, 6


@config
class Job:
    """One run: strategy, where it goes on from, and what it does on the way."""

    directory: str
    strategy: str = "none"
    copy_from: str | None = None
    resume_at: int = 3
    steps: int = 6
    accumulate: int = 1
    ema: float | None = None
    optimiser: str = "adamw"
    final: str = "last"
    patience: int | None = None
    uneven_evaluation: bool = False
    victim: str | None = None
    timeout: float = 60.0


class Block(nn.Module):
    """A residual block whose widths do not divide by two."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 17)
        self.down = nn.Linear(17, WIDTH, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.down(torch.tanh(self.up(self.norm(x_BTD))))


class Tiny(nn.Module):
    """Embedding, two blocks, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("scale", torch.tensor(0.5))
        source = torch_generator(5, "weights")
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=source)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT) * self.scale
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(x_BTD)


@dataclass(frozen=True)
class Rows:
    """Batches by global index, of which a rank takes its own rows."""

    parallel: Parallel
    stream: str = "batch"

    def __call__(self, index: int) -> Tensor:
        tokens_BT = generator(3, self.stream, index).integers(0, VOCABULARY, (ROWS, POSITIONS + 1))
        return torch.from_numpy(tokens_BT)[self.parallel.rank :: self.parallel.world_size]


def loss(module: nn.Module, tokens_BT: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    logits_BTV = module(tokens_BT[:, :-1])
    value = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
    return value, {"largest_logit": logits_BTV.detach().abs().mean()}


def perform(job: Job) -> None:
    """Run one job on this rank."""
    with open_parallel(job.strategy, timeout=job.timeout) as parallel:
        if job.copy_from is not None and parallel.is_main:
            continue_from(Path(job.copy_from), Path(job.directory), job.resume_at)
        parallel.barrier()
        module = Tiny()
        model = parallel.wrap(module)
        optimisers = build_optimisers(module, OptimiserConfig(name=job.optimiser, lr=3e-2))
        settings = LoopConfig(
            steps=job.steps,
            accumulate=job.accumulate,
            ema_decay=job.ema,
            checkpoint_every=3,
            evaluate_every=1 if job.patience is not None or job.final == "best" else 3,
            patience=job.patience,
            final="best" if job.final == "best" else "last",
            clip_norm=0.7,
            schedule=ScheduleConfig(name="cosine"),
        )
        exists = "resume" if job.copy_from is not None else "refuse"
        with open_run(parallel, job.directory, config=OptimiserConfig(), recipe="test", exists=exists) as run:
            for record in train(
                module,
                model=model,
                loss=loss,
                batches=Rows(parallel),
                optimisers=optimisers,
                run=run,
                settings=settings,
                seed=11,
                parallel=parallel,
                evaluate=evaluation(job, parallel),
            ):
                if job.victim is not None and record.step == 2 and parallel.rank == 1:
                    fall(job.victim)


def fall(how: str) -> None:
    """Die without a word, or stop answering, as rank 1 of a job with a victim."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(600)


def evaluation(job: Job, parallel: Parallel) -> Callable[[nn.Module], Mapping[str, float]]:
    calls: list[int] = []

    def evaluate(module: nn.Module) -> Mapping[str, float]:
        calls.append(1)
        if job.uneven_evaluation:
            # Rank 0 sees its figure worsen from the first call on and rank 1 sees it improve for ever.
            return {"validation_loss": float(len(calls)) if parallel.rank == 0 else -0.5 * len(calls)}
        return {"validation_loss": float(loss(module, Rows(parallel, "validation")(0))[0])}

    return evaluate


def continue_from(source: Path, target: Path, step: int) -> None:
    """Copy a run as a kill after the checkpoint of `step` would have left it."""
    shutil.copytree(source, target)
    for checkpoint in (target / "checkpoints").iterdir():
        if checkpoint.name != f"step-{step:08d}":
            shutil.rmtree(checkpoint)


def main(plan: str) -> int:
    """Perform the jobs of a plan file in turn."""
    torch.set_num_threads(1)
    for fields in json.loads(Path(plan).read_text()):
        try:
            perform(Job(**fields))
        except ForethoughtError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Soft against hard symmetry: a residual pathway beside a convolution, on data with and without the symmetry.

A layer is W = A + B (Finzi et al. 2021): A commutes with shifts, B is unrestricted and has the narrower prior. Hard
symmetry drops B, no symmetry drops A.

Legend: N examples, C channels, S side of the canvas.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.certify.phenomena.networks import error_rate
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows, ends_of, judged
from forethought.core.rng import generator
from forethought.data.images import LabelledImages, load_digits
from forethought.nn.initialise import initialise
from forethought.nn.layers import Linear

SIDE, CHANNELS, NUM_CLASSES = 12, 16, 10
FREE_DEVIATION = 0.03
_KINDS = ("hard", "soft", "none")
_TASKS = ("symmetric", "broken")
_COLUMNS = ("train error", "test error", "share of B")


class ResidualPathway(nn.Module):
    """One hidden layer and a head, each the sum of a shift-equivariant map and an unrestricted one."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        pixels = SIDE * SIDE
        self.symmetric = nn.ModuleDict()
        self.free = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            if kind != "none":
                self.symmetric["map"] = nn.Conv2d(1, CHANNELS, 5, padding=2)
                self.symmetric["head"] = Linear(2 * CHANNELS, NUM_CLASSES)
            if kind != "hard":
                self.free["map"] = Linear(pixels, CHANNELS * pixels, bias=False)
                self.free["head"] = Linear(CHANNELS * pixels, NUM_CLASSES)
        initialise(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores of images [N, 1, S, S]."""
        hidden = images.new_zeros(len(images), CHANNELS, SIDE, SIDE)
        if "map" in self.symmetric:
            hidden = hidden + self.symmetric["map"](images)
        if "map" in self.free:
            hidden = hidden + self.free["map"](images.flatten(1)).unflatten(1, (CHANNELS, SIDE, SIDE))
        hidden = torch.relu(hidden)
        scores = images.new_zeros(len(images), NUM_CLASSES)
        if "head" in self.symmetric:
            pooled = torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], 1)
            scores = scores + self.symmetric["head"](pooled)
        if "head" in self.free:
            scores = scores + self.free["head"](hidden.flatten(1))
        return scores

    def penalty(self, symmetric_deviation: float, free_deviation: float) -> Tensor:
        """Return minus the log prior: |A|^2 / 2 s_a^2 + |B|^2 / 2 s_b^2."""
        parts = ((self.symmetric, symmetric_deviation), (self.free, free_deviation))
        return torch.stack(
            [
                torch.stack([p.square().sum() for p in part.parameters()]).sum() / (2 * deviation**2)
                for part, deviation in parts
                if len(part)
            ]
        ).sum()

    @torch.no_grad()
    def free_share(self, images: Tensor) -> float:
        """Return the share of the scores' variation that is lost when the unrestricted pathway is switched off."""
        if not len(self.free) or not len(self.symmetric):
            return float(bool(len(self.free)))
        whole = self(images)
        kept = {name: self.free[name] for name in self.free}
        self.free.clear()
        without = self(images)
        self.free.update(kept)
        return float((whole - without).var() / (whole.var() + without.var() + 1e-12))


def soft_symmetry(budget: Budget, seed: int) -> Outcome:
    """Train the three on digits thrown anywhere, with labels that ignore the place and labels that need it."""
    num_train, steps, num_seeds = (500, 400, 1) if budget == "smoke" else (800, 900, 3)
    cells = {
        (task, kind): [_one(task, kind, num_train, steps, seed, repeat) for repeat in range(num_seeds)]
        for task in _TASKS
        for kind in _KINDS
    }
    means = {key: np.mean(np.array(found), axis=0).tolist() for key, found in cells.items()}
    x = [0.0, 1.0, 2.0]
    series = {task: (x, [means[task, kind][1] for kind in _KINDS]) for task in _TASKS}
    claims, holds = judged(_margins(cells, num_seeds))
    return Outcome(
        "soft-symmetry",
        "A soft symmetry is near the better of both worlds",
        "Digits thrown anywhere on a canvas. Where the label ignores the place, hard symmetry is right and no symmetry "
        "wastes data; where the label needs the place (left or right half), hard symmetry cannot learn it. The soft "
        "prior, a convolution plus a dense residual that costs more (residual pathway prior, Finzi et al. 2021), is "
        "near the better one in both, and moves its scores to the dense pathway only where the symmetry is broken.",
        budget,
        seed,
        [Panel("test error", "0 hard, 1 soft, 2 none", "error", series)],
        [
            Rows("means over seeds", ["labels", "symmetry", *_COLUMNS], [[*key, *row] for key, row in means.items()]),
            ends_of("95 % intervals", ["labels", "symmetry"], _COLUMNS, cells),
            claims,
        ],
        holds,
        {"examples": num_train, "steps": steps, "seeds": num_seeds, "s_a": 1.0, "s_b": FREE_DEVIATION},
    )


def _margins(cells: dict[tuple[str, str], list[list[float]]], num_seeds: int) -> dict[str, list[float]]:
    def gap(task: str, better: str, worse: str, column: int = 1) -> list[float]:
        return [cells[task, worse][i][column] - cells[task, better][i][column] for i in range(num_seeds)]

    return {
        "hard beats none where the symmetry holds": gap("symmetric", "hard", "none"),
        "soft beats none where it holds": gap("symmetric", "soft", "none"),
        "soft beats hard where it is broken": gap("broken", "soft", "hard"),
        "soft is within 0.03 of the better one where it holds": [
            0.03 + margin for margin in gap("symmetric", "soft", "hard")
        ],
        "soft is within 0.03 of the better one where it is broken": [
            0.03 + margin for margin in gap("broken", "soft", "none")
        ],
        "more goes through B where it is broken": [
            cells["broken", "soft"][i][2] - cells["symmetric", "soft"][i][2] for i in range(num_seeds)
        ],
    }


def _one(task: str, kind: str, num_train: int, steps: int, seed: int, repeat: int) -> list[float]:
    train, test = load_digits(seed=seed + repeat)
    train = train.take(np.arange(num_train))
    images, labels = _thrown(train, task, seed, 2 * repeat)
    test_images, test_labels = _thrown(test, task, seed, 2 * repeat + 1)
    model = ResidualPathway(kind, seed + repeat)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1.0 - step / steps)
        rows = torch.from_numpy(generator(seed, "phenomena.symmetry", step, repeat).choice(num_train, 64))
        free = 1.0 if kind == "none" else FREE_DEVIATION
        loss = functional.cross_entropy(model(images[rows]), labels[rows]) + model.penalty(1.0, free) / num_train
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        train_error = error_rate(model(images), labels)
        test_error = error_rate(model(test_images), test_labels)
    return [train_error, test_error, model.free_share(test_images)]


def _thrown(data: LabelledImages, task: str, seed: int, index: int) -> tuple[Tensor, Tensor]:
    draw = generator(seed, "phenomena.throw", 0, index)
    room = SIDE - 8
    across, down = draw.integers(0, room + 1, len(data)), draw.integers(0, room + 1, len(data))
    canvas = np.zeros((len(data), 1, SIDE, SIDE), np.float32)
    for row, (x, y) in enumerate(zip(across, down, strict=True)):
        canvas[row, 0, y : y + 8, x : x + 8] = data.inputs[row].reshape(8, 8)
    labels = data.labels if task == "symmetric" else data.labels % 5 + 5 * (across > room // 2)
    return torch.from_numpy(canvas), torch.from_numpy(labels)

"""Teacher and student of a requential run, replayed to the bit: the student's rule of learning is the decoder here.

Rows and labels are drawn from integers of a counter-based generator, the optimiser is written out, and one thread does
the arithmetic, so that a run on the same build of the library repeats exactly, whole or resumed.

Legend: B batch, K classes, D parameters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from forethought.certify.codes.message import MAX_MESSAGE_BYTES
from forethought.certify.decoder.base import draw, raw_words, slots_of
from forethought.certify.decoder.priors import StudentPrior
from forethought.certify.decoder.rebuild import PRECISIONS
from forethought.certify.decoder.scoring import mistakes
from forethought.core.errors import ArtefactError, DataError, InputError

MAGIC = b"FTLABL1\n"
_DECAYS, _EPSILON = (0.9, 0.999), 1e-8
_SCORED = 2000
Weights = dict[str, Tensor]


class Learner:
    """Weights by name under Adam (Kingma & Ba 2015) on cross-entropy, written out so that nothing else decides."""

    def __init__(self, module: nn.Module, weights: Weights, lr: float) -> None:
        self.module, self.lr, self.step = module, lr, 0
        self.weights = {name: value.clone().requires_grad_(True) for name, value in weights.items()}
        self.first = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.second = {name: torch.zeros_like(value) for name, value in weights.items()}

    def scores(self, inputs: Tensor) -> Tensor:
        """Return logits_BK."""
        return functional_call(self.module, self.weights, (inputs,))

    def learn(self, inputs: Tensor, labels: Tensor) -> None:
        """Take one step towards the labels."""
        loss = functional.cross_entropy(self.scores(inputs), labels)
        gradients = torch.autograd.grad(loss, list(self.weights.values()))
        self.step += 1
        corrections = [1.0 - decay**self.step for decay in _DECAYS]
        with torch.no_grad():
            for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
                first = self.first[name].mul_(_DECAYS[0]).add_(gradient * (1.0 - _DECAYS[0]))
                second = self.second[name].mul_(_DECAYS[1]).add_(gradient * gradient * (1.0 - _DECAYS[1]))
                root = (second / corrections[1]).sqrt() + _EPSILON
                weight.sub_(first / root * (self.lr / corrections[0]))

    @torch.no_grad()
    def errors(self, inputs: np.ndarray, labels: np.ndarray, dtype: torch.dtype) -> int:
        """Return the mistakes on examples; ties and NaN count."""
        wrong = 0
        for start in range(0, len(labels), _SCORED):
            x = torch.from_numpy(np.array(inputs[start : start + _SCORED])).to(dtype)
            wrong += mistakes(
                self.scores(x), torch.from_numpy(np.array(labels[start : start + _SCORED], dtype=np.int64))
            )
        return wrong

    def tensors(self, prefix: str) -> Weights:
        """Return everything that a resumed run needs, by name."""
        groups = (("w", self.weights), ("m", self.first), ("v", self.second))
        return {f"{prefix}.{kind}.{name}": value.detach() for kind, group in groups for name, value in group.items()}

    @torch.no_grad()
    def restore_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put other weights in place, by name."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def restore(self, prefix: str, tensors: Mapping[str, Tensor], step: int) -> None:
        """Put back what `tensors` returned."""
        self.step = step
        for kind, group in (("w", self.weights), ("m", self.first), ("v", self.second)):
            for name, value in group.items():
                value.copy_(tensors[f"{prefix}.{kind}.{name}"])


class Session:
    """Teacher and student side by side, with the log-ratio of their laws of the labels so far.

    `teacher` maps batch, lr, seed and pause_above; the sample's examples are (inputs, labels).
    """

    def __init__(
        self,
        module: nn.Module,
        prior: StudentPrior,
        teacher: Any,
        examples: tuple[np.ndarray, np.ndarray],
        pool: np.ndarray,
    ) -> None:
        self.prior, self.settings = prior, teacher
        self.dtype = PRECISIONS[prior.precision]
        self.module = module.to(self.dtype).eval()
        self.inputs, self.labels = examples
        self.pool = pool
        first = {
            slot.name: torch.from_numpy(draw(slot, prior.seed)).to(self.dtype).view(slot.shape)
            for slot in slots_of(module)
        }
        self.student, self.teacher = Learner(self.module, first, prior.lr), Learner(self.module, first, teacher.lr)
        self.step, self.nats, self.expected, self.last = 0, 0.0, 0.0, 0.0
        self.drawn: list[np.ndarray] = []

    def advance(self) -> None:
        """Let the teacher learn from the sample (unless it waits), draw labels, and let the student learn from them."""
        self.step += 1
        settings = self.settings
        if settings.pause_above is None or self.last <= settings.pause_above:
            batch = min(settings.batch, len(self.labels))
            rows = _rows(settings.seed, "requential.teacher", self.step, batch, len(self.labels))
            self.teacher.learn(self._numbers(self.inputs[rows]), torch.from_numpy(self.labels[rows].astype(np.int64)))
        # The student's inputs are a function of its own seed and the pool: the sample has no say in them.
        rows = _rows(self.prior.seed, "requential.student", self.step, self.prior.batch, len(self.pool))
        inputs = self._numbers(self.pool[rows])
        with torch.no_grad():
            teacher = self.teacher.scores(inputs).double().log_softmax(1)
            student = self.student.scores(inputs).double().log_softmax(1)
            drawn = self._labels(teacher)
            ratio = float((teacher - student).gather(1, drawn[:, None]).sum())
            each = (teacher.exp() * (teacher - student)).sum(1)
            self.expected += float(each.sum())
            self.last = float(each.mean())
        if not math.isfinite(ratio):
            raise InputError(f"teacher or student is no longer finite at step {self.step}; give them smaller rates")
        self.nats += ratio
        self.drawn.append(drawn.numpy().astype(np.uint16))
        self.student.learn(inputs, drawn)

    def bits(self) -> float:
        """Return the log-ratio in bits, rounded up; below 0 it would be a credit, and counts as 0."""
        return max(0.0, self.nats) * (1.0 + 1e-9) / math.log(2.0)

    def errors(self, examples: tuple[np.ndarray, np.ndarray]) -> int:
        """Return the student's mistakes on (inputs, labels)."""
        return self.student.errors(*examples, self.dtype)

    def state(self) -> tuple[Weights, dict[str, Any]]:
        """Return the tensors and the plain values with which `restore` goes on to the same bits."""
        tensors = self.student.tensors("student") | self.teacher.tensors("teacher")
        drawn = np.concatenate(self.drawn) if self.drawn else np.empty(0, np.uint16)
        tensors["drawn"] = torch.from_numpy(drawn.astype(np.int32))
        steps = {"student": self.student.step, "teacher": self.teacher.step}
        return tensors, {"step": self.step, "nats": self.nats.hex(), "expected": self.expected.hex(),
                         "last": self.last.hex(), "steps": steps}  # fmt: skip

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self.step = state["step"]
        self.nats, self.expected, self.last = (float.fromhex(state[name]) for name in ("nats", "expected", "last"))
        self.student.restore("student", tensors, state["steps"]["student"])
        self.teacher.restore("teacher", tensors, state["steps"]["teacher"])
        drawn = tensors["drawn"].numpy().astype(np.uint16)
        self.drawn = list(drawn.reshape(self.step, self.prior.batch)) if self.step else []

    def _labels(self, logs_BK: Tensor) -> Tensor:
        edges_BK = logs_BK.exp().cumsum(1)
        words = raw_words(self.settings.seed, "requential.labels", len(logs_BK), self.step)
        uniforms_B = torch.from_numpy(((words >> np.uint64(11)) + 0.5) * 2.0**-53)
        below_B = (edges_BK / edges_BK[:, -1:] < uniforms_B[:, None]).sum(1)
        return below_B.clamp_max(logs_BK.shape[1] - 1)

    def _numbers(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(rows)).to(self.dtype)


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Do the block's arithmetic in one thread: sums in another order would not repeat to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trajectory_bytes(labels: np.ndarray, weights: Mapping[str, Tensor]) -> bytes:
    """Return the file of a run: magic, u32 steps, u32 batch, labels [steps, batch] in u16, u32 D, D float64 weights.

    Raises:
        InputError: the run is longer than a file may hold.
    """
    flat = np.concatenate([value.detach().double().numpy().ravel() for value in weights.values()])
    parts = [MAGIC, struct.pack("<II", *labels.shape), labels.astype("<u2").tobytes(), struct.pack("<I", len(flat))]
    data = b"".join([*parts, flat.astype("<f8").tobytes()])
    if len(data) > MAX_MESSAGE_BYTES:
        raise InputError(f"a run of {len(data)} bytes exceeds the file of {MAX_MESSAGE_BYTES}; take fewer steps")
    return data


def read_trajectory(data: bytes, shape: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels [steps, batch], weights [D]) of a file.

    Raises:
        ArtefactError: the bytes are no run of this shape with so many weights.
    """
    cut = len(MAGIC) + 8
    end = cut + 2 * shape[0] * shape[1]
    header = MAGIC + struct.pack("<II", *shape)
    if data[:cut] != header or len(data) != end + 4 + 8 * size or data[end : end + 4] != struct.pack("<I", size):
        raise ArtefactError(f"the message is no run of {shape[0]} steps of {shape[1]} labels for {size} weights")
    return (
        np.frombuffer(data, dtype="<u2", count=shape[0] * shape[1], offset=cut).reshape(shape),
        np.frombuffer(data, dtype="<f8", offset=end + 4),
    )


def check_pool(pool: np.ndarray, inputs: np.ndarray) -> None:
    """Raise a DataError unless the pool holds rows of the same shape as the inputs, at least one."""
    if pool.shape[1:] != inputs.shape[1:] or not len(pool):
        raise DataError(f"the pool has shape {pool.shape}; give rows of shape {inputs.shape[1:]}, at least one")


def _rows(seed: int, stream: str, step: int, count: int, total: int) -> np.ndarray:
    """Row numbers, uniform up to a share of total / 2^64, with repetition."""
    return (raw_words(seed, stream, count, step) % np.uint64(total)).astype(np.int64)

"""What the crash tests run in a child process and kill: saving checkpoints, and a small but whole training run.

Every program takes the number of the announced point at which it kills itself (None: it lives to the end) first.
A `mutant` plants a defect, so that the tests can show that they would notice it.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import forethought.train.loop as loop_module
from forethought.core import files
from forethought.core.checkpoint import CheckpointStore
from forethought.core.config import config
from forethought.core.errors import InterruptedRunError
from forethought.core.faults import FaultTable, faults
from forethought.core.rng import torch_generator
from forethought.core.run import Run
from forethought.train import LoopConfig, OptimiserConfig, Parallel, ScheduleConfig, build_optimisers, train

LOOP = LoopConfig(
    steps=14,
    accumulate=2,
    ema_decay=0.9,
    log_every=1,
    evaluate_every=2,
    checkpoint_every=4,
    patience=3,
    final="best",
    schedule=ScheduleConfig(name="trapezoid", warmup=0.2, cooldown=0.3),
)
OPTIMISER = OptimiserConfig(name="muon", lr=2e-2, muon_lr=3e-2)


def warm() -> None:
    """Pay for imports and first calls once, before the forks."""
    torch.set_num_threads(1)
    module = TinyModel()
    optimisers = build_optimisers(module, OPTIMISER)
    optimisers.set_rate(1.0)
    next_token_loss(module, tokens("test.train", 0))[0].backward()
    optimisers.step()
    import safetensors.torch

    safetensors.torch.load(safetensors.torch.save({"a": torch.zeros(1)}))


def _table(kill_at: int | None, points: list[str]) -> FaultTable:
    def announce(point: str) -> None:
        points.append(point)
        if len(points) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return announce


def groups(step: int, size: int = 64) -> dict[str, dict[str, Tensor]]:
    """Return tensors that all say which step they are of, so that a mixture shows."""
    return {name: {"weight": torch.full((size,), float(step))} for name in ("model", "optimizer", "ema")}


def read_step(store: CheckpointStore, *, fallback: bool = False) -> int:
    """Return the newest step after checking that every tensor and the state are of that step."""
    found = store.latest(fallback=fallback)
    assert found is not None, "no checkpoint is left"
    for name in ("model", "optimizer", "ema"):
        weight = found.tensors(name)["weight"]
        assert torch.equal(weight, torch.full_like(weight, float(found.step))), f"{name} is of another step"
    assert found.state["note"] == found.step
    return found.step


def save(kill_at: int | None, *, directory: str, steps: list[int], mutant: str = "", size: int = 64) -> list[str]:
    """Save these steps, one after the other, and return the points announced on the way."""
    points: list[str] = []
    store = CheckpointStore(directory)
    publish = files.publish
    files.publish = _direct if mutant == "direct" else publish
    with faults(_table(kill_at, points)):
        for step in steps:
            store.save(step, groups(step, size), {"note": step})
    return points


def save_for_ever(kill_at: int | None, *, directory: str, first: int, mutant: str = "", size: int = 4096) -> None:
    """Save one step after the other until somebody kills this process."""
    save(kill_at, directory=directory, steps=list(range(first, 100_000)), mutant=mutant, size=size)


def republish(kill_at: int | None, *, target: str, version: int, mutant: str = "") -> list[str]:
    """Replace a published directory by another version."""
    points: list[str] = []
    content: dict[str, bytes | Callable[[], bytes]] = {name: str(version).encode() for name in ("a", "sub/b", "c")}
    rename = files._rename_onto
    files._rename_onto = _remove_then_rename if mutant == "remove" else rename
    with faults(_table(kill_at, points)):
        files.publish(target, content, replace=True)
    return points


def hold(_kill_at: int | None, *, directory: str, seconds: float) -> None:
    """Hold a run open and a staging directory beside it."""
    import time

    with files.staged(Path(directory).parent / "slow") as staging:
        files.write_bytes(staging / "part", b"x")
        with Run.open(directory, config=Settings(), recipe="tiny", exists="resume") as run:
            run.log({"step": 1})
            run.position()
            time.sleep(seconds)


def fill(_kill_at: int | None, *, directory: str, limit: int | None, size: int) -> dict[str, str]:
    """Save a checkpoint onto a disk that is too small for it and say which error came of it."""
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        CheckpointStore(directory).save(9, groups(9, size), {"note": 9})
    except OSError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {}


def _direct(target: Path, contents: Mapping[str, Any], *, replace: bool = False) -> None:
    """Plant: write straight into the target, the manifest first."""
    data = {name: value() if callable(value) else value for name, value in contents.items()}
    target.mkdir(parents=True, exist_ok=replace)
    facts = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in data.items()}
    files.write_bytes(target / files.MANIFEST, files._manifest_bytes(facts))
    for name, content in data.items():
        files.write_bytes(target / name, content)


def _remove_then_rename(staging: Path, target: Path, *, replace: bool) -> None:
    """Plant: remove what is to be replaced before the new is in place."""
    import shutil

    if replace and target.exists():
        shutil.rmtree(target)
    files.fault("publish.rename")
    os.rename(staging, target)


@config
class Settings:
    """The config of the training program."""

    seed: int = 7
    loop: LoopConfig = LOOP
    optimiser: OptimiserConfig = OPTIMISER


class TinyModel(nn.Module):
    """A language model in miniature: embedding, a hidden matrix under dropout, a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.hidden = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16, 32, bias=False)
        weights = torch_generator(3, "test.weights")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=weights) * 0.3)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        return self.head(self.norm(x_BTD + self.dropout(torch.tanh(self.hidden(x_BTD)))))


def tokens(stream: str, index: int) -> Tensor:
    """Return a small batch as a function of its index."""
    return torch.randint(0, 32, (4, 9), generator=torch_generator(11, stream, index))


def next_token_loss(model: nn.Module, batch_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of predicting a shifted copy, and one more figure."""
    logits_BTV = model(batch_BT[:, :-1])
    value = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch_BT[:, 1:].flatten())
    return value, {"entropy": value.detach() * 2}


def evaluation(model: nn.Module) -> dict[str, float]:
    """Return a validation figure that gets worse now and then, so that the bookkeeping of the best is exercised."""
    value = float(next_token_loss(model, tokens("test.validation", 0))[0])
    return {"validation_loss": value + (value * 1e4) % 1.0}


def fit(
    kill_at: int | None,
    *,
    directory: str,
    mutant: str = "",
    signals: list[list[Any]] | None = None,
) -> dict[str, Any]:
    """Train to the end, resuming what is there, and return the hashes of all that must not depend on the kills.

    `signals` lists [step, signal number]: sent to this process while that step's loss is computed.
    """
    points: list[str] = []
    with Run.open(directory, config=Settings(), recipe="tiny", exists="resume") as run, faults(_table(kill_at, points)):
        plant = MUTANTS[mutant](run) if mutant else None
        module = TinyModel()
        optimisers = build_optimisers(module, OPTIMISER)
        calls = {"first": None, "sent": 0}

        def batches(index: int) -> Tensor:
            for step, number in signals or []:
                if step * 2 == index:
                    os.kill(os.getpid(), number)
            if mutant == "loader replays" and calls["first"] is None:
                calls["first"] = index
            return tokens("test.train", index - (calls["first"] or 0))

        try:
            with plant or nullcontext():
                for _ in train(
                    module,
                    loss=next_token_loss,
                    batches=batches,
                    optimisers=optimisers,
                    run=run,
                    settings=LOOP,
                    seed=7,
                    parallel=Parallel(torch.device("cpu")),
                    evaluate=evaluation,
                ):
                    pass
        except (InterruptedRunError, KeyboardInterrupt) as error:
            return {"error": type(error).__name__, "message": str(error), "saved": run.checkpoints.steps()}
        return {"points": len(points), **_fingerprint(Path(directory), module, run)}


def _fingerprint(directory: Path, module: nn.Module, run: Run) -> dict[str, Any]:
    run.flush()
    last = run.checkpoints.latest()
    assert last is not None
    # The length of timings.jsonl depends on how many digits the clock gave; nothing compares it.
    state = last.state | {"position": last.state["position"] | {"timings.jsonl": None}}
    hashes = {path.name: files.sha256_file(path) for path in sorted(last.directory.glob("*.safetensors"))}
    weights = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in module.state_dict().values()))
    return {
        "steps": run.checkpoints.steps(),
        "checkpoint": hashes,
        "state": state,
        "module": weights.hexdigest(),
        "metrics": hashlib.sha256((directory / "metrics.jsonl").read_bytes()).hexdigest(),
        "records": len((directory / "metrics.jsonl").read_text().splitlines()),
    }


class _Patched:
    """Replace an attribute for the length of a block."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._place, self._value = (owner, name), value

    def __enter__(self) -> None:
        self._kept = getattr(*self._place)
        setattr(*self._place, self._value)

    def __exit__(self, *_: object) -> None:
        setattr(*self._place, self._kept)


def _counting_seed() -> Callable[..., int]:
    count = iter(range(10**6))
    return lambda *_: next(count)


def _forgetful(run: Run, name: str, value: object) -> Any:
    latest = run.checkpoints.latest

    def forgetting(*, fallback: bool = False) -> Any:
        found = latest(fallback=fallback)
        if found is not None:
            found.state[name] = value
        return found

    return _Patched(run.checkpoints, "latest", forgetting)


def _average_not_restored(_run: Run) -> Any:
    restore = loop_module.restore

    def partly(checkpoint: Any, module: Any, optimisers: Any, average: Any, parallel: Any) -> None:
        kept = average.tensors
        restore(checkpoint, module, optimisers, average, parallel)
        average.tensors = kept

    return _Patched(loop_module, "restore", partly)


MUTANTS: dict[str, Callable[[Run], Any]] = {
    "noise from a generator nobody saves": lambda _: _Patched(loop_module, "derive_seed", _counting_seed()),
    "loader replays": lambda _: nullcontext(),
    "metrics not rewound": lambda run: _Patched(run, "rewind", lambda _position: None),
    "optimiser not restored": lambda _: _Patched(loop_module.Optimisers, "load_state", lambda _self, _tensors: None),
    "average not restored": _average_not_restored,
    "patience forgotten": lambda run: _forgetful(run, "stale", 0),
    "best forgotten": lambda run: _forgetful(run, "best_value", None),
}

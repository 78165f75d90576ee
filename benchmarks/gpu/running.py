"""One run of the benchmark on this process's device, alone or as a rank among several."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checks import check_logits, check_tokens, compare_tokens, describe_check
from pairs import (
    SHAPES,
    Controlled,
    graphed,
    open_arms,
    open_speculator,
    plant,
    random_model,
    successor_of,
    synchronise,
    target_stream,
    thread_beside,
)
from passes import describe_passes, free, time_passes
from races import Settings, describe_race, race

from forethought.core.environment import environment
from forethought.core.rng import generator
from forethought.decode import open_model
from forethought.decode.transports.serving import await_speculator, serve_speculator
from forethought.decode.transports.torch_distributed import TorchDistributedTransport, exchange_groups
from forethought.decode.transports.transport import Transport

PROMPTS = (
    'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""\n',
    "import re\n\n\ndef is_palindrome(text: str) -> bool:\n    # Letters only, whatever their case.\n",
    "class Stack:\n    def __init__(self) -> None:\n        self.items = []\n\n    def push(self, item):\n",
    "The first law of thermodynamics says that",
)
_LATE = {"skipped": "out of time"}


@dataclass
class Run:
    """What is measured, by when it must end, and what was found so far."""

    device: torch.device
    settings: Settings
    deadline: float
    table: list[str] = field(default_factory=list[str])
    correct: bool = True

    def alone(self, target: Path | None, draft: Path | None, prompts: Path | None) -> dict[str, Any]:
        """Do everything on one device and return the figures."""
        with target_stream(self.device):
            found: dict[str, Any] = {
                "checks": [self._check(dtype) for dtype in (torch.float32, torch.bfloat16)],
                "passes": {name: self._time_passes(name) for name in self.settings.timed},
                "races": self._races(self._beside_here),
            }
            if target is not None and draft is not None:
                found["real_pair"] = self._race_real(target, draft, prompts)
        return self._finished(found)

    def distributed(self) -> dict[str, Any] | None:
        """Race with the target on rank 0 and SSD's draft on rank 1; further ranks only help to make the groups."""
        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo" if self.device.type == "cpu" else None)
        ways = [exchange_groups(0, 1) for _ in self.settings.acceptances]
        found: dict[str, Any] = {}
        with target_stream(self.device):
            if rank == 0:
                left = iter(ways)
                found["races"] = self._races(lambda inner, successor, acceptance: self._beside_there(*next(left)))
            elif rank == 1:
                self._serve(ways)
        torch.distributed.destroy_process_group()
        return self._finished(found) if rank == 0 else None

    def _serve(self, ways: list[Any]) -> None:
        """Be SSD's draft in every race."""
        sizes, settings = self.settings.sizes, self.settings
        inner = graphed(random_model(settings.draft, self.device, self._dtype), sizes.draft_pages)
        successor = successor_of(SHAPES[settings.target]["vocab_size"])
        for acceptance, (incoming, outgoing) in zip(settings.acceptances, ways, strict=True):
            transport = TorchDistributedTransport(0, outgoing, incoming, device=self.device)
            draft = Controlled(inner, successor, acceptance, width=sizes.budget + 2)
            serve_speculator(transport, lambda draft=draft: open_speculator(draft, sizes, sizes.budget))
            transport.close()

    def _beside_there(self, outgoing: Any, incoming: Any) -> Transport:
        transport = TorchDistributedTransport(1, outgoing, incoming, device=self.device)
        transport.note_round_trip(await_speculator(transport, 300.0))
        return transport

    def _beside_here(self, inner: Any, successor: np.ndarray, acceptance: float) -> Transport:
        sizes = self.settings.sizes
        draft = Controlled(inner, successor, acceptance, width=sizes.budget + 2)
        return thread_beside(lambda: draft, sizes, self.device)

    def _check(self, dtype: torch.dtype) -> dict[str, Any]:
        settings = self.settings
        free(self.device)
        model = random_model(settings.check, self.device, dtype)
        found = check_logits(model) | check_tokens(model, self.device, settings.num_checked, settings.count // 2)
        self.correct &= found["logits_agree"] and found["tokens_agree"]
        self._note(describe_check(found))
        return found

    def _time_passes(self, name: str) -> dict[str, Any]:
        if self._is_late(f"passes {name}"):
            return _LATE
        free(self.device)
        model = random_model(name, self.device, self._dtype)
        found = time_passes(model, self.settings.row_counts, self.settings.repeats)
        self._note(describe_passes(name, found))
        return found

    def _races(self, open_beside: Callable[[Any, np.ndarray, float], Transport]) -> dict[str, Any]:
        """Race at every acceptance and batch."""
        free(self.device)
        settings, sizes = self.settings, self.settings.sizes
        model, small = (random_model(name, self.device, self._dtype) for name in (settings.target, settings.draft))
        successor = plant(model)
        target = graphed(model, sizes.target_pages)
        # Two executors of one draft: what SSD's computes in its own thread has pages and graphs of its own.
        here, beside = (graphed(small, sizes.draft_pages) for _ in range(2))
        synchronise(self.device)
        found: dict[str, Any] = {"target": settings.target, "draft": settings.draft, "dtype": str(self._dtype)}
        for acceptance in settings.acceptances:
            own = Controlled(here, successor, acceptance, width=sizes.budget + 2)
            arms = open_arms(target, sizes, own, open_beside(beside, successor, acceptance))
            for batch in settings.batches:
                label = f"acceptance {acceptance} batch {batch}"
                if self._is_late(f"race {label}"):
                    found[label] = _LATE
                    continue
                done = race(arms, self._random_prompts(batch), settings)
                found[label] = done.figures()
                found[label]["differing_tokens"] = wrong = done.num_differing(
                    lambda prompt: _follow(successor, prompt[-1], settings.count)
                )
                self.correct &= not any(wrong.values())
                self._note(describe_race(label, found[label]) + f"; wrong tokens {sum(wrong.values())}")
            arms.close()
        return found

    def _race_real(self, target: Path, draft: Path, prompts: Path | None) -> dict[str, Any]:
        """Race a pair from its directories, one text at a time."""
        if self._is_late("real pair"):
            return _LATE
        free(self.device)
        served, beside, sizes = open_model(target), open_model(draft), self.settings.sizes
        texts = read_prompts(prompts) if prompts is not None else list(PROMPTS)
        tokens = [served.encode(text)[: self.settings.prompt_length] for text in texts]
        large, small = (each.model.to(self._dtype).to(self.device) for each in (served, beside))
        drafts = [graphed(small, sizes.draft_pages) for _ in range(2)]
        synchronise(self.device)
        way = thread_beside(lambda: drafts[1], sizes, self.device)
        arms = open_arms(graphed(large, sizes.target_pages), sizes, drafts[0], way)
        done = race(arms, ([tokens[turn % len(tokens)]] for turn in range(1 << 20)), self.settings)
        arms.close()
        found = {"target": target.name, "draft": draft.name, "dtype": str(self._dtype), **done.figures()}
        found |= compare_tokens(large, done.prompts, done.answers)
        self.correct &= found["tokens_agree"]
        self._note(describe_race(target.name, found) + f"; first differences {len(found['differences'])}")
        return found

    def _random_prompts(self, batch: int) -> Iterator[list[list[int]]]:
        vocabulary = SHAPES[self.settings.target]["vocab_size"]
        for number in range(1 << 30):
            draw = generator(number, "benchmark.prompts", batch)
            yield draw.integers(0, vocabulary, (batch, self.settings.prompt_length)).tolist()

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def _is_late(self, what: str) -> bool:
        late = time.monotonic() > self.deadline
        if late:
            self._note(f"{what}: left out, no time left")
        return late

    def _note(self, line: str) -> None:
        self.table.append(line)

    def _finished(self, found: dict[str, Any]) -> dict[str, Any]:
        name = "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        head = f"device {name}, torch {torch.__version__}, {'all checks passed' if self.correct else 'A CHECK FAILED'}"
        found = {"device": name, "correct": self.correct, **found, "environment": environment()}
        return {**found, "table": [head, *self.table]}


def read_prompts(path: Path) -> list[str]:
    """Return the texts of a file, one a line, or the "prompt" of every line that is a JSON object."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [str(json.loads(line)["prompt"]) if line.startswith("{") else line for line in lines]


def _follow(successor: np.ndarray, token: int, count: int) -> list[int]:
    """The tokens that a planted target puts behind one."""
    tokens: list[int] = []
    for _ in range(count):
        token = int(successor[token])
        tokens.append(token)
    return tokens

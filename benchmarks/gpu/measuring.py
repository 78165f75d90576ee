"""The measurements of benchmarks/gpu/decode.py: checks, times of passes, and races.

Shape suffixes: T tokens, N rows, V vocabulary.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checks import check_logits, check_tokens, first_differences
from forethought.core.environment import environment
from forethought.core.rng import generator
from forethought.decode import open_model
from forethought.decode.transports.serving import await_speculator, serve_speculator
from forethought.decode.transports.torch_distributed import TorchDistributedTransport, exchange_groups
from forethought.nn import LanguageModel, TorchPagedModel
from forethought.nn.rows import PagedModel, Rows
from forethought.stats import median_interval, paired_ratio
from pairs import (
    PAGE,
    Arms,
    Controlled,
    Sizes,
    complete,
    draft_plan,
    graphed,
    open_arms,
    open_speculator,
    plant,
    random_model,
    ssd_plan,
    synchronise,
    target_stream,
    thread_beside,
)
from forethought.decode.steered import demand_of

CONTEXT = 512
PROMPTS = (
    "def fibonacci(n: int) -> int:\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "import re\n\n\ndef is_palindrome(text: str) -> bool:\n    \"\"\"Say whether a text reads the same backwards.\"\"\"\n",
    "The three laws of thermodynamics say that",
    "class Stack:\n    \"\"\"A last-in, first-out list.\"\"\"\n\n    def __init__(self) -> None:\n",
)


@dataclass(frozen=True)
class Settings:
    """How much is done."""

    check: str
    target: str
    draft: str
    timed: tuple[str, ...]
    row_counts: tuple[int, ...]
    repeats: int
    acceptances: tuple[float, ...]
    batches: tuple[int, ...]
    races: int
    prompt_length: int
    count: int
    lengths: tuple[int, ...]
    budgets: tuple[int, ...]
    num_checked: int

    @property
    def sizes(self) -> Sizes:
        """The sizes of the engines."""
        length = self.prompt_length + self.count + max(self.lengths) + 2
        return Sizes(max(self.batches), length, max(self.lengths), max(self.budgets))


def settings_of(tiny: bool, quick: bool, pair: str | None) -> Settings:
    """Return how much is done by these flags."""
    if tiny:
        shapes = ("tiny", pair or "tiny", "tiny-draft", ("tiny", "tiny-draft"))
        return Settings(*shapes, (1, 4), 3, (0.8,), (1, 2), 2, 24, 16, (3,), (6,), 2)
    if quick:
        shapes = ("350m", pair or "1.3b", "120m", ("1.3b", "120m"))
        return Settings(*shapes, (1, 2, 4, 8, 16, 32), 15, (0.8,), (1, 4), 6, 128, 96, (3, 5), (12,), 4)
    shapes = ("350m", pair or "7b", "120m", ("1.3b", "7b", "120m"))
    counts = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
    return Settings(*shapes, counts, 25, (0.6, 0.8, 0.9), (1, 4, 16), 9, 128, 128, (2, 4, 6, 8), (12, 24), 16)


@dataclass
class Run:
    """One run of the benchmark on one device."""

    device: torch.device
    settings: Settings
    deadline: float
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    table: list[str] = field(default_factory=list[str])

    def alone(self, target: Path | None, draft: Path | None, prompts: Path | None) -> dict[str, Any]:
        """Do everything on one device and return the figures."""
        with target_stream(self.device):
            self._note(f"device {self._device_name()}, torch {torch.__version__}")
            self.figures["checks"] = {kind: self._check(dtype) for kind, dtype in self._dtypes().items()}
            self.figures["passes"] = {name: self._time_passes(name) for name in self.settings.timed}
            self.figures["races"] = self._race_controlled(self._thread_arms)
            if target is not None and draft is not None:
                self.figures["real_pair"] = self._race_real(target, draft, prompts)
        return self._finished()

    def distributed(self) -> dict[str, Any] | None:
        """Race with the target on rank 0 and SSD's draft on rank 1; the other ranks only help to make groups."""
        rank = int(os.environ["RANK"])
        # On an accelerator both: NCCL carries the frames, gloo whatever torch wants of the host.
        torch.distributed.init_process_group("gloo" if self.device.type == "cpu" else None)
        pairs = [exchange_groups(0, 1) for _ in self.settings.acceptances]
        if rank == 0:
            with target_stream(self.device):
                self._note(f"device {self._device_name()} and another, torch {torch.__version__}, torch.distributed")
                ways = iter(pairs)
                self.figures["races"] = self._race_controlled(lambda *given: self._remote_arms(next(ways), *given))
        elif rank == 1:
            with target_stream(self.device):
                self._serve(pairs)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        return self._finished() if rank == 0 else None

    def _serve(self, pairs: list[Any]) -> None:
        """Be the draft of every race in turn."""
        model, successor, sizes = self._draft(), self._successor(), self.settings.sizes
        inner = graphed(model, sizes.draft_pages)
        for acceptance, (incoming, outgoing) in zip(self.settings.acceptances, pairs, strict=True):
            transport = TorchDistributedTransport(0, outgoing, incoming, device=self.device)
            draft = Controlled(inner, successor, acceptance, width=sizes.budget + 2)
            serve_speculator(transport, lambda draft=draft: open_speculator(draft, sizes, sizes.budget))
            transport.close()

    def _remote_arms(
        self, groups: Any, target: PagedModel, drafts: list[Any], successor: np.ndarray, acceptance: float
    ) -> Arms:
        sizes = self.settings.sizes
        transport = TorchDistributedTransport(1, *groups, device=self.device)
        await_speculator(transport, 300.0)
        return open_arms(target, sizes, Controlled(drafts[0], successor, acceptance, width=sizes.budget + 2), transport)

    def _thread_arms(
        self, target: PagedModel, drafts: list[Any], successor: np.ndarray, acceptance: float
    ) -> Arms:
        sizes = self.settings.sizes
        here, beside = (Controlled(each, successor, acceptance, width=sizes.budget + 2) for each in drafts)
        return open_arms(target, sizes, here, thread_beside(lambda: beside, sizes, self.device))

    def _check(self, dtype: torch.dtype) -> dict[str, Any]:
        """Compare logits and tokens of all ways to decode."""
        settings = self.settings
        model = random_model(settings.check, self.device, dtype)
        found = check_logits(model) | check_tokens(model, self.device, settings.num_checked, settings.count // 2)
        self._note(
            f"check {found['dtype']}: logits differ by {found['graphed_to_dense']:.1e} of the largest "
            f"(eager {found['eager_to_dense']:.1e}); first differences of {found['num_texts']} texts: "
            f"{found['num_differences']}, all close: {found['close']}"
        )
        del model
        self._free()
        return found

    def _time_passes(self, name: str) -> dict[str, Any]:
        """Time passes of a shape behind a context, in turns over their sizes."""
        if self._late():
            return {"skipped": "out of time"}
        model = random_model(name, self.device, self._dtype())
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        pages = -(-(CONTEXT + 64) // PAGE)
        counts = self.settings.row_counts
        executors = {"graphed": (graphed(model, pages), counts), "eager": (TorchPagedModel(model, pages, PAGE), (1, 8))}
        calls = {
            f"{kind}.{n}": (lambda e=e, n=n: e.greedy(causal_rows(e, CONTEXT, n)))
            for kind, (e, own) in executors.items()
            for n in own
        }
        chain, later = executors["graphed"][0], np.arange(CONTEXT + 1, CONTEXT + 5, dtype=np.int32)[None]
        calls["graphed.chain_of_5"] = lambda: chain.greedy_chain(causal_rows(chain, CONTEXT, 1), later)
        calls["graphed.tree_of_16"] = lambda: chain.greedy(tree_rows(chain, CONTEXT, 16))
        seconds = self._in_turns(calls, self.settings.repeats)
        found: dict[str, Any] = {key: interval_of([1e3 * s for s in own]) for key, own in seconds.items()}
        base = statistics.median(seconds["graphed.1"])
        shown = ", ".join(f"{n}: {found[f'graphed.{n}']['median']:.2f}" for n in counts)
        self._note(
            f"passes {name} ({size / 1e9:.2f} GB, {size / base / 1e9:.0f} GB/s): ms by rows {shown}; "
            f"eager 1: {found['eager.1']['median']:.2f}; chain of 5: {found['graphed.chain_of_5']['median']:.2f}; "
            f"tree of 16: {found['graphed.tree_of_16']['median']:.2f}"
        )
        del model, executors, calls, chain
        self._free()
        return {"bytes": size, "context": CONTEXT, "unit": "ms", **found}

    def _race_controlled(self, open_them: Callable[..., Arms]) -> dict[str, Any]:
        settings, sizes = self.settings, self.settings.sizes
        model = random_model(settings.target, self.device, self._dtype())
        successor = plant(model)
        target, small = graphed(model, sizes.target_pages), self._draft()
        # Two executors of one draft: SSD's runs in a thread, and keys and values of its own requests are its own.
        drafts = [graphed(small, sizes.draft_pages) for _ in range(2)]
        synchronise(self.device)
        found: dict[str, Any] = {"target": settings.target, "draft": settings.draft, "dtype": str(self._dtype())}
        for acceptance in settings.acceptances:
            arms = open_them(target, drafts, successor, acceptance)
            for batch in settings.batches:
                found[f"acceptance {acceptance} batch {batch}"] = self._race(
                    arms, batch, lambda prompt: chain_of(successor, prompt[-1], settings.count), acceptance
                )
            arms.close()
        return found

    def _race(
        self, arms: Arms, batch: int, expected: Callable[[list[int]], list[int]] | None, label: object, texts: Any = None
    ) -> dict[str, Any]:
        """Let the arms take turns over batches of prompts."""
        settings = self.settings
        if self._late():
            self._note(f"race {label} batch {batch}: left out, no time")
            return {"skipped": "out of time"}
        draw = iter(texts) if texts is not None else self._random_prompts(batch)
        chosen = self._tune(arms, batch, draw)
        speeds: dict[str, list[float]] = {name: [] for name in arms.engines}
        answers: dict[str, list[list[int]]] = {name: [] for name in arms.engines}
        before = {name: engine.counts.to_dict() for name, engine in arms.engines.items()}
        asked: list[list[int]] = []
        for turn in range(settings.races):
            prompts = next(draw)
            asked += prompts
            names = list(arms.engines)
            for name in names[turn % 3 :] + names[: turn % 3]:
                tokens, speed = complete(arms.engines[name], prompts, settings.count)
                speeds[name].append(speed)
                answers[name] += tokens
        found: dict[str, Any] = {"chosen": chosen}
        found |= {name: interval_of(own) | counts_of(arms, name, before[name]) for name, own in speeds.items()}
        for above, below in (("sd", "ar"), ("ssd", "ar"), ("ssd", "sd")):
            found[f"{above}_over_{below}"] = interval_of(speeds[above], speeds[below])
        if expected is not None:
            answers["expected"] = [expected(prompt) for prompt in asked]
        reference = answers["expected" if expected is not None else "ar"]
        found["differing"] = {name: count_differing(own, reference) for name, own in answers.items()}
        found["answers"] = None if expected is not None else (asked, answers)
        self._note(
            f"race {label} batch {batch}: "
            + ", ".join(f"{name} {found[name]['median']:.0f} tokens/s" for name in arms.engines)
            + f"; ssd/sd {found['ssd_over_sd']['median']:.2f} [{found['ssd_over_sd']['low']:.2f}, "
            f"{found['ssd_over_sd']['high']:.2f}]; accepted sd {found['sd']['acceptance']:.2f}, "
            f"hits {found['ssd']['hits']:.2f}; {chosen}; differing {max(found['differing'].values())}"
        )
        return found

    def _tune(self, arms: Arms, batch: int, draw: Iterator[list[list[int]]]) -> dict[str, str]:
        """Set each speculating arm to its fastest plan, on prompts that the race does not use."""
        settings, chosen = self.settings, {}
        prompts, count = next(draw), max(settings.count // 2, 8)
        complete(arms.engines["ar"], prompts, count)
        plans = {
            "sd": {f"K={k}": draft_plan(k) for k in settings.lengths},
            "ssd": {f"K={k} B={b}": ssd_plan(k, b) for k, b in product(settings.lengths, settings.budgets)},
        }
        for name, own in plans.items():
            speeds: dict[str, float] = {}
            for label, plan in own.items():
                arms.sources[name].demand = demand_of(plan)
                # Twice, for the first time captures the shapes.
                speeds[label] = [complete(arms.engines[name], prompts, count)[1] for _ in range(2)][-1]
            chosen[name] = max(speeds, key=speeds.__getitem__)
            arms.sources[name].demand = demand_of(own[chosen[name]])
        return chosen

    def _race_real(self, target: Path, draft: Path, prompts: Path | None) -> dict[str, Any]:
        """Race a pair from its directories over texts."""
        if self._late():
            return {"skipped": "out of time"}
        served, beside, sizes = open_model(target), open_model(draft), self.settings.sizes
        texts = read_prompts(prompts) if prompts is not None else list(PROMPTS)
        tokens = [served.encode(text)[: self.settings.prompt_length] for text in texts]
        large, small = (each.model.to(self._dtype()).to(self.device) for each in (served, beside))
        executors = [graphed(small, sizes.draft_pages) for _ in range(2)]
        synchronise(self.device)
        arms = open_arms(
            graphed(large, sizes.target_pages),
            sizes,
            executors[0],
            thread_beside(lambda: executors[1], sizes, self.device),
        )
        cycle = ([tokens[turn % len(tokens)]] for turn in range(1 << 20))
        found = self._race(arms, 1, None, target.name, cycle)
        arms.close()
        if found.get("answers") is not None:
            asked, answers = found.pop("answers")
            found["differences"] = first_differences(large, asked, answers)
            found["close"] = all(each["close"] for each in found["differences"])
        return found

    def _random_prompts(self, batch: int) -> Iterator[list[list[int]]]:
        vocabulary = random_vocabulary(self.settings.target)
        for number in range(1 << 30):
            draw = generator(number, "benchmark.prompts", batch)
            yield draw.integers(0, vocabulary, (batch, self.settings.prompt_length)).tolist()

    def _in_turns(self, calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(-2, repeats):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if repeat >= 0:
                    seconds[name].append(time.perf_counter() - began)
        return seconds

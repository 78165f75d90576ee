"""Pairs of Llama-shaped models with random weights, a set acceptance, and engines around them.

How the acceptance is controlled. The target's weights are random but for its output matrix: row s(t) of it is the
embedding of token t, s a random permutation of the vocabulary that is one cycle. The embedding outweighs what the
blocks add to it, so the target's likeliest token after t is s(t) by a wide margin, whatever the type of its weights,
and it computes every product of a model of its shape to find that out. The draft makes all its passes too, and waits
for their result; then its choice is overwritten: s(t) has rank 0 among its guesses with the set probability, else rank
r >= 1 with Pr[r > f] = 1 / (f + 1), the law of misses that arXiv 2603.03251 (definition 11) fits. Ranks are a function
of token and position, so that arms meet the same luck. Verification, trees and transport are those of the library.

Shape suffixes: N rows, M wanted rows, K later passes of a chain, F guesses, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.rng import generator, torch_generator
from forethought.decode.batching.budget import SchedulerConfig
from forethought.decode.batching.pages import PageManager
from forethought.decode.batching.scheduler import Scheduler
from forethought.decode.batching.verifier import TargetVerifier
from forethought.decode.draft import DraftSource
from forethought.decode.drafter.speculator import Speculator
from forethought.decode.engine import Engine
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.planning.model_of_speed import Plan
from forethought.decode.sources.ngram import NoSource
from forethought.decode.sources.remote import RemoteSource
from forethought.decode.sources.steered import demand_of
from forethought.decode.transports.in_process import InProcessTransport
from forethought.decode.transports.threads import ThreadTransport, stream_setting
from forethought.decode.transports.transport import Transport
from forethought.decode.wire.options import RemoteOptions, SpeculatorOptions
from forethought.decode.wire.protocol import Hello
from forethought.nn import ChainModel, LanguageModel, TransformerConfig
from forethought.nn.graphed import GraphedPagedModel
from forethought.nn.rows import Int32, Rows

PAGE = 16
_TABLE = 1 << 16


def shape(vocabulary: int, width: int, layers: int, heads: int, middle: int, *, tied: bool = False) -> dict[str, Any]:
    """Return the fields of a Llama."""
    names = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
    sizes = dict(zip(names, (vocabulary, width, layers, heads, middle), strict=True))
    return {**sizes, "max_positions": 4096, "tie_embeddings": tied}


SHAPES = {
    "7b": shape(32000, 4096, 32, 32, 11008),
    "1.3b": shape(32000, 2048, 24, 16, 5504),
    "350m": shape(32000, 1024, 24, 16, 2736),
    "120m": shape(32000, 768, 12, 12, 2048, tied=True),
    "tiny": shape(512, 64, 3, 4, 128),
    "tiny-draft": shape(512, 32, 1, 2, 64, tied=True),
}


@torch.no_grad()
def random_model(name: str, device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> LanguageModel:
    """Return a model of a named shape whose weights are drawn where they lie, by the house's standard deviations."""
    config = TransformerConfig(**SHAPES[name])
    with torch.device("meta"):
        model = LanguageModel(config)
    model = model.to(dtype).to_empty(device=device)
    draw = torch_generator(seed, f"benchmark.{name}", device=str(device))
    for place, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(1.0)
            continue
        is_table = place.startswith(("embedding", "unembedding"))
        std = 0.02 if is_table else math.sqrt(0.4 / parameter.shape[1])
        if place.endswith(("attention.output.weight", "mlp.down.weight")):
            std /= math.sqrt(2 * config.num_layers)
        parameter.normal_(0.0, std, generator=draw)
    return model.eval()


def successor_of(vocabulary: int) -> NDArray[np.int64]:
    """Return what a planted target puts behind every token: a random permutation that is one cycle."""
    order = generator(0, "benchmark.successor").permutation(vocabulary)
    successor = np.empty(vocabulary, dtype=np.int64)
    successor[order] = np.roll(order, -1)
    return successor


@torch.no_grad()
def plant(model: LanguageModel) -> NDArray[np.int64]:
    """Make a model with an output matrix of its own follow every token by its successor, and return those (V)."""
    weight = model.embedding.weight
    successor = successor_of(len(weight))
    weight.normal_(0.0, 1.0, generator=torch_generator(0, "benchmark.embedding", device=str(weight.device)))
    if model.unembedding is None:
        raise ValueError("the output matrix is the embedding, so nothing can be planted in it; give an untied shape")
    model.unembedding.weight[torch.from_numpy(successor).to(weight.device)] = weight / math.sqrt(weight.shape[1])
    return successor


@torch.no_grad()
def perturbed(model: LanguageModel, noise: float, *, seed: int = 0) -> LanguageModel:
    """Return a copy with every matrix changed by so large a share of itself: a draft that agrees often."""
    other = copy.deepcopy(model)
    draw = torch_generator(seed, "benchmark.noise", device=str(model.embedding.weight.device))
    for parameter in other.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(torch.empty_like(parameter).normal_(1.0, noise, generator=draw))
    return other


class Controlled:
    """A draft of set acceptance: `inner` makes every pass, then its likeliest tokens are overwritten.

    `successor` is the target's; `width` is how many guesses are ever asked for.
    """

    exact = False
    fallback_reason: str | None = None

    def __init__(
        self, inner: GraphedPagedModel, successor: NDArray[np.int64], acceptance: float, *, width: int
    ) -> None:
        self.config, self.page_size, self.num_pages = inner.config, inner.page_size, inner.num_pages
        self._inner, self._successor_V, self._width = inner, successor, width
        draw = generator(0, "benchmark.ranks")
        missed = np.minimum(1.0 / np.maximum(draw.random(_TABLE), 1e-9), width + 1).astype(np.int64)
        self._ranks = np.where(draw.random(_TABLE) < acceptance, 0, missed)

    @torch.inference_mode()
    def logits(self, rows: Rows) -> Tensor:
        """Return the inner model's logits, its likeliest tokens replaced."""
        logits_MV = self._inner.logits(rows)
        picks_MF = torch.from_numpy(self._picks(*_wanted(rows))).to(logits_MV.device)
        heights_F = 1e4 - torch.arange(self._width, dtype=torch.float32, device=logits_MV.device)
        return logits_MV.scatter_(1, picks_MF, heights_F.expand_as(picks_MF))

    def likeliest(self, rows: Rows, count: int, excluded_M: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return guesses, best first and without the excluded ones, after the inner model's own search for them."""
        self._inner.likeliest(rows, count, excluded_M)
        picks_MF = self._picks(*_wanted(rows))
        left_out_M1 = np.full((len(picks_MF), 1), -1) if excluded_M is None else excluded_M[:, None]
        order_MF = np.argsort(picks_MF == left_out_M1, axis=1, kind="stable")
        return np.take_along_axis(picks_MF, order_MF, axis=1)[:, :count]

    def greedy(self, rows: Rows) -> NDArray[np.int64]:
        """Return the first choices, after the inner model's pass."""
        self._inner.greedy(rows)
        return self._picks(*_wanted(rows))[:, 0]

    def greedy_chain(self, rows: Rows, slots_MK: Int32) -> NDArray[np.int64]:
        """Return chains of first choices, after the inner model's passes."""
        ids_MK = self._inner.greedy_chain(rows, slots_MK)
        tokens_M, positions_M = _wanted(rows)
        for step in range(ids_MK.shape[1]):
            ids_MK[:, step] = tokens_M = self._picks(tokens_M, positions_M + step)[:, 0]
        return ids_MK

    def _picks(self, tokens_M: NDArray[np.int64], positions_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """The guesses (M, F), best first: the target's choice at its rank, its neighbours by number elsewhere."""
        right_M1 = self._successor_V[tokens_M][:, None]
        rank_M1 = self._ranks[(tokens_M * 7919 + positions_M * 104729) % _TABLE][:, None]
        place_F = np.arange(self._width)
        wrong_MF = (right_M1 + place_F + (place_F < rank_M1)) % len(self._successor_V)
        return np.where(place_F == rank_M1, right_M1, wrong_MF)


def _wanted(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return rows.tokens_N[rows.logits_M].astype(np.int64), rows.positions_N[rows.logits_M].astype(np.int64)


@dataclass(frozen=True)
class Sizes:
    """How large engines are: sequences, tokens of a text, the longest draft, the most foreseen verdicts."""

    sequences: int
    length: int
    longest: int
    budget: int

    @property
    def target_pages(self) -> int:
        """Pages for all sequences."""
        return self.sequences * (-(-self.length // PAGE) + 1)

    @property
    def draft_pages(self) -> int:
        """The same with token trees."""
        return self.target_pages + self.sequences * (-(-(self.longest + 1) * (self.budget + 1) // PAGE) + 1)


def open_engine(target: ChainModel, source: DraftSource, sizes: Sizes) -> Engine:
    """Return an engine; several may take turns with one target, so no page outlives a request."""
    scheduling = SchedulerConfig(
        max_model_len=sizes.length,
        max_num_seqs=sizes.sequences,
        max_num_batched_tokens=max(512, sizes.sequences * (sizes.longest + 1)),
        num_speculative_tokens=sizes.longest,
        enable_prefix_caching=False,
    )
    return Engine(
        verifier=TargetVerifier(target),
        scheduler=Scheduler(scheduling, PageManager(target.num_pages, target.page_size, False)),
        source=source,
        max_length=sizes.length,
        vocabulary_size=target.config.vocab_size,
    )


def open_source(transport: Transport, vocabulary: int, plan: Plan) -> RemoteSource:
    """Return a source that waits long: the first pass of a shape is captured, which takes a second."""
    options = RemoteOptions(patience=20.0, silence=60.0, opening=60.0, late="none")
    return RemoteSource(transport, Hello(vocabulary), demand_of(plan), options)


def open_speculator(draft: ChainModel, sizes: Sizes, budget: int) -> Speculator:
    """Return the draft's side."""
    # Deferred, drafts made on the spot are made for all requests together: one by one they would hold a batch up.
    options = SpeculatorOptions(
        num_speculative_tokens=sizes.longest, budget=budget, max_requests=max(sizes.sequences, 2), defer=True
    )
    return Speculator(draft, PageManager(draft.num_pages, draft.page_size), options)


def draft_plan(length: int) -> Plan:
    """Return the plan of classic speculation."""
    return Plan("draft", length, 0, "empirical", "draft", length)


def ssd_plan(length: int, budget: int) -> Plan:
    """Return the plan of SSD."""
    return Plan("ssd", length, budget, "empirical", "draft", length)


def thread_beside(draft: Callable[[], ChainModel], sizes: Sizes, device: torch.device) -> ThreadTransport:
    """Return the way to a draft in a thread, on an accelerator in a stream of the lowest priority."""
    setting = stream_setting(device) if device.type != "cpu" else nullcontext
    # A thread that has its tokens should not wait for the lock behind the other one's whole 5 ms, a pass's time.
    sys.setswitchinterval(5e-5)
    thread = ThreadTransport(lambda: open_speculator(draft(), sizes, sizes.budget), setting=setting)
    thread.wait_until_ready()
    return thread


@dataclass
class Arms:
    """The contestants around one target: plain decoding, classic drafts, SSD where a draft has a place of its own."""

    engines: dict[str, Engine]
    sources: dict[str, RemoteSource]

    def close(self) -> None:
        """End them and what they started."""
        for engine in self.engines.values():
            engine.close()


def open_arms(
    target: ChainModel,
    sizes: Sizes,
    draft: ChainModel,
    beside: Transport,
) -> Arms:
    """Open the contestants.

    `draft` is the one of classic speculation, beside the target; `beside` leads to that of SSD.
    """
    vocabulary = target.config.vocab_size
    classic = InProcessTransport(open_speculator(draft, sizes, 0))
    sources = {
        "sd": open_source(classic, vocabulary, draft_plan(sizes.longest)),
        "ssd": open_source(beside, vocabulary, ssd_plan(sizes.longest, sizes.budget)),
    }
    engines = {"ar": open_engine(target, NoSource(), sizes)}
    engines |= {name: open_engine(target, source, sizes) for name, source in sources.items()}
    return Arms(engines, sources)


def complete(engine: Engine, prompts: Sequence[list[int]], count: int) -> tuple[list[list[int]], float]:
    """Return the greedy continuations, and tokens a second from where every prompt has its first one."""
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    tokens: dict[int, list[int]] = {engine.add(prompt, params): [] for prompt in prompts}
    began, before = None, 0
    while engine.has_work:
        for update in engine.step():
            if update.error is not None:
                raise RuntimeError(update.error)
            tokens[update.request_id] += update.token_ids
        if began is None and all(tokens.values()):
            began, before = time.perf_counter(), sum(map(len, tokens.values()))
    seconds = time.perf_counter() - (began or 0.0)
    return list(tokens.values()), (sum(map(len, tokens.values())) - before) / seconds


def target_stream(device: torch.device) -> AbstractContextManager[object]:
    """Return a block in which the target's work has priority over a draft's on the same device."""
    return torch.cuda.stream(torch.cuda.Stream(device, priority=-1)) if device.type != "cpu" else nullcontext()


def synchronise(device: torch.device) -> None:
    """Wait for the whole device; never while somebody may be capturing a graph."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def graphed(model: LanguageModel, num_pages: int) -> GraphedPagedModel:
    """Return the executor that is measured."""
    return GraphedPagedModel(model, num_pages, PAGE)

"""A model that is a table of laws, with an engine that really speculates, for tests that need its pace in their hands.

Text comes from a real tokenizer, laws from the same functions as everywhere, drafts from a second table, verdicts from
the one verification. Only the network is missing: the next token depends on the last one alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from forethought.core.errors import InputError
from forethought.core.faults import fault
from forethought.core.rng import torch_generator
from forethought.data import Tokenizer, train_tokenizer
from forethought.decode import Chance, Statistics, distribution, draw, verify
from forethought.decode.draft import TokenLogprobs
from forethought.decode.emission import Emission
from forethought.decode.law.grammar import Grammars
from forethought.decode.law.processors import Processors
from forethought.decode.law.sampling import SamplingParams, sample_params
from forethought.decode.metrics import EngineMetrics
from forethought.decode.outputs import Update

TEXT = "the cat sat on the mat and the dog sat on the log; then the cat and the dog ran. naïve café: 猫 🙂\n" * 20
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CONTROL = ("<|start|>", "<|end|>")
DRAFT_LENGTH = 3


def make_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with an end of text and two control tokens."""
    import tokenizers

    inner = tokenizers.Tokenizer.from_str(train_tokenizer([TEXT], 320).serialised)
    inner.add_special_tokens(list(CONTROL))
    return Tokenizer(inner)


@dataclass(eq=False)
class Sample:
    """One text while it is made."""

    group: int
    index: int
    params: SamplingParams
    tokens: list[int]
    emission: Emission
    processors: Processors
    chance: Chance
    constraint: Any = None
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def output(self) -> list[int]:
        return self.emission.token_ids


class TableEngine:
    """At most `slots` samples move at once, one round a step; a step takes `pace` seconds at least."""

    def __init__(self, model: TableModel, *, pace: float, slots: int) -> None:
        self.model, self.pace, self.slots = model, pace, slots
        self.counts = EngineMetrics()
        self.samples: list[Sample] = []
        self.pending: list[Update] = []
        self.next_id = 0
        self.poison: set[int] = set()
        size = model.vocabulary_size
        random = torch_generator(0, "tests.table")
        self.target_VV = 2.5 * torch.randn(size, size, generator=random, dtype=torch.float64)
        self.draft_VV = self.target_VV + 0.7 * torch.randn(size, size, generator=random, dtype=torch.float64)
        # Text is easier to follow when bytes that are no characters of their own are rare.
        for table_VV in (self.target_VV, self.draft_VV):
            table_VV[:, [model.special_tokens[name] for name in CONTROL]] = -30.0
            table_VV[:, 0] -= 2.0

    @property
    def has_work(self) -> bool:
        return bool(self.samples or self.pending)

    def add(self, prompt_tokens: Sequence[int], params: SamplingParams, *, constraint: Any = None) -> int:
        prompt = list(prompt_tokens)
        if not prompt or max(prompt) >= self.model.vocabulary_size:
            raise InputError("the prompt is empty or holds an unknown token")
        group = self.next_id
        self.next_id += params.n
        for index in range(params.n):
            own = sample_params(params, index)
            limit = min(own.max_tokens or 1 << 30, self.model.max_length - len(prompt))
            emission = Emission(own, limit, (0,), self.model.decode)
            processors = Processors(own, prompt, (0,), self.model.vocabulary_size)
            self.samples.append(
                Sample(group, index, own, list(prompt), emission, processors, Chance(own.seed), constraint)
            )
        self.counts.prompt_tokens += len(prompt)
        return group

    def abort(self, request_id: int) -> None:
        for sample in [sample for sample in self.samples if sample.group == request_id]:
            self.samples.remove(sample)
            self.counts.finished["abort"] += 1
            self.pending.append(Update(request_id, sample.index, [], finish_reason="abort"))

    def step(self) -> list[Update]:
        if self.model.step_hook is not None:
            self.model.step_hook()
        began = time.perf_counter()
        updates, self.pending = self.pending, []
        for sample in self.samples[: self.slots]:
            if sample.group in self.poison:
                self.samples.remove(sample)
                updates.append(Update(sample.group, sample.index, [], finish_reason="error", error="poisoned"))
                continue
            updates.append(self.round(sample))
        self.counts.steps += 1
        self.counts.verify_seconds.record(time.perf_counter() - began)
        if (left := self.pace - (time.perf_counter() - began)) > 0:
            time.sleep(left)
        return updates

    def round(self, sample: Sample) -> Update:
        fault("engine.sample")
        params, chance, text = sample.params, sample.chance, sample.tokens
        drafted: list[int] = []
        laws: list[torch.Tensor] = []
        wanted = min(DRAFT_LENGTH, sample.emission.remaining - 1) if params.speculate else 0
        for depth in range(wanted):
            law_V = distribution(self.draft_VV[(text + drafted)[-1]], params)
            laws.append(law_V)
            drafted += draw(law_V.unsqueeze(0), [chance.draft(len(text) + depth)])
        masks = None if sample.constraint is None else sample.constraint.masks(drafted)
        if masks is not None:
            drafted, laws = drafted[: len(masks) - 1], laws[: len(masks) - 1]
        raw_NV = self.target_VV[[text[-1], *drafted]]
        target_NV = distribution(sample.processors(raw_NV, sample.output, drafted, masks), params)
        draft_KV = torch.stack(laws) if laws else target_NV[:0]
        verdict = verify(target_NV, draft_KV, torch.tensor(drafted, dtype=torch.int64), chance.verification(len(text)))
        kept = [*drafted[: verdict.accepted], verdict.bonus]
        logprobs = _logprobs(raw_NV, kept, params.logprobs)
        chunk = sample.emission.push(kept)
        fault("engine.emit")
        text += chunk.token_ids
        if sample.constraint is not None:
            sample.constraint.commit(kept)
        source = "none" if not drafted else ("cache" if sample.statistics.target_forwards % 2 else "draft")
        sample.statistics.count_round(len(drafted), verdict, len(chunk.token_ids))
        self.counts.count_verdict(source, len(drafted), verdict.accepted)
        self.counts.generated_tokens += len(chunk.token_ids)
        if sample.emission.finish_reason is not None:
            self.samples.remove(sample)
            self.counts.finished[sample.emission.finish_reason] += 1
        return Update(
            sample.group, sample.index, chunk.token_ids, chunk.text,
            None if logprobs is None else logprobs[: len(chunk.token_ids)],
            sample.emission.finish_reason, sample.emission.stop_reason,
            rejected=drafted[verdict.accepted :], source=source,
            num_accepted=min(verdict.accepted, len(chunk.token_ids)),
        )  # fmt: skip


class TableModel:
    """The text side of the table."""

    def __init__(self, tokenizer: Tokenizer, *, pace: float = 0.0, slots: int = 8, max_length: int = 4096) -> None:
        self.tokenizer = tokenizer
        self.name = "table"
        self.max_length = max_length
        self.vocabulary_size = tokenizer.vocab_size
        self.chat_template: str | None = TEMPLATE
        self.special_tokens = {"<|endoftext|>": 0} | {
            name: tokenizer.vocab_size - len(CONTROL) + place for place, name in enumerate(CONTROL)
        }
        self.begin_of_text = self.end_of_text = "<|endoftext|>"
        self.step_hook: Callable[[], None] | None = None
        self.is_closed = False
        self.engine = TableEngine(self, pace=pace, slots=slots)
        self._grammars: Grammars | None = None
        self._lock = threading.Lock()

    def encode_prompt(self, text: str) -> list[int]:
        return [0, *self.tokenizer.encode(text)]

    def encode_text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def token_bytes(self, token: int) -> bytes | None:
        return self.tokenizer.token_bytes[token]

    def grammar(self, schema: Mapping[str, Any]) -> Any:
        with self._lock:
            if self._grammars is None:
                self._grammars = Grammars(self.tokenizer, vocabulary_size=self.vocabulary_size, eos_token_ids=(0,))
            return self._grammars.json_schema(schema)

    def metrics(self) -> Mapping[str, Any]:
        return self.engine.counts.to_dict() | {
            "gauges": {"waiting": max(0, len(self.engine.samples) - self.engine.slots)},
            "source": {"lookups_at": [3, 2, 1], "hits_at": [3, 1, 0], "hits_after_miss": 1},
            "plan": None,
        }

    def close(self) -> None:
        self.is_closed = True


def _logprobs(raw_NV: torch.Tensor, kept: list[int], wanted: int | None) -> list[TokenLogprobs] | None:
    if wanted is None:
        return None
    laws_NV = torch.log_softmax(raw_NV, dim=-1).numpy()
    entries = []
    for law_V, token in zip(laws_NV, kept, strict=False):
        order = np.argsort(-law_V, kind="stable")[:wanted]
        rank = 1 + int((law_V > law_V[token]).sum())
        entries.append(TokenLogprobs(float(law_V[token]), rank, [(int(t), float(law_V[t])) for t in order]))
    return entries

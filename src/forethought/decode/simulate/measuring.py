"""A profile of this machine and a real pair of models: curves, link, host time, and texts to replay.

The same prompts are then decoded plainly, with classic drafting and with SSD by the real engine, one at a time and
greedily; their speeds stand in the profile as what a simulation has to reproduce.

Shape suffixes: T tokens, V vocabulary.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forethought.core.errors import DataError, InputError
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.llm import LLM
from forethought.decode.planning.curves import SIZES, Curve, measure
from forethought.decode.planning.model_of_speed import CostCurves
from forethought.decode.served import open_model
from forethought.decode.simulate.behaviour import BEYOND, Behaviour, Recording
from forethought.decode.simulate.calibrating import TimedStep, calibrated, speed
from forethought.decode.simulate.profile import FixedPlan, Profile
from forethought.decode.sources.ngram import NgramIndex
from forethought.nn import LanguageModel
from forethought.nn.paged import open_paged_model

LONGEST = 12
_PAGE_SIZE = 16
_CONTEXTS = (64, 256)
_MAX_PROMPTS_BYTES = 64 << 20


@dataclass
class _Decoded:
    """What decoding prompts one after the other brought: for each its tokens, its text and its steps.

    Steps that read the prompt are left out.
    """

    prompts: list[list[int]] = field(default_factory=list[list[int]])
    texts: list[list[int]] = field(default_factory=list[list[int]])
    steps: list[list[TimedStep]] = field(default_factory=list[list[TimedStep]])

    def some(self, first: int) -> list[TimedStep]:
        """The steps of every second prompt."""
        return [step for steps in self.steps[first::2] for step in steps]


def read_prompts(path: Path, limit: int) -> list[str]:
    """Return the first prompts of a file: one a line, or JSON lines with a field "prompt"; `.gz` is unpacked.

    Raises:
        DataError: the file cannot be read, or holds no prompt.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            lines = stream.read(_MAX_PROMPTS_BYTES).decode("utf-8").splitlines()
        if any(suffix in (".jsonl", ".json") for suffix in path.suffixes):
            lines = [str(json.loads(line)["prompt"]) for line in lines[:limit] if line.strip()]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as prompts ({error!r}); give one a line, or JSON with prompt"
        ) from error
    found = [line for line in lines if line.strip()][:limit]
    if not found:
        raise DataError(f"{path} holds no prompt; give one a line, or JSON lines with a field prompt")
    return found


def measure_profile(
    target: Path,
    draft: Path,
    prompts: Sequence[str],
    *,
    name: str = "this-machine",
    output_tokens: int = 128,
    classic: FixedPlan | None = None,
    ssd: FixedPlan | None = None,
    num_threads: int = 1,
    repeats: int = 15,
) -> Profile:
    """Measure a pair of models on this machine; the machine should have nothing else to do.

    Every other prompt, from the first, sets the parameters; the simulation is held against the others.

    Raises:
        InputError: there are fewer than two prompts, the models do not fit each other, or a prompt does not fit them.
    """
    if len(prompts) < 2:
        raise InputError(f"{len(prompts)} prompt was given; give two or more: half of them set the parameters")
    classic = classic or FixedPlan(num_speculative_tokens=4)
    ssd = ssd or FixedPlan(num_speculative_tokens=4, budget=16, jit_length=4)
    speculative: dict[str, dict[str, Any]] = {
        "ar": {"method": None},
        "sd": {"method": "draft", "model": str(draft), "num_speculative_tokens": classic.num_speculative_tokens},
        "ssd": {
            "method": "ssd",
            "model": str(draft),
            "num_speculative_tokens": ssd.num_speculative_tokens,
            "budget": ssd.budget,
            "fan_out": ssd.fan_out,
            "fallback": ssd.fallback,
        },
    }
    done: dict[str, _Decoded] = {}
    for method, settings in speculative.items():
        with LLM(target, speculative_config=settings, num_threads=num_threads, max_num_seqs=1) as llm:
            done[method] = _decode(llm, prompts, output_tokens)
    loop = CostCurves(
        target=_curve(target, num_threads, repeats),
        draft=_curve(draft, num_threads, repeats),
    )
    # What parameters are read off is never what the simulation is then held against.
    costs = calibrated(loop, *(each.some(0) for each in done.values()))
    model, plainly = open_model(draft).model, done["ar"]
    held = list(zip(plainly.prompts, plainly.texts, strict=True))[1::2]
    recordings = tuple(record(model, a, b) for a, b in held)
    return Profile(
        name=name,
        note="Measured on one machine: curves of passes, put right by steps of the engine on every other prompt, "
        "and the greedy texts of the target on the others, which requests replay.",
        costs=costs,
        datasets={"prompts": Behaviour(recordings=recordings)},
        classic=classic,
        ssd=ssd,
        published={"prompts": {method: speed(each.some(1)) for method, each in done.items()}},
        provenance="The same prompts decoded by the real engine on the same machine, prompts' own steps left out.",
        prompt_tokens=max(2, int(np.mean([len(tokens) for tokens, _ in held]))),
        output_tokens=output_tokens,
    )


def record(draft: LanguageModel, prompt: Sequence[int], text: Sequence[int]) -> Recording:
    """Return how a draft and prompt lookup would have done at every position of a text that a target wrote greedily."""
    tokens = [*prompt, *text]
    with torch.inference_mode():
        logits_TV = draft(torch.tensor([tokens]))[0, len(prompt) - 1 : -1]
    wanted_T1 = torch.tensor(list(text)).unsqueeze(1)
    own_T1 = logits_TV.gather(1, wanted_T1)
    # Among equals the lower id comes first, as everywhere.
    ids_V = torch.arange(logits_TV.shape[1])
    before_TV = (logits_TV > own_T1) | ((logits_TV == own_T1) & (ids_V < wanted_T1))
    ranks = before_TV.sum(dim=1).clamp(max=BEYOND).tolist()
    index, ngrams = NgramIndex(list(prompt)), list[tuple[int, int]]()
    for position, token in enumerate(text):
        proposed = index.continuation(LONGEST)
        actual = text[position : position + len(proposed)]
        right = next((at for at, (a, b) in enumerate(zip(proposed, actual, strict=False)) if a != b), len(actual))
        ngrams.append((len(proposed), right))
        index.extend([token])
    return Recording(ranks=tuple(ranks), ngrams=tuple(ngrams))


def _decode(llm: LLM, prompts: Sequence[str], output_tokens: int) -> _Decoded:
    params = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    done = _Decoded()
    # The first prompt is decoded twice, once to warm up.
    for number, prompt in enumerate([prompts[0], *prompts]):
        tokens = llm.encode(prompt)
        text, steps = _decode_one(llm, tokens, params)
        if number:
            done.prompts.append(tokens)
            done.texts.append(text)
            done.steps.append(steps)
    return done


def _decode_one(llm: LLM, prompt: list[int], params: SamplingParams) -> tuple[list[int], list[TimedStep]]:
    engine, counts = llm.engine, llm.engine.counts
    engine.add(prompt, params)
    text: list[int] = []
    steps: list[TimedStep] = []
    while engine.has_work:
        verify, stall = counts.verify_seconds.sum, counts.stall_seconds.sum
        began = time.perf_counter()
        updates = engine.step()
        total = time.perf_counter() - began
        new = [token for update in updates for token in update.token_ids]
        # Steps until the first token read the prompt.
        if text and updates:
            steps.append(
                TimedStep(
                    num_rows=1 + updates[0].num_accepted + len(updates[0].rejected),
                    context=len(prompt) + len(text),
                    emitted=len(new),
                    source=updates[0].source,
                    verify=counts.verify_seconds.sum - verify,
                    stall=counts.stall_seconds.sum - stall,
                    total=total,
                )
            )
        text += new
    return text, steps


def _curve(directory: Path, num_threads: int, repeats: int) -> Curve:
    model = open_model(directory).model
    sizes = [size for size in SIZES if size + _CONTEXTS[0] <= model.config.max_positions]
    contexts = [context for context in _CONTEXTS if context + sizes[-1] <= model.config.max_positions]
    num_pages = -(-(contexts[-1] + sizes[-1]) // _PAGE_SIZE)
    paged = open_paged_model(model, num_pages=num_pages, page_size=_PAGE_SIZE, num_threads=num_threads)
    return measure(paged, sizes, repeats, contexts=contexts, greedy=True)

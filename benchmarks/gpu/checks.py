"""Whether the ways to compute the same thing agree: logits of three executors, tokens of four ways to decode.

Shape suffixes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pairs import PAGE, Sizes, complete, graphed, open_arms, perturbed, synchronise, thread_beside
from passes import causal_rows, fork_rows
from torch import Tensor

from forethought.core.rng import generator
from forethought.nn import LanguageModel, TorchPagedModel
from forethought.nn.rows import PagedModel

# Of the largest logit. Narrow types round every activation to 8 or 11 bits.
_LOGIT_BARS = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
_MARGIN = 2e-2
_CHUNKS = (37, 1, 1, 6, 16, 1, 3)
_FORK = 8


@torch.inference_mode()
def check_logits(model: LanguageModel) -> dict[str, Any]:
    """Compare graphed, eager and dense logits of a text read in chunks, and of a fork behind it."""
    draw, vocabulary = generator(0, "benchmark.check"), model.config.vocab_size
    text = draw.integers(0, vocabulary, sum(_CHUNKS)).tolist()
    fork = draw.integers(0, vocabulary, _FORK).tolist()
    pages = -(-(len(text) + _FORK) // PAGE)
    graphed_V, eager_V = (
        _read(executor, text, fork) for executor in (graphed(model, pages), TorchPagedModel(model, pages, PAGE))
    )
    dense_V = torch.cat([_dense(model, text), *(_dense(model, [*text, token])[-1:] for token in fork)])
    scale = dense_V.abs().max().item()
    dtype = model.embedding.weight.dtype
    found = {
        "dtype": str(dtype).removeprefix("torch."),
        "graphed_to_dense": (graphed_V - dense_V).abs().max().item() / scale,
        "graphed_to_eager": (graphed_V - eager_V).abs().max().item() / scale,
        "eager_to_dense": (eager_V - dense_V).abs().max().item() / scale,
        "logit_bar": _LOGIT_BARS[dtype],
    }
    return {**found, "logits_agree": found["graphed_to_dense"] <= found["logit_bar"]}


def check_tokens(model: LanguageModel, device: torch.device, num_texts: int, count: int) -> dict[str, Any]:
    """Compare greedy tokens of plain, draft and SSD decoding, and of the dense model, over random prompts."""
    sizes = Sizes(4, 32 + count + 8, 4, 12)
    draft = perturbed(model, 0.05)
    drafts = [graphed(draft, sizes.draft_pages) for _ in range(2)]
    target = graphed(model, sizes.target_pages)
    synchronise(device)
    arms = open_arms(target, sizes, drafts[0], thread_beside(lambda: drafts[1], sizes, device))
    draw = generator(1, "benchmark.check")
    prompts = [draw.integers(0, model.config.vocab_size, 8 + 3 * (i % 8)).tolist() for i in range(num_texts)]
    answers: dict[str, list[list[int]]] = {name: [] for name in arms.engines}
    for start in range(0, num_texts, sizes.sequences):
        for name, engine in arms.engines.items():
            answers[name] += complete(engine, prompts[start : start + sizes.sequences], count)[0]
    accepted = {name: _share(arms.engines[name].counts.to_dict()["counters"]) for name in ("sd", "ssd")}
    arms.close()
    found = compare_tokens(model, prompts, answers)
    return {"num_texts": num_texts, "num_tokens": num_texts * count, "acceptance": accepted, **found}


def compare_tokens(
    model: LanguageModel, prompts: Sequence[list[int]], answers: dict[str, list[list[int]]]
) -> dict[str, Any]:
    """List the first difference of every text: of each way from plain decoding, and of plain decoding from the model.

    In float32 none may be; otherwise one may be between tokens whose dense logits lie close.
    """
    differences: list[dict[str, Any]] = []
    for number, (prompt, plain) in enumerate(zip(prompts, answers["ar"], strict=True)):
        dense_TV = _dense(model, [*prompt, *plain[:-1]])[len(prompt) - 1 :]
        ways = {"dense": dense_TV.argmax(dim=1).tolist()} | {name: own[number] for name, own in answers.items()}
        for name, own in ways.items():
            at = next((place for place, (a, b) in enumerate(zip(own, plain, strict=True)) if a != b), None)
            if at is not None:
                logits = dense_TV[at]
                margin, largest = abs(logits[own[at]] - logits[plain[at]]).item(), logits.max().abs().item()
                close = margin <= _MARGIN * max(1.0, largest)
                differences.append({"way": name, "text": number, "at": at, "margin": margin, "close": close})
    exact = model.embedding.weight.dtype == torch.float32
    agree = not differences if exact else all(each["close"] for each in differences)
    return {"tokens_agree": agree, "differences": differences}


def describe_check(found: dict[str, Any]) -> str:
    """Return one line for people."""
    margins = [each["margin"] for each in found["differences"]]
    widest = f", widest margin {max(margins):.3g}" if margins else ""
    return (
        f"check {found['dtype']}: graphed to dense {found['graphed_to_dense']:.1e} of the largest logit (eager "
        f"{found['eager_to_dense']:.1e}): {'ok' if found['logits_agree'] else 'WRONG'}; {found['num_texts']} texts, "
        f"first differences {len(margins)}{widest}: {'ok' if found['tokens_agree'] else 'WRONG'}"
    )


def _read(executor: PagedModel, text: Sequence[int], fork: Sequence[int]) -> Tensor:
    parts: list[Tensor] = []
    start = 0
    for size in _CHUNKS:
        parts.append(executor.logits(causal_rows(executor, start, text[start : start + size])).clone())
        start += size
    parts.append(executor.logits(fork_rows(executor, start, fork)).clone())
    return torch.cat(parts)


@torch.inference_mode()
def _dense(model: LanguageModel, tokens: Sequence[int]) -> Tensor:
    """The logits (T, V) of the model as it is."""
    return model(torch.tensor([tokens], device=model.embedding.weight.device))[0].float()


def _share(counters: dict[str, int]) -> float:
    return counters["accepted_tokens"] / max(counters["drafted_tokens"], 1)

"""The page of the demo: what was made, that it works, and what speculation gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forethought.app import charts
from forethought.app.page import Figure, Page, Sample, Section, environment_line, table_of
from forethought.app.pages import (
    OpenedRun,
    baseline_sections,
    corpus_section,
    curve_section,
    difference_sections,
    millions,
)
from forethought.core.run import open_run

NAMES = {"none": "plain decoding", "draft": "speculation (draft)", "ssd": "speculative speculation (SSD)"}


def demo_page(run: OpenedRun) -> Page:
    """Return the page of a finished demo, read from its own directory and those of its two fits."""
    result = run["result"]
    target, draft = result["target"], result["draft"]
    runs = {name: open_run(run["directory"] / name) for name in ("target", "draft")}
    decoded = result.get("decode")
    sections = [
        curve_section(runs, target),
        *baseline_sections({"target": target, "draft": draft}),
        *(decode_sections(decoded) if decoded else []),
        size_section(target, draft),
        corpus_section(target["corpus"]),
        *difference_sections(run),
    ]
    return Page(
        title="From a corpus to a model that is served faster",
        lead=f"A target of {millions(target['parameters'])} parameters learned the corpus; a draft of "
        f"{millions(draft['parameters'])} learned the target. The draft then guesses ahead, and the target checks "
        "its guesses in one pass, so the text stays the target's own.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=_figures(target, decoded),
        sections=sections,
    )


def decode_sections(decoded: Mapping[str, Any]) -> list[Section]:
    """Return what speculation did: forwards saved, tokens kept, time, and the text itself."""
    methods = decoded["methods"]
    kept = {
        "greedy token the same": decoded["held_out_greedy_agreement"],
        "drafted token kept, sampling": decoded["held_out_overlap"],
        **{
            f"accepted, greedy, {NAMES[name]}": figures["acceptance_rate"]
            for name, figures in methods.items()
            if figures["acceptance_rate"] is not None
        },
    }
    per_forward = {NAMES[name]: figures["tokens_per_target_forward"] for name, figures in methods.items()}
    same = "the same tokens" if decoded["greedy_tokens_equal"] else "DIFFERENT tokens, which is a defect"
    return [
        Section(
            "How often the draft is right",
            f"How often the target agrees with its draft: on {decoded['held_out_tokens']:,} held-out tokens, and "
            "while decoding.",
            drawing=charts.bars(kept, label="share of tokens"),
        ),
        Section(
            "Tokens for one pass of the target",
            f"Tokens for each forward pass of the target. All methods gave {same} greedily.",
            drawing=charts.bars(per_forward, label="tokens a target forward"),
        ),
        Section(
            "What it costs here",
            "Wall-clock on this one machine, methods in turn on each prompt, median and 95 % interval. Every method "
            "has all of its cores: plain and draft decoding run the target on all of them, SSD gives one to the draft.",
            table=table_of(
                ["method", "tokens/s", "95 %", "speed over plain", "95 %", "foreseen verdicts"],
                [_speed_row(name, figures) for name, figures in methods.items()],
            ),
        ),
        Section(
            "What it writes",
            "The same prompt continued greedily and by sampling.",
            samples=[
                Sample(f"{sample['name']}, {len(sample['token_ids'])} tokens", sample["prompt"], sample["text"])
                for sample in decoded["samples"]
            ],
        ),
    ]


def size_section(target: Mapping[str, Any], draft: Mapping[str, Any]) -> Section:
    """Return the two models side by side."""
    rows = [
        [name, r["parameters"], r["steps"], r["train_tokens_seen"], r["validation_loss"], r["test_loss"],
         r["test_bits_per_byte"], r.get("tokens_per_second")]
        for name, r in (("target", target), ("draft", draft))
    ]  # fmt: skip
    columns = [
        "model",
        "parameters",
        "steps",
        "tokens seen",
        "validation",
        "test",
        "test bits/byte",
        "tokens/s trained",
    ]
    return Section(
        "The two models",
        "Losses in nats a token; the draft learned the target's whole law of the next token (soft labels), "
        "not the text alone.",
        table=table_of(columns, rows),
    )


def _figures(target: Mapping[str, Any], decoded: Mapping[str, Any] | None) -> list[Figure]:
    interval = target["validation_loss_interval"]
    note = f", 95 % {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    figures = [
        Figure("target, validation", f"{target['validation_loss']:.3f}", f"nats a token{note}"),
        Figure("target, test", f"{target['test_bits_per_byte']:.3f}", "bits a byte of text never used"),
    ]
    if decoded:
        draft = decoded["methods"]["draft"]
        figures += [
            Figure("tokens a target pass", f"{draft['tokens_per_target_forward']:.2f}", "with the draft, greedy"),
            Figure("acceptance", f"{draft['acceptance_rate']:.0%}", "of judged draft tokens, greedy"),
        ]
    return figures


def _speed_row(name: str, figures: Mapping[str, Any]) -> list[object]:
    low, high = figures["tokens_per_second_interval"]
    slow, fast = figures["speed_over_plain_interval"]
    return [
        NAMES[name],
        figures["tokens_per_second"],
        f"{low:.0f} to {high:.0f}",
        figures["speed_over_plain"],
        f"{slow:.2f} to {fast:.2f}",
        figures["cache_hit_rate"],
    ]

"""The chapters of text: little data, a guarantee, decoding without changing a token."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from forethought.app import charts
from forethought.app.demo.chapters import chapter, linked
from forethought.app.page import Figure, Sample, Section, table_of
from forethought.app.pages import OpenedRun, baseline_sections, curve_section, millions
from forethought.core.run import open_run

NAMES = {"none": "plain decoding", "draft": "speculation (draft)", "ssd": "speculative speculation (SSD)"}


def pretrain_chapter(run: OpenedRun) -> list[Section]:
    """Return what little data gave, and the two models that are served."""
    result, place = run["result"], run["directory"]
    sections = [] if "together" not in result else [together_section(result["together"])]
    trained = [name for name in ("target", "draft") if name in result]
    if len(trained) == 2:
        runs = {name: open_run(place / name) for name in trained}
        curves = curve_section(runs, result["target"])
        sections += [linked(curves, "target/report.html", "the target's page")]
        sections += baseline_sections({name: result[name] for name in trained})
        sections.append(
            linked(size_section(result["target"], result["draft"]), "draft/report.html", "the draft's page")
        )
    return chapter(sections, "Pretrain: more from the same text")


def together_section(found: Mapping[str, Any]) -> Section:
    """Return one model, the average of several and the student of the average, on held-out text."""
    single, student = statistics.fmean(found["single_losses"]), statistics.fmean(found["student_losses"])
    many = len(found["single_losses"])
    names = ("one model", f"{many} models, averaged", "one student of the average")
    values = dict(zip(names, (single, found["ensemble_loss"], student), strict=True))
    ends = {names[0]: found["single_interval"], names[2]: found["student_interval"]}
    kept = f"; the student keeps {found['retention']:.0%} of the gain" if found["retention"] is not None else ""
    return linked(
        Section(
            "Several models know more than one, and one can learn it",
            f"Held-out loss of models of {millions(found['parameters'])} parameters that read "
            f"{found['train_tokens']:,} tokens {found['epochs']:g} times (lower is better){kept}; lines are 95 % "
            "intervals over seeds.",
            drawing=charts.bars(
                values,
                label="held-out loss, nats a token",
                intervals={name: end for name, end in ends.items() if end is not None},
            ),
        ),
        "members/report.html",
        "each member",
    )


def certify_chapter(found: Mapping[str, Any] | None) -> list[Section]:
    """Return what is guaranteed of a small transformer of the corpus, beside what it and counting reach."""
    if found is None or "skipped" in found:
        return []
    named = {
        "certified: at most": "bound",
        "this model, training text": "train_risk",
        "this model, held-out text": "test_loss",
        "3-gram, held-out text": "trigram_loss",
        "unigram, held-out text": "unigram_loss",
        "knowing nothing": "trivial",
    }
    values = {title: found[name] for title, name in named.items() if found.get(name) is not None}
    section = Section(
        "A guarantee that another machine can check",
        f"With probability 95 % over the draw of the text, this transformer of {found['bits']['total'] / 8000:,.1f} kB "
        f"loses at most {found['bound']:.3f} nats a character, which a fresh process derived again from its message "
        f"({found['verified_bound']:.3f}) and which stands on the card of the decoded model.",
        drawing=charts.bars(values, label="nats a character"),
        samples=[Sample("check it again", "", found["command"])],
    )
    section = linked(section, "certificate/report.html", "the whole certificate")
    return chapter([section], "Certify: a bound, not a hope")


def decode_chapter(result: Mapping[str, Any]) -> list[Section]:
    """Return what speculation did: forwards saved, tokens kept, time, the text itself, and the server."""
    decoded = result.get("decode")
    if decoded is None:
        return []
    methods = decoded["methods"]
    per_forward = {NAMES[name]: figures["tokens_per_target_forward"] for name, figures in methods.items()}
    same = "the same tokens" if decoded["greedy_tokens_equal"] else "DIFFERENT tokens, which is a defect,"
    sections = [
        Section(
            "More tokens for one pass of the large model",
            f"The draft guesses ahead and the target checks the guesses in one pass: all three methods wrote {same} on "
            f"{decoded['num_prompts']} prompts, greedily.",
            drawing=charts.bars(per_forward, label="tokens a forward pass of the target"),
        ),
        _kept_section(decoded),
        Section(
            "What it costs here",
            "Wall-clock on this one machine, methods in turn on each prompt, median and 95 % interval; SSD gives one "
            "core to the draft, the others keep all for the target.",
            table=table_of(
                ["method", "tokens/s", "95 %", "speed over plain", "95 %", "foreseen verdicts"],
                [_speed_row(name, figures) for name, figures in methods.items()],
            ),
        ),
        Section(
            "What it writes",
            f"The same prompt continued greedily and by sampling{_served(result.get('serve'))}.",
            samples=[
                Sample(f"{sample['name']}, {len(sample['token_ids'])} tokens", sample["prompt"], sample["text"])
                for sample in decoded["samples"]
            ],
        ),
    ]
    return chapter(sections, "Decode: the same text, sooner")


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
        "Losses in nats a token; the draft learned the target's whole law of the next token (soft labels), not "
        "the text alone.",
        table=table_of(columns, rows),
    )


def text_figures(result: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of text that stand at the top."""
    figures = []
    if "together" in result:
        found = result["together"]
        single = statistics.fmean(found["single_losses"])
        name = f"{len(found['single_losses'])} models averaged"
        figures.append(Figure(name, f"{found['ensemble_loss'] / single - 1:+.1%}", "loss against one, on scarce text"))
    certified = result.get("certify") or {}
    if "bound" in certified:
        figures.append(Figure("certified", f"≤ {certified['bound']:.2f}", "nats a character, 95 % sure"))
    if "decode" in result:
        draft = result["decode"]["methods"]["draft"]
        note = f"with the draft, {draft['acceptance_rate']:.0%} of its tokens kept"
        figures.append(Figure("tokens a target pass", f"{draft['tokens_per_target_forward']:.2f}", note))
    return figures


def _kept_section(decoded: Mapping[str, Any]) -> Section:
    kept = {
        "greedy token the same": decoded["held_out_greedy_agreement"],
        "drafted token kept, sampling": decoded["held_out_overlap"],
        **{
            f"accepted, greedy, {NAMES[name]}": figures["acceptance_rate"]
            for name, figures in decoded["methods"].items()
            if figures["acceptance_rate"] is not None
        },
    }
    return Section(
        "How often the draft is right",
        f"How often the target agrees with its draft, on {decoded['held_out_tokens']:,} held-out tokens and while "
        "decoding.",
        drawing=charts.bars(kept, label="share of tokens"),
    )


def _served(found: Mapping[str, Any] | None) -> str:
    if found is None or "skipped" in found:
        return ""
    told = "the same text" if found["equal"] else "ANOTHER text, which is a defect"
    tokens = found["usage"]["completion_tokens"]
    return f"; a server on loopback gave {told} to an HTTP client, {tokens} tokens in {found['seconds']:.2f} s"


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

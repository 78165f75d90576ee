"""The pages of a fit and of any other run, made of sections that other pages use too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forethought.app import charts
from forethought.app.page import Figure, Page, Section, environment_line, table_of

OpenedRun = Mapping[str, Any]


def fit_page(run: OpenedRun) -> Page:
    """Return the page of a `pretrain fit` run."""
    result = run["result"]
    return Page(
        title=f"A language model of {millions(result['parameters'])} parameters",
        lead=f"Trained for {result['steps']:,} steps ({result['epochs']:.2g} epochs) on "
        f"{result['corpus']['splits']['train']['tokens']:,} tokens; held-out text was never seen in training.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=fit_figures(result),
        sections=[
            curve_section({"": run}, result),
            *baseline_sections({"this model": result}),
            corpus_section(result["corpus"]),
        ],
    )


def generic_page(run: OpenedRun) -> Page:
    """Return the page of any other run, or of one that is not finished: its curves and its figures."""
    name = run["directory"].name
    recipe = run["config"].get("recipe")
    done = "finished" if run["result"] else "not finished"
    return Page(
        title=f"Run {name}",
        lead=f"Recipe {recipe}, {done}, {len(run['metrics']):,} records.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        sections=[*metric_sections(run), *difference_sections(run)],
    )


def fit_figures(result: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a fit that stand at the top of a page."""
    low_high = result.get("validation_loss_interval")
    figures = [
        Figure(
            "validation loss",
            f"{result['validation_loss']:.3f}",
            "nats a token" + (f", 95 % {low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else ""),
        ),
        Figure("validation", f"{result['validation_bits_per_byte']:.3f}", "bits a byte of text"),
        Figure(
            "parameters", millions(result["parameters"]), f"{millions(result['parameters_non_embedding'])} in blocks"
        ),
    ]
    if result.get("tokens_per_second"):
        low, high = result["tokens_per_second_interval"]
        note = f"tokens/s in training, 95 % {low:,.0f} to {high:,.0f}"
        figures.append(Figure("speed", f"{result['tokens_per_second']:,.0f}", note))
    return figures


def curve_section(runs: Mapping[str, OpenedRun], result: Mapping[str, Any]) -> Section:
    """Return the training and validation curves of one or more fits, with the classical baselines as levels."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for name, run in runs.items():
        label = f"{name}, " if name else ""
        train = [r for r in run["metrics"] if r.get("event") == "train"]
        held = [r for r in run["metrics"] if r.get("event") == "evaluation" and "validation_loss" in r]
        if train:
            losses = [r.get("text_loss", r["loss"]) for r in train]
            series[f"{label}training"] = ([r["step"] for r in train], charts.smooth(losses))
        if held:
            series[f"{label}validation"] = ([r["step"] for r in held], [r["validation_loss"] for r in held])
    return Section(
        "It learns",
        "The loss on the text being read (smoothed) and on held-out text falls with every step; "
        "dashed, what counting words in a row can do.",
        drawing=charts.curves(series, x_label="step", y_label="nats a token", levels=_levels(result)),
    )


def baseline_sections(results: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Return the comparison of fits with counting, where the baselines were measured."""
    first = next(iter(results.values()))
    if "kneser_ney_5_loss" not in first:
        return []
    values = {"unigram": first["unigram_loss"], "5-gram Kneser-Ney": first["kneser_ney_5_loss"]}
    values |= {name: result["validation_loss"] for name, result in results.items()}
    intervals = {
        name: r["validation_loss_interval"] for name, r in results.items() if r.get("validation_loss_interval")
    }
    return [
        Section(
            "It beats counting" if first["validation_loss"] < values["5-gram Kneser-Ney"] else "Against counting",
            "Held-out loss beside two classical models of the same tokens (lower is better): how often each token "
            "occurs, and the best-smoothed counts of five tokens in a row, both taken from "
            f"{first['baseline_train_tokens']:,} training tokens.",
            drawing=charts.bars(values, label="validation loss, nats a token", intervals=intervals),
        )
    ]


def corpus_section(corpus: Mapping[str, Any]) -> Section:
    """Return what the corpus holds and what was kept apart."""
    rows = [[name, part["documents"], part["tokens"], part["bytes"]] for name, part in corpus["splits"].items()]
    leaks = corpus.get("leaks", {})
    return Section(
        "What it read",
        f"{corpus['documents']:,} documents, {corpus['bytes']:,} bytes, {corpus['bytes_per_token']:.3g} bytes a token; "
        f"{corpus['duplicates_removed']:,} duplicates removed; documents that shared runs of 13 words with the "
        f"training split were treated as the leak policy says ({leaks.get('policy', 'unknown')}).",
        table=table_of(["split", "documents", "tokens", "bytes"], rows),
    )


def metric_sections(run: OpenedRun) -> list[Section]:
    """Return one chart for each figure in the run's records."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for record in run["metrics"]:
        for name, value in record.items():
            if name in ("event", "step") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            x, y = series.setdefault(f"{record.get('event', 'record')}: {name.replace('_', ' ')}", ([], []))
            x.append(float(record.get("step", len(x))))
            y.append(float(value))
    return [
        Section(name, f"{len(x):,} records.", drawing=charts.curves({name: (x, y)}, x_label="step", y_label=name))
        for name, (x, y) in series.items()
        if len(x) > 1
    ]


def difference_sections(run: OpenedRun) -> list[Section]:
    """Return what the run's config changes in its recipe."""
    changes = run["config"].get("difference") or {}
    rows = [[name, str(change["recipe"]), str(change["given"])] for name, change in changes.items()]
    if not rows:
        return []
    return [
        Section(
            "Settings", "Where this run departs from its recipe.", table=table_of(["name", "recipe", "given"], rows)
        )
    ]


def millions(count: int) -> str:
    """Return a count of parameters as people say it."""
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count / 1e3:.3g} k"


def _levels(result: Mapping[str, Any]) -> dict[str, float]:
    named = {"unigram": result.get("unigram_loss"), "5-gram Kneser-Ney": result.get("kneser_ney_5_loss")}
    return {name: value for name, value in named.items() if value is not None}

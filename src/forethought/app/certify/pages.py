"""The pages of certificates and of phenomena: what is guaranteed first, then what it rests on, then what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from forethought.app import charts
from forethought.app.page import Figure, Page, Section, environment_line, table_of
from forethought.app.pages import OpenedRun

NAMES = {
    "binomial": "exact binomial (the certificate)",
    "chernoff_kl": "Chernoff-kl",
    "maurer_kl": "PAC-Bayes-kl",
    "catoni": "Catoni, paid grid",
    "mcallester": "McAllester",
    "hoeffding": "Hoeffding",
    "freedman": "exact Freedman (the certificate)",
    "freedman_closed": "Freedman, closed form",
    "azuma": "Azuma",
}


_DIVERGENCE = {"stochastic": "KL of posterior and prior", "requential": "log-ratio of the labels"}


def certificate_page(run: OpenedRun) -> Page:
    """Return the page of a `certify run`."""
    result = run["result"]
    state = "VACUOUS: it says no more than the trivial predictor" if result["vacuous"] else "not vacuous"
    return Page(
        title=f"A certificate: {result['subject']}, {_amount(result, result['bound'])}",
        lead=f"{result['statement']} The certificate is {state}.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=certificate_figures(result),
        sections=[section for section in _sections(result) if section is not None],
    )


def certificate_figures(result: Mapping[str, Any]) -> list[Figure]:
    """Return the figures that stand at the top."""
    delta = result["delta"]["delta"] if isinstance(result["delta"], Mapping) else result["delta"]
    sure = f"with probability {1 - delta:.6g}" + (", VACUOUS" if result["vacuous"] else "")
    figures = [
        Figure("certified at most", _amount(result, result["bound"]), sure),
        Figure("on the training data", _amount(result, result["train_risk"]), f"{result['n']:,} examples or tokens"),
        Figure("trivial predictor", _amount(result, result["trivial"]), "needs no data"),
    ]
    if isinstance(result.get("bits"), Mapping):
        figures.append(Figure("message", f"{result['bits']['total']:,.0f}", "bits"))
    return figures


def _sections(result: Mapping[str, Any]) -> list[Section | None]:
    return [
        _bounds(result),
        _ledger(result),
        _beside(result),
        _candidates(result),
        _path(result),
        _guarantee(result),
        _findings(result),
    ]


def _bounds(result: Mapping[str, Any]) -> Section | None:
    if "bounds" not in result:
        return None
    values: dict[str, float] = {NAMES.get(str(name), str(name)): value for name, value in result["bounds"].items()}
    values["on the training data"] = result["train_risk"]
    values["trivial predictor"] = result["trivial"]
    return Section(
        "All bounds side by side",
        "The same message under every bound. Only the first is certified, the others are for comparison with papers; "
        "nothing is clipped, so a value above the trivial predictor's stands as it is and is vacuous.",
        drawing=charts.bars(values, label="upper bound on the risk"),
    )


def _ledger(result: Mapping[str, Any]) -> Section | None:
    bits = result.get("bits")
    if not isinstance(bits, Mapping):
        return None
    names = {"divergence": _DIVERGENCE.get(str(result.get("method")), "divergence")}
    bits = {names.get(str(name), str(name)): value for name, value in bits.items()}
    delta = result["delta"]
    rows = [["delta of this certificate", delta["delta"] if isinstance(delta, Mapping) else delta]]
    if isinstance(delta, Mapping):
        rows += [["delta spent before on these data", delta["spent_before"]], ["delta of all together", delta["total"]]]
    if result.get("other_ledgers"):
        rows.append(["other runs here on these data, with ledgers of their own", len(result["other_ledgers"])])
    return Section(
        "The ledger",
        "What the network costs in bits under the prior that was declared, and the failure probability drawn for it. "
        "Choices pay for every grid, used or not. Certificates of one data set hold together where they drew from one "
        "ledger.",
        drawing=charts.bars({name: float(value) for name, value in bits.items()}, label="bits"),
        table=table_of(["share", "probability"], rows),
    )


def _beside(result: Mapping[str, Any]) -> Section | None:
    held = result.get("holdout")
    rows: list[list[object]] = []
    if held:
        rows.append(["held-out risk", held["risk"]])
        rows.append(
            ["95 % interval of it (Clopper-Pearson)", f"{held['interval'][0]:.4f} to {held['interval'][1]:.4f}"]
        )
        rows.append([f"bound from {held['n']:,} unused examples alone, same confidence", held["bound"]])
    for name, label in (
        ("test_loss", "loss of the certified model on held-out tokens, nats"),
        ("trigram_loss", "3-gram (Kneser-Ney) on the same tokens"),
        ("unigram_loss", "unigram on the same tokens"),
        ("uniform_loss", "uniform law"),
    ):
        if result.get(name) is not None:
            rows.append([label, result[name]])
    if not rows:
        return None
    rows.insert(0, ["certificate", result["bound"]])
    return Section(
        "Beside it: data that were not used",
        "Held-out data are the honest competitor: they say more about this network for the same number of examples. A "
        "certificate needs none of them, so all data may train.",
        table=table_of(["", "value"], rows),
    )


def _candidates(result: Mapping[str, Any]) -> Section | None:
    rows = result.get("candidates")
    if not rows:
        return None
    columns = list(rows[0])
    return Section(
        "What was tried",
        "All candidates are covered by one prior, so taking the best is free.",
        table=table_of([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows]),
    )


def _path(result: Mapping[str, Any]) -> Section | None:
    path = result.get("path")
    if not path:
        return None
    steps = [float(step["step"]) for step in path]
    series = {name: (steps, [float(step[key]) for step in path]) for name, key in
              (("certificate", "bound"), ("training error", "train_risk"))}  # fmt: skip
    return Section(
        "Over training",
        "EXPERIMENTAL. The certificate of every inspected student; the union over them is paid.",
        drawing=charts.curves(series, x_label="step", y_label="error"),
    )


def _guarantee(result: Mapping[str, Any]) -> Section:
    said = [
        ["is", "a statement about this decoded network and fresh examples of the same law"],
        ["is", "a probability over the draw of the training data, not over anything in a single prediction"],
        ["is not", "a statement about another law: other sources, other times, shifted inputs"],
        ["is not", "a statement about single inputs, other measures, or the network before compression"],
        ["rests on", "examples drawn independently (tokens: on nothing but the order in which they came)"],
        ["rests on", "a prior that was fixed without the data; only a declaration written beforehand can show that"],
    ]
    if result.get("method") == "stochastic":
        said[0] = [
            "is",
            "a statement about networks drawn afresh from the posterior, and fresh examples of the same law",
        ]
    return Section(
        "What is guaranteed, and what is not",
        str(result["statement"]),
        table=table_of(["the certificate", "what"], said),
    )


def _findings(result: Mapping[str, Any]) -> Section | None:
    findings = result.get("findings") or []
    rows = [[finding["name"], finding["severity"], finding["message"]] for finding in findings]
    if not rows:
        return None
    return Section(
        "Assumptions that could not be shown",
        "Nothing here forbids the certificate; each is for the reader to judge.",
        table=table_of(["name", "severity", "what"], rows),
    )


def phenomena_page(run: OpenedRun, outcomes: Sequence[Mapping[str, Any]]) -> Page:
    """Return the page of a `certify phenomena` run."""
    shown = sum(all(outcome["holds"].values()) for outcome in outcomes)
    return Page(
        title="Not so mysterious: the phenomena",
        lead=f"{len(outcomes)} phenomena of overparametrised models, measured here; in {shown} of them every expected "
        "shape showed, and where one did not, its table says so. They are consistent with soft inductive biases and "
        "countable-hypothesis bounds (arXiv 2503.02113); they explain nothing by themselves.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=[Figure("phenomena", str(len(outcomes)), f"{shown} with every expected shape")],
        sections=[section for outcome in outcomes for section in outcome_sections(outcome)],
    )


def outcome_sections(outcome: Mapping[str, Any]) -> list[Section]:
    """Return the sections of one phenomenon: its panels, its tables, and which expected shapes showed."""
    sections = [
        Section(f"{outcome['title']}: {panel['title']}", outcome["sentence"] if number == 0 else "", _draw(panel))
        for number, panel in enumerate(outcome["panels"])
    ]
    for rows in outcome["tables"]:
        sections.append(
            Section(f"{outcome['title']}: {rows['title']}", "", table=table_of(rows["columns"], rows["rows"]))
        )
    held = [[name, "yes" if value else "NO, not in this run"] for name, value in outcome["holds"].items()]
    sections.append(
        Section(f"{outcome['title']}: did it show?", _settings(outcome), table=table_of(["expected", "seen"], held))
    )
    return sections


def _draw(panel: Mapping[str, Any]) -> str:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for name, (x, y) in panel["series"].items():
        points = [(_axis(a, panel["log_x"]), _axis(b, panel["log_y"])) for a, b in zip(x, y, strict=True)]
        kept = [(a, b) for a, b in points if a is not None and b is not None]
        series[name] = ([a for a, _ in kept], [b for _, b in kept])
    label = {axis: panel[f"{axis}_label"] + (", log10" if panel[f"log_{axis}"] else "") for axis in ("x", "y")}
    levels = {
        name: level for name, value in panel["levels"].items() if (level := _axis(value, panel["log_y"])) is not None
    }
    return charts.curves(series, x_label=label["x"], y_label=label["y"], levels=levels)


def _axis(value: float | None, logarithmic: bool) -> float | None:
    if value is None or (logarithmic and value <= 0):
        return None
    return math.log10(value) if logarithmic else value


def _settings(outcome: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in outcome["settings"].items())
    return f"Budget {outcome['budget']}, seed {outcome['seed']}: {settings}."


def _amount(result: Mapping[str, Any], value: float) -> str:
    return f"{value:.3f} nats" if result["trivial"] > 1.0 or "uniform_loss" in result else f"{value:.2%}"

"""Draw the committed results of benchmarks and studies as small SVG files, light or dark as the reader's page is.

Every drawing is a function of the JSON alone and uses the charts of the reports. A result without a drawing of its own
gets one of all its figures that have an interval; `write_reference.py` writes the files and compares them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from forethought.app.charts import bars, curves

Record = Mapping[str, Any]
Row = tuple[str, float, float, float]
STYLE = (
    "<style>svg{color:#1c2128;--faint:#8b949e;font-family:sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3;--faint:#8b949e}}</style>"
)
MAX_ROWS = 16


def all_charts(results: Path) -> dict[str, str]:
    """Return the SVG of every result that can be drawn, by the name of its JSON ("decode", "studies/world_pusht")."""
    found: dict[str, str] = {}
    for path in [*sorted(results.glob("*.json")), *sorted((results / "studies").glob("*.json"))]:
        name = path.relative_to(results).with_suffix("").as_posix()
        drawing = chart(name, json.loads(path.read_text()))
        if drawing is not None:
            found[name] = drawing
    return found


def chart(name: str, record: Record) -> str | None:
    """Return the drawing of one result, or None where nothing in it can be drawn."""
    own = DRAWINGS.get(name)
    if own is not None:
        try:
            return standalone(own(record))
        except (KeyError, IndexError, TypeError, ValueError):
            pass  # A study under way has not all its parts yet: what it has is drawn.
    rows = [row for row in intervals(record.get("summary", record.get("figures", {}))) if row[2] <= row[1] <= row[3]]
    return standalone(points(rows[:MAX_ROWS], "value with its interval")) if rows else None


def standalone(drawing: str) -> str:
    """Return an SVG that stands in a file of its own: with colours for light and dark pages, and short numbers."""
    # Only what places things is cut; the figures that are written are left as they are.
    drawing = re.sub(r"<(?!svg)[^>]*>", lambda tag: re.sub(r"(\.\d{2})\d+", r"\1", tag[0]), drawing)
    return re.sub(r"(<svg[^>]*>)", r"\1" + STYLE, drawing, count=1) + "\n"


def intervals(value: Any, name: str = "") -> Iterator[Row]:
    """Yield every figure that has an interval: {"mean", "interval"}, {"ratio", "low", "high"} or [value, low, high]."""
    if isinstance(value, Mapping):
        middle = value.get("mean", value.get("ratio"))
        bounds = value.get("interval", [value.get("low"), value.get("high")])
        if numbers([middle, *(bounds or [])]) and len(bounds) == 2:
            yield name, float(middle), float(bounds[0]), float(bounds[1])
            return
        for key, inner in value.items():
            yield from intervals(inner, f"{name}, {key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 3 and numbers(value):
        yield name, float(value[0]), float(value[1]), float(value[2])


def numbers(values: Sequence[Any]) -> bool:
    """Whether all are numbers."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def points(rows: Sequence[Row], label: str) -> str:
    """Draw figures with their intervals as bars."""
    values = {name: middle for name, middle, _, _ in rows}
    return bars(values, label=label, intervals={name: (low, high) for name, _, low, high in rows})


def _flat(record: Record, suffixes: tuple[str, str] | None = ("_low", "_high")) -> list[Row]:
    """The figures of a benchmark whose intervals stand beside them under other names."""
    figures = record["figures"]
    if suffixes is None:
        named = {name.removesuffix("_interval"): value for name, value in figures.items() if name.endswith("_interval")}
        return [(name.replace("_", " "), figures[name], *bounds) for name, bounds in named.items()]
    low, high = suffixes
    names = [name for name in figures if f"{name}{low}" in figures and f"{name}{high}" in figures]
    return [
        (name.replace("_", " "), figures[name], figures[f"{name}{low}"], figures[f"{name}{high}"]) for name in names
    ]


def _ending(record: Record, *parts: str) -> list[Row]:
    return [row for row in _flat(record) if any(part in row[0] for part in parts)]


def _decode(record: Record) -> str:
    rows = [(name.replace("_", " "), *_ratio(each)) for name, each in record["figures"]["ratios"].items()]
    return points(rows, "times as fast, greedy, one text at a time")


def _ratio(each: Record) -> tuple[float, float, float]:
    return each["ratio"], each["low"], each["high"]


def _kernels(record: Record) -> str:
    figures, sizes = record["figures"], (1, 4, 8, 16)
    models = sorted({name.split("_")[0] for name in figures if "_float32_rows_1_ms" in name})
    lines = {model: (sizes, [figures[f"{model}_float32_rows_{n}_ms"] for n in sizes]) for model in models}
    return curves(lines, x_label="tokens of a pass", y_label="milliseconds, float32, one core")


def _corpus(record: Record) -> str:
    stages = {name.removeprefix("seconds_"): value for name, value in record["figures"].items() if "seconds_" in name}
    return bars({name.replace("_", " "): value for name, value in stages.items()}, label="seconds for 100 MB of text")


def _startup(record: Record) -> str:
    figures = record["figures"]
    rows = [(name, figures[f"{name}_seconds"], figures[f"{name}_low"], figures[f"{name}_high"])
            for name in ("python", "import", "help", "import_torch")]  # fmt: skip
    return points(rows, "seconds")


def _certify_rows(names: Mapping[str, str], wanted: Mapping[str, str]) -> Callable[[Record], str]:
    """Draw certificate, errors and hold-out of groups of a certify study: means with the range over seeds."""

    def draw(record: Record) -> str:
        rows = [
            (f"{title}: {said}", group[key]["mean"], group[key]["low"], group[key]["high"])
            for name, title in names.items()
            for key, said in wanted.items()
            if key in (group := record["summary"][name])
        ]
        return points(rows, "mean and range over seeds")

    return draw


def _mnist(record: Record) -> str:
    values = {}
    for row in record["rows"]:
        values[f"seed {row['seed']}: certificate"] = row["bound"]
        values[f"seed {row['seed']}: on the data"] = row["train_risk"]
        values[f"seed {row['seed']}: on the test"] = row["holdout"]["risk"]
    return bars(values, label="error")


def _certify_ladder(record: Record) -> str:
    table = record["summary"]["tables"][0]
    column = {name: [row[at] for row in table["rows"]] for at, name in enumerate(table["columns"])}
    lines = {name: (column["width"], column[name]) for name in ("certificate", "test loss", "train loss")}
    return curves(lines, x_label="width", y_label="nats a character")


def _phenomena(record: Record) -> str:
    (row,) = [each for each in record["rows"] if each["phenomenon"] == "degree-descent"]
    table = row["tables"][0]
    column = {name: [float(line[at]) for line in table["rows"]] for at, name in enumerate(table["columns"])}
    kept = [at for at, value in enumerate(column["test RMSE"]) if value < 5.0]
    lines = {name: ([column["degree"][at] for at in kept], [column[name][at] for at in kept])
             for name in ("test RMSE", "train RMSE")}  # fmt: skip
    return curves(lines, x_label="degree of the polynomial", y_label="RMSE, medians over seeds")


def _ahead(record: Record) -> str:
    lines: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for key, cell in record["summary"].items():
        found = re.match(r"delay ([\d.]+), (.+)", key)
        if found and found[2] != "ideal":
            lines[found[2]][0].append(float(found[1]))
            lines[found[2]][1].append(100 * cell["idle"])
    return curves(lines, x_label="planning delay, control periods", y_label="idle time, %")


def _defect(record: Record) -> str:
    errors = record["summary"]["rollout_errors"]
    names = {"new_before": "changed body, before", "new_after": "changed body, after", "old_after": "old body, after"}
    lines = {said: (range(1, len(errors[key]["model"]) + 1), errors[key]["model"]) for key, said in names.items()}
    return curves(lines, x_label="steps ahead", y_label="error, standard deviations")


def _horizon(record: Record) -> str:
    lines = {
        f"{task}, {kind}": (range(1, len(found[kind]) + 1), found[kind])
        for task, found in record["summary"]["errors"].items()
        for kind in ("multi-step", "one-step")
        if kind in found
    }
    return curves(lines, x_label="steps ahead", y_label="error, standard deviations")


def _reward(record: Record) -> str:
    lines: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for key, cell in record["summary"].items():
        height, _, wish = key.partition(" ")
        lines[wish][0].append(float(height))
        lines[wish][1].append(cell["distance"]["mean"])
    return curves(lines, x_label="height asked for, m", y_label="mean distance to it, m")


def _tasks(record: Record) -> str:
    rows = [
        (f"{task}: {method}", *(figures["mean"], *figures["interval"]))
        for task, methods in record["summary"]["tasks"].items()
        for method, figures in methods.items()
        if len(methods) > 1 and isinstance(figures, Mapping) and "mean" in figures
    ]
    return points(rows, "normalised score")


def _precision(record: Record) -> str:
    rows = [(name, *cell["same_pick"]) for name, cell in record["summary"].items()]
    return points(rows, "share of plans that pick what fp32 picks")


def _continued(record: Record) -> str:
    arms = record["summary"]["replay 0"]
    rows = [(name, arms[name]["measured"]["multiplier"], *arms[name]["measured"]["interval"])
            for name in ("single", "soup", "ensemble")]  # fmt: skip
    return points(rows, "times the text that plain training needs")


def _frontier(record: Record) -> str:
    rows = [(row["option"], row["difference"], *row["interval"]) for row in record["rows"]]
    return points(rows, "nats a token against the baseline")


def _ladder(record: Record) -> str:
    data = max(
        {row["data"] for row in record["rows"]},
        key=lambda each: (sum(row["data"] == each for row in record["rows"]), each),
    )
    lines: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in sorted(record["rows"], key=lambda row: row["parameters"]):
        if row["data"] == data:
            name = f"{row['recipe']} (of members this size)" if row["recipe"] == "ensemble" else row["recipe"]
            lines[name][0].append(row["parameters"] / 1e3)
            lines[name][1].append(row["loss"])
    return curves(lines, x_label="thousand parameters", y_label=f"nats a token, {data:,} training tokens")


def _lm_eval(record: Record) -> str:
    return bars({name: record["summary"][name] for name in ("comparisons", "same")}, label="comparisons")


def _pusht(record: Record) -> str:
    return points([(name, *values) for name, values in record["summary"]["success"].items()], "share of goals reached")


def _tworooms(record: Record) -> str:
    rows = [(name.replace("_", ", "), *values) for name, values in record["summary"].items()
            if name.startswith(("near_", "far_")) and isinstance(values, list)]  # fmt: skip
    return points(rows, "share of goals reached")


_ERRORS = {"bound": "certificate", "train_risk": "on the data", "holdout.risk": "on the test"}
_LOSSES = {"bound": "certificate", "test_loss": "on the test", "trigram_loss": "3-gram on the test"}
DRAWINGS: dict[str, Callable[[Record], str]] = {
    "certify": lambda record: points(_ending(record, " ms"), "milliseconds"),
    "control": lambda record: points([row for row in _flat(record, None) if "over" in row[0]], "times as fast"),
    "corpus": _corpus,
    "decode": _decode,
    "kernels": _kernels,
    "pretrain": lambda record: points(_ending(record, "batched", "taken"), "times the speed of members apart"),
    "startup": _startup,
    "train": lambda record: points(_ending(record, "over bare"), "times the speed of a bare loop"),
    "world": lambda record: points(_ending(record, "train over"), "times as fast"),
    "studies/certify_digits": _certify_rows({"real": "digits", "random": "random labels"}, _ERRORS),
    "studies/certify_ladder": _certify_ladder,
    "studies/certify_mnist": _mnist,
    "studies/certify_phenomena": _phenomena,
    "studies/certify_tokens": _certify_rows({"shakespeare": "Shakespeare", "novels": "novels"}, _LOSSES),
    "studies/certify_uncoded": _certify_rows({"requential": "requential", "stochastic": "stochastic"}, _ERRORS),
    "studies/control_ahead": _ahead,
    "studies/control_defect": _defect,
    "studies/control_horizon": _horizon,
    "studies/control_precision": _precision,
    "studies/control_reward": _reward,
    "studies/control_tasks": _tasks,
    "studies/pretrain_continued": _continued,
    "studies/pretrain_frontier": _frontier,
    "studies/pretrain_ladder": _ladder,
    "studies/pretrain_lm_eval": _lm_eval,
    "studies/world_pusht": _pusht,
    "studies/world_tworooms": _tworooms,
}

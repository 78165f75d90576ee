"""The pages of a ladder, of a batched run and of continued pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forethought.app import charts
from forethought.app.efficiency import law_lines
from forethought.app.ladder import ends, measured_words
from forethought.app.page import Figure, Page, Section, environment_line, table_of
from forethought.app.pages import OpenedRun, corpus_section, millions
from forethought.pretrain.scores import open_scores, subset_curve


def ladder_page(run: OpenedRun) -> Page:
    """Return the page of a `pretrain ladder` run: recipes over size, members and data, laws and multipliers."""
    result = run["result"]
    rows, laws = result["rows"], result["laws"]
    sections = [_size_section(rows, laws, data) for data in sorted({row["data"] for row in rows})]
    sections += _member_sections(laws)
    sections += _data_sections(rows)
    sections += [_efficiency_section(laws), _laws_section(laws), _rows_section(rows), _points_section(result["points"])]
    if result["left_out"]:
        table = table_of(["left out", "seconds"], [[item["name"], item["seconds"]] for item in result["left_out"]])
        sections.append(Section("Left out", "What the budget of time did not afford.", table=table))
    best = min(rows, key=lambda row: row["loss"])
    return Page(
        title="A ladder of recipes",
        lead=f"{len(rows)} rungs, each tuned on {result['tuned_on']} and reported on {result['reported_on']}, "
        f"with at least {result['noise_seeds']} seeds.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=[
            Figure("best loss", f"{best['loss']:.3f}", f"nats a token: {best['recipe']}, {best['shape']}"),
            Figure("certified", f"{sum(row['certified'] for row in rows)} of {len(rows)}", "tuned points"),
        ],
        sections=[*sections, corpus_section(result["corpus"])],
    )


def members_page(run: OpenedRun) -> Page:
    """Return the page of a batched run: each candidate's losses, their training, and the ensemble by its size."""
    result = run["result"]
    curve = subset_curve(open_scores(run["directory"] / "scores").rows("report"))
    rows = [[m["name"], m.get("tau"), m.get("lr"), m["tune_loss"], m["report_loss"]] for m in result["members"]]
    sections = [
        Section(
            "Candidates",
            "Every model that the run left: its members, and averages or snapshots where they were kept.",
            table=table_of(["name", "tau", "lr", "tuning loss", "reported loss"], rows),
        ),
        _training_section(run),
    ]
    if len(curve) > 1:
        sizes = [float(size) for size in range(1, len(curve) + 1)]
        drawing = charts.curves({"mean over subsets": (sizes, curve)}, x_label="members", y_label="nats a token")
        sections.append(Section("Together", "The loss of averaged probabilities over subsets of each size.", drawing))
    return Page(
        title=f"{len(curve)} models of {millions(result['parameters'])} parameters",
        lead=f"{result['epochs']:g} passes over {result['train_tokens']:,} tokens.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=[Figure("together", f"{curve[-1]:.3f}", f"nats a token; one alone {curve[0]:.3f} on average")],
        sections=[*sections, corpus_section(result["corpus"])],
    )


def continue_page(run: OpenedRun) -> Page:
    """Return the page of continued pre-training: plain training on more and more text, and where the recipe lies."""
    result = run["result"]
    plain = result["plain"]
    levels = {"recipe": result["recipe"]["loss"], "ensemble": result["ensemble_loss"], "soup": result["soup_loss"]}
    series: dict[str, tuple[list[float], list[float]]] = {
        "plain": ([row["data"] / 1e6 for row in plain], [row["loss"] for row in plain])
    }
    bands: dict[str, tuple[list[float], list[float], list[float]]] = {}
    if "law" in result["efficiency"]:
        _draw_law("law of plain training", result["efficiency"]["law"], series, bands)
    drawing = charts.curves(series, x_label="million domain tokens", y_label="nats a token", levels=levels, bands=bands)
    return Page(
        title="Continued pre-training",
        lead=f"From {result['base']} ({result['base_loss']:.3f} nats a token on the domain) with replay share "
        f"{result['replay_share']:g}.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        sections=[
            Section(
                "What the recipe is worth",
                f"Plain training on more and more text; dashed, the recipe on {result['recipe']['data']:,} tokens. "
                "The multipliers say how much text plain training needs for the same loss.",
                drawing,
                table_of(["arm", "times the text, by law", "95 %", "without a law"], _worth_rows(result["efficiency"])),
            ),
            corpus_section(result["corpus"]),
        ],
    )


def _worth_rows(efficiency: Mapping[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name in ("single", "ensemble", "soup"):
        found = efficiency[name]
        known = found["multiplier"] if found["identified"] else found["reason"]
        rows.append([name, known, ends(found["interval"]), measured_words(found["measured"])])
    return rows


def _size_section(rows: list[dict[str, Any]], laws: Mapping[str, Any], data: int) -> Section:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in sorted((row for row in rows if row["data"] == data), key=lambda row: row["parameters"]):
        x, y = series.setdefault(row["recipe"], ([], []))
        x.append(row["parameters"] / 1e6)
        y.append(row["loss"])
    words: list[str] = []
    bands: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for recipe, found in laws["over_size"][str(data)].items():
        if found["sizes"] > 2:
            verdict = "best inside the ladder" if found["interior"] else "monotone" if found["monotone"] else "mixed"
            words.append(f"{recipe}: {verdict}")
        if found["law"]["asymptote"] is not None:
            _draw_law(f"{recipe}, law", found["law"], series, bands)
    return Section(
        f"Over size, {data:,} tokens",
        "Held-out loss by parameters in millions, embeddings included; shaded: 95 %. " + "; ".join(words) + ".",
        charts.curves(series, x_label="million parameters", y_label="nats a token", bands=bands),
    )


def _member_sections(laws: Mapping[str, Any]) -> list[Section]:
    sections: list[Section] = []
    for found in laws["over_members"]:
        members = [float(k + 1) for k in range(len(found["curve"]))]
        levels: dict[str, float] = {}
        law = found["law"]
        if law["asymptote"] is not None:
            low, high = law["intervals"]["asymptote"]
            levels = {"limit": law["asymptote"], "95 % low": low, "95 % high": high}
        series: dict[str, tuple[list[float], list[float]]] = {"ensemble": (members, found["curve"])}
        bands: dict[str, tuple[list[float], list[float], list[float]]] = {}
        if "band" in law:
            _draw_law("1/K", law, series, bands)
        drawing = charts.curves(series, x_label="members", y_label="nats a token", levels=levels, bands=bands)
        note = "1/K to its limit" if levels else f"no limit: {law['reason'][:140]}"
        sections.append(Section(f"Over members, {found['shape']}, {found['data']:,} tokens", f"{note}.", drawing))
    return sections


def _data_sections(rows: list[dict[str, Any]]) -> list[Section]:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        x, y = series.setdefault(recipe, ([], []))
        for data in sorted({row["data"] for row in rows}):
            losses = [row["loss"] for row in rows if row["recipe"] == recipe and row["data"] == data]
            if losses:
                x.append(float(data))
                y.append(min(losses))
    if max(len(x) for x, _ in series.values()) < 2:
        return []
    drawing = charts.curves(series, x_label="training tokens", y_label="nats a token")
    return [Section("Over data", "Each recipe's best size at every budget of tokens.", drawing)]


def _efficiency_section(laws: Mapping[str, Any]) -> Section:
    rows: list[list[object]] = []
    for entry in laws["efficiency"]:
        if "recipe" in entry:
            low, high = entry["interval"]
            kind = "extrapolated" if entry["extrapolated"] else "measured range"
            measured = measured_words(entry["measured"])
            rows.append(
                [entry["recipe"], entry["data"], entry["multiplier"], low, high, kind, measured, entry["reason"]]
            )
        else:
            rows.append(["standard", None, None, None, None, "", "", entry["reason"]])
    columns = ["recipe", "tokens", "times the data", "95 % low", "95 % high", "reach", "without a law", "why not"]
    return Section(
        "Data efficiency",
        "How much data the standard recipe would need for the same loss, through its own law and by its measured "
        "losses alone.",
        table=table_of(columns, rows),
    )


def _laws_section(laws: Mapping[str, Any]) -> Section:
    lines = [[line.strip()] for line in law_lines(dict(laws))]
    return Section(
        "Laws", "Every limit that the points identify, and why not where they do not.", table=table_of([""], lines)
    )


def _rows_section(rows: list[dict[str, Any]]) -> Section:
    columns = ["recipe", "size", "tokens", "tau", "lr", "epochs", "loss", "seed sd", "verdict"]
    cells = [
        [
            row["recipe"],
            row["shape"],
            row["data"],
            row["point"]["tau"],
            row["point"]["lr"],
            row["point"]["epochs"],
            row["loss"],
            row["seed_sd"],
            row["verdict"],
        ]
        for row in rows
    ]
    return Section("Tuned points", "Each with its certificate of local optimality.", table=table_of(columns, cells))


def _points_section(points: list[dict[str, Any]]) -> Section:
    columns = ["size", "tokens", "tau", "lr", "decay", "epochs", "seed", "tuning loss", "reported loss"]
    names = ("shape", "train_tokens", "tau", "lr", "weight_decay", "epochs", "seed", "tune_loss", "report_loss")
    cells = [[point[name] for name in names] for point in points]
    return Section("Every run", "All that was trained or found trained, in that order.", table=table_of(columns, cells))


def _training_section(run: OpenedRun) -> Section:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for record in run["metrics"]:
        if record.get("event") == "train":
            for name in (name for name in record if name.startswith("loss_")):
                x, y = series.setdefault(name.replace("loss_", "member "), ([], []))
                x.append(record["step"])
                y.append(record[name])
    smoothed = {name: (x, charts.smooth(y)) for name, (x, y) in series.items()}
    return Section(
        "Training",
        "Each member's loss on the text it reads, smoothed.",
        charts.curves(smoothed, x_label="step", y_label="nats a token"),
    )


def _draw_law(
    name: str,
    law: Mapping[str, Any],
    series: dict[str, tuple[list[float], list[float]]],
    bands: dict[str, tuple[list[float], list[float], list[float]]],
) -> None:
    """Add a law's curve and its band to those of a chart."""
    drawn = law["band"]
    series[name] = (drawn["x"], drawn["curve"])
    bands[name] = (drawn["x"], drawn["low"], drawn["high"])

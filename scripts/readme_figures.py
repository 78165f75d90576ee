"""The table of measured figures in the README, made of the committed JSON, so that it never says more or other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: written by scripts/write_reference.py -->", "<!-- /measured -->"
HEAD = ["| room | measured on two cores of a CPU | by |", "|---|---|---|"]
Record = Mapping[str, Any]


def with_figures(readme: str, results: Path) -> str:
    """Return the README with the table between its marks made anew; a README without marks is returned as it is."""
    table = "\n".join([BEGIN, "", *HEAD, *rows(results), "", END])
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: table, readme, flags=re.DOTALL)


def rows(results: Path) -> list[str]:
    """Return a row for each result that is there and whole."""
    found = []
    for room, name, said in ROWS:
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        try:
            text = said(json.loads(path.read_text()))
        except (KeyError, IndexError, TypeError, ValueError):
            continue  # A study under way has not all its parts yet; its row comes with them.
        found.append(f"| {room} | {text} | `benchmarks/{name}.py` |")
    return found


def interval(values: Sequence[float], form: str = ".2f") -> str:
    """Return "value [low, high]"."""
    middle, low, high = values
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def percent(values: Sequence[float]) -> str:
    """Return shares as "value % [low, high]"."""
    middle, low, high = (100 * value for value in values)
    return f"{middle:.0f} % [{low:.0f}, {high:.0f}]"


def _decode(record: Record) -> str:
    ratio = {name: [each["ratio"], each["low"], each["high"]] for name, each in record["figures"]["ratios"].items()}
    return (
        f"greedy, one text at a time: SSD {interval(ratio['ssd_over_sd'])} times classic drafting, "
        f"{interval(ratio['ssd_over_ar'])} times plain decoding, {interval(ratio['ssd_over_llamacpp'])} times "
        f"llama.cpp's plain decoding; the planner {interval(ratio['planner_over_best'])} of the best fixed method"
    )


def _continued(record: Record) -> str:
    arms = record["summary"]["replay 0"]
    one, five = ([arms[name]["measured"]["multiplier"], *arms[name]["measured"]["interval"]]
                 for name in ("single", "ensemble"))  # fmt: skip
    return (
        f"continued training on 16,384 tokens, 0.12 M parameters: one model is worth {interval(one, '.1f')} times the "
        f"text in plain training, five averaged {interval(five, '.1f')}"
    )


def _distilled(record: Record) -> str:
    kept = record["summary"]["distillation"][-1]
    values = [kept["kept"]["retention"], *kept["kept"]["interval"]]
    return (
        f"{kept['data']:,} tokens: a student of one member's size keeps {interval(values)} of what five members gain "
        "over the best tuned single model"
    )


def _mnist(record: Record) -> str:
    bounds = sorted(row["bound"] for row in record["rows"])
    tests = sorted(row["holdout"]["risk"] for row in record["rows"])
    return (
        f"MNIST error on fresh digits guaranteed at most {bounds[0]:.4f} to {bounds[-1]:.4f} over {len(bounds)} seeds, "
        f"without looking at test data (which show {tests[0]:.4f} to {tests[-1]:.4f})"
    )


def _tokens(record: Record) -> str:
    novels = record["summary"]["novels"]
    return (
        f"a transformer on 12 M characters of novels guaranteed at most {novels['bound']['low']:.3f} to "
        f"{novels['bound']['high']:.3f} nats a character in the contexts of its data; a 3-gram has "
        f"{novels['trigram_loss']['mean']:.3f}"
    )


def _tworooms(record: Record) -> str:
    found = record["summary"]
    return (
        f"two rooms from pixels, {found['training_seeds']} trainings: near goals {percent(found['near_subgoals'])} "
        f"with sub-goals and {percent(found['near_plan'])} without, far ones {percent(found['far_subgoals'])} and "
        f"{percent(found['far_plan'])}; at random {percent(found['near_random'])} and {percent(found['far_random'])}"
    )


def _pusht(record: Record) -> str:
    success = record["summary"]["success"]
    ours = [values for name, values in success.items() if name.startswith("plan")]
    return (
        f"Push-T: {percent(max(ours))} of goals, at random {percent(success['random'])}, a script that knows the "
        f"states {percent(success['pusher'])}: the block's angle is what is missing"
    )


def _tasks(record: Record) -> str:
    parts = []
    for task, methods in record["summary"]["tasks"].items():
        if "dmpc" in methods and "proposal" in methods:
            ours, plain = (
                interval([methods[name]["mean"], *methods[name]["interval"]], ".0f") for name in ("dmpc", "proposal")
            )
            parts.append(f"{task} {ours} against {plain} without planning ({methods['dmpc']['n']} episodes)")
    if not parts:
        raise ValueError("no task has both arms yet")
    return f"normalised score of D-MPC, few trainings: {'; '.join(parts)}"


def _train(record: Record) -> str:
    figures = record["figures"]
    values = [figures[f"throughput_over_bare_all{end}"] for end in ("", "_low", "_high")]
    return f"the training loop runs at {interval(values, '.3f')} of a bare hand-written one"


ROWS: tuple[tuple[str, str, Callable[[Record], str]], ...] = (
    ("decode", "decode", _decode),
    ("pretrain", "studies/pretrain_continued", _continued),
    ("", "studies/pretrain_ladder", _distilled),
    ("certify", "studies/certify_mnist", _mnist),
    ("", "studies/certify_tokens", _tokens),
    ("world", "studies/world_tworooms", _tworooms),
    ("", "studies/world_pusht", _pusht),
    ("control", "studies/control_tasks", _tasks),
    ("train", "train", _train),
)

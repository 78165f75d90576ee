"""The pages of ladders show bands around their laws, multipliers both ways, and every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forethought.app.pretrain_pages import ladder_page
from forethought.pretrain.study import laws_of


def rung(recipe: str, size: float, loss: float, curve: tuple[float, ...] = ()) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "shape": f"{size:g}x1",
        "parameters": size * 1e6,
        "data": 1_000_000,
        "loss": loss,
        "seed_sd": 0.002,
        "seed_losses": [loss] * 4,
        "curve": list(curve),
        "certified": True,
        "verdict": "certified",
        "point": {"tau": 1.0, "lr": 1e-3, "epochs": 4},
    }


def opened(rows: list[dict[str, Any]]) -> dict[str, Any]:
    splits = {"train": {"documents": 1, "tokens": 1, "bytes": 1}}
    point = {"shape": "9x1", "train_tokens": 77, "tau": 1.0, "lr": 1e-3, "weight_decay": 0.1, "epochs": 4, "seed": 3}
    return {
        "directory": Path("run"),
        "environment": {"command": ["forethought"]},
        "result": {
            "rows": rows,
            "laws": laws_of(rows),
            "points": [point | {"tune_loss": 4.5678, "report_loss": 4.6789}],
            "left_out": [],
            "tuned_on": "one slice",
            "reported_on": "another",
            "noise_seeds": 3,
            "corpus": {"splits": splits, "documents": 1, "bytes": 1, "bytes_per_token": 1.0, "duplicates_removed": 0},
        },
    }


def test_the_page_of_a_ladder_draws_bands_and_lists_every_run():
    rows = [rung("regularised", size, 3.0 + 0.3 / size) for size in (1.0, 2.0, 4.0, 8.0)]
    rows += [rung("standard", size, 3.5 + 0.1 * size) for size in (1.0, 2.0)]
    curve = tuple(2.9 + 0.3 / k for k in range(1, 6))
    rows.append(rung("ensemble", 2.0, curve[-1], curve))
    page = ladder_page(opened(rows))
    sections = {section.title: section for section in page.sections}
    for title in ("Over size, 1,000,000 tokens", "Over members, 2x1, 1,000,000 tokens"):
        assert "FillBetween" in sections[title].drawing, "a law is drawn with its band"
    worth = sections["Data efficiency"].table
    assert worth is not None
    assert any("more than 1.00x by measured losses" in str(cell) for row in worth.rows for cell in row)
    runs = sections["Every run"].table
    assert runs is not None
    assert len(runs.rows) == 1

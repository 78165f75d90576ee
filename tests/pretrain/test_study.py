"""The search finds and certifies, its cache holds, the budget leaves out by name, and laws say what they know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forethought.core.errors import ConfigError, DataError
from forethought.pretrain import ModelShape
from forethought.pretrain.members.config import MembersConfig
from forethought.pretrain.study import (
    Grid,
    Point,
    PointStore,
    StudyConfig,
    box,
    ladder,
    laws_of,
    plan,
    search,
    seconds_of,
)
from forethought.pretrain.study.budget import Item
from forethought.pretrain.study.laws import efficiency_of, shape_of_curve
from forethought.pretrain.study.limits import band, measured_multiplier
from forethought.stats import fit_power_law
from tests.pretrain.small import small_corpus, small_fit

GRID = Grid(tau=(0.25, 0.5, 1.0, 2.0), lr=(1e-3, 3e-3, 1e-2), epochs=(2, 4, 8, 16))
BEST = Point(tau=1.0, lr=3e-3, epochs=8)


def bowl(point: Point) -> float:
    tau = 0.0 if point.tau is None else math.log(point.tau) ** 2
    return 3.0 + tau + math.log(point.lr / 3e-3) ** 2 + 0.5 * math.log(point.epochs / 8) ** 2


def test_the_search_walks_to_the_optimum_and_certifies_it():
    asked: list[Point] = []

    def evaluate(points: Sequence[Point]) -> dict[Point, float]:
        asked.extend(points)
        return {point: bowl(point) for point in points}

    found, losses = search(Point(tau=0.25, lr=1e-2, epochs=2), GRID, evaluate)
    assert found.point == BEST
    assert found.certified
    assert str(found) == "certified"
    assert len(asked) == len(set(asked)) == len(losses)
    assert set(box(BEST, GRID)) <= set(losses)


def test_a_search_out_of_budget_says_which_neighbours_lack():
    def evaluate(points: Sequence[Point]) -> dict[Point, float]:
        return {point: bowl(point) for point in points if point.epochs <= 8}

    found, _ = search(BEST, GRID, evaluate)
    assert not found.certified
    assert str(found) == "not certified (lacks tau 1, lr 0.003, epochs 16)"


def test_borders_repeat_and_empty_axes_stand_still():
    corner = box(Point(tau=0.25, lr=1e-3, epochs=2), GRID)
    assert len(corner) == 4
    plain = replace(GRID, tau=())
    assert {point.tau for point in box(Point(tau=None, lr=3e-3, epochs=4), plain)} == {None}
    with pytest.raises(ConfigError, match=r"lr 0\.002 is not on the grid"):
        box(Point(tau=1.0, lr=2e-3, epochs=2), GRID)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("study"))


def small_study(corpus: Path, **changes: Any) -> StudyConfig:
    fit = small_fit(corpus, evaluation_tokens=256)
    study = StudyConfig(
        fit=fit,
        sizes=tuple(ModelShape(hidden_size=width, num_layers=1, num_heads=1) for width in (8, 16)),
        data=(1024,),
        recipes=("regularised", "ensemble"),
        grid=Grid(tau=(0.5, 1.0), lr=(4e-3,), epochs=(1, 2)),
        start=Point(tau=1.0, lr=4e-3, epochs=2),
        members=3,
        group=3,
    )
    return replace(study, **changes)


def test_points_are_cached_by_content_whatever_they_were_batched_with(corpus: Path, tmp_path: Path):
    settings = MembersConfig(fit=small_fit(corpus, evaluation_tokens=256), epochs=1.0, train_tokens=1024)
    trained: list[int] = []

    def afford(_settings: MembersConfig, members: int) -> bool:
        trained.append(members)
        return True

    store = PointStore(tmp_path, afford=afford)
    points = [Point(tau=tau, lr=4e-3, epochs=1) for tau in (0.5, 1.0)]
    first = store.evaluate(settings, points)
    again = store.evaluate(settings, points[1:])
    assert again == {points[1]: first[points[1]]}
    assert trained == [2]
    store.evaluate(replace(settings, train_tokens=1056), points[1:])
    assert trained == [2, 1], "other data are another point"


def test_a_ladder_climbs_resumes_and_reports(corpus: Path, tmp_path: Path):
    told: list[str] = []
    study = small_study(corpus)
    result = ladder(study, tmp_path / "run", tell=lambda record: told.append(record["key"]))
    assert [(row["recipe"], row["shape"]) for row in result["rows"]] == [
        (recipe, shape) for shape in ("8x1", "16x1") for recipe in ("regularised", "ensemble")
    ]
    single, ensemble = result["rows"][:2]
    assert single["certified"]
    assert len(single["seed_losses"]) == 3
    assert "lacks" in ensemble["verdict"]
    assert ensemble["loss"] < sum(ensemble["seed_losses"]) / 3
    assert ensemble["total_parameters"] == 3 * ensemble["parameters"]
    assert result["laws"]["efficiency"][0]["reason"].startswith("the standard recipe's law over data is not fitted")
    before = sorted(path.name for path in (tmp_path / "run" / "runs").iterdir())
    (tmp_path / "run" / "result.json").unlink()
    assert ladder(study, tmp_path / "run", exists="resume")["rows"] == result["rows"]
    assert sorted(path.name for path in (tmp_path / "run" / "runs").iterdir()) == before


def test_a_ladder_that_wants_more_text_than_there_is_is_refused(corpus: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"training tokens, and the ladder asks for 9,000,000"):
        ladder(small_study(corpus, data=(1024, 9_000_000)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_budget_takes_what_fits_and_names_the_rest(corpus: Path, tmp_path: Path):
    whole = plan([Item("a", 50), Item("b", 100), Item("c", 5)], 60)
    assert [item.name for item in whole.taken] == ["a", "c"]
    assert [item.name for item in whole.left_out] == ["b"]
    assert [seconds_of(text) for text in ("90s", "30m", "2h", "1d")] == [90, 1800, 7200, 86400]
    with pytest.raises(ConfigError, match="budget '30' is no time"):
        seconds_of("30")
    with pytest.raises(ConfigError, match="affords not even the first rung"):
        ladder(small_study(corpus), tmp_path / "run", seconds=1e-3)


def row(recipe: str, parameters: float, data: int, loss: float, curve: Sequence[float] = ()) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "shape": f"{parameters:g}",
        "parameters": parameters,
        "data": data,
        "loss": loss,
        "seed_sd": 0.002,
        "seed_losses": [loss] * 4,
        "curve": list(curve),
    }


def test_laws_recover_the_curves_that_made_the_rows():
    rows: list[dict[str, Any]] = []
    for data in (1, 2, 4, 8, 16):
        for size in (1, 2, 4, 8):
            floor = 1.9 + 1.2 * data**-0.5
            rows.append(row("standard", size * 1e6, data * 10**6, floor + 0.4 + 0.05 * (math.log2(size) - 1) ** 2))
            rows.append(row("regularised", size * 1e6, data * 10**6, floor + 0.3 / size))
            limit = floor - 0.2 + 0.2 / size
            curve = [limit + 0.3 / k for k in range(1, 6)]
            rows.append(row("ensemble", size * 1e6, data * 10**6, curve[-1], curve))
    laws = laws_of(rows)
    assert shape_of_curve(rows, "standard", 10**6)["interior"]
    assert not shape_of_curve(rows, "standard", 10**6)["monotone"]
    assert shape_of_curve(rows, "regularised", 10**6)["monotone"]
    assert laws["over_size"]["1000000"]["regularised"]["law"]["asymptote"] == pytest.approx(3.1, abs=5e-3)
    assert laws["over_members"][0]["law"]["asymptote"] == pytest.approx(3.1, abs=5e-3)
    assert laws["joint"]["4000000"]["asymptote"] == pytest.approx(2.3, abs=0.01)
    worth = {(entry["recipe"], entry["data"]): entry for entry in laws["efficiency"]}
    assert worth["standard", 4_000_000]["multiplier"] == pytest.approx(1.0, abs=1e-3)
    odd = [{**r, "loss": r["loss"] + 0.05 * (r["recipe"] == "standard" and r["data"] == 4_000_000)} for r in rows]
    for entry in efficiency_of(odd):
        if (entry["recipe"], entry["data"]) == ("standard", 4_000_000):
            assert entry["multiplier"] == pytest.approx(1.0), "both losses go through the law"
    best = min(r["loss"] for r in rows if r["recipe"] == "regularised" and r["data"] == 10**6)
    expected = (1.2 / (best - 2.3)) ** 2
    assert worth["regularised", 1_000_000]["multiplier"] == pytest.approx(expected, rel=0.03)
    assert laws["joint_over_data"]["asymptote"] == pytest.approx(1.7, abs=0.05), "members, then size, then data"
    reach = {(entry["recipe"], entry["data"]): entry for entry in laws["efficiency"] if entry["limit"]}
    expected = (1.2 / (2.9 - 2.3)) ** 2
    assert reach["joint limit", 1_000_000]["multiplier"] == pytest.approx(expected, rel=0.05)


def test_a_measured_multiplier_interpolates_and_says_where_it_cannot():
    standard = [(1000, 5.0, 0.01), (4000, 4.5, 0.01), (16_000, 4.0, 0.01)]
    found = measured_multiplier(1000, 4.25, 0.01, standard)
    assert found["multiplier"] == pytest.approx(8.0)
    low, high = found["interval"]
    assert 7.0 < low < 8.0 < high < 9.2
    beyond = measured_multiplier(1000, 3.9, 0.01, standard)
    assert beyond["multiplier"] is None
    assert beyond["at_least"] == pytest.approx(16.0)
    assert beyond["interval"] == [None, None]
    edge = measured_multiplier(1000, 4.001, 0.01, standard)
    assert edge["interval"][1] is None, "the loss may be lower than any that was measured"


def test_a_band_holds_its_curve_and_narrows_with_the_noise():
    x = [1.0, 2.0, 4.0, 8.0]
    widths: list[float] = []
    for sd in (0.02, 0.002):
        drawn = band(fit_power_law(x, [3.0 + 1.0 / each for each in x], sd, num_bootstrap=200), x)
        assert drawn["x"][0] == pytest.approx(1.0)
        assert drawn["x"][-1] == pytest.approx(8.0)
        assert all(a <= b <= c for a, b, c in zip(drawn["low"], drawn["curve"], drawn["high"], strict=True))
        widths.append(max(high - low for high, low in zip(drawn["high"], drawn["low"], strict=True)))
    assert widths[1] < 0.3 * widths[0]


def test_budgets_that_are_not_searched_take_the_point_of_their_size(corpus: Path, tmp_path: Path):
    study = small_study(corpus, data=(1024, 1536), recipes=("regularised",), searched=1)
    result = ladder(study, tmp_path / "run", cache=tmp_path / "points")
    rows = {(row["shape"], row["data"]): row for row in result["rows"]}
    for shape in ("8x1", "16x1"):
        assert rows[shape, 1536]["point"] == rows[shape, 1024]["point"]
        assert "lacks" in rows[shape, 1536]["verdict"]
        assert rows[shape, 1024]["certified"]
    assert not (tmp_path / "run" / "points").exists()
    told: list[str] = []
    smaller = replace(study, data=(1024,))
    again = ladder(
        smaller, tmp_path / "other", cache=tmp_path / "points", tell=lambda record: told.append(record["run"])
    )
    assert again["rows"] == result["rows"][:2], "another ladder on the same corpus finds its points trained"

"""Power laws: exact recovery, honest coverage, and the refusal to name an asymptote that the data do not hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import InputError
from forethought.stats import fit_chinchilla, fit_power_law, identify, lawfit
from forethought.stats.divergence import clopper_pearson
from forethought.stats.levenberg import huber
from forethought.stats.powerlaw import design_of, observe

SIZES = np.array([0.15, 0.3, 0.6, 1.4])
MEMBERS = np.arange(1.0, 6.0)


def curve(x: np.ndarray, amplitude: float, exponent: float, asymptote: float) -> np.ndarray:
    return amplitude * x**-exponent + asymptote


@given(
    st.floats(0.02, 5),
    st.floats(0.1, 3),
    st.floats(0.05, 20),
    st.integers(4, 9),
    st.floats(-6, 10),
    st.floats(0.5, 2.5),
)
@settings(deadline=None, max_examples=40)
def test_noise_free_recovery(
    fall: float, exponent: float, asymptote: float, num_points: int, log_start: float, log_span: float
) -> None:
    x = np.exp(log_start + log_span * np.linspace(0, 1, num_points) * math.log(10))
    amplitude = fall * x[0] ** exponent
    fit = fit_power_law(x, curve(x, amplitude, exponent, asymptote), num_bootstrap=0)
    assert fit.exponent == pytest.approx(exponent, rel=1e-6)
    assert fit.amplitude == pytest.approx(amplitude, rel=1e-6)
    assert fit.asymptote == pytest.approx(asymptote, rel=1e-6)
    assert fit.interval[0] <= asymptote <= fit.interval[1]
    np.testing.assert_allclose(fit.predict(x), curve(x, amplitude, exponent, asymptote), rtol=1e-9)


def covered(num: int, exponent: float | None, *, known: bool, num_bootstrap: int = 200) -> tuple[int, int]:
    """How many of `num` simulated 95 % intervals hold the true asymptote, and the same for the amplitude."""
    x, (amplitude, b, asymptote), sd = (SIZES, (0.05, 1.02, 3.43), 0.005)
    if exponent is not None:
        x, (amplitude, b, asymptote), sd = MEMBERS, (0.29, 1.0, 3.27), 0.003
    if not known:
        x, sd = np.geomspace(0.1, 2.0, 8), 0.003
    hits = np.zeros(2, dtype=int)
    for i in range(num):
        y = curve(x, amplitude, b, asymptote) + sd * np.random.default_rng([3, i]).standard_normal(len(x))
        fit = fit_power_law(x, y, sd if known else None, exponent=exponent, num_bootstrap=num_bootstrap, seed=i)
        for j, (name, truth) in enumerate((("asymptote", asymptote), ("amplitude", amplitude))):
            hits[j] += fit.intervals[name][0] <= truth <= fit.intervals[name][1]
    return int(hits[0]), int(hits[1])


@pytest.mark.parametrize(("exponent", "known", "num"), [(None, True, 40), (1.0, True, 60), (None, False, 25)])
def test_intervals_cover_at_their_level(exponent: float | None, known: bool, num: int) -> None:
    for hits in covered(num, exponent, known=known):
        low, high = clopper_pearson(hits, num, level=0.999)
        assert low <= 0.97, "intervals must not miss more often than they say"
        assert high >= 0.93


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("exponent", "known"), [(None, True), (1.0, True), (None, False)])
def test_coverage_is_93_to_97_percent_in_2000_simulations(exponent: float | None, known: bool) -> None:
    hits, _ = covered(2000, exponent, known=known, num_bootstrap=400)
    assert 0.93 <= hits / 2000 <= 0.97


def test_an_interval_ends_where_its_deviance_does() -> None:
    y = curve(MEMBERS, 0.29, 1.0, 3.27) + 0.003 * np.array([0.3, -1.2, 0.4, 1.1, -0.5])
    fit = fit_power_law(MEMBERS, y, 0.003, exponent=1.0, num_bootstrap=4000)
    design = np.stack([1 / MEMBERS, np.ones(5)], axis=1)
    covariance = 0.003**2 * np.linalg.inv(design.T @ design)
    estimate = np.linalg.lstsq(design, y, rcond=None)[0]
    assert (fit.amplitude, fit.asymptote) == pytest.approx(tuple(estimate), rel=1e-4), "linear given the exponent"
    for end, sign in zip(fit.interval, (-1, 1), strict=True):
        assert end == pytest.approx(fit.asymptote + sign * 1.96 * covariance[1, 1] ** 0.5, abs=2e-4)
    for end, sign in zip(fit.intervals["amplitude"], (-1, 1), strict=True):
        assert end == pytest.approx(fit.amplitude + sign * 1.96 * covariance[0, 0] ** 0.5, abs=8e-4)
    assert fit.intervals["exponent"] == (1.0, 1.0)
    expected = (y - fit.predict(MEMBERS)) / 0.003
    np.testing.assert_allclose(fit.residuals, expected, rtol=5e-3)


@pytest.mark.parametrize(
    ("x", "y", "sigma", "why"),
    [
        (SIZES, curve(SIZES, 0.05, 1.02, 3.43) + np.array([0.01, -0.03, 0.03, -0.02]), 0.02, "wider than 0.5"),
        (MEMBERS[:3], curve(MEMBERS[:3], 0.29, 1.0, 3.27), 0.001, "at least 4"),
        (MEMBERS[:3], curve(MEMBERS[:3], 0.29, 1.0, 3.27), None, "at least 4"),
        (MEMBERS, 3.27 + 0.001 * np.array([0.5, -1, 0.2, 1, -0.6]), 0.003, "do not fall"),
        (MEMBERS, np.array([3.0, 3.1, 3.2, 3.3, 3.4]), 0.003, "do not fall"),
        (MEMBERS, np.array([5.0, 3.0, 3.0, 3.0, 3.0]), 0.001, "exponent ran to its bound"),
        (np.geomspace(1, 100, 6), np.geomspace(1, 100, 6) ** -0.5, 1e-4, "ran to its bound (0)"),
        (np.geomspace(0.2, 1.6, 4), curve(np.geomspace(0.2, 1.6, 4), 1.27, 0.23, 1.93), 0.005, "exponent below 0.3"),
    ],
)  # fmt: skip
def test_not_identified_instead_of_a_number(x: np.ndarray, y: np.ndarray, sigma: float | None, why: str) -> None:
    fit = fit_power_law(x, y, sigma, num_bootstrap=200)
    assert not fit.identified
    assert why in fit.reason
    assert "not identified" in str(fit)
    assert fit.to_dict()["asymptote"] is None
    json.dumps(fit.to_dict(), allow_nan=False)


def test_identified_where_the_noise_is_small() -> None:
    y = curve(SIZES, 0.05, 1.02, 3.43) + 0.002 * np.array([0.4, -0.9, 0.7, -0.3])
    fit = fit_power_law(SIZES, y, 0.002)
    assert fit.identified
    assert fit.reason == ""
    assert fit.interval[0] < 3.43 < fit.interval[1]
    assert fit.interval[1] - fit.interval[0] < 0.05
    assert len(fit.leave_one_out) == 4
    assert fit.degrees_of_freedom == 1
    assert fit.start_spread < 1e-6
    assert "interval" in str(fit)
    assert json.loads(json.dumps(fit.to_dict()))["asymptote"] == fit.asymptote
    assert fit.predict(0.3) == pytest.approx(y[1], abs=0.01)
    assert fit.inverse(fit.predict(0.7)) == pytest.approx(0.7)
    assert fit.inverse(3.0) == math.inf


def test_starts_that_disagree_are_no_identification() -> None:
    y = curve(SIZES, 0.05, 1.02, 3.43)
    noise = np.full(4, 0.001)
    observed = observe(design_of(SIZES, y, noise, exponent=None, delta=1e-3), y)
    intervals = {"asymptote": (3.42, 3.44)}
    for spread, expected in ((0.0, ""), (0.1, "equally good starts end 0.1 apart")):
        findings = identify.Findings(SIZES, y, noise, intervals, spread, 0.95)
        assert identify.why_not(observed, findings)[:33] == expected


def test_three_sizes_with_a_fixed_exponent_are_enough_and_two_left_of_them_too() -> None:
    fit = fit_power_law(
        [1, 2, 3], curve(MEMBERS[:3], 0.29, 1.0, 3.27) + np.array([1e-4, -2e-4, 1e-4]), 0.001, exponent=1
    )
    assert fit.identified
    assert len(fit.leave_one_out) == 3
    assert fit_power_law([1, 2, 3], [3, 2, 1.9]).leave_one_out == ()


def test_an_outlier_is_outvoted() -> None:
    x = np.geomspace(0.1, 10, 12)
    y = curve(x, 0.3, 0.7, 2.5)
    y[5] *= 1.2
    assert fit_power_law(x, y, num_bootstrap=0).asymptote == pytest.approx(2.5, abs=0.02)
    assert fit_power_law(x, y, 0.002, num_bootstrap=0).asymptote == pytest.approx(2.5, abs=0.05)


def test_noisier_points_weigh_less() -> None:
    x = np.geomspace(0.1, 10, 8)
    y = curve(x, 0.3, 0.7, 2.5)
    y[-1] += 0.05
    sigma = np.full(8, 0.002)
    trusted = fit_power_law(x, y, sigma, num_bootstrap=0).asymptote
    sigma[-1] = 0.5
    assert abs(fit_power_law(x, y, sigma, num_bootstrap=0).asymptote - 2.5) < 1e-3 < abs(trusted - 2.5)


def test_same_seed_same_bits_and_units_do_not_matter() -> None:
    y = curve(SIZES, 0.05, 1.02, 3.43) + 0.003 * np.array([0.4, -0.9, 0.7, -0.3])
    first, again = (fit_power_law(SIZES, y, 0.003, num_bootstrap=200, seed=5) for _ in range(2))
    assert first == again
    other = fit_power_law(SIZES * 1e9, y, 0.003, num_bootstrap=200, seed=5)
    assert other.interval == pytest.approx(first.interval, rel=1e-6)
    assert other.amplitude * 1e9**-other.exponent == pytest.approx(first.amplitude, rel=1e-6)


def test_huber_is_quadratic_then_linear() -> None:
    values = huber(np.array([0.0, 0.5, 1.0, 3.0]), np.array([1.0]))
    np.testing.assert_allclose(values, [0, 0.125, 0.5, 2.5])


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (([1, 2, 3], [1, 2]), {}),
        (([1, 2, 2], [3, 2, 2]), {}),
        (([0, 1, 2], [3, 2, 1]), {}),
        (([1, 2, 3], [3, math.nan, 1]), {}),
        (([1, 2, 3], [3, math.inf, 1]), {}),
        (([1, 2, 3], [3, 2, -1]), {}),
        (([1, 2, 3], [3, 2, 1], [0.1, 0.1]), {}),
        (([1, 2, 3], [3, 2, 1], 0.0), {}),
        ((["a", 2, 3], [3, 2, 1]), {}),
        (([[1, 2, 3]], [3, 2, 1]), {}),
        (([1, 2, 3], [3, 2, 1]), {"exponent": -1}),
        (([1, 2, 3], [3, 2, 1]), {"num_bootstrap": -1}),
        (([1, 2, 3], [3, 2, 1]), {"level": 95}),
        (([1, 2, 3], [3, 2, 1]), {"delta": 0}),
    ],
)
def test_bad_input_is_named(arguments: tuple, options: dict) -> None:
    with pytest.raises(InputError, match=r"give|given|every value|must|needs"):
        fit_power_law(*arguments, **options)


REFIT = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def runs(sd: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    n, d = np.exp(rng.uniform(17.5, 23.5, 240)), np.exp(rng.uniform(19, 26.5, 240))
    loss = REFIT["E"] + REFIT["A"] / n ** REFIT["alpha"] + REFIT["B"] / d ** REFIT["beta"]
    return n, d, loss * np.exp(sd * rng.standard_normal(240))


def test_the_published_chinchilla_refit_is_recovered_from_its_own_data() -> None:
    n, d, loss = runs(0.0)
    law = fit_chinchilla(n, d, loss, num_bootstrap=1)
    for name, value in REFIT.items():
        assert getattr(law, name) == pytest.approx(value, rel=1e-6), name
    np.testing.assert_allclose(law.predict(n, d), loss, rtol=1e-9)
    assert law.predict(1e9, 1e10) == pytest.approx(float(law.predict(np.array([1e9]), np.array([1e10]))[0]))


def test_chinchilla_intervals_hold_the_truth_under_noise() -> None:
    law = fit_chinchilla(*runs(0.003), num_bootstrap=100, level=0.999)
    for name, value in REFIT.items():
        low, high = law.intervals[name]
        assert low <= value <= high, name
        assert law.standard_errors[name] > 0
    assert law.residual_sd == pytest.approx(0.003, rel=0.2)
    json.dumps(law.to_dict(), allow_nan=False)


def test_chinchilla_needs_six_points() -> None:
    with pytest.raises(InputError, match="6 points"):
        fit_chinchilla([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [5, 4, 3, 2, 1])


def test_chinchilla_gives_no_interval_without_a_bootstrap() -> None:
    with pytest.raises(InputError, match="num_bootstrap 0"):
        fit_chinchilla(*runs(0.003), num_bootstrap=0)


def test_replicates_fitted_in_groups_give_what_they_give_together(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.geomspace(1.0, 100.0, 9)
    y = curve(x, 2.0, 0.5, 1.0) * (1 + 0.01 * np.sin(np.arange(9)))
    together = fit_power_law(x, y, num_bootstrap=60)
    sizes: list[int] = []
    solve_group = lawfit._solve_group

    def counted(design: lawfit.Design, y_RN: np.ndarray, *rest: object) -> object:
        sizes.append(len(y_RN))
        return solve_group(design, y_RN, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(lawfit, "_solve_group", counted)
    monkeypatch.setattr(lawfit, "_MAX_START_VALUES", 48 * 9 * 7)
    apart = fit_power_law(x, y, num_bootstrap=60)
    assert max(sizes) == 7
    np.testing.assert_allclose(apart.samples, together.samples, rtol=1e-9)
    np.testing.assert_allclose(apart.leave_one_out, together.leave_one_out, rtol=1e-9)
    assert apart.interval == pytest.approx(together.interval, rel=1e-9)

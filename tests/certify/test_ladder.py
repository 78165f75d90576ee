"""The ladder's verdicts on made-up cells: a turn that shows, one that does not, one within the noise of the seeds."""

from __future__ import annotations

from forethought.certify.phenomena.ladder import FIGURES, LadderEffort, ladder_cell, ladder_outcome, library_text

EFFORT = LadderEffort(tokens=1000, steps=10, quantise_steps=5, num_seeds=3, widths=(8, 16, 32))
COUNTED = {"trigram_loss": 2.0}


def outcome(bounds: dict[int, list[float]]):
    cells = {
        width: [[width * 100.0, 300.0 * width, 3.0 - width / 100, 2.0, 2.1, bound] for bound in found]
        for width, found in bounds.items()
    }
    return ladder_outcome(cells, EFFORT, COUNTED, "a text", "full", 0)


def verdict(holds: dict[str, bool], words: str) -> bool:
    return next(value for name, value in holds.items() if words in name)


def test_a_turn_is_seen_where_all_seeds_show_it():
    found = outcome({8: [2.5, 2.51, 2.49], 16: [2.3, 2.31, 2.29], 32: [2.6, 2.61, 2.62]})
    assert "the best has width 16" in found.sentence
    assert all(found.holds.values())


def test_a_turn_within_the_noise_of_the_seeds_is_not_claimed():
    found = outcome({8: [2.9, 2.9, 2.9], 16: [2.3, 2.4, 2.2], 32: [2.35, 2.2, 2.45]})
    assert verdict(dict(found.holds), "better than width 8")
    assert not verdict(dict(found.holds), "it has turned")


def test_a_ladder_that_only_falls_has_not_turned():
    found = outcome({8: [2.5, 2.5, 2.5], 16: [2.4, 2.4, 2.4], 32: [2.3, 2.3, 2.3]})
    assert "it has not turned" in found.sentence
    assert not verdict(dict(found.holds), "it has turned")


def test_a_vacuous_rung_is_shown():
    found = outcome({8: [2.5, 2.5, 2.5], 16: [2.4, 2.4, 2.4], 32: [4.6, 4.9, 5.0]})
    assert not verdict(dict(found.holds), "below the uniform")
    assert max(found.panels[0].series["certificate"][1]) > 4.6


def test_a_cell_is_a_certificate_of_its_text():
    text = library_text(6000)
    effort = LadderEffort(tokens=5000, steps=3, quantise_steps=2, num_seeds=1, widths=(4,))
    cell = dict(zip(FIGURES, ladder_cell(4, effort, text[:5000], text[5000:], 0), strict=True))
    assert cell["parameters"] == 1300
    assert cell["certificate"] > cell["train loss"] > 0
    assert cell["bits a parameter"] == cell["bits"] / 1300

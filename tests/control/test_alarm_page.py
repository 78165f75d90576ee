"""A body changes while a monitor watches: the wish to adapt, from the verb to a page in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from forethought.app.cli import DONE, main
from forethought.app.report import write_report
from forethought.control import Agent, AgentConfig
from tests.app.browser import BROWSER, laid_out
from tests.control.integrator import Integrator

ENV = "tests/Integrator-v0"


@pytest.fixture(scope="module")
def watched(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Run the verb on the known body and on one whose motor is reversed, beside nominal episodes."""
    gymnasium.register(ENV, entry_point=lambda **_: Integrator(), max_episode_steps=30)
    place = tmp_path_factory.mktemp("alarm")
    parts = (models["proposal.diffusion"], models["dynamics.diffusion"], models["value.regression"])
    Agent(*parts, settings=AgentConfig(execute=2)).save(place / "agent")
    agent, nominal = str(place / "agent"), str(place / "nominal")
    assert main(["control", "collect", nominal, "--env", ENV, "--policy", agent, "--episodes", "16"]) == DONE
    run = ["control", "run", agent, "--env", ENV, "--episodes", "4", "--monitor", nominal, "--robots", "1"]
    assert main([*run, "--seeds", "3", "--out", str(place / "calm")]) == DONE
    assert main([*run, "--seeds", "3", "--changes", "gain:-1", "--out", str(place / "turned")]) == DONE
    yield {name: place / name for name in ("calm", "turned")}
    del gymnasium.registry[ENV]


def test_the_page_of_a_changed_body_shows_the_alarm_and_that_of_a_known_one_none(watched: dict[str, Path]):
    pages = {name: write_report(place).read_text() for name, place in watched.items()}
    told = {name: json.loads((place / "result.json").read_text())["monitor"] for name, place in watched.items()}
    assert told["calm"]["alarm_at"] is None
    assert "It never wished to adapt." in pages["calm"]
    assert "alarm at step" not in pages["calm"]
    alarm = told["turned"]["alarm_at"]
    assert 0 < alarm <= 24
    assert f"Its wish to adapt arose after {alarm} steps." in pages["turned"]
    assert f"alarm at step {alarm}" in pages["turned"]
    # The residuals that raised it stand out before it.
    assert max(value for value in told["turned"]["z"][: alarm + 1] if value is not None) > 3


@pytest.mark.skipif(BROWSER is None, reason="needs the browser of Debian's package chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_alarm_is_drawn_inside_its_picture_in_a_real_window(watched: dict[str, Path], tmp_path: Path, width: int):
    page = write_report(watched["turned"])
    labels = re.findall(r"<text[^>]*>wish to adapt</text>", page.read_text())
    assert len(labels) == 1
    seen = laid_out(page, tmp_path, width=width)
    assert seen["scroll"] <= seen["inner"] == width
    assert seen["resources"] == 0
    assert len(seen["drawings"]) == 2
    assert min(side for drawing in seen["drawings"] for side in drawing) > 60
    assert seen["outside"] == 0

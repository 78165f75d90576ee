"""The job of the world: two rooms from pixels, as `forethought world demo` makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from forethought.app.demo.settings import WorldSize


def run_world(size: WorldSize, out: Path) -> dict[str, Any]:
    """Collect, train, plan to goal images, probe and surprise, in a run of its own."""
    from forethought.app.world.demo import full, quick, run_demo

    recipe = quick() if size.recipe == "quick" else full()
    train, collect = recipe.train, recipe.collect
    if size.steps is not None:
        train = replace(train, loop=replace(train.loop, steps=size.steps))
    if size.episodes is not None:
        collect = replace(collect, episodes=size.episodes)
    if size.candidates is not None:
        goal = replace(recipe.goal, num_candidates=size.candidates, num_elites=size.candidates // 4, num_iterations=1)
        recipe = replace(recipe, goal=goal)
    given = {"pairs": size.pairs, "far_pairs": size.far_pairs, "surprise_pairs": size.surprise_pairs}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = replace(recipe, train=train, collect=collect, **changes)
    result = run_demo(settings, out, recipe="demo.world", recipe_config=recipe, exists="resume")
    # The pictures stay in the world's own run, which the page reads.
    return {name: value for name, value in result.items() if name not in ("pictures", "report", "seconds")}

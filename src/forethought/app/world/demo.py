"""The world demo: collect, train, evaluate near and far, probe, surprise, and one page that shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from forethought.app.arguments import parse, say, table
from forethought.app.report import REPORT, write_report
from forethought.app.world.demo_pictures import draw_pictures
from forethought.app.world.measuring import (
    PROTOCOLS,
    measure_probe,
    measure_success,
    measure_surprise,
    open_model_and_data,
    plain,
)
from forethought.app.world.recipes import small, tiny
from forethought.app.world.verbs import PERTURBED, PLAN, fit_rows, probe_rows, success_rows, surprise_rows
from forethought.core import files
from forethought.core.config import config
from forethought.core.errors import TrainingError
from forethought.core.progress import track
from forethought.core.run import Exists, Run, open_run
from forethought.data import Episodes, open_episodes, save_episodes
from forethought.world import WorldFitConfig, fit_world, load_world_model
from forethought.world.collecting import CollectConfig, collect_episodes
from forethought.world.fit import COLLAPSE
from forethought.world.planning import EvaluationConfig, GoalConfig


@config
class WorldDemoConfig:
    """What the demo does, and how much of it."""

    collect: CollectConfig = CollectConfig()
    train: WorldFitConfig = Field(default_factory=small)
    goal: GoalConfig = Field(default_factory=lambda: replace(PLAN, num_candidates=64, num_elites=8, num_iterations=5))
    """A third of the verbs' candidates: in two rooms they reach as much."""
    pairs: int = Field(default=40, ge=1)
    """Pairs of each of three seeds, near."""
    far_pairs: int = Field(default=15, ge=0)
    """Pairs of each of three seeds, far; 0 leaves the far protocol out."""
    far_episodes: int = Field(default=24, ge=1)
    """Longer episodes, collected for the far protocol alone."""
    surprise_pairs: int = Field(default=40, ge=4)
    policies: tuple[str, ...] = ("subgoals", "plan", "inverse")
    """Ways to reach near goals; the first is the one that the page leads with."""


@dataclass(frozen=True)
class WorldDemoArguments:
    """A world model from nothing: collect, train, plan to images, probe, be surprised, and report."""

    quick: bool = False
    """Small frames and short runs: under a minute, and the figures mean little."""
    strength: float | None = None
    """Lambda times batch of SIGReg; with 0 the latents collapse and the run stops and says so."""
    seed: int = 0
    """Seed of everything."""
    out: Path = Path("runs/world")
    """The directory to write."""
    exists: Literal["resume", "refuse", "replace"] = "resume"
    """What to do when the directory is already there."""
    json: bool = False
    """Print result.json as one last line on standard output."""


def full() -> WorldDemoConfig:
    """Return the demo as a reader would run it: under eight minutes on two cores."""
    return WorldDemoConfig()


def quick() -> WorldDemoConfig:
    """Return a demo that shows that everything runs."""
    train = tiny()
    return WorldDemoConfig(
        collect=CollectConfig(episodes=48, steps=60, image_size=32),
        train=replace(train, held_out=0.4, loop=replace(train.loop, steps=100)),
        pairs=5,
        far_pairs=1,
        far_episodes=2,
        surprise_pairs=8,
    )


def demo_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought world demo` and return its result.

    Raises:
        InputError: a flag or the directory cannot be used.
        TrainingError: the latents collapsed.
    """
    given = parse(WorldDemoArguments, arguments, verb="world demo")
    recipe = quick() if given.quick else full()
    train = replace(recipe.train, seed=given.seed)
    if given.strength is not None:
        train = replace(train, regulariser=replace(train.regulariser, strength=given.strength))
    settings = replace(recipe, train=train, collect=replace(recipe.collect, seed=given.seed))
    name = "world.demo.quick" if given.quick else "world.demo"
    result = run_demo(settings, given.out, recipe=name, recipe_config=recipe, exists=given.exists)
    say(_summary(result), as_json=given.json)
    return result


def run_demo(
    settings: WorldDemoConfig, out: Path, *, recipe: str, recipe_config: WorldDemoConfig, exists: Exists = "resume"
) -> dict[str, Any]:
    """Run every stage that is not finished yet, and write the report.

    Raises:
        InputError: the directory cannot be used.
        InterruptedRunError: interrupted and saved.
        TrainingError: the latents collapsed.
    """
    with Run.open(out, config=settings, recipe=recipe, recipe_config=recipe_config, exists=exists) as run:
        finished = run.result()
        if finished is not None:
            return finished | {"report": str(write_report(out))}
        clock = _Clock()
        episodes = _episodes(settings.collect, out / "episodes")
        clock.lap("collect")
        try:
            fit = fit_world(settings.train, episodes, out / "train", recipe=recipe, exists="resume", title="train")
        except TrainingError:
            _say_collapsed(out)
            raise
        clock.lap("train")
        stages = _Stages(settings, out)
        result: dict[str, Any] = {"kind": "world.demo", "recipe": recipe, "fit": fit}
        for name, stage in stages.table.items():
            path = out / f"{name}.json"
            if not path.exists():
                files.write_json(path, plain(stage()))
            result[name] = files.read_json(path, what=f"stage {name}")
            clock.lap(name)
        result["seconds"] = clock.laps
        run.write_result(result)
    return result | {"report": str(write_report(out))}


class _Clock:
    """Wall and processor seconds of the stages that this process ran."""

    def __init__(self) -> None:
        self.laps: dict[str, dict[str, float]] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.laps[name] = {"wall": round(now[0] - self._last[0], 1), "cpu": round(now[1] - self._last[1], 1)}
        self._last = now


def _say_collapsed(out: Path) -> None:
    """Draw the page of a demo that the alarm stopped: the alarm's own, under the demo's name."""
    if (open_run(out / "train")["result"] or {}).get("kind") == COLLAPSE:
        files.replace_file(out / REPORT, write_report(out / "train").read_bytes())
        say(f"what happened is drawn in {out / REPORT}", as_json=True)


class _Stages:
    """What is measured on the trained model; each stage is a function of the directory alone."""

    def __init__(self, settings: WorldDemoConfig, out: Path) -> None:
        self.settings, self.out = settings, out
        self.model, self.parts = open_model_and_data(out / "train", out / "episodes")
        self.table: dict[str, Callable[[], Mapping[str, Any]]] = {
            "near": lambda: self.success("near", self.parts, settings.pairs, settings.policies),
            "probe": lambda: measure_probe(self.model, self.fresh()),
            "surprise": self.surprise,
            "pictures": lambda: draw_pictures(self.model, self.parts, settings.goal),
        }
        if settings.far_pairs:
            self.table = {"near": self.table["near"], "far": self.far, **self.table}

    def success(
        self, protocol: str, parts: Mapping[str, Episodes], pairs: int, names: tuple[str, ...]
    ) -> dict[str, Any]:
        offset, budget = PROTOCOLS[protocol]
        settings = EvaluationConfig(offset=offset, budget=budget, num_pairs=pairs, seed=self.settings.train.seed)
        return measure_success(self.model, parts, names, settings, self.settings.goal)

    def far(self) -> dict[str, Any]:
        longer = replace(
            self.settings.collect,
            episodes=self.settings.far_episodes,
            steps=sum(PROTOCOLS["far"]) // 2,
            seed=self.settings.collect.seed + 1,
        )
        parts = {"train": self.parts["train"], "held_out": collect_episodes(longer)}
        return self.success("far", parts, self.settings.far_pairs, ("plan", "subgoals"))

    def fresh(self) -> Episodes:
        """Return more nominal episodes than the training left out, so that probes and quantiles are known well."""
        return collect_episodes(replace(self.settings.collect, seed=self.settings.collect.seed + 2))

    def surprise(self) -> dict[str, Any]:
        with track("surprise", len(PERTURBED), unit="perturbations") as progress:
            monitor, figures = measure_surprise(
                load_world_model(self.out / "train"),
                {"held_out": self.fresh()},
                PERTURBED,
                num_pairs=self.settings.surprise_pairs,
                progress=lambda done, _total: progress.update(done),
            )
        monitor.save(self.out / "surprise", replace=True)
        return figures


def _episodes(settings: CollectConfig, place: Path) -> Episodes:
    if not place.exists():
        with track("collect", settings.episodes, unit="episodes") as progress:
            save_episodes(collect_episodes(settings, progress=progress.update), place)
    return open_episodes(place)


def _summary(result: Mapping[str, Any]) -> str:
    blocks = [fit_rows(result["fit"]), success_rows(result["near"])]
    if "far" in result:
        blocks.append(success_rows(result["far"]))
    blocks += [probe_rows(result["probe"]), surprise_rows(result["surprise"]), {"report": result["report"]}]
    titles = ["model", "near goals", *(["far goals"] if "far" in result else []), "probes", "surprise", ""]
    return "\n" + "\n".join(f"{title}\n{table(rows)}" for title, rows in zip(titles, blocks, strict=True))

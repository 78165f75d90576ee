"""Arms that take turns over batches of prompts, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import Any

from pairs import Arms, Sizes, complete, draft_plan, ssd_plan
from passes import interval_of

from forethought.decode.planning.model_of_speed import Plan
from forethought.decode.sources.steered import demand_of

Batches = Iterator[list[list[int]]]


@dataclass(frozen=True)
class Settings:
    """How much is done: shapes, sizes and repeats."""

    check: str
    target: str
    draft: str
    timed: tuple[str, ...]
    row_counts: tuple[int, ...]
    repeats: int
    acceptances: tuple[float, ...]
    batches: tuple[int, ...]
    races: int
    prompt_length: int
    count: int
    lengths: tuple[int, ...]
    budgets: tuple[int, ...]
    num_checked: int

    @property
    def sizes(self) -> Sizes:
        """The sizes of the engines."""
        length = self.prompt_length + self.count + max(self.lengths) + 2
        return Sizes(max(self.batches), length, max(self.lengths), max(self.budgets))


def settings_of(tiny: bool, quick: bool, pair: str | None) -> Settings:
    """Return how much is done by these flags."""
    if tiny:
        shapes = ("tiny", pair or "tiny", "tiny-draft", ("tiny", "tiny-draft"))
        return Settings(*shapes, (1, 4), 3, (0.8,), (1, 2), 2, 24, 16, (3,), (6,), 3)
    if quick:
        shapes = ("350m", pair or "1.3b", "120m", ("1.3b", "120m"))
        return Settings(*shapes, (1, 2, 4, 8, 16, 32), 15, (0.8,), (1, 4), 6, 128, 96, (3, 5), (12,), 4)
    shapes = ("350m", pair or "7b", "120m", ("1.3b", "7b", "120m"))
    counts = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
    return Settings(*shapes, counts, 25, (0.8, 0.6, 0.9), (1, 4, 16), 9, 128, 128, (2, 4, 6, 8), (12, 24), 16)


@dataclass
class Race:
    """What the arms did: tokens a second of every turn, the prompts, every arm's answers, and the counts."""

    speeds: dict[str, list[float]]
    prompts: list[list[int]]
    answers: dict[str, list[list[int]]]
    chosen: dict[str, str]
    counts: dict[str, dict[str, float]]

    def figures(self) -> dict[str, Any]:
        """Return plain values: a speed with its interval an arm, and the paired ratios."""
        found: dict[str, Any] = {"chosen": self.chosen}
        found |= {name: interval_of(own) | self.counts[name] for name, own in self.speeds.items()}
        for above, below in (("sd", "ar"), ("ssd", "ar"), ("ssd", "sd")):
            found[f"{above}_over_{below}"] = interval_of(self.speeds[above], self.speeds[below])
        return found

    def num_differing(self, expected: Callable[[list[int]], list[int]]) -> dict[str, int]:
        """Return how many tokens of each arm are not the expected ones."""
        wanted = [expected(prompt) for prompt in self.prompts]
        return {name: sum(map(_num_differing, own, wanted)) for name, own in self.answers.items()}


def race(arms: Arms, batches: Batches, settings: Settings) -> Race:
    """Choose each arm's plan on the first batch, then let the arms take turns over the next ones."""
    chosen = tune(arms, next(batches), settings)
    engines = arms.engines
    before = {name: engine.counts.to_dict() for name, engine in engines.items()}
    done = Race({name: [] for name in engines}, [], {name: [] for name in engines}, chosen, {})
    names = list(engines)
    for turn in range(settings.races):
        prompts = next(batches)
        done.prompts += prompts
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            tokens, speed = complete(engines[name], prompts, settings.count)
            done.speeds[name].append(speed)
            done.answers[name] += tokens
    done.counts = {name: counts_since(before[name], engine.counts.to_dict()) for name, engine in engines.items()}
    return done


def tune(arms: Arms, prompts: list[list[int]], settings: Settings) -> dict[str, str]:
    """Set each speculating arm to its fastest plan on these prompts and say which that is; all get warm on the way."""
    complete(arms.engines["ar"], prompts, settings.count)
    plans: dict[str, dict[str, Plan]] = {
        "sd": {f"K={k}": draft_plan(k) for k in settings.lengths},
        "ssd": {f"K={k} B={b}": ssd_plan(k, b) for k, b in product(settings.lengths, settings.budgets)},
    }
    chosen: dict[str, str] = {}
    for name, own in plans.items():
        speeds: dict[str, float] = {}
        for label, plan in own.items():
            arms.sources[name].demand = demand_of(plan)
            # Twice: in the first run the shapes that are new are captured.
            speeds[label] = [complete(arms.engines[name], prompts, settings.count)[1] for _ in range(2)][-1]
        chosen[name] = max(speeds, key=speeds.__getitem__)
        arms.sources[name].demand = demand_of(own[chosen[name]])
    return chosen


def counts_since(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Return, between two counts, acceptance, drafts foreseen, tokens and times (ms) a step.

    A drafted token counts for the acceptance where all before it in its draft were kept.
    """
    steps, accepted, tokens = (
        after["counters"][name] - before["counters"][name] for name in ("steps", "accepted_tokens", "generated_tokens")
    )
    drafted_K, accepted_K = (
        [
            count - earlier
            for count, earlier in zip_longest(after["by_position"][name], before["by_position"][name], fillvalue=0)
        ]
        for name in ("drafted", "accepted")
    )
    reached_K = [min(pair) for pair in zip(drafted_K, [*drafted_K[:1], *accepted_K], strict=False)]
    sources = {name: count - before["by_source"].get(name, 0) for name, count in after["by_source"].items()}
    found = {
        "acceptance": accepted / max(sum(reached_K), 1),
        "cache_share": sources.get("cache", 0) / max(sum(sources.values()), 1),
        "tokens_per_step": tokens / max(steps, 1),
    }
    for name in ("verify_seconds", "stall_seconds", "step_seconds"):
        spent = after["histograms"][name]["sum"] - before["histograms"][name]["sum"]
        found[f"{name.removesuffix('_seconds')}_ms"] = 1e3 * spent / max(steps, 1)
    return found


def describe_race(label: str, found: dict[str, Any]) -> str:
    """Return one line for people."""
    speeds = " ".join(f"{name} {found[name]['median']:.0f}" for name in ("ar", "sd", "ssd"))
    ratios = "; ".join(
        "{} {median:.2f} [{low:.2f}, {high:.2f}]".format(name.replace("_over_", "/"), **found[name])
        for name in ("sd_over_ar", "ssd_over_ar", "ssd_over_sd")
    )
    shares = f"accepted {found['sd']['acceptance']:.2f}, foreseen {found['ssd']['cache_share']:.2f}"
    plans = ", ".join(f"{name} {plan}" for name, plan in found["chosen"].items())
    return f"race {label}, tokens/s: {speeds}; {ratios}; {shares}; {plans}"


def _num_differing(left: list[int], right: list[int]) -> int:
    return sum(a != b for a, b in zip(left, right, strict=True))

"""The planner: sets how much is speculated, from measured curves and from what rounds bring.

It learns acceptance and ranks, forecasts every plan by `model_of_speed`, and takes the best. Three rules keep it within
a few per cent of the best fixed plan: a new plan must promise a margin more than the present one; a plan that might be
better, for all that is known, is tried out for a few rounds, paid from a small account of time; and measured times
correct the curves. What it chooses depends on judged drafts and on times only, and repeats for the same observations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.decode.drafter.foresight import FanOut
from forethought.decode.engine import Round
from forethought.decode.planning.beliefs import KINS, RoundTimes, VerdictCounts, kin_of
from forethought.decode.planning.model_of_speed import (
    Beliefs,
    CostCurves,
    Costs,
    Fallback,
    Forecast,
    Kin,
    Method,
    Plan,
    classic,
    forecast,
    foreseeing,
    from_ngrams,
    plain,
)
from forethought.decode.sources.shadow import Shadow

BUDGETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
# The first drafts judged after a change were made under the old plan, and the first of a new one are not typical.
LAG = 2
# Weighing what might be tried out costs as much as planning itself.
TRIALS_EVERY = 3
# The report compares over some thousand rounds: fewer say little about tokens a second.
REPORT_DECAY = 0.999
TIMES_DECAY = 0.99
CREDIT_ROUNDS = 2000
# Of a large batch so many verdicts a round are learned from, taken in turn: they come faster than texts change.
MOST_VERDICTS = 6
# A batch that grows or shrinks is planned for anew this often at most, as a share of the usual time between.
HASTE = 0.15
# A new plan that brings so much less than was promised in its first rounds is thought over at once.
DISAPPOINTING, FIRST_ROUNDS = 0.9, 6
# The plan that priors choose is soon thought over.
FIRST_PATIENCE, MOST_PATIENCE = 0.2, 4.0


@config
class PlannerConfig:
    """What the planner may choose, and how it goes about it.

    `methods` besides plain decoding, which is always allowed; `lengths` and `budgets` to consider. `margin`: how much
    more a new plan must promise. `exploration`: the share of time for trying plans out, `trial` the rounds of a trial.
    `decay`: what of a verdict's weight is left after the next. A new plan is considered after `rounds` rounds and
    `seconds` seconds (a fifth of that at first, up to four times that while nothing changes), since considering takes
    about two milliseconds.

    Raises:
        ConfigError: a field is unknown or out of range.
    """

    methods: tuple[Method, ...] = ("ngram", "draft", "ssd")
    fallbacks: tuple[Fallback, ...] = ("draft", "ngram", "none")
    lengths: tuple[Annotated[int, Field(ge=1, le=32)], ...] = LENGTHS[:10]
    budgets: tuple[Annotated[int, Field(ge=1, le=256)], ...] = BUDGETS[2:10]
    fan_out: FanOut = "empirical"
    margin: Annotated[float, Field(ge=0.0, le=0.2)] = 0.01
    exploration: Annotated[float, Field(ge=0.0, le=0.1)] = 0.006
    trial: Annotated[int, Field(ge=1)] = 6
    optimism: Annotated[float, Field(ge=0.0)] = 1.5
    decay: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.998
    rounds: Annotated[int, Field(ge=1)] = 8
    seconds: Annotated[float, Field(ge=0.0)] = 0.3


@dataclass
class _Account:
    """What was forecast and what came, decayed by round."""

    rounds: int = 0
    trials: int = 0
    trial_rounds: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    forecast_tokens: float = 0.0

    def add(self, tokens: float, seconds: float, forecast_rate: float) -> None:
        self.tokens = self.tokens * REPORT_DECAY + tokens
        self.seconds = self.seconds * REPORT_DECAY + seconds
        self.forecast_tokens = self.forecast_tokens * REPORT_DECAY + forecast_rate * seconds


class Planner:
    """Observes rounds and keeps `plan` the one to draft by; `on_change` hears of every new one."""

    def __init__(
        self, config: PlannerConfig, costs: CostCurves, *, on_change: Callable[[Plan], None] | None = None
    ) -> None:
        """Start from priors, at a batch of one sequence.

        Raises:
            ConfigError: a method needs a draft's curve that is not there.
        """
        if costs.draft is None and {"draft", "ssd"} & set(config.methods):
            raise ConfigError(f"the methods {list(config.methods)} need the draft's curve; give it, or only ngram")
        self.config, self.costs, self.on_change = config, costs, on_change
        self._verdicts = VerdictCounts(max((*config.lengths, 1)), max((*config.budgets, 1)), config.decay)
        self._times = RoundTimes(TIMES_DECAY)
        self._accounts = _Account()
        self._batch, self._context, self._credit, self._round_seconds = 1.0, 0.0, 0.0, 0.0
        self._since_change, self._since_considered, self._seconds_since, self._planned_batch = 0, 0, 0.0, 1.0
        self._trial_left, self._considered, self._patience, self._steady = 0, 0, FIRST_PATIENCE, 0
        self._came, self._took = 0.0, 0.0
        self._tried_at: dict[tuple[Method, Fallback], int] = {}
        self._best = self._forecasts(self._beliefs())[0]
        self._by_ranks = self._by_curve = self._promised = self._best
        self.plan = self._best.plan

    def observe(self, happened: Round) -> None:
        """Learn of a round, its drafts made under the present plan or the one before, and plan the coming ones."""
        if not happened.verdicts:
            return
        self._context = self._context if happened.context is None else happened.context
        batch = float(max(happened.num_decoding, 1))
        self._steady = self._steady + 1 if batch == self._batch else 0
        self._batch = batch
        self._learn(happened)
        self._since_change += 1
        self._since_considered += 1
        self._seconds_since += happened.total
        self._round_seconds += 0.1 * (happened.total - self._round_seconds)
        if self._trial_left:
            self._trial_left -= 1
            self._accounts.trial_rounds += 1
            if not self._trial_left:
                self._consider()
            return
        self._credit = min(self._credit + self.config.exploration * happened.total, self._most_credit)
        due = (
            self._since_considered >= self.config.rounds and self._seconds_since >= self.config.seconds * self._patience
        )
        # Plans are for a batch: one of another size cannot wait long, unless sizes change all the time.
        low, high = sorted((self._batch, self._planned_batch))
        other = high > 1.25 * low and self._since_considered >= min(LAG, self.config.rounds)
        if due or self._is_disappointing or (other and self._seconds_since >= HASTE * self.config.seconds):
            self._consider()

    def observe_rank(self, source: str, num_drafted: int, accepted: int, rank: int | None) -> None:
        """Learn the rank of a bonus token among the draft's guesses; without any, foreseen verdicts tell less."""
        self._verdicts.observe_rank(source, num_drafted, accepted, rank)

    def observe_shadow(self, shadow: Shadow) -> None:
        """Learn what prompt lookup would have proposed and how much of it was then committed, at no cost in rounds."""
        kins: tuple[Kin, ...] = ("ngram",)
        if shadow.after_miss and self.plan.method == "ssd" and self.plan.fallback != "ngram":
            kins = ("ngram", "rescue")
        for kin in kins:
            self._verdicts.observe(kin, shadow.num_drafted, shadow.accepted, shadow.num_drafted)

    def forecast(self, plan: Plan) -> Forecast:
        """Forecast any plan as things stand."""
        return self._forecast(plan, self._beliefs())

    def report(self) -> dict[str, Any]:
        """Return the plan (on trial perhaps) and the best one, what was promised, what came and what is believed."""
        done, beliefs = self._accounts, self._beliefs()
        achieved = done.tokens / done.seconds if done.seconds else None
        predicted = done.forecast_tokens / done.seconds if done.seconds else None
        return {
            "plan": asdict(self.plan) | {"speculate": self.plan.speculate},
            "best_plan": asdict(self._best.plan) | {"speculate": self._best.plan.speculate},
            "predicted_tokens_per_second": predicted,
            "achieved_tokens_per_second": achieved,
            "achieved_over_predicted": achieved / predicted if achieved and predicted else None,
            "hit_rate": self._best.hit if self.plan.method == "ssd" else None,
            "acceptance": {kin: beliefs.acceptance_K[kin].tolist() for kin in KINS if kin != "none"},
            "batch_size": self._batch,
            "rounds": done.rounds,
            "trials": done.trials,
            "trial_rounds": done.trial_rounds,
        }

    def _learn(self, happened: Round) -> None:
        first = self._accounts.rounds * MOST_VERDICTS % len(happened.verdicts)
        turn = happened.verdicts[first:] + happened.verdicts[:first]
        for source, num_drafted, accepted in turn[:MOST_VERDICTS]:
            kin = kin_of(source, self.plan)
            if self._verdicts.observe(kin, num_drafted, accepted, self.plan.num_speculative_tokens):
                self._patience = 1.0
        settled = self._since_change >= LAG
        if self.plan.method == "ssd" and settled:
            for source, num_drafted, _ in turn[:MOST_VERDICTS]:
                self._verdicts.observe_hit(source == "cache", self._by_ranks.hit)
                if source == "cache":
                    self._times.observe_depth(num_drafted, self.plan.num_speculative_tokens, self._by_curve.reach)
        self._accounts.rounds += 1
        prompts = happened.num_rows - sum(drafted + 1 for _, drafted, _ in happened.verdicts)
        if prompts > 0 or not settled:
            return
        # The forecast is of a typical round; the pass is compared at the rows that there were.
        by_curve = float(self.costs.target(happened.num_rows, self._context))
        host = happened.total - happened.stall - happened.verify
        self._times.observe(
            self.plan.method,
            passes=happened.verify,
            by_curve=by_curve,
            stall=happened.stall,
            expected=self._by_curve.stall,
            host=host,
        )
        self._accounts.add(happened.emitted, happened.total, self._promised.rate)
        self._came, self._took = self._came + happened.emitted, self._took + happened.total

    def _consider(self) -> None:
        """Take the plan with the best forecast, or try out one that might be better still."""
        self._since_considered, self._seconds_since, self._planned_batch = 0, 0.0, self._batch
        beliefs = self._beliefs()
        found = self._forecasts(beliefs)
        present = self._forecast(self._best.plan, beliefs)
        best = found[0] if found[0].rate > (1.0 + self.config.margin) * present.rate else present
        # Where considering changes nothing it is done less often.
        most = MOST_PATIENCE if best.plan == self._best.plan else 1.0
        self._patience = min(2.0 * self._patience, most)
        self._best = best
        self._considered += 1
        # What a trial finds out is for this batch: one that is shrinking will be gone.
        may_try = self._considered % TRIALS_EVERY == 0 and self._steady >= self.config.trial
        trial = self._worth_a_trial(best, beliefs) if may_try else None
        if trial is None:
            self._set(best.plan, beliefs)
            return
        self._trial_left = self.config.trial + LAG
        self._accounts.trials += 1
        self._set(trial, beliefs)

    def _worth_a_trial(self, best: Forecast, beliefs: Beliefs) -> Plan | None:
        """A plan that would beat the best one if what is unsure about it turned out well, and that can be paid for."""
        if self.config.exploration == 0.0:
            return None
        waiting: list[tuple[int, float, Plan]] = []
        for hope in self._forecasts(self._beliefs(self.config.optimism), self.config.optimism):
            if hope.rate <= (1.0 + 2.0 * self.config.margin) * best.rate or hope.plan == best.plan:
                continue
            sober = self._forecast(hope.plan, beliefs)
            loss = max(sober.seconds - sober.tokens / best.rate, 0.02 * sober.seconds)
            # SSD has nothing prepared for the round in which it comes back.
            lost = 0.5 * best.seconds if best.plan.method == "ssd" and hope.plan.method != "ssd" else 0.0
            price = (self.config.trial + LAG) * loss + lost
            if price <= self._most_credit:
                waiting.append((self._tried_at.get(_family(hope.plan), 0), price, hope.plan))
        if not waiting:
            return None
        # Whoever waited longest is saved up for: cheap trials of what is known well would eat up all credit.
        _, price, plan = min(waiting, key=lambda choice: choice[0])
        if price > self._credit:
            return None
        self._credit -= price
        self._tried_at[_family(plan)] = self._considered
        return plan

    @property
    def _is_disappointing(self) -> bool:
        if self._since_change != max(LAG + FIRST_ROUNDS, self.config.rounds):
            return False
        return self._came < DISAPPOINTING * self._promised.rate * self._took

    @property
    def _most_credit(self) -> float:
        """What the account can hold: having grown for an hour, it must not pay for a minute of bad plans."""
        return CREDIT_ROUNDS * self.config.exploration * self._round_seconds

    def _set(self, plan: Plan, beliefs: Beliefs) -> None:
        # Against these the times of the coming rounds are held: the waits without what was learned of waits.
        costs = replace(self._costs(plan.method), delay=0.0)
        self._by_curve = forecast(plan, costs, beliefs, self._batch)
        if plan.method == "ssd":
            self._by_ranks = forecast(plan, costs, self._verdicts.beliefs(by_ranks_alone=True), self._batch)
        self._promised = self._forecast(plan, beliefs)
        if plan != self.plan:
            self.plan, self._since_change = plan, 0
            self._came, self._took = 0.0, 0.0
            if self.on_change is not None:
                self.on_change(plan)

    def _forecasts(self, beliefs: Beliefs, optimism: float = 0.0) -> list[Forecast]:
        """The best plan of each method (of SSD, with each fallback), the best first.

        Of plain decoding nothing but the time is unsure, of the others what `beliefs` already lean to.
        """
        settings, batch = self.config, self._batch
        found = [plain(self._costs("none", optimism), batch)]
        if "ngram" in settings.methods:
            costs = self._costs("ngram")
            found.append(max((from_ngrams(costs, beliefs, batch, length) for length in settings.lengths), key=_rate))
        if "draft" in settings.methods:
            costs = self._costs("draft")
            found.append(max((classic(costs, beliefs, batch, length) for length in settings.lengths), key=_rate))
        if "ssd" in settings.methods:
            costs = self._costs("ssd")
            found += [
                foreseeing(costs, beliefs, batch, settings.lengths, settings.budgets, fallback, settings.fan_out)
                for fallback in settings.fallbacks
            ]
        return sorted(found, key=_rate, reverse=True)

    def _forecast(self, plan: Plan, beliefs: Beliefs) -> Forecast:
        return forecast(plan, self._costs(plan.method), beliefs, self._batch)

    def _beliefs(self, optimism: float = 0.0) -> Beliefs:
        return self._verdicts.beliefs(optimism=optimism)

    def _costs(self, method: Method, optimism: float = 0.0) -> Costs:
        return self._times.costs(method, self.costs.at(self._context), optimism)


def _family(plan: Plan) -> tuple[Method, Fallback]:
    return plan.method, plan.fallback


def _rate(one: Forecast) -> float:
    return one.rate

"""R8: any sequence of arrivals, steps, verdicts, aborts, stops, failures, samples of a parent and resets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.decode.mutants import POOLS, SCHEDULERS, STARVING
from tests.decode.paging import World, a_draft, continuation, random_arrival, random_settings

from forethought.core.errors import ForethoughtError
from forethought.core.rng import generator
from forethought.decode.batching.pages import PageManager
from forethought.decode.batching.scheduler import Scheduler
from forethought.decode.request import Request

_indices = st.integers(0, 99)


class Machine(RuleBasedStateMachine):
    """A world in which anything may happen next; its own checks run after every rule."""

    scheduler_class: type[Scheduler] = Scheduler
    pages_class: type[PageManager] = PageManager
    world: World

    @initialize(seed=st.integers(0, 10_000), num_there=st.integers(0, 6))
    def build(self, seed: int, num_there: int) -> None:
        """Small pools of every shape with a few requests; the seed stands for both, which need not shrink."""
        rng = generator(seed, "test.scheduler.machine")
        self.world = World(*random_settings(rng), scheduler=self.scheduler_class, pages=self.pages_class)
        for _ in range(num_there):
            random_arrival(rng, self.world)

    def pick(self, index: int) -> Request:
        return list(self.world.live.values())[index % len(self.world.live)]

    @rule(root=st.integers(0, 2), length=_indices, num_new=_indices)
    def add(self, root: int, length: int, num_new: int) -> None:
        longest = self.world.scheduler.max_length
        prompt = continuation([root], 1 + length % (longest - 1))
        self.world.add(prompt, 1 + num_new % (longest - len(prompt)))

    @precondition(lambda self: self.world.live)
    @rule(index=_indices, num_new=_indices)
    def add_sample(self, index: int, num_new: int) -> None:
        parent = self.pick(index)
        room = self.world.scheduler.max_length - len(parent.prompt)
        self.world.add(parent.prompt, 1 + num_new % room, parent)

    @precondition(lambda self: self.world.live)
    @rule(lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=3), stop=_indices)
    def step(self, lengths: list[tuple[int, int]], stop: int) -> None:
        """Each request has a draft of some length, right up to some place; now and then a kept token is a stop."""

        def draft(request: Request) -> Sequence[int]:
            length, right = lengths[request.id % len(lengths)]
            return a_draft(request.tokens, length, min(length, right))

        def stops(request: Request, num_kept: int) -> int | None:
            return 1 + stop % num_kept if (request.id + stop) % 13 == 0 else None

        self.world.step(draft, stops)

    @precondition(lambda self: self.world.live)
    @rule(num_steps=st.integers(5, 30))
    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.world.step(lambda request: a_draft(request.tokens, 3, request.id % 4))

    @precondition(lambda self: self.world.live)
    @rule(index=_indices)
    def abort(self, index: int) -> None:
        self.world.abort(self.pick(index))

    @precondition(lambda self: self.world.live)
    @rule(index=_indices)
    def abort_while_it_is_computed(self, index: int) -> None:
        """The verdicts of a step come back after one of its requests has gone."""
        victim = self.pick(index)
        works = self.world.scheduler.schedule({})
        self.world.compute(works)
        self.world.abort(victim)
        for work in works:
            if work.request is victim:
                self.world.scheduler.commit(work, 0, [0] if work.decides else [])
            else:
                self.world.judge(work, lambda request, num_kept: None)
        self.world.num_steps += 1

    @rule(what=st.sampled_from(["fail", "fail", "lose", "lose", "lose", "clear", "reset"]), index=_indices)
    def upset(self, what: str, index: int) -> None:
        """A request is found to be bad, a whole step is lost, the cache is cleared, or everything ends."""
        scheduler = self.world.scheduler
        if what == "reset":
            self.world.reset()
        elif what == "clear":
            self.world.pages.clear_cache()
        elif what == "fail" and self.world.live:
            self.world.finish(self.pick(index), poisoned=True)
        elif what == "lose" and self.world.live:
            scheduler.schedule({request.id: [0, 0] for request in scheduler.decoding()})
            self.world.step()

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


def play(machine: type[Machine], num_runs: int, num_steps: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_runs,
            stateful_step_count=num_steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[phase for phase in phases if phase is not Phase.explain],
        ),
    )


def test_anything_may_happen() -> None:
    play(Machine, 200, 60)


@pytest.mark.nightly
def test_anything_may_happen_1000_times_60() -> None:
    play(Machine, 1000, 60)


@pytest.mark.parametrize("mutant", [*STARVING, *SCHEDULERS, *POOLS])
def test_the_machine_finds_planted_defects(mutant: type) -> None:
    class Planted(Machine):
        scheduler_class = mutant if issubclass(mutant, Scheduler) else Scheduler
        pages_class = mutant if issubclass(mutant, PageManager) else PageManager

    with pytest.raises((AssertionError, ForethoughtError, LookupError)):
        play(Planted, 2000, 60, [Phase.generate])

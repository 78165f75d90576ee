"""What happens to a world at a step: physical violations that a model should notice, and changes of looks only.

A perturbation takes over how the world moves and how it is shown from its event on. The monitor is always told the
actions that were commanded.

Legend: B episodes, T steps, S numbers of a state, A numbers of an action, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import unknown_name
from forethought.world.planning.evaluate import Arena

Array = NDArray[Any]


@dataclass(frozen=True)
class Moment:
    """What a perturbation sees: the arena, commanded actions (T, B, A), the step and its generator.

    places: which numbers of a state are the position of what moves. low, high: where it may be.
    """

    arena: Arena
    actions_TBA: Array
    step: int
    event: int
    draws: np.random.Generator
    places: tuple[int, ...]
    low: float
    high: float


def _as_commanded(moment: Moment) -> None:
    moment.arena.step(moment.actions_TBA[moment.step])


def _shown_as_is(frames_BHWC: Array, moment: Moment) -> Array:
    return frames_BHWC


@dataclass(frozen=True)
class Perturbation:
    """One way to break a world (physical) or its looks (visual).

    move: advances the arena by one step at or after the event. show: what the camera gives at or after the event.
    first, last: the steps after the event whose frames show it and whose context does not (None: frame-skip - 1).
    """

    name: str
    is_physical: bool
    move: Callable[[Moment], None] = _as_commanded
    show: Callable[[Array, Moment], Array] = _shown_as_is
    first: int = 0
    last: int | None = None


def teleport(distance: float) -> Perturbation:
    """What moves jumps by `distance` (in the units of the state) in a random direction, once; 0 changes nothing."""

    def move(moment: Moment) -> None:
        _as_commanded(moment)
        if moment.step != moment.event - 1:
            return
        states = moment.arena.states().copy()
        places = list(moment.places)
        here = states[:, places]
        best = here.copy()
        missing = np.ones(len(here), bool)
        for _ in range(32):
            direction = moment.draws.normal(size=here.shape)
            there = here + distance * direction / np.linalg.norm(direction, axis=1, keepdims=True)
            inside = ((there >= moment.low) & (there <= moment.high)).all(axis=1) & missing
            best[inside], missing = there[inside], missing & ~inside
        # Where no direction leaves room, towards the middle there is the most.
        towards = (moment.low + moment.high) / 2 - here[missing]
        norm = np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)
        best[missing] = here[missing] + distance * towards / norm
        states[:, places] = best
        moment.arena.reset(states)

    return Perturbation("teleport", True, move=move)


def freeze() -> Perturbation:
    """Nothing moves any more, whatever is commanded."""
    return Perturbation("freeze", True, move=lambda moment: None, first=4, last=9)


def sign_flip() -> Perturbation:
    """Every action does its opposite."""

    def move(moment: Moment) -> None:
        moment.arena.step(-moment.actions_TBA[moment.step])

    return Perturbation("sign_flip", True, move=move, first=4, last=9)


def delay(steps: int = 5) -> Perturbation:
    """Every action acts `steps` late."""

    def move(moment: Moment) -> None:
        moment.arena.step(moment.actions_TBA[max(moment.step - steps, 0)])

    return Perturbation("delay", True, move=move, first=4, last=9)


def double_speed() -> Perturbation:
    """Every action acts twice."""

    def move(moment: Moment) -> None:
        _as_commanded(moment)
        _as_commanded(moment)

    return Perturbation("double_speed", True, move=move, first=4, last=9)


def recolour() -> Perturbation:
    """What stands out from the still background changes its colour: the channels of each frame trade places."""

    def show(frames_BHWC: Array, moment: Moment) -> Array:
        return np.ascontiguousarray(frames_BHWC[..., [2, 0, 1]])

    return Perturbation("recolour", False, show=show)


def lighting(factor: float = 0.7) -> Perturbation:
    """The light dims."""

    def show(frames_BHWC: Array, moment: Moment) -> Array:
        return (frames_BHWC.astype(np.float32) * factor).astype(np.uint8)

    return Perturbation("lighting", False, show=show)


def camera_shift(share: float = 0.05) -> Perturbation:
    """The camera moves sideways by a share of the frame."""

    def show(frames_BHWC: Array, moment: Moment) -> Array:
        pixels = max(1, round(share * frames_BHWC.shape[2]))
        shifted = np.roll(frames_BHWC, pixels, axis=2)
        shifted[:, :, :pixels] = frames_BHWC[:, :, :1]
        return shifted

    return Perturbation("camera_shift", False, show=show)


def wall_penetration() -> Perturbation:
    """What moves crosses the room for ten steps as if nothing stood in its way, 1/20 of the room a step."""

    def move(moment: Moment) -> None:
        states = moment.arena.states().copy()
        places, span = list(moment.places), moment.high - moment.low
        here = states[:, places]
        side = np.where(here[:, 0] < (moment.low + moment.high) / 2, 1.0, -1.0)
        here[:, 0] = np.clip(here[:, 0] + side * span / 20 * (moment.step < moment.event + 10), moment.low, moment.high)
        states[:, places] = here
        moment.arena.reset(states)

    return Perturbation("wall_penetration", True, move=move, first=4, last=9)


def vanish() -> Perturbation:
    """What moves cannot be seen any more; it goes on acting."""

    def show(frames_BHWC: Array, moment: Moment) -> Array:
        return _background(moment)

    return Perturbation("vanish", True, show=show)


def duplicate() -> Perturbation:
    """A second one of what moves is seen half the room away, doing the same."""

    def show(frames_BHWC: Array, moment: Moment) -> Array:
        states = moment.arena.states()
        here, span = states[:, list(moment.places)], moment.high - moment.low
        copies = _frames_at(moment, states, moment.low + (here - moment.low + span / 2) % span)
        still = _background(moment).astype(np.int16)
        own, other = (np.abs(frames - still).max(axis=3, keepdims=True) for frames in (frames_BHWC, copies))
        return np.where(other > own, copies, frames_BHWC)

    return Perturbation("duplicate", True, show=show)


def _background(moment: Moment) -> Array:
    """Return what is seen where nothing moves: the median of frames with what moves at five places far apart."""
    states, span = moment.arena.states(), moment.high - moment.low
    shown = []
    for number in range(5):
        # Multiples of irrational numbers spread over the room without repeating a row or a column.
        shares = (0.1 + number * np.array([0.618034, 0.754878, 0.569840])[np.arange(len(moment.places)) % 3]) % 1.0
        shown.append(_frames_at(moment, states, np.tile(moment.low + shares * span, (len(states), 1))))
    return np.median(np.stack(shown), axis=0).astype(np.uint8)


def _frames_at(moment: Moment, states_BS: Array, places_BP: Array) -> Array:
    """Return the frames of states with what moves put elsewhere; the arena is left as it was."""
    moved = states_BS.copy()
    moved[:, list(moment.places)] = places_BP
    moment.arena.reset(moved)
    frames = moment.arena.frames()
    moment.arena.reset(states_BS)
    return frames


PERTURBATIONS: dict[str, Callable[..., Perturbation]] = {
    "camera_shift": camera_shift,
    "delay": delay,
    "double_speed": double_speed,
    "duplicate": duplicate,
    "freeze": freeze,
    "lighting": lighting,
    "recolour": recolour,
    "sign_flip": sign_flip,
    "teleport": teleport,
    "vanish": vanish,
    "wall_penetration": wall_penetration,
}


def perturbation(name: str, **options: float) -> Perturbation:
    """Return a perturbation by name; teleport needs its distance.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PERTURBATIONS:
        raise unknown_name("perturbation", name, PERTURBATIONS)
    return PERTURBATIONS[name](**options)

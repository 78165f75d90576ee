"""A monitor that says how surprising each frame is, given the frames and actions before it.

The frame at step t is predicted from frames t - s, t - 2s, ... (s the frame-skip, at most `history` of them) and the
actions in between; the residual is scored against what was normal. All s phases run interleaved, so a sudden event is
judged at its own step. An event at t* stays in the context until t* + history * s.

Legend: T steps, B episodes, H W rows and columns, A numbers of an action, D latent width.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core import files
from forethought.core.errors import ArtefactError, ConfigError, InputError
from forethought.data import Episodes
from forethought.world.model import WorldModel
from forethought.world.surprise.calibration import Calibration, fit_calibration

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Event:
    """The verdict on one frame; NaN and not valid where there was no context or a frame was missing.

    raw: mean squared residual. error: the chosen score. z, p: how far from normal, and the conformal p-value. flag: p
    below alpha. drift: the CUSUM of z. alarm: the CUSUM stands above its threshold.
    """

    step: int
    valid: bool
    raw: float
    error: float
    z: float
    p: float
    flag: bool
    drift: float
    alarm: bool


@dataclass(frozen=True)
class Trace:
    """The verdicts on the frames of an episode, one array a field, indexed by step; what Event says of each."""

    raw: Floats
    error: Floats
    z: Floats
    p: Floats
    flag: NDArray[np.bool_]
    drift: Floats
    alarm: NDArray[np.bool_]
    valid: NDArray[np.bool_]

    @classmethod
    def of(cls, events: Sequence[Event]) -> Trace:
        """Return the trace of events in their order."""
        floats = {name: np.array([getattr(e, name) for e in events], np.float64) for name in _FLOATS}
        flags = {name: np.array([getattr(e, name) for e in events], bool) for name in _FLAGS}
        return cls(**floats, **flags)


_FLOATS, _FLAGS = ("raw", "error", "z", "p", "drift"), ("flag", "alarm", "valid")


class SurpriseMonitor:
    """Judges frames against a world model's predictions, online (`step`) or offline (`trace`), with the same bits.

    score: mahalanobis, mse or log-z (see Calibration). history: frames of context at most (default: the model's).
    alpha: a frame is flagged where its conformal p-value is below it.

    Raises:
        InputError: the model is in training mode.
        ConfigError: history or alpha is out of range.
    """

    def __init__(
        self, model: WorldModel, score: str = "mahalanobis", history: int | None = None, *, alpha: float = 0.05
    ) -> None:
        model.require_eval()
        self.model, self.score, self.alpha = model, score, alpha
        self.history = model.config.history if history is None else history
        if not 1 <= self.history <= model.config.history or not 0 < alpha < 1:
            raise ConfigError(
                f"history {self.history} must be 1 to {model.config.history}, and alpha {alpha} between 0 and 1"
            )
        self.calibration: Calibration | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the stream, as at the start of an episode."""
        span = self.history * self.model.config.frame_skip
        self._latents: deque[Tensor | None] = deque(maxlen=span + 1)
        self._actions: deque[Tensor] = deque(maxlen=span)
        self._step = 0
        self._cusum = None if self.calibration is None else _fresh(self.calibration)

    def calibrate(
        self,
        episodes: Episodes,
        *,
        max_windows: int = 5000,
        false_alarm: float = 0.01,
        horizon: int = 1000,
    ) -> Calibration:
        """Learn what is normal from held-out nominal episodes, at most `max_windows` frames of them.

        `false_alarm` is the chance that the CUSUM alarms within `horizon` nominal steps.

        Raises:
            InputError: there are too few episodes or frames.
        """
        residuals: list[dict[int, Floats]] = []
        judged = 0
        for index in range(episodes.num_episodes):
            if judged >= max_windows:
                break
            rows = episodes.episode(index)
            found = self.residuals(rows["frames"][None], rows["actions"][None], everywhere=True)
            residuals.append({context: each[0] for context, each in found.items() if each.shape[1]})
            judged += len(rows["frames"])
        self.calibration = fit_calibration(
            self.score, residuals, self._fingerprint(), false_alarm=false_alarm, horizon=horizon
        )
        self.reset()
        return self.calibration

    def step(self, frame_HWC: Array | None, action_A: Array) -> Event:
        """Judge a frame (None: it is missing) and take in the action that leaves it; O(1) in the length of the stream.

        Raises:
            InputError: the monitor is not calibrated, or the model is in training mode.
        """
        event = self.judge(frame_HWC)
        self.record(action_A)
        return event

    def judge(self, frame_HWC: Array | None) -> Event:
        """Judge a frame before the next action is known; `record` must follow.

        Raises:
            InputError: the monitor is not calibrated, or the model is in training mode.
        """
        calibration = self._calibrated()
        latent = None if frame_HWC is None else self._encode(frame_HWC)
        self._latents.append(latent)
        residual, context = self._residual(latent)
        self._step += 1
        if residual is None:
            drift = 0.0 if self._cusum is None else self._cusum.value
            return Event(self._step - 1, False, math.nan, math.nan, math.nan, math.nan, False, drift, False)
        error = calibration.error(residual, context)
        z, p = calibration.z(error, context), calibration.p(error, context)
        alarm = self._cusum is not None and self._cusum.update(z)
        drift = 0.0 if self._cusum is None else self._cusum.value
        raw = float(np.mean(np.square(residual)))
        return Event(self._step - 1, True, raw, error, z, p, p < self.alpha, drift, alarm)

    def record(self, action_A: Array) -> None:
        """Take in the action that leaves the frame judged last; NaN is read as the mean action."""
        self._actions.append(torch.as_tensor(np.asarray(action_A, np.float32)))

    def trace(self, frames_THWC: Array, actions_TA: Array) -> Trace:
        """Judge a recorded episode from its first frame; the same bits as `step` by `step`.

        Raises:
            InputError: there are not as many actions as frames, or as for `step`.
        """
        if len(frames_THWC) != len(actions_TA):
            raise InputError(f"{len(frames_THWC)} frames and {len(actions_TA)} actions; give one action a frame")
        self.reset()
        return Trace.of([self.step(frame, action) for frame, action in zip(frames_THWC, actions_TA, strict=True)])

    def traces(self, frames_BTHWC: Array, actions_BTA: Array) -> list[Trace]:
        """Judge many episodes of one length at once: the same values as `trace` to rounding, much faster.

        Raises:
            InputError: as for `trace`.
        """
        calibration, skip = self._calibrated(), self.model.config.frame_skip
        count, length = frames_BTHWC.shape[:2]
        errors, raws = np.full((count, length), math.nan), np.full((count, length), math.nan)
        contexts = np.minimum(np.arange(length) // skip, self.history)
        for context, rows_BND in self.residuals(frames_BTHWC, actions_BTA).items():
            steps = np.flatnonzero(contexts == context)
            raws[:, steps] = np.square(rows_BND).mean(axis=2)
            errors[:, steps] = [[calibration.error(row, context) for row in rows] for rows in rows_BND]
        return [self._judged(raws[b], errors[b], contexts, calibration) for b in range(count)]

    @torch.no_grad()
    def residuals(self, frames_BTHWC: Array, actions_BTA: Array, *, everywhere: bool = False) -> dict[int, Floats]:
        """Return residuals (B, N, D) by context length, for the steps in order that have a context of that length.

        `everywhere` takes steps that have a longer one too, with the rest left unseen: for calibration, which would
        know short contexts from the first steps of episodes only.
        """
        self.model.require_eval()
        count, length = frames_BTHWC.shape[:2]
        skip, device = self.model.config.frame_skip, self.model.action_mean.device
        flat = torch.from_numpy(np.ascontiguousarray(frames_BTHWC)).flatten(0, 1)
        z_BTD = self.model.encode_all(flat).unflatten(0, (count, length))
        actions = torch.as_tensor(np.asarray(actions_BTA, np.float32), device=device)
        found: dict[int, Floats] = {}
        for context in range(1, self.history + 1):
            last = length if everywhere or context == self.history else min(length, (context + 1) * skip)
            steps = torch.arange(context * skip, last, device=device)
            if not len(steps):
                continue
            places = steps[:, None] + skip * torch.arange(-context, 0, device=device)
            inside = places[:, :1] + torch.arange(context * skip, device=device)
            blocks = self.model.normalise_blocks(actions[:, inside])
            predicted = self.model.predict(z_BTD[:, places].flatten(0, 1), blocks.flatten(0, 1))[:, -1]
            residual = predicted.unflatten(0, (count, len(steps))) - z_BTD[:, steps]
            found[context] = residual.double().cpu().numpy()
        return found

    def save(self, directory: Path | str, *, replace: bool = False) -> Path:
        """Write the calibration into a directory of its own, published by one rename.

        Raises:
            InputError: the monitor is not calibrated.
            StorageError: the disk refused.
        """
        calibration = self._calibrated()
        arrays = {str(context): value for context, value in calibration.precisions.items()}
        facts = {**calibration.to_dict(), "history": self.history, "alpha": self.alpha}
        contents = {"surprise.json": files.dump_json(facts)}
        files.publish(directory, contents | {"precisions.safetensors": safetensors.numpy.save(arrays)}, replace=replace)
        return Path(directory)

    @classmethod
    def load(cls, model: WorldModel, directory: Path | str) -> SurpriseMonitor:
        """Read a calibrated monitor for a model.

        Raises:
            ArtefactError: it was calibrated for another model, frame-skip, resolution or action normaliser.
            CheckpointError: a file is missing or damaged.
        """
        directory = Path(directory)
        files.verify(directory)
        facts = files.read_json(directory / "surprise.json", what="surprise calibration")
        arrays = safetensors.numpy.load_file(directory / "precisions.safetensors")
        calibration = Calibration.from_dict(facts, {int(context): value for context, value in arrays.items()})
        monitor = cls(model, calibration.score, int(facts["history"]), alpha=float(facts["alpha"]))
        own = monitor._fingerprint()
        odd = [name for name in own if calibration.fingerprint.get(name) != own[name]]
        if odd:
            raise ArtefactError(
                f"{directory} was calibrated for another model: {odd[0]} was {calibration.fingerprint.get(odd[0])!r} "
                f"and is {own[odd[0]]!r}; calibrate again with this model"
            )
        monitor.calibration = calibration
        monitor.reset()
        return monitor

    @torch.no_grad()
    def _encode(self, frame_HWC: Array) -> Tensor:
        return self.model.encode_all(torch.from_numpy(np.ascontiguousarray(frame_HWC))[None])[0]

    @torch.no_grad()
    def _residual(self, latent: Tensor | None) -> tuple[Floats | None, int]:
        skip = self.model.config.frame_skip
        context = min(self._step // skip, self.history)
        seen = [self._latents[-1 - skip * back] for back in range(context, 0, -1)] if context else []
        known = [each for each in seen if each is not None]
        if latent is None or not context or len(known) < context:
            return None, context
        actions = torch.stack(list(self._actions)[-context * skip :]).to(latent.device)
        blocks = self.model.normalise_blocks(actions)
        predicted = self.model.predict(torch.stack(known)[None], blocks[None])[0, -1]
        return (predicted - latent).double().cpu().numpy(), context

    def _judged(self, raw_T: Floats, error_T: Floats, contexts_T: Array, calibration: Calibration) -> Trace:
        cusum, events = _fresh(calibration), []
        for step, (raw, error, context) in enumerate(zip(raw_T, error_T, contexts_T.tolist(), strict=True)):
            if not context or math.isnan(error):
                events.append(Event(step, False, math.nan, math.nan, math.nan, math.nan, False, cusum.value, False))
                continue
            z, p = calibration.z(error, context), calibration.p(error, context)
            alarm = cusum.update(z)
            events.append(Event(step, True, float(raw), float(error), z, p, p < self.alpha, cusum.value, alarm))
        return Trace.of(events)

    def _calibrated(self) -> Calibration:
        self.model.require_eval()
        if self.calibration is None:
            raise InputError("the monitor is not calibrated; call calibrate(held-out nominal episodes) first, or load")
        return self.calibration

    def _fingerprint(self) -> dict[str, Any]:
        config = self.model.config
        action = torch.stack([self.model.action_mean, self.model.action_std]).cpu().numpy()
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return {
            "frame_skip": config.frame_skip,
            "image_size": config.image_size,
            "action_normaliser": hashlib.sha256(action.tobytes()).hexdigest(),
            "model": digest.hexdigest(),
        }


def _fresh(calibration: Calibration) -> Any:
    from forethought.stats import CUSUM

    return CUSUM(calibration.cusum.threshold, calibration.cusum.drift)

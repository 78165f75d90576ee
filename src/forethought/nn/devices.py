"""Devices by name, refused with one clear error where they cannot hold a model."""

from __future__ import annotations

import torch

from forethought.core.errors import ConfigError


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device that was asked for a tensor and gave one.

    Raises:
        ConfigError: the device is unknown, not at hand, or holds no values.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    # A build without the device's backend answers with an assertion.
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            f"the device {str(device)!r} cannot be used here ({reason}); give cpu, or an accelerator that torch sees"
        ) from error
    if place.type == "meta":
        raise ConfigError("the device 'meta' holds no weights; give cpu, or an accelerator that torch sees")
    return place

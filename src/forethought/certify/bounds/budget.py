"""What every bound starts from: prior mass in bits and confidence as one budget in nats, and the checks of inputs."""

from __future__ import annotations

import math
import operator

from forethought.core.errors import InputError
from forethought.stats.divergence import bernoulli_kl

_EPSILON = 2.0**-52


def nats(bits: float, delta: float) -> float:
    """Return bits ln 2 + ln(1 / delta), rounded up: the price in nats of a hypothesis at a confidence.

    Raises:
        InputError: bits is negative or not finite, or delta is not between 0 and 1.
    """
    check_bits(bits)
    check_delta(delta)
    return up(bits * math.log(2.0) - math.log(delta))


def up(value: float) -> float:
    """Return a value not below the exact one, for an expression of a few correctly rounded operations."""
    return math.nextafter(value + 8.0 * _EPSILON * abs(value), math.inf)


def down(value: float) -> float:
    """Return a value not above the exact one, for an expression of a few correctly rounded operations."""
    return math.nextafter(value - 8.0 * _EPSILON * abs(value), -math.inf)


def bit_budget(n: int, train_risk: float, target: float, delta: float = 0.05) -> float:
    """Return the most bits a message may have for n examples at this training risk to certify the target.

    n kl(train_risk || target) / ln 2 - log2(1 / delta), rounded down: the inverse of the Chernoff-kl Occam bound. A
    result below 0 means that not even a hypothesis fixed in advance would reach the target.

    Raises:
        InputError: n is no positive integer, a risk is not a probability, or delta is not between 0 and 1.
    """
    n = check_n(n)
    check_risk("train_risk", train_risk)
    check_risk("target", target)
    check_delta(delta)
    if target <= train_risk:
        return math.log2(delta)
    return down((n * bernoulli_kl(train_risk, target) + math.log(delta)) / math.log(2.0))


def check_bits(bits: float) -> None:
    """Raise an InputError unless bits is a finite number, 0 or more."""
    if isinstance(bits, bool) or not (0.0 <= bits < math.inf):
        raise InputError(f"bits {bits!r} is not a code length; give a finite number, 0 or more")


def check_delta(delta: float) -> None:
    """Raise an InputError unless delta is strictly between 0 and 1."""
    if not 0.0 < delta < 1.0:
        raise InputError(f"delta {delta!r} is not a failure probability; give a number between 0 and 1, such as 0.05")


def check_n(n: int, least: int = 1) -> int:
    """Return n as an int; raise an InputError unless it is an integer of at least `least`."""
    try:
        n = operator.index(n)
    except TypeError as error:
        raise InputError(f"n {n!r} is not a whole number; give the number of examples") from error
    if n < least:
        raise InputError(f"n {n} is too small; give at least {least} examples")
    return n


def check_counts(errors: int, n: int) -> tuple[int, int]:
    """Return (errors, n) as ints; raise an InputError unless they are whole numbers with 0 <= errors <= n, n >= 1."""
    n = check_n(n)
    try:
        errors = operator.index(errors)
    except TypeError as error:
        raise InputError(f"errors {errors!r} is not a whole number; give the count of mistakes, not a rate") from error
    if not 0 <= errors <= n:
        raise InputError(f"errors {errors} is not a count out of n {n}; give 0 <= errors <= n")
    return errors, n


def check_risk(name: str, risk: float) -> None:
    """Raise an InputError unless the risk is a number from 0 to 1."""
    if isinstance(risk, bool) or not 0.0 <= risk <= 1.0:
        raise InputError(f"{name} {risk!r} is not a risk; give a number from 0 to 1 (rescale other losses)")

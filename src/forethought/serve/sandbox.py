"""The room that chat templates run in: Jinja's immutable sandbox, with a budget for all that they do and make.

The sandbox keeps a template from reaching Python; it does not keep it from filling memory or running for ever. Here
every line that runs and everything that is made is paid for, before it is made where one operation can multiply.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import FrameType
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

COMPILED = "<chat template>"
_GUARD = "forethought_paid"
# One unit is a character made; a line that runs or an entry that is walked over takes as long as many of these.
_BUDGET = 32_000_000
_STEP_PRICE = 100
# The most characters that one operation may make at worst, and the part of that worst that is charged: a search
# through a text is such a product too.
_MAX_PRODUCT, _CHARGED = 1 << 28, 64
_MAX_DEPTH = 32
_FILTERS = (
    "abs capitalize default d dictsort e escape first float indent int items join last length list lower map max min "
    "reject rejectattr replace reverse round safe select selectattr sort string strip tojson trim title unique upper"
).split()


class RefusedError(jinja2.TemplateError):
    """The template itself refuses a conversation (`raise_exception`)."""


class _Budget:
    def __init__(self, units: int) -> None:
        self._left = units

    def pay(self, units: int) -> None:
        self._left -= units
        if self._left < 0:
            raise SecurityError("the template outgrew its budget")

    def trace(self, frame: FrameType, what: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != COMPILED:
            return None
        self.pay(_STEP_PRICE)
        return self.trace


_budget: ContextVar[_Budget | None] = ContextVar("forethought_template_budget", default=None)


@contextmanager
def budget() -> Generator[None]:
    """Give what is rendered within the block, in this thread, one budget."""
    made = _Budget(_BUDGET)
    token = _budget.set(made)
    # Lines are counted by the interpreter's tracing of this thread, for a loop without output makes nothing.
    outer = sys.gettrace()
    sys.settrace(made.trace)
    try:
        yield
    finally:
        sys.settrace(outer)
        _budget.reset(token)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a closed list of filters and functions, in which everything is paid for."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_finalised,
            # Constant expressions would be worked out while compiling, before anybody pays.
            optimized=False,
        )
        filters: dict[str, Callable[..., Any]] = dict(self.filters)
        self.filters = {name: _guarded(filters[name]) for name in _FILTERS if name in filters}
        self.filters |= {"tojson": _guarded(_to_json), _GUARD: _paid}
        given = cast(dict[str, Any], self.globals)
        kept = {name: given[name] for name in ("range", "dict", "namespace")}
        self.globals = kept | {"raise_exception": _raise, "strftime_now": _now}

    def compiled(self, source: str) -> jinja2.Template:
        """Return a template.

        Raises:
            TemplateError: the source is malformed, or asks for what is not offered here.
        """
        with budget():
            code = self.compile(_Paying().visit(self.parse(source)), filename=COMPILED)
        return self.template_class.from_code(self, code, self.make_globals(None))

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something that a template may call."""
        _pay_ahead((getattr(__obj, "__self__", None), *args, *kwargs.values()))
        return _paid(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator."""
        if operator == "%" and isinstance(left, str):
            raise SecurityError("texts are put together with ~ or the filter join")
        if operator == "**" and not (isinstance(right, int) and abs(right) <= _MAX_DEPTH):
            raise SecurityError("the power is too large")
        if operator in ("*", "**"):
            _pay_ahead((left, right))
        return _paid(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Offer no `format`: its width makes texts of any size out of a few characters."""
        return None if super().wrap_str_format(value) is None else _no_format


class _Paying(NodeTransformer):
    """Lets everything be paid for that passes neither a call nor an operator: ~, literals, and blocks that are set."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [self._wrapped(inner) for inner in node.nodes]
        return self._wrapped(node)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._wrapped(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._wrapped(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else self._wrapped(node)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, _GUARD, [], [], None, None, lineno=node.lineno)
        return node

    def _wrapped(self, node: nodes.Expr) -> nodes.Expr:
        return nodes.Filter(node, _GUARD, [], [], None, None, lineno=node.lineno)


def _paid(value: Any) -> Any:
    """Return a value, paid for by its size; values within values count as often as they are met."""
    held = _budget.get()
    if held is not None:
        _walk(value, held, _MAX_DEPTH)
    return value


@jinja2.pass_context
def _finalised(_: Context, value: Any) -> Any:
    """Let what is printed be paid for; because it wants the context, Jinja prints no constant while compiling."""
    return _paid(value)


def _walk(value: Any, held: _Budget, depth: int) -> None:
    held.pay(_STEP_PRICE + _size(value))
    if isinstance(value, list | tuple | dict):
        if depth == 0:
            raise SecurityError("a value is nested too deep")
        inside = cast(dict[Any, Any], value).values() if isinstance(value, dict) else cast(Sequence[Any], value)
        for inner in inside:
            _walk(inner, held, depth - 1)


def _size(value: Any) -> int:
    if isinstance(value, str | bytes | list | tuple | dict | range):
        return 1 + len(cast(Sequence[Any], value))
    return 1 + value.bit_length() // 8 if isinstance(value, int) else 1


def _weight(value: Any, held: _Budget) -> int:
    """How often or how long a value may make another: its length, what its entries hold, or its number."""
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, list | tuple):
        entries = cast(Sequence[Any], value)
        held.pay(_STEP_PRICE * len(entries))
        return sum(_size(entry) for entry in entries)
    return _size(value)


def _pay_ahead(values: Sequence[Any]) -> None:
    """Pay for the most that one operation can make of its operands: the product of the two weightiest."""
    held = _budget.get()
    if held is None:
        return
    weights = sorted((_weight(value, held) for value in values), reverse=True)
    product = math.prod(weights[:2])
    if product > _MAX_PRODUCT:
        raise SecurityError("an operation could make too much")
    held.pay(product // _CHARGED)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    def paying(*args: Any, **kwargs: Any) -> Any:
        values = [value for value in (*args, *kwargs.values()) if not isinstance(value, Context | jinja2.Environment)]
        _pay_ahead(values)
        return _paid(function(*args, **kwargs))

    # Jinja finds by an attribute which filters want its context or environment.
    vars(paying).update(getattr(function, "__dict__", {}))
    return paying


def _no_format(*_: Any, **__: Any) -> str:
    raise SecurityError("format is not offered to templates")


def _raise(message: str) -> None:
    raise RefusedError(message)


def _now(form: str) -> str:
    return datetime.now(UTC).strftime(form[:64])


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False, **_: Mapping[str, Any]
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)

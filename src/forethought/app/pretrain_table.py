"""A live table of trained points on standard error, or one line a point where no terminal is attached."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from forethought.pretrain.study import Plan

COLUMNS = ("size", "tokens", "tau", "lr", "epochs", "seed", "tuning", "reported")
_SHOWN = 16


class PointTable:
    """Shows each record of a trained point once; a context manager."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[str, ...]] = {}
        self._live: Any = None

    def __enter__(self) -> PointTable:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, record: dict[str, Any]) -> None:
        """Show a record, unless it was shown before."""
        if record["key"] in self._rows:
            return
        row = self._rows[record["key"]] = row_of(record)
        if self._live is None:
            sys.stderr.write("point: " + ", ".join(f"{n} {v}" for n, v in zip(COLUMNS, row, strict=True)) + "\n")
        else:
            self._live.update(self._table())

    def planned(self, plan: Plan) -> None:
        """Say what the budget affords and what it leaves out."""
        seconds = sum(item.seconds for item in plan.taken)
        sys.stderr.write(f"planned: {len(plan.taken)} rungs, about {seconds / 60:.0f} min\n")
        for item in plan.left_out:
            sys.stderr.write(f"left out for want of time: {item.name} (about {item.seconds / 60:.1f} min)\n")

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(*COLUMNS, title=f"{len(self._rows)} points trained")
        for row in list(self._rows.values())[-_SHOWN:]:
            table.add_row(*row)
        return table


def row_of(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a record."""
    model = record["model"]
    tau = "none" if record["tau"] is None else f"{record['tau']:.3g}"
    return (
        f"{model['hidden_size']}x{model['num_layers']}",
        f"{record['train_tokens']:,}",
        tau,
        f"{record['lr']:.3g}",
        f"{record['epochs']:g}",
        str(record["seed"]),
        f"{record['tune_loss']:.4f}",
        f"{record['report_loss']:.4f}",
    )

"""Write the example of every format that this release makes: `python -m tests.formats.store VERSION`.

Examples are written once a release and never again; `test_formats.py` opens those of every release.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from forethought.pretrain import fit
from tests.app.workshop import small_config, small_text

PLACE = Path(__file__).parent


def main() -> None:
    """Fit a very small model and keep its run directory, without what depends on the machine."""
    target = PLACE / f"release-{sys.argv[1]}"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        settings = small_config(small_text(Path("text.jsonl"), 20))
        settings = replace(
            settings,
            corpus=replace(settings.corpus, vocab_size=270, validation_share=0.2, test_share=0.2),
            model=replace(settings.model, hidden_size=16),
            loop=replace(settings.loop, steps=6, checkpoint_every=6, evaluate_every=3, ema_decay=0.9),
        )
        fit(settings, Path("run"), recipe="example")
        shutil.copytree("run", target)
    (target / ".lock").unlink()
    (target / "environment.json").write_text('{"command": [], "python": "example"}\n')


if __name__ == "__main__":
    main()

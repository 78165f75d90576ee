"""Write the examples of the rooms' formats: `python -m tests.formats.store_rooms VERSION`.

As with `store.py`, they are written once a release and never again; `test_rooms.py` opens those of every release.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.attacks.artefacts import build_all
from tests.certify.certificates import linear_certificate

PLACE = Path(__file__).parent


def main() -> None:
    """Keep episodes, a world model, an agent and a certificate with the data it is about."""
    target = PLACE / f"rooms-{sys.argv[1]}"
    with tempfile.TemporaryDirectory() as folder:
        made = build_all(Path(folder) / "all")
        for kind in ("episodes", "world-model", "control-model", "control-agent"):
            shutil.copytree(made[kind], target / kind)
    certificate, data = linear_certificate()
    certificate.save(target / "certificate")
    np.savez_compressed(target / "data.npz", inputs=data.inputs, labels=data.labels)


if __name__ == "__main__":
    main()

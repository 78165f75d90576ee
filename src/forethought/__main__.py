"""`python -m forethought` is the command line, which is how torchrun starts it."""

from __future__ import annotations

import sys

from forethought.app.cli import main

if __name__ == "__main__":
    sys.exit(main())

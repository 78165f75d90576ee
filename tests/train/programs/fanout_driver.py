"""Call fan_out with the arguments of a JSON file and print what came of it as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from forethought.core.errors import ForethoughtError
from forethought.train.fanout import fan_out


def main(arguments: str) -> int:
    """Return 0, or 3 for an error of the library."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # Ray's own imports warn
    try:
        paths = fan_out(**json.loads(Path(arguments).read_text()))
    except ForethoughtError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 3
    print(json.dumps([str(path) for path in paths]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

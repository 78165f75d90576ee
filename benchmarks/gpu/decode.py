"""Decoding on accelerators: is it right, what do passes cost, and how fast are plain, draft and SSD decoding.

    python benchmarks/gpu/decode.py                             one GPU: the draft in a thread, in a stream of its own
    torchrun --nproc-per-node 2 benchmarks/gpu/decode.py        two GPUs: the draft on the second one, over NCCL
    python benchmarks/gpu/decode.py --target DIR --draft DIR    a real pair besides
    python benchmarks/gpu/decode.py --device cpu --tiny         all of it on tiny models, to see that it runs

First the checks: graphed against eager and dense logits, and the tokens of plain, draft and SSD decoding and of the
dense model against one another (none may differ in float32; in bfloat16 every first difference of a text must be one
between tokens whose logits lie closer than 0.02 of the largest, and is listed). Then the times of passes of 1 to 32
rows at Llama shapes. Then tokens a second of a pair with controlled acceptance (pairs.py says how) at batch 1, 4
and 16: arms take turns, drafts have the length, and SSD the budget, that were fastest on other prompts; medians with
95 % intervals. `--quick` does less of everything. It ends within 8 minutes, leaving out what does not fit, and says so.

What has been seen to work: all of it with `--device cpu --tiny`, alone and under torchrun over gloo. What has not been
run on a GPU yet: all of it. That is above all the capture of graphs and its interplay with a draft that captures in
another thread, NCCL (a posted receive occupies the device until it is met), and every figure. `pytest
tests/nn/test_graphed.py` on a machine with a GPU tries the graphs by themselves first.

Attention takes the kernels that torch has for masks without cuDNN, which plans anew for every shape; `--cudnn` leaves
the choice to torch. The script needs torch with CUDA, numpy, scipy, pydantic, safetensors and tokenizers; what is
missing is named. This library need not be installed: its sources are found beside the script.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

NEEDED = ("torch", "numpy", "scipy", "pydantic", "safetensors", "tokenizers")
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 400.0


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/decode.py", description="Decoding on accelerators.")
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer settings and repeats")
    parser.add_argument("--json", action="store_true", help="print the figures as one last line on standard output")
    parser.add_argument("--out", type=Path, help="write the figures here (else to gpu-decode.json in $OUT, if set)")
    parser.add_argument("--device", help="default: the accelerator that torch finds; cpu runs without graphs")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that everything runs")
    parser.add_argument("--pair", choices=("7b", "1.3b", "350m", "tiny"), help="the target of controlled acceptance")
    parser.add_argument("--target", type=Path, help="directory of a real target")
    parser.add_argument("--draft", type=Path, help="directory of its draft")
    parser.add_argument("--prompts", type=Path, help='texts for the real pair, one a line, or {"prompt": ...} a line')
    parser.add_argument(
        "--seconds", type=float, default=DEADLINE_SECONDS, help="begin nothing after so long (default 400)"
    )
    parser.add_argument("--cudnn", action="store_true", help="let torch choose cuDNN's attention too")
    given = parser.parse_args()
    if (given.target is None) != (given.draft is None):
        parser.error("--target and --draft belong together: give both or neither")
    return given


def missing() -> list[str]:
    """Return the packages that are needed and not there."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def chosen_device(wanted: str | None) -> Any:
    """Return the device of this process: under torchrun each rank has the accelerator of its local number."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if wanted is None and found is None:
        sys.exit("no accelerator is at hand; give --device cpu --tiny to see that everything runs")
    kind = wanted or str(found).partition(":")[0]
    if kind == "cpu" or ":" in kind:
        return torch.device(kind)
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(place.index)
    return place


def main() -> None:
    """Check, time, race, and write it all down."""
    given = arguments()
    if absent := missing():
        sys.exit(f"missing: {', '.join(absent)}; install with: python -m pip install {' '.join(absent)}")
    sys.path.insert(0, str(ROOT / "src"))
    began = time.monotonic()
    import torch
    from races import settings_of
    from running import Run

    device = chosen_device(given.device)
    torch.backends.cuda.enable_cudnn_sdp(given.cudnn)
    run = Run(device, settings_of(given.tiny, given.quick, given.pair), began + given.seconds)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        figures = run.distributed()
        if figures is None:
            return
    else:
        figures = run.alone(given.target, given.draft, given.prompts)
    figures["seconds"] = round(time.monotonic() - began, 1)
    figures["cudnn_attention"] = given.cudnn
    figures["load_averages"] = os.getloadavg()
    write(figures, given)
    if not figures.get("correct", True):
        sys.exit("a check failed: see the figures under checks and races")


def write(figures: dict[str, Any], given: argparse.Namespace) -> None:
    """Print the figures and put them where they are wanted."""
    out = given.out or (Path(os.environ["OUT"]) / "gpu-decode.json" if os.environ.get("OUT") else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n")
    stream = sys.stderr if given.json else sys.stdout
    for line in figures["table"]:
        print(line, file=stream)
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

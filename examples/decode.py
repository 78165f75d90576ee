"""Two models of one text, and a decoder that is faster with both than with the better one alone, token for token.

Usage: python examples/decode.py [OUT] [STEPS]     (STEPS 600 and more give a draft that is right most of the time)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from forethought.app.recipes.pretrain import tiny
from forethought.decode import LLM, SamplingParams
from forethought.pretrain import FitConfig, ModelShape, fit

PROMPTS = ["def ", "import os\n", "    for name in "]


def train_pair(out: Path, steps: int) -> tuple[Path, Path]:
    """Train a target on the standard library and a smaller draft on the target's soft labels."""
    recipe: FitConfig = tiny()
    text = replace(recipe.corpus, max_bytes=400_000)
    settings = replace(recipe, corpus=text, loop=replace(recipe.loop, steps=steps), baselines=False)
    fit(settings, out / "target", exists="resume")
    small = replace(
        settings,
        sources=(str(out / "target" / "corpus"),),
        model=ModelShape(hidden_size=32, num_layers=1, num_heads=1),
        teacher=str(out / "target" / "model"),
    )
    fit(small, out / "draft", exists="resume")
    return out / "target", out / "draft"


def main(out: Path, steps: int) -> None:
    """Decode the prompts three ways and show what speculation saved and that it changed nothing."""
    target, draft = train_pair(out, steps)
    params = SamplingParams(max_tokens=48, temperature=0.0, ignore_eos=True)
    texts: dict[str, list[str]] = {}
    for method in ("none", "draft", "ssd"):
        speculation = {"method": method, "model": str(draft), "num_speculative_tokens": 4}
        with LLM(str(target), speculative_config=None if method == "none" else speculation) as llm:
            texts[method] = [output.outputs[0].text for output in llm.generate(PROMPTS, params)]
            counts = llm.metrics()["counters"]
        print(f"{method:6} {counts['generated_tokens']} tokens, {counts['accepted_tokens']} of them drafted")
    if not texts["none"] == texts["draft"] == texts["ssd"]:
        raise SystemExit("speculation changed a text")
    print("the three texts are equal; the first:", repr(PROMPTS[0] + texts["none"][0]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/decode"), int((sys.argv[2:] or ["60"])[0]))

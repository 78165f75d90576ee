"""Pre-training on one GPU: the paper's shapes (tokens/s, MFU, members batched against apart) and a real pair.

    python benchmarks/gpu/pretrain.py --device NAME --peak-tflops 989 --corpus TEXT --out FOLDER --steps 3000

Part 1 times training steps of the 150M and 300M shapes of arXiv 2509.14786 (vocabulary 128,256, context 4,096) in bf16,
and of small members in batches of 1 to 16. Part 2 fits a target of 20 to 40 M parameters on the corpus, distils its
draft, and writes both in shards of at most 15 MiB. `--tiny` does all of it on a CPU with shapes of a few thousand
parameters, to see that it runs. Figures go to FOLDER/pretrain.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from forethought.app.recipes.pretrain import members, shape
from forethought.core import rng
from forethought.nn import LanguageModel, TransformerConfig, flops_per_token, load_language_model, save_language_model
from forethought.pretrain import DistillationConfig, FitConfig, ModelShape, fit, prepare
from forethought.pretrain.members.speed import measure_speeds
from forethought.train import LoopConfig, OptimiserConfig

Figures = dict[str, Any]
SHARD_BYTES = 15 << 20
TARGET = ModelShape(hidden_size=512, num_layers=8, num_heads=8)
DRAFT = ModelShape(hidden_size=192, num_layers=2, num_heads=3)
PAPER = {"150m": (512, 1792, 6, 8), "300m": (768, 2688, 12, 12)}
TINY = {"tiny": (32, 64, 2, 2)}


def paper_shape(name: str, *, tiny: bool) -> TransformerConfig:
    """Return a shape of the paper's table, with its vocabulary and untied head."""
    width, middle, layers, heads = (TINY if tiny else PAPER)[name]
    return TransformerConfig(
        vocab_size=512 if tiny else 128_256,
        hidden_size=width,
        intermediate_size=middle,
        num_layers=layers,
        num_heads=heads,
        max_positions=128 if tiny else 4096,
        tie_embeddings=False,
    )


def step_figures(
    config: TransformerConfig, device: torch.device, rows: int, peak: float, rounds: int
) -> dict[str, Any]:
    """Time training steps of one model in bf16: tokens a second, and the share of the device's peak."""
    model = LanguageModel(config).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    drawn = rng.generator(0, "benchmark.gpu").integers(0, config.vocab_size, (rows, config.max_positions))
    tokens, targets = torch.from_numpy(drawn).to(device), torch.from_numpy(np.roll(drawn, -1, axis=-1)).to(device)
    seconds: list[float] = []
    for number in range(rounds + 2):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(tokens)
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    speed = drawn.size / statistics.median(seconds)
    used = 3 * flops_per_token(config, config.max_positions) * speed
    return {"tokens_per_second": speed, "mfu": used / (peak * 1e12), "rows": rows, "rounds": rounds}


def member_figures(device: str, *, tiny: bool) -> dict[str, Any]:
    """Time a member's step in groups of growing size, in turns."""
    found: dict[str, Any] = {}
    for width, layers in ((64, 2),) if tiny else ((64, 4), (128, 4), (256, 4), (512, 6)):
        settings = members()
        settings = replace(settings, fit=replace(settings.fit, model=shape(width, layers), device=device))
        transformer = settings.fit.model.transformer(1024, settings.fit.max_positions)
        speeds = measure_speeds(settings, transformer, (1, 2) if tiny else (1, 2, 4, 8, 16), rounds=3 if tiny else 20)
        seconds = {str(size): value for size, value in speeds.seconds.items()}
        found[f"{width}x{layers}"] = {"seconds_a_member": seconds, "best": speeds.best, "gain": speeds.gain}
    return found


def pair(corpus: list[str], out: Path, device: str, steps: int, *, tiny: bool) -> dict[str, Any]:
    """Fit a target, distil its draft from soft labels, and write both in shards."""
    base = members().fit
    vocabulary = replace(base.corpus, vocab_size=300 if tiny else 8192)
    prepare(corpus, out / "corpus", vocabulary)
    loop = LoopConfig(steps=steps, evaluate_every=max(1, steps // 10), checkpoint_every=max(1, steps // 4))
    target = FitConfig(
        sources=(str(out / "corpus"),),
        corpus=vocabulary,
        model=ModelShape(hidden_size=64, num_layers=2, num_heads=1) if tiny else TARGET,
        optimiser=OptimiserConfig(lr=1e-3, tau=0.5),
        loop=loop if device == "cpu" else replace(loop, precision="bf16"),
        batch_size=4 if tiny else 64,
        context=64 if tiny else 512,
        max_positions=128 if tiny else 2048,
        evaluation_tokens=1024 if tiny else 65_536,
        final_tokens=2048 if tiny else 1_000_000,
        device=device,
        baselines=False,
    )
    found = {"target": fit(target, out / "target", recipe="gpu.target", exists="resume")}
    draft = replace(
        target,
        model=ModelShape(hidden_size=32, num_layers=1, num_heads=1) if tiny else DRAFT,
        teacher=str(out / "target" / "model"),
        distillation=DistillationConfig(share=1.0),
    )
    found["draft"] = fit(draft, out / "draft", recipe="gpu.draft", exists="resume")
    for name in ("target", "draft"):
        model = load_language_model(out / name)
        place = out / "pair" / name
        tokenizer = out / name / "model"
        card = {"README.md": (tokenizer / "README.md").read_bytes()}
        save_language_model(
            model,
            place,
            tokenizer,
            replace=True,
            max_shard_bytes=SHARD_BYTES,
            dtype="bfloat16",
            extra_files=card,
        )
    keys = ("parameters", "steps", "validation_loss", "test_loss", "validation_bits_per_byte", "tokens_per_second")
    return {name: {key: values.get(key) for key in keys} for name, values in found.items()}


def main() -> None:
    """Run the parts that were asked for and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 peak of the device")
    parser.add_argument("--corpus", nargs="*", default=[], help="text for the pair; none: part 1 only")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=8, help="sequences a step in part 1")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    device, figures = torch.device(given.device), {"device": given.device, "tiny": given.tiny}
    rounds = 2 if given.tiny else 20
    names = TINY if given.tiny else PAPER
    parts = {
        "shapes": lambda: {
            name: step_figures(paper_shape(name, tiny=given.tiny), device, given.rows, given.peak_tflops, rounds)
            for name in names
        },
        "members": lambda: member_figures(given.device, tiny=given.tiny),
        "pair": lambda: (
            pair(given.corpus, given.out, given.device, given.steps, tiny=given.tiny) if given.corpus else None
        ),
    }
    for name, part in parts.items():
        figures[name] = part()
        (given.out / "pretrain.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

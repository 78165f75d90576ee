"""One contestant in a process of its own: a spec as JSON on the command line, then one command a line on stdin.

A command has `prompts` (lists of token ids), `max_tokens`, `temperature` and `seed`; the answer is one line of JSON
with the tokens of each prompt, the seconds until the first token and until the last, and the contestant's own counts.
All prompts of a command run together. Idle contestants wait for a line and use no processor.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def main() -> None:
    """Pin, build the contestant, say that it stands, and answer commands until the input ends."""
    spec = json.loads(sys.argv[1])
    os.sched_setaffinity(0, set(spec["cores"]))
    os.environ["OMP_NUM_THREADS"] = str(spec["num_threads"])
    import torch

    torch.set_num_threads(spec["num_threads"])
    run = ENGINES[spec["engine"]](spec)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def forethought_arm(spec: dict[str, Any]) -> Callable[[dict[str, Any]], Answer]:
    """Our engine with any method."""
    from forethought.decode import LLM, SamplingParams

    options = spec.get("options", {})
    # A process of its own keeps the affinity that it is given; the target's core is this process's.
    llm = LLM(spec["target"], speculative_config=spec.get("speculative"), num_threads=spec["num_threads"], **options)

    def run(command: dict[str, Any]) -> Answer:
        params = SamplingParams(
            max_tokens=command["max_tokens"],
            temperature=command["temperature"],
            seed=command["seed"],
            ignore_eos=True,
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in command["prompts"]]
        before = llm.metrics()
        tokens: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        started = time.perf_counter()
        for chunk in llm.stream(prompts, params):
            tokens[chunk.prompt_index] += chunk.token_ids
            times[chunk.prompt_index] += [time.perf_counter() - started] * len(chunk.token_ids)
        after = llm.metrics()
        return timed(tokens, times) | {"counts": _difference(before, after), "plan": after["plan"]}

    return run


def transformers_arm(spec: dict[str, Any]) -> Callable[[dict[str, Any]], Answer]:
    """`transformers` generate, or its assisted generation where the spec has a draft; one prompt after the other."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    model = AutoModelForCausalLM.from_pretrained(spec["target"])
    assistant = AutoModelForCausalLM.from_pretrained(spec["draft"]) if spec.get("draft") else None

    class Stamps(BaseStreamer):
        """Notes when tokens arrive; the first call is the prompt."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.calls = 0

        def put(self, value: torch.Tensor) -> None:
            self.calls += 1
            if self.calls > 1:
                self.times += [time.perf_counter()] * value.numel()

        def end(self) -> None:
            pass

    def run(command: dict[str, Any]) -> Answer:
        tokens: list[list[int]] = []
        times: list[list[float]] = []
        for prompt in command["prompts"]:
            torch.manual_seed(command["seed"])
            stamps = Stamps()
            started = time.perf_counter()
            extra = {"assistant_model": assistant} if assistant is not None else {"streamer": stamps}
            made = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=command["max_tokens"],
                min_new_tokens=command["max_tokens"],
                do_sample=command["temperature"] > 0,
                temperature=command["temperature"] or None,
                pad_token_id=0,
                **extra,
            )
            ended = time.perf_counter() - started
            new = made[0, len(prompt) :].tolist()
            tokens.append(new)
            # Assisted generation has no streamer: only its whole time is known.
            times.append([stamp - started for stamp in stamps.times] or [ended] * len(new))
        return timed(tokens, times)

    return run


def llamacpp_arm(spec: dict[str, Any]) -> Callable[[dict[str, Any]], Answer]:
    """llama.cpp's plain greedy decoding of the same weights in fp32; one prompt after the other."""
    import tempfile

    from arms.llamacpp import LlamaCpp, write_gguf
    from forethought.decode import open_model

    path = Path(tempfile.mkdtemp()) / "model.gguf"
    write_gguf(open_model(spec["target"]).model, path)
    llama = LlamaCpp(path, num_threads=spec["num_threads"], context=1024)
    path.unlink()

    def run(command: dict[str, Any]) -> Answer:
        if command["temperature"] > 0:
            raise ValueError("llama.cpp is measured with temperature 0 only")
        tokens: list[list[int]] = []
        times: list[list[float]] = []
        for prompt in command["prompts"]:
            started = time.perf_counter()
            token = int(llama.decode(prompt, 0)[-1].argmax())
            made, stamps = [token], [time.perf_counter() - started]
            for position in range(len(prompt), len(prompt) + command["max_tokens"] - 1):
                token = int(llama.decode([token], position)[0].argmax())
                made.append(token)
                stamps.append(time.perf_counter() - started)
            tokens.append(made)
            times.append(stamps)
        return timed(tokens, times)

    return run


def timed(tokens: list[list[int]], times: list[list[float]]) -> Answer:
    """Return tokens with the first and last moment of each prompt's tokens and the gaps between them."""
    gaps = [round(later - now, 7) for own in times for now, later in pairwise(own)]
    return {
        "tokens": tokens,
        "first": [own[0] for own in times],
        "last": [own[-1] for own in times],
        "gaps": gaps,
    }


def _difference(before: Any, after: Any) -> Any:
    if isinstance(after, dict):
        old = before if isinstance(before, dict) else {}
        return {name: _difference(old.get(name), value) for name, value in after.items() if name != "plan"}
    if isinstance(after, list):
        old = before if isinstance(before, list) else []
        return [_difference(old[i] if i < len(old) else None, value) for i, value in enumerate(after)]
    if isinstance(after, bool) or not isinstance(after, int | float):
        return after
    return after - before if isinstance(before, int | float) else after


ENGINES = {
    "forethought": forethought_arm,
    "transformers": transformers_arm,
    "llamacpp": llamacpp_arm,
}

if __name__ == "__main__":
    main()

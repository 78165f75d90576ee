"""The verb that continues a prompt, streaming the text as it is decided."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import parse, say
from forethought.core.errors import ConfigError
from forethought.decode import LLM, CompletionOutput, SamplingParams

DEFAULT_BUDGET = 12


@dataclass(frozen=True)
class GenerateArguments:
    """Continue a prompt with a trained model; with a draft the same law, in fewer forward passes of the model."""

    directory: Annotated[Path, tyro.conf.Positional]
    """A run of `pretrain fit`, a model directory of this library, or a Hugging Face one (Llama, Qwen2, Qwen3)."""
    prompt: Annotated[str, tyro.conf.Positional]
    """The text to continue."""
    max_tokens: int = 128
    """At most so many new tokens."""
    temperature: float = 0.8
    """0 takes the most likely token; 1 draws from the model's own law."""
    top_k: int = 0
    """Draw from the k most likely tokens only; 0 means all."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this probability."""
    seed: int = 0
    """The same seed gives the same text."""
    draft: Path | None = None
    """A smaller model with the same tokenizer, for the methods draft and ssd."""
    method: Literal["ssd", "draft", "ngram", "none"] | None = None
    """How to speculate; ssd where a draft is given, else none."""
    num_speculative_tokens: int | None = 5
    """Tokens proposed a round; None measures first and chooses."""
    stop: tuple[str, ...] = ()
    """Strings that end the text."""
    device: str = "cpu"
    """Where the model runs, such as cpu, cuda or cuda:1; a draft runs there too."""
    json: bool = False
    """Print the result as one last line on standard output, the text on standard error."""


Method = Literal["ssd", "draft", "ngram", "none"]


def open_engine(
    directory: Path,
    *,
    method: Method,
    draft: Path | None = None,
    num_speculative_tokens: int | None = None,
    device: str = "cpu",
) -> LLM:
    """Open a model behind an engine that speculates by a method; None lets the planner choose how far.

    Raises:
        ConfigError: the method lacks its draft, or the draft does not fit the model.
        ArtefactError: a directory holds no language model.
    """
    if method == "none":
        return LLM(directory, max_num_seqs=1, device=device)
    settings: dict[str, Any] = {"method": method}
    if method != "ngram" and draft is not None:
        settings["model"] = str(draft)
    if num_speculative_tokens is not None:
        settings |= {"num_speculative_tokens": num_speculative_tokens, "budget": DEFAULT_BUDGET}
    return LLM(directory, speculative_config=settings, max_num_seqs=1, device=device)


def continue_prompt(
    llm: LLM, prompt: str, params: SamplingParams, *, write: Callable[[str], object] | None = None
) -> tuple[CompletionOutput, float]:
    """Return the continuation and the seconds it took, handing text to `write` as it becomes final.

    Raises:
        InputError: the prompt does not fit the model.
    """
    started = time.perf_counter()
    hear = None if write is None else lambda chunk: write(chunk.text)
    (output,) = llm.generate(prompt, params, on_chunk=hear)
    return output.outputs[0], time.perf_counter() - started


def generate_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought generate` and return its result.

    Raises:
        InputError: a flag, a directory or the prompt cannot be used.
    """
    given = parse(GenerateArguments, arguments, verb="generate")
    method: Method = given.method or ("none" if given.draft is None else "ssd")
    if method in ("draft", "ssd") and given.draft is None:
        raise ConfigError(f"the method {method} needs a draft model; give --draft DIR, or --method ngram or none")
    params = SamplingParams(
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        seed=given.seed,
        stop=given.stop,
    )
    stream = sys.stderr if given.json else sys.stdout

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    with open_engine(
        given.directory,
        method=method,
        draft=given.draft,
        num_speculative_tokens=given.num_speculative_tokens,
        device=given.device,
    ) as llm:
        write(given.prompt)
        completion, seconds = continue_prompt(llm, given.prompt, params, write=write)
    say("", as_json=given.json)
    return generation_result(completion, seconds) | {"prompt": given.prompt, "method": method}


def generation_result(completion: CompletionOutput, seconds: float) -> dict[str, Any]:
    """Return a completion as plain JSON values, with its accounts and its speed."""
    return {
        "kind": "generate",
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "seconds": seconds,
        "tokens_per_second": len(completion.token_ids) / seconds if seconds > 0 else None,
        "statistics": completion.statistics.to_dict(),
    }

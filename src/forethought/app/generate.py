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
from forethought.core.artefact import ARTEFACT, resolve
from forethought.core.errors import ArtefactError, ConfigError
from forethought.data import Tokenizer, load_tokenizer
from forethought.decode import Generation, SamplingParams, generate
from forethought.nn import LanguageModel, load_language_model, special_token_ids


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
    """How to speculate; draft where a draft is given, else none."""
    num_speculative_tokens: int = 5
    """Tokens proposed a round."""
    stop: tuple[str, ...] = ()
    """Strings that end the text."""
    json: bool = False
    """Print the result as one last line on standard output, the text on standard error."""


@dataclass(frozen=True)
class ServedModel:
    """A model with what turns text into its tokens and back."""

    model: LanguageModel
    tokenizer: Tokenizer
    prefix: list[int]
    end_of_text: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the token that begins a text in front."""
        return self.prefix + self.tokenizer.encode(text)


def open_model(directory: Path | str) -> ServedModel:
    """Open a model directory, or the model of a run, with its tokenizer.

    Raises:
        ArtefactError: the directory holds no language model or no tokenizer.
    """
    kind, place = resolve(directory)
    if kind != "language-model":
        raise ArtefactError(f"{directory} is a {kind}, not a language model (an unfinished run has none yet)")
    tokenizer, special = load_tokenizer(place), special_token_ids(place)
    model = load_language_model(place)
    # Our own models begin every document with the separator; Llama's begin with their bos; Qwen's with nothing.
    if (place / ARTEFACT).is_file():
        prefix = [tokenizer.end_of_text]
    else:
        prefix = [special.bos] if special.bos is not None and model.config.family == "llama" else []
    return ServedModel(model, tokenizer, prefix, special.eos or (tokenizer.end_of_text,))


def continue_prompt(
    served: ServedModel,
    prompt: str,
    params: SamplingParams,
    *,
    method: Literal["ssd", "draft", "ngram", "none"],
    draft: ServedModel | None = None,
    num_speculative_tokens: int = 5,
    write: Callable[[str], object] | None = None,
) -> tuple[Generation, float]:
    """Return the continuation and the seconds it took, handing text to `write` as it becomes final.

    Raises:
        InputError: the prompt does not fit the model, or the method lacks its draft.
    """
    if draft is not None and draft.tokenizer.digest != served.tokenizer.digest:
        raise ConfigError("the draft has another tokenizer than the model; give a draft made for this model")
    started = time.perf_counter()
    stream = generate(
        served.model,
        served.encode(prompt),
        params,
        method=method,
        draft=None if draft is None else draft.model,
        num_speculative_tokens=num_speculative_tokens,
        eos_token_id=served.end_of_text,
        decode=served.tokenizer.decode,
    )
    for chunk in stream:
        if write is not None:
            write(chunk.text)
    return stream.result(), time.perf_counter() - started


def generate_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought generate` and return its result.

    Raises:
        InputError: a flag, a directory or the prompt cannot be used.
    """
    given = parse(GenerateArguments, arguments, verb="generate")
    method = given.method or ("none" if given.draft is None else "draft")
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
    served = open_model(given.directory)
    draft = None if given.draft is None or method in ("none", "ngram") else open_model(given.draft)
    stream = sys.stderr if given.json else sys.stdout

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    write(given.prompt)
    generation, seconds = continue_prompt(
        served,
        given.prompt,
        params,
        method=method,
        draft=draft,
        num_speculative_tokens=given.num_speculative_tokens,
        write=write,
    )
    say("", as_json=given.json)
    return generation_result(generation, seconds) | {"prompt": given.prompt, "method": method}


def generation_result(generation: Generation, seconds: float) -> dict[str, Any]:
    """Return a generation as plain JSON values, with its accounts and its speed."""
    return {
        "kind": "generate",
        "text": generation.text,
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason,
        "seconds": seconds,
        "tokens_per_second": len(generation.token_ids) / seconds if seconds > 0 else None,
        "statistics": generation.statistics.to_dict(),
    }

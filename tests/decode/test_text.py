"""R6: streamed text, stop strings, stop tokens and limits are those of a reference that sees one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import ConfigError
from forethought.data import train_tokenizer
from forethought.data.tokenizer import Tokenizer
from forethought.decode import (
    METHODS,
    Detokenizer,
    Emission,
    SamplingParams,
    StopScanner,
    distribution,
    generate,
)
from forethought.nn import LanguageModel

Pair = tuple[LanguageModel, LanguageModel]
TEXT = ["the cat sat on the mat, näive café — 日本語のテキスト 🙂🙃 🇩🇪", "def f(x):\n    return x + 1\n", "ωωββ λλ é é"]
LETTERS = "abc é日🙂\n"


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, 300)


def some_tokens() -> st.SearchStrategy[list[int]]:
    """Tokens of real text, cut anywhere, and arbitrary ones: invalid bytes, half characters, special tokens."""
    anything = st.integers(0, tokenizer().vocab_size - 1)
    real = st.text(alphabet=LETTERS + "thematsn", max_size=20).map(tokenizer().encode)
    parts = st.lists(st.one_of(real, anything.map(lambda token: [token])), max_size=8)
    return parts.map(lambda each: list(chain.from_iterable(each)))


def definite(tokens: list[int]) -> str:
    """The text of tokens without a last character that may still change."""
    return tokenizer().decode(tokens).removesuffix("\ufffd")


@settings(deadline=None, max_examples=250)
@given(some_tokens())
def test_pieces_join_to_the_text_of_all_tokens(tokens: list[int]) -> None:
    detokenizer, shown = Detokenizer(tokenizer().decode), ""
    for count, token in enumerate(tokens, start=1):
        shown += detokenizer.push(token)
        assert shown == definite(tokens[:count])
    assert shown + detokenizer.flush() == tokenizer().decode(tokens)


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=LETTERS, min_size=1, max_size=30))
def test_valid_text_never_shows_a_replacement_character(text: str) -> None:
    detokenizer = Detokenizer(tokenizer().decode)
    pieces = [detokenizer.push(byte) for byte in tokenizer().encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text


@settings(deadline=None, max_examples=250)
@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=10),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3),
    st.booleans(),
)
def test_stop_scanner_against_a_search_of_the_whole_text(pieces: list[str], stop: list[str], include: bool) -> None:
    scanner, shown, whole, expected = StopScanner(stop, include=include), "", "", None
    for piece in pieces:
        shown += scanner.push(piece)
        whole += piece
        if expected is None and (found := [(whole.find(word), i) for i, word in enumerate(stop) if word in whole]):
            start, index = min(found)
            expected = whole[: start + len(stop[index]) if include else start]
        if expected is None:
            assert whole.startswith(shown)
            held = whole[len(shown) :]
            assert not held or any(word.startswith(held) for word in stop)
        else:
            assert shown == expected
    assert shown + scanner.flush() == (whole if expected is None else expected)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(["xyz"])
    assert [scanner.push(piece) for piece in ("ab", "x", "y", "a", "xy", "z")] == ["ab", "", "", "xya", "", ""]
    assert scanner.found == "xyz"


def reference(tokens: list[int], params: SamplingParams, eos: int) -> tuple[list[int], str, str, str | int | None]:
    """What a request ends as, checked from scratch after every single token."""
    assert params.max_tokens is not None
    for count in range(1, len(tokens) + 1):
        seen, last = tokens[:count], tokens[count - 1]
        ends = last in params.stop_token_ids or (last == eos and not params.ignore_eos)
        worded = seen if not ends or params.include_stop_str_in_output else seen[:-1]
        final = ends or count == params.max_tokens
        for text in (definite(worded), tokenizer().decode(worded)) if final else (definite(worded),):
            found = [(text.find(word), index) for index, word in enumerate(params.stop) if word in text]
            if found:
                start, index = min(found)
                word = params.stop[index]
                kept = text[: start + len(word) if params.include_stop_str_in_output else start]
                return seen, kept, "stop", word
        if ends:
            return seen, tokenizer().decode(worded), "stop", last if last in params.stop_token_ids else None
        if final:
            return seen, tokenizer().decode(worded), "length", None
    raise AssertionError("the request did not end")


@settings(deadline=None, max_examples=300)
@given(
    st.lists(some_tokens(), min_size=2, max_size=6),
    st.lists(st.text(alphabet=LETTERS + "\ufffd", min_size=1, max_size=3), max_size=2),
    st.lists(st.integers(0, 299), max_size=2),
    st.integers(0, 299),
    st.tuples(st.booleans(), st.booleans(), st.integers(1, 40)),
)
def test_emission_against_the_reference(
    rounds: list[list[int]], stop: list[str], stop_ids: list[int], eos: int, rest: tuple[bool, bool, int]
) -> None:
    """Tokens arrive in rounds of any size, so every end falls inside a round at one time or another."""
    ignore_eos, include, max_tokens = rest
    tokens = [*chain.from_iterable(rounds), *[ord("q")] * 40]
    params = SamplingParams(
        max_tokens=max_tokens, stop=tuple(stop), stop_token_ids=tuple(stop_ids), ignore_eos=ignore_eos,
        include_stop_str_in_output=include,
    )  # fmt: skip
    emission = Emission(params, max_tokens, [eos], tokenizer().decode)
    chunks = [emission.push(part) for part in [*rounds, *([ord("q")] * 3 for _ in range(14))]]
    expected = reference(tokens, params, eos)
    assert (emission.token_ids, emission.text, emission.finish_reason, emission.stop_reason) == expected
    assert list(chain.from_iterable(chunk.token_ids for chunk in chunks)) == emission.token_ids
    assert "".join(chunk.text for chunk in chunks) == emission.text


@pytest.mark.parametrize("method", METHODS)
def test_ends_inside_a_draft_are_those_of_plain_decoding(new_pair: Callable[..., Pair], method: str) -> None:
    size = tokenizer().vocab_size
    target, _ = new_pair(size, 4)
    plain = generate(target, [5], SamplingParams(max_tokens=40, temperature=0.0)).result().token_ids
    text = tokenizer().decode(plain)
    for case in (
        {"max_tokens": 7},
        {"max_tokens": 40, "stop_token_ids": (plain[9],)},
        {"max_tokens": 40, "stop": (text[8:11],)},
        {"max_tokens": 40, "stop": (text[8:11],), "include_stop_str_in_output": True},
        {"max_tokens": 40},
    ):
        params = SamplingParams(temperature=0.0, **case)
        stream = generate(
            target, [5], params, method=method, draft=target, eos_token_id=plain[25], decode=tokenizer().decode
        )
        chunks = list(stream)
        out = stream.result()
        expected = reference([*plain, *plain], params, plain[25])
        assert (out.token_ids, out.text, out.finish_reason, out.stop_reason) == expected
        assert "".join(chunk.text for chunk in chunks) == out.text
        if method == "draft":
            counts = out.statistics
            assert counts.drafted == counts.accepted + counts.rejected + counts.discarded
            assert counts.rejected == 0  # the draft is the target


def test_filters_keep_what_they_say() -> None:
    logits = torch.tensor([3.0, 2.0, 2.0, 1.0, float("-inf")], dtype=torch.float64)
    soft = torch.softmax(logits, -1)

    def kept(**fields: float) -> list[int]:
        return distribution(logits, SamplingParams(**fields)).nonzero().flatten().tolist()  # pyright: ignore

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_k=-1) == [0, 1, 2, 3]
    assert kept(top_p=float(soft[0])) == [0]
    assert kept(top_p=float(soft[0]) + 1e-6) == [0, 1]
    assert kept(min_p=0.2) == [0, 1, 2]
    assert kept(temperature=0.0) == [0]
    assert kept(temperature=1e-300) == [0]
    hot = distribution(logits, SamplingParams(temperature=2.0, top_k=3))
    torch.testing.assert_close(hot[:3], torch.softmax(logits[:3] / 2, -1), rtol=0, atol=1e-15)
    assert abs(float(hot.sum()) - 1) < 1e-15


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -2}, {"min_p": 2}, {"max_tokens": 0}, {"stop": [""]},
     {"temperature": float("nan")}, {"seed": -1}, {"n": 0}, {"logprobs": 21}],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        SamplingParams(**fields)  # pyright: ignore

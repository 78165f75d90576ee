"""Structured output: what a model without any sense writes under a grammar parses and validates, drafts or none."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decode.tables import TableModel, new_request, settle, work_on
from torch import Tensor

from forethought.core.errors import ForethoughtError, InputError, MissingExtraError
from forethought.core.rng import generator
from forethought.data import load_tokenizer, train_tokenizer
from forethought.data.tokenizer import Tokenizer
from forethought.decode import SamplingParams
from forethought.decode.batching.verifier import TargetVerifier
from forethought.decode.draft import Draft
from forethought.decode.law.grammar import MAX_GRAMMAR_CHARACTERS, GrammarConstraint, Grammars

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

TEXT = ['{"name": "Ann", "age": 3, "tags": ["a", "bc"]}', "true false null -12.5e3 [1, 2, 3]", "naïve café 日本 🙂"]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", None, 3]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "inner": {"$ref": "#/$defs/point"},
    },
    "required": ["name", "age", "tags", "inner"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "array", "prefixItems": [{"const": 1}, {"const": "x"}], "items": False, "minItems": 2}},
}
CHOICE = {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}, {"type": "null"}]}
PATTERNS = [r"[0-9]{3}-[a-f]+x", r"(yes|no)( really){0,3}", r"é+/b\.", r"(?i)abc|日本"]


@cache
def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT * 3, 300)


@cache
def tiny() -> Grammars:
    # Three tokens more than the tokenizer knows, as models padded to a round vocabulary have.
    return Grammars(tiny_tokenizer(), vocabulary_size=tiny_tokenizer().vocab_size + 3)


def nonsense(vocabulary_size: int, end: int, seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """Random logits that depend on how long the text is, with a taste for ending it."""

    def table(text: tuple[int, ...]) -> Tensor:
        logits = 2.0 * generator(seed, "test.nonsense", len(text)).standard_normal(vocabulary_size)
        logits[end] += 4.0
        return torch.from_numpy(logits).float()

    return table


def written(
    constraint: GrammarConstraint, tokenizer: Tokenizer, size: int, seed: int, *, k: int, limit: int = 160, **how: Any
) -> list[int] | None:
    """What the shipped verifier lets through, drafts of random tokens (half of them allowed ones) before it.

    None where the text was not whole after `limit` tokens.
    """
    end, rng = tokenizer.end_of_text, generator(seed, "test.drafts")
    verifier = TargetVerifier(TableModel(nonsense(size, end, seed), size, num_pages=8, page_size=32))
    request = new_request([end], SamplingParams(seed=seed, **how), room=limit)
    verifier.constrain(request.id, constraint)
    while request.remaining > 0:
        draft = Draft(sensible(constraint, rng, min(k, request.remaining - 1), size))
        judged = verifier.run([work_on(request, draft)], {0: draft})[0]
        for token in settle(request, draft, judged):
            if token == end:
                return request.tokens[1 : request.tokens.index(end, 1)]
    return None


def sensible(constraint: GrammarConstraint, rng: np.random.Generator, k: int, size: int) -> list[int]:
    """A draft that chance alone would hardly find: some tokens are such as the constraint allowed a step ago."""
    allowed = np.flatnonzero(constraint.masks([])[0])
    return [int(rng.choice(allowed)) if rng.random() < 0.5 else int(rng.integers(size)) for _ in range(k)]


def check_whole_texts(
    grammars: Grammars, tokenizer: Tokenizer, size: int, make: Callable[[], GrammarConstraint], check: Any, *, num: int
) -> None:
    num_whole = 0
    for seed in range(num):
        for how in ({}, {"temperature": 0.0}, {"top_k": 20, "repetition_penalty": 1.1}):
            tokens = written(make(), tokenizer, size, seed, k=seed % 4, **how)
            if tokens is not None:
                num_whole += 1
                check(tokenizer.decode(tokens))
    assert num_whole > num


@pytest.mark.parametrize("schema", [PERSON, CHOICE, {"type": "object", "maxProperties": 2}])
def test_json_of_a_schema_parses_and_validates(schema: dict[str, Any]) -> None:
    size = tiny_tokenizer().vocab_size + 3
    check = lambda text: jsonschema.validate(json.loads(text), schema)  # noqa: E731
    check_whole_texts(tiny(), tiny_tokenizer(), size, lambda: tiny().json_schema(schema), check, num=8)


def test_a_free_object_parses() -> None:
    def check(text: str) -> None:
        assert isinstance(json.loads(text), dict)

    size = tiny_tokenizer().vocab_size + 3
    check_whole_texts(tiny(), tiny_tokenizer(), size, tiny().json_object, check, num=8)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_regular_expression_matches_as_a_whole(pattern: str) -> None:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), text

    size = tiny_tokenizer().vocab_size + 3
    check_whole_texts(tiny(), tiny_tokenizer(), size, lambda: tiny().regex(pattern), check, num=6)


def test_the_real_tokenizer(shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "models" / "pair" / "target")
    grammars = Grammars(tokenizer)
    for schema in (PERSON, CHOICE):
        make = lambda schema=schema: grammars.json_schema(schema)  # noqa: E731
        check = lambda text, schema=schema: jsonschema.validate(json.loads(text), schema)  # noqa: E731
        check_whole_texts(grammars, tokenizer, tokenizer.vocab_size, make, check, num=4)


def test_without_the_masks_the_texts_do_not_parse() -> None:
    """The check can fail: the same model without the constraint writes no JSON."""

    class Free(GrammarConstraint):
        def __init__(self) -> None:
            super().__init__(None, np.zeros(0, dtype=bool))
            self.size = tiny_tokenizer().vocab_size + 3

        def masks(self, draft: Sequence[int]) -> list[np.ndarray]:
            return [np.ones(self.size, dtype=bool)] * (len(draft) + 1)

        def commit(self, tokens: Sequence[int]) -> None:
            pass

    texts = [written(Free(), tiny_tokenizer(), Free().size, seed, k=2) for seed in range(6)]
    for tokens in texts:
        assert tokens is not None
        with pytest.raises(ValueError, match=r"Expecting|Extra data|control"):
            json.loads(tiny_tokenizer().decode(tokens) or "{")


def test_masks_look_ahead_without_moving() -> None:
    encode, end = tiny_tokenizer().encode, tiny_tokenizer().end_of_text
    constraint = tiny().regex("[0-9]+x")
    draft = [*encode("1"), *encode("2"), *encode("x"), end]
    masks = constraint.masks(draft)
    assert len(masks) == 5
    assert all(mask.shape == (tiny_tokenizer().vocab_size + 3,) for mask in masks)
    assert masks[3].nonzero()[0].tolist() == masks[4].nonzero()[0].tolist() == [end]
    assert np.array_equal(constraint.masks([])[0], masks[0])
    assert not masks[0][encode("x")[0]]
    assert len(constraint.masks([*encode("1"), *encode("y"), *encode("2")])) == 2
    assert len(constraint.masks([10**6])) == len(constraint.masks([-1])) == 1
    assert not constraint.is_complete
    for token, complete in zip(draft[:3], (False, False, True), strict=True):
        constraint.commit([token])
        assert constraint.is_complete == complete
    constraint.commit([end])
    assert constraint.is_complete
    assert constraint.masks([end, end])[2].nonzero()[0].tolist() == [end]
    constraint.commit([end])
    with pytest.raises(ForethoughtError, match="after the end"):
        constraint.commit(encode("1"))
    assert len(constraint.masks([end, 5, end])) == 2


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 9))
def test_looking_ahead_is_going_there(seed: int, committed: int, k: int) -> None:
    """The masks of a draft are those that its tokens, committed one by one, lead to."""
    rng, end = generator(seed, "test.ahead"), tiny_tokenizer().end_of_text
    ahead, there = tiny().json_schema(PERSON), tiny().json_schema(PERSON)

    def allowed(constraint: GrammarConstraint) -> int:
        choice = rng.choice(constraint.masks([])[0].nonzero()[0])
        return end if rng.random() < 0.2 and constraint.masks([])[0][end] else int(choice)

    for _ in range(committed):
        token = allowed(there)
        ahead.commit([token])
        there.commit([token])
    draft, masks = [], [there.masks([])[0]]
    for _ in range(k):
        draft.append(allowed(there))
        there.commit(draft[-1:])
        masks.append(there.masks([])[0])
    for _ in range(2):
        assert all(np.array_equal(one, other) for one, other in zip(ahead.masks(draft), masks, strict=True))
    ahead.commit(draft)
    assert np.array_equal(ahead.masks([])[0], masks[-1])


def test_masks_are_of_the_models_size() -> None:
    for size in (280, tiny_tokenizer().vocab_size, 400):
        mask = Grammars(tiny_tokenizer(), vocabulary_size=size).regex(".*").masks([])[0]
        assert mask.shape == (size,)
        assert mask[: tiny_tokenizer().vocab_size].any()
        assert not mask[tiny_tokenizer().vocab_size :].any()
    with pytest.raises(InputError, match="end a text"):
        Grammars(tiny_tokenizer(), eos_token_ids=[5000])


def test_several_tokens_may_end_a_text() -> None:
    grammars = Grammars(tiny_tokenizer(), eos_token_ids=[0, 7])
    constraint = grammars.regex("ab?")
    masks = constraint.masks([*tiny_tokenizer().encode("a"), 7, 0])
    assert len(masks) == 4
    assert masks[1][[0, 7]].all()
    assert masks[2].nonzero()[0].tolist() == masks[3].nonzero()[0].tolist() == [0, 7]


def test_a_token_that_is_not_allowed_cannot_be_committed() -> None:
    constraint = tiny().regex("[0-9]+")
    with pytest.raises(ForethoughtError, match="does not allow token"):
        constraint.commit(tiny_tokenizer().encode("z"))


def test_requests_of_one_schema_do_not_meet() -> None:
    first, second = tiny().regex("ab"), tiny().regex("ab")
    first.commit(tiny_tokenizer().encode("a"))
    assert not np.array_equal(first.masks([])[0], second.masks([])[0])


@pytest.mark.parametrize(
    "schema",
    [
        "nonsense", "", "[]", '{"type":', '{"type": "objec"}', '{"properties": 3}', '{"$ref": "#/nope"}',
        '{"type": "string", "pattern": "("}', '{"not": {}}',
        '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
        '{"$ref": "http://example.com/x"}', "[" * 5000, '{"items": ' * 3000 + "{}" + "}" * 3000,
        json.dumps({"enum": ["x" * MAX_GRAMMAR_CHARACTERS]}),
    ],
)  # fmt: skip
def test_a_bad_schema_is_the_users_error(schema: str) -> None:
    with pytest.raises(InputError, match=r"^the JSON schema "):
        tiny().json_schema(schema)


def test_a_schema_that_is_no_json_is_the_users_error() -> None:
    for value in (float("nan"), {1, 2}):
        with pytest.raises(InputError, match="not JSON"):
            tiny().json_schema({"const": value})


@pytest.mark.parametrize("pattern", ["a(", "(?=a)b", "\\", "a\\\\\\", "[", "a" * (MAX_GRAMMAR_CHARACTERS + 1)])
def test_a_bad_pattern_is_the_users_error(pattern: str) -> None:
    with pytest.raises(InputError, match=r"^the regular expression "):
        tiny().regex(pattern)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"forethought\[serve\]"):
        Grammars(tiny_tokenizer())


def test_what_was_compiled_is_kept_in_bounded_number() -> None:
    grammars = Grammars(tiny_tokenizer())
    for count in range(70):
        grammars.regex(f"a{{{count}}}b")
    assert len(grammars._kept) == 64

# %% [markdown]
# # Speculation, round by round
#
# A target model judges what a small draft model proposes. In **speculative speculative decoding** the draft does not
# wait for the verdict: it prepares an answer to each verdict that it foresees. This notebook looks at every round.
# Two settings make it larger: `STEPS` trains longer, `TOKENS` decodes more.

# %%
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from forethought.app.recipes.pretrain import tiny
from forethought.data import load_tokenizer
from forethought.decode import SamplingParams, generate
from forethought.decode.single.ssd import SSDOptions
from forethought.lookahead import geometric
from forethought.nn import load_language_model
from forethought.pretrain import ModelShape, fit

OUT = Path(os.environ.get("NOTEBOOK_OUT", "runs/notebooks/speculation"))
STEPS = int(os.environ.get("NOTEBOOK_STEPS", "600"))
TOKENS = 40

# %% [markdown]
# ## A pair of models
#
# The target learns a part of Python's standard library, the draft learns the target's whole law at every position.

# %%
recipe = tiny()
settings = replace(
    recipe,
    corpus=replace(recipe.corpus, max_bytes=600_000),
    loop=replace(recipe.loop, steps=STEPS),
    baselines=False,
)
fit(settings, OUT / "target", exists="resume")
fit(
    replace(
        settings,
        sources=(str(OUT / "target" / "corpus"),),
        model=ModelShape(hidden_size=32, num_layers=1, num_heads=1),
        teacher=str(OUT / "target" / "model"),
    ),
    OUT / "draft",
    exists="resume",
)
target, draft = load_language_model(OUT / "target"), load_language_model(OUT / "draft")
tokenizer = load_tokenizer(OUT / "target" / "model")
prompt = tokenizer.encode("    def __init__(self, ")
params = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)

# %% [markdown]
# ## One pass of the target, one token
#
# Plain decoding is the round with an empty draft. It is also the oracle: nothing below may change its tokens.

# %%
plain = generate(target, prompt, params).result()
print(len(plain.token_ids), "tokens,", plain.statistics.target_forwards, "passes of the target")

# %% [markdown]
# ## Classic speculation
#
# Each line is one round: what left it. All but its last token were drafted; the last is the target's own, and it is
# there even when nothing was accepted, so that no round is for nothing.

# %%
stream = generate(target, prompt, params, method="draft", draft=draft, num_speculative_tokens=4)
for number, chunk in enumerate(stream):
    print(f"round {number:2}: {len(chunk.token_ids)} tokens {tokenizer.decode(chunk.token_ids)!r}")
classic = stream.result()
assert classic.token_ids == plain.token_ids

# %% [markdown]
# ## Foreseen verdicts
#
# A verdict is a pair: how many drafted tokens were accepted, and which token the target said next. With a budget of
# eight the draft prepares eight pairs a round. `geometric` spreads a budget over the accepted lengths by theorem 12 of
# arXiv 2603.03251: the likelier a length, the more guesses at the token behind it.

# %%
print("guesses behind 0, 1, 2, 3 and 4 accepted tokens:", geometric(0.7, 4, 16))
for budget in (1, 2, 4, 8, 16):
    foreseen = generate(
        target, prompt, params, method="ssd", draft=draft, num_speculative_tokens=4, ssd=SSDOptions(budget=budget)
    ).result()
    assert foreseen.token_ids == plain.token_ids
    counts = foreseen.statistics
    print(f"budget {budget:2}: {counts.hits} of {counts.lookups} verdicts foreseen, {counts.prepared} tokens prepared")

# %% [markdown]
# ## What does not change
#
# A hit and a miss give the same tokens here, because the draft's random numbers belong to positions of the text and not
# to rounds. That makes classic speculation the oracle of SSD at any temperature.

# %%
warm = replace(params, temperature=0.8, seed=3)
one = generate(target, prompt, warm, method="draft", draft=draft, num_speculative_tokens=4).result()
other = generate(target, prompt, warm, method="ssd", draft=draft, num_speculative_tokens=4).result()
assert one.token_ids == other.token_ids
print(repr(tokenizer.decode(one.token_ids)))
print("acceptance", one.statistics.acceptance_rate, "tokens a pass", one.statistics.tokens_per_target_forward)

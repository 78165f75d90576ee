# %% [markdown]
# # A certificate, from training to verification
#
# What can be said about the error of a network on data that nobody has seen, from its errors on the data it was trained
# on? If the network can be written down in few bits: a lot. This notebook pays for every bit and ends with a stranger
# who trusts nothing but two files and the data.

# %%
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from torch import nn

from forethought.certify import CertifySpec, Prior, Recipe, bit_budget, certify, certify_given, occam_binomial, verify
from forethought.certify.compress import CompressionConfig
from forethought.certify.decoder import CodebookRecipe, SubspaceRecipe
from forethought.core.errors import ForethoughtError
from forethought.data.images import load_digits

OUT = Path(os.environ.get("NOTEBOOK_OUT", "runs/notebooks/certificate"))
STEPS = int(os.environ.get("NOTEBOOK_STEPS", "600"))
train, test = load_digits()
print(len(train.labels), "digits to train on,", len(test.labels), "held out")

# %% [markdown]
# ## The price of a bit
#
# With k errors on n examples and a description of b bits, the error on fresh data is at most the largest p with
# Pr[Bin(n, p) <= k] >= delta 2^-b. The same errors certify less and less the longer the description is.

# %%
for bits in (0, 100, 400, 1000, 4000):
    bound = occam_binomial(errors=100, n=len(train.labels), bits=bits, delta=0.05)
    print(f"{bits:5} bits: at most {bound:.3f}")
print("to certify 0.25 at 0.07 on the data:", bit_budget(len(train.labels), 0.07, 0.25))

# %% [markdown]
# ## Declared before the data
#
# The prior names the architecture's seed, a random subspace of 100 numbers and a codebook, and a grid for what is left
# open. Choosing among four values costs two bits, whichever comes out best.

# %%
recipe = Recipe(
    architecture="given", settings={}, subspace=SubspaceRecipe(dimension=100), codebook=CodebookRecipe(levels=5)
)
prior = Prior(recipe=recipe, choices={"codebook.levels": [3, 5, 7, 9]})
training = CompressionConfig(steps=STEPS, quantise_steps=max(STEPS // 2, 10), batch_size=128, lr=3e-2)
spec = CertifySpec(prior=prior, attempt={"codebook.levels": [5]}, training=training)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
found = certify(model, (train.inputs, train.labels), spec, test=(test.inputs, test.labels), show=False)
print(found.statement)

# %% [markdown]
# ## The ledger
#
# Symbols under an adaptive code, the codebook, the choices: every bit that the decoder needs is counted, and nothing
# that only training saw.

# %%
document = found.certificate.document
print(document.bits)
again = certify_given(document.result.errors, document.result.n, document.bits.total, document.delta.delta)
assert again.bound == found.bound
alone = found.holdout.interval[1] if found.holdout else 1.0
print("held-out digits alone would certify", round(alone, 3), "- tighter, but they must be spared")

# %% [markdown]
# ## A stranger
#
# The certificate is two files. Whoever has them and the data decodes the message, counts the errors and derives the
# bound anew; a fresh process reads what is claimed without importing any training code.

# %%
place = found.save(OUT / "certificate", replace=True)
np.savez(OUT / "data.npz", inputs=train.inputs, labels=train.labels)
print(sorted(file.name for file in place.iterdir()))
assert verify(place, (train.inputs, train.labels), module=model).bound == found.bound
own = "from forethought.certify import read_certificate; import sys; print(read_certificate(sys.argv[1]).statement)"
subprocess.run([sys.executable, "-c", own, str(place)], check=True)

# %% [markdown]
# ## A forger
#
# One label of the data is changed; then one bit of the message is flipped. Both are found out.

# %%
changed = np.where(np.arange(len(train.labels)) == 7, (train.labels + 1) % 10, train.labels)
message = (place / "message.bin").read_bytes()
for labels, flip in ((changed, 0), (train.labels, 1)):
    (place / "message.bin").write_bytes(message[:-20] + bytes([message[-20] ^ flip]) + message[-19:])
    try:
        verify(place, (train.inputs, labels), module=model)
    except ForethoughtError as error:
        print("refused:", error)
    else:
        raise SystemExit("a forged certificate was believed")

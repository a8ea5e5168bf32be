# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Tutorial
#
# Half a minute on one CPU core, without any download: train pFedMoAP on six clients, look at what came of it, put it
# beside two controls, and predict with one client.
#
# This page is a notebook, `docs/tutorial.py`. Editors that know the
# [percent format](https://jupytext.readthedocs.io/en/latest/formats-scripts.html#the-percent-format) open it as it is;
# `jupytext --to ipynb docs/tutorial.py` makes an `.ipynb` of it.

# %%
from pathlib import Path

import pandas as pd

import fedmoe
from fedmoe.data import Digits, Dirichlet
from fedmoe.methods import LocalAdapter, PFedMoAP, PromptFL

# %% [markdown]
# ## One run
#
# The data are scikit-learn's handwritten digits, and `fedmoe:embedded` is a tiny CLIP that comes with the package. Six
# clients hold different shares of the ten classes. Every setting of the command line can be given: as an object, as a
# dictionary for a group, or with two underscores for a dot.

# %%
SETTINGS = {
    "config": "fedmoe:embedded",
    "partition": Dirichlet(alpha=0.3),
    "federation": {"clients": 6, "rounds": 3, "local_epochs": 2},
    "optim": {"prompt_lr": 0.02, "gating_lr": 0.02},
    "quiet": True,
}
data = Digits(shots=40)  # training images of each class; all by default
method = PFedMoAP(num_experts=3)
result = fedmoe.run(method, data, **SETTINGS, output__name="pfedmoap")
result

# %% [markdown]
# ## What came of it
#
# A row for each round. The accuracy is the mean over the clients, each on its own test split; the spread is over
# clients, too. The result is that of the last round, not of the best one.

# %%
result.rounds[["accuracy/mean", "accuracy/std", "accuracy/worst_decile", "train/loss", "bytes/up"]]

# %%
result.plot()

# %% [markdown]
# The same for each client: who holds few images of which classes?

# %%
result.clients.xs(3, level="round")[["accuracy", "total", "train_examples"]]

# %% [markdown]
# Does the gate mix? An entropy of 1 means that all experts weigh alike; the contribution is the accuracy with the other
# clients' prompts minus that with the client's own prompt in their place, in percentage points.

# %%
result.rounds.loc[3, ["gate/entropy", "gate/top_share", "gate/expert_contribution"]]

# %% [markdown]
# ## Beside controls
#
# A number says little alone. `PromptFL` is the averaged prompt without anything personal. `LocalAdapter` has a personal
# part of the same size as the gate and no experts: if it does as well, the experts are not what helps. What came of
# such controls on three seeds: [A first result](quickstart.md#a-first-result).

# %%
others = [
    fedmoe.run(method, data, **SETTINGS, output__name=type(method).__name__.lower())
    for method in (PromptFL(), LocalAdapter())
]
pd.concat([one.summary for one in (result, *others)])[["label", "accuracy/mean", "accuracy/std", "bytes/down"]]

# %% [markdown]
# One seed shows one draw of everything random. For a comparison, run several, `seed=1`, `seed=2`, ..., or on the
# command line `fedmoe fit --seeds 0,1,2` and `fedmoe compare`, which tests the differences in pairs.
#
# ## Predict
#
# Write two test images as files, and ask client 3 for their classes. The last columns say which experts its gate
# weighed how much.

# %%
for index in (0, 1):
    data.test.image(index).save(f"digit-{index}.png")
result.predict(["digit-0.png", "digit-1.png"], client=3, top=2)

# %% [markdown]
# ## What is left
#
# The run folder has everything that is needed to report, evaluate, resume or export the run, and `fedmoe.load` reads it
# again.

# %%
print(sorted(path.name for path in Path(result.folder).iterdir()))
again = fedmoe.load(result.folder)
assert again.accuracy == result.accuracy

# %% [markdown]
# Next: a method, a partition or a data set of your own ([Extending](extending.md)), and what all settings mean
# ([Command line](reference/commands.md)).

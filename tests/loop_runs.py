"""A loop small enough to be run whole in a test: digits, one hidden layer, every kind of stage. No verdict of it depends on the clock."""
from __future__ import annotations

TINY = """
name = "tiny"
seed = 3

[data]
name = "digits"
selection = 40
train_limit = 96

[model]
name = "mlp"
hidden = [12]

[train]
epochs = 3
eps = 0.03
objective = { name = "pgd", steps = 2 }
batch = 32
lr = 1e-2

[finetune]
epochs = 2

[prune]
layers = "all"
sparsity = 0.5

[prune.magnitude]
rounds = 2

[prune.early]
method = "magnitude"
after = "rewind"
rewind_epoch = 1

[prune.verification-guided]
method = { name = "verification-guided", images = 16 }
feedback = "scores-and-images"

[verify]
eps = 0.02
selection = 12
test = 4
timeout_s = 1000.0
stability = 4
"""

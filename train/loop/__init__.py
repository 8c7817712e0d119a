"""How a classifier is trained: `fit` and its parts (batches, gradients, optimizers, processes), checkpoints and logs.

Which examples an epoch has is decided in `augment.mixing`.
No stages, digests or run folders (`flows.stages.fitting`).
"""

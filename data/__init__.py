"""Images with labels, from wherever they are read to batches on a device; seeds; files; the synthetic data set.

Knows no model and no stage: `train`, `synth` and `flows` build on this. `LabeledImages` is what everyone passes.
"""

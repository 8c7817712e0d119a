"""The classifier: arrays and images in, weights, outputs and indices out.

`models` builds it, `loop` trains it, `evaluate` runs it, `selection` chooses examples by its outputs, `augment` changes
images, `analysis` measures what augmentation does; the settings of all are in `config`. No generators (`synth`), no run
folders or commands (`flows`).
"""

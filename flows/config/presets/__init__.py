"""The papers' settings by row, as settings over the defaults: what `--preset NAME` takes.

The papers are TADA (arXiv 2505.21574), "Data-Efficient Augmentation for Training Neural Networks" (DEA, 2210.08363),
"Loss-Curvature Matching for Dataset Selection and Condensation" (LCMat, 2303.04449) and "Adaptive Second Order Coresets
for Data-efficient Machine Learning" (AdaCore, 2207.13887), a file each. What a paper leaves open is said in each
`about`, with what is taken instead. The generator is never set, but for DiffuseMix: TADA's GLIDE has no open weights as
a folder. docs/papers.md has every table and figure. `RECIPES` are no rows of a paper, but what is usual for photos.
"""

from latebloom.flows.config.presets import adacore, dea, lcmat, tada
from latebloom.flows.config.presets.photos import PHOTO_SIDE, PHOTOS, RECIPES, photo_settings
from latebloom.flows.config.presets.rows import Preset

__all__ = ["PHOTOS", "PHOTO_SIDE", "PRESETS", "RECIPES", "Preset", "photo_settings"]

PRESETS: dict[str, Preset] = tada.PRESETS | dea.PRESETS | lcmat.PRESETS | adacore.PRESETS

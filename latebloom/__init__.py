"""Latebloom: find the training images a classifier learns slowly, make variants of just those, retrain, compare.

This page is the whole public interface from Python. Every name is imported when it is first used, so that
`import latebloom` takes no time. What goes in and comes out are numpy arrays, `LabeledImages`, and pyarrow tables.

Choose:
    select_slow: the slow-learnable images, from the outputs of an early model.
    separating_epoch: the epoch to take those outputs at, from the curve of the training error.
    select_coreset: images that stand for a training set, with weights.

Read:
    load: a data set by name, path or URL, as `DataConfig` says; a `Splits` of `LabeledImages`.
    images_from: the same of a data set of torch, torchvision or Hugging Face's datasets.
    LabeledImages: images, labels and class names; also from arrays of your own.
    SyntheticFolder: a synthetic data set on disk or at a URL; its rows, states and images.

Generate:
    synthesize: variants of some images as a synthetic data set on disk; an interrupted call goes on.
    requests, make_plan: which variants to make, and the table with a seed and a prompt for each.
    load_generator: a diffusion model from a folder, a URL or the hub.
    draw: the images of a plan.

Train:
    SyntheticImages: a synthetic data set as a torch `Dataset`, to stand beside the real one in a `ConcatDataset`.
    CoresetSampler: a coreset as a torch `Sampler`.
    SAM: around any optimizer, in two lines; sam_ascent: its ascent alone.

The commands (`latebloom --help`) and the Prefect flows (`latebloom.flows.pipeline`) are built of these.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latebloom.data.images import LabeledImages
    from latebloom.data.config import DataConfig
    from latebloom.data.sources.load import Splits, load
    from latebloom.data.sources.objects import images_from
    from latebloom.data.synthetic.folder import SyntheticFolder
    from latebloom.data.synthetic.torch_dataset import SyntheticImages
    from latebloom.flows.stages.from_python import synthesize
    from latebloom.synth.generate import draw
    from latebloom.synth.config import GenerateConfig, SampleConfig, SizeConfig
    from latebloom.synth.generators.load import load_generator
    from latebloom.synth.plan import make_plan, requests
    from latebloom.train.loop.optim import SAM, sam_ascent
    from latebloom.train.selection.coreset import Coreset, Evidence, select_coreset
    from latebloom.train.selection.sampler import CoresetSampler
    from latebloom.train.config import CoresetConfig
    from latebloom.train.selection.slow import Selection, select_slow, separating_epoch

__version__ = "0.1.0"

__all__ = [
    "SAM",
    "Coreset",
    "CoresetConfig",
    "CoresetSampler",
    "DataConfig",
    "Evidence",
    "GenerateConfig",
    "LabeledImages",
    "SampleConfig",
    "Selection",
    "SizeConfig",
    "Splits",
    "SyntheticFolder",
    "SyntheticImages",
    "__version__",
    "draw",
    "images_from",
    "load",
    "load_generator",
    "make_plan",
    "requests",
    "sam_ascent",
    "select_coreset",
    "select_slow",
    "separating_epoch",
    "synthesize",
]

_HOME = {
    "SAM": "train.loop.optim",
    "Coreset": "train.selection.coreset",
    "CoresetConfig": "train.config",
    "CoresetSampler": "train.selection.sampler",
    "DataConfig": "data.config",
    "Evidence": "train.selection.coreset",
    "GenerateConfig": "synth.config",
    "LabeledImages": "data.images",
    "SampleConfig": "synth.config",
    "Selection": "train.selection.slow",
    "SizeConfig": "synth.config",
    "Splits": "data.sources.load",
    "SyntheticFolder": "data.synthetic.folder",
    "SyntheticImages": "data.synthetic.torch_dataset",
    "draw": "synth.generate",
    "images_from": "data.sources.objects",
    "load": "data.sources.load",
    "load_generator": "synth.generators.load",
    "make_plan": "synth.plan",
    "requests": "synth.plan",
    "sam_ascent": "train.loop.optim",
    "select_coreset": "train.selection.coreset",
    "select_slow": "train.selection.slow",
    "separating_epoch": "train.selection.slow",
    "synthesize": "flows.stages.from_python",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"latebloom has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"latebloom.{_HOME[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value

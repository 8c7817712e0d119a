"""How near the synthetic images of a run are to the real ones, as sets: `latebloom fidelity`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import numpy_rng
from latebloom.data.store import write_json
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.loaders import device_of
from latebloom.synth.scoring.fidelity import FeatureSet, InceptionFeatures, compare
from latebloom.train.evaluate import features_of

__all__ = ["measure"]

# Precision and recall look at all pairs; published values are of 50,000 images too.
LIMIT = 50_000


def measure(run_folder: Path, inception_weights: Path | None = None) -> dict[str, Any]:
    """Score the usable images of a run's synthetic set against its training images; writes synthetic-fidelity.json.

    There is one row for the references themselves, one a level, and one for all levels. The references are real, but
    they were chosen: their row is what perfect copies of them would get, and what the others are to be read against.

    Args:
        inception_weights: torch-fidelity's file, for scores on Inception's features too.

    Returns:
        What is in the file: `dataset` (digest), images `per_class`, and `rows`: `features` (whose), `images` (which)
        and the fields of `Fidelity` (synth/scoring).

    Raises:
        ValueError: no run folder, no finished synthetic set, no usable image in it, unusable Inception weights.
    """
    run = RunContext(RunFolder(run_folder), read_config(run_folder))
    config, folder, train = run.config, run.synthetic, run.splits.train
    rows = folder.rows()
    rows = rows.filter(pc.equal(rows["state"], "ok"))
    synthetic = folder.images(rows, train)
    reference = run.reference[0]
    features_in: dict[str, Callable[[LabeledImages], np.ndarray]] = {
        "reference classifier": lambda data: features_of(reference, data)[1]
    }
    if inception_weights:
        features_in["inception"] = InceptionFeatures.load(inception_weights, device_of(config.device))

    real = train.subset(_drawn(np.arange(len(train)), config.seed, "real"))
    references = train.subset(_drawn(np.unique(rows["source_index"].to_numpy()), config.seed, "references"))
    levels = _levels(rows, config.seed)
    result = []
    for space, features in features_in.items():
        goal, made = FeatureSet(features(real)), features(synthetic)
        sets = {"references": features(references)} | {level: made[chosen] for level, chosen in levels.items()}
        for images, values in sets.items():
            scores = compare(goal, FeatureSet(values), config.seed)
            result.append({"features": space, "images": images, **dataclasses.asdict(scores)})
    counts = {
        name: {"real": int(there), "synthetic": int(new)}
        for name, there, new in zip(train.class_names, train.class_counts(), synthetic.class_counts(), strict=True)
    }
    content = {"dataset": folder.manifest()["digest"], "per_class": counts, "rows": result}
    write_json(run_folder / "synthetic-fidelity.json", content)
    return content


def _levels(rows: pa.Table, seed: int) -> dict[str, np.ndarray]:
    """Which rows are at each level, from the lowest to the highest, and all of them; at most `LIMIT` of each."""
    steps, grid = rows["level_steps"].to_numpy(), rows["level_grid"].to_numpy()
    sets = {
        f"{step} of {of}": np.flatnonzero((steps == step) & (grid == of))
        for step, of in sorted(set(zip(steps.tolist(), grid.tolist(), strict=True)))
    }
    sets["all levels"] = np.arange(rows.num_rows)
    return {name: _drawn(chosen, seed, name) for name, chosen in sets.items()}


def _drawn(rows: np.ndarray, seed: int, name: str) -> np.ndarray:
    """The rows, or `LIMIT` of them drawn by seed and name, in their order."""
    if len(rows) <= LIMIT:
        return rows
    return np.sort(numpy_rng(seed, "fidelity", name).choice(rows, LIMIT, replace=False))

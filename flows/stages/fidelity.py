"""How near the synthetic images of a run are to the real ones, as sets: `latebloom fidelity`, and in the report."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import numpy_rng
from latebloom.data.store import read_json, write_json
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.run.records import FRECHET, FrechetFacts
from latebloom.flows.stages.context import RunContext, has_reference
from latebloom.flows.stages.loaders import device_of
from latebloom.flows.stages.synthesis import check_images
from latebloom.synth.scoring.fidelity import FeatureSet, InceptionFeatures, compare, frechet_distance
from latebloom.train.evaluate import features_of

__all__ = ["FILE", "frechet_by_level", "inception_by_level", "measure"]

# Precision and recall look at all pairs; published values are of 50,000 images too.
LIMIT = 50_000
FILE = "synthetic-fidelity.json"


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
        ValueError: no run folder, no finished synthetic set, one of other images than the data have now, none of them
            usable, unusable Inception weights.
    """
    run = RunContext(RunFolder(run_folder), read_config(run_folder))
    config, folder, train = run.config, run.synthetic, run.splits.train
    rows = folder.rows()
    check_images(run)
    rows = rows.filter(pc.equal(rows["state"], "ok"))
    synthetic = folder.images(rows, train)
    features_in: dict[str, Callable[[LabeledImages], np.ndarray]] = {}
    if run.reference:
        features_in["reference classifier"] = lambda data: features_of(run.reference[0], data)[1]
    elif not inception_weights:
        raise ValueError(
            f"{run_folder} has no reference classifier, since its early outputs were given; give --inception-weights"
        )
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
    write_json(run_folder / FILE, content)
    return content


def frechet_by_level(run: RunContext, table: pa.Table) -> FrechetFacts:
    """Frechet distance of the usable images of each level to the training images; measured once for a data set.

    Args:
        table: the rows of the run's synthetic data set.
    """
    config, train = run.config, run.splits.train
    if not has_reference(config):
        return FrechetFacts(images=0, levels={})
    inputs: dict[str, Any] = {
        "dataset": run.synthetic.manifest()["digest"],
        "train": train.digest,
        "reference": run.scorer_digests["reference"],
        "states": config.train_states,
        "seed": config.seed,
    }
    stage = run.folder.stage(FRECHET, 2, inputs)
    if record := stage.done():
        return record.facts
    with stage.making() as outcome:
        usable = np.isin(np.array(table["state"].to_pylist()), config.train_states)
        sets = _levels(table, config.seed)
        del sets["all levels"]
        sets = {name: chosen[usable[chosen]] for name, chosen in sets.items()}
        # One number for all levels, so that they compare; at most as many as there are references.
        fewest = min(*map(len, sets.values()), len(np.unique(table["source_index"].to_numpy())))
        reference = run.reference[0]

        def features(data: LabeledImages) -> FeatureSet:
            return FeatureSet(features_of(reference, data)[1])

        goal = features(train.subset(_drawn(np.arange(len(train)), config.seed, "real")))
        levels: dict[str, float] = {}
        if fewest >= 2 and len(goal) >= 2:  # one image has no covariance
            for name, chosen in sets.items():
                rows = table.take(_drawn(chosen, config.seed, name, fewest))
                levels[name] = frechet_distance(goal, features(run.synthetic.images(rows, train)))
        outcome.facts = FrechetFacts(images=fewest, levels=levels)
    return outcome.facts


def inception_by_level(run: RunContext) -> dict[str, float]:
    """FID by level, where `latebloom fidelity --inception-weights` measured this data set; else nothing."""
    file = run.path / FILE
    content = read_json(file) if file.is_file() else {}
    if content.get("dataset") != run.synthetic.manifest()["digest"]:
        return {}
    rows = [row for row in content["rows"] if row["features"] == "inception" and row["frechet"] is not None]
    return {row["images"]: row["frechet"] for row in rows}


def _levels(rows: pa.Table, seed: int) -> dict[str, np.ndarray]:
    """Which rows are at each level, from the lowest to the highest, and all of them; at most `LIMIT` of each."""
    steps, grid = rows["level_steps"].to_numpy(), rows["level_grid"].to_numpy()
    sets = {
        f"{step} of {of}": np.flatnonzero((steps == step) & (grid == of))
        for step, of in sorted(set(zip(steps.tolist(), grid.tolist(), strict=True)))
    }
    sets["all levels"] = np.arange(rows.num_rows)
    return {name: _drawn(chosen, seed, name) for name, chosen in sets.items()}


def _drawn(rows: np.ndarray, seed: int, name: str, most: int | None = None) -> np.ndarray:
    """The rows, or `most` (`LIMIT`) of them drawn by seed and name, in their order."""
    most = LIMIT if most is None else most
    if len(rows) <= most:
        return rows
    return np.sort(numpy_rng(seed, "fidelity", name).choice(rows, most, replace=False))

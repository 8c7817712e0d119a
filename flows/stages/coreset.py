"""Select a coreset of any data set by any classifier, and measure how well it stands for the whole. No Prefect."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latebloom.data.images import LabeledImages, concat
from latebloom.data.seeds import child_seed
from latebloom.data.store import as_path, digest_file, digest_json, local_file, write_arrays, write_bytes, write_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.tools import CoresetRunConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import say
from latebloom.flows.run.records import (
    EARLY,
    ClassFacts,
    ClassifierFacts,
    CoresetFacts,
    CoresetSeconds,
    Fit,
    classifiers_key,
    coreset_key,
)
from latebloom.flows.stages.classifiers import classifier_seeds, early_weights, loaded_classifiers, new_classifiers
from latebloom.flows.stages.fitting import classifier_key, fit_all, fit_config_of, fit_key
from latebloom.flows.stages.loaders import device_of, images_of
from latebloom.flows.stages.run_source import claim
from latebloom.flows.stages.training_sets import usable_rows
from latebloom.train.augment.mixing import Mixer
from latebloom.train.evaluate import features_of
from latebloom.train.loop.checkpoint import save_model
from latebloom.train.selection.coreset import Coreset, Evidence, budgets, select_coreset
from latebloom.train.selection.gradients import residuals

__all__ = ["CoresetRunConfig", "check_coreset", "write_coreset"]

_CHUNK = 4096  # rows of the pool that are compared with the selected ones at once


def check_coreset(config: CoresetRunConfig) -> None:
    """Everything that can be wrong, before anything is trained.

    Raises:
        ValueError: the first thing that is.
    """
    train = images_of(config.as_run).train
    device_of(config.device)
    new_classifiers(config.as_run, train, count=1)
    if config.run and not config.trains and not config.checkpoint:
        facts = RunFolder(as_path(config.run)).record(EARLY).facts
        if facts.given:
            raise ValueError(
                f"{config.run} was selected from given {facts.given}, so it has no early classifier to ask; give "
                "--checkpoint, or a SOURCE to train one"
            )
        made = len(facts.errors)
        if config.seeds > made:
            raise ValueError(
                f"{config.run} has {made} early classifiers, not {config.seeds}; give seeds {made} or less"
            )
    if not config.trains:
        loaded_classifiers(config.as_run, train, _weights(config))
    pool, _ = _pool(config)
    budgets(pool.labels, pool.num_classes, config.coreset)
    len(pool.sha256)  # decodes every image, so that a damaged one is named now


def write_coreset(folder: RunFolder, config: CoresetRunConfig) -> CoresetFacts:
    """Write coreset-METHOD.npz, .csv and .json into a folder; what the latter says.

    The .npz has `indices` int64 (B,) into the pool, class after class in the order of selection, their `labels` int64,
    `weights` float32, the images' `names` and `sha256`, and `source`: "real", or the item id of a synthetic image. The
    .csv has the same for people, a line an image: file, class, row, weight, source, sha256. The pool is
    the training images, behind them the usable synthetic ones in the order of their data set. A method that ranks by
    scores adds `scores` float32 (N,) of the whole pool, facility location `owner` int64 (N,): the selected image that
    stands for each.
    """
    method = config.coreset.method
    claim(folder.path, config.as_run)
    pool, items = _pool(config)
    training, weights = (_train(folder, config, pool) if config.trains else 0.0), _weights(config, folder)
    forgotten: np.ndarray | None = None
    if method == "forgetting":
        with local_file(_trained(folder, config) / "forgotten.npz") as local, np.load(local) as arrays:
            forgotten = arrays["forgotten"]
    about: dict[str, Any] = {
        "data": images_of(config.as_run).train.digest,
        "synthetic": digest_json(items) if items else "",
        "classifier": classifier_key(config.classifier),
        "weights": [digest_file(file) for file in weights],
        "coreset": config.coreset.model_dump(mode="json"),
        "seed": config.seed,
    }
    stage = folder.stage(coreset_key(method), 3, {**about, "names": digest_json([*pool.names])})
    if record := stage.done():
        say(f"coreset: {method} was selected before")
        return record.facts
    file, lines, description = (folder.path / f"coreset-{method}.{suffix}" for suffix in ("npz", "csv", "json"))
    with stage.making() as outcome:
        begin = time.perf_counter()
        found = [features_of(model, pool) for model in loaded_classifiers(config.as_run, pool, weights)]
        forward_pass = time.perf_counter() - begin
        evidence = Evidence(found[0][0], pool.labels, found[0][1], forgotten=forgotten, ensemble=tuple(found[1:]))
        begin = time.perf_counter()
        chosen = select_coreset(evidence, config.coreset, child_seed(config.seed, "coreset"))
        selection = time.perf_counter() - begin
        random = config.coreset.model_copy(update={"method": "random"})
        at_random = select_coreset(evidence, random, child_seed(config.seed, "random"))
        sources = np.array(["real"] * (len(pool) - len(items)) + items)
        of_all = {"scores": chosen.scores, "owner": chosen.owner}
        write_arrays(
            file,
            indices=chosen.indices,
            labels=pool.labels[chosen.indices],
            weights=chosen.weights,
            source=sources[chosen.indices],
            sha256=np.array(pool.sha256)[chosen.indices],
            names=np.array(pool.names)[chosen.indices],
            **{name: array for name, array in of_all.items() if array is not None},
        )
        write_bytes(lines, _as_csv(pool, chosen, sources).encode())
        outcome.facts = CoresetFacts(
            method=method,
            **about,
            origin=pool.origin,
            images=len(pool),
            synthetic_images=len(items),
            selected=len(chosen.indices),
            selected_synthetic=int((chosen.indices >= len(pool) - len(items)).sum()),
            classes=_classes(pool, chosen, len(pool) - len(items)),
            seconds=CoresetSeconds(training=training, forward_pass=forward_pass, selection=selection),
            objective=_objective(evidence, chosen),
            objective_random=_objective(evidence, at_random),
            file=file.name,
        )
        write_json(description, outcome.facts.model_dump(mode="json"))
        outcome.outputs += [file, lines, description]
    return outcome.facts


def _as_csv(pool: LabeledImages, chosen: Coreset, sources: np.ndarray) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "class", "row", "weight", "source", "sha256"))
    for row, weight in zip(chosen.indices.tolist(), chosen.weights.tolist(), strict=True):
        kind = pool.class_names[pool.labels[row]]
        writer.writerow((pool.names[row], kind, row, f"{weight:.9g}", sources[row], pool.sha256[row]))
    return text.getvalue()


def _pool(config: CoresetRunConfig) -> tuple[LabeledImages, list[str]]:
    """The images to select from, and the item ids of the synthetic ones at their end."""
    train = images_of(config.as_run).train
    if not config.with_synthetic:
        return train, []
    folder = SyntheticFolder(as_path(config.run) / "synthetic")
    usable = usable_rows(folder, folder.rows(), config.states)
    return concat(train, folder.images(usable, train)), usable["item_id"].to_pylist()


def _weights(config: CoresetRunConfig, folder: RunFolder | None = None) -> list[Path]:
    """The files of the classifiers that are asked; those that are trained here lie in `folder`."""
    if config.trains:
        assert folder is not None
        return [_trained(folder, config) / f"seed-{number}.safetensors" for number in range(config.seeds)]
    if not config.checkpoint:
        return early_weights(RunFolder(as_path(config.run)), config.seeds)
    file = as_path(config.checkpoint)
    if not file.is_file():
        raise ValueError(f"there is no checkpoint at {file}; give a .safetensors file that a run wrote, or none")
    return [file]


def _trained(folder: RunFolder, config: CoresetRunConfig) -> Path:
    """Where classifiers are that were trained to select by."""
    return folder.path / "coreset" / ("forgetting" if config.coreset.method == "forgetting" else "others")


def _train(folder: RunFolder, config: CoresetRunConfig, pool: LabeledImages) -> float:
    """Train the classifiers that selection asks, unless they are there; the seconds it took."""
    fit_config = fit_config_of(config.train, config.train.optimizer)
    forgets = config.coreset.method == "forgetting"
    seeds = classifier_seeds(config.as_run)
    inputs: dict[str, Any] = {
        "data": pool.digest,
        "classifier": classifier_key(config.classifier),
        "train": fit_key(fit_config),
        "seeds": seeds,
        "forgetting": forgets,
    }
    # Apart from the others': what it counts is an output more, and one must not undo the other.
    key, place = classifiers_key("forgetting" if forgets else "classifiers"), _trained(folder, config)
    stage = folder.stage(key, 1, inputs)
    if record := stage.done():
        say("coreset: its classifiers were trained before")
        return record.seconds
    with stage.making() as outcome:
        models = [model.to(device_of(config.device)) for model in new_classifiers(config.as_run, pool)]
        epochs = fit_config.total_epochs(len(pool)) + 1  # steps that are no whole number of epochs begin one more
        shape = pool.num_classes, pool.image_shape
        mixers = [Mixer.counting(pool.labels, *shape, seed, epochs) for seed in seeds] if forgets else None
        fit_all(
            models,
            pool,
            [np.arange(len(pool))] * len(models),
            fit_config,
            config.classifier,
            seeds,
            "train to select by",
            place,
            [fit_config.total_steps(len(pool))] * len(models),
            mixers=mixers,
        )
        for file, model in zip(_weights(config, folder), models, strict=True):
            save_model(file, model)
            outcome.outputs.append(file)
        if mixers:
            write_arrays(place / "forgotten.npz", forgotten=mixers[0].forgotten)
            outcome.outputs.append(place / "forgotten.npz")
        outcome.facts = ClassifierFacts()
    return folder.record(key).seconds


def _classes(pool: LabeledImages, chosen: Coreset, n_real: int) -> list[ClassFacts]:
    labels = pool.labels[chosen.indices]
    rows = []
    for label, (name, size) in enumerate(zip(pool.class_names, pool.class_counts().tolist(), strict=True)):
        mine = labels == label
        rows.append(
            ClassFacts(
                name=name,
                images=size,
                selected=int(mine.sum()),
                selected_synthetic=int((chosen.indices[mine] >= n_real).sum()),
                weight=float(chosen.weights[mine].sum()),
            )
        )
    return rows


def _objective(evidence: Evidence, coreset: Coreset) -> Fit:
    """How well a coreset stands for the pool, for any method; a class without selected images does not count."""
    gradients = torch.from_numpy(residuals(evidence.logits, evidence.labels))  # p - y of the logits, (N, C)
    labels, chosen = evidence.labels, coreset.indices
    total, count = 0.0, 0
    for label in np.unique(labels[chosen]):
        selected = gradients[torch.from_numpy(chosen[labels[chosen] == label])]
        rows = np.flatnonzero(labels == label)
        for start in range(0, len(rows), _CHUNK):
            mine = gradients[torch.from_numpy(rows[start : start + _CHUNK])]
            total += float(torch.cdist(mine, selected).min(1).values.double().sum())
        count += len(rows)
    weights = torch.from_numpy(coreset.weights.astype(np.float64))
    mean = (gradients[torch.from_numpy(chosen)].double() * weights[:, None]).sum(0) / weights.sum()
    lengths = gradients.norm(dim=1).double().mean()
    error = float((gradients.double().mean(0) - mean).norm() / lengths) if lengths else 0.0
    return Fit(coverage=total / max(1, count), gradient_error=error)

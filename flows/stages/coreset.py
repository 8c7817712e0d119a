"""Pick a coreset of any data set by any classifier: look once, select, measure what the picks cover. No Prefect."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from latebloom.data.images import LabeledImages, concat
from latebloom.data.seeds import child_seed
from latebloom.data.store import (
    as_path,
    digest_file,
    digest_json,
    local_file,
    read_json,
    write_arrays,
    write_json,
)
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.tools import CoresetRunConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import say
from latebloom.flows.stages.fitting import classifier_key, fit_all, fit_config_of, fit_key
from latebloom.flows.stages.loaders import (
    classifier_seeds,
    device_of,
    early_folder,
    images_of,
    new_classifiers,
    usable_rows,
)
from latebloom.train.augment.mixing import Mixer, StrongConfig
from latebloom.train.evaluate import features_of
from latebloom.train.loop.checkpoint import load_model, save_model
from latebloom.train.selection.coreset import Coreset, Evidence, budgets, select_coreset
from latebloom.train.selection.gradients import residuals

__all__ = ["CoresetRunConfig", "check_coreset", "pick_coreset"]

_CHUNK = 4096  # rows of the pool that are compared with the picks at once


def check_coreset(config: CoresetRunConfig) -> None:
    """Everything that can be wrong, before anything is trained.

    Raises:
        ValueError: the first thing that is.
    """
    train = images_of(config.as_run).train
    device_of(config.device)
    new_classifiers(config.as_run.model_copy(update={"seeds": 1}), train)
    if config.run and not config.trains:
        made = len(RunFolder(as_path(config.run)).record("early")["facts"]["errors"])
        if config.seeds > made:
            raise ValueError(
                f"{config.run} has {made} early classifiers, not {config.seeds}; give seeds {made} or less"
            )
    if not config.trains:
        _loaded(config, train)
    pool, _ = _pool(config)
    budgets(pool.labels, pool.num_classes, config.coreset)
    len(pool.sha256)  # decodes every image, so that a damaged one is named now


def pick_coreset(run: RunFolder, config: CoresetRunConfig) -> dict[str, Any]:
    """Write coreset-METHOD.npz and coreset-METHOD.json into a folder; what the latter says.

    The .npz has `indices` int64 (B,) into the pool, class after class in the order of the picks, their `labels` int64,
    `weights` float32, the pictures' `sha256`, and `source`: "real", or the item id of a synthetic image. The pool is
    the training images, behind them the usable synthetic ones in the order of their data set.
    """
    method = config.coreset.method
    pool, items = _pool(config)
    forgotten: np.ndarray | None = None
    training = 0.0
    if config.trains:
        training = _train(run, config, pool)
        weights = [_trained(run, config) / f"seed-{number}.safetensors" for number in range(config.seeds)]
        if method == "forgetting":
            with local_file(_trained(run, config) / "forgotten.npz") as file, np.load(file) as arrays:
                forgotten = arrays["forgotten"]
    else:
        weights = _weights(config)
    about: dict[str, Any] = {
        "data": images_of(config.as_run).train.digest,
        "synthetic": digest_json(items) if items else "",
        "classifier": classifier_key(config.classifier),
        "weights": [digest_file(file) for file in weights],
        "coreset": config.coreset.model_dump(mode="json"),
        "seed": config.seed,
    }
    stage = run.stage(f"coreset-{method}", 1, about)
    told = run.path / f"coreset-{method}.json"
    if stage.is_done():
        say(f"coreset: {method} picked before")
        return read_json(told)
    arrays_file = run.path / f"coreset-{method}.npz"
    facts: dict[str, Any] = {}
    with stage.making([arrays_file, told], facts):
        begin = time.perf_counter()
        models = _loaded(config, pool, weights)
        looks = [features_of(model, pool) for model in models]
        looked = time.perf_counter() - begin
        evidence = Evidence(looks[0][0], pool.labels, looks[0][1], forgotten=forgotten, ensemble=tuple(looks[1:]))
        begin = time.perf_counter()
        picked = select_coreset(evidence, config.coreset, child_seed(config.seed, "coreset"))
        selecting = time.perf_counter() - begin
        by_lot = select_coreset(
            evidence, config.coreset.model_copy(update={"method": "random"}), child_seed(config.seed, "by lot")
        )
        sources = np.array(["real"] * (len(pool) - len(items)) + items)
        write_arrays(
            arrays_file,
            indices=picked.indices,
            labels=pool.labels[picked.indices],
            weights=picked.weights,
            source=sources[picked.indices],
            sha256=np.array(pool.sha256)[picked.indices],
        )
        facts |= {
            "method": method,
            **about,
            "origin": pool.origin,
            "images": len(pool),
            "synthetic_images": len(items),
            "picked": len(picked.indices),
            "picked_synthetic": int((picked.indices >= len(pool) - len(items)).sum()),
            "classes": _classes(pool, picked, len(pool) - len(items)),
            "seconds": {"training": training, "look": looked, "selection": selecting},
            "objective": _objective(evidence, picked),
            "objective_by_lot": _objective(evidence, by_lot),
            "file": arrays_file.name,
        }
        write_json(told, facts)
    return read_json(told)


def _pool(config: CoresetRunConfig) -> tuple[LabeledImages, list[str]]:
    """The images to pick from, and the item ids of the synthetic ones at their end."""
    train = images_of(config.as_run).train
    if not config.with_synthetic:
        return train, []
    folder = SyntheticFolder(as_path(config.run) / "synthetic")
    usable = usable_rows(folder, folder.rows(), config.states)
    return concat(train, folder.images(usable, train)), usable["item_id"].to_pylist()


def _weights(config: CoresetRunConfig) -> list[Path]:
    if not config.checkpoint:
        run = RunFolder(as_path(config.run))
        return [early_folder(run, number) / "model.safetensors" for number in range(config.seeds)]
    file = as_path(config.checkpoint)
    if not file.is_file():
        raise ValueError(f"there is no checkpoint at {file}; give a .safetensors file that a run wrote, or none")
    return [file]


def _loaded(config: CoresetRunConfig, data: LabeledImages, weights: list[Path] | None = None) -> list[nn.Module]:
    """The classifiers with their weights, in eval mode on the device."""
    models = new_classifiers(config.as_run, data)
    for model, file in zip(models, weights or _weights(config), strict=True):
        load_model(file, model)
        model.to(device_of(config.device)).eval()
    return models


def _trained(run: RunFolder, config: CoresetRunConfig) -> Path:
    """Where classifiers are that were trained to select by."""
    return run.path / "coreset" / ("forgetting" if config.coreset.method == "forgetting" else "others")


def _train(run: RunFolder, config: CoresetRunConfig, pool: LabeledImages) -> float:
    """Train the classifiers that selection looks by, unless they are there; the seconds it took."""
    fit_config = fit_config_of(config.train, config.train.optimizer)
    forgets = config.coreset.method == "forgetting"
    inputs: dict[str, Any] = {
        "data": pool.digest,
        "classifier": classifier_key(config.classifier),
        "train": fit_key(fit_config),
        "seeds": classifier_seeds(config.as_run),
        "forgetting": forgets,
    }
    # Apart from the others': what it counts is an output more, and one must not undo the other.
    name, folder = ("coreset-forgetting" if forgets else "coreset-classifiers"), _trained(run, config)
    stage = run.stage(name, 1, inputs)
    if stage.is_done():
        say("coreset: its classifiers were trained before")
        return float(run.record(name)["seconds"])
    files: list[Path] = []
    with stage.making(files):
        models = [model.to(device_of(config.device)) for model in new_classifiers(config.as_run, pool)]
        rows = [np.arange(len(pool))] * len(models)
        mixers = [_counter(config, pool, seed) for seed in inputs["seeds"]] if forgets else None
        fit_all(
            models,
            pool,
            rows,
            fit_config,
            config.classifier,
            inputs["seeds"],
            "train to select by",
            folder,
            [fit_config.total_steps(len(pool))] * len(models),
            mixers=mixers,
        )
        for number, model in enumerate(models):
            files.append(folder / f"seed-{number}.safetensors")
            save_model(files[-1], model)
        if mixers:
            files.append(folder / "forgotten.npz")
            write_arrays(files[-1], forgotten=mixers[0].forgotten)
    return float(run.record(name)["seconds"])


def _counter(config: CoresetRunConfig, pool: LabeledImages, seed: int) -> Mixer:
    """Counts forgetting events in a training that is weak to its end."""
    epochs = config.train.total_epochs(len(pool)) + 1  # steps that are no whole number of epochs begin one more
    strong = StrongConfig(selector="forgetting", coreset=config.coreset, where="in_place", warm_epochs=epochs)
    return Mixer(strong, pool.labels, pool.num_classes, pool.image_shape, seed)


def _classes(pool: LabeledImages, picked: Coreset, n_real: int) -> list[dict[str, Any]]:
    rows = []
    labels = pool.labels[picked.indices]
    for label, (name, size) in enumerate(zip(pool.class_names, pool.class_counts().tolist(), strict=True)):
        mine = labels == label
        rows.append(
            {
                "class": name,
                "images": size,
                "picked": int(mine.sum()),
                "picked_synthetic": int((picked.indices[mine] >= n_real).sum()),
                "weight": float(picked.weights[mine].sum()),
            }
        )
    return rows


def _objective(evidence: Evidence, picked: Coreset) -> dict[str, float]:
    """How well the picks stand for the pool, in gradients p - y of the logits, for any method.

    - coverage: mean distance of an image to the nearest pick of its class; a class without picks does not count.
    - gradient_error: distance of the picks' weighted mean gradient to that of all, over the mean length of a gradient.
    """
    gradients = torch.from_numpy(residuals(evidence.logits, evidence.labels))  # (N, C)
    labels, chosen = evidence.labels, picked.indices
    total, count = 0.0, 0
    for label in np.unique(labels[chosen]):
        picks = gradients[torch.from_numpy(chosen[labels[chosen] == label])]
        rows = np.flatnonzero(labels == label)
        for start in range(0, len(rows), _CHUNK):
            mine = gradients[torch.from_numpy(rows[start : start + _CHUNK])]
            total += float(torch.cdist(mine, picks).min(1).values.double().sum())
        count += len(rows)
    weights = torch.from_numpy(picked.weights.astype(np.float64))
    mean = (gradients[torch.from_numpy(chosen)].double() * weights[:, None]).sum(0) / weights.sum()
    lengths = gradients.norm(dim=1).double().mean()
    error = float((gradients.double().mean(0) - mean).norm() / lengths) if lengths else 0.0
    return {"coverage": total / max(1, count), "gradient_error": error}

"""Gather what the stages recorded into a `Report` with its pictures."""

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import numpy_rng
from latebloom.data.store import local_file
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report.page import Cluster, ContactRow, Pictures, write_report
from latebloom.flows.report.results import LevelResult, Report, SeedSelection, StageCost, arm_results, sentences
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages.loaders import early_folder, images_of, perturbed, selected, selection_path
from latebloom.train.evaluate import softmax
from latebloom.train.selection.slow import jaccard

__all__ = ["write"]

PACKAGES = ("torch", "torchvision", "diffusers", "prefect", "scikit-learn", "numpy", "pillow", "pyarrow")
EXAMPLES = 24
CONTACT_ROWS = 12


def write(run: RunFolder, config: CompareConfig) -> Path:
    """Write report.json, report.html and contact_sheet.png into the run folder; the path of the page.

    Raises:
        ValueError: a stage the report is about has not been run.
    """
    train = images_of(config).train
    test = images_of(config).test
    # Runs of arms that need no slow examples have no early classifiers.
    early: dict[str, Any] = run.record("early")["facts"] if _has_slow(run, config) else {}
    arms: list[tuple[str, str]] = [(arm, optimizer) for arm in config.arms for optimizer in config.optimizers]
    facts = {key: run.record("retrain-{}-{}".format(*key))["facts"] for key in arms}
    synthetic: dict[str, Any] = {}
    generator: dict[str, Any] = {}
    levels: list[LevelResult] = []
    table: pa.Table | None = None
    seen: int | None = None
    seconds_per_call = 0.0
    if config.wants_synthetic:
        folder = SyntheticFolder(run.path / "synthetic")
        table = folder.rows()
        levels = _levels(table)
        made = run.record("generate")
        seconds_per_call = made["seconds"] / max(1, made["facts"]["denoiser_calls"])
        manifest = folder.manifest()
        synthetic = {
            "rows": manifest["rows"],
            "states": manifest["states"],
            "digest": manifest["digest"],
            "bytes": sum((folder.path / part["file"]).stat().st_size for part in manifest["parts"]),
            "denoiser_calls": made["facts"]["denoiser_calls"],
            "seconds": made["seconds"],
        }
        facts_of = run.record("plan")["facts"]["generator"]
        generator = {name: facts_of[name] for name in ("name", "digest", "trained_on")}
        seen = facts_of["seen"]
    slow_sets = [selected(run, "cluster", number) for number in range(config.seeds)] if early else []
    results = arm_results(facts, seconds_per_call)
    report = Report(
        title=f"Latebloom: {config.data.source}",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data={
            "source": config.data.source,
            "train": len(train),
            "test": len(test),
            "classes": list(train.class_names),
            "image_shape": list(train.image_shape),
            **_harder(config, train),
        },
        generator=generator,
        generator_seen=seen,
        separating_epoch=early.get("separating_epoch", 0),
        separating_epoch_chosen=early.get("by_knee", False),
        early_errors=early.get("errors", []),
        selections=[_selection(run, number, chosen) for number, chosen in enumerate(slow_sets)],
        jaccard=_mean_jaccard(slow_sets),
        jaccard_chance=_chance_jaccard(slow_sets, train, config.seed),
        class_slow=_classes(run, slow_sets, train) if early else [],
        synthetic=synthetic,
        levels=levels,
        arms=results,
        sentences=sentences(results, len(test)),
        warnings=_warnings(run, config, seen, early),
        stages=_stages(run, config),
        config=config.model_dump(mode="json"),
        versions={name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
    )
    pictures = _pictures(run, train, slow_sets[0], table, config.seed) if early else Pictures([], [], [], [])
    return write_report(run.path, report, pictures)


def _has_slow(run: RunFolder, config: CompareConfig) -> bool:
    return config.wants_slow or (run.has("early") and run.has("select"))


def _harder(config: CompareConfig, train: LabeledImages) -> dict[str, Any]:
    """What was done to the training images before anything was trained; nothing where they are as they came."""
    done = perturbed(config)
    if done is None:
        return {}
    return {
        "perturbed": config.perturb.model_dump(mode="json"),
        "wrong_labels": len(done.flipped),
        "images_of_each_class": dict(zip(train.class_names, train.class_counts().tolist(), strict=True)),
    }


def _perturbed_words(config: CompareConfig) -> list[str]:
    done, train = perturbed(config), images_of(config).train
    if done is None:
        return []
    parts = []
    if config.perturb.imbalance != "none":
        counts = train.class_counts()
        parts.append(
            f"classes were made unequal ({config.perturb.imbalance}: {counts.max():,} to {counts.min():,} images a "
            f"class, {len(train):,} in all)"
        )
    if config.perturb.noise != "none":
        parts.append(
            f"{len(done.flipped):,} of {len(train):,} labels ({len(done.flipped) / len(train):.0%}) are wrong on "
            f"purpose ({config.perturb.noise} noise)"
        )
    return [f"The training images were made harder before anything was trained: {' and '.join(parts)}."]


def _warnings(run: RunFolder, config: CompareConfig, seen: int | None, early: dict[str, Any]) -> list[str]:
    lines = _perturbed_words(config)
    if early:
        lines += run.record("select")["facts"]["warnings"]
    if seen is not None and run.record("plan")["facts"]["generator"]["only_these"]:
        lines.append(
            "The generator has seen only the classifier's own training images: no gain is to be expected from it. "
            "Bring one that was trained on other images too."
        )
    if config.wants_synthetic and config.data.source == "digits" and config.generate.generator == "digits":
        lines.append(
            "The shipped digits generator was trained by this project on 800 digits that are neither training nor test "
            "images here; it stands in for a model that was pretrained elsewhere on more data than the classifier has."
        )
    error = np.mean(early["errors"], 0)[early["separating_epoch"] - 1] if early else 1.0
    if error < 0.1:
        lines.append(
            f"The early classifiers already had a training error of {error:.1%} at the separating epoch: few slow "
            "examples are left to tell apart. An earlier epoch separates better."
        )
    return lines


def _selection(run: RunFolder, number: int, chosen: np.ndarray) -> SeedSelection:
    with local_file(early_folder(run, number) / "outputs.npz") as file, np.load(file) as outputs:
        wrong = outputs["logits"].argmax(1) != outputs["labels"]
    is_slow = np.zeros(len(wrong), bool)
    is_slow[chosen] = True
    return SeedSelection(
        seed=number,
        count=len(chosen),
        fraction=float(is_slow.mean()),
        slow_error=float(wrong[is_slow].mean()) if is_slow.any() else 0.0,
        fast_error=float(wrong[~is_slow].mean()) if not is_slow.all() else 0.0,
    )


def _mean_jaccard(sets: list[np.ndarray]) -> float | None:
    pairs = [jaccard(a, b) for place, a in enumerate(sets) for b in sets[place + 1 :]]
    return float(np.mean(pairs)) if pairs else None


def _chance_jaccard(sets: list[np.ndarray], train: LabeledImages, seed: int) -> float | None:
    """The overlap that sets of these sizes per class have by lot, from 20 drawings."""
    if len(sets) < 2:
        return None
    rng = numpy_rng(seed, "chance overlap")
    counts = [np.bincount(train.labels[chosen], minlength=train.num_classes) for chosen in sets]
    by_class = [np.flatnonzero(train.labels == label) for label in range(train.num_classes)]
    draws = [
        _mean_jaccard(
            [np.concatenate([rng.choice(rows, n, False) for rows, n in zip(by_class, c, strict=True)]) for c in counts]
        )
        for _ in range(20)
    ]
    return float(np.mean([draw for draw in draws if draw is not None]))


def _classes(run: RunFolder, sets: list[np.ndarray], train: LabeledImages) -> list[list[Any]]:
    counts = np.mean([np.bincount(train.labels[chosen], minlength=train.num_classes) for chosen in sets], 0)
    losses = []
    for number in range(len(sets)):
        with local_file(selection_path(run, "cluster", number)) as file, np.load(file) as arrays:
            losses.append(arrays["mean_loss"])
    stacked = np.stack(losses)  # (seeds, C, 2)
    known = np.isfinite(stacked)
    means = np.where(known, stacked, 0).sum(0) / np.maximum(known.sum(0), 1)  # (C, 2)
    # None: no seed has such a cluster.
    fast, slow = (
        [float(m) if k else None for m, k in zip(means[:, i], known.any(0)[:, i], strict=True)] for i in (0, 1)
    )
    return [
        [name, int(size), float(counts[label]), fast[label], slow[label]]
        for label, (name, size) in enumerate(zip(train.class_names, train.class_counts(), strict=True))
    ]


def _levels(table: pa.Table) -> list[LevelResult]:
    frame = {
        name: np.array(table[name].to_pylist())
        for name in ("level_steps", "level_grid", "log_snr", "state", "label_probability", "reference_distance")
    }
    results = []
    for steps, grid in sorted(set(zip(frame["level_steps"].tolist(), frame["level_grid"].tolist(), strict=True))):
        here = (frame["level_steps"] == steps) & (frame["level_grid"] == grid)
        names, counts = np.unique(frame["state"][here], return_counts=True)
        log_snr = float(frame["log_snr"][here][0])
        results.append(
            LevelResult(
                level=f"{steps} of {grid}",
                log_snr=log_snr if np.isfinite(log_snr) else None,
                images=int(here.sum()),
                states=dict(zip(names.tolist(), counts.tolist(), strict=True)),
                label_probability=float(frame["label_probability"][here].mean()),
                reference_distance=float(frame["reference_distance"][here].mean()),
            )
        )
    return results


def _stages(run: RunFolder, config: CompareConfig) -> list[StageCost]:
    retrain = [f"retrain-{arm}-{optimizer}" for arm in config.arms for optimizer in config.optimizers]
    slow = ["early", "select"] if _has_slow(run, config) else []
    names = [*slow, *(["plan", "generate"] if config.wants_synthetic else []), *retrain]
    records = [run.record(name) for name in names]
    return [StageCost(r["stage"], r["seconds"], r["peak_memory_mb"], r["skipped"]) for r in records]


def _pictures(run: RunFolder, train: LabeledImages, slow: np.ndarray, table: pa.Table | None, seed: int) -> Pictures:
    """Pictures of the first seed: a draw of slow and fast examples, references with their variants, the clusters."""
    rng = numpy_rng(seed, "report pictures")
    fast = np.setdiff1d(np.arange(len(train)), slow)

    def draw(rows: np.ndarray, count: int) -> np.ndarray:
        return np.sort(rng.permutation(rows)[:count])

    def examples(rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
        return [
            (train.class_names[train.labels[row]], image) for row, image in zip(rows, train.pixels(rows), strict=True)
        ]

    contact = []
    if table is not None:
        sources = np.array(table["source_index"].to_pylist())
        folder = SyntheticFolder(run.path / "synthetic")
        for row in draw(np.intersect1d(slow, sources), CONTACT_ROWS):
            mine = table.take(np.flatnonzero(sources == row)).sort_by([("level_steps", "ascending")])
            images = folder.images(mine, train).pixels()
            variants = [
                (f"{item['level_steps']} of {item['level_grid']}", item["state"], image)
                for item, image in zip(mine.drop_columns(["image"]).to_pylist(), images, strict=True)
            ]
            caption = f"{train.class_names[train.labels[row]]}, row {row}"
            contact.append(ContactRow(caption, train.pixels(np.array([row]))[0], variants))
    return Pictures(examples(draw(slow, EXAMPLES)), examples(draw(fast, EXAMPLES)), contact, _clusters(run, train))


def _clusters(run: RunFolder, train: LabeledImages) -> list[Cluster]:
    """The first seed's early outputs (softmax) of each class in the plane of their first two principal components."""
    from sklearn.decomposition import PCA

    with local_file(early_folder(run, 0) / "outputs.npz") as file, np.load(file) as outputs:
        probabilities = softmax(outputs["logits"])
    with local_file(selection_path(run, "cluster", 0)) as file, np.load(file) as arrays:
        cluster = arrays["cluster"]
    clusters = []
    for label, name in enumerate(train.class_names):
        rows = np.flatnonzero(train.labels == label)
        if len(rows) < 3:
            continue
        points = PCA(2, random_state=0).fit_transform(probabilities[rows])
        clusters.append(Cluster(name, points, cluster[rows] == 1))
    return clusters

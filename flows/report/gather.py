"""Gather what the stages recorded into a `Report` with its pictures."""

import dataclasses
import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import latebloom
from latebloom.data.images import LabeledImages
from latebloom.data.seeds import numpy_rng
from latebloom.data.sources.load import Splits
from latebloom.flows.config.command import changed_settings, command_of
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import selections, validation
from latebloom.flows.report.details import confusions, generation_costs, generation_sentences, predictions
from latebloom.flows.report.page import Pictures, write_report
from latebloom.flows.report.pictures import drawn, flagged
from latebloom.flows.report.results import LevelResult, Name, Report, SeedSelection, StageCost, arm_results
from latebloom.flows.report.scores import score_histograms
from latebloom.flows.report.slow import listing_of
from latebloom.flows.report.statistics import class_errors
from latebloom.flows.report.verdicts import compare, sentences
from latebloom.flows.run.folder import Record, RunFolder
from latebloom.flows.run.records import (
    EARLY,
    GENERATE,
    SCOUT,
    SELECT,
    EarlyFacts,
    GenerateFacts,
    GeneratorFacts,
    retrain_key,
)
from latebloom.flows.stages import dropped
from latebloom.flows.stages.context import RunContext, has_reference
from latebloom.flows.stages.fidelity import frechet_by_level, inception_by_level
from latebloom.flows.stages.loaders import perturbed
from latebloom.train.selection.slow import jaccard

__all__ = ["write"]

PACKAGES = ("torch", "torchvision", "diffusers", "prefect", "scikit-learn", "scipy", "numpy", "pillow", "pyarrow")


def write(folder: RunFolder, config: CompareConfig) -> Path:
    """Write report.json, report.html and contact_sheet.png into the run folder; the path of the page.

    Raises:
        ValueError: a stage the report is about has not been run.
    """
    run = RunContext(folder, config)
    train, test = run.splits.train, run.splits.test
    has_slow = _has_slow(run)
    records: list[Record[Any]] = [run.early, run.select] if has_slow else []
    every: list[Name] = [(arm, optimizer) for arm in config.arms for optimizer in config.optimizers]
    trained = {names: folder.record(retrain_key(*names)) for names in every}
    validated = validation.validation_results({names: one.facts for names, one in trained.items()}, config.named)
    arms = [names for names in every if validation.is_reported(names, validated)]
    retrained = {names: trained[names] for names in arms}
    made = folder.record(GENERATE) if config.wants_synthetic else None
    table = run.synthetic.rows() if made else None
    # The thresholds that the states of the synthetic set are by.
    quality: dict[str, Any] = run.synthetic.manifest()["about"]["quality"] if made else {}
    seconds_per_call = made.seconds / max(1, made.facts.denoiser_calls) if made else 0.0
    slow_sets = [run.selected("cluster", number) for number in range(config.seeds)] if has_slow else []
    predicted = predictions(run, arms)
    comparisons = compare(
        {names: record.facts.errors for names, record in retrained.items()},
        {names: classes != test.labels for names, classes in predicted.items()},
        config.seed,
    )
    generation = generation_costs(run, seconds_per_call) if made else []
    selectors = selections.selected_by(run, has_slow)
    results = arm_results(
        {names: record.facts for names, record in retrained.items()},
        seconds_per_call,
        comparisons,
        {names: class_errors(classes, test.labels, test.num_classes) for names, classes in predicted.items()},
    )
    records += [run.planned, made] if made else []
    records += [folder.record(SCOUT)] if config.wants_scout else []
    report = Report(
        title=f"Latebloom: {config.data.source}",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data={
            "source": config.data.source,
            "train": len(train),
            "test": len(test),
            **_held_out(run.splits),
            "classes": list(train.class_names),
            "image_shape": list(train.image_shape),
            **_harder(config, train),
        },
        generator=run.planned.facts.generator.model_dump(include={"name", "digest", "trained_on"}) if made else {},
        generator_seen=run.planned.facts.generator.seen if made else None,
        separating_epoch=run.early.facts.separating_epoch if has_slow else 0,
        separating_epoch_chosen=has_slow and run.early.facts.by_knee,
        early_errors=run.early.facts.errors if has_slow else [],
        selections=[_selection(number, chosen, _wrong(run, number)) for number, chosen in enumerate(slow_sets)],
        jaccard=None if not has_slow or run.one_selection else _mean_jaccard(slow_sets),
        jaccard_chance=None if not has_slow or run.one_selection else _chance_jaccard(slow_sets, train, config.seed),
        class_slow=_classes(
            train, slow_sets, [run.selection("cluster", number)["mean_loss"] for number in range(len(slow_sets))]
        ),
        synthetic=_synthetic(run, made, table) if made and table is not None else {},
        levels=_levels(run, table) if table is not None else [],
        arms=results,
        comparisons=comparisons,
        sentences=sentences(results, comparisons, len(test))
        + validation.sentences(validated)
        + generation_sentences(generation, config.seeds, has_slow and run.one_selection),
        warnings=_warnings(run, has_slow, table),
        stages=[
            StageCost(record.stage, record.seconds, record.peak_memory_mb, record.skipped)
            for record in [*records, *trained.values()]
        ],
        confusions=confusions(predicted, test),
        generation=generation,
        command=command_of(config),
        config=config.model_dump(mode="json"),
        versions={
            "latebloom": latebloom.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
        selectors=dataclasses.asdict(selectors),
        validation=validated,
        early_share=_early_share(run.early.facts) if has_slow else None,
        scores=score_histograms(table, quality) if table is not None else [],
        changed=[list(one) for one in changed_settings(config)],
    )
    pictures = drawn(run, slow_sets[0], table) if has_slow else Pictures([], [], [], [])
    pictures = dataclasses.replace(
        pictures,
        selected=selections.pictures_of(run, selectors),
        listing=listing_of(run, table) if has_slow else None,
        flagged=flagged(run, table, quality) if table is not None else [],
    )
    return write_report(run.path, report, pictures)


def _has_slow(run: RunContext) -> bool:
    """Whether the run has early classifiers: one of arms that need no slow examples may have none."""
    return run.config.wants_slow or (run.folder.has(EARLY) and run.folder.has(SELECT))


def _synthetic(run: RunContext, made: Record[GenerateFacts], table: pa.Table) -> dict[str, Any]:
    manifest = run.synthetic.manifest()
    return {
        **{name: manifest[name] for name in ("rows", "states", "digest")},
        "bytes": sum((run.synthetic.path / part["file"]).stat().st_size for part in manifest["parts"]),
        "dropped_by_quartile_of_loss": {
            name: dataclasses.asdict(quartile)
            for name, quartile in zip(
                ("fastest", "second", "third", "slowest"),
                dropped.quartiles(table, run.config.train_states),
                strict=has_reference(run.config),  # else none are known
            )
        },
        "denoiser_calls": made.facts.denoiser_calls,
        "seconds": made.seconds,
    }


def _held_out(splits: Splits) -> dict[str, Any]:
    """The validation split, and what was assumed of the data set, where there are such."""
    split = splits.validation
    found: dict[str, Any] = {"validation": len(split), "validation_digest": split.digest} if split else {}
    return found | ({"assumed": list(splits.notes)} if splits.notes else {})


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


def _perturbed_words(run: RunContext) -> list[str]:
    config, train = run.config, run.splits.train
    done = perturbed(config)
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


def _warnings(run: RunContext, has_slow: bool, table: pa.Table | None) -> list[str]:
    config = run.config
    lines = _perturbed_words(run)
    if has_slow:
        lines += run.select.facts.warnings
    if table is not None:
        lines += _generator_warnings(config, run.planned.facts.generator)
        lines += dropped.warnings(run, table)
    if has_slow:
        lines += _given_words(run.early.facts, config) if run.early.facts.given else _early_warnings(run.early.facts)
    return lines


def _generator_warnings(config: CompareConfig, generator: GeneratorFacts) -> list[str]:
    lines = []
    if generator.only_these:
        lines.append(
            "The generator has seen only the classifier's own training images: no gain is to be expected from it. "
            "Bring one that was trained on other images too."
        )
    if config.data.source == "digits" and config.generate.generator == "digits":
        lines.append(
            "The shipped digits generator was trained by this project on 800 digits that are neither training nor test "
            "images here; it stands in for a model that was pretrained elsewhere on more data than the classifier has."
        )
    return lines


def _early_warnings(early: EarlyFacts) -> list[str]:
    error = np.mean([errors[early.separating_epoch - 1] for errors in early.errors])
    if error >= 0.1:
        return []
    return [
        f"The early classifiers already had a training error of {error:.1%} at the separating epoch: few slow examples "
        "are left to find. An earlier epoch separates better."
    ]


def _given_words(early: EarlyFacts, config: CompareConfig) -> list[str]:
    what = " and ".join(
        words
        for setting, words in (
            (config.slow.outputs, f"the outputs of an early model ({early.given})"),
            (config.slow.indices, "the slow images"),
        )
        if setting
    )
    lines = [f"No early classifier was trained: {what} were given."]
    if not has_reference(config):
        lines.append(
            "No classifier scored the synthetic images: the probability of their label was not measured, and images "
            "off their label are not kept out of training."
        )
    return lines


def _early_share(early: EarlyFacts) -> float | None:
    return float(np.mean(early.epochs)) / early.epochs_of_training if early.epochs_of_training else None


def _wrong(run: RunContext, number: int) -> np.ndarray:
    """Which training images the early classifier of a seed gets wrong: bool (N,), or NaN where that is not known."""
    if not run.has_logits:
        return np.full(len(run.splits.train), np.nan)
    logits, labels = run.early_arrays(number, "logits", "labels")
    return np.asarray(logits.argmax(1) != labels)


def _selection(number: int, chosen: np.ndarray, wrong: np.ndarray) -> SeedSelection:
    is_slow = np.zeros(len(wrong), bool)
    is_slow[chosen] = True
    return SeedSelection(
        seed=number,
        count=len(chosen),
        fraction=float(is_slow.mean()),
        slow_error=_mean_of(wrong[is_slow]),
        fast_error=_mean_of(wrong[~is_slow]),
    )


def _mean_of(values: np.ndarray) -> float | None:
    """Mean; 0 of nothing, None of what is not known."""
    mean = float(values.mean()) if len(values) else 0.0
    return None if np.isnan(mean) else mean


def _mean_jaccard(sets: list[np.ndarray]) -> float | None:
    pairs = [jaccard(a, b) for place, a in enumerate(sets) for b in sets[place + 1 :]]
    return float(np.mean(pairs)) if pairs else None


def _chance_jaccard(sets: list[np.ndarray], train: LabeledImages, seed: int) -> float | None:
    """The overlap that random sets of these sizes per class have, from 20 drawings."""
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


def _classes(train: LabeledImages, sets: list[np.ndarray], losses: list[np.ndarray]) -> list[list[Any]]:
    """The rows of `Report.class_slow`; `losses` are the mean losses (C, 2) of fast and slow of each seed."""
    if not sets:
        return []
    counts = np.mean([np.bincount(train.labels[chosen], minlength=train.num_classes) for chosen in sets], 0)
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


def _levels(run: RunContext, table: pa.Table) -> list[LevelResult]:
    distances, fid = frechet_by_level(run, table).levels, inception_by_level(run)
    return [
        dataclasses.replace(level, frechet=distances.get(level.level), fid=fid.get(level.level))
        for level in _by_level(table)
    ]


def _by_level(table: pa.Table) -> list[LevelResult]:
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
                label_probability=_mean_of(frame["label_probability"][here]),
                reference_distance=float(frame["reference_distance"][here].mean()),
            )
        )
    return results

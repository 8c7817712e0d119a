"""The choice of slow examples. No Prefect in here."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from latebloom.data.seeds import child_seed
from latebloom.data.store import local_file, write_arrays
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, Stage
from latebloom.flows.run.progress import say
from latebloom.flows.run.records import SELECT, SelectFacts
from latebloom.flows.stages.classifiers import classifier_seeds
from latebloom.flows.stages.context import RunContext, selection_path
from latebloom.flows.stages.slow_list import write_slow_list
from latebloom.train.evaluate import losses_of
from latebloom.train.selection.slow import (
    Method,
    Selection,
    mean_outputs,
    select_by_losses,
    select_given,
    select_slow,
)

__all__ = ["select_examples"]


def select_examples(folder: RunFolder, config: CompareConfig) -> None:
    """Choose the examples of every method that an arm names, for every seed, or once for all with `slow.shared`."""
    run = RunContext(folder, config)
    methods: list[Method] = sorted({"cluster", *(arm.method for arm in config.parsed_arms)})
    inputs: dict[str, Any] = {
        "early": run.early.digest,
        "space": config.slow.space,
        "methods": methods,
        "seeds": classifier_seeds(config),
        "shared": config.slow.shared,
    }
    stage = folder.stage(SELECT, 2, inputs)
    if stage.done():
        say("selection: done before")
    else:
        _select(folder, run, methods, stage)
    write_slow_list(run)


def _select(folder: RunFolder, run: RunContext, methods: list[Method], stage: Stage[SelectFacts]) -> None:
    config = run.config
    chosen: dict[Method, list[Selection]] = {method: [] for method in methods}
    notes: list[str] = []
    with stage.making() as outcome:
        for name, outputs, labels, seed in _outputs(run):
            for method in methods:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    chosen[method].append(_choice(run, outputs, labels, method, seed))
                if method == "cluster":
                    notes += [f"{name}: {warning.message}" for warning in caught]
        for method, found in chosen.items():
            for number in range(config.seeds):
                one = found[0 if run.one_selection else number]
                file = selection_path(folder, method, number)
                write_arrays(file, indices=one.indices, cluster=one.cluster, mean_loss=one.mean_loss)
                outcome.outputs.append(file)
        for text in notes:
            say(f"warning: {text}")
        sizes: dict[str, list[int]] = {
            method: [len(one.indices) for one in found] * (config.seeds if run.one_selection else 1)
            for method, found in chosen.items()
        }
        _check_any(sizes)
        union: dict[str, int] = {
            method: len(np.unique(np.concatenate([one.indices for one in found]))) for method, found in chosen.items()
        }
        outcome.facts = SelectFacts(slow=sizes["cluster"], warnings=notes, sizes=sizes, union=union)
    say(_describe(outcome.facts, len(run.splits.train)))


def _choice(run: RunContext, outputs: np.ndarray, labels: np.ndarray, method: Method, seed: int) -> Selection:
    """What a method chooses by the outputs of an early model: logits (N, C), or losses (N,), NaN: not known."""
    classes = run.splits.train.num_classes
    if run.config.slow.indices:
        with local_file(run.path / "early" / "indices.npz") as file, np.load(file) as arrays:
            indices = arrays["indices"]
        losses = wrong = None
        if run.has_logits:
            losses, wrong = losses_of(outputs, labels), outputs.argmax(1) != labels
        elif np.isfinite(outputs).all():
            losses = outputs.astype(np.float64)
        return select_given(indices, labels, classes, method, seed, losses=losses, wrong=wrong)
    if not run.has_logits:
        return select_by_losses(outputs, labels, classes, method, seed)
    return select_slow(outputs, labels, method, seed, space=run.config.slow.space)


def _outputs(run: RunContext) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """For whom each selection is made; outputs, labels and seed that it is made with."""
    config, known = run.config, "logits" if run.has_logits else "losses"
    (labels,) = run.early_arrays(0, "labels")
    seeds = classifier_seeds(config)
    if config.slow.shared and run.early.facts.given_seeds != 1:
        every = (run.early_arrays(number, known)[0] for number in range(config.seeds))
        mean = mean_outputs(every, config.slow.space) if run.has_logits else np.mean(list(every), 0)
        yield "all seeds", mean, labels, child_seed(config.seed, "shared")
        return
    # One set of outputs that was given serves all seeds, and is selected from as that of the first.
    for number, seed in enumerate(seeds[:1] if run.one_selection else seeds):
        yield ("all seeds" if run.one_selection else f"seed {number}"), run.early_arrays(number, known)[0], labels, seed


def _check_any(sizes: dict[str, list[int]]) -> None:
    if not any(sizes["cluster"]):
        raise ValueError("no class has a slow half, so there is nothing to augment; see the warnings above")
    for method, counts in sizes.items():
        if not any(counts):
            raise ValueError(
                f"{method} chose none of the images for any seed, so there is nothing to augment: the early "
                "classifiers get all right; give an earlier slow.separating_epoch, or no such arm"
            )


def _describe(facts: SelectFacts, images: int) -> str:
    """How many images are slow, and how many over all seeds; other methods that choose another number."""
    slow, union = float(np.mean(facts.slow)), facts.union["cluster"]
    line = f"selection: {slow:.0f} of {images} images are slow ({slow / images:.0%})"
    if union > slow:
        line += f", {union} for one seed or another ({union / slow:.2f} times as many)"
    wrong = facts.sizes.get("misclassified")
    return line + (f"; {np.mean(wrong):.0f} are misclassified" if wrong else "")

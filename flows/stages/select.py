"""The choice of slow examples. No Prefect in here."""

import warnings
from typing import Any

import numpy as np

from latebloom.data.store import write_arrays
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import say
from latebloom.flows.run.records import SELECT, SelectFacts
from latebloom.flows.stages.classifiers import classifier_seeds
from latebloom.flows.stages.context import RunContext, selection_path
from latebloom.train.selection.slow import Method, select_slow

__all__ = ["select_examples"]


def select_examples(folder: RunFolder, config: CompareConfig) -> None:
    """Choose the examples of every method that an arm names, for every seed."""
    run = RunContext(folder, config)
    methods: list[Method] = sorted({"cluster", *(arm.method for arm in config.parsed_arms)})
    inputs: dict[str, Any] = {
        "early": run.early.digest,
        "space": config.slow.space,
        "methods": methods,
        "seeds": classifier_seeds(config),
    }
    stage = folder.stage(SELECT, 1, inputs)
    if stage.done():
        say("selection: done before")
        return
    counts: list[int] = []
    notes: list[str] = []
    with stage.making() as outcome:
        for number, seed in enumerate(inputs["seeds"]):
            logits, labels = run.early_arrays(number, "logits", "labels")
            for method in methods:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    chosen = select_slow(logits, labels, method, seed, space=config.slow.space)
                if method == "cluster":
                    counts.append(len(chosen.indices))
                    notes += [f"seed {number}: {warning.message}" for warning in caught]
                file = selection_path(folder, method, number)
                write_arrays(file, indices=chosen.indices, cluster=chosen.cluster, mean_loss=chosen.mean_loss)
                outcome.outputs.append(file)
        for text in notes:
            say(f"warning: {text}")
        if not any(counts):
            raise ValueError("no class has a slow half, so there is nothing to augment; see the warnings above")
        outcome.facts = SelectFacts(slow=counts, warnings=notes)
    say(f"selection: {np.mean(counts):.0f} of {len(labels)} images are slow ({np.mean(counts) / len(labels):.0%})")

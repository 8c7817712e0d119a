"""The choice of slow examples. No Prefect in here."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from latebloom.data.store import local_file, write_arrays
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import say
from latebloom.flows.stages.loaders import classifier_seeds, early_folder, selected, selection_path
from latebloom.train.selection.slow import Method, select_slow

__all__ = ["select_examples"]


def select_examples(run: RunFolder, config: CompareConfig) -> None:
    """Choose the examples of every method that an arm names, for every seed."""
    methods: list[Method] = sorted({"cluster", *(arm.method for arm in config.parsed_arms)})
    inputs: dict[str, Any] = {
        "early": run.record("early")["digest"],
        "space": config.slow.space,
        "methods": methods,
        "seeds": classifier_seeds(config),
    }
    stage = run.stage("select", 1, inputs)
    if stage.is_done():
        say("selection: done before")
        return
    outputs: list[Path] = []
    facts: dict[str, Any] = {"warnings": []}
    with stage.making(outputs, facts):
        for number, seed in enumerate(inputs["seeds"]):
            with local_file(early_folder(run, number) / "outputs.npz") as file, np.load(file) as early:
                logits, labels = early["logits"], early["labels"]
            for method in methods:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    chosen = select_slow(logits, labels, method, seed, space=config.slow.space)
                if method == "cluster":
                    facts["warnings"] += [f"seed {number}: {warning.message}" for warning in caught]
                file = selection_path(run, method, number)
                write_arrays(file, indices=chosen.indices, cluster=chosen.cluster, mean_loss=chosen.mean_loss)
                outputs.append(file)
        counts = [len(selected(run, "cluster", number)) for number in range(config.seeds)]
        facts["slow"] = counts
        for text in facts["warnings"]:
            say(f"warning: {text}")
        if not any(counts):
            raise ValueError("no class has a slow half, so there is nothing to augment; see the warnings above")
    say(f"selection: {np.mean(counts):.0f} of {len(labels)} images are slow ({np.mean(counts) / len(labels):.0%})")

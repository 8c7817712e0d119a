"""What stands behind the table: errors by class, what is taken for what, and the images that generation really made."""

from collections.abc import Mapping, Sequence

import numpy as np

from latebloom.data.images import LabeledImages
from latebloom.data.store import local_file
from latebloom.flows.config.arms import parse_arm
from latebloom.flows.report.results import Confusion, GenerationCost, Name
from latebloom.flows.report.statistics import confused_pairs, confusion
from latebloom.flows.report.verdicts import leading
from latebloom.flows.stages.context import RunContext

__all__ = ["confusions", "generation_costs", "generation_sentences", "predictions"]

MATRIX_CLASSES = 30  # with more, only the pairs that are confused most
PAIRS = 30


def predictions(run: RunContext, arms: Sequence[Name]) -> dict[Name, np.ndarray]:
    """The predicted class of each test image, int32 (seeds, T), of the arms that kept it: older runs did not."""
    found = {}
    for arm, optimizer in arms:
        path = run.path / "retrained" / f"{arm}-{optimizer}" / "predictions.npz"
        if path.is_file():
            with local_file(path) as file, np.load(file) as arrays:
                found[arm, optimizer] = arrays["test"]
    return found


def confusions(predicted: Mapping[Name, np.ndarray], test: LabeledImages) -> list[Confusion]:
    """What is taken for what by `original` and by the arm of ours that the sentences are about, for each optimizer."""
    found = []
    for optimizer in dict.fromkeys(optimizer for _, optimizer in predicted):
        for arm in ("original", leading([arm for arm, used in predicted if used == optimizer])):
            if arm is None or (arm, optimizer) not in predicted:
                continue
            classes, names = predicted[arm, optimizer], test.class_names
            few = len(names) <= MATRIX_CLASSES
            found.append(
                Confusion(
                    arm=arm,
                    optimizer=optimizer,
                    matrix=confusion(classes, test.labels, len(names)).tolist() if few else [],
                    pairs=[
                        [names[label], names[taken], images]
                        for label, taken, images in confused_pairs(classes, test.labels, PAIRS)
                    ],
                )
            )
    return found


def generation_costs(run: RunContext, seconds_per_call: float) -> list[GenerationCost]:
    """What each arm with synthetic images takes: for one seed, and for all, which share images that are the same."""
    costs = []
    for name in run.config.arms:
        arm = parse_arm(name)
        if arm.kind != "synthetic" or arm.selector != "none" or arm.equal_steps_of:
            continue  # the images are those of the arm without
        variants, calls = len(run.config.levels(arm)), run.calls_of(arm)
        chosen = [run.selected(arm.method, number) for number in range(run.config.seeds)]
        one, union = float(np.mean([len(rows) for rows in chosen])), len(np.unique(np.concatenate(chosen)))
        costs.append(
            GenerationCost(
                arm=name,
                images=one * variants,
                seconds=one * calls * seconds_per_call,
                images_of_all_seeds=union * variants,
                seconds_of_all_seeds=union * calls * seconds_per_call,
            )
        )
    return costs


def generation_sentences(costs: Sequence[GenerationCost], seeds: int, shared: bool) -> list[str]:
    """What generation takes for one seed and for all, and how much more it takes for all images.

    It is of the arm of ours that the other sentences are about, else of the first.

    Args:
        shared: whether all seeds have one selection.
    """
    by_arm = {cost.arm: cost for cost in costs if cost.images}
    name = leading(list(by_arm)) or next(iter(by_arm), None)
    if name is None:
        return []
    own, lines = by_arm[name], []
    each = own.images_of_all_seeds / own.images
    if shared and seeds > 1:
        lines.append(f"All {seeds} seeds share one selection: {name} takes {own.images:,.0f} synthetic images for all.")
    elif each > 1:
        lines.append(
            f"{name} takes {own.images:,.0f} synthetic images for one seed and {own.images_of_all_seeds:,} for the "
            f"{seeds} seeds of this comparison, each of which selects for itself: {each:.2f} times as many."
        )
    whole = by_arm.get(name.replace("ours-", "all-", 1))
    if whole and name.startswith("ours-"):
        more = f"{whole.images / own.images:.1f} times those of {name} for one seed"
        both = f", {whole.images / own.images_of_all_seeds:.1f} times for {seeds} seeds" if each > 1 else ""
        lines.append(f"{whole.arm} takes {whole.images:,.0f} synthetic images, for one seed or more: {more}{both}.")
    return lines

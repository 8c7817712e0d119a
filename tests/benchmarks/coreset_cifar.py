"""Coreset against random against max-loss: a ResNet20 on small subsets of CIFAR-10, strongly augmented.

After Table 1 of arXiv 2210.08363: each round a subset of the pool is picked anew, and the network trains on it (weakly
augmented) and on one strong copy of each of its images. Fractions are of the 50,000 training images. All methods take
equally many images of each class, and start from the same weights for the same seed. The test images are used once,
at the end of a run. Every finished run is a line of the output file at once, and is not done again.

    python tests/benchmarks/coreset_cifar.py --data FOLDER --output results.jsonl [--seeds 0 1 2 3 4] [--table]

Not as in the paper: the pool is smaller, there are fewer epochs, and the subset is not picked anew each epoch.
"""

import argparse
import itertools
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latebloom.data.config import DataConfig
from latebloom.data.images import LabeledImages
from latebloom.data.seeds import child_seed
from latebloom.data.sources.load import load
from latebloom.train.augment.mixing import EpochRows, ForwardPass, Mixer, StrongConfig, StrongLosses
from latebloom.train.augment.policies import PolicyConfig
from latebloom.train.config import FitConfig
from latebloom.train.evaluate import error_rate, logits_of
from latebloom.train.loop.fit import fit
from latebloom.train.loop.step import autocast
from latebloom.train.models.build import build
from latebloom.train.selection.coreset import CoresetConfig

SELECTORS = {"coreset": "dea", "random": "random", "max-loss": "max_loss", "craig": "craig", "lcmat": "lcmat"}
# Table 1, C10/R20: percent of the training images -> accuracy in percent.
PAPER = {
    "random": {0.1: "33.5", 0.2: "42.7", 0.5: "58.7", 1.0: "74.4"},
    "coreset": {0.1: "37.8", 0.2: "45.1", 0.5: "63.9", 1.0: "74.7"},
    "max-loss": {0.1: "< 15", 0.2: "< 15", 0.5: "< 15", 1.0: "< 15"},
}


def strong_config(
    method: str, fraction: float, every: int, weak_only: bool, options: argparse.Namespace
) -> StrongConfig:
    """The subset and its copies; `fraction` is of the pool."""
    # Weak copies in place of strong ones, so that both take equally many steps: no policy does less than one pixel.
    weak = PolicyConfig(policy="cutout", cutout_holes=1, cutout_length=1)
    policy = weak if weak_only else PolicyConfig(policy=options.policy)
    return StrongConfig(
        selector=SELECTORS[method],
        policy=policy,
        coreset=CoresetConfig(fraction=fraction, budget="equal"),
        every=every,
        where="append",
        main="coreset",
        weights="normalised",
    )


class _TimedMixer(Mixer):
    """Notes the CPU seconds of its work: those on the clock depend on who else uses the machine."""

    cpu_seconds = 0.0

    def epoch(self, number: int, forward_pass: ForwardPass, strong_losses: StrongLosses) -> EpochRows:
        began = time.process_time()
        plan = super().epoch(number, forward_pass, strong_losses)
        self.cpu_seconds += time.process_time() - began
        return plan


def run(
    pool: LabeledImages, test: LabeledImages, seed: int, strong: StrongConfig, config: FitConfig, model_name: str
) -> dict[str, Any]:
    """Train one classifier; its test error and the CPU seconds it cost."""
    began, clock = time.process_time(), time.perf_counter()
    model = build(model_name, pool.num_classes, pool.image_shape, child_seed(seed, "weights"))
    mixer = _TimedMixer(strong, pool.labels, pool.num_classes, pool.image_shape, child_seed(seed, "run"))
    (history,) = fit([model], pool, [np.arange(len(pool))], config, [child_seed(seed, "run")], mixers=[mixer])
    trained = time.process_time()
    with autocast(config, torch.device("cpu")):
        error = error_rate(logits_of(model, test), test.labels)
    return {
        "error": error,
        "train_loss": history.loss[-1],
        "train_error": history.error[-1],
        "steps": config.total_steps(mixer.length),
        "picked": mixer.size,
        "selections": mixer.selections,
        "images_ever_picked": int((mixer.times_selected > 0).sum()),
        "selection_seconds": mixer.cpu_seconds,
        "train_seconds": trained - began - mixer.cpu_seconds,
        "test_seconds": time.process_time() - trained,
        "clock_seconds": time.perf_counter() - clock,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The finished runs; half a line of a killed process is none."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def show(results: Sequence[dict[str, Any]], settings: dict[float, dict[str, Any]]) -> None:
    """A table of test accuracies in percent, and differences paired by seed, of the runs with these settings."""
    groups: dict[tuple[float, bool, str], dict[int, dict[str, Any]]] = {}
    for r in results:
        if r["settings"] == settings.get(r["percent"]):
            groups.setdefault((r["percent"], r["weak_only"], r["method"]), {})[r["seed"]] = r
    print("accuracy in percent, mean ± standard deviation over n seeds; the paper's Table 1; CPU seconds a run")
    print(
        f"{'%':>4} {'images':>6} {'method':<14} {'accuracy':>15} {'n':>2} {'paper':>6} {'selection':>9} {'training':>8}"
    )
    for (percent, weak_only, method), runs in sorted(groups.items()):
        accuracy = [100 * (1 - r["error"]) for r in runs.values()]
        spread = f"{np.std(accuracy, ddof=1):.2f}" if len(runs) > 1 else "-"
        paper = "-" if weak_only else PAPER.get(method, {}).get(percent, "-")
        selection, training = (
            np.mean([r[name] for r in runs.values()]) for name in ("selection_seconds", "train_seconds")
        )
        print(
            f"{percent:>4} {next(iter(runs.values()))['picked']:>6} {_name(method, weak_only):<14} "
            f"{np.mean(accuracy):>7.2f} ± {spread:>5} {len(runs):>2} {paper:>6} {selection:>9.1f} {training:>8.1f}"
        )
    print("coreset minus the other, in points of accuracy: mean ± standard error over the seeds that both have")
    for (percent, weak_only, method), runs in sorted(groups.items()):
        coreset = groups.get((percent, weak_only, "coreset"), {})
        pairs = [100 * (runs[seed]["error"] - coreset[seed]["error"]) for seed in runs if seed in coreset]
        if method != "coreset" and len(pairs) > 1:
            error = np.std(pairs, ddof=1) / np.sqrt(len(pairs))
            print(f"{percent:>4} {_name(method, weak_only):<14} {np.mean(pairs):+6.2f} ± {error:.2f}, n = {len(pairs)}")


def _name(method: str, weak_only: bool) -> str:
    return f"{method}, weak" if weak_only else method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10: cifar10, or the path of a folder of parquet")
    parser.add_argument("--output", type=Path, default=Path("coreset_cifar.jsonl"))
    parser.add_argument("--methods", nargs="+", default=["coreset", "random", "max-loss"], choices=list(SELECTORS))
    parser.add_argument("--percents", nargs="+", type=float, default=[0.2, 0.5, 1.0], help="of --whole images")
    parser.add_argument("--epochs", nargs="+", type=int, default=[100, 75, 50], help="one for each percent")
    parser.add_argument("--every", nargs="+", type=int, default=[10, 8, 5], help="epochs a round, for each percent")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--whole", type=int, default=50_000, help="what the percents are of")
    parser.add_argument("--pool", type=int, default=10_000, help="training images to pick from; 0: all")
    parser.add_argument("--test", type=int, default=0, help="test images; 0: all")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--policy", default="autoaugment_cifar10")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--weak", action="store_true", help="also weak copies in place of the strong ones")
    parser.add_argument("--table", action="store_true", help="train nothing, show what the output file has")
    options = parser.parse_args()
    if not len(options.percents) == len(options.epochs) == len(options.every):
        parser.error("give as many --epochs and --every as --percents")
    names = ("whole", "pool", "test", "model", "policy", "batch_size", "lr", "precision")
    common = {name: getattr(options, name) for name in names}
    schedules = list(zip(options.percents, options.epochs, options.every, strict=True))
    settings = {percent: common | {"epochs": epochs, "every": every} for percent, epochs, every in schedules}
    if options.table:
        show(read(options.output), settings)
        return
    torch.set_num_threads(1)
    splits = load(DataConfig(source=options.data, train_limit=options.pool, test_limit=options.test))
    # Decoded once, not in every run.
    pool, test = (
        LabeledImages(part.pixels(), part.labels, part.class_names, part.origin) for part in (splits.train, splits.test)
    )
    versions = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    arms = itertools.product(options.seeds, schedules, (False, True) if options.weak else (False,), options.methods)
    for seed, (percent, epochs, every), weak_only, method in arms:
        key = {"method": method, "weak_only": weak_only, "percent": percent, "seed": seed}
        key |= {"settings": settings[percent]}
        if any(key.items() <= r.items() for r in read(options.output)):
            continue
        fraction = percent / 100 * options.whole / len(pool)
        strong = strong_config(method, fraction, every, weak_only, options)
        config = FitConfig(epochs=epochs, batch_size=options.batch_size, lr=options.lr, precision=options.precision)
        result = run(pool, test, seed, strong, config, options.model)
        with options.output.open("a") as file:
            file.write(json.dumps(key | result | {"versions": versions}) + "\n")
        print(
            f"seed {seed}, {percent} %, {_name(method, weak_only)}: error {result['error']:.4f}, training "
            f"{result['train_seconds']:.0f} s, selection {result['selection_seconds']:.0f} s",
            flush=True,
        )
    show(read(options.output), settings)


if __name__ == "__main__":
    main()

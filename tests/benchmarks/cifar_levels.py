"""TADA's Table 6 in small: the preset tada-table6 on 1,000 images of CIFAR-10 at 16 pixels, with a small generator.

    python tests/benchmarks/cifar_levels.py --data FOLDER --out PLACE

FOLDER has CIFAR-10 as train*.parquet and test*.parquet. 5,000 training images are kept for the classifier, which takes
1,000 of them; the generator is fitted on 40,000 others, so that it knows more than the classifier does. About 20
minutes for the generator and 20 for the comparison on two quiet cores. Called again, it goes on where it stopped.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

FIT = "--image-size 16 --channels 24,48 --steps 4000 --batch-size 64 --set generator.flip=true"
SMALL = (
    "--preset tada-table6 --image-size 16 --train-limit 1000 --test-limit 2000 --model small-cnn --epochs 30 "
    "--separating-epoch 3 --optimizers sgd --seeds 5 --workers 2 --set classifier.width=32 --set sample.steps=20 "
    "--set sample.guidance_scale=1.0 --set train.batch_size=64 --set train.lr=0.05 --set train.crop_padding=2"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    train, test = (pq.read_table(sorted(asked.data.glob(f"{part}*.parquet"))) for part in ("train", "test"))
    order = np.random.default_rng(0).permutation(train.num_rows)
    for name, rows in (("classifier", order[:5_000]), ("generator", order[5_000:45_000])):
        folder = asked.out / name
        if not folder.exists():
            folder.mkdir(parents=True)
            pq.write_table(train.take(np.sort(rows)), folder / "train.parquet")
            pq.write_table(test, folder / "test.parquet")
    if not (asked.out / "fitted" / "model_index.json").exists():
        latebloom("fit-generator", asked.out / "generator", asked.out / "fitted", *FIT.split())
    run = ("--out", asked.out / "table6", "--generator", asked.out / "fitted")
    latebloom("compare", asked.out / "classifier", *run, *SMALL.split())


def latebloom(*words: object) -> None:
    """Run a command of Latebloom's; its exit code where it fails."""
    code = subprocess.run([sys.executable, "-m", "latebloom", *map(str, words)], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()

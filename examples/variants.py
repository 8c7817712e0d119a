"""From slow-learnable images to variants of them, without a run folder: plan, generator, images."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import latebloom

images = latebloom.load(latebloom.DataConfig(source="digits", train_limit=60)).train
indices = np.array([3, 17, 42])  # of select_slow: see own_logits.py

grid = 20  # levels are steps of this grid: 8 of 20 is noised like 40 of 100
plan = latebloom.make_plan(latebloom.requests(indices, levels=(8, 14)), images, grid=grid, seed=0)
generator = latebloom.load_generator(
    latebloom.GenerateConfig(generator="digits"), latebloom.SampleConfig(grid=grid, guidance_scale=1.0)
)
generator.prepare(sorted(set(plan["prompt"].to_pylist())))
drawn = latebloom.draw(generator, images, plan)

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "variants")
folder.mkdir(exist_ok=True)
for row, image in zip(plan.to_pylist(), drawn.images, strict=True):
    assert image is not None, drawn.failures
    name = f"{row['source_index']}-level-{row['level_steps']}-of-{grid}.png"
    Image.fromarray(image.squeeze()).save(folder / name)
    print(f"{folder / name}: digit {row['label']}, seed {row['seed']}")

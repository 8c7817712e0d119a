"""From slow examples to synthetic images: plan, prompts, sizes, generators, sampling, scores.

Arrays and tables in and out; files are written by `data/`, runs and resuming are in `flows/`. Knows no classifier.
"""

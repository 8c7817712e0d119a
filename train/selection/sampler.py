"""A coreset as a torch `Sampler`, for a training loop that is not ours."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler, WeightedRandomSampler

from latebloom.data.seeds import torch_rng
from latebloom.train.selection.coreset import Coreset

__all__ = ["CoresetSampler"]


class CoresetSampler(Sampler[int]):
    """Rows of a coreset, each drawn in proportion to its weight, with replacement.

    So the mean gradient of a batch is in expectation the weighted mean that the weights stand for. With equal weights
    every row is drawn exactly once an epoch, shuffled. Each epoch, that is each iteration, has an order of its own,
    which follows from `seed` and the epoch's number alone.

    Args:
        coreset: of `select_coreset`, on the data set that is sampled.
        num_samples: rows an epoch; 0: as many as the coreset has.
        seed: root of the orders.

    Attributes:
        epoch: the number of the next epoch; set it to go on with an interrupted training.
    """

    def __init__(self, coreset: Coreset, num_samples: int = 0, seed: int = 0) -> None:
        self.indices, self.weights = coreset.indices.tolist(), torch.from_numpy(coreset.weights)
        self.num_samples = num_samples or len(self.indices)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch_rng(self.seed, "coreset sampler", self.epoch)
        self.epoch += 1
        equal = bool((self.weights == self.weights[0]).all())
        if equal and self.num_samples == len(self.indices):
            places: Iterator[int] = iter(torch.randperm(len(self.indices), generator=generator).tolist())
        else:
            places = iter(WeightedRandomSampler(self.weights.tolist(), self.num_samples, True, generator))
        return (self.indices[place] for place in places)

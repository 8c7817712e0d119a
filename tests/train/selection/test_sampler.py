from collections import Counter

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from latebloom.train.selection.coreset import Coreset
from latebloom.train.selection.sampler import CoresetSampler


def coreset(*weights: float) -> Coreset:
    return Coreset(np.arange(10, 10 + len(weights)), np.array(weights, np.float32))


def test_equal_weights_give_every_row_once_an_epoch_in_another_order_each_time() -> None:
    sampler = CoresetSampler(coreset(2, 2, 2, 2, 2, 2, 2, 2), seed=3)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(10, 18))
    assert first != second
    assert list(CoresetSampler(coreset(*[2] * 8), seed=3)) == first
    again = CoresetSampler(coreset(*[2] * 8), seed=3)
    again.epoch = 1
    assert list(again) == second


def test_rows_are_drawn_in_proportion_to_their_weights() -> None:
    sampler = CoresetSampler(coreset(1, 3), num_samples=4000)
    counts = Counter(sampler)
    assert set(counts) == {10, 11}
    assert 900 < counts[10] < 1100  # 1,000 of 4,000, with a standard deviation of 27


def test_a_data_loader_takes_it() -> None:
    data = TensorDataset(torch.arange(20))
    loader = DataLoader(data, batch_size=2, sampler=CoresetSampler(coreset(1, 1, 1)))
    assert sorted(torch.cat([batch for (batch,) in loader]).tolist()) == [10, 11, 12]
    assert len(loader) == 2

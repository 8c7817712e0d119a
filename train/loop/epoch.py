"""The batches of one epoch of one model: rows in, augmented images on the device out."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from latebloom.data.batches import Pixels
from latebloom.data.seeds import torch_rng
from latebloom.train.augment.mixing import EpochRows
from latebloom.train.augment.policies import Draw, Policy, mixed
from latebloom.train.augment.weak import apply_resized_crop, apply_weak, draw_resized_crop, draw_weak
from latebloom.train.config import FitConfig
from latebloom.train.loop.step import Batch

__all__ = ["Epoch"]


class Epoch:
    """An epoch's list of examples, and how each is augmented.

    Everything is drawn for the whole list at once, by the number of the epoch, so an example's augmentation does not
    depend on its batch. Weak augmentation comes first, then the strong one of the strong copies. The weak draw is that
    of a row of the training set, where the list has it again another one: it does not depend on what else is in the
    list, nor on later rows of the training set. Indices and draws are sent to the device once for many batches.

    Args:
        labels: int64 (N,), of all rows of `pixels`, on its device.
        rows: int64 (n,), the model's training set, which `plan.rows` index.
        policy: of the strong copies; None where there are none.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: Tensor,
        rows: np.ndarray,
        plan: EpochRows,
        policy: Policy | None,
        config: FitConfig,
        seed: int,
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.plan, self.policy, self.config = plan, policy, config
        self.rows = rows[plan.rows]  # (L,) rows of `pixels`
        self.strong = np.flatnonzero(plan.strong)  # (S,) places in the list
        self.rank = np.cumsum(plan.strong) - 1  # of each strong place among the strong ones
        self.weak: Draw = {}
        self.padding = 0 if config.resized_crop else config.crop_padding
        again = _times_before(plan.rows)
        for time in range(again.max() + 1) if config.resized_crop or config.crop_padding or config.flip else ():
            places = np.flatnonzero(again == time)
            for name, values in self._drawn(len(rows), seed, time).items():
                mine = self.weak.setdefault(name, values.new_zeros((len(self.rows), *values.shape[1:])))
                mine[places] = values[plan.rows[places]]

    def _drawn(self, count: int, seed: int, time: int) -> Draw:
        """The weak draw of each row of the training set, for the time-th place in the list that a row has."""
        config, key = self.config, (self.plan.drawn, *([time] if time else []))
        draw: Draw = {}
        if config.resized_crop:
            height, width, _ = self.pixels.data.image_shape
            draw = draw_resized_crop(count, height, width, torch_rng(seed, "window", *key), config.resized_crop)
        return draw | draw_weak(count, self.padding, config.flip, torch_rng(seed, "augment", *key))

    def batches(self, groups: Sequence[np.ndarray]) -> Iterator[Batch]:
        """One batch for each array of places in the list int64 (B,), in order."""
        if not groups:
            return
        device, plan = self.labels.device, self.plan
        slots = [np.flatnonzero(plan.strong[group]) for group in groups]  # which of a batch are strong
        ranks = [self.rank[group[slot]] for group, slot in zip(groups, slots, strict=True)]
        with_mixup = [self._mixed_ranks(rank) for rank in ranks]  # which of the strong ones Mixup mixes with another
        others = [self._partners(rank[over]) for rank, over in zip(ranks, with_mixup, strict=True)]
        wanted = [np.concatenate(pair) for pair in zip(groups, others, strict=True)]
        places = _sent(wanted, device)
        rows = _sent([self.rows[want] for want in wanted], device)
        weak = {name: _sent([values[want] for want in wanted], device) for name, values in self._weak().items()}
        factors = None if plan.weights is None else _sent([plan.weights[group] for group in groups], device)
        slots_there, mixed_there = _sent(slots, device), _sent(with_mixup, device)
        for b, raw in enumerate(self.pixels.batches([self.rows[want] for want in wanted])):
            size = len(groups[b])
            seen = self._weakly(raw, {name: values[b] for name, values in weak.items()})
            images, targets = seen[:size], self.labels[rows[b]]
            partners = shares = None
            if len(slots[b]):
                assert self.policy is not None
                draw = {name: values[torch.from_numpy(ranks[b])] for name, values in plan.copies.items()}
                changed = self.policy.apply(images[slots_there[b]].contiguous(), draw)
                if len(others[b]):
                    over = mixed_there[b]
                    mix = draw["mix"].to(device, non_blocking=True)[over]
                    changed[over] = mixed(changed[over], seen[size:], mix)
                    partners, shares = targets[:size].clone(), torch.ones(size, device=device)
                    partners[slots_there[b][over]] = targets[size:]
                    shares[slots_there[b][over]] = mix
                images.index_copy_(0, slots_there[b], changed)
            own = None if factors is None else factors[b]
            yield Batch(images, targets[:size], places[b][:size], own, partners, shares)

    def _weakly(self, images: Tensor, draw: Draw) -> Tensor:
        if "window" in draw:
            draw = dict(draw)
            images = apply_resized_crop(images, {"window": draw.pop("window")}, *images.shape[2:])
        return apply_weak(images, draw, self.padding)

    def _weak(self) -> dict[str, np.ndarray]:
        return {name: values.numpy() for name, values in self.weak.items()}

    def _mixed_ranks(self, ranks: np.ndarray) -> np.ndarray:
        if "mix" not in self.plan.copies:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.plan.copies["mix"].numpy()[ranks] < 1)

    def _partners(self, ranks: np.ndarray) -> np.ndarray:
        """Places of the images that Mixup mixes into the strong copies of these ranks; they are weakly augmented."""
        if not len(ranks):
            return np.empty(0, np.int64)
        result: np.ndarray = self.strong[self.plan.copies["partner"].numpy()[ranks]]
        return result


def _times_before(rows: np.ndarray) -> np.ndarray:
    """How often each of rows int64 (L,) stands before its place, int64 (L,): 7 5 7 7 is 0 0 1 2."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    times = np.empty(len(rows), np.int64)
    times[order] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return times


def _sent(parts: Sequence[np.ndarray], device: torch.device) -> Sequence[Tensor]:
    """The arrays as tensors on the device, in one transfer that does not wait for the device."""
    result: Sequence[Tensor] = (
        torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True).split([len(part) for part in parts])
    )
    return result

"""Which examples get strong augmentation, in how many copies, with what weight, and from which epoch on."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from latebloom.data.seeds import child_seed, numpy_rng, torch_rng
from latebloom.train.augment.policies import Draw, choose, make_policy
from latebloom.train.config import SelectionConfig, Selector, StrongConfig
from latebloom.train.selection.coreset import (
    Coreset,
    CoresetConfig,
    Evidence,
    budgets,
    normalised,
    select_coreset,
    updated_moments,
)
from latebloom.train.selection.gradients import Moments
from latebloom.train.selection.scores import top

__all__ = ["EpochRows", "ForwardPass", "Mixer", "Selector", "StrongConfig", "StrongLosses"]


@dataclasses.dataclass(frozen=True)
class EpochRows:
    """The examples of an epoch, before they are shuffled.

    Attributes:
        rows: int64 (L,), rows of the model's training set.
        strong: bool (L,), which of them are strongly augmented.
        weights: float32 (L,), factors of the losses; None: 1.
        copies: the policy's draw for the S strong ones, in their order.
        drawn: the number of the epoch whose weak augmentation this one has.
    """

    rows: np.ndarray
    strong: np.ndarray
    weights: np.ndarray | None
    copies: Draw
    drawn: int


ForwardPass = Callable[[], tuple[np.ndarray, np.ndarray]]
StrongLosses = Callable[[EpochRows], np.ndarray]


class Mixer:
    """Makes the epochs of one model's training from its training set (the rows 0..n-1 here).

    Everything follows from the seed, the epoch's number and the model, so an interrupted run that restores `state`
    continues as if it had not stopped.

    Args:
        labels: int64 (n,), of the training set.
        image_shape: (H, W, C).
        seed: the model's.
        given: the coreset for selector=file, and for no other: rows of this training set, each once.
        scout: gives a scout's outputs on this training set, once; for a config that names one.

    Attributes:
        length: examples of every epoch. Epochs before the first selection have the same length: whole passes over the
            training set, and random rows for the rest.
        seconds: spent so far on forward passes, selections and losses of candidates.
        selections: how many selections were made so far.
        selection: epoch, indices and gamma of the last one; None before the first.
        times_selected: int64 (n,), in how many selections each row was. The selections themselves are not kept: every
            checkpoint would hold all of them.
        on_selection: called with the epoch and the coreset of each selection when it is made; None at first. What was
            made after the checkpoint that a run goes on from is made once more, the same.

    Raises:
        ValueError: a policy that does not fit the images, or a budget or a coreset that does not fit the labels.
    """

    def __init__(
        self,
        config: StrongConfig,
        labels: np.ndarray,
        num_classes: int,
        image_shape: tuple[int, int, int],
        seed: int,
        given: Coreset | None = None,
        scout: Callable[[], Evidence] | None = None,
    ) -> None:
        if (given is not None) != (config.selector == "file"):
            raise ValueError(f"selector is {config.selector}; a coreset is given for selector=file and for no other")
        if given is not None and ((given.indices < 0) | (given.indices >= len(labels))).any():
            raise ValueError(f"the coreset has rows outside 0..{len(labels) - 1}; give rows of the training set")
        self.config, self.labels, self.num_classes, self.seed = config, labels, num_classes, seed
        self.given, self.scout = given, scout
        height, width, channels = image_shape
        self.policy = make_policy(config.policy, channels, height, width)
        self.size = self._budget()
        self.length = self._length()
        self.seconds = 0.0
        self.selections = 0
        self.selection: tuple[int, np.ndarray, np.ndarray] | None = None
        self.times_selected = np.zeros(len(labels), np.int64)
        self.on_selection: Callable[[int, Coreset], None] | None = None
        self._main = np.arange(len(labels))  # of the round
        self._choice = np.empty(0, np.int64)  # the wu2020 candidate of each strong copy
        self._chosen_in = -1  # the epoch of that choice
        self._moments: Moments | None = None
        self._hits = np.zeros(len(labels), np.int8)  # as last seen in training: right 1, wrong or never seen 0
        self._forgotten = np.zeros(len(labels), np.int64)
        self._learned = np.zeros(len(labels), bool)

    @property
    def counts(self) -> bool:
        """Whether `count` must be called at the end of each epoch."""
        return self.config.selector == "forgetting" and not self.config.scout.model

    @property
    def selects_once(self) -> bool:
        """Whether no selection follows the first: a file and a scout's outputs are the same in all rounds."""
        return self.given is not None or bool(self.config.scout.model)

    @property
    def forgotten(self) -> np.ndarray:
        """How often each row went from right to wrong so far, float64 (n,); inf for rows that were never right."""
        return np.where(self._learned, self._forgotten, np.inf)

    def epoch(self, number: int, forward_pass: ForwardPass, strong_losses: StrongLosses) -> EpochRows:
        """The epoch `number` (from 0); selects first if this epoch begins a round.

        Args:
            forward_pass: gives logits float32 (n, K) and features float32 (n, D) of the training set by the current
                model, in eval mode, without augmentation.
            strong_losses: gives the losses float32 (S,) of an epoch's strong copies by the current model, in eval mode.
        """
        config = self.config
        if number < config.warm_epochs:
            return self._warm(number)
        start = number - (number - config.warm_epochs) % config.every  # of the round
        if self.selection is None or (self.selection[0] != start and not self.selects_once):
            # At most one selection a round, also when the run is resumed in the middle of one.
            assert number == start
            begin = time.perf_counter()
            coreset = self._select(number, forward_pass)
            self.selection = number, coreset.indices, coreset.weights
            self.selections += 1
            self.times_selected[coreset.indices] += 1
            self._main = self._main_rows(number, coreset)
            self.seconds += time.perf_counter() - begin
            if self.on_selection:
                self.on_selection(number, coreset)
        _, selected, gamma = self.selection
        drawn = config.drawn(number)
        plan = self._arrange(selected, gamma, drawn)
        assert len(plan.rows) == self.length
        choice = torch.zeros(int(plan.strong.sum()), dtype=torch.int64)
        if self.policy.candidates > 1 and len(choice):
            if self._chosen_in != drawn:
                begin = time.perf_counter()
                self._choice, self._chosen_in = self._chosen_candidates(plan, strong_losses), drawn
                self.seconds += time.perf_counter() - begin
            choice = torch.from_numpy(self._choice)
        if len(choice):
            plan = dataclasses.replace(plan, copies=self.policy.candidate(plan.copies, choice))
        return plan

    def count(self, rows: np.ndarray, right: np.ndarray) -> None:
        """Note which weakly augmented rows (n,) an epoch of training got right (bool); each row once."""
        self._forgotten[rows] += (self._hits[rows] == 1) & ~right
        self._hits[rows] = right
        self._learned[rows] |= right

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs; no two arrays share memory, even if two mixers were given the same coreset."""
        state = {
            "main": self._main.copy(),
            "choice": self._choice,
            "chosen_in": np.array(self._chosen_in),
            "seconds": np.array(self.seconds),
            "selections": np.array(self.selections),
            "times_selected": self.times_selected.copy(),
        }
        if self.selection:
            epoch, indices, gamma = self.selection
            state |= {"epoch": np.array(epoch), "indices": indices.copy(), "gamma": gamma.copy()}
        if self.counts:
            state |= {"hits": self._hits, "forgotten": self._forgotten, "learned": self._learned}
        if self._moments is not None:
            state |= {f"moments.{name}": value for name, value in self._moments.state().items()}
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `state` of a mixer that was made with the same arguments."""
        self._main, self._choice = state["main"], state["choice"]
        self._chosen_in, self.seconds = int(state["chosen_in"].item()), float(state["seconds"].item())
        self.selections, self.times_selected = int(state["selections"].item()), state["times_selected"].copy()
        self.selection = None
        if self.selections:
            self.selection = int(state["epoch"].item()), state["indices"], state["gamma"]
        if self.counts:
            self._hits, self._forgotten = state["hits"].copy(), state["forgotten"].copy()
            self._learned = state["learned"].copy()
        moments = {n.removeprefix("moments."): v for n, v in state.items() if n.startswith("moments.")}
        self._moments = Moments.restored(moments) if moments else None

    @classmethod
    def counting(
        cls, labels: np.ndarray, num_classes: int, image_shape: tuple[int, int, int], seed: int, epochs: int
    ) -> "Mixer":
        """One that changes nothing in a training of up to so many epochs, and counts what it forgets."""
        everything = SelectionConfig(fraction=1.0, budget="none")
        config = StrongConfig(selector="forgetting", coreset=everything, where="in_place", warm_epochs=epochs)
        return cls(config, labels, num_classes, image_shape, seed)

    def _budget(self) -> int:
        """How many examples a selection has."""
        if self.config.selector in ("none", "all"):
            return 0 if self.config.selector == "none" else len(self.labels)
        if self.given is not None:
            return len(self.given.indices)
        return int(budgets(self.labels, self.num_classes, self._coreset_config(self.config.selector)).sum())

    def _coreset_config(self, method: Selector) -> CoresetConfig:
        # Not validated: `all` and `file`, which are no methods, ask for a budget alone.
        return CoresetConfig.model_construct(**{**dict(self.config.coreset), "method": method})

    def _length(self) -> int:
        config = self.config
        main = self.size if config.main != "full" and config.selector != "none" else len(self.labels)
        if config.where == "append":
            return main + config.copies * self.size
        return main * (2 if config.where == "in_place_twice" else 1)

    def _warm(self, number: int) -> EpochRows:
        n = len(self.labels)
        passes, rest = divmod(self.length, n)
        some = numpy_rng(self.seed, "warm", number).permutation(n)[:rest]
        rows = np.concatenate([*[np.arange(n)] * passes, some])
        return EpochRows(rows, np.zeros(len(rows), bool), None, {}, number)

    def _select(self, number: int, forward_pass: ForwardPass) -> Coreset:
        selector, n = self.config.selector, len(self.labels)
        if selector in ("none", "all"):
            rows = np.arange(n if selector == "all" else 0)
            return Coreset(rows, np.ones(len(rows), np.float32))
        if self.given is not None:
            return self.given
        if selector == "random" or self.counts:  # these need no outputs
            evidence = self._without_outputs()
        elif self.config.scout.model:
            assert self.scout is not None
            evidence = self.scout()
        else:
            logits, features = forward_pass()
            evidence = Evidence(logits, self.labels, features)
        config = self._coreset_config(self.config.selector)
        if selector == "adacore" and not self.selects_once:
            self._moments = updated_moments(evidence, config, self._moments)
            evidence = dataclasses.replace(evidence, moments=self._moments)
        return select_coreset(evidence, config, child_seed(self.seed, "coreset", number))

    def _main_rows(self, number: int, coreset: Coreset) -> np.ndarray:
        n = len(self.labels)
        if self.config.main == "full" or self.config.selector in ("none", "all"):
            return np.arange(n)
        if self.config.main == "coreset":
            return coreset.indices
        if self.given is not None:  # as many of each class
            score = numpy_rng(self.seed, "main", number).random(n)
            return top(score, self.labels, np.bincount(self.labels[coreset.indices], minlength=self.num_classes), True)
        at_random = self._coreset_config("random")
        return select_coreset(self._without_outputs(), at_random, child_seed(self.seed, "main", number)).indices

    def _without_outputs(self) -> Evidence:
        """For methods that need no outputs of the model."""
        n = len(self.labels)
        forgotten = self.forgotten if self.counts else None
        return Evidence(
            np.zeros((n, self.num_classes), np.float32), self.labels, np.zeros((n, 1), np.float32), forgotten=forgotten
        )

    def _arrange(self, selected: np.ndarray, gamma: np.ndarray, drawn: int) -> EpochRows:
        config, n = self.config, len(self.labels)
        rows = self._main
        is_selected = np.zeros(n, bool)
        is_selected[selected] = True
        is_main = np.ones(len(rows), bool)
        if config.where == "append":
            copies = np.tile(selected, config.copies)
            rows = np.concatenate([rows, copies])
            strong = np.concatenate([~is_main, np.ones(len(copies), bool)])
            is_main = ~strong
        else:
            rows = np.tile(rows, 2 if config.where == "in_place_twice" else 1)
            strong, is_main = is_selected[rows], np.ones(len(rows), bool)
        draw: Draw = {}
        if strong.any():
            draw = self.policy.draw(int(strong.sum()), torch_rng(self.seed, "strong", drawn))
        return EpochRows(rows, strong, self._weights(rows, strong, is_main, selected, gamma), draw, drawn)

    def _weights(
        self, rows: np.ndarray, strong: np.ndarray, is_main: np.ndarray, selected: np.ndarray, gamma: np.ndarray
    ) -> np.ndarray | None:
        config = self.config
        if config.weights == "none" or not len(selected):
            return None
        of_row = np.ones(len(self.labels), np.float32)
        of_row[selected] = normalised(gamma) if config.weights == "normalised" else gamma
        weights = np.ones(len(rows), np.float32)
        if config.weights == "gamma_over_r":
            weights[strong] = of_row[rows[strong]] / config.copies
        elif config.weigh_strong:
            weights[strong] = of_row[rows[strong]]
        if config.main == "coreset":
            weights[is_main] = of_row[rows[is_main]]
        return weights

    def _chosen_candidates(self, plan: EpochRows, strong_losses: StrongLosses) -> np.ndarray:
        """Which of its candidate compositions each strong copy gets, int64 (S,)."""
        copies = int(plan.strong.sum())
        losses = []
        for candidate in range(self.policy.candidates):
            draw = self.policy.candidate(plan.copies, torch.full((copies,), candidate))
            losses.append(strong_losses(dataclasses.replace(plan, copies=draw)))
        generator = torch_rng(self.seed, "choice", plan.drawn)
        table = torch.from_numpy(np.stack(losses, 1))  # (S, candidates)
        return choose(table, self.config.policy.choose, generator).numpy()

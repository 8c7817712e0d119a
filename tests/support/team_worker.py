"""The processes of tests/train/loop/test_team.py: each trains all cases and writes its results, by rank."""

import copy
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import torch_stream
from latebloom.train.augment.mixing import Mixer, StrongConfig
from latebloom.train.augment.policies import PolicyConfig
from latebloom.train.loop.fit import FitConfig, FitState, History, fit
from latebloom.train.loop.team import Team, join
from latebloom.train.loop.validation import Validation
from latebloom.train.models.build import build
from latebloom.train.selection.coreset import CoresetConfig

BASE = FitConfig(epochs=3, batch_size=7, crop_padding=1, lr=0.05, rho=0.5, last_batch="drop")  # shares of 4 and 3
SHORT = {"optimizer": "sam", "sam_sync": "global", "sam_decay": "ascent", "weight_decay": 0.1}
CASES = {
    "sam global": BASE.model_copy(update={"optimizer": "sam", "sam_sync": "global"}),
    "sam local": BASE.model_copy(update={"optimizer": "sam", "sam_sync": "local"}),
    # A last batch of 6 after two of 9, shares of 3 and 3; of L2 each process adds a half.
    "short": BASE.model_copy(update=SHORT | {"batch_size": 9, "last_batch": "keep"}),
    "strong": BASE,
    "batchnorm": BASE,
    "lengths": BASE.model_copy(update={"batch_size": 4, "last_batch": "keep"}),
}
WORLD = StrongConfig(
    selector="max_loss", coreset=CoresetConfig(fraction=0.5), policy=PolicyConfig(policy="wu2020"), every=2, copies=2
)


def noise() -> LabeledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
    return LabeledImages(pixels, np.arange(24) % 3, ("a", "b", "c"), "noise")


def mlp() -> nn.Module:
    with torch_stream(0, "mlp"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3))


def run(case: str) -> dict[str, torch.Tensor]:
    """Weights, history and selections of one case."""
    if case == "lengths":
        return resumed(CASES[case])
    config, data = CASES[case], noise()
    model = build("small-cnn", 3, (8, 8, 1), 0) if case == "batchnorm" else mlp()
    mixer = Mixer(WORLD, data.labels, 3, (8, 8, 1), 5) if case == "strong" else None
    calls: list[FitState] = []
    (history,) = fit(
        [model],
        data,
        [np.arange(24)],
        config,
        [5],
        mixers=[mixer] if mixer else None,
        validation=Validation(data.subset(np.arange(9))),
        on_epoch=calls.append,
    )
    found = {f"weight.{name}": value.clone() for name, value in model.state_dict().items()}
    found["loss"], found["error"] = torch.tensor(history.loss), torch.tensor(history.error)
    found["validation"], found["calls"] = torch.tensor(history.validation_error), torch.tensor(len(calls))
    if mixer:
        assert mixer.selection
        found["selected"], found["counts"] = (torch.from_numpy(a) for a in (mixer.selection[1], mixer.times_selected))
    return found


def resumed(config: FitConfig) -> dict[str, torch.Tensor]:
    """Two models of 6 and 5 steps an epoch, and again from the checkpoint that the leader writes at step 6."""
    states: list[bytes] = []

    def models() -> list[nn.Module]:
        return [build("small-cnn", 3, (8, 8, 1), seed) for seed in range(2)]

    def keep(state: FitState) -> None:
        states.append(pickle.dumps((copy.deepcopy(state), [model.state_dict() for model in first])))

    def go(pair: list[nn.Module], start: FitState | None, call: Callable[[FitState], None]) -> None:
        fit(pair, noise(), [np.arange(24), np.arange(5, 22)], config, [0, 1], start=start, on_epoch=call)

    first, second, calls = models(), models(), list[FitState]()
    go(first, None, keep)
    sent = states[:1] or [b""]
    if Team().size > 1:
        torch.distributed.broadcast_object_list(sent)
    start, weights = pickle.loads(sent[0])
    for model, state in zip(second, weights, strict=True):
        model.load_state_dict(state)
    go(second, start, calls.append)
    found = {f"{m}.{name}": value.clone() for m in range(2) for name, value in first[m].state_dict().items()}
    again = {f"resumed.{m}.{name}": value.clone() for m in range(2) for name, value in second[m].state_dict().items()}
    return found | again | {"calls": torch.tensor(len(states))}


def apart() -> dict[str, torch.Tensor]:
    """The processes have read different checkpoints: the error of each."""
    state = FitState(4 * Team().rank, [{}], [History()], np.zeros((1, 3)), [{}])
    try:
        fit([mlp()], noise(), [np.arange(24)], BASE, [5], start=state)
    except ValueError as error:
        return {"message": torch.tensor(list(str(error).encode()))}
    return {"message": torch.tensor([])}


def main(folder: Path) -> None:
    """One process, started as by `accelerate launch`."""
    torch.set_num_threads(1)
    join()
    for case in [*CASES, "apart"]:
        found = apart() if case == "apart" else run(case)
        save_file(found, folder / f"{case}-{Team().rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Both are forks of this process, which imports for both what takes seconds.
    import accelerate  # noqa: F401
    import torch._dynamo

    for rank in ("0", "1"):
        if os.fork() == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            try:
                main(Path(sys.argv[1]))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))

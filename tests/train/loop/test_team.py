"""Two processes on the CPU, with the environment that `accelerate launch` and torchrun give them, beside one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import team_worker
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from latebloom.data.batches import epoch_order
from latebloom.data.seeds import torch_rng
from latebloom.train.augment.mixing import Mixer, StrongConfig
from latebloom.train.augment.weak import apply_weak, draw_weak
from latebloom.train.loop.fit import fit
from latebloom.train.loop.team import Team, join
from latebloom.train.selection.coreset import CoresetConfig

Found = dict[str, list[dict[str, Tensor]]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What both processes found, by case."""
    folder, root = tmp_path_factory.mktemp("team"), Path(__file__).parents[3]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_accelerate = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, team_worker.__file__, str(folder)]
    done = subprocess.run(
        command, env=os.environ | of_accelerate, capture_output=True, text=True, cwd=root, timeout=280
    )
    assert done.returncode == 0, done.stderr
    cases = [*team_worker.CASES, "apart"]
    return {case: [load_file(folder / f"{case}-{rank}.safetensors") for rank in range(2)] for case in cases}


@pytest.mark.parametrize("case", ["sam global", "short", "strong"])
def test_two_processes_train_what_one_does(pair: Found, case: str) -> None:
    alone = team_worker.run(case)
    for found in pair[case]:
        for name in alone:
            if name != "calls":
                torch.testing.assert_close(found[name], alone[name], rtol=1e-5, atol=1e-5)


def test_both_processes_hold_the_same_model_and_history_and_one_reports(pair: Found) -> None:
    for first, second in (pair[case] for case in team_worker.CASES):
        assert all(torch.equal(value, second[name]) for name, value in first.items() if name != "calls")
        assert (int(first["calls"]), int(second["calls"])) == (3, 0)


def test_both_processes_select_the_same_as_one_alone(pair: Found) -> None:
    selected = [found["selected"].tolist() for found in pair["strong"]]
    assert selected[0] == selected[1] == team_worker.run("strong")["selected"].tolist()
    assert len(selected[0]) == 12
    assert pair["strong"][0]["counts"].sum() == 24  # twelve at epoch 0, twelve at epoch 2


def test_sam_local_ascends_by_each_processs_own_gradient(pair: Found) -> None:
    """By hand: each half of a batch has a perturbation of its own radius; the gradients found there are summed."""
    config, data, model = team_worker.CASES["sam local"], team_worker.noise(), team_worker.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    weights = list(model.parameters())
    for step in range(9):
        epoch, place = divmod(step, 3)
        optimizer.param_groups[0]["lr"] = 0.05 * 0.1 ** ((step >= 4.5) + (step >= 6.75))
        order = epoch_order(24, 5, epoch)[7 * place : 7 * place + 7]
        draw = draw_weak(24, 1, True, torch_rng(5, "augment", epoch))
        total = [torch.zeros_like(w) for w in weights]
        for half in (order[::2], order[1::2]):
            x = torch.from_numpy(data.pixels(half)).permute(0, 3, 1, 2)
            x = apply_weak(x, {name: values[half] for name, values in draw.items()}, 1) / 255
            y = torch.from_numpy(data.labels[half])

            def gradient(x: Tensor = x, y: Tensor = y) -> tuple[Tensor, ...]:
                return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum") / 7, weights)

            ascent = gradient()
            norm = torch.sqrt(sum(((g**2).sum() for g in ascent), torch.tensor(0.0)))
            with torch.no_grad():
                for w, g in zip(weights, ascent, strict=True):
                    w += config.rho * g / norm
            for sum_, g in zip(total, gradient(), strict=True):
                sum_ += g
            with torch.no_grad():
                for w, g in zip(weights, ascent, strict=True):
                    w -= config.rho * g / norm
        for w, g in zip(weights, total, strict=True):
            w.grad = g
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(pair["sam local"][0][f"weight.{name}"], value, rtol=1e-4, atol=1e-5)
        other = pair["sam global"][0][f"weight.{name}"]
        assert not torch.allclose(other, value, rtol=1e-3, atol=1e-4)


def test_a_process_alone_is_a_team_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() is None
    team = Team()
    assert (team.size, team.rank, team.leads) == (1, 0, True)
    rows = np.arange(5)
    assert team.part(rows).tolist() == [0, 1, 2, 3, 4]
    assert team.whole(rows, 5, torch.device("cpu")) is rows


def test_epochs_shorter_than_the_team_are_refused_before_any_process_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 images are enough for four processes, but three selected ones, which are a whole epoch, are not."""
    data = team_worker.noise()
    strong = StrongConfig(selector="random", main="coreset", copies=0, coreset=CoresetConfig(fraction=0.125))
    mixer = Mixer(strong, data.labels, 3, (8, 8, 1), 5)
    monkeypatch.setattr(Team, "__init__", lambda self: vars(self).update(size=4, rank=0))
    with pytest.raises(ValueError, match="4 processes need batches of 4 images or more"):
        fit([team_worker.mlp()], data, [np.arange(24)], team_worker.BASE, [5], mixers=[mixer])


def test_processes_that_would_start_at_different_steps_are_all_refused(pair: Found) -> None:
    """Of a folder that is not shared only the leader finds its checkpoint, and the others wait in another step."""
    for found in pair["apart"]:
        message = bytes(found["message"].tolist()).decode()
        assert message.startswith("the processes would continue from different steps, 0 to 4")


def test_models_amid_their_epochs_resume_in_both_processes(pair: Found) -> None:
    """BatchNorm's statistics of a shorter model are one process's own amid its epoch: a checkpoint has their mean."""
    for found in pair["lengths"]:
        names = [name.removeprefix("resumed.") for name in found if name.startswith("resumed.")]
        assert any(name.endswith("running_var") for name in names)
        assert all(torch.equal(found[f"resumed.{name}"], found[name]) for name in names)

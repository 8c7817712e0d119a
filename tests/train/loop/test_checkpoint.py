import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from latebloom.train.loop.checkpoint import load_fit, load_model, save_fit, save_model
from latebloom.train.loop.fit import FitState, History
from latebloom.train.models.build import build


def cnn(seed: int = 0) -> nn.Module:
    """With BatchNorm that has seen a batch."""
    model = build("small-cnn", 3, (8, 8, 1), seed, width=4)
    model(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return model


def same(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def state_of(models: list[nn.Module]) -> FitState:
    """A state in which every model has numbers of its own, among them floats without a short decimal form."""
    slots = [
        {f"momentum_buffer/{name}": value * (m + 2) for name, value in model.named_parameters()}
        | {"step/head.bias": torch.tensor(41.0)}  # AdaHessian's: no dimension
        for m, model in enumerate(models)
    ]
    histories = [History([0.1 + 0.2 + m, 1 / 3], [2 / 3, 0.0], [0.1, 0.01], [1.5, 1.25]) for m in range(len(models))]
    mixers = [
        {"chosen_in": np.array(7 + m), "indices": np.arange(m), "right": np.full(3, -1, np.int8)}
        for m in range(len(models))
    ]
    return FitState(41, slots, histories, np.arange(3.0 * len(models)).reshape(-1, 3) / 7, mixers)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


def not_a_checkpoint(kind: str, folder: Path) -> bytes:
    """Bytes that are no safetensors file, one way or another."""
    whole = safetensors.torch.save(dict(cnn().named_parameters()), {"key": "key"})
    pickled = io.BytesIO()
    torch.save({"head.weight": Payload(folder / "executed")}, pickled)
    return {
        "empty": b"",
        "cut in its header": whole[:20],
        "cut in its tensors": whole[:-10],
        "torch.save": pickled.getvalue(),
        "pickle": pickle.dumps(Payload(folder / "executed")),
    }[kind]


DAMAGED = pytest.mark.parametrize("kind", ["empty", "cut in its header", "cut in its tensors", "torch.save", "pickle"])


def test_a_model_comes_back_bit_for_bit_with_its_running_statistics(tmp_path: Path) -> None:
    model, other = cnn(0), cnn(1)
    save_model(tmp_path / "early" / "model.safetensors", model)
    assert not same(other, model)
    load_model(tmp_path / "early" / "model.safetensors", other)
    assert same(other, model)
    assert int(other.get_buffer("bn1.num_batches_tracked")) == 1
    assert [file.name for file in (tmp_path / "early").iterdir()] == ["model.safetensors"]


def test_saving_leaves_the_model_alone_and_does_not_tie_it_to_the_file(tmp_path: Path) -> None:
    model, untouched = cnn(), cnn()
    save_model(tmp_path / "model.safetensors", model)
    assert same(model, untouched)
    nn.init.zeros_(model.get_parameter("head.weight"))
    other = cnn(1)
    load_model(tmp_path / "model.safetensors", other)
    assert same(other, untouched)


def test_weights_that_are_not_contiguous_are_saved(tmp_path: Path) -> None:
    model, other = cnn(), cnn(1)
    model.to(memory_format=torch.channels_last)
    assert not model.get_parameter("conv2.weight").is_contiguous()
    save_model(tmp_path / "model.safetensors", model)
    load_model(tmp_path / "model.safetensors", other)
    assert same(other, model)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (build("small-cnn", 4, (8, 8, 1), 0, width=4), "size mismatch for head.weight"),
        (nn.Linear(2, 3), "Missing key"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, other: nn.Module, message: str) -> None:
    file = tmp_path / "model.safetensors"
    save_model(file, cnn())
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold the weights of this classifier") as caught:
        load_model(file, other)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400  # torch names every key, over many lines
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_comes_back_bit_for_bit(tmp_path: Path) -> None:
    count = 12  # model 1 is not taken for models 10 and 11
    models, others = [cnn(m) for m in range(count)], [cnn(50 + m) for m in range(count)]
    state = state_of(models)
    save_fit(tmp_path / "run.safetensors", models, state, "key")
    found = load_fit(tmp_path / "run.safetensors", others, "key")
    assert found is not None
    assert all(same(other, model) for other, model in zip(others, models, strict=True))
    assert found.step == 41
    assert found.histories == state.histories
    assert found.partial.dtype == np.float64
    np.testing.assert_array_equal(found.partial, state.partial)
    assert [history.seconds for history in found.histories] == [[1.5, 1.25]] * count
    for buffers, expected in zip(found.slots, state.slots, strict=True):
        assert buffers.keys() == expected.keys()
        assert all(torch.equal(buffer, expected[name]) for name, buffer in buffers.items())
    for arrays, originals in zip(found.mixers, state.mixers, strict=True):
        assert arrays.keys() == originals.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, originals[name], strict=True)  # shape and dtype too


def test_a_run_before_its_first_step_has_no_momenta(tmp_path: Path) -> None:
    state = FitState(0, [{}], [History()], np.zeros((1, 3)), [{}])
    save_fit(tmp_path / "run.safetensors", [cnn()], state, "key")
    found = load_fit(tmp_path / "run.safetensors", [cnn()], "key")
    assert found is not None
    assert (found.step, found.slots, found.histories, found.mixers) == (0, [{}], [History()], [{}])


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert load_fit(tmp_path / "run.safetensors", [cnn()], "key") is None


def test_a_run_with_another_key_is_not_taken_up(tmp_path: Path) -> None:
    save_fit(tmp_path / "run.safetensors", [cnn()], state_of([cnn()]), "key")
    other = cnn(1)
    assert load_fit(tmp_path / "run.safetensors", [other], "other key") is None
    assert same(other, cnn(1))


def test_a_safetensors_file_from_elsewhere_is_not_taken_up(tmp_path: Path) -> None:
    foreign: dict[str, Tensor] = {"0.weight.head.weight": torch.zeros(3, 32)}
    safetensors.torch.save_file(foreign, tmp_path / "run.safetensors")  # no metadata at all
    assert load_fit(tmp_path / "run.safetensors", [cnn()], "key") is None


@DAMAGED
def test_a_damaged_file_is_named_with_what_to_do_and_never_unpickled(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "run.safetensors"
    file.write_bytes(not_a_checkpoint(kind, tmp_path))
    model = cnn(1)
    with pytest.raises(
        ValueError, match=r"run\.safetensors is a damaged checkpoint .*delete it to train from the start"
    ):
        load_fit(file, [model], "key")
    with pytest.raises(ValueError, match=r"run\.safetensors does not hold the weights of this classifier"):
        load_model(file, model)
    assert not (tmp_path / "executed").exists()
    assert same(model, cnn(1))

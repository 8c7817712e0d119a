import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latebloom.data.images import LabeledImages
from latebloom.synth.config import SampleConfig, Sampler
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.denoiser import Wanted, to_pixels
from latebloom.synth.sampling.loop import LoopGenerator

CPU = torch.device("cpu")
NAMES = ("top", "middle", "bottom")
Save = Callable[..., Path]


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if changes.get(name, 0) is not None}))


@pytest.fixture(scope="module")
def rows(save_tiny: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("pixel") / "rows")


@pytest.fixture
def folder(rows: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(rows, tmp_path / "rows")


@pytest.fixture(scope="module")
def denoiser(rows: Path) -> PixelDenoiser:
    return PixelDenoiser.load(rows, CPU)


# Loading


def test_a_folder_that_diffusers_saved_becomes_the_same_network(
    denoiser: PixelDenoiser, tiny_unet: Callable[..., Any]
) -> None:
    from diffusers import DDPMScheduler

    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, timesteps = torch.tensor([0, 2, 1]), torch.tensor([500, 3, 900])
    with torch.no_grad():
        expected = [
            tiny_unet(0).eval()(x[row : row + 1], int(timesteps[row]), class_labels=labels[row : row + 1]).sample
            for row in range(3)
        ]
    torch.testing.assert_close(denoiser.predict(x, timesteps, labels), torch.cat(expected), rtol=0, atol=1e-5)
    assert float(torch.cat(expected).std()) > 0.1  # not a network of zeros
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    np.testing.assert_array_equal(denoiser.alphas_cumprod, scheduler.alphas_cumprod.double().numpy())
    assert denoiser.alphas_cumprod.dtype == np.float64


def test_the_card_separates_classes_from_the_no_label_embedding(
    denoiser: PixelDenoiser, save_tiny: Save, tmp_path: Path
) -> None:
    assert (denoiser.num_classes, denoiser.class_names, denoiser.unconditional) == (3, NAMES, True)
    plain = PixelDenoiser.load(save_tiny(tmp_path / "plain", card=False), CPU)
    assert (plain.num_classes, plain.class_names, plain.unconditional) == (4, (), False)


def test_the_card_has_the_images_it_was_trained_on_and_its_licence(folder: Path) -> None:
    plain = PixelDenoiser.load(folder, CPU)
    assert (plain.trained_on, plain.trained_on_words, plain.licence) == (frozenset(), "", "")
    edit(folder / "latebloom.json", trained_on_sha256=["a", "b"], trained_on="rows of light", licence="cc0-1.0")
    known = PixelDenoiser.load(folder, CPU)
    assert (known.trained_on, known.trained_on_words, known.licence) == ({"a", "b"}, "rows of light", "cc0-1.0")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert PixelDenoiser.load(folder, CPU).licence == "cc0-1.0"
    edit(folder / "latebloom.json", licence=None)
    assert PixelDenoiser.load(folder, CPU).licence == "mit"


def test_sizes_are_those_of_the_model(denoiser: PixelDenoiser, tiny_unet: Callable[..., Any]) -> None:
    assert (denoiser.size, denoiser.multiple, denoiser.channels) == (8, 2, 1)  # two levels: sides are halved once
    down, up = ("DownBlock2D",) * 3, ("UpBlock2D",) * 3
    unet = tiny_unet(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8, 8),
        down_block_types=down,
        up_block_types=up,
    )
    deep = PixelDenoiser(unet, np.ones(1), "sample", num_classes=3, name="x", digest="x")
    assert (deep.size, deep.multiple, deep.channels) == (32, 4, 3)
    # And the multiple is the one that the network needs.
    for side in (4, 12, 20):
        x = torch.zeros(1, 3, side, 2 * side)
        assert deep.predict(x, torch.tensor([0]), torch.tensor([0])).shape == x.shape


def test_the_prediction_type_is_that_of_the_scheduler(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    assert PixelDenoiser.load(folder, CPU).prediction_type == "epsilon"


def test_what_the_scheduler_says_of_clipping_and_betas_is_followed_or_refused(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    assert PixelDenoiser.load(folder, CPU).clip == 1
    edit(file, clip_sample_range=2.5)
    assert PixelDenoiser.load(folder, CPU).clip == 2.5
    edit(file, clip_sample=False, trained_betas=[0.1, 0.5])
    loaded = PixelDenoiser.load(folder, CPU)
    assert loaded.clip == 0
    np.testing.assert_allclose(loaded.alphas_cumprod, [0.9, 0.45], rtol=1e-6)
    for change, message in [
        ({"thresholding": True}, "dynamic thresholding, which our loop does not do; set thresholding to false"),
        ({"thresholding": False, "timestep_type": "continuous"}, "has continuous timesteps, expected"),
        ({"timestep_type": "discrete", "trained_betas": None, "beta_schedule": "mine"}, "mine is not implemented"),
    ]:
        edit(file, **change)
        with pytest.raises(ValueError, match=message):
            PixelDenoiser.load(folder, CPU)


def test_the_digest_is_of_weights_and_settings_not_of_place_or_name(
    folder: Path, denoiser: PixelDenoiser, save_tiny: Save, tmp_path: Path
) -> None:
    from diffusers import DDPMPipeline

    assert re.fullmatch("[0-9a-f]{64}", denoiser.digest)
    moved = tmp_path / "elsewhere" / "other_name"
    shutil.copytree(folder, moved)
    assert PixelDenoiser.load(moved, CPU).digest == denoiser.digest
    assert PixelDenoiser.load(moved, CPU).name == "other_name"
    assert PixelDenoiser.load(save_tiny(tmp_path / "again"), CPU).digest == denoiser.digest
    # diffusers writes the path a model came from into its config.
    resaved = tmp_path / "resaved"
    DDPMPipeline.from_pretrained(folder).save_pretrained(resaved)
    assert str(tmp_path) in (resaved / "unet" / "config.json").read_text()
    assert PixelDenoiser.load(resaved, CPU).digest == denoiser.digest
    edit(moved / "unet" / "config.json", _diffusers_version="0.99.0")
    assert PixelDenoiser.load(moved, CPU).digest == denoiser.digest


def test_one_weight_changes_the_digest(folder: Path, denoiser: PixelDenoiser) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] += 1e-6
    save_file(weights, file, metadata={"format": "pt"})
    assert PixelDenoiser.load(folder, CPU).digest != denoiser.digest


def test_one_setting_changes_the_digest(folder: Path, denoiser: PixelDenoiser) -> None:
    edit(folder / "scheduler/scheduler_config.json", beta_schedule="linear")
    linear = PixelDenoiser.load(folder, CPU).digest
    edit(folder / "unet/config.json", flip_sin_to_cos=False)
    assert len({denoiser.digest, linear, PixelDenoiser.load(folder, CPU).digest}) == 3


def test_pickled_weights_are_refused(folder: Path, tiny_unet: Callable[..., Any]) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(tiny_unet(0).state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    message = r"has unet only as a pickle \(diffusion_pytorch_model\.bin\), which is refused; give it as safetensors"
    with pytest.raises(ValueError, match=message):
        PixelDenoiser.load(folder, CPU)


def test_safetensors_are_taken_where_a_pickle_lies_beside_them(folder: Path, denoiser: PixelDenoiser) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    assert PixelDenoiser.load(folder, CPU).digest == denoiser.digest


def test_missing_and_broken_configs_are_named(folder: Path) -> None:
    (folder / "latebloom.json").write_text('{"unet": ')
    with pytest.raises(ValueError, match=r"latebloom\.json is not valid JSON"):
        PixelDenoiser.load(folder, CPU)
    (folder / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=r"rows has no scheduler/scheduler_config\.json; copy or save the whole"):
        PixelDenoiser.load(folder, CPU)


@pytest.mark.parametrize(
    ("unet", "found"),
    [
        (["diffusers", "UNet2DConditionModel"], "UNet2DConditionModel"),
        (None, "DDPMPipeline"),  # no unet at all, as in a pipeline with a transformer
    ],
)
def test_another_kind_of_model_is_refused_by_name(folder: Path, unet: list[str] | None, found: str) -> None:
    edit(folder / "model_index.json", unet=unet)
    message = f"rows holds a {found}, expected a UNet2DModel for a pixel generator; set generate.kind to auto$"
    with pytest.raises(ValueError, match=message):
        PixelDenoiser.load(folder, CPU)


def test_missing_and_broken_weights_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_out.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"rows/unet cannot be loaded \(it lacks 1 weights, such as conv_out\.bias"):
        PixelDenoiser.load(folder, CPU)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"rows/unet cannot be loaded \(.*\); copy or download it again"):
        PixelDenoiser.load(folder, CPU)


def test_a_model_without_classes_is_refused(save_tiny: Save, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "unlabelled", num_class_embeds=None)
    with pytest.raises(ValueError, match="has no class embeddings, expected one for each class, so that images keep"):
        PixelDenoiser.load(folder, CPU)


def test_a_learned_variance_is_refused(save_tiny: Save, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "variance", out_channels=2)
    with pytest.raises(ValueError, match=r"predicts a variance too \(learned_range\)"):
        PixelDenoiser.load(folder, CPU)


def test_a_card_with_more_names_than_embeddings_is_refused(folder: Path) -> None:
    edit(folder / "latebloom.json", class_names=list("abcde"))
    with pytest.raises(ValueError, match=r"latebloom\.json names 5 classes, the model has 4 embeddings"):
        PixelDenoiser.load(folder, CPU)


# Does it fit the data?


def test_classes_go_by_their_names_or_as_the_setting_says(
    denoiser: PixelDenoiser, save_tiny: Save, tmp_path: Path
) -> None:
    denoiser.check(("bottom", "top"))
    assert denoiser.labels_of(("bottom", "top")) == (2, 0)
    with pytest.raises(ValueError, match=r"class 'left' of the data is none of the generator's 3 classes"):
        denoiser.check((*NAMES, "left"))
    plain = save_tiny(tmp_path / "plain", card=False)
    with pytest.raises(ValueError, match=r"set generate\.classes=order"):
        PixelDenoiser.load(plain, CPU).check(NAMES)
    PixelDenoiser.load(plain, CPU, classes="order").check(NAMES)


# Pixels in and out


def test_every_grey_level_survives_encoding_and_decoding(denoiser: PixelDenoiser) -> None:
    images = np.stack([np.arange(256, dtype=np.uint8).reshape(8, 32)] * 3, -1)[None]
    images[0, ..., 1] = images[0, ::-1, :, 1]  # channels differ and sides too: a swap of axes would show
    x0 = denoiser.encode(images)
    assert (x0.shape, x0.dtype) == ((1, 3, 8, 32), torch.float32)
    assert (float(x0.min()), float(x0.max())) == (-1, 1)
    assert x0[0, 0, 0, :2].tolist() == pytest.approx([-1, -1 + 1 / 127.5])
    np.testing.assert_array_equal(to_pixels(denoiser.decode(x0)).images, images)


def test_conditions_are_the_labels_whatever_the_prompts(denoiser: PixelDenoiser) -> None:
    conditions = denoiser.conditions(np.array([2, 0]), ["a photo of a top", ""])
    assert (conditions.tolist(), conditions.dtype) == ([2, 0], torch.int64)


def test_condition_minus_one_is_the_embedding_after_the_last_class(denoiser: PixelDenoiser) -> None:
    x, timesteps = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    conditions = torch.tensor([-1])
    unlabelled = denoiser.predict(x, timesteps, conditions)
    assert torch.equal(unlabelled, denoiser.predict(x, timesteps, torch.tensor([3])))
    for label in range(3):
        assert not torch.equal(unlabelled, denoiser.predict(x, timesteps, torch.tensor([label])))
    assert conditions.tolist() == [-1]


def test_a_smaller_precision_is_that_of_the_network_alone(
    save_tiny: Save, denoiser: PixelDenoiser, tmp_path: Path
) -> None:
    half = PixelDenoiser.load(save_tiny(tmp_path / "rows2"), CPU, torch.bfloat16)
    x, timesteps, labels = torch.zeros(2, 1, 8, 8), torch.tensor([500, 3]), torch.tensor([0, 1])
    output = half.predict(x, timesteps, labels)
    assert (output.dtype, half.encode(np.zeros((1, 8, 8, 1), np.uint8)).dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(output, denoiser.predict(x, timesteps, labels), rtol=0, atol=0.05)
    assert half.digest != denoiser.digest


def test_a_compiled_network_sees_few_batch_sizes_and_the_same_comes_back(
    denoiser: PixelDenoiser, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    compiled = PixelDenoiser.load(folder, CPU)
    compiled.compiled = True  # compiling itself takes a minute
    compiled.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps, conditions = 100 * torch.arange(7), torch.tensor([0, 1, 2, -1, 0, 1, 2])
    for count in range(1, 8):
        few = x[:count], timesteps[:count], conditions[:count]
        torch.testing.assert_close(compiled.predict(*few), denoiser.predict(*few), rtol=0, atol=1e-5)
    assert sizes == [1, 2, 4, 4, 8, 8, 8]


def test_predicting_keeps_no_graph_and_no_mode_of_training(tiny_unet: Callable[..., Any]) -> None:
    unet = tiny_unet(0, dropout=0.5).train()
    denoiser = PixelDenoiser(unet, np.ones(1), "sample", num_classes=3, name="x", digest="x")
    x, timesteps, labels = torch.ones(1, 1, 8, 8), torch.tensor([0]), torch.tensor([0])
    first = denoiser.predict(x, timesteps, labels)
    assert not first.requires_grad
    assert torch.equal(first, denoiser.predict(x, timesteps, labels))  # no dropout


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++2m"])
def test_the_batch_size_changes_no_image(denoiser: PixelDenoiser, tiny_images: LabeledImages, sampler: Sampler) -> None:
    # Convolutions of another batch size may sum in another order. Measured on an x86-64 CPU with AVX-512, torch 2.15,
    # one thread and two: x0 up to 2.7e-6 apart (a grey level is 7.8e-3), every pixel equal. Allowed: one grey level on
    # one pixel in a thousand.
    generator = LoopGenerator(denoiser, SampleConfig(sampler=sampler, grid=10, guidance_scale=3))
    rows = np.arange(12)
    wanted = Wanted(tiny_images.labels[rows], [""] * 12, np.repeat([1, 3, 5, 8], 3), list(range(12)))
    references = generator.encode(tiny_images.pixels(rows))

    def pixels(batch_size: int) -> np.ndarray:
        batches = [np.arange(start, min(start + batch_size, 12)) for start in range(0, 12, batch_size)]
        return np.concatenate([generator.make(references[b], wanted.take(b)).images for b in batches]).astype(int)

    alone = pixels(1)
    assert np.mean((alone > 0) & (alone < 255)) > 0.5  # not all clipped, where any difference would hide
    for batch_size in (5, 12):
        difference = np.abs(pixels(batch_size) - alone)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.001

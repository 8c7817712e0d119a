"""Bad input on the command line: one line that says what to mend, before a server starts or a file is written."""

import dataclasses
import io
import json
import shlex
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import save_tiny_sd

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run import progress
from latebloom.flows.run.folder import Partial, RunFolder
from latebloom.flows.stages import checks

Tiny = Callable[..., CompareConfig]
Latebloom = Callable[..., Any]
Story = SimpleNamespace


# ------------------------------------------------------------------------------------------------- bad things


def png(size: tuple[int, int] = (8, 8), mode: str = "L", shade: int = 100) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, shade if mode != "RGB" else (shade,) * 3).save(buffer, format="PNG")
    return buffer.getvalue()


def image_folder(
    path: Path,
    changes: dict[str, bytes | None] | None = None,
    mode: str = "L",
    names: dict[str, str] | None = None,
) -> None:
    """Two classes with three training images and a test image each; then files put in or (None) taken away."""
    called = names or {"cat": "cat", "dog": "dog"}
    files: dict[str, bytes | None] = {
        f"{split}/{called[name]}/{number}.png": png(mode=mode, shade=10 * number + shade)
        for split, count in (("train", 3), ("test", 1))
        for name, shade in (("cat", 50), ("dog", 150))
        for number in range(count)
    }
    for name, content in (files | (changes or {})).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (path / name).write_bytes(content)


def npz(path: Path, **changes: Any) -> None:
    """Six grey 8x8 training images of two classes and two to test; then arrays replaced or (None) left out."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "train_images": rng.integers(0, 256, (6, 8, 8), dtype=np.uint8),
        "train_labels": np.array([0, 1, 0, 1, 0, 1]),
        "test_images": rng.integers(0, 256, (2, 8, 8), dtype=np.uint8),
        "test_labels": np.array([0, 1]),
    }
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})


def save_unet(folder: Path, class_names: tuple[str, ...], timesteps: int = 1000, **changes: Any) -> None:
    """A generator as a user of diffusers would save it, with fresh weights."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 4,
        "add_attention": False,
        "num_class_embeds": 11,
    }
    DDPMPipeline(UNet2DModel(**config | changes), DDPMScheduler(num_train_timesteps=timesteps)).save_pretrained(folder)
    (folder / "latebloom.json").write_text(json.dumps({"class_names": class_names}))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, generator: Path) -> Path:
    """A folder of bad things, each in one respect."""
    shop = tmp_path_factory.mktemp("shop")
    (shop / "empty").mkdir()
    (shop / "notes.txt").write_text("hello")
    image_folder(shop / "good")
    digits = {"cat": "0", "dog": "1"}
    image_folder(shop / "colour", mode="RGB", names=digits)
    image_folder(shop / "long", {f"{part}/0/0.png": png((40, 8)) for part in ("train", "test")}, names=digits)
    (shop / "names.csv").write_text("class,name\n0,nought\nten,ten\n")
    (shop / "names.yaml").write_text("0: nought\n")
    save_tiny_sd(shop / "latent")
    (shop / "no-test" / "train" / "cat").mkdir(parents=True)
    image_folder(shop / "empty-class", {"train/eel/1.png": None})
    (shop / "one-image" / "train" / "cat").mkdir(parents=True)
    (shop / "one-image" / "test" / "cat").mkdir(parents=True)
    for split in ("train", "test"):
        (shop / "one-image" / split / "cat" / "1.png").write_bytes(png())
    image_folder(shop / "unreadable", {"train/cat/bad.png": b"this is no image"})
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    image_folder(shop / "cut-off", {"train/cat/bad.png": buffer.getvalue()[:60]})
    image_folder(shop / "cut-off-test", {"test/cat/bad.png": buffer.getvalue()[:60]})
    image_folder(shop / "mixed", {"train/dog/large.png": png((9, 8))})
    image_folder(shop / "deep", {"train/dog/deep.png": png(mode="I;16")})
    image_folder(shop / "new-class", {"test/eel/1.png": png()})
    image_folder(shop / "astray", {"train/1.png": png()})
    npz(shop / "label.npz", class_names=np.array(["cat", "dog"]), train_labels=np.array([0, 1, 0, 1, 0, 5]))
    npz(shop / "negative.npz", train_labels=np.array([0, 1, 0, 1, 0, -1]))
    npz(shop / "nan.npz", train_images=np.full((6, 8, 8), np.nan, np.float32))
    npz(shop / "float.npz", train_images=np.zeros((6, 8, 8), np.float32))
    npz(shop / "missing.npz", test_labels=None)
    npz(shop / "count.npz", train_labels=np.array([0, 1]))
    npz(shop / "half-labels.npz", train_labels=np.array([0, 1, 0, 1, 0, 0.5]))
    npz(shop / "gap.npz", train_labels=np.array([0, 1, 0, 1, 0, 3]))
    wide = {"train_images": np.zeros((6, 8, 40), np.uint8), "test_images": np.zeros((2, 8, 40), np.uint8)}
    npz(shop / "wide.npz", **wide)
    npz(shop / "small.npz", train_images=np.zeros((6, 4, 4), np.uint8), test_images=np.zeros((2, 4, 4), np.uint8))
    (shop / "zip.npz").write_bytes(b"PK no more")
    (shop / "broken.toml").write_text("[train\nlr = 1")
    (shop / "unknown.toml").write_text("[train]\nlearning_rate = 1\n")
    (shop / "list.json").write_text("[1, 2]")
    (shop / "broken.json").write_text('{"train": ')
    (shop / "text.yaml").write_text("train: 1")
    ten = tuple("0123456789")
    save_unet(shop / "unlabelled", (), num_class_embeds=None)
    save_unet(shop / "unguided", ten, num_class_embeds=10)
    save_unet(shop / "coarse", ten, timesteps=10)
    save_unet(shop / "few-classes", ten[:5], num_class_embeds=6)
    for name in ("another-kind", "broken-index", "no-weights"):
        shutil.copytree(generator, shop / name)
    (shop / "another-kind" / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    (shop / "broken-index" / "model_index.json").write_text("{")
    (shop / "no-weights" / "unet" / "diffusion_pytorch_model.safetensors").rename(
        shop / "no-weights" / "unet" / "w.bin"
    )
    return shop


@pytest.fixture(scope="module")
def existing(pristine: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that somebody would not like to lose."""
    return Path(shutil.copytree(pristine.path, tmp_path_factory.mktemp("existing") / "run"))


# ------------------------------------------------------------------------------------------------- one after another


@dataclasses.dataclass(frozen=True)
class Bad:
    """A command, and what its error must say. SHOP and GEN stand for paths."""

    command: str
    words: str
    code: int = 1


# Where the generator, the classifier or the levels are not what is wrong, they are right.
FINE = {"--generator": "GEN", "--model": "small-cnn"}

BAD = [
    # Sources
    Bad("run SHOP/nowhere", "is neither a data set's name nor a path that exists; the names are digits, cifar10"),
    Bad("run cifr10", "(did you mean cifar10?)"),
    Bad("run Digits", "(did you mean digits?)"),
    Bad("run SHOP/notes.txt", "is a file of a kind that is not understood"),
    Bad("run SHOP/empty", "holds nothing, but not both a train and a test part"),
    Bad("run SHOP/no-test", "holds train, but not both a train and a test part"),
    # Image folders
    Bad("run SHOP/empty-class", "train/eel holds no images; add some or remove the folder"),
    Bad("run SHOP/one-image", "has the single class cat; a classifier needs at least 2"),
    Bad("run SHOP/unreadable", "train/cat/bad.png cannot be read as an image"),
    Bad("compare SHOP/cut-off --arms original", "train/cat/bad.png cannot be read as an image"),
    Bad("compare SHOP/cut-off-test --arms original", "test/cat/bad.png cannot be read as an image"),
    Bad("run SHOP/mixed", "large.png is 9x8 while"),
    Bad("run SHOP/mixed", "give an image size (--image-size)"),
    Bad("run SHOP/deep", "has pixel mode I;16, which does not fit 8 bits"),
    Bad("run SHOP/new-class", "test/eel is a class that"),
    Bad("run SHOP/astray", "train/1.png is in no class"),
    # Arrays
    Bad("run SHOP/label.npz", "image 5 has label 5, outside 0..1"),
    Bad("run SHOP/negative.npz", "image 5 has label -1, outside 0..1"),
    Bad("run SHOP/nan.npz", "image 0 has NaN pixels (6 such images)"),
    Bad("run SHOP/float.npz", "train_images is float32; expected uint8"),
    Bad("run SHOP/missing.npz", "has no array test_labels"),
    Bad("run SHOP/count.npz", "6 images but 2 labels"),
    Bad("run SHOP/half-labels.npz", "train_labels is float64(6,); expected integers"),
    Bad("run SHOP/gap.npz", "has no image of 1 of 4 classes (2)"),
    Bad("run SHOP/small.npz", "4x4"),
    Bad("run SHOP/zip.npz", "is not an .npz archive, or it is damaged"),
    # Size of the data set
    Bad("run digits --train-limit 201", "train_limit is 201 but digits train has 200 images"),
    Bad("run digits --train-limit 9", "train_limit is 9 but digits train has 10 classes"),
    Bad("run digits --test-limit 798", "test_limit is 798 but digits test has 797 images"),
    Bad("run digits --train-limit -1", "data.train_limit: Input should be greater than or equal to 0, got -1"),
    Bad("run digits --image-size 4", "image size 4 is too small"),
    # Levels and k
    Bad("run digits --k 1", "plan.k: Input should be greater than or equal to 2, got 1"),
    Bad("run digits --k 3", "name 2 levels yourself for k = 3"),
    Bad("run digits --k 3 --levels 8", "k = 3 needs 2 levels (k counts the real image), got 1"),
    Bad("run digits --levels 8,10,14", "k = 5 needs 4 levels (k counts the real image), got 3"),
    Bad("run digits --k 2 --levels 0", "level 0 of 20 does not exist: levels go from 1 to 20"),
    Bad("run digits --k 2 --levels 21", "level 21 of 20 does not exist"),
    Bad("run digits --k 2 --levels -3", "level -3 of 20 does not exist"),
    Bad("run digits --levels eight", "expected whole numbers with commas between, got 'eight'", 2),
    Bad("run digits --levels 8,8.5", "expected whole numbers with commas between, got '8,8.5'", 2),
    Bad("run digits --set sample.grid=15", "do not fall on a grid of 15 steps"),
    Bad("run digits --set sample.grid=0", "sample.grid: Input should be greater than or equal to 1"),
    # --set
    Bad("run digits --set train.learning_rate=1", "train.learning_rate: there is no such setting"),
    Bad("run digits --set nonsense.lr=1", "nonsense: there is no such setting"),
    Bad("run digits --set train.lr", "--set takes KEY=VALUE, got 'train.lr'", 2),
    Bad("run digits --set train.lr=fast", "train.lr: Input should be a valid number"),
    Bad("run digits --set train.lr.x=1", "train.lr: Input should be a valid number"),
    Bad("run digits --set train=5 --set train.lr=1", "train.lr is no setting: train has no settings of its own"),
    Bad("run digits --set data=digits", "data: Input should be a valid dictionary or instance of DataConfig"),
    Bad("run digits --set data.source=5", "data.source: Input should be a valid string, got 5"),
    Bad("run digits --set train.lr=-1", "train.lr: Input should be greater than 0, got -1"),
    Bad("run digits --set train.lr=NaN", "train.lr: Input should be less than or equal to 100, got nan"),
    Bad("run digits --set =1", "--set takes KEY=VALUE, got '=1'", 2),
    Bad("run digits --set train.milestones=[0.75,0.5]", "milestones are ascending fractions between 0 and 1"),
    Bad("run digits --set train.flip=perhaps", "train.flip: Input should be a valid boolean"),
    # Training
    Bad("run digits --batch-size 0", "train.batch_size: Input should be greater than or equal to 1, got 0"),
    Bad("run digits --epochs 0", "train.epochs: Input should be greater than or equal to 1, got 0"),
    Bad("run digits --epochs many", "Invalid value for '--epochs': Input should be a valid integer", 2),
    Bad("run digits --seed -1", "seed: Input should be greater than or equal to 0, got -1"),
    Bad("run digits --optimizer adam", "train.optimizer: Input should be 'sgd', 'sam' or 'adahessian', got 'adam'"),
    Bad("run digits --separating-epoch 31", "separating epoch 31 lies beyond the 30 epochs of training"),
    Bad("run digits --device tpu", "device: Input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
    # Config files
    Bad("run digits --config SHOP/nowhere.toml", "there is no config file at"),
    Bad("run digits --config SHOP/text.yaml", "text.yaml is neither .toml nor .json"),
    Bad("run digits --config SHOP/broken.toml", "broken.toml cannot be read"),
    Bad("run digits --config SHOP/broken.json", "broken.json cannot be read"),
    Bad("run digits --config SHOP/list.json", "list.json holds a list, expected settings by name"),
    Bad("run digits --config SHOP/unknown.toml", "train.learning_rate: there is no such setting"),
    # Arms
    Bad("compare digits --arms theirs-5", "no arm is called 'theirs-5'; an arm is one of original, upsample-K, ours-K"),
    Bad("compare digits --arms original@ours-5", "takes its steps from 'ours-5', which is not among the arms"),
    Bad("compare digits --arms ours-5,ours-5", "arms: each may be named once, got ours-5, ours-5"),
    Bad("compare digits --arms ours-3", "name 2 levels yourself for k = 3"),
    Bad("compare digits --arms ,", "arms: Tuple should have at least 1 item"),
    Bad("compare digits --optimizers adam", "Input should be 'sgd', 'sam' or 'adahessian', got 'adam'"),
    Bad(
        "compare digits --optimizers sgd,adam", "optimizers.1: Input should be 'sgd', 'sam' or 'adahessian', got 'adam'"
    ),
    Bad("compare digits --optimizers sgd,sgd", "optimizers: each may be named once, got sgd, sgd"),
    Bad("compare digits --seeds 0", "seeds: Input should be greater than or equal to 1, got 0"),
    Bad("compare digits --workers 0", "workers: Input should be greater than or equal to 1, got 0"),
    Bad("select digits --workers 0", "workers: Input should be greater than or equal to 1, got 0"),
    Bad("run digits --seeds 3", "run is one setting and one seed; seeds can be given to compare", 2),
    Bad("run digits --workers 2", "run is one setting and one seed; workers can be given to compare", 2),
    Bad("plan digits --arms original", "none of the arms (original) needs images to be made"),
    Bad("generate digits --arms original,upsample-2", "none of the arms (original, upsample-2) needs images"),
    # Strong copies
    Bad("run digits --strong creig", "strong.selector: Input should be 'none', 'all', 'random'"),
    Bad(
        "run digits --strong craig --strong-fraction 0", "strong.coreset.fraction: Input should be greater than 0, got"
    ),
    Bad(
        "run digits --strong craig --strong-fraction 1.5", "strong.coreset.fraction: Input should be less than or equal"
    ),
    Bad("run digits --strong craig --strong-fraction 0.01", "expected at least 10, one per class: give a fraction of"),
    Bad("run digits --strong random --policy strongest", "strong.policy.policy: Input should be 'autoaugment_cifar10'"),
    Bad("run digits --strong forgetting", "strong: warm_epochs is 0, but forgetting counts what training forgets"),
    Bad("compare digits --arms original+creig", "no selector is called 'creig'; there are all, random, max_loss"),
    Bad("compare digits --arms original+none", "no selector is called 'none'; there are all, random"),
    Bad("compare digits --arms original@original+dea", "takes its steps from 'original+dea', which is not among the"),
    Bad("retrain digits --preset table4", "no preset is called 'table4'; there are", 2),
    # Training images made harder
    Bad("run digits --set perturb.noise=some", "perturb.noise: Input should be 'none', 'symmetric' or 'asymmetric'"),
    Bad("run digits --set perturb.noise_fraction=2", "perturb.noise_fraction: Input should be less than or equal to 1"),
    # Classifiers
    Bad("run digits --set classifier.weights=SHOP/nowhere.pth", "nowhere.pth"),
    Bad("run digits --set classifier.weights=SHOP/names.csv", "names.csv"),
    Bad("run digits --model resnet", "no classifier is called 'resnet'; use small-cnn, preact-resnet18, "),
    Bad("run digits --model small_cnn --set classifier.width=0", "did you mean small-cnn?"),
    Bad("run digits --model torchvision:resnet19 --set classifier.width=0", "called 'resnet19'; near to it: resnet1"),
    Bad("run digits --model torchvision:squeezenet1_1 --set classifier.width=0", "cannot take images of 8x8"),
    Bad("run digits --model torchvision:inception_v3 --set classifier.width=0", "trains with auxiliary outputs"),
    Bad("run digits --model torchvision:resnet18", "width has no meaning for torchvision:resnet18; leave it at 0"),
    # Generators
    Bad("run digits --generator SHOP/nowhere", "expected a diffusers folder (with model_index.json)"),
    Bad("run digits --generator SHOP/empty", "expected a diffusers folder (with model_index.json)"),
    Bad("run digits --generator SHOP/notes.txt", "expected a diffusers folder (with model_index.json)"),
    Bad("run digits --generator SHOP/broken-index", "model_index.json is not valid JSON"),
    Bad("run digits --generator SHOP/another-kind", "holds None, which is no pipeline of diffusers"),
    Bad("run digits --generator SHOP/latent --kind pixel", "holds a UNet2DConditionModel, a pixel generator is"),
    Bad("run digits --generator SHOP/latent --kind diffusemix", "holds a StableDiffusionPipeline; DiffuseMix edits"),
    Bad("run digits --generator GEN --kind latent", "is a DDPMPipeline with UNet2DModel for its unet"),
    Bad("run digits --generator GEN --kind pipeline", "diffusers has no image-to-image pipeline for it"),
    Bad("run digits --kind gan", "generate.kind: Input should be 'auto', 'pixel', 'latent', 'pipeline' or"),
    Bad('run digits --set generate.loras=[\\"x.safetensors\\"]', "a pixel generator takes no loras; leave"),
    Bad('run digits --set generate.textual_inversions=[\\"x\\"]', "a pixel generator takes no textual_inversions"),
    Bad(
        'run digits --generator SHOP/latent --set generate.loras=[\\"SHOP/nowhere.safetensors\\"]',
        "is neither a safetensors file nor",
    ),
    Bad("run digits --set generate.dtype=int8", "generate.dtype: Input should be 'auto', 'float32', 'bfloat16' or"),
    Bad("run digits --generate-batch-size 0", "generate.batch_size: Input should be greater than or equal to 1, got 0"),
    Bad("run digits --processes -1", "generate.processes: Input should be greater than or equal to 0, got -1"),
    Bad("run digits --generator SHOP/no-weights", "pickled weights (.bin) are refused"),
    Bad("run digits --generator SHOP/unlabelled", "has no class embeddings, so it cannot keep the label of an image"),
    Bad("run digits --generator SHOP/few-classes", "generator few-classes knows 5 classes, the data have 10"),
    Bad(
        "run digits --generator SHOP/unguided --set sample.guidance_scale=3",
        "generator unguided has no unconditional branch, which guidance needs: set the guidance scale to 1",
    ),
    Bad("run digits --generator SHOP/coarse", "a grid of 20 steps is finer than the 10 timesteps of generator coarse"),
    Bad("run SHOP/good", "class 0 of the data is 'cat', of generator tiny it is '0'"),
    # Sampling
    Bad("run digits --sampling slow", "no sampling is called 'slow'; there are paper, balanced, fast", 2),
    Bad("run digits --set sample.sampler=euler", "sample.sampler: Input should be 'ddpm', 'ddim', 'dpm++2m' or 'lcm'"),
    Bad("run digits --set sample.steps=21", "21 steps are more than the 20 of the grid; raise sample.grid too"),
    Bad("run digits --sampling fast --set sample.steps=101", "101 steps are more than the 100 of the grid"),
    Bad("run digits --set sample.match=eye", "sample.match: Input should be 'snr', 'steps' or 'strength'"),
    Bad("run digits --set sample.grid=1001", "sample.grid: Input should be less than or equal to 1000, got 1001"),
    # Prompts
    Bad("run digits --prompt 'a digit'", "template 'a digit' must have {name} where the class's name goes"),
    Bad("run digits --prompt '{name}' --prompt '{label}'", "template '{label}' must have {name}"),
    Bad("run digits --set prompts.names=SHOP/names.csv", "names classes that do not exist, ten"),
    Bad("run digits --set prompts.names=SHOP/names.yaml", "names.yaml is no .json, .csv, .tsv or .txt file"),
    Bad("run digits --set prompts.names=SHOP/nowhere.csv", "nowhere.csv does not exist; give the path of a file"),
    # Sizes
    Bad("run digits --work-size 4", "sizes.work_size: work size 4 is too small; give 8 to 4096"),
    Bad("run digits --work-size -8", "sizes.work_size: Input should be greater than or equal to 0, got -8"),
    Bad("run digits --set sizes.filter=sinc", "sizes.filter: Input should be 'nearest', 'box', 'bilinear'"),
    Bad("run SHOP/colour", "the images are in colour and the generator makes grey ones; name a generator with 3"),
    Bad("run SHOP/wide.npz", "an image of 40x8 has one side 5.0 times the other, expected at most 4 times; crop it"),
    Bad("run SHOP/long --image-size 8 --set sizes.returned=source", "an image of 40x8 has one side 5.0 times"),
    # Scores
    Bad("run digits --set scores.judge=SHOP/nowhere", "there is no judge at"),
    Bad("run digits --set scores.judge=SHOP/names.csv", "names.csv does not hold the weights of this classifier"),
    Bad("run digits --set scores.clip=SHOP/nowhere", "nowhere is not the folder of a CLIP model: it has no"),
    Bad("run digits --set scores.safety=true", "generator tiny ships no safety checker; turn scores.safety off"),
    Bad("run digits --set quality.min_clip_score=0.2", "quality.min_clip_score is 0.2: name a CLIP model"),
    Bad("run digits --set quality.drop_unsafe=true", "quality.drop_unsafe is True: turn scores.safety on"),
    # DiffuseMix
    Bad("run digits --set diffusemix.fractal_alpha=1", "diffusemix.fractal_alpha: Input should be less than 1, got 1"),
    Bad("run digits --set diffusemix.masks=round", "diffusemix.masks: Input should be 'code' or 'paper', got 'round'"),
    # The command itself
    Bad("run digits --colour red", "No such option: --colour", 2),
    Bad("run digits flowers102", "unexpected extra argument", 2),
]


def words(command: str, shop: Path, generator: Path) -> list[str]:
    """The command as typed, and what it leaves open set right."""
    typed = shlex.split(command)
    for option, value in FINE.items():
        if option not in typed and len(typed) > 1:
            typed += [option, value]
    return [word.replace("SHOP", str(shop)).replace("GEN", str(generator)) for word in typed]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.command)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(
    bad: Bad,
    shop: Path,
    generator: Path,
    existing: Path,
    tmp_path: Path,
    latebloom: Latebloom,
    fake_flows: types.ModuleType,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = story.contents(existing), story.times(existing)
    typed = words(bad.command, shop, generator)
    for out in (["--out", existing], ["--out", "new"], []):
        outcome = latebloom(*typed, *out)
        assert outcome.code == bad.code, outcome.err
        assert outcome.out == ""
        *progress, error = outcome.err.splitlines()
        assert bad.words in error
        if bad.code == 1:
            assert error.startswith("error: ")
            assert len(progress) <= 1
            assert all(line.startswith(f"{typed[0]}: {typed[1]} in ") for line in progress)
        else:
            assert progress[0].startswith("Usage: latebloom")
            assert error.startswith("Error: ")
        assert list(tmp_path.iterdir()) == []  # neither new/ nor runs/
    assert (story.contents(existing), story.times(existing)) == before


def test_neither_source_nor_run_folder_is_wrong_usage(latebloom: Latebloom, fake_flows: types.ModuleType) -> None:
    outcome = latebloom("run")
    assert outcome.code == 2
    assert "Error: Invalid value: name a data source, or the run folder of an earlier command with --out" in outcome.err


def test_the_list_is_long() -> None:
    assert len(BAD) >= 40


def test_what_a_generator_may_not_do_well_is_a_warning_that_is_said_once(
    shop: Path, latebloom: Latebloom, fake_flows: Any, tmp_path: Path
) -> None:
    def select(config: CompareConfig, _: str) -> str:
        checks.check_inputs(config)  # as the flow does
        return "chosen"

    fake_flows.select = select
    progress.warn.cache_clear()
    words = ("--generator", shop / "latent", "--work-size", "64", "--out", tmp_path / "new")
    outcome = latebloom("select", "digits", *words)
    assert (outcome.code, outcome.out) == (0, "chosen\n")
    size, names = outcome.err.splitlines()[1:]
    assert size.startswith("warning: the generator works at 64 pixels and was trained at 16: at twice its size or more")
    assert names.startswith(
        "warning: 10 of 10 class names have no letters, from which a text model learns almost nothing"
    )


# ------------------------------------------------------------------------------------------------- around run folders


@pytest.fixture
def refused(latebloom: Latebloom, fake_flows: types.ModuleType) -> Callable[..., str]:
    """Runs a command that must be refused; its error without "error: "."""

    def call(*typed: str | Path, code: int = 1) -> str:
        outcome = latebloom(*typed)
        assert outcome.code == code, outcome
        assert outcome.out == ""
        *progress, error = outcome.err.splitlines()
        assert len(progress) <= 1
        assert error.startswith("error: ")
        return error.removeprefix("error: ")

    return call


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused(refused: Callable[..., str], generator: Path, tmp_path: Path) -> None:
    error = refused("run", "digits", "--device", "cuda", "--generator", generator, "--out", tmp_path / "new")
    assert error == "device cuda was asked for, but torch sees no GPU; use --device auto or cpu"
    assert refused("fit-generator", "digits", tmp_path / "new", "--device", "cuda") == error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "missing"),
    [("retrain", "early"), ("report", "early")],
)
def test_a_stage_without_what_it_builds_on_is_refused_and_makes_no_folder(
    command: str, missing: str, refused: Callable[..., str], generator: Path, tmp_path: Path
) -> None:
    error = refused(command, "digits", "--generator", generator, "--out", tmp_path / "new")
    assert f"has no finished stage '{missing}': run `latebloom " in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "gone"),
    [
        ("retrain", "early"),
        ("retrain", "select"),
        ("retrain", "plan"),
        ("retrain", "generate"),
        ("report", "generate"),
        ("report", "retrain-ours-3-sgd"),
    ],
)
def test_going_on_from_a_run_that_has_not_come_so_far_is_refused(
    command: str, gone: str, refused: Callable[..., str], finished: RunFolder, story: Story
) -> None:
    (finished.path / f"stages/{gone}.json").unlink()
    before = story.times(finished.path)
    assert f"{finished.path} has no finished stage '{gone}'" in refused(command, "--out", finished.path)
    assert story.times(finished.path) == before


@pytest.mark.parametrize("command", ["retrain", "report"])
def test_going_on_with_more_seeds_than_a_run_was_made_for_is_refused(
    command: str, refused: Callable[..., str], finished: RunFolder, story: Story
) -> None:
    before = story.times(finished.path)
    assert "was made for 2 seeds, not 3" in refused(command, "--out", finished.path, "--seeds", "3")
    assert story.times(finished.path) == before


@pytest.mark.parametrize("command", ["run", "compare", "select", "plan", "generate", "retrain", "report"])
def test_a_folder_that_is_no_run_is_refused_where_no_source_is_named(
    command: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "is no run folder: it has no config.json; name a data source" in refused(command, "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"colour": "red"}', '{"train": {"lr": -1}}'])
def test_a_run_folder_with_a_config_that_is_none_is_refused(
    content: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert refused("report", "--out", tmp_path)
    assert (tmp_path / "config.json").read_text() == content


@pytest.mark.parametrize("place", ["mine.txt", "mine.txt/run"])
def test_out_that_is_a_file_or_below_one_is_refused_and_the_file_stays(
    place: str, refused: Callable[..., str], generator: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    error = refused("run", "digits", "--generator", generator, "--out", tmp_path / place)
    assert error.startswith(f"{tmp_path / 'mine.txt'} is a file, so {tmp_path / place} cannot be a run folder")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_run_does_not_turn_a_comparison_into_one_setting(
    refused: Callable[..., str], finished: RunFolder, story: Story
) -> None:
    before = story.times(finished.path)
    error = refused("run", "--out", finished.path)
    assert error == f"{finished.path} holds a comparison; go on with `latebloom compare --out {finished.path}`"
    assert story.times(finished.path) == before


# ------------------------------------------------------------------------------------------------- fit-generator


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        ("digits NEW --steps 0", "generator.steps: Input should be greater than or equal to 1, got 0"),
        ("digits NEW --channels 12", "channels are positive multiples of 8 (for GroupNorm), got (12,)"),
        ("digits NEW --split test", "split: Input should be 'generator' or 'train', got 'test'"),
        ("SHOP/good NEW --split generator", "has no images kept apart for a generator; use --split train"),
        ("SHOP/nowhere NEW", "is neither a data set's name nor a path that exists"),
        ("SHOP/unreadable NEW", "cannot be read as an image"),
        ("digits NEW --set generator.depth=3", "generator.depth: there is no such setting"),
        ("digits SHOP/good", "is not empty and holds something else; give another folder"),
        ("digits SHOP/notes.txt", "is a file; give a folder that is new or empty"),
        ("digits GEN", "is not empty and holds something else; give another folder"),  # of other images
    ],
)
def test_a_generator_that_cannot_be_fitted_is_refused(
    typed: str,
    error: str,
    refused: Callable[..., str],
    shop: Path,
    generator: Path,
    tmp_path: Path,
    story: Story,
) -> None:
    before = story.times(shop), story.times(generator)
    places = {"SHOP": shop, "GEN": generator, "NEW": tmp_path / "new"}
    for name, path in places.items():
        typed = typed.replace(name, str(path))
    assert error in refused("fit-generator", *typed.split())
    assert list(tmp_path.iterdir()) == []
    assert (story.times(shop), story.times(generator)) == before


def test_channels_that_are_no_numbers_are_wrong_usage(
    latebloom: Latebloom, fake_flows: types.ModuleType, tmp_path: Path
) -> None:
    outcome = latebloom("fit-generator", "digits", tmp_path / "new", "--channels", "many")
    assert outcome.code == 2
    assert "expected whole numbers with commas between, got 'many'" in outcome.err


# ------------------------------------------------------------------------------------------------- and errors later on


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond   third"), "error: first second third"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (PermissionError(13, "Permission denied", "x"), "error: [Errno 13] Permission denied: 'x'"),
        (FloatingPointError("the training loss became nan"), "error: the training loss became nan"),
    ],
)
def test_an_error_that_a_person_can_mend_is_one_line_even_from_within_a_flow(
    error: Exception, line: str, latebloom: Latebloom, fake_flows: Any, generator: Path, tmp_path: Path
) -> None:
    def select(*_: object) -> None:
        raise error

    fake_flows.select = select
    outcome = latebloom("select", "digits", "--generator", generator, "--out", tmp_path / "new")
    assert outcome.code == 1
    assert outcome.err.splitlines()[1:] == [line]


def test_a_data_set_that_is_made_in_part_ends_with_3_and_the_command_that_makes_the_rest(
    latebloom: Latebloom, fake_flows: Any, generator: Path, tmp_path: Path
) -> None:
    def generate(*_: object) -> None:
        raise Partial("2 could not be made, listed in\nx.json")

    fake_flows.generate = generate
    words = ("generate", "digits", "--generator", generator, "--out", tmp_path / "my run", "--prompt", "a {name}")
    outcome = latebloom(*words)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.splitlines()[1:] == [
        "partial: 2 could not be made, listed in x.json",
        f"make the rest: latebloom generate digits --generator {generator} --out '{tmp_path}/my run' "
        "--prompt 'a {name}'",
    ]


def test_a_hub_id_that_cannot_be_fetched_is_refused_in_one_line(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find a cached snapshot folder.\nPlease check.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    error = refused("run", "digits", "--generator", "somebody/model", "--out", tmp_path / "new")
    assert error.startswith(
        "generator 'somebody/model' is no folder here and could not be fetched from the hub (Cannot"
    )
    assert error.endswith("); check its id and revision, or download it and give the path")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_an_error_of_ours_is_not_hidden(
    error: type[Exception], latebloom: Latebloom, fake_flows: Any, generator: Path, tmp_path: Path
) -> None:
    def select(*_: object) -> None:
        raise error("a bug")

    fake_flows.select = select
    with pytest.raises(error, match="a bug"):
        latebloom("select", "digits", "--generator", generator, "--out", tmp_path / "new")

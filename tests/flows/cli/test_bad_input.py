"""Bad input on the command line: one line that says what to do, before a server starts or a file is written."""

import io
import json
import re
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
RunCommand = Callable[..., Any]
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
def bad_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of settings files that are none."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "broken.toml").write_text("[train\nlr = 1")
    (folder / "unknown.toml").write_text("[train]\nlearning_rate = 1\n")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "text.yaml").write_text("train: 1")
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, generator: Path) -> Path:
    """A folder of bad things, each in one respect."""
    shop = tmp_path_factory.mktemp("shop")
    (shop / "notes.txt").write_text("hello")
    image_folder(shop / "good")
    digits = {"cat": "0", "dog": "1"}
    image_folder(shop / "colour", mode="RGB", names=digits)
    (shop / "names.csv").write_text("class,name\n0,nought\nten,ten\n")
    save_tiny_sd(shop / "latent")
    (shop / "no-test" / "train" / "cat").mkdir(parents=True)
    image_folder(shop / "empty-class", {"train/eel/1.png": None})
    image_folder(shop / "unreadable", {"train/cat/bad.png": b"this is no image"})
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    image_folder(shop / "cut-off-test", {"test/cat/bad.png": buffer.getvalue()[:60]})
    image_folder(shop / "mixed", {"train/dog/large.png": png((9, 8))})
    npz(shop / "label.npz", class_names=np.array(["cat", "dog"]), train_labels=np.array([0, 1, 0, 1, 0, 5]))
    wide = {"train_images": np.zeros((6, 8, 40), np.uint8), "test_images": np.zeros((2, 8, 40), np.uint8)}
    npz(shop / "wide.npz", **wide)
    (shop / "zip.npz").write_bytes(b"PK no more")
    ten = tuple("0123456789")
    save_unet(shop / "unguided", ten, num_class_embeds=10)
    save_unet(shop / "coarse", ten, timesteps=10)
    save_unet(shop / "few-classes", ten[:5], num_class_embeds=6)
    save_unet(shop / "unnamed", (), num_class_embeds=10)
    for name in ("broken-index", "no-weights"):
        shutil.copytree(generator, shop / name)
    (shop / "broken-index" / "model_index.json").write_text("{")
    (shop / "no-weights" / "unet" / "diffusion_pytorch_model.safetensors").rename(
        shop / "no-weights" / "unet" / "w.bin"
    )
    return shop


# ------------------------------------------------------------------------------------------------- one after another

# What is wrong with the command or a setting: exit code 2. How each setting is checked is tested where it is defined.
WRONG_USAGE = [
    # Options and arguments
    ("run digits --colour red", "No such option: --colour (Possible options: --out); see `latebloom run --help`"),
    (
        "report --epochs 3",
        "latebloom report has no option --epochs, which is for run, compare, select, plan, ",
    ),
    (
        "run digits --seeds 3",
        "latebloom run has no option --seeds, which is for compare, select, plan, ",
    ),
    ("run digits flowers102", "unexpected extra argument"),
    ("fit-generator digits", "Missing argument 'OUT'; see `latebloom fit-generator --help`"),
    ("rum digits", "No such command 'rum'"),
    ("run", "neither a data source nor a run folder is named; give a SOURCE, or --out of an earlier run"),
    ("run digits --set seeds=3", "run is one setting and one seed; seeds can be given to compare"),
    ("run digits --levels eight", "got 'eight', expected whole numbers with commas between, such as 40,50"),
    ("run digits --levels 8,8.5", "got '8,8.5', expected whole numbers"),
    ("run digits --epochs many", "train.epochs is 'many'; expected a valid integer"),
    ("run digits --k 1", "plan.k is 1; expected at least 2"),
    ("run digits --image-size 4", "image size 4 is too small"),
    ("run digits --device tpu", "device is 'tpu'; expected 'auto', 'cpu' or 'cuda'"),
    ("run digits --strong creig", "strong.selector is 'creig'; expected 'none', 'all', 'random'"),
    ("run digits --prompt 'a digit'", "template 'a digit' must have {name} where the class's name goes"),
    ("retrain digits --strong-fraction 1.5", "strong.coreset.fraction is 1.5; expected at most 1"),
    ("select digits --workers 0", "workers is 0; expected at least 1"),
    ("generate digits --max-seconds -1", "max_seconds is -1; expected at least 0"),
    ("generate digits --until noon", "until: "),
    ("coreset digits --method craig --seeds 2", "craig asks one classifier, got 2 seeds; several are for el2n"),
    ("coreset digits --with-synthetic", "only a run folder has synthetic images"),
    (
        "coreset digits --method forgetting --checkpoint x",
        "forgetting counts what is forgotten in a training of its own",
    ),
    ("coreset digits --method creig", "coreset.method is 'creig'; expected 'random', "),
    ("fit-generator digits NEW --channels many", "got 'many', expected whole numbers with commas between"),
    ("fit-generator digits NEW --split test", "split is 'test'; expected 'generator' or 'train'"),
    ("inspect RUN item --sheet state", "give an image or --sheet, not both"),
    # --set and --config
    ("run digits --set train.lr", "--set got 'train.lr', expected KEY=VALUE"),
    ("run digits --set =1", "--set got '=1', expected KEY=VALUE"),
    ("run digits --set train.lr=fast", "train.lr is 'fast'; expected a valid number"),
    ("run digits --set train.lr=-1", "train.lr is -1; expected greater than 0"),
    ("run digits --set train=5 --set train.lr=1", "train.lr is no setting: train has no settings of its own"),
    ("run digits --set data=digits", "data is 'digits'; expected a valid dictionary or instance of DataConfig"),
    ("plan digits --set train_states=[foo]", "train_states.0 is 'foo'; expected 'ok', 'nan', "),
    ("run digits --config SHOP/nowhere.toml", "there is no config file at"),
    ("run digits --config SHOP/text.yaml", "text.yaml is neither .toml nor .json"),
    ("run digits --config SHOP/broken.toml", "broken.toml cannot be read"),
    ("run digits --config SHOP/list.json", "list.json holds a list, expected settings by name"),
    # Names that are none: the nearest, and the command that lists all
    ("run digits --set train.learning_rate=1", "there is no setting 'train.learning_rate'; near to it: train.lr"),
    ("run digits --set nonsense.xyzzyq=1", "there is no setting 'nonsense.xyzzyq'; `latebloom settings` lists all"),
    ("run digits --config SHOP/unknown.toml", "there is no setting 'train.learning_rate'; near to it: train.lr"),
    ("coreset digits --set coreset.fracton=1", "there is no setting 'coreset.fracton'; near to it: coreset.fraction"),
    ("fit-generator digits NEW --set generator.depth=3", "`latebloom settings --of fit-generator` lists all"),
    ("settings trian", "there is no setting 'trian'; near to it: train"),
    ("settings --of compare", "--of got 'compare', expected one of run, coreset, fit-generator"),
    ("retrain digits --preset table4", "no preset is called 'table4'; there are tada-cifar10"),
    ("coreset digits --preset tada-cifar10", "preset tada-cifar10 selects no coreset; give --method and --fraction"),
    ("run digits --sampling slow", "no sampling is called 'slow'; there are paper, balanced, fast"),
    # What does not go together
    ("run digits --k 2 --levels 101", "level 101 of 100 does not exist: levels go from 1 to 100"),
    ("run digits --set sample.grid=25", "levels (40, 50, 70, 80) of 100 do not fall on a grid of 25 steps"),
    ("compare digits --arms ours-2:L101", "level 101 of 100 does not exist: levels go from 1 to 100"),
    ("compare digits --arms ours-2:L50-70", "arm 'ours-2:L50-70' names 2 levels, and k = 2 needs 1"),
    ("run digits --sampling fast --set sample.steps=101", "101 steps are more than the 100 of the grid"),
    (
        "run digits --strong forgetting",
        "strong: warm_epochs is 0, but forgetting counts what training forgets",
    ),
    ("compare digits --arms theirs-5", "no arm is called 'theirs-5'; an arm is one of original, upsample-K, ours-K"),
    ("compare digits --arms original@ours-5", "takes its steps from 'ours-5', which is not among the arms"),
    ("compare digits --arms ,", "arms is []; tuple should have at least 1 item"),
    ("compare digits --optimizers sgd,adam", "optimizers.1 is 'adam'; expected 'sgd', 'sam' or 'adahessian'"),
    ("compare digits --coreset x.npz --arms original", "no arm trains on it; give --arms one such as original+file"),
]

# What the data, the generator or the run folder are not: exit code 1.
BAD_INPUT = [
    # Sources
    ("run SHOP/nowhere", "is neither a data set's name nor a path that exists; the names are digits, cifar10"),
    ("run cifr10", "(did you mean cifar10?)"),
    ("run SHOP/notes.txt", "is a file of a kind that is not understood"),
    ("run SHOP/no-test", "holds train, and no images, tables or arrays; expected"),
    ("run SHOP/empty-class", "train/eel holds no images; add some or remove the folder"),
    ("run SHOP/unreadable", "train/cat/bad.png cannot be read as an image"),
    ("compare SHOP/cut-off-test --arms original", "test/cat/bad.png cannot be read as an image"),
    ("run SHOP/mixed", "give an image size (--image-size)"),
    ("run SHOP/label.npz", "train_images[5] has label 5, but the classes of"),
    ("run SHOP/zip.npz", "is not an .npz archive, or it is damaged"),
    ("run digits --train-limit 201", "train_limit is 201 but digits train has 200 images"),
    # Classifiers and strong copies
    ("run digits --model resnet", "no classifier is called 'resnet'; use small-cnn, preact-resnet18, "),
    ("run digits --model torchvision:resnet18", "width has no meaning for torchvision:resnet18; leave it at 0"),
    ("run digits --set classifier.weights=SHOP/nowhere.pth", "nowhere.pth"),
    ("run digits --separating-epoch 31", "separating epoch 31 lies beyond the 30 epochs of training"),
    ("run digits --strong craig --strong-fraction 0.01", "expected at least 10, one per class: give a fraction of"),
    ("plan digits --arms original", "none of the arms (original) needs images to be made"),
    # Generators
    ("run digits --generator SHOP/nowhere", "expected a diffusers folder (with model_index.json)"),
    ("run digits --generator SHOP/broken-index", "model_index.json is not valid JSON"),
    ("run digits --generator SHOP/latent --kind pixel", "holds a UNet2DConditionModel, expected a UNet2DModel"),
    ("run digits --generator SHOP/no-weights", "has unet only as a pickle (w.bin), which is refused"),
    (
        "run digits --generator SHOP/few-classes",
        "class '5' of the data is none of the generator's 5 classes",
    ),
    (
        "run digits --generator SHOP/unguided --set sample.guidance_scale=3",
        "generator unguided has no unconditional branch, which guidance needs: set the guidance scale to 1",
    ),
    ("run digits --generator SHOP/coarse", "a grid of 100 steps is finer than the 10 timesteps of generator coarse"),
    ("run SHOP/good", "class 'cat' of the data is none of the generator's 10 classes"),
    (
        "run SHOP/good --generator SHOP/unnamed --set sample.guidance_scale=1",
        "which of them is 'cat' is not known; set generate.classes=order",
    ),
    (
        "run SHOP/good --generator SHOP/unguided --set sample.guidance_scale=3",
        "which guidance needs: set the guidance scale to 1; and ",
    ),
    ("run digits --set generate.classes=nowhere.json", "class-name map nowhere.json does not exist"),
    # Prompts, sizes, scores
    ("run digits --set prompts.names=SHOP/names.csv", "names classes that do not exist, ten"),
    ("run SHOP/colour", "the images are in colour and the generator makes grey ones; name a generator with 3"),
    ("run SHOP/wide.npz", "an image of 40x8 has one side 5.0 times the other, expected at most 4 times; crop it"),
    (
        "run digits --set scores.clip=SHOP/nowhere",
        "the folder of a CLIP model",
    ),
    ("run digits --set scores.safety=true", "generator tiny ships no safety checker; turn scores.safety off"),
    ("run digits --set quality.min_clip_score=0.2", "quality.min_clip_score is 0.2: name a CLIP model"),
    # fit-generator
    ("fit-generator SHOP/good NEW --split generator", "has no images kept apart for a generator; use --split train"),
    ("fit-generator digits SHOP/good", "is not empty and holds something else; give another folder"),
    ("fit-generator digits SHOP/notes.txt", "is a file; give a folder that is new or empty"),
]


def typed(command: str, shop: Path, generator: Path, new: Path) -> list[str]:
    """The command's words. Where the generator or the classifier are not what is wrong, they are right."""
    words = shlex.split(command)
    options = {"--generator": str(generator), "--model": "small-cnn"}
    takes = {"run": options, "compare": options, "plan": options}
    for name, value in takes.get(words[0], {}).items():
        if name not in words and len(words) > 1:
            words += [name, value]
    places = {"SHOP": shop, "NEW": new, "RUN": new}
    return [re.sub("SHOP|NEW|RUN", lambda found: str(places[found[0]]), word) for word in words]


@pytest.mark.parametrize(("command", "message"), WRONG_USAGE, ids=[command for command, _ in WRONG_USAGE])
def test_wrong_usage_is_one_line_and_exit_code_2(
    command: str,
    message: str,
    run_command: RunCommand,
    bad_texts: Path,
    tmp_path: Path,
    fake_flows: Any,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_command(*typed(command, bad_texts, tmp_path, tmp_path / "new"))
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []  # neither new/ nor runs/


@pytest.mark.parametrize(("command", "message"), BAD_INPUT, ids=[command for command, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_1(
    command: str,
    message: str,
    run_command: RunCommand,
    shop: Path,
    generator: Path,
    tmp_path: Path,
    fake_flows: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_command(*typed(command, shop, generator, tmp_path / "new"))
    assert (outcome.code, outcome.out) == (1, "")
    *progress, line = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    progress = [line for line in progress if not line.startswith("warning: ")]  # the shop has pictures in two splits
    assert len(progress) <= 1  # what is begun with, and in which folder
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run digits --k 1", "run cifr10", "run digits --generator SHOP/nowhere"])
def test_bad_input_leaves_a_run_folder_as_it_is(
    command: str, run_command: RunCommand, shop: Path, finished: RunFolder, story: Story, fake_flows: Any
) -> None:
    before = story.contents(finished.path), story.times(finished.path)
    assert run_command(*typed(command, shop, shop, shop), "--out", finished.path).code in (1, 2)
    assert (story.contents(finished.path), story.times(finished.path)) == before


def test_what_a_generator_may_not_do_well_is_a_warning_that_is_said_once(
    shop: Path, run_command: RunCommand, fake_flows: Any, tmp_path: Path
) -> None:
    def plan(config: CompareConfig, _: str) -> str:
        checks.check_inputs(config)  # as the flow does
        raise ValueError("enough")

    fake_flows.plan = plan
    progress.warn.cache_clear()
    words = ("--generator", shop / "latent", "--work-size", "64", "--out", tmp_path / "new")
    outcome = run_command("plan", "digits", *words)
    assert (outcome.code, outcome.out) == (1, "")
    size, names, _ = outcome.err.splitlines()[1:]
    assert size.startswith("warning: the generator works at 64 pixels and was trained at 16: at twice its size or more")
    assert names.startswith(
        "warning: 10 of 10 class names have no letters, from which a text model learns almost nothing"
    )


# ------------------------------------------------------------------------------------------------- around run folders


@pytest.fixture
def refused(run_command: RunCommand, fake_flows: types.ModuleType) -> Callable[..., str]:
    """Runs a command that must be refused; its error without "error: "."""

    def call(*typed: str | Path, code: int = 1) -> str:
        outcome = run_command(*typed)
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


@pytest.mark.parametrize("command", ["retrain", "report"])
def test_a_stage_without_what_it_builds_on_is_refused_and_makes_no_folder(
    command: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    error = refused(command, "digits", "--out", tmp_path / "new")
    assert "has no finished stage 'early': run `latebloom " in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "gone"),
    [("retrain", "plan"), ("retrain", "generate"), ("report", "generate"), ("report", "retrain-ours-3-sgd")],
)
def test_going_on_from_a_run_that_has_not_come_so_far_is_refused(
    command: str, gone: str, refused: Callable[..., str], finished: RunFolder, story: Story
) -> None:
    (finished.path / f"stages/{gone}.json").unlink()
    before = story.times(finished.path)
    assert f"{finished.path} has no finished stage '{gone}'" in refused(command, "--out", finished.path)
    assert story.times(finished.path) == before


def test_going_on_with_more_seeds_than_a_run_was_made_for_is_refused(
    refused: Callable[..., str], finished: RunFolder, story: Story
) -> None:
    before = story.times(finished.path)
    for command in ("retrain", "report"):
        assert "was made for 2 seeds, not 3" in refused(command, "--out", finished.path, "--seeds", "3")
    assert story.times(finished.path) == before


@pytest.mark.parametrize("command", ["run", "report", "coreset"])
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


# ------------------------------------------------------------------------------------------------- and errors later on


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond   third"), "error: first second third"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (FloatingPointError("the training loss became nan"), "error: the training loss became nan"),
    ],
)
def test_an_error_that_a_person_can_fix_is_one_line_even_from_within_a_flow(
    error: Exception, line: str, run_command: RunCommand, fake_flows: Any, generator: Path, tmp_path: Path
) -> None:
    def select(*_: object) -> None:
        raise error

    fake_flows.select = select
    outcome = run_command("select", "digits", "--out", tmp_path / "new")
    assert outcome.code == 1
    assert outcome.err.splitlines()[1:] == [line]


def test_a_data_set_that_is_made_in_part_ends_with_3_and_the_command_that_makes_the_rest(
    run_command: RunCommand, fake_flows: Any, generator: Path, tmp_path: Path
) -> None:
    def generate(*_: object) -> None:
        raise Partial("2 could not be made, listed in\nx.json")

    fake_flows.generate = generate
    words = ("generate", "digits", "--generator", generator, "--out", tmp_path / "my run", "--prompt", "a {name}")
    outcome = run_command(*words)
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
    error: type[Exception], run_command: RunCommand, fake_flows: Any, generator: Path, tmp_path: Path
) -> None:
    def select(*_: object) -> None:
        raise error("a bug")

    fake_flows.select = select
    with pytest.raises(error, match="a bug"):
        run_command("select", "digits", "--out", tmp_path / "new")

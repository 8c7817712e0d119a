"""The options that commands share, each with its line of help."""

from typing import Annotated, Any

import typer

__all__ = [
    "Arms",
    "BatchSize",
    "ConfigFile",
    "Coreset",
    "Device",
    "Epochs",
    "Generator",
    "ImageSize",
    "Json",
    "K",
    "Kind",
    "Levels",
    "MakeBatch",
    "MaxSeconds",
    "Model",
    "Optimizer",
    "Optimizers",
    "Out",
    "Policy",
    "Preset",
    "Processes",
    "Prompt",
    "Sampling",
    "Seed",
    "Seeds",
    "Separating",
    "Settings",
    "Source",
    "Strong",
    "StrongFraction",
    "TestLimit",
    "TrainLimit",
    "Until",
    "WorkSize",
    "Workers",
    "option",
]

Source = Annotated[
    str,
    typer.Argument(
        help="digits, cifar10, cifar100, svhn, flowers102, fgvc-aircraft, stanford-cars, tiny-imagenet, caltech256, or "
        "a path: an image folder (train/CLASS/*, test/CLASS/*), a MedMNIST-style .npz, a folder of Hugging Face "
        "parquet. Left out: that of the run folder",
        show_default=False,
    ),
]


def option(words: str, *names: str) -> Any:
    """An option that is left out unless it is given: what it is then, the config says."""
    return typer.Option(*names, help=words, show_default=False)


Out = Annotated[str | None, option("Run folder, path or URL [runs/SOURCE]", "--out", "-o")]
Json = Annotated[bool, option("Print the result as JSON on standard output", "--json")]
ConfigFile = Annotated[str | None, option("Settings from a .toml or .json file", "--config", "-c")]
Settings = Annotated[
    list[str] | None,
    option("Any setting as KEY=VALUE, such as train.lr=0.05 or plan.levels=[40,50]; repeatable", "--set", "-s"),
]
Generator = Annotated[
    str | None, option("A shipped generator, the path of a diffusers folder, or a hub id", "--generator", "-g")
]
Kind = Annotated[str | None, option("auto, pixel, latent, pipeline or diffusemix", "--kind")]
Sampling = Annotated[
    str | None,
    option(
        "paper (100 ancestral steps, guidance 3), balanced (25 of DPM-Solver++) or fast (8, for LCM and Turbo models)",
        "--sampling",
    ),
]
Prompt = Annotated[
    list[str] | None, option('Prompt with {name} for the class, such as "a photo of a {name}"; repeatable', "--prompt")
]
WorkSize = Annotated[int | None, option("Shorter side in pixels that the generator sees", "--work-size")]
MakeBatch = Annotated[int | None, option("Images denoised together, at most", "--generate-batch-size")]
Processes = Annotated[int | None, option("Processes that generate; 0: one a GPU", "--processes")]
K = Annotated[int | None, option("Images per slow example, the real one counted", "--k")]
Levels = Annotated[str | None, option("k - 1 levels in steps of the grid, such as 40,50,70,80", "--levels")]
Epochs = Annotated[int | None, option("Epochs of training", "--epochs")]
BatchSize = Annotated[int | None, option("Images a training step", "--batch-size")]
Model = Annotated[
    str | None,
    option(
        "small-cnn, preact-resnet18, resnet18, resnet20, resnet32, wrn-28-10, vit-s4, torchvision:NAME or timm:NAME",
        "--model",
    ),
]
Optimizer = Annotated[str | None, option("sgd, sam or adahessian", "--optimizer")]
Preset = Annotated[
    str | None, option("Settings of a row of the papers, such as dea-cifar10-table4; see latebloom presets", "--preset")
]
Strong = Annotated[
    str | None,
    option("Who gets strongly augmented copies in retraining: all, random, craig, dea, max_loss, ...", "--strong"),
]
StrongFraction = Annotated[
    float | None, option("Share of the training set that gets them, above 0 to 1", "--strong-fraction")
]
Coreset = Annotated[
    str | None,
    option(
        "A coreset-METHOD.npz that latebloom coreset wrote: retrain on its images alone, or as strong.main, "
        "strong.copies and --arms such as original+file say",
        "--coreset",
    ),
]
Policy = Annotated[
    str | None, option("Strong augmentation: randaugment, trivialaugment, augmix, cutout, wu2020, ...", "--policy")
]
ImageSize = Annotated[int | None, option("Resize the shorter side and cut square, in pixels", "--image-size")]
TrainLimit = Annotated[int | None, option("Use a stratified draw of so many training images", "--train-limit")]
TestLimit = Annotated[int | None, option("Use a stratified draw of so many test images", "--test-limit")]
Separating = Annotated[
    int | None, option("Epoch of early training to judge by; 0 finds the knee", "--separating-epoch")
]
Seed = Annotated[int | None, option("Root of every random stream", "--seed")]
Device = Annotated[str | None, option("auto, cpu or cuda", "--device")]
Arms = Annotated[
    str | None, option("Arms to compare, such as original,upsample-2,random-5,ours-5,ours-5+craig", "--arms")
]
Optimizers = Annotated[str | None, option("Of sgd,sam,adahessian one or more", "--optimizers")]
Seeds = Annotated[int | None, option("Classifiers an arm", "--seeds")]
MaxSeconds = Annotated[
    int, option("Begin nothing that would not end within so many seconds; the same command goes on", "--max-seconds")
]
Until = Annotated[
    str, option("The same until a time: 07:00, or 22:00-07:00 Europe/Berlin to work only within hours", "--until")
]
Workers = Annotated[int | None, option("Processes that train classifiers side by side", "--workers")]

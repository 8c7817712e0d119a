import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hub import Hub, served_hub
from safetensors.torch import save_file

from latebloom.synth.config import GenerateConfig
from latebloom.synth.generators.find import generator_folder, kind_of
from latebloom.synth.generators.hub import fetch, wanted_files
from latebloom.synth.generators.load import load_generator

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
# As the repository of Stable Diffusion 1.5 has them.
WANTED = [
    "model_index.json",
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]
SAFETY = ["safety_checker/config.json", "safety_checker/model.safetensors"]
UNWANTED = [
    ".gitattributes",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "safety_checker/model.fp16.safetensors",
    "safety_checker/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.bin",
    "text_encoder/openvino_model.xml",
    "text_encoder/pytorch_model.bin",
    "unet/custom.py",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files = {file: file.encode() for file in [*WANTED, *SAFETY, *UNWANTED]}
    fetch.cache_clear()
    with served_hub(files | {"model_index.json": json.dumps(INDEX).encode()}, tmp_path / "hub") as served:
        yield served


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def config(**settings: str) -> GenerateConfig:
    return GenerateConfig(generator="some/model", **settings)


def test_one_format_and_one_precision_of_the_parts_that_are_used_is_downloaded(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = generator_folder(config())
    assert files_in(folder) == sorted(WANTED)
    assert kind_of(config()) == "latent"
    size = sum(len(hub.files[file]) for file in WANTED[2:])
    said = f"downloading 7 of 26 files, {size} bytes, of some/model at {hub.commit} to {folder}\n"
    assert said in capfd.readouterr().err
    # The safety checker once it is asked for, and nothing twice.
    assert generator_folder(config(), safety=True) == folder
    assert files_in(folder) == sorted(WANTED + SAFETY)
    assert sorted(hub.asked) == sorted((file, 0) for file in WANTED + SAFETY)
    fetch.cache_clear()
    assert generator_folder(config()) == folder
    assert len(hub.asked) == len(WANTED + SAFETY)


def test_for_configs_no_weights_are_downloaded(hub: Hub) -> None:
    assert files_in(fetch("some/model", weights="none")) == [
        file for file in sorted(WANTED) if not file.endswith("safetensors")
    ]


def test_a_file_with_a_network_alone_takes_all_other_weights_from_its_base(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file({"model.diffusion_model.x": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read with the configs of"):
        generator_folder(GenerateConfig(generator=str(tmp_path / "a.safetensors"), base="some/model"))
    assert sorted(file for file, _ in hub.asked) == [
        file for file in sorted(WANTED) if not (file.startswith("unet/") and file.endswith("safetensors"))
    ]


def test_the_weights_of_a_part(subtests: pytest.Subtests) -> None:
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    fp16 = [file.replace("model-", "model.fp16-") for file in shards]
    old = [file.replace(".safetensors", ".fp16.safetensors") for file in shards]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    index16 = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    single = "unet/diffusion_pytorch_model.safetensors"
    for name, there, taken in [
        ("shards", [*shards, index, *fp16, index16], [*shards, index]),
        ("only fp16", [*fp16, index16, "unet/diffusion_pytorch_model.non_ema.safetensors"], [*fp16, index16]),
        ("only fp16, older names", [*old, index16], [*old, index16]),
        ("whole and in shards", [single, *shards, index], [single]),
        ("one of another precision", ["unet/model.bf16.safetensors"], ["unet/model.bf16.safetensors"]),
        ("some shards are missing", [shards[0], index, *fp16, index16], [*fp16, index16]),
    ]:
        with subtests.test(name):
            files = dict.fromkeys(there, 1)
            assert sorted(wanted_files("some/model", files, ["unet"])) == sorted(taken)
    for there, message in [
        (
            ["unet/diffusion_pytorch_model.bin"],
            r"^some/model has its unet only as a pickle \(diffusion_py.*\.bin\), which",
        ),
        (
            [f"unet/diffusion_pytorch_model.{mark}.safetensors" for mark in ("bf16", "ema")],
            r"^some/model has of its unet only diffusion_py.*\.bf16\.safetensors, .*\.ema\.saf",
        ),
        (
            [shards[0], index],
            "^some/model has of its unet only diffusion_py.*1-of-00002.safetensors, expected all weights",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            wanted_files("some/model", dict.fromkeys(there, 1), ["unet"])


def test_a_download_that_breaks_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    hub.files[weights] = bytes(range(256)) * 400
    hub.breaks_after = 100_000
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    with patch("huggingface_hub.file_download.time.sleep"):
        folder = fetch("some/model")
    assert (folder / weights).read_bytes() == hub.files[weights]
    assert [begin for file, begin in hub.asked if file == weights] == [0, 100_000]

    # Stopped by a person and asked for again: what is whole is kept.
    fetch.cache_clear()
    (folder / weights).resolve().unlink()
    (folder / weights).unlink()
    with (
        patch("huggingface_hub.file_download.time.sleep", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        fetch("some/model")
    hub.asked.clear()
    hub.breaks_after = None
    assert fetch("some/model") == folder
    assert hub.asked == [(weights, 0)]
    assert files_in(folder) == sorted(WANTED)


def test_the_commit_is_part_of_the_name(hub: Hub) -> None:
    digits = generator_folder(GenerateConfig(generator="digits"))
    hub.files = {file: (digits / file).read_bytes() for file in files_in(digits)}
    assert load_generator(config(revision="v2")).name == f"some/model@{hub.commit}"


def test_a_full_disk_is_said_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["unet/diffusion_pytorch_model.safetensors"] = bytes(100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=50_000))
    message = r"no room for the download of some/model: it needs about 100\.\d kB, 50\.0 kB are free"
    with pytest.raises(OSError, match=message):
        fetch("some/model")
    assert {file for file, _ in hub.asked} == set(WANTED[:2])


def test_without_a_connection_the_cache_is_taken_where_it_is_whole(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = r"^generator '.*' is no folder here and could not be fetched from the hub \(.*\); check its id"
    fetch("some/model", weights="none")
    for cached in (False, True):
        if cached:
            folder = fetch("some/model")
        fetch.cache_clear()
        with monkeypatch.context() as offline:
            offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            if cached:
                assert fetch("some/model") == folder
            else:
                with pytest.raises(ValueError, match=refused):
                    fetch("some/model")
    with pytest.raises(ValueError, match=refused):
        fetch("no id/at all")


def test_a_repository_without_a_folder_is_refused_with_what_it_holds(hub: Hub) -> None:
    hub.files = {"b.safetensors": b"12345", "a.ckpt": b"1"}
    message = (
        r"holds no diffusers folder .* but files of weights: b\.safetensors \(5 bytes\); download one with `hf download"
    )
    with pytest.raises(ValueError, match=message):
        generator_folder(config())
    fetch.cache_clear()
    hub.files, hub.commit = {"a.ckpt": b"1"}, "1" * 40
    with pytest.raises(ValueError, match=r"^some/model holds no diffusers folder .* and no safetensors; give another"):
        kind_of(config())

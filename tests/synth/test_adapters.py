from pathlib import Path

import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import save_file

from synth.adapters import find_lora, find_textual_inversion


def empty(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def test_a_lora_is_a_path_and_perhaps_a_scale(tmp_path: Path) -> None:
    file = empty(tmp_path / "at@home" / "style.safetensors")
    assert find_lora(str(file)) == (file, 1.0)
    assert find_lora(f"{file}@0.8") == (file, 0.8)
    assert find_lora(f"{file}@-1") == (file, -1.0)
    assert find_lora(f"{file.parent}@0") == (file, 0.0)


def test_a_folder_stands_for_the_usual_file_or_its_only_one(tmp_path: Path) -> None:
    other = empty(tmp_path / "other.safetensors")
    assert find_lora(str(tmp_path))[0] == other
    usual = empty(tmp_path / "pytorch_lora_weights.safetensors")
    assert find_lora(str(tmp_path))[0] == usual


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora.bin", r"lora\.bin is neither a safetensors file nor a folder with just one .* pickles .* are refused"),
        ("nothing@0.5", "nothing is neither a safetensors file"),
        ("two/a.safetensors@much", "@much is neither a safetensors file"),
        ("two", r"two is neither .* with just one \(it has 2\); name the file itself"),
        ("two/a.safetensors@nan", "has a scale that is not finite; write it as path@0.8"),
        ("two/a.safetensors@inf", "has a scale that is not finite"),
    ],
)
def test_a_lora_that_cannot_be_found_is_told_why(tmp_path: Path, name: str, message: str) -> None:
    for file in ("lora.bin", "two/a.safetensors", "two/b.safetensors"):
        empty(tmp_path / file)
    with pytest.raises(ValueError, match=message):
        find_lora(str(tmp_path / name))


def test_a_word_is_the_tensors_name_or_for_automatic1111_the_files(tmp_path: Path) -> None:
    file = tiny.save_tiny_textual_inversion(tmp_path / "one" / "learned_embeds.safetensors", "<blob>")
    assert find_textual_inversion(file.parent, 32) == (file, "<blob>")
    file = tiny.save_tiny_textual_inversion(tmp_path / "blobby.safetensors", "emb_params", vectors=3)
    assert find_textual_inversion(file, 32) == (file, "blobby")


def test_an_embedding_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "word.safetensors"
    message = r"word\.safetensors holds \{'<blob>': \[1, 48\]\}; .* is one tensor of width 32"
    save_file({"<blob>": torch.zeros(1, 48)}, file)
    with pytest.raises(ValueError, match=message):
        find_textual_inversion(file, 32)
    save_file({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 48)}, file)  # as SDXL has them
    with pytest.raises(ValueError, match="is one tensor of width 32"):
        find_textual_inversion(file, 32)

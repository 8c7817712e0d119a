import re
from pathlib import Path

import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import save_file

from latebloom.data.store import as_path, digest_file, write_bytes
from latebloom.synth.generators.adapters import find_lora, find_textual_inversion


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


def test_a_lora_that_cannot_be_found_is_refused_with_the_reason(tmp_path: Path) -> None:
    for name, message in [
        ("lora.bin", r"lora\.bin is neither a safetensors file nor a folder with just one .* pickles .* are refused"),
        ("two/a.safetensors@much", "@much is neither a safetensors file"),
        ("two", r"two is neither .* with just one \(it has 2\); name the file itself"),
        ("two/a.safetensors@nan", "has a scale that is not finite, expected a number; write it as path@0.8"),
    ]:
        for file in ("lora.bin", "two/a.safetensors", "two/b.safetensors"):
            empty(tmp_path / file)
        with pytest.raises(ValueError, match=message):
            find_lora(str(tmp_path / name))


def test_a_word_is_the_tensors_name_or_for_automatic1111_the_files(tmp_path: Path) -> None:
    file = tiny.save_tiny_textual_inversion(tmp_path / "one" / "learned_embeds.safetensors", "<blob>")
    assert find_textual_inversion(str(file.parent), [32]) == (file, "<blob>")
    file = tiny.save_tiny_textual_inversion(tmp_path / "blobby.safetensors", "emb_params", vectors=3)
    assert find_textual_inversion(str(file), [32]) == (file, "blobby")


def test_what_is_at_a_url_becomes_a_file_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = "memory://adapters"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    word = tiny.save_tiny_textual_inversion(tmp_path / "blobby.safetensors", "emb_params")
    for name in ("word/blobby.safetensors", "styles/pytorch_lora_weights.safetensors", "styles/v1@2.safetensors"):
        write_bytes(as_path(f"{bucket}/{name}"), word.read_bytes())
    for text, scale, name in [
        ("styles", 1.0, "pytorch_lora_weights.safetensors"),
        ("styles@-0.5", -0.5, "pytorch_lora_weights.safetensors"),
        ("styles/v1@2.safetensors", 1.0, "v1@2.safetensors"),
        ("styles/v1@2.safetensors@0.8", 0.8, "v1@2.safetensors"),
    ]:
        file, number = find_lora(f"{bucket}/{text}")
        assert (number, file.name, digest_file(file)) == (scale, name, digest_file(word))
        assert file.is_relative_to(tmp_path / "home")
    file, token = find_textual_inversion(f"{bucket}/word", [32])
    assert (token, digest_file(file)) == ("blobby", digest_file(word))
    with pytest.raises(ValueError, match=f"{bucket}/styles/none is neither a safetensors file"):
        find_lora(f"{bucket}/styles/none@2")


def test_an_embedding_of_sdxl_is_called_like_its_file(tmp_path: Path) -> None:
    file = tmp_path / "blob.safetensors"
    save_file({"clip_g": torch.zeros(1, 48), "clip_l": torch.zeros(1, 32)}, file)
    assert find_textual_inversion(str(file), [32, 48]) == (file, "blob")


def test_an_embedding_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "word.safetensors"
    sdxl = {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}
    one, two = "a textual inversion for Stable Diffusion 1.x", "a textual inversion for SDXL"
    for tensors, widths, words in [
        ({"<blob>": torch.zeros(1, 1024)}, [768], f"is a textual inversion for Stable Diffusion 2.x, expected {one}"),
        ({"<blob>": torch.zeros(1, 768)}, [768, 1280], f"is {one}, expected {two}; give one"),
        (sdxl, [768], f"is {two}, expected {one}"),
        ({"a.lora_A.weight": torch.zeros(1, 768)}, [768], f"is a LoRA, expected {one}"),
        ({name: torch.zeros(1, 768) for name in "abc"}, [768], f"is another kind of file, expected {one}"),
    ]:
        save_file(tensors, file)
        with pytest.raises(ValueError, match=rf"word\.safetensors {re.escape(words)}"):
            find_textual_inversion(str(file), widths)
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"word\.safetensors is damaged or no safetensors file"):
        find_textual_inversion(str(file), [768])

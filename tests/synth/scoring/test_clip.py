import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import save_tiny_tokenizer

from latebloom.synth.scoring.clip import ClipScorer, SafetyScorer, clip_digest

CPU = torch.device("cpu")
PROMPTS = ("a photo of a top", "a photo of a middle", "a digit")
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": 16, "patch_size": 8}
PROCESSOR = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def config(vocabulary: int, eos: int) -> Any:
    from transformers import CLIPConfig

    text = {**VISION, "vocab_size": vocabulary, "max_position_embeddings": 16}
    ids = {"bos_token_id": eos - 1, "eos_token_id": eos, "pad_token_id": eos}
    return CLIPConfig(text_config={**text, **ids}, vision_config={**VISION, **PICTURE}, projection_dim=16)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of two layers, as `CLIPModel.save_pretrained` and `CLIPProcessor.save_pretrained` write it."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = save_tiny_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config(len(tokenizer), tokenizer.eos_token_id)).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(**PROCESSOR), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipScorer:
    return ClipScorer.load(clip_folder, PROMPTS, CPU)


def noise(n: int, height: int = 20, width: int = 24, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def test_scores_are_those_of_the_model_itself(clip: ClipScorer, clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    images, labels = noise(5), np.array([0, 1, 2, 0, 1])
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    inputs = processor(
        text=list(PROMPTS), images=[Image.fromarray(image) for image in images], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**inputs).logits_per_image / model.logit_scale.exp()
    cosine = logits.numpy()
    own = cosine[np.arange(5), labels]
    others = [max(np.delete(row, label)) for row, label in zip(cosine, labels, strict=True)]
    score, margin = clip(images, labels)
    assert score.dtype == margin.dtype == np.float64
    np.testing.assert_allclose(score, own, atol=1e-6)
    np.testing.assert_allclose(margin, own - others, atol=1e-6)
    assert len(set(np.sign(margin))) == 2  # some images fit another class better, and some do not


def test_scores_do_not_depend_on_the_other_images(clip: ClipScorer) -> None:
    images, labels = noise(70), np.arange(70) % 3  # two batches
    alone = clip(images[66:67], labels[66:67])
    for one, all_of_them in zip(alone, clip(images, labels), strict=True):
        np.testing.assert_allclose(one, all_of_them[66:67], atol=1e-6)


def test_grey_is_the_same_as_grey_in_three_channels_and_images_stay_as_they_are(clip: ClipScorer) -> None:
    grey, labels = noise(3, channels=1), np.array([0, 1, 2])
    before = grey.copy()
    np.testing.assert_array_equal(clip(grey, labels), clip(np.repeat(grey, 3, axis=3), labels))
    np.testing.assert_array_equal(grey, before)


def test_a_single_class_has_no_runner_up(clip_folder: Path) -> None:
    score, margin = ClipScorer.load(clip_folder, PROMPTS[:1], CPU)(noise(2), np.zeros(2, np.int64))
    assert np.isfinite(score).all()
    assert margin.tolist() == [np.inf, np.inf]


def copied(folder: Path, to: Path, without: str = "") -> Path:
    to.mkdir()
    for file in folder.iterdir():
        if file.name != without:
            (to / file.name).write_bytes(file.read_bytes())
    return to


def test_the_digest_follows_prompts_and_weights(clip_folder: Path, tmp_path: Path) -> None:
    assert clip_digest(copied(clip_folder, tmp_path / "moved"), PROMPTS) == clip_digest(clip_folder, PROMPTS)
    assert clip_digest(clip_folder, PROMPTS[::-1]) != clip_digest(clip_folder, PROMPTS)
    other = copied(clip_folder, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"other weights")
    assert clip_digest(other, PROMPTS) != clip_digest(clip_folder, PROMPTS)


def test_what_is_no_clip_folder_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing has no config\.json, expected the folder of a CLIP model; give"):
        ClipScorer.load(tmp_path / "nothing", PROMPTS, CPU)
    other = copied(clip_folder, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match=r"other holds BertModel, expected a CLIP model \(CLIPModel\)"):
        ClipScorer.load(other, PROMPTS, CPU)


def test_pickled_weights_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = copied(clip_folder, tmp_path / "pickled", without="model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no weights in safetensors; pickled ones \(\.bin\) are refused"):
        ClipScorer.load(folder, PROMPTS, CPU)


def test_missing_weights_are_not_left_at_random(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(clip_folder, tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"partial lacks 1 weights, such as visual_projection\.weight"):
        ClipScorer.load(folder, PROMPTS, CPU)


def test_a_prompt_longer_than_clip_reads_is_named(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="the prompt 'xxxxxxxxxxxxxxxxxxxx' is longer than the 16 tokens CLIP reads"):
        ClipScorer.load(clip_folder, ("a digit", "x" * 20), CPU)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder's two parts that check safety.

    The checker flags an image whose cosine to one of 17 concepts is above that concept's weight; 0.55 flags some.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    folder = tmp_path_factory.mktemp("generator")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(config(100, 99))
        with torch.no_grad():
            checker.concept_embeds.normal_()
            checker.concept_embeds_weights.fill_(0.55)
            checker.special_care_embeds_weights.fill_(2)
    checker.save_pretrained(folder / "safety_checker")
    CLIPImageProcessor(**PROCESSOR).save_pretrained(folder / "feature_extractor")
    return folder


def test_flags_are_those_of_diffusers_and_no_image_is_blanked(generator: Path) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    images = np.concatenate([noise(30), np.zeros((1, 20, 24, 3), np.uint8), np.full((1, 20, 24, 3), 255, np.uint8)])
    before = images.copy()
    scorer = SafetyScorer.load(generator, CPU)
    assert scorer is not None
    flags = scorer(images)
    checker = StableDiffusionSafetyChecker.from_pretrained(generator / "safety_checker")
    processor = CLIPImageProcessor.from_pretrained(generator / "feature_extractor")
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    _, expected = checker(pixels, list(images.copy()))
    assert flags.dtype == np.float64
    assert flags.tolist() == [float(flag) for flag in expected]
    assert set(flags) == {0.0, 1.0}
    np.testing.assert_array_equal(images, before)


def test_a_generator_without_a_checker_has_no_scorer(generator: Path, tmp_path: Path) -> None:
    assert SafetyScorer.load(tmp_path, CPU) is None
    (tmp_path / "safety_checker").mkdir()
    (tmp_path / "safety_checker" / "config.json").write_text(json.dumps({"architectures": ["IFSafetyChecker"]}))
    assert SafetyScorer.load(tmp_path, CPU) is None


def test_a_checker_with_pickled_weights_or_without_extractor_is_refused(generator: Path, tmp_path: Path) -> None:
    copied(generator / "safety_checker", tmp_path / "safety_checker")
    with pytest.raises(ValueError, match=r"a safety checker but no feature_extractor/preprocessor_config\.json"):
        SafetyScorer.load(tmp_path, CPU)
    (tmp_path / "safety_checker" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"safety_checker has no weights in safetensors"):
        SafetyScorer.load(tmp_path, CPU)


def test_weights_saved_by_older_transformers_are_found(generator: Path, tmp_path: Path) -> None:
    """Released checkers say vision_model.vision_model.* where transformers now says vision_model.*."""
    from safetensors.torch import load_file, save_file

    copied(generator / "feature_extractor", tmp_path / "feature_extractor")
    folder = copied(generator / "safety_checker", tmp_path / "safety_checker")
    weights = load_file(folder / "model.safetensors")
    old = {
        (f"vision_model.{name}" if name.startswith("vision_model.") else name): value for name, value in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    scorer, expected = SafetyScorer.load(tmp_path, CPU), SafetyScorer.load(generator, CPU)
    assert scorer is not None
    assert expected is not None
    images = noise(20)
    assert scorer(images).tolist() == expected(images).tolist()

import json
from collections import Counter
from pathlib import Path

import pydantic
import pytest

from latebloom.synth.config import PromptConfig
from latebloom.synth.prompts import lint, names_of, prompt_of

TREES = ("maple_tree", "oak_tree", "sea")


def mapped(path: Path, text: str, class_names: tuple[str, ...] = TREES) -> tuple[str, ...]:
    path.write_text(text)
    return names_of(PromptConfig(names=str(path)), class_names)


def test_the_default_prompt_is_the_papers() -> None:
    assert prompt_of(PromptConfig(), "horse", seed=0) == "a photo of a horse"


def test_own_names_lose_their_underscores_and_nothing_else() -> None:
    assert names_of(PromptConfig(), ("aquarium_fish", "black-eyed Susan", "707-320", "0")) == (
        "aquarium fish",
        "black-eyed Susan",
        "707-320",
        "0",
    )


def test_a_template_is_drawn_by_the_images_seed() -> None:
    config = PromptConfig(templates=("a photo of a {name}", "a sketch of a {name}", "{name}, {name} and {name}"))
    drawn = [prompt_of(config, "dog", seed) for seed in range(600)]
    assert drawn[:50] == [prompt_of(config, "dog", seed) for seed in range(50)]
    counts = Counter(drawn)
    assert set(counts) == {"a photo of a dog", "a sketch of a dog", "dog, dog and dog"}
    assert all(140 < count < 260 for count in counts.values())  # 200, standard deviation 12
    # Another class at the same seed draws the same template: it is the image's, not the prompt's.
    assert prompt_of(config, "cat", 7) == prompt_of(config, "dog", 7).replace("dog", "cat")


def test_any_name_goes_into_a_prompt_as_it_is() -> None:
    for name in ("", "{name}", "%s {0} \\n", "crème brûlée", "犬", "a\nb"):
        assert prompt_of(PromptConfig(), name, 0) == f"a photo of a {name}"


def test_a_template_needs_name_in_braces_and_no_other_braces() -> None:
    for template in ["", "a photo", "a {name} in {place}", "{name", "a {name} {", "{name!r}", "{{name}}"]:
        with pytest.raises(
            pydantic.ValidationError, match=r"must have \{name\} where the class's name goes, and no other"
        ):
            PromptConfig(templates=("a {name}", template))


def test_a_map_names_classes_and_the_rest_keep_their_names(tmp_path: Path) -> None:
    for file, text in [
        ("map.json", '{"maple_tree": "maple, in autumn", "sea": "the_sea"}'),
        ("map.csv", 'class,name\nmaple_tree, "maple, in autumn"\n\nsea,the_sea \n'),
        ("map.csv", '\ufeffmaple_tree,"maple, in autumn"\r\nsea,the_sea\r\n'),  # as spreadsheets write it
        ("map.tsv", "maple_tree\tmaple, in autumn\nsea\tthe_sea\n"),
        ("MAP.TXT", "maple_tree\tmaple, in autumn\nsea\tthe_sea"),
    ]:
        assert mapped(tmp_path / file, text) == ("maple, in autumn", "oak tree", "the_sea")


def test_a_map_of_more_classes_than_there_are_is_welcome_when_it_has_them_all(tmp_path: Path) -> None:
    words = "n00001740\tentity\nn01440764\ttench, Tinca tinca\nn01443537\tgoldfish\n"  # Tiny-ImageNet's words.txt
    names = mapped(tmp_path / "words.txt", words, ("n01443537", "n01440764"))
    assert names == ("goldfish", "tench, Tinca tinca")


def test_a_misspelt_class_in_a_map_is_refused_with_a_guess(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names classes that do not exist") as caught:
        mapped(tmp_path / "map.json", '{"mapletree": "maple", "oak_tree": "oak", "xyz": "?"}')
    assert "do not exist, mapletree (maple_tree?), xyz, while maple_tree, sea have no name in it" in str(caught.value)


def test_of_many_unknown_classes_five_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x0, x1, x2, x3, x4 and 2 more, while"):
        mapped(tmp_path / "map.json", json.dumps({f"x{number}": "x" for number in range(7)}))


def test_a_bad_map_is_refused_by_its_name(tmp_path: Path) -> None:
    for file, text, words in [
        ("map.yaml", "sea: sea", r"map\.yaml is no \.json, \.csv, \.tsv or \.txt file"),
        ("map.json", '{"sea": ', "cannot be read: Expecting value"),
        ("map.json", '[["sea", "sea"]]', "cannot be read: expected one object of strings"),
        ("map.json", '{"sea": 3.5}', "cannot be read: expected one object of strings"),
        ("map.json", '{"sea": {"name": "sea"}}', "cannot be read: expected one object of strings"),
        ("map.json", '{"sea": "sea", "sea": "lake"}', "names 'sea' twice, 'sea' and 'lake'; keep one"),
        ("map.json", '{"sea": " "}', "has an empty name for 'sea'; fill it in"),
        ("map.csv", "oak_tree,oak\nsea,sea, salt\n", r"line 2 has 3 columns, expected 2, .* comma \(quote names"),
        ("map.csv", "sea\tsea\n", "line 1 has 1 columns, expected 2, .* comma"),
        ("map.txt", "sea,sea\n", "line 1 has 1 columns, expected 2, .* tab"),
        ("map.csv", 'sea,"sea\n', "cannot be read: unexpected end of data"),
    ]:
        with pytest.raises(ValueError, match=rf"^class-name map .*{words}") as caught:
            mapped(tmp_path / file, text)
        assert "\n" not in str(caught.value)


def test_a_map_that_is_not_there_or_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.json does not exist"):
        names_of(PromptConfig(names=str(tmp_path / "missing.json")), TREES)
    file = tmp_path / "map.txt"
    file.write_bytes("sea\tMörk".encode("latin-1"))
    with pytest.raises(ValueError, match="cannot be read: 'utf-8' codec"):
        names_of(PromptConfig(names=str(file)), TREES)


def only_line(*names: str) -> str:
    """The one line about these names beside one that is well."""
    (line,) = lint(("dog", *names), ("dog", *names))
    return line


def test_each_fault_of_a_name_has_its_line() -> None:
    for name, fault in [
        ("cat\u200b", "have control characters"),
        ("two\nlines", "have control characters"),
        ("caf\ufffd", "have control characters"),
        ("n01440764", "are WordNet ids"),
        ("n02085620-Chihuahua", "are WordNet ids"),
        ("7", "have no letters"),
        ("747-400", "have no letters"),
        ("--", "have no letters"),
        ("001.ak47", "begin with a number"),
        ("12 crab", "begin with a number"),
        ("ox", "have one or two letters"),
        ("A-3", "have one or two letters"),
        ("word " * 41, "are longer than 200 characters"),
        ("собака", "are not in Latin letters"),
        ("犬", "are not in Latin letters"),
        ("AnnualCrop", "run words together"),
        ("maple_tree", "come out of the class-name map with underscores"),
    ]:
        assert only_line(name).startswith(f"1 of 2 class names {fault}")
        assert f": {name}; give better ones in a class-name map (prompts.names)" in only_line(name)


def test_good_names_pass() -> None:
    for name in ["dog", "black-eyed Susan", "crème brûlée", "Boeing 747-400", "F-16A/B", "T-shirt", "CNN"]:
        assert lint([name, "horse"], [name, "horse"]) == []


def test_digits_have_one_line_that_lists_five() -> None:
    assert only_line(*"0123456789").startswith("10 of 11 class names have no letters, from which a text model")
    assert ": 0, 1, 2, 3, 4 and 5 more; give" in only_line(*"0123456789")


def test_wordnet_ids_are_no_fault_once_they_are_mapped() -> None:
    assert lint(("n01440764", "n01443537"), ("tench", "goldfish")) == []


def test_names_alike_are_listed_with_their_classes() -> None:
    for class_names, names in [
        (("n02012849", "n03126707", "dog"), ("crane", "crane", "dog")),  # ImageNet: the bird and the machine
        (("n02012849", "n03126707", "dog"), ("crane", "Crane ", "dog")),
        (("t-shirt", "T_shirt", "dog"), ("t-shirt", "T shirt", "dog")),
    ]:
        line = lint(class_names, names)[0]
        assert line.startswith("2 of 3 class names belong to several classes, which the generator cannot distinguish: ")
        assert all(own in line for own in class_names[:2])
        assert "dog" not in line


def test_underscores_of_cifar_100_are_noted_as_shown() -> None:
    class_names = ("aquarium_fish", "maple_tree", "bee", "lawn_mower")
    assert lint(class_names, names_of(PromptConfig(), class_names)) == [
        "3 of 4 class names have underscores, which prompts show as spaces: aquarium_fish, maple_tree, lawn_mower"
    ]


def test_several_faults_have_a_line_each_and_a_name_only_its_first() -> None:
    lines = lint(("3", "a_1", "dog", "3_"), ("3", "a 1", "dog", "3 "))
    assert [line.split(" class names ")[1].split(",")[0] for line in lines] == [
        "have no letters",
        "have one or two letters",
        "belong to several classes",
        "have underscores",
    ]
    assert "a_1 (a 1)" in lines[1]

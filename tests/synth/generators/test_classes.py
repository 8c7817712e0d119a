from pathlib import Path

import pytest

from latebloom.synth.generators.classes import class_labels, mapping_of

FISH = ("goldfish, Carassius auratus", "great white shark", "crane", "crane", "Hen")


@pytest.mark.parametrize(
    ("names", "model", "mapping", "labels"),
    [
        (("b", "a"), ("a", "b", "c"), "", [1, 0]),  # by name, in any order, of more classes
        (("a", "A"), ("A", "a"), "", [1, 0]),  # as it stands first
        (("carassius_auratus", "Great White Shark", "hen"), FISH, "", [0, 1, 4]),
        (("crane", "hen"), FISH, {"crane": "3"}, [3, 4]),
        (("x", "y"), FISH, {"x": "goldfish", "y": "1"}, [0, 1]),
        (("1", "2"), ("2", "1"), "", [1, 0]),  # digits may be names
        (("0", "1", "10", *"23456789"), (), "", [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]),  # as folders are sorted
        (("b", "a"), (), "order", [0, 1]),
        (("b", "a"), ("a", "b"), "order", [0, 1]),
        (("b", "a"), (), {"b": "4", "a": "0", "c": "2"}, [4, 0]),  # a map may be of more classes than there are
    ],
)
def test_each_class_of_the_data_has_a_label_of_the_model(
    names: tuple[str, ...], model: tuple[str, ...], mapping: str | dict[str, str], labels: list[int]
) -> None:
    assert class_labels(names, model, len(model) or 11, mapping).tolist() == labels


@pytest.mark.parametrize(
    ("names", "model", "mapping", "words"),
    [
        (
            ("hen", "great white shrk"),
            FISH,
            "",
            r"'great white shrk' of the data is none .* 5 classes \(near: great",
        ),
        (("hen", "crane"), FISH, "", r"'crane' of the data is 2 of the generator's classes \(2, 3\)"),
        (("x",), FISH, {"x": "cod"}, r"says 'cod' of 'x', none of the generator's 5 classes \(goldfish, Carassius"),
        (("x",), FISH, {"x": "5"}, r"gives 'x' the number 5, and the generator's are 0 to 4"),
        # The misspelt line would else do nothing, and the class would be the one of its own name.
        (("crane", "hen"), FISH, {"crane": "3", "hne": "1"}, r"classes that do not exist, hne \(hen\?\), while hen"),
        (("cat", "dog"), (), "", r"names none of its 5 classes, .* 'cat' .* set generate\.classes=order"),
        (("1", "2"), (), "", r"names none of its 5 classes, so which of them is '1'"),  # from 0 or from 1?
        (tuple("abcdef"), (), "order", r"each of the 6 of the data, and it has 5"),
    ],
)
def test_a_class_without_a_partner_is_refused_with_the_setting(
    names: tuple[str, ...], model: tuple[str, ...], mapping: str | dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        class_labels(names, model, 5, mapping)
    assert "generate.classes" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_mapping_is_a_word_or_a_file_of_names_and_numbers(tmp_path: Path) -> None:
    assert [mapping_of(""), mapping_of("order")] == ["", "order"]
    for name, text in [("map.json", '{"cat": 3, "dog": "hen"}'), ("map.csv", "class,number\ncat,3\ndog,hen\n")]:
        (tmp_path / name).write_text(text)
        assert mapping_of(str(tmp_path / name)) == {"cat": "3", "dog": "hen"}

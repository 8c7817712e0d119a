import pytest

from latebloom.data.names import base_name, place_of, shortened

NAMES = ("train/big cat/004.png", "train/not big cat/004.png", "train/dog/005.png", "data/a.parquet[17]")


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ("train/big cat/004.png", 0),
        ("big cat/004.png", 0),  # not the end of "not big cat/004.png": a name ends at a slash
        ("not big cat/004.png", 1),
        ("005.png", 2),
        ("a.parquet[17]", 3),
        ("/data/pets/train/big cat/004.png", 0),  # a path, as a shell completes it
    ],
)
def test_a_name_is_found_whole_or_by_its_end(wanted: str, place: int) -> None:
    assert place_of(wanted, NAMES) == place


def test_a_whole_name_goes_before_the_end_of_another() -> None:
    assert place_of("a/1.png", ["b/a/1.png", "a/1.png"]) == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "004.png",
            "'004.png' names 2 images: train/big cat/004.png, train/not big cat/004.png; give more of the name",
        ),
        ("big cat/04.png", "no image is called 'big cat/04.png'; did you mean train/big cat/004.png"),
        ("05.png", "no image is called '05.png'; did you mean train/dog/005.png"),
        ("0000001-50of100-v1", "no image is called '0000001-50of100-v1'; did you mean 0000001-50of100-v0?"),
        ("?", "no image is called '?'; the first of 5 names is 0000001-50of100-v0"),
        ("", "no image is called ''; the first of 5 names is 0000001-50of100-v0"),
    ],
)
def test_a_name_that_is_none_or_several_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        place_of(wanted, NAMES, ["0000001-50of100-v0"])
    assert str(refused.value).startswith(message)


def test_a_long_name_keeps_both_ends() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcd…ghijk"
    assert shortened("abcdefghijk", 3) == "a…k"
    assert [base_name(name) for name in NAMES] == ["004.png", "004.png", "005.png", "a.parquet[17]"]

"""Which columns of a table are the image and the label: as the config names them, by type, or by usual names."""

from collections.abc import Iterable, Mapping, Sequence

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import listed

__all__ = [
    "LABEL_NAMES",
    "PATH_NAMES",
    "PICTURE_NAMES",
    "ROW_NAMES",
    "UNLIKELY_LABELS",
    "choose",
    "like",
    "refuse_columns",
]

PICTURE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "png", "pixels")
PATH_NAMES = (
    *("file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path", "image_file"),
    *("image", "img", "images", "image_name", "picture", "photo"),
)
ROW_NAMES = ("file_name", "filename", "path", "file_path", "image_path", "file", "__key__", "key", "image_id")
LABEL_NAMES = ("label", "labels", "cls", "class", "class_name", "target", "category", "y", "label_name", "species")
UNLIKELY_LABELS = (
    *("id", "idx", "index", "image_id", "width", "height", "url", "text", "caption", "split", "md5", "sha256", "hash"),
    *("__index_level_0__", "__key__", "__url__", "key", "filename", "file_name", "path", "file"),
)


def like(names: Iterable[str], usual: Sequence[str]) -> list[str]:
    """Those of `names` that are among the usual ones, whatever their case."""
    return [name for name in names if name.lower() in usual]


def choose(what: str, asked: str, ranks: Sequence[Sequence[str]], columns: Mapping[str, str], where: str) -> str:
    """The column that is the image or the label.

    Args:
        what: image or label, which is also the setting that names it.
        asked: the column that the config names; "": to be guessed.
        ranks: the columns it may be, the likeliest first; the first rank with any must have just one.
        columns: all columns, and of each what it holds.
        where: the table, for errors.

    Raises:
        ValueError: it is not there, or none or several may be it.
    """
    everything = listed([f"{name} ({kind})" if kind else name for name, kind in columns.items()], most=12)
    if asked:
        if asked not in columns:
            raise ValueError(f"{where} has no column {asked}, which data.{what} names; it has {everything}")
        return asked
    for names in ranks:
        if len(names) == 1:
            return names[0]
        if names:
            raise ValueError(
                f"{where} has {len(names)} columns that may be the {what}: {listed(names)}; name the right one: "
                f"--set data.{what}={names[0]} (all columns: {everything})"
            )
    raise ValueError(
        f"{where} has no column that looks like the {what}; it has {everything or 'no columns'}; name the right one: "
        f"--set data.{what}=COLUMN"
    )


def refuse_columns(config: DataConfig, what: str) -> None:
    """Refuse settings that name columns of a data set that has none.

    Raises:
        ValueError: `config.image` or `config.label` is set; the message begins with `what` the data set is.
    """
    for setting in ("image", "label"):
        if getattr(config, setting):
            raise ValueError(f"{what}, so data.{setting} names no column; leave it out")

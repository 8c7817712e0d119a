"""How large the images of a data set are: what defaults depend on before it is read."""

from latebloom.data.config import NAMES, DataConfig

__all__ = ["image_side"]

# Of the data sets with a name; the photos have many sizes, of which these are near the smallest.
_SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32, "svhn": 32, "tiny-imagenet": 64}
_PHOTOS = 256


def image_side(config: DataConfig) -> int:
    """The shorter side in pixels that classifiers will see: the image size, or that of the first image.

    Reads one header. 0 where it cannot be known so: what is wrong with a source is said where it is loaded.
    """
    if config.image_size:
        return config.image_size
    if config.source in NAMES:
        return _SIDES.get(config.source, _PHOTOS)
    from latebloom.data.sources.first import first_side  # imports NumPy, which data sets with a name do without

    try:
        return first_side(config)
    except Exception:  # a damaged file raises a dozen kinds; loading names it in words
        return 0

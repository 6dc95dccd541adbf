"""Sources: where labelled images come from, behind one door, `open_source`.

A kind of one's own is a module that calls `register` and that the config imports.
"""

from vitjax.data.sources import arrays, cifar, digits, folder, svhn, tfds, tiny_imagenet, vtab
from vitjax.data.sources.base import Slices, Source, open_source, register

__all__ = [
    "Slices",
    "Source",
    "arrays",
    "cifar",
    "digits",
    "folder",
    "open_source",
    "register",
    "svhn",
    "tfds",
    "tiny_imagenet",
    "vtab",
]

"""load_dataset: a name or a file in, labelled images out; the files are found here or fetched from their publisher.

Looked at in this order:
    data_dir (and nothing else, where it is given)
    the directory that the environment variable CERTPRUNE_DATA names
    a distribution's package (Debian's dataset-fashion-mnist)
    the user's cache
    the publisher's address, through pooch, into the cache
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import numpy as np

from verifier.data import npz
from verifier.data.arrays import Arrays
from verifier.data.catalogue import DIGITS, KINDS, Download, Kind, Layout
from verifier.data.dataset import Dataset, Images, Split
from verifier.errors import VerifierError

VARIABLE = "CERTPRUNE_DATA"
NAMES = ("digits", *KINDS)
DIGITS_TEST = 360  # the last fifth of the official order
Found = tuple[Layout, list[Path]]


def load_dataset(name_or_path: str | Path, data_dir: str | Path | None = None) -> Dataset:
    """The images and labels of digits, mnist, fashion-mnist, cifar10, svhn, or of a file .npz.

    Args:
        name_or_path: one of the names, or a file with arrays x and y, or x_train, y_train, x_test and y_test.
        data_dir: where the publisher's files lie, in this directory itself or in a folder of the data set's name. Nothing is fetched then.

    Raises:
        VerifierError: no such data set; its files are nowhere; a file is cut, damaged or something else.
    """
    text = str(name_or_path)
    if text in NAMES:
        if text == "digits":
            return _dataset("digits", _digits(), DIGITS)
        kind = KINDS[text]
        layout, paths = _find(text, kind, None if data_dir is None else Path(data_dir))
        arrays = layout.read(paths)
        _refuse_the_namesake(text, kind, arrays, paths[0].parent)
        return _dataset(text, arrays, kind.classes)
    if text.endswith(".npz"):
        arrays = npz.read(Path(text))
        largest = max(int(y.max()) for y in (arrays.y, arrays.y_test) if len(y))
        return _dataset(Path(text).name, arrays, tuple(str(k) for k in range(largest + 1)))
    near = get_close_matches(text.lower(), NAMES, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "name a file .npz, or one of them."
    raise VerifierError(f"Data set {text!r} is not one of {', '.join(NAMES)}: {hint}")


def _dataset(name: str, arrays: Arrays, classes: tuple[str, ...]) -> Dataset:
    train, test = (
        Split(Images(x, arrays.scale), np.asarray(y, np.int64)) for x, y in ((arrays.x, arrays.y), (arrays.x_test, arrays.y_test))
    )
    for split in (train, test):
        if len(split) and int(split.y.max()) >= len(classes):
            raise VerifierError(f"{name} has the label {split.y.max()}, but only {len(classes)} classes: are its files damaged?")
    return Dataset(name, train, test, classes)


def _digits() -> Arrays:
    """The 1,797 images of 8 x 8 pixels that come with this package, the last `DIGITS_TEST` for testing.

    The test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository, CC BY 4.0) in its
    own order, pixels from 0 to 16.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        x, y = file["x"][:, None], file["y"]
    return Arrays(x[:-DIGITS_TEST], y[:-DIGITS_TEST], x[-DIGITS_TEST:], y[-DIGITS_TEST:], scale=16.0)


def _find(name: str, kind: Kind, data_dir: Path | None) -> Found:
    """The first complete layout in the places to look at; fetched where there is none and no directory was given."""
    if data_dir is not None:
        if not data_dir.is_dir():
            raise VerifierError(f"The data directory {data_dir} is not a directory: check the path.")
        return _first(kind, _folders(kind, data_dir)) or _complain(name, kind, [data_dir], "check the directory, or leave it out to fetch them")
    named = os.environ.get(VARIABLE)
    cache = _cache() / name
    folders = _folders(kind, Path(named)) if named else []
    found = _first(kind, [*folders, *map(Path, kind.system), cache])
    if found is not None:
        return found
    failure = _fetch(kind.downloads, cache)
    searched = [*([Path(named)] if named else []), *map(Path, kind.system), cache]
    remedy = f"set {VARIABLE} or --data-dir to a directory that has them"
    return _first(kind, [cache]) or _complain(name, kind, searched, f"{failure}: {remedy}")


def _folders(kind: Kind, root: Path) -> list[Path]:
    return [root / folder for folder in kind.folders]


def _first(kind: Kind, folders: Sequence[Path]) -> Found | None:
    tried = ((layout, layout.find(folder)) for folder in folders for layout in kind.layouts)
    return next(((layout, paths) for layout, paths in tried if len(paths) == len(layout.files)), None)


def _complain(name: str, kind: Kind, places: Sequence[Path], remedy: str) -> NoReturn:
    """Raises; the files are named as the publisher has them, and one that is there beside a missing one is no help to name."""
    sets = " or ".join(", ".join(layout.files) for layout in kind.layouts)
    where = ", ".join(map(str, places))
    raise VerifierError(f"The files of {name} ({sets}) are not all in {where}; {remedy}.")


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("certprune"))


def _fetch(downloads: Sequence[Download], folder: Path) -> str:
    """Brings the files into the folder, each checked against its checksum; returns what failed, or nothing."""
    import pooch

    for download in downloads:
        failure = ""
        for address in download.addresses:
            try:
                pooch.retrieve(address, download.checksum, fname=download.file, path=folder)
            except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
                failure = f"fetching {address} failed ({type(error).__name__})"
            else:
                break
        else:
            return failure
    return ""


def _refuse_the_namesake(name: str, kind: Kind, arrays: Arrays, folder: Path) -> None:
    """MNIST's and Fashion-MNIST's files have the same names: refuse one where the other was asked for."""
    for other, its in KINDS.items():
        if other != name and kind.begins and its.begins and tuple(arrays.y[: len(its.begins)]) == its.begins:
            raise VerifierError(f"The files in {folder} are those of {other}, not of {name}: check the directory.")

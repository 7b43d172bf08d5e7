"""The data sets known by name: whose files they are, how they are called, which reader takes them, and where to fetch them.

    Kind      one data set: layouts (file names -> reader), folders in which they lie under a data directory, classes, downloads
    Layout    one complete set of files; a data set may come in several

A file may be gzipped under its own name + ".gz" where its reader takes that.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier.data import cifar, idx, svhn
from verifier.data.arrays import Arrays

DIGITS = tuple("0123456789")


@dataclass(frozen=True, slots=True)
class Layout:
    """The files that `read` takes, in its order; `endings` are tried after each name."""

    files: tuple[str, ...]
    read: Callable[[Sequence[Path]], Arrays]
    endings: tuple[str, ...] = ("",)

    def find(self, folder: Path) -> list[Path]:
        """The files that are there, in order; complete where there are as many as `files`."""
        candidates = ([folder / f"{name}{ending}" for ending in self.endings] for name in self.files)
        return [found for paths in candidates if (found := next((p for p in paths if p.is_file()), None))]


@dataclass(frozen=True, slots=True)
class Download:
    """A publisher's file: the addresses are tried in turn, and what arrives must have this checksum."""

    file: str
    checksum: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """`folders` are looked into under a data directory, in this order; `system` are whole paths of a distribution's packages.

    `begins`: the first training labels of the data set, where files of another one bear the same names.
    """

    layouts: tuple[Layout, ...]
    folders: tuple[str, ...]
    classes: tuple[str, ...]
    downloads: tuple[Download, ...]
    system: tuple[str, ...] = ()
    begins: tuple[int, ...] = ()


def _downloads(checksums: dict[str, str], *bases: str) -> tuple[Download, ...]:
    return tuple(Download(file, checksum, tuple(base + file for base in bases)) for file, checksum in checksums.items())


_IDX = (Layout(idx.FILES, idx.read, (".gz", "")),)

KINDS = {
    "mnist": Kind(
        layouts=_IDX,
        folders=("mnist", "MNIST/raw", ""),
        classes=DIGITS,
        downloads=_downloads(
            {
                "train-images-idx3-ubyte.gz": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1-ubyte.gz": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3-ubyte.gz": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1-ubyte.gz": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
            "http://yann.lecun.com/exdb/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",  # the same files, where the publisher's machine answers no longer
        ),
        begins=(5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    ),
    "fashion-mnist": Kind(
        layouts=_IDX,
        folders=("fashion-mnist", "FashionMNIST/raw", ""),
        classes=("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        downloads=_downloads(
            {
                "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
            },
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        system=("/usr/share/datasets/fashion-mnist",),  # Debian's package dataset-fashion-mnist
        begins=(9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
    ),
    "cifar10": Kind(
        layouts=(
            Layout(cifar.PYTHON_FILES, cifar.read_python),
            Layout(cifar.BINARY_FILES, cifar.read_binary),
            Layout((cifar.PYTHON_ARCHIVE,), cifar.read_python_archive),
            Layout((cifar.BINARY_ARCHIVE,), cifar.read_binary_archive),
        ),
        folders=("cifar-10-batches-py", "cifar-10-batches-bin", "", "cifar10", "cifar10/cifar-10-batches-py", "cifar10/cifar-10-batches-bin"),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        downloads=_downloads({cifar.PYTHON_ARCHIVE: "md5:c58f30108f718f92721af3b95e74349a"}, "https://www.cs.toronto.edu/~kriz/"),
    ),
    "svhn": Kind(
        layouts=(Layout(svhn.FILES, svhn.read),),
        folders=("svhn", ""),
        classes=DIGITS,
        downloads=_downloads(
            {"train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3"},
            "http://ufldl.stanford.edu/housenumbers/",
        ),
    ),
}

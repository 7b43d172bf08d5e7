"""load_dataset: where files are looked for, what is fetched, how training images are parted, and what a data set tells of itself."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pooch
import pytest

import verifier
from tests import publishers
from verifier.data.catalogue import KINDS
from verifier.data.dataset import Dataset, Images, Split
from verifier.errors import ShapeError, VerifierError

TRAIN, TEST = publishers.grey(30, 0), publishers.grey(7, 1)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No directory named, no package, an empty cache, no network: the addresses asked for are collected."""
    asked: list[str] = []

    def retrieve(address: str, checksum: str, fname: str, path: Path) -> None:
        asked.append(address)
        raise ConnectionError("no network")

    monkeypatch.delenv("CERTPRUNE_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setattr("pathlib.Path.is_file", lambda self: not str(self).startswith("/usr/share/") and self.exists() and not self.is_dir())
    return asked


def test_digits_come_with_the_package() -> None:
    digits = verifier.load_dataset("digits")
    assert (digits.x_train.shape, digits.x_test.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert digits.x_train[:].min() == 0 and digits.x_train[:].max() == 1 and digits.x_train.stored.dtype == np.uint8
    assert digits.y_train[:12].tolist() == [*range(10), 0, 1] and np.bincount(digits.y_test).min() > 30
    assert digits.classes == tuple("0123456789")


def test_the_first_zero_of_the_digits_is_the_publishers() -> None:
    """The first line of optdigits.tes."""
    assert verifier.load_dataset("digits").x_train.stored[0, 0, :2].tolist() == [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]


def test_the_directory_that_the_environment_names_is_looked_at(tmp_path: Path, monkeypatch, nowhere) -> None:
    publishers.write_idx(tmp_path / "here" / "mnist", TRAIN, TEST)
    monkeypatch.setenv("CERTPRUNE_DATA", str(tmp_path / "here"))
    assert len(verifier.load_dataset("mnist").train) == 30
    assert nowhere == []


def test_a_given_directory_goes_before_all_and_nothing_is_fetched(tmp_path: Path, monkeypatch, nowhere) -> None:
    publishers.write_idx(tmp_path / "env", TRAIN, TEST)
    publishers.write_idx(tmp_path / "given", TEST, TRAIN)
    monkeypatch.setenv("CERTPRUNE_DATA", str(tmp_path / "env"))
    assert len(verifier.load_dataset("mnist", tmp_path / "given").train) == 7
    (tmp_path / "empty").mkdir()
    with pytest.raises(VerifierError, match=r"train-images-idx3-ubyte, .* are not all in .*empty; check the directory"):
        verifier.load_dataset("mnist", tmp_path / "empty")
    with pytest.raises(VerifierError, match="is not a directory"):
        verifier.load_dataset("mnist", tmp_path / "absent")
    assert nowhere == []


def test_what_cannot_be_fetched_is_one_sentence_with_files_places_and_remedy(tmp_path: Path, nowhere) -> None:
    with pytest.raises(VerifierError) as raised:
        verifier.load_dataset("fashion-mnist")
    said = str(raised.value)
    for part in ("t10k-labels-idx1-ubyte", "/usr/share/datasets/fashion-mnist", str(tmp_path / "cache"), "ConnectionError", "CERTPRUNE_DATA"):
        assert part in said
    assert "\n" not in said and len(nowhere) == 1


def test_the_next_address_is_asked_where_one_fails_and_the_cache_serves_from_then_on(tmp_path: Path, monkeypatch, nowhere) -> None:
    asked: list[str] = []

    def retrieve(address: str, checksum: str, fname: str, path: Path) -> None:
        asked.append(address)
        if "yann" in address:
            raise ValueError("another checksum")
        if fname == "t10k-labels-idx1-ubyte.gz":
            publishers.write_idx(path, TRAIN, TEST)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(verifier.load_dataset("mnist").test) == 7
    assert len(asked) == 8
    assert len(verifier.load_dataset("mnist").test) == 7 and len(asked) == 8
    with pytest.raises(VerifierError):
        verifier.load_dataset("svhn")


def test_every_download_completes_a_layout_and_is_checked() -> None:
    for kind in KINDS.values():
        names = {download.file for download in kind.downloads}
        complete = [layout for layout in kind.layouts if all({name + end for end in layout.endings} & names for name in layout.files)]
        assert complete
        for download in kind.downloads:
            algorithm, digits = download.checksum.split(":")
            assert len(digits) == {"md5": 32, "sha256": 64}[algorithm] and all(a.endswith(download.file) for a in download.addresses)


def test_files_of_the_namesake_are_refused(tmp_path: Path) -> None:
    begins = np.uint8([9, 0, 0, 3, 0, 2, 7, 2, 5, 5])
    publishers.write_idx(tmp_path, (TRAIN[0][:10], begins), TEST)
    assert verifier.load_dataset("fashion-mnist", tmp_path).y_train[0] == 9
    with pytest.raises(VerifierError, match="are those of fashion-mnist, not of mnist"):
        verifier.load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(("name", "hint"), [("Fashion_MNIST", "did you mean fashion-mnist"), ("imagenet", "name a file .npz"), ("", "is not one of")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(VerifierError, match=hint):
        verifier.load_dataset(name)


def test_selection_parts_the_training_images_and_never_touches_the_test() -> None:
    x = np.arange(37, dtype=np.float32).reshape(37, 1, 1, 1) / 37
    whole = Split(Images(x), np.arange(37))
    data = Dataset("numbers", whole, Split(Images(x[:5]), np.arange(100, 105)), ("a",))
    train, chosen = data.selection(10, seed=3)
    assert (len(train), len(chosen)) == (27, 10)
    assert sorted([*train.y, *chosen.y]) == list(range(37))
    np.testing.assert_allclose(chosen.x[:].ravel() * 37, chosen.y, atol=1e-5)
    again, other = data.selection(10, seed=3)[1], data.selection(10, seed=4)[1]
    assert again.y.tolist() == chosen.y.tolist() != other.y.tolist()
    for count in (37, -1):
        with pytest.raises(VerifierError, match="ask for less"):
            data.selection(count, seed=0)


def test_moments_are_those_of_all_pixels(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("verifier.data.dataset.PIECE", 2)
    x, y = publishers.colour(5, 0)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
    data = verifier.load_dataset(tmp_path / "a.npz")
    scaled = x.astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 2, 3)), rtol=1e-6)
    with pytest.raises(VerifierError, match="no training images"):
        Dataset("none", data.train.of([]), data.train, ("a",)).moments()


def test_images_scale_what_is_read_and_keep_bytes() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    images = Images(stored, 255.0)
    np.testing.assert_array_equal(images[1:3], (stored[1:3].astype(np.float64) / 255).astype(np.float32))
    np.testing.assert_array_equal(np.asarray(images), images[:])
    assert images[0].shape == (1, 8, 8) and images.of([2]).stored.dtype == np.uint8 and len(images.of([2])) == 1
    with pytest.raises(ShapeError):
        Images(stored[0])


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
def test_the_real_files_have_the_known_moments(shared: Path, tmp_path: Path, name: str, mean: float, std: float) -> None:
    subprocess.run([sys.executable, shared / "datasets" / "unpack.py", tmp_path, name], check=True)
    data = verifier.load_dataset(name, tmp_path)
    assert (data.x_train.shape, data.x_test.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert (data.mean[0], data.std[0]) == (pytest.approx(mean, abs=5e-5), pytest.approx(std, abs=5e-5))
    assert np.bincount(data.y_test).sum() == 10000


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_cifar_has_the_known_moments(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="the training images are unpacked by Pillow")
    subprocess.run([sys.executable, shared / "datasets" / "unpack.py", tmp_path, "cifar-10"], check=True)
    data = verifier.load_dataset("cifar10", tmp_path)
    np.testing.assert_allclose(data.mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    assert np.bincount(data.y_train).tolist() == [5000] * 10 and np.bincount(data.y_test).tolist() == [1000] * 10

"""Readers of the publishers' formats: what was written is read, and what is cut, damaged, hostile or something else is refused in a sentence."""
from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

import verifier
from tests import publishers
from verifier.data import cifar, idx, npz, svhn
from verifier.errors import VerifierError

TRAIN, TEST = publishers.grey(30, 0), publishers.grey(7, 1)
BATCHES = [publishers.colour(3, seed) for seed in range(6)]


@pytest.mark.parametrize("ending", [".gz", ""])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_is_read(tmp_path: Path, ending: str, name: str) -> None:
    publishers.write_idx(tmp_path / name, TRAIN, TEST, ending)
    read = verifier.load_dataset(name, tmp_path)
    assert read.x_train.shape == (30, 1, 28, 28) and read.x_test.shape == (7, 1, 28, 28)
    np.testing.assert_array_equal(read.x_train.stored[:, 0], TRAIN[0])
    np.testing.assert_allclose(read.x_test[:][:, 0], TEST[0] / 255, rtol=1e-7)
    np.testing.assert_array_equal(read.y_train, TRAIN[1])
    assert read.y_test.dtype == np.int64 and read.x_train[3].dtype == np.float32


IMAGES = publishers.idx_bytes(TRAIN[0])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x0d\x03" + IMAGES[4:], "00 00 0d 03"),
        (publishers.idx_bytes(TRAIN[1]), "00 00 08 01"),
        (IMAGES[:10], "ends within its sizes"),
        (IMAGES[:-1], "23519 bytes"),
        (IMAGES + b"x", "more"),
        (gzip.compress(IMAGES)[:-30], "cut or damaged"),
        (gzip.compress(IMAGES)[:-8] + b"\x00" * 8, "cannot be read"),
        (b"PK\x03\x04 something else", "begins with"),
    ],
)
def test_a_bad_idx_file_is_refused_by_name(tmp_path: Path, data: bytes, what: str) -> None:
    publishers.write_idx(tmp_path, TRAIN, TEST, "")
    (tmp_path / idx.FILES[0]).write_bytes(data)
    with pytest.raises(VerifierError, match=what) as raised:
        verifier.load_dataset("mnist", tmp_path)
    assert idx.FILES[0] in str(raised.value)


def test_labels_must_be_as_many_as_images_and_of_the_classes(tmp_path: Path) -> None:
    publishers.write_idx(tmp_path, (TRAIN[0], TRAIN[1][:-1]), TEST)
    with pytest.raises(VerifierError, match=r"30 images have labels of shape \(29,\)"):
        verifier.load_dataset("mnist", tmp_path)
    publishers.write_idx(tmp_path, (TRAIN[0], TRAIN[1] + 200), TEST)
    with pytest.raises(VerifierError, match="only 10 classes"):
        verifier.load_dataset("mnist", tmp_path)


def _write_cifar(folder: Path, version: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        name + (".bin" if "binary" in version else ""): (publishers.cifar_binary if "binary" in version else publishers.cifar_python)(*batch)
        for name, batch in zip(publishers.CIFAR, BATCHES)
    }
    if "archive" not in version:
        inner = folder / f"cifar-10-batches-{'bin' if 'binary' in version else 'py'}"
        inner.mkdir(exist_ok=True)
        for name, data in files.items():
            (inner / name).write_bytes(data)
        return
    with tarfile.open(folder / f"cifar-10-{version.split()[0]}.tar.gz", "w:gz") as archive:
        for name, data in reversed(files.items()):
            member = tarfile.TarInfo(f"cifar-10-batches/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("version", ["python", "binary", "python archive", "binary archive"])
def test_cifar_is_read_in_the_order_of_its_batches(tmp_path: Path, version: str) -> None:
    _write_cifar(tmp_path, version)
    read = verifier.load_dataset("cifar10", tmp_path)
    np.testing.assert_array_equal(read.x_train.stored, np.concatenate([x for x, _ in BATCHES[:5]]))
    np.testing.assert_array_equal(read.y_train, np.concatenate([y for _, y in BATCHES[:5]]))
    np.testing.assert_array_equal(read.x_test.stored, BATCHES[5][0])
    assert read.classes[0] == "airplane" and sorted(p.name for p in tmp_path.iterdir())[0].startswith("cifar-10-")


def test_the_written_pickle_is_what_pickle_itself_reads() -> None:
    x, y = BATCHES[0]
    content = pickle.loads(publishers.cifar_python(x, y), encoding="bytes")
    np.testing.assert_array_equal(content[b"data"], x.reshape(3, -1))
    assert content[b"labels"] == y.tolist()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_batch_pickled_by_python_3_is_read(tmp_path: Path, protocol: int) -> None:
    x, y = BATCHES[0]
    _write_cifar(tmp_path, "python")
    content = {"data": x.reshape(3, -1), "labels": [int(label) for label in y]}
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(content, protocol))
    np.testing.assert_array_equal(verifier.load_dataset("cifar10", tmp_path).x_train.stored[:3], x)


class _Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    _write_cifar(tmp_path, "python")
    bad = pickle.dumps({"data": _Hostile(tmp_path / "mark"), "labels": []}, 2)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(bad)
    with pytest.raises(VerifierError, match=r"data_batch_2 is refused: it names \w+\.mkdir"):
        verifier.load_dataset("cifar10", tmp_path)
    assert not (tmp_path / "mark").exists()
    pickle.loads(bad)
    assert (tmp_path / "mark").exists(), "the file would have run"


@pytest.mark.parametrize("name", ["numpy\nload", "numpy._core.multiarray\nfrombuffer", "builtins\ngetattr", "verifier.data.cifar\n_bytes"])
def test_no_other_name_is_known(tmp_path: Path, name: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(VerifierError, match="is refused"):
        cifar.read_python([path])


def test_a_damaged_pickle_is_a_sentence_whatever_the_damage(tmp_path: Path) -> None:
    whole, path, random = publishers.cifar_python(*BATCHES[0]), tmp_path / "batch", np.random.default_rng(0)
    refused = 0
    for trial in range(100):
        data = bytearray(whole[: random.integers(0, 250)] if trial % 2 else whole)
        for at in random.integers(0, max(min(len(data), 200), 1), 3 * (trial % 2 == 0)):
            data[at] = random.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            cifar.read_python([path, path])
        except VerifierError:
            refused += 1
    assert refused > 80


@pytest.mark.parametrize("data", [b"", b"x" * 3072, publishers.cifar_binary(*BATCHES[0])[:-1]])
def test_a_cut_binary_batch_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "batch.bin").write_bytes(data)
    with pytest.raises(VerifierError, match="expected a multiple of 3073"):
        cifar.read_binary([tmp_path / "batch.bin"])


def test_a_cut_archive_and_one_that_lacks_a_batch_are_refused(tmp_path: Path) -> None:
    _write_cifar(tmp_path, "python archive")
    path = tmp_path / cifar.PYTHON_ARCHIVE
    with pytest.raises(VerifierError, match=r"lacks data_batch_1.bin"):
        cifar.read_binary_archive([path])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(VerifierError, match="cut or damaged"):
        cifar.read_python_archive([path])
    path.write_bytes(b"no archive")
    with pytest.raises(VerifierError, match=r"python.tar.gz"):
        cifar.read_python_archive([path])


def _write_svhn(folder: Path, **changed: np.ndarray) -> None:
    for name, (x, y) in zip(svhn.FILES, BATCHES):
        labels = np.where(y == 0, 10, y)[:, None]
        savemat(folder / name, {"X": x.transpose(2, 3, 1, 0), "y": labels.astype(np.uint8)} | changed)


def test_svhn_is_read_with_ten_as_zero(tmp_path: Path) -> None:
    _write_svhn(tmp_path)
    read = verifier.load_dataset("svhn", tmp_path)
    np.testing.assert_array_equal(read.x_train.stored, BATCHES[0][0])
    np.testing.assert_array_equal(read.y_test, BATCHES[1][1])
    _write_svhn(tmp_path, y=np.full((3, 1), 10, np.uint8))
    assert verifier.load_dataset("svhn", tmp_path).y_train.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"y": np.ones((2, 1))}, "3 images and 2 labels"), ({"X": np.zeros((3, 32, 32, 3), np.uint8)}, "expected bytes"), ({"X": np.zeros(3)}, "X")],
)
def test_a_matlab_file_of_another_content_is_refused(tmp_path: Path, changed: dict, what: str) -> None:
    _write_svhn(tmp_path, **changed)
    with pytest.raises(VerifierError, match=what):
        verifier.load_dataset("svhn", tmp_path)


@pytest.mark.parametrize("data", [b"", b"no matlab file", b"x" * 200])
def test_what_is_no_matlab_file_is_refused(tmp_path: Path, data: bytes) -> None:
    _write_svhn(tmp_path)
    (tmp_path / svhn.FILES[0]).write_bytes(data)
    with pytest.raises(VerifierError, match=r"train_32x32.mat"):
        verifier.load_dataset("svhn", tmp_path)
    (tmp_path / svhn.FILES[0]).write_bytes((tmp_path / svhn.FILES[1]).read_bytes()[:300])
    with pytest.raises(VerifierError, match=r"train_32x32.mat"):
        verifier.load_dataset("svhn", tmp_path)


def test_npz_takes_every_usual_shape(tmp_path: Path) -> None:
    x, y = BATCHES[0]
    path = tmp_path / "a.npz"
    for given in (x, x.transpose(0, 2, 3, 1)):
        np.savez(path, x_train=given, y_train=y, x_test=given[:2], y_test=y[:2])
        read = verifier.load_dataset(path)
        np.testing.assert_array_equal(read.x_train.stored, x)
        assert (read.name, len(read.test), read.classes[-1]) == ("a.npz", 2, str(y.max()))
    np.savez(path, x=TEST[0] / 255, y=TEST[1])
    read = verifier.load_dataset(path)
    assert read.x_test.shape == (7, 1, 28, 28) and len(read.train) == 0
    np.testing.assert_allclose(read.x_test[:][:, 0], TEST[0] / 255, rtol=1e-7)
    np.savez(path, x=np.ones((4, 6)), y=[0, 1, 2, 3])
    assert verifier.load_dataset(path).x_test.shape == (4, 1, 1, 6)


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"x": TEST[0]}, "has the arrays x: expected"),
        ({"x": TEST[0], "y": TEST[1][:5]}, "one label an image"),
        ({"x": TEST[0].astype(float), "y": TEST[1]}, "goes from 0 to 255"),
        ({"x": np.full((7, 28, 28), np.nan), "y": TEST[1]}, "goes from nan"),
        ({"x": TEST[0], "y": TEST[1].astype(float)}, "labels of type float64"),
        ({"x": TEST[0], "y": -TEST[1].astype(int) - 1}, "labels of type int64"),
        ({"x": TEST[0][:0], "y": TEST[1][:0]}, "N at least 1"),
        ({"x": np.array([{}] * 7), "y": TEST[1]}, "plain arrays"),
        ({"x_train": TEST[0], "y_train": TEST[1], "x_test": TEST[0][:, :14], "y_test": TEST[1]}, "differ in shape"),
    ],
)
def test_npz_refuses_what_are_no_images(tmp_path: Path, arrays: dict, what: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(VerifierError, match=what):
        npz.read(tmp_path / "a.npz")


def test_npz_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(VerifierError, match="cannot be read"):
        npz.read(path)
    np.savez(path, x=TEST[0], y=TEST[1])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(VerifierError, match=r"not an \.npz file"):
        npz.read(path)

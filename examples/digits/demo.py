"""The demo: how many of twenty handwritten digits keep their label on a whole box around them, proved, at two radii.

python -m examples.digits.demo
"""
from __future__ import annotations

import time
from pathlib import Path

import verifier
from verifier.measure.certified import Perturbation, Summary, certify

HERE = Path(__file__).parent
RADII = (0.03, 0.08)


def main() -> None:
    graph = verifier.load_onnx(HERE / "digits.onnx")
    images, labels = verifier.load_images(HERE / "images.npz")
    config = verifier.Config(timeout_s=5.0, device="cpu")
    print(f"{len(images)} images of 8 x 8 digits, pixels in [0, 1]: is every image within the radius classified as the original is?\n")
    print(f"{'radius':>8} {'certified':>10} {'falsified':>10} {'undecided':>10} {'seconds':>8}")
    for eps in RADII:
        started = time.monotonic()
        found = Summary.of(list(certify(graph, images, labels, Perturbation(eps, clip=(0.0, 1.0)), config)))
        print(f"{eps:8.2f} {found.certified:10d} {found.falsified:10d} {found.undecided:10d} {time.monotonic() - started:8.2f}")
    print("\nCertified: proved for every input in the box. Falsified: an input with another label was found, and replayed in onnxruntime.")


if __name__ == "__main__":
    main()

"""What every test sees: where the shared instances are, one torch thread, slow tests only when asked for."""
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CERTPRUNE_SHARED", ROOT.parent / "shared"))

# Before torch is imported: small tensors are faster on one thread, and two threads on a busy machine wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Deterministic and without a deadline: a busy machine must not make a test fail.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too, as with CI=true")


def pytest_report_header() -> str:
    found = "used" if SHARED.is_dir() else "absent, tests that use it are skipped (set CERTPRUNE_SHARED)"
    return f"shared instances: {SHARED} {found}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out slow tests unless CI=true, --slow or a -m expression asks for them, and cuda tests where there is no device."""
    slow_wanted = config.getoption("--slow") or os.environ.get("CI") == "true" or config.getoption("-m")
    for item in items:
        if item.get_closest_marker("slow") and not slow_wanted:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow or CI=true"))
        if item.get_closest_marker("cuda") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared instances; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared instances at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the digits example: `digits.onnx` and `images.npz`."""
    return ROOT / "examples" / "digits"

"""Damaged model files: whatever the bytes, the command line answers a table or one sentence, soon, and never a traceback."""
from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.small_models import absolute_value
from verifier.cli import run

LIMIT_S = 20  # a few milliseconds are usual; this says "hang" on the busiest machine


@contextlib.contextmanager
def ends_in_time() -> Iterator[None]:
    def too_long(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return absolute_value(tmp_path_factory.mktemp("whole") / "abs.onnx").read_bytes()


# One mutation: where (a share of the file), how many bytes are replaced, by what.
mutation = st.tuples(st.floats(0, 1, allow_nan=False), st.integers(0, 8), st.binary(max_size=8))


def mutated(whole: bytes, mutations: list[tuple[float, int, bytes]]) -> bytes:
    for share, count, new in mutations:
        at = int(share * len(whole))
        whole = whole[:at] + new + whole[at + count :]
    return whole


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(mutation, min_size=1, max_size=4))
@example(mutations=[(0.0, 10_000, b"")])
@example(mutations=[(0.5, 10_000, b"")])
def test_a_damaged_model_is_read_or_refused(whole: bytes, tmp_path: Path, mutations: list[tuple[float, int, bytes]]) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(mutated(whole, mutations))
    out, err = io.StringIO(), io.StringIO()
    with ends_in_time(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["info", str(path)])
    assert code in (0, 2)
    if code == 2:
        assert out.getvalue() == "" and len(err.getvalue().splitlines()) == 1
    else:
        assert out.getvalue() != ""

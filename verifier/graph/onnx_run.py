"""The network file run by onnxruntime on the CPU, exactly as the file says: it replays counterexamples and checks the loader."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from verifier.errors import ModelError, ShapeError
from verifier.graph.onnx_file import expose_values, first_line, runnable_bytes

_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class OnnxRunner:
    """y = f(x) on flat arrays, by onnxruntime with one thread.

    Args:
        model: path of an `.onnx` or `.onnx.gz` file, or the bytes of a model.
        folder: where external data lies, for bytes; a path brings its own.

    Attributes:
        input_shape, output_shape: as the file says, a dynamic dimension counted as 1.
        input_dtype: float32, float64 or float16: x is rounded to it before it goes in.
        n_in, n_out: the numbers of values of one sample.

    Raises:
        ModelError: onnxruntime cannot load or run the file, or it has not one floating input and one output.
    """

    def __init__(self, model: str | Path | bytes, folder: str | Path | None = None) -> None:
        self.name = "the model" if isinstance(model, bytes) else str(model)
        data = model if isinstance(model, bytes) else runnable_bytes(model)
        self._session = _session(data, folder if isinstance(model, bytes) else Path(model).parent, self.name)
        self._source = _only(self._session.get_inputs(), "inputs", self.name)
        _only(self._session.get_outputs(), "outputs", self.name)
        if self._source.type not in _FLOATS:
            raise ModelError(f"{self.name}: the input is a {self._source.type}; float16, float32 or float64 is needed.")
        self.input_dtype = np.dtype(_FLOATS[self._source.type])
        self.input_shape = tuple(d if isinstance(d, int) and d > 0 else 1 for d in self._source.shape)
        self.n_in = math.prod(self.input_shape)
        first = self._run(np.zeros(self.input_shape, self.input_dtype))
        self.output_shape = first.shape
        self.n_out = first.size

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """f(x) of one sample, `(n_in,)` to `(n_out,)`, in the file's output type."""
        x = np.asarray(x)
        if x.size != self.n_in:
            raise ShapeError(f"{self.name} takes {self.n_in} values, but {x.shape} was given.")
        return self._run(x.reshape(self.input_shape).astype(self.input_dtype)).reshape(-1)

    def many(self, x: np.ndarray) -> np.ndarray:
        """f(x) of K samples, `(K, n_in)` to `(K, n_out)`: in one batch where the file allows it, else one by one.

        A batch is used only if its last row equals, up to rounding, that row run alone; what must be exact belongs to a single call.
        """
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != self.n_in:
            raise ShapeError(f"{self.name} takes samples of {self.n_in} values, but {x.shape} was given.")
        if len(x) > 1 and self._source.shape and not isinstance(self._source.shape[0], int):
            together = self._batch(x)
            if together is not None:
                return together
        return np.stack([self(row) for row in x]) if len(x) else np.empty((0, self.n_out), np.float32)

    def _batch(self, x: np.ndarray) -> np.ndarray | None:
        """All samples at once, None where the file, dynamic as it claims to be, does not allow it."""
        batch = x.reshape(len(x), *self.input_shape[1:]).astype(self.input_dtype)
        try:
            values = self._run(batch)
        except ModelError:
            return None
        if values.shape[:1] != (len(x),) or values.size != len(x) * self.n_out:
            return None
        values, alone = values.reshape(len(x), -1), self(x[-1])
        near = 1e-2 if values.dtype == np.float16 else 1e-4
        return values if np.allclose(values[-1], alone, rtol=near, atol=near * float(np.abs(alone).max())) else None

    def _run(self, x: np.ndarray) -> np.ndarray:
        try:
            return self._session.run(None, {self._source.name: x})[0]
        except Exception as error:
            raise ModelError(f"{self.name}: onnxruntime cannot run it: {first_line(error)}") from None


class NamedRunner:
    """x `(n_in,)` to the values that a file's nodes give these names, by name: onnxruntime on the file with more outputs.

    Raises:
        ModelError: onnxruntime cannot load or run it.
    """

    def __init__(self, path: str | Path, names: set[str]) -> None:
        data, self.names = expose_values(path, names)
        self._path, self._session = path, _session(data, Path(path).parent, str(path)) if self.names else None

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        if self._session is None:
            return {}
        source = self._session.get_inputs()[0]
        shape = tuple(d if isinstance(d, int) and d > 0 else 1 for d in source.shape)
        try:
            return dict(zip(self.names, self._session.run(self.names, {source.name: x.reshape(shape)})))
        except Exception as error:
            raise ModelError(f"{self._path}: onnxruntime cannot run it: {first_line(error)}") from None


def _session(data: bytes, folder: str | Path | None, name: str):
    """An onnxruntime session with one thread that says nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        # enable_fallback: otherwise onnxruntime prints to the standard output and tries the same again
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise ModelError(f"{name}: onnxruntime cannot load it: {first_line(error)}") from None


def _only(values: list, what: str, name: str):
    if len(values) != 1:
        raise ModelError(f"{name} has {len(values)} {what}; exactly one is needed.")
    return values[0]

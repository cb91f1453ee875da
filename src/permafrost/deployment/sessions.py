"""What runs an exported graph without torch: ONNX Runtime, and OpenVINO for weights of 4 bits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from permafrost.compression.signed_products import has_signed_weights, products_overflow, without_sign
from permafrost.errors import ConfigError

ONNX, OPENVINO = "model.onnx", "model.xml"
PROVIDERS = ["CPUExecutionProvider"]


class Session(Protocol):
    """A graph that is loaded."""

    @property
    def input_names(self) -> Sequence[str]: ...

    def run(self, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs, in their order."""
        ...


def graph_in(directory: Path) -> Path | None:
    """The graph of an exported model, if it has one."""
    return next((directory / name for name in (ONNX, OPENVINO) if (directory / name).is_file()), None)


def open_session(path: Path, threads: int = 0) -> Session:
    """On the CPU, with so many threads; 0 is one for each core."""
    return OpenVinoSession(path, threads) if path.suffix == ".xml" else OnnxSession(path, threads)


class OnnxSession:
    def __init__(self, path: Path, threads: int):
        runtime = import_onnx()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._session = runtime.InferenceSession(str(path), options, providers=PROVIDERS)
        if has_signed_weights(self._session) and products_overflow():
            self._session = runtime.InferenceSession(without_sign(path), options, providers=PROVIDERS)
        self.input_names = [given.name for given in self._session.get_inputs()]

    def run(self, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self._session.run(None, dict(given))


class OpenVinoSession:
    """In float32 where its weights are not: CPUs that have bfloat16 would compute in it, and others not."""

    def __init__(self, path: Path, threads: int):
        openvino = import_openvino()
        options = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self._compiled = openvino.Core().compile_model(path, "CPU", options)
        self.input_names = [given.any_name for given in self._compiled.inputs]

    def run(self, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = self._compiled(dict(given))
        return [found[output] for output in self._compiled.outputs]


def import_onnx() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch.onnx needs
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}; pip install -e '.[onnx]'") from None
    return onnxruntime


def import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError(f"weights of 4 bits need {error.name}; pip install -e '.[int4]'") from None
    return openvino

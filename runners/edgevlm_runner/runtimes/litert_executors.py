"""What runs the signatures of a .tflite file: LiteRT's CompiledModel, or its older Interpreter.

Both take arrays and return the outputs that are not part of the KV cache.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

import numpy as np

from edgevlm_runner.errors import ExecutionError, RuntimeUnavailable

STATE = "kv_cache_"
"""Beginning of the names of inputs and outputs that are the cache."""

Shapes = Dict[str, Tuple[int, ...]]


class Signature(NamedTuple):
    """What one entry point of the file takes and gives, name → shape."""

    inputs: Shapes
    outputs: Shapes


def open_executor(
    path: Path, threads: int, accelerator: str, packed_weights: Optional[Path], in_place: bool
) -> Any:
    """packed_weights: file that XNNPACK reads its weights from, or writes them to when it is not there.

    Raises RuntimeUnavailable without any LiteRT package, ExecutionError when it refuses the file."""
    interpreter, package, has_compiled_model = _import_litert()
    try:
        with _silence():
            interpreter(
                model_path=str(path)
            )  # checks the whole file; CompiledModel crashes on a truncated one
        if in_place and has_compiled_model:
            return _Compiled(path, threads, accelerator, packed_weights)
        return _Interpreted(interpreter, package, path, threads)
    except Exception as error:  # LiteRT raises ValueError and RuntimeError alike
        raise ExecutionError(f"{path}: LiteRT refuses this graph: {error}") from error


class _Compiled:
    """LiteRT's CompiledModel. A cache is one set of buffers, bound as input and output of every step."""

    def __init__(self, path: Path, threads: int, accelerator: str, packed_weights: Optional[Path]) -> None:
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

        writing = None
        if packed_weights is not None and not packed_weights.exists():
            writing = packed_weights.with_name(f"{packed_weights.name}.{os.getpid()}")
        cpu = HardwareAccelerator.CPU
        wanted = {"cpu": cpu, "gpu": HardwareAccelerator.GPU | cpu, "npu": HardwareAccelerator.NPU | cpu}
        options = Options(
            hardware_accelerators=wanted[accelerator],
            cpu_options=CpuOptions(
                num_threads=threads,
                xnnpack_weight_cache_path=str(writing or packed_weights or ""),
            ),
        )
        with _silence():
            self._model = CompiledModel.from_file(str(path), options=options)
            self.signatures = {name: self._signature(name) for name in self._model.get_signature_list()}
            self._write_once()
        _silence_exit()
        if writing is not None and packed_weights is not None and writing.exists():
            writing.replace(packed_weights)  # complete since the model is loaded; others may start now
        self._buffers: Dict[str, Tuple[Dict[str, Any], Dict[str, Any]]] = {}
        self.versions = {"ai-edge-litert": _version("ai_edge_litert"), "executor": "CompiledModel"}

    def _write_once(self) -> None:
        """The first write to any buffer starts a second environment, with all its messages."""
        for signature, (inputs, _) in self.signatures.items():
            for name, shape in inputs.items():
                if name.startswith(STATE) or name == "pixel_values":
                    buffer = self._model.create_input_buffer_by_name(signature, name)
                    buffer.write(np.zeros(shape, np.float32))
                    return

    def allocate(self, signature: str) -> Dict[str, Any]:
        """Zeros: whatever else a new buffer holds could be NaN, which a mask does not hide."""
        cache = {}
        for name, shape in self.signatures[signature].inputs.items():
            if name.startswith(STATE):
                cache[name] = self._model.create_input_buffer_by_name(signature, name)
                cache[name].write(np.zeros(shape, np.float32))
        return cache

    def run(
        self, signature: str, inputs: Dict[str, np.ndarray], cache: Optional[Dict[str, Any]]
    ) -> Dict[str, np.ndarray]:
        given, taken = self._buffers_of(signature)
        shapes = self.signatures[signature]
        for name, array in inputs.items():
            if array.shape != shapes.inputs[name]:  # the library would read or write beyond its buffer
                raise ValueError(f"{name} must be {list(shapes.inputs[name])}")
            given[name].write(array)
        cache = cache or {}
        self._model.run_by_name(signature, {**given, **cache}, {**taken, **cache})
        outputs = {}
        for name, buffer in taken.items():
            shape = shapes.outputs[name]
            outputs[name] = buffer.read(int(np.prod(shape)), np.float32).reshape(shape)
        return outputs

    def close(self) -> None:
        with _silence():
            self._buffers = {}
            self._model = None

    def _buffers_of(self, signature: str) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """Inputs and outputs besides the cache, made at first use."""
        if signature not in self._buffers:
            model, shapes = self._model, self.signatures[signature]
            self._buffers[signature] = (
                {
                    name: model.create_input_buffer_by_name(signature, name)
                    for name in shapes.inputs
                    if not name.startswith(STATE)
                },
                {
                    name: model.create_output_buffer_by_name(signature, name)
                    for name in shapes.outputs
                    if not name.startswith(STATE)
                },
            )
        return self._buffers[signature]

    def _signature(self, name: str) -> Signature:
        inputs = self._model.get_input_tensor_details(name)
        outputs = self._model.get_output_tensor_details(name)
        return Signature(
            {key: tuple(one["shape"]) for key, one in inputs.items()},
            {key: tuple(one["shape"]) for key, one in outputs.items()},
        )


class _Interpreted:
    """The older Interpreter: every step copies the cache in and out. A cache is a dict of arrays."""

    def __init__(self, interpreter: Any, package: str, path: Path, threads: int) -> None:
        with _silence():
            made = interpreter(model_path=str(path), num_threads=threads)
            self._runners = {name: made.get_signature_runner(name) for name in made.get_signature_list()}
        self.signatures = {
            name: Signature(
                {key: tuple(one["shape"]) for key, one in runner.get_input_details().items()},
                {key: tuple(one["shape"]) for key, one in runner.get_output_details().items()},
            )
            for name, runner in self._runners.items()
        }
        self.versions = {package.replace("_", "-"): _version(package), "executor": "Interpreter"}

    def allocate(self, signature: str) -> Dict[str, np.ndarray]:
        inputs = self.signatures[signature].inputs
        return {name: np.zeros(shape, np.float32) for name, shape in inputs.items() if name.startswith(STATE)}

    def run(
        self, signature: str, inputs: Dict[str, np.ndarray], cache: Optional[Dict[str, np.ndarray]]
    ) -> Dict[str, np.ndarray]:
        with _silence():
            outputs = self._runners[signature](**inputs, **(cache or {}))
        results = {}
        for name, array in outputs.items():
            if name.startswith(STATE):
                assert cache is not None
                cache[name] = array
            else:
                results[name] = array
        return results

    def close(self) -> None:
        with _silence():
            self._runners = {}


def _import_litert() -> Tuple[Any, str, bool]:
    """(Interpreter, its package, whether CompiledModel is there too)."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise RuntimeUnavailable(
                f"ai-edge-litert cannot be imported ({error}). Install it: pip install 'ai-edge-litert>=2.1'."
            ) from error
        return Interpreter, "tflite_runtime", False
    try:
        import ai_edge_litert.compiled_model
    except ImportError:
        return Interpreter, "ai_edge_litert", False
    return Interpreter, "ai_edge_litert", bool(ai_edge_litert.compiled_model)


@functools.lru_cache(maxsize=1)
def _silence_exit() -> None:
    """An environment that only the process's end destroys says so, after the last word of Python."""
    if not os.environ.get("EDGEVLM_VERBOSE"):
        atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package.replace("_", "-"))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """LiteRT tells on standard error which accelerators it looks for, and has no switch for that."""
    if os.environ.get("EDGEVLM_VERBOSE"):
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

"""The names that TensorRT's and CUDA's Python bindings offer: `python tests/device/tensorrt_names.py`.

The bindings wheels are public; NVIDIA's libraries behind them are not on the ordinary registry. A binding
needs those libraries to be loaded, not to register its classes: empty ones with the same sonames and symbols
let it be imported, and Python then says itself which names it has. Nothing of TensorRT can run this way.

Writes `tests/device/names/KIND-RELEASE.json`, which the tests read. Needs pip, a C compiler, binutils, and a
Python for which every wheel was published (3.11).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "names"

TENSORRT = {
    "8.6": "tensorrt-bindings==8.6.1",
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.13": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16": "tensorrt-cu13-bindings==10.16.1.11",
    "11.1": "tensorrt-cu13-bindings==11.1.0.106",
}
"""TensorRT release → public wheel. Older releases than 8.6 were never published as bindings."""

CUDA = {
    "11.8": "cuda-bindings==11.8.7",
    "12.6": "cuda-python==12.6.0",
    "13.0": "cuda-bindings==13.0.3",
    "13.2": "cuda-bindings==13.2.0",
}
"""CUDA release → public wheel. JetPack 5 has CUDA 11.4; 11.8 is the oldest of its line that was published."""

# Runs in its own process: one binding per interpreter. What every object and every enum has is left out, and
# so are the members of classes that a runtime which parses ONNX has nothing to do with.
_LIST = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
is_cuda = module.__name__.startswith("cuda")
common = {*dir(int), "name", "value"}
without_members = ("Plugin", "Algorithm", "Calibrator", "cudaError_t")
def members(owner):
    return sorted(name for name in dir(owner) if not name.startswith("_") and name not in common)
def wanted(name, one):
    if name.endswith("Layer") or any(part in name for part in without_members) or not isinstance(one, type):
        return []
    return members(one) if not is_cuda or issubclass(one, int) else []
public = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
print(json.dumps({name: wanted(name, one) for name, one in public.items()
                  if type(one) is not type(sys) and (name.startswith("cuda") or not is_cuda)}))
"""


def download(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement` for this interpreter."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_empty_libraries(extension: Path, folder: Path) -> None:
    """NVIDIA's libraries that `extension` links to; its undefined symbols return null in them."""
    symbols = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", str(extension)], capture_output=True, text=True, check=True
    ).stdout
    wanted = [line.split()[1] for line in symbols.splitlines() if line.split()[0] == "U"]
    # Symbols with a version (@GLIBC…) and Python's own are there without us.
    ours = [name for name in wanted if "@" not in name and not name.startswith(("Py", "_Py"))]
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ours))
    headers = subprocess.run(
        ["objdump", "-p", str(extension)], capture_output=True, text=True, check=True
    ).stdout
    for line in headers.splitlines():
        if "NEEDED" in line and (soname := line.split()[1]).startswith("libnv"):
            command = [
                "cc",
                "-shared",
                "-fPIC",
                f"-Wl,-soname,{soname}",
                "-o",
                str(folder / soname),
                str(source),
            ]
            subprocess.run(command, check=True)


def names(module: str, folder: Path) -> dict[str, list[str]]:
    """Public name → public members, of the module as it is imported from `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-W", "ignore", "-c", _LIST, module]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def write(release: str, requirement: str, kind: str) -> Path:
    """Extract one wheel's names into `FOLDER/KIND-RELEASE.json`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = download(requirement, folder)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        zipfile.ZipFile(wheel).extractall(folder)
        if kind == "tensorrt":
            module = "tensorrt_bindings"
            build_empty_libraries(folder / module / "tensorrt.so", folder)
        else:
            module = "cuda.bindings.runtime" if (folder / "cuda" / "bindings").is_dir() else "cuda.cudart"
            # What the bindings import at load; no CUDA is needed.
            pathfinder = download("cuda-pathfinder", folder / "pathfinder")
            zipfile.ZipFile(pathfinder).extractall(folder)
        found = names(module, folder)
    head = {"requirement": requirement, "wheel": wheel.name, "sha256": digest, "module": module}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(found.items())]
    path = FOLDER / f"{kind}-{release}.json"
    text = (
        json.dumps(head, indent=1).removesuffix("\n}") + ',\n "names": {\n' + ",\n".join(lines) + "\n }\n}\n"
    )
    path.write_text(text)
    return path


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for kind, wheels in (("tensorrt", TENSORRT), ("cuda", CUDA)):
        for release, requirement in wheels.items():
            print(write(release, requirement, kind))

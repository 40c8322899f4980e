"""`python tests/device/jetson_image.py`: what of Dockerfile.jetson needs no board and no Docker engine.

1. Every package that its `pip install` lines want has a wheel for aarch64 and for the Python of each JetPack,
   at the version in constraints-jetson.txt, and that file names all of them and nothing else. Needs the
   network, and a `python3.10` and a `python3.12`: environment markers are those of the Python that runs pip.
2. With `--root`, a Debian arm64 root as tests/device/arm64/root.sh makes it: the RUN lines, as they stand, in
   that root, emulated, and `edgevlm` as the image's user. Debian bookworm has Python 3.11 and glibc 2.36,
   between those of the two images. It has no CUDA and no TensorRT, so the line that looks for `tensorrt` is
   left out; that the base images exist and fit a board is not shown either.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT_SH = Path(__file__).parent / "arm64" / "root.sh"
DOCKERFILE = REPOSITORY / "Dockerfile.jetson"
CONSTRAINTS = REPOSITORY / "constraints-jetson.txt"
PYTHONS = {"3.10": "JetPack 6", "3.12": "JetPack 7"}
DEBIAN_PYTHON = "3.11"
GLIBC_MINORS = (17, 24, 26, 27, 28, 31, 34)
"""manylinux_2_N tags up to Ubuntu 22.04's glibc 2.35, which is JetPack 6's."""
BOARD_ONLY = "find_spec('tensorrt')"
"""In a command that needs the base image."""


@dataclass(frozen=True)
class Stage:
    """One FROM of the Dockerfile."""

    copies: tuple[tuple[str, ...], ...]
    """Words of each COPY."""
    commands: tuple[str, ...]
    """The commands of all RUN lines, split at `&&`."""


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile, in order; instructions other than COPY and RUN are left out."""
    kept = "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#"))
    lines = kept.replace("\\\n", " ").splitlines()
    words = [line.split(maxsplit=1) for line in lines if line.strip()]
    starts = [index for index, (verb, *_) in enumerate(words) if verb == "FROM"]
    return [
        Stage(
            tuple(tuple(rest.split()) for verb, rest in words[first:last] if verb == "COPY"),
            tuple(
                re.sub(r"\s+", " ", one).strip()
                for verb, rest in words[first:last]
                if verb == "RUN"
                for one in rest.split("&&")
            ),
        )
        for first, last in zip(starts, [*starts[1:], len(words)], strict=True)
    ]


def requirements(commands: tuple[str, ...]) -> list[str]:
    """What the `pip install` commands ask for."""
    found: list[str] = []
    for words in map(shlex.split, commands):
        if "pip" not in words or "install" not in words:
            continue
        rest = iter(words[words.index("install") + 1 :])
        for word in rest:
            if word in ("--constraint", "--only-binary"):
                next(rest)
            elif not word.startswith("-"):
                found.append(word)
    return found


def pins(python: str) -> dict[str, str]:
    """Package → version in constraints-jetson.txt, for one Python."""
    lines = CONSTRAINTS.read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in found
        if one.marker is None
        or one.marker.evaluate({"python_version": python, "python_full_version": python})
    }


def download(wanted: list[str], python: str, folder: Path) -> dict[str, str]:
    """Fetch the aarch64 wheels of `wanted` and of all they need; returns package → version."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS] + ["manylinux2014_aarch64"]
    interpreter = folder.with_name(f"python{python}")
    subprocess.run([f"python{python}", "-m", "venv", "--without-pip", str(interpreter)], check=True)
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "download", "--quiet"]
    command += ["--dest", str(folder), "--constraint", str(CONSTRAINTS)]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    command += [word for one in platforms for word in ("--platform", one)]
    subprocess.run([*command, *wanted], check=True)
    wheels = [parse_wheel_filename(path.name) for path in folder.glob("*.whl")]
    return {name: str(version) for name, version, *_ in wheels}


def show_wheels(wanted: list[str], python: str, folder: Path) -> list[str]:
    """Print what was found and return what is wrong."""
    found, pinned = download(wanted, python, folder), pins(python)
    del found["edgevlm"]
    print(f"Python {python} ({PYTHONS.get(python, 'Debian')}): {len(found)} packages for aarch64")
    for path in sorted(folder.glob("*.whl")):
        print(f"  {path.name}")
    return [
        *(f"{name}=={found[name]} is not in {CONSTRAINTS.name}" for name in found.keys() - pinned.keys()),
        *(f"{name} of {CONSTRAINTS.name} is not needed" for name in pinned.keys() - found.keys()),
        *(f"{name}=={found[name]} came for {pinned[name]}" for name in found.keys() & pinned.keys()
          if found[name] != pinned[name]),
    ]  # fmt: skip


def run_in_root(root: Path, build: Stage, final: Stage, wheels: Path) -> None:
    """The commands of both stages in a Debian arm64 root, pip taking its wheels from a folder."""
    for folder in ("src", "dist", "opt/build", "opt/edgevlm", "wheels", "work", "var/cache/edgevlm"):
        shutil.rmtree(root / folder, ignore_errors=True)
    shutil.copytree(wheels, root / "wheels")
    (root / "src").mkdir()
    for *sources, target in build.copies:
        for source in sources:
            one, there = REPOSITORY / source, root / "src" / target
            if one.is_dir():
                shutil.copytree(one, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(one, there)
    path = "/opt/edgevlm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    inside = [str(ROOT_SH), "run", str(root), "env", "-u", "PYTHONPATH", f"PATH={path}", "PIP_NO_INDEX=1"]
    inside += ["PIP_FIND_LINKS=/wheels", "EDGEVLM_CACHE=/var/cache/edgevlm", "DEBIAN_FRONTEND=noninteractive"]
    subprocess.run([*inside, "sh", "-c", "userdel edgevlm 2> /dev/null || true"], check=True)
    as_user = "setpriv --reuid 10001 --regid 10001 --clear-groups"
    program = "import sys, onnxruntime, edgevlm_runner; print(sys.version, onnxruntime.__version__)"
    written = "/work/written /var/cache/edgevlm/written"
    check = (
        f"cd /work && {as_user} sh -c 'id && edgevlm targets && touch {written} && python -c \"{program}\"'"
    )
    for command in (*build.commands, *final.commands, check):
        if BOARD_ONLY in command:
            print(f"left out: {command}")
            continue
        print(f"+ {command}", flush=True)
        subprocess.run([*inside, "sh", "-c", f"cd /src && {command}"], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, help="Debian arm64 root in which to run the install steps")
    root = parser.parse_args().root
    build, final = stages(DOCKERFILE.read_text())
    os.environ.pop("PYTHONPATH", None)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        command = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            name,
            str(REPOSITORY),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = work.glob("*.whl")
        wanted = [str(wheel) if one.startswith("/dist/") else one for one in requirements(build.commands)]
        for python in PYTHONS:
            problems += show_wheels(wanted, python, work / python)
        if root is not None:
            download(wanted, DEBIAN_PYTHON, work / DEBIAN_PYTHON)
            run_in_root(root.resolve(), build, final, work / DEBIAN_PYTHON)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python3 -m edgevlm_runner BUNDLE --out DIR`: gather evidence on a device and nothing else.

Progress goes to standard output, one JSON object a line: {"answered": n, "items": m}. Errors are one
line on standard error, with the exit code of their cause. The host judges what is written to DIR.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgevlm_runner.bundle import open_bundle
from edgevlm_runner.errors import EdgeVlmError
from edgevlm_runner.measure import gather


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgevlm_runner", description="Gather evidence for a bundle.")
    parser.add_argument("bundle", type=Path, help="NAME.edgevlm or its unpacked folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for evidence.json and answers.jsonl")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; the target's by default")
    parser.add_argument(
        "--emulate",
        action="store_true",
        help="run TensorRT's graphs in ONNX Runtime; not the device's answers",
    )
    arguments = parser.parse_args()
    try:
        bundle = open_bundle(arguments.bundle)
        gather(bundle, arguments.out, _report, arguments.threads, arguments.emulate)
    except EdgeVlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _report(answered: int, items: int) -> None:
    print(json.dumps({"answered": answered, "items": items}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""A chat-completions server on loopback, and a validated bundle with a few wrong answers."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import small_bundle
from edgevlm_runner.contract import Answer, ImageSpec, Item, write_jsonl
from PIL import Image

from edgevlm_deploy import bundle as bundles
from edgevlm_deploy import metrics, resources
from edgevlm_deploy.artifacts import file_digest
from edgevlm_deploy.metrics import Estimate
from edgevlm_deploy.recipe import Evaluation

Reply = tuple[int, dict[str, str], bytes] | float
"""Status, headers and body; or seconds of silence."""


def said(content: str) -> bytes:
    """A chat completion with that content."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def category(name: str) -> Reply:
    return 200, {}, said(json.dumps({"category": name, "reason": "Because."}))


@dataclass
class Server:
    """What it was asked, and what it answers: one after another from `replies`, then `always`."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    always: Callable[[dict[str, Any]], Reply] = lambda _: category("other")
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply_to(self, request: dict[str, Any], key: str) -> Reply:
        with self.lock:
            self.requests.append(request)
            self.keys.append(key)
            return self.replies.pop(0) if self.replies else self.always(request)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "EDGEVLM_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    state, stopping = Server(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = state.reply_to(request, self.headers.get("Authorization", ""))
            if isinstance(reply, float):
                stopping.wait(reply)
                return
            status, headers, body = reply
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield state
        stopping.set()
        http.shutdown()
        thread.join()
    time.sleep(0)


QUESTIONS = (
    ("What color is the cube?", "red", "red", "blue"),
    ("Is there a ball?", "yes", "no", "no"),
    ("How many rings are there?", "2", "2", "3"),
    ("What shape is it?", "cube", "cube", "cube"),
    ("What texture does it have?", "plain", "plain", ""),
    ("Is there a dog?", "no", "no", "yes"),
)
"""(question, right answer, what the reference says, what the artifact says)."""


@pytest.fixture
def validated(tmp_path: Path) -> Path:
    """A bundle's folder with its evidence beside it; the last question is about a corrupted picture."""
    picture = tmp_path / "picture.png"
    Image.effect_noise((48, 48), 80).convert("RGB").save(picture)
    image_id = file_digest(picture)
    image = bundles.picture_name(picture, image_id)
    items = [
        Item(f"q{n}", f"q{n}", "", "clean", image, image_id, question, (right,))
        for n, (question, right, _, _) in enumerate(QUESTIONS)
    ]
    items.append(Item("q5@contrast/3", "q5", "", "contrast/3", image, image_id, QUESTIONS[5][0], ("no",)))
    rows = (*QUESTIONS, QUESTIONS[5])
    reference, artifact = (
        [
            Answer(item.id, row[place], (5, 2), (-0.1, -0.1), True)
            for item, row in zip(items, rows, strict=True)
        ]
        for place in (2, 3)
    )
    recipe = resources.recipe("default")
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "decoder.onnx").write_bytes(b"not run here")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    floor = Estimate(value=0.0, low=0.0, high=0.1, n=6, clusters=1, method="wilson")
    parts = bundles.Parts(
        name="small",
        model=MODEL,
        graphs=graphs,
        tokenizer=tmp_path / "tokenizer.json",
        items=items,
        pictures={image: picture},
        reference=reference,
        gates=recipe.gates,
        recipe=recipe,
        target=resources.target("host-cpu"),
        quantization={},
        provenance=bundles.Provenance(
            "0.1.0", {}, {}, {"evaluation": 0}, {}, {}, {}, {"noise_floor": floor.model_dump(mode="json")}
        ),
    )
    folder = bundles.write(parts, tmp_path / "small")
    evidence = folder.with_suffix(".evidence")
    evidence.mkdir()
    write_jsonl(evidence / "answers.jsonl", artifact)
    facts = {
        "format_version": 1,
        "bundle": bundles.open_bundle(folder).digest,
        "answers_sha256": file_digest(evidence / "answers.jsonl"),
    }
    (evidence / "evidence.json").write_text(json.dumps(facts))
    measured = metrics.compute(items, reference, artifact, Evaluation(bootstrap_resamples=100))
    (evidence / "metrics.json").write_text(measured.model_dump_json())
    return folder


MODEL = dataclasses.replace(
    small_bundle.MODEL,
    image=ImageSpec(48, 48, False, 1, 1, 1 / 255, (0.5,) * 3, (0.5,) * 3),
    image_token_id=1,
    eos_token_ids=(2,),
)

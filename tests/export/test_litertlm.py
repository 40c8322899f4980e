"""What is packed for LiteRT-LM is read back section by section."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tiny_litert import SPEC, Files

from edgevlm_deploy.errors import ExportError, MissingExtraError
from edgevlm_deploy.export import litertlm

MODEL = SPEC.graphs["model"]
DIGEST = "ab" * 32
FACTS = {"name": "tiny"}
PROMPT = dataclasses.replace(
    SPEC.prompt,
    with_image="<s>User:{image}{question}<end>\nAssistant:",
    text_only='<s>User: "{question}"<end>\nAssistant:',
)
CHAT = dataclasses.replace(SPEC, prompt=PROMPT)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0"}))
    return path


def test_the_same_bundle_gives_the_same_bytes(litert_files: Files, tokenizer: Path, tmp_path: Path) -> None:
    model = litert_files.shipped / MODEL
    for name in ("one", "two"):
        sections = litertlm.write(model, SPEC, tokenizer, FACTS, DIGEST, tmp_path / f"{name}.litertlm")
    assert (tmp_path / "one.litertlm").read_bytes() == (tmp_path / "two.litertlm").read_bytes()
    assert [one.model or one.kind for one in sections] == [
        "LlmMetadataProto",
        "HF_Tokenizer_Zlib",
        *litertlm.MODELS,
    ]


@pytest.mark.parametrize("name", [*litertlm.MODELS, "LlmMetadataProto"])
def test_a_section_that_differs_is_noticed(
    litert_files: Files, tokenizer: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "packed.litertlm"
    litertlm.write(litert_files.shipped / MODEL, SPEC, tokenizer, FACTS, DIGEST, out)
    given = {}
    for section, content in litertlm._sections(out, litertlm_facts()):
        key = section.model or section.kind
        given[key] = tmp_path / key
        given[key].write_bytes(content if key != name else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ExportError, match=f"the section {name} differs from what was packed"):
        litertlm._read_back(out, given, litertlm_facts())
    del given[name]
    with pytest.raises(ExportError, match=f"unexpected section {name}"):
        litertlm._read_back(out, given, litertlm_facts())


def litertlm_facts() -> dict[str, str]:
    return {
        **FACTS,
        "uuid": "abababab-abab-abab-abab-abababababab",
        "creation_timestamp": litertlm._TIME,
    }


def test_the_template_asks_what_the_runner_asks() -> None:
    render = jinja2.Environment().from_string(litertlm.template(CHAT)).render
    text = {"role": "user", "content": "How many?"}
    assert render(messages=[text]) == '<s>User: "How many?"<end>\nAssistant:'
    picture = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}
    assert render(messages=[picture]) == "<s>User:<image>How many?<end>\nAssistant:"
    both = [text, {"role": "assistant", "content": "2"}]
    assert render(messages=both).endswith("Assistant:2")


def test_a_regular_expression_matches_its_token_alone() -> None:
    for token in ("<image>", "<|image|>", "[IMG]", "a.b"):
        assert re.fullmatch(litertlm._escaped(token), token)
    assert not re.fullmatch(litertlm._escaped("a.b"), "acb")


def test_a_prefill_whose_padding_could_leave_the_cache_is_not_packed(litert_files: Files) -> None:
    model = litert_files.shipped / MODEL
    assert litertlm._prefills(model, 64) == ["prefill_8"]
    with pytest.raises(ExportError, match="that divides the context of 60 tokens, the graphs have prefill_8"):
        litertlm._prefills(model, 60)


def test_without_the_builder(
    litert_files: Files, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("litert_lm_builder"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"needs litert-lm-builder .*pip install 'edgevlm\[litert-lm"):
        litertlm.write(litert_files.shipped / MODEL, SPEC, tokenizer, FACTS, DIGEST, tmp_path / "out")
    assert not (tmp_path / "out").exists()

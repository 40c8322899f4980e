"""A .litertlm file: what LiteRT-LM on Android loads. The only importer of litert_lm_builder.

The bundle's .tflite file is cut into the models that LiteRT-LM looks for (`tflite_excerpt`), constants
unchanged:

    embedder         embed_1: LiteRT-LM looks tokens up one by one
    prefill_decode   prefill_N and decode of the longest cache; the shorter ones would be taken for it
    vision_encoder   encode_image with normalisation in front: LiteRT-LM prepares pixels in 0 … 1, rows first

Beside them lie the tokenizer, the prompt as a template and the token that ends an answer. The same bundle
gives the same bytes.

LiteRT-LM sees a picture as one tile. Where the model was judged with several, its answers there are others.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from edgevlm_runner.contract import ModelSpec, Pixels, sides

from edgevlm_deploy import quiet
from edgevlm_deploy.artifacts import atomic_path
from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import tflite, tflite_excerpt

HIDDEN = "hidden"
"""What a decoder gives for a Selector, which LiteRT-LM does not have."""
MODELS = ("embedder", "prefill_decode", "vision_encoder")
_TIME = "1980-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Section:
    """One part of the written file, as it was read back."""

    kind: str
    """"LlmMetadataProto", "HF_Tokenizer_Zlib" or "TFLiteModel"."""
    model: str
    """One of `MODELS`, "" for other kinds."""
    bytes: int


def write(
    model: Path, spec: ModelSpec, tokenizer: Path, facts: Mapping[str, str], digest: str, out: Path
) -> tuple[Section, ...]:
    """Pack the .tflite file `model` with its `tokenizer` and say what is in `out`.

    facts   what LiteRT-LM's tools show about the file; name → value
    digest  hexadecimal identity of the bundle, from which the file's own is made

    Every section is read back and compared. Raises ExportError when one differs or the builder refuses it,
    MissingExtraError without litert-lm-builder.
    """
    with tempfile.TemporaryDirectory(prefix="edgevlm-litertlm-") as temporary:
        parts = _cut(model, spec, Path(temporary))
        description = Path(temporary) / "metadata.pb"
        with quiet.toolkit("litert-lm-builder", "Packing a .litertlm file", "litert-lm", ExportError):
            import litert_lm_builder
            from litert_lm_builder import litertlm_builder
            from litert_lm_builder.runtime.proto import llm_metadata_pb2

            metadata = _metadata(llm_metadata_pb2.LlmMetadata(), spec)
            description.write_bytes(metadata.SerializeToString())
            builder = litert_lm_builder.LitertLmFileBuilder()

            def text(key: str, value: str) -> Any:
                return litert_lm_builder.Metadata(key=key, value=value, dtype=litert_lm_builder.DType.STRING)

            identity = {"uuid": str(uuid.UUID(digest[:32])), "creation_timestamp": _TIME}
            for key, value in {**facts, **identity}.items():
                builder.add_system_metadata(text(key, value))
            builder.add_llm_metadata(str(description))
            builder.add_hf_tokenizer(str(tokenizer))
            for name, path in parts.items():
                builder.add_tflite_model(str(path), litert_lm_builder.TfLiteModelType[name.upper()])
            # It would put the time and a random identity in.
            with (
                mock.patch.object(litertlm_builder, "populate_system_metadata", list),
                atomic_path(out) as file,
                file.open("w+b") as stream,
            ):
                builder.build(stream, validate_metadata=True)
        given = {"LlmMetadataProto": description, "HF_Tokenizer_Zlib": tokenizer}
        return _read_back(out, {**given, **parts}, {**facts, **identity})


def _cut(model: Path, spec: ModelSpec, folder: Path) -> dict[str, Path]:
    """Name in `MODELS` → file."""
    decoder = ["decode", *_prefills(model, spec.max_context)]
    wanted: tuple[tuple[str, dict[str, str], Pixels | None], ...] = (
        ("embedder", {"embed_1": "embedder"}, None),
        ("prefill_decode", {name: name for name in decoder}, None),
        ("vision_encoder", {"encode_image": f"vision_{sides(spec.image)[0]}"}, spec.image),
    )
    parts = {}
    for name, kept, pixels_of in wanted:
        parts[name] = folder / f"{name}.tflite"
        tflite_excerpt.write(model, kept, parts[name], pixels_of, without=(HIDDEN,))
    return parts


def _prefills(model: Path, max_context: int) -> list[str]:
    """`prefill_32`, but not `prefill_32_cache_128`; and none that does not divide the context: LiteRT-LM pads
    the end of a prompt, and padding beyond the cache would be written over tokens that are still needed."""
    found = [name for name in tflite.load(model).signatures if re.fullmatch(r"prefill_\d+", name)]
    kept = [name for name in found if max_context % int(name.removeprefix("prefill_")) == 0]
    if not kept:
        raise ExportError(
            f"{model}: LiteRT-LM needs a prefill length that divides the context of {max_context} tokens, "
            f"the graphs have {', '.join(found) or 'none'}. Set `generation.prefill_lengths` in the recipe."
        )
    return kept


def _metadata(made: Any, spec: ModelSpec) -> Any:
    """What LiteRT-LM must know; `made` is an empty LlmMetadata."""
    prompt = spec.prompt
    for token in spec.eos_token_ids:
        made.stop_tokens.add().token_ids.ids.append(token)
    made.max_num_tokens = spec.max_context
    made.supports_thinking = made.supports_function_calling = False
    made.sampler_params.type = made.sampler_params.TOP_P  # LiteRT-LM 0.18 has GREEDY in its schema alone
    made.sampler_params.k = 1
    made.sampler_params.p = 1.0
    made.sampler_params.temperature = 1.0
    made.jinja_prompt_template = template(spec)
    picture = made.llm_model_type.generic_model
    picture.image_enabled = True
    picture.image_tensor_height, picture.image_tensor_width = sides(spec.image)
    picture.delimiter_regex = f"({_escaped(prompt.image_token)})"
    picture.image_token_regex = _escaped(prompt.image_token)
    picture.image_prefix = prompt.fake_token + prompt.global_token
    picture.image_suffix = prompt.fake_token
    return made


def template(spec: ModelSpec) -> str:
    """The prompt as Jinja: a user's message becomes `text_only`, or `with_image` when it has a picture.

    Answers are repeated as they are. Only one question with at most one picture was judged.
    """

    def quoted(text: str) -> str:
        return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""

    before, after = spec.prompt.text_only.split("{question}")
    head, rest = spec.prompt.with_image.split("{image}")
    middle, tail = rest.split("{question}")
    said = "{{ part['text'] }}"
    picture = quoted(head + spec.prompt.image_token + middle)
    return (
        "{%- for message in messages -%}"
        "{%- if message['content'] is string -%}{%- set parts = [{'type': 'text', 'text': "
        "message['content']}] -%}{%- else -%}{%- set parts = message['content'] -%}{%- endif -%}"
        "{%- set pictures = parts | selectattr('type', 'equalto', 'image') | list -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{%- if pictures -%}}{picture}{{%- else -%}}{quoted(before)}{{%- endif -%}}"
        "{%- endif -%}"
        f"{{%- for part in parts -%}}{{%- if part['type'] == 'text' -%}}{said}{{%- endif -%}}{{%- endfor -%}}"
        "{%- if message['role'] == 'user' -%}"
        f"{{%- if pictures -%}}{quoted(tail)}{{%- else -%}}{quoted(after)}{{%- endif -%}}"
        "{%- endif -%}"
        "{%- endfor -%}"
    )


def _escaped(token: str) -> str:
    """For RE2, which refuses needless escapes of letters."""
    return "".join(f"\\{one}" if one in r"\.+*?()|[]{}^$" else one for one in token)


def _read_back(path: Path, given: Mapping[str, Path], facts: Mapping[str, str]) -> tuple[Section, ...]:
    """Compare every section with what was `given`, by kind or by name in `MODELS`."""
    found: dict[str, Section] = {}
    for section, content in _sections(path, facts):
        name = section.model or section.kind
        if name not in given or name in found:
            raise ExportError(f"{path}: holds an unexpected section {name}.")
        if content != given[name].read_bytes():
            raise ExportError(f"{path}: the section {name} differs from what was packed.")
        found[name] = section
    missing = sorted(set(given) - set(found))
    if missing:
        raise ExportError(f"{path}: lacks the sections {', '.join(missing)}.")
    return tuple(found.values())


def _sections(path: Path, facts: Mapping[str, str]) -> list[tuple[Section, bytes]]:
    import io

    with quiet.toolkit("litert-lm-builder", "Reading a .litertlm file", "litert-lm", ExportError):
        from litert_lm_builder import litertlm_core, litertlm_peek

        header = litertlm_peek.read_litertlm_header(str(path), io.StringIO())
        entries = header.SystemMetadata()
        pairs = [litertlm_peek.kvp_to_dict(entries.Entries(i)) for i in range(entries.EntriesLength())]
        if {pair["key"]: pair["value"] for pair in pairs} != dict(facts):
            raise ExportError(f"{path}: its facts are {pairs}, expected {dict(facts)}.")
        listed, found = header.SectionMetadata(), []
        with path.open("rb") as stream:
            for number in range(listed.ObjectsLength()):
                one = listed.Objects(number)
                kind = litertlm_core.any_section_data_type_to_string(one.DataType())
                stream.seek(one.BeginOffset())
                content = stream.read(one.EndOffset() - one.BeginOffset())
                model = (litertlm_peek.get_model_type(one) or "").removeprefix("tf_lite_")
                section = Section(kind, model, len(content))
                if kind == "HF_Tokenizer_Zlib":  # eight bytes of length, then zlib
                    content = zlib.decompress(content[8:])
                found.append((section, content))
        return found

"""The device's view of a model: preprocessing numbers, the prompt rendered once, context and end tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from edgevlm_runner import native, prompt
from edgevlm_runner.contract import ImageSpec, ModelSpec, NativeSpec, Pixels, PromptSpec
from tokenizers import Tokenizer

from edgevlm_deploy.errors import CheckpointError, MissingExtraError
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.source.checkpoint import CONFIG, read_json
from edgevlm_deploy.source.model import Architecture, SourceModel

END_OF_UTTERANCE = "<end_of_utterance>"
MAX_TEMPLATE_BYTES = 1 << 20
# Private-use characters: no template has them, no tokenizer of words touches them.
_QUESTION = "\ue000question\ue001"


class Picturing(Protocol):
    """What differs between families: how pictures and prompts are prepared."""

    def image_spec(self, source: SourceModel, recipe: Recipe) -> Pixels:
        """The image processor's numbers, defaults filled in by transformers itself."""

    def prompt_spec(self, source: SourceModel, tokenizer: Any) -> PromptSpec:
        """The prompt with its slots; tokenizer is transformers'."""


def model_spec(
    source: SourceModel, recipe: Recipe, runtime: str, graphs: Mapping[str, str], family: Picturing
) -> ModelSpec:
    """Everything that the runner must know, proved on sample prompts against transformers' tokenizer.

    `max_context` and `max_new_tokens` of the recipe are cut to what the decoder was made for.
    graphs: component → path inside the bundle.
    Raises CheckpointError when preprocessing, chat template or tokenizer is not what the device can do.
    """
    tokenizer, on_device = open_tokenizers(source)
    architecture = numbers_of(source)
    max_context = min(recipe.generation.max_context, architecture.max_context)
    image = family.image_spec(source, recipe)
    spec = ModelSpec(
        family=source.family,
        runtime=runtime,
        graphs=dict(graphs),
        image=image,
        prompt=_counted(family.prompt_spec(source, tokenizer), image),
        image_token_id=architecture.image_token_id,
        eos_token_ids=eos_token_ids(source, on_device),
        max_new_tokens=min(recipe.generation.max_new_tokens, max_context - 1),
        max_context=max_context,
        layers=architecture.layers,
        kv_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        hidden_size=architecture.hidden_size,
        vocab_size=architecture.vocab_size,
        hidden=recipe.has_selector,
        prefix=architecture.prefix,
        position_rows=3 if isinstance(image, NativeSpec) else 1,
        deepstack=architecture.deepstack,
    )
    _check_tokens(source, spec, tokenizer, on_device)
    return spec


def _counted(prompt: PromptSpec, image: Pixels) -> PromptSpec:
    """With the image tokens of the one size that every picture is given, if there is one."""
    if isinstance(image, NativeSpec) and image.size is not None:
        rows, cols = native.cells(image.size, image)
        return replace(prompt, tokens_per_tile=rows * cols)
    return prompt


def open_tokenizers(source: SourceModel) -> tuple[Any, Tokenizer]:
    """(transformers' tokenizer, the device's). Raises CheckpointError."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("Reading a checkpoint needs `pip install edgevlm[compile]`.") from error
    if not source.tokenizer.is_file():
        raise CheckpointError(
            f"{source.path}: has no tokenizer.json. Save it with transformers: "
            "`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
        return tokenizer, Tokenizer.from_file(str(source.tokenizer))
    except Exception as error:  # the Rust binding raises nothing narrower
        raise CheckpointError(f"{source.path}: its tokenizer cannot be loaded ({error}).") from error


def numbers_of(source: SourceModel) -> Architecture:
    assert isinstance(source.architecture, Architecture)
    return source.architecture


def check_image_processor_type(source: SourceModel, accepted: Sequence[str]) -> str:
    """The type, one of `accepted`. Raises CheckpointError.

    transformers 5 keeps the image processor inside processor_config.json, 4 in a file of its own.
    """
    data = optional_json(source.path / "preprocessor_config.json")
    nested = optional_json(source.path / "processor_config.json").get("image_processor")
    if not data and isinstance(nested, dict):
        data = nested
    kind = str(data.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    if kind not in accepted:
        raise CheckpointError(
            f"{source.path}: image processor {kind or '(none)'}, expected {' or '.join(accepted)} in "
            "preprocessor_config.json or processor_config.json."
        )
    return kind


def three(value: Any) -> tuple[float, float, float]:
    red, green, blue = [float(one) for one in (value if isinstance(value, list | tuple) else [value] * 3)]
    return red, green, blue


def chat_prompt(source: SourceModel, tokenizer: Any) -> PromptSpec:
    """Render the chat template with sentinels and leave open where question and picture go.

    What surrounds the tokens of a picture is left empty. A tokenizer that begins every text by itself has its
    first token written out, for the device adds none.
    """
    image_token = image_token_of(source, tokenizer)
    template = _chat_template(source.path) or tokenizer.chat_template
    if not isinstance(template, str):
        raise CheckpointError(
            f"{source.path}: has no chat template (chat_template.jinja, chat_template.json or in "
            "processor_config.json). A model without turns cannot be asked questions."
        )
    with_image = _render(source, tokenizer, template, [{"type": "image"}])
    placed = with_image.count(image_token)
    if placed != 1:
        raise CheckpointError(
            f"{source.path}: its chat template places {placed} image tokens for one picture."
        )
    texts = with_image.replace(image_token, prompt.IMAGE_SLOT), _render(source, tokenizer, template, [])
    with_image, text_only = (_begun(text, tokenizer) for text in texts)
    return PromptSpec(
        with_image=with_image,
        text_only=text_only,
        image_token=image_token,
        fake_token="",
        global_token="",
        tokens_per_tile=numbers_of(source).tokens_per_tile,
    )


def image_token_of(source: SourceModel, tokenizer: Any) -> str:
    image_token = tokenizer.convert_ids_to_tokens(numbers_of(source).image_token_id)
    if not isinstance(image_token, str):
        raise CheckpointError(
            f"{source.path}: its tokenizer lacks the image token {numbers_of(source).image_token_id}."
        )
    return image_token


def _begun(text: str, tokenizer: Any) -> str:
    """The text with the token that the tokenizer itself would put in front of it."""
    bos = tokenizer.bos_token
    if bos is None or text.startswith(bos) or not _adds_bos(tokenizer):
        return text
    return str(bos + text)


def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)


def _chat_template(path: Path) -> str | None:
    """In the order in which transformers' processors look for it."""
    jinja = path / "chat_template.jinja"
    if jinja.is_file() and jinja.stat().st_size <= MAX_TEMPLATE_BYTES:
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        template = optional_json(path / name).get("chat_template")
        if isinstance(template, str):
            return template
    return None


def _render(source: SourceModel, tokenizer: Any, template: str, parts: list[dict[str, str]]) -> str:
    """The conversation of one user turn up to the answer; jinja runs in transformers' sandbox."""
    content = [*parts, {"type": "text", "text": _QUESTION}]
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
    except Exception as error:  # whatever the template raises
        raise CheckpointError(f"{source.path}: its chat template cannot be rendered ({error}).") from error
    slots = (prompt.IMAGE_SLOT, prompt.QUESTION_SLOT)
    if text.count(_QUESTION) != 1 or any(slot in text for slot in slots):
        raise CheckpointError(
            f"{source.path}: its chat template does not repeat the question once and unchanged: {text!r}."
        )
    return str(text.replace(_QUESTION, prompt.QUESTION_SLOT))


def eos_token_ids(source: SourceModel, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Where generation stops: generation_config.json (else config.json), and the end of a turn."""
    config = read_json(source.path / CONFIG)
    text = config.get("text_config")
    places = (
        optional_json(source.path / "generation_config.json"),
        config,
        text if isinstance(text, dict) else {},
    )
    stated: Any = next((one["eos_token_id"] for one in places if one.get("eos_token_id") is not None), [])
    ids = [*(stated if isinstance(stated, list) else [stated]), tokenizer.token_to_id(END_OF_UTTERANCE)]
    known = [
        one for one in dict.fromkeys(ids) if type(one) is int and 0 <= one < numbers_of(source).vocab_size
    ]
    if not known:
        raise CheckpointError(
            f"{source.path}: no eos_token_id in generation_config.json or config.json, and no "
            f"{END_OF_UTTERANCE} in the tokenizer: an answer would never end."
        )
    return tuple(known)


def _check_tokens(source: SourceModel, spec: ModelSpec, tokenizer: Any, on_device: Tokenizer) -> None:
    """The device's tokens are transformers' tokens, on prompts with and without a picture."""
    # A picture at its own resolution has as many as it needs; any number proves the tokens.
    per_tile = 6 if isinstance(spec.image, NativeSpec) else spec.prompt.tokens_per_tile
    grids = (None, (0, 0), (2, 3)) if isinstance(spec.image, ImageSpec) else (None, (0, 0))
    for grid in grids:
        text = prompt.build("Is it 12 or 3.5 cm,\n or “naïve”?", grid, spec.prompt, per_tile)
        ours = prompt.encode(on_device, text)[0].tolist()
        # As processors do: what begins with BOS gets no special tokens, and other text gets its own.
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        if begins and _adds_bos(tokenizer):
            text, begins = text[len(tokenizer.bos_token) :], False
        theirs = tokenizer(text, add_special_tokens=not begins).input_ids
        if ours != list(theirs):
            raise CheckpointError(
                f"{source.path}: tokenizer.json and transformers' {type(tokenizer).__name__} disagree on a "
                f"prompt ({len(ours)} and {len(theirs)} tokens). Save the tokenizer again."
            )
        views = 0 if grid is None else grid[0] * grid[1] + 1
        if ours.count(spec.image_token_id) != views * per_tile:
            raise CheckpointError(
                f"{source.path}: {spec.prompt.image_token!r} is no single token of tokenizer.json; "
                "the picture cannot be placed."
            )
        if max(ours) >= spec.vocab_size:
            raise CheckpointError(
                f"{source.path}: its tokenizer has token {max(ours)}, its embedding {spec.vocab_size} rows."
            )


def optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}

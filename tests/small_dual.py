"""A dual encoder's specification and a tokenizer of five words."""

from __future__ import annotations

from edgevlm_runner.contract import DualEncoderSpec, FrameSpec, TextSpec
from tokenizers import Tokenizer, models, pre_tokenizers

TEXT = TextSpec(("cat", "dog"), ("a {}", "one {}"), length=4, padded=True, pad_token_id=9, end_token_id=None)
SPEC = DualEncoderSpec(
    family="clip",
    runtime="onnxruntime",
    graphs={"vision_encoder": "graphs/vision_encoder.onnx", "text_encoder": "graphs/text_encoder.onnx"},
    image=FrameSpec(32, 36, 3, 1 / 255, (0.5,) * 3, (0.5,) * 3),
    text=TEXT,
    projection_size=3,
    vocab_size=10,
    logit_scale=100.0,
    logit_bias=0.0,
    activation="softmax",
)


def words() -> Tokenizer:
    """Every known word is a token."""
    known = {word: number for number, word in enumerate(("a", "one", "cat", "dog", "?"))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer

"""What crosses the device boundary: versioned JSON, read and written the same on both sides.

Python 3.8, standard library only. Every dataclass here is frozen, round-trips through
`to_json` / `from_json`, and rejects unknown keys, so that a file from another version
is refused instead of being half understood. A key with a plain default may be absent.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import (
    Any,
    Dict,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    Union,
)

from edgevlm_runner.errors import BundleError

# What is written here is read and written in one way; importers find all of it in this module.
from edgevlm_runner.pixels import AnyresSpec as AnyresSpec
from edgevlm_runner.pixels import FrameSpec as FrameSpec
from edgevlm_runner.pixels import ImageSpec as ImageSpec
from edgevlm_runner.pixels import NativeSpec as NativeSpec
from edgevlm_runner.pixels import Pixels as Pixels
from edgevlm_runner.pixels import sides as sides
from edgevlm_runner.records import from_json as from_json
from edgevlm_runner.records import read_jsonl as read_jsonl
from edgevlm_runner.records import to_json as to_json
from edgevlm_runner.records import write_jsonl as write_jsonl

FORMAT_VERSION = 1
CLEAN = "clean"
TEMPERATURE = "temperature"
"""Condition of clean questions that only the temperature of the confidence is fitted on."""
PERTURBED = "perturbed:"
"""How conditions begin that should change no answer at all."""
PARAPHRASE = "paraphrase"
"""The perturbation that leaves the picture alone: the item's prompt is the changed question."""
NEGATED = "negated:"
"""How conditions of negation probes begin; the name of the probe's form follows."""
NEGATED_BLIND = "negated-blind:"
"""The same probe without a picture."""
BLIND = "blind"
"""The clean question without its picture."""
GREY = "blind:grey"
"""The clean question with one grey area in place of its picture."""
BACKGROUND = "background"
"""The clean question about a picture that differs in its background alone."""
OOD = "ood"
"""A question or picture from another distribution than the clean items'; of a classifier, one that shows none
of its classes."""

FEATURES = "features.npz"
"""In the evidence of some dual encoders: embeddings of pictures and texts (`edgevlm_runner.features`)."""
REFERENCE_FEATURES = "reference_features.npz"
"""In their bundles: the same of the source model."""


class Kind(str, enum.Enum):
    """What an item is there for. Each metric looks at items of one kind, or at one kind beside the clean."""

    CLEAN = "clean"
    TEMPERATURE = "temperature"
    CORRUPTED = "corrupted"
    PERTURBED = "perturbed"
    NEGATED = "negated"
    NEGATED_BLIND = "negated-blind"
    BLIND = "blind"
    BACKGROUND = "background"
    OOD = "ood"


_KINDS = {kind.value for kind in Kind}


@dataclasses.dataclass(frozen=True)
class Item:
    """One question that the reference and the artifact both answer.

    A variant is an item of its own: `base_id` names the clean item, `condition` what was done to it.
    The bundle holds the clean picture only; corrupted pixels are made where they
    are needed, from (`image_id`, condition, seed of the suite).
    """

    id: str
    base_id: str
    group: str
    """Kind of question, e.g. "count"; "" when the data names none."""
    condition: str
    """"clean", "temperature", "<corruption>/<severity>", "perturbed:<perturbation>/<level>",
    "negated:<form>", "negated-blind:<form>", "blind", "blind:grey", "background" or "ood"; e.g.
    "gaussian_noise/3"."""
    image: str
    """Path inside the bundle, or "" for a question without a picture."""
    image_id: str
    """SHA-256 of the picture's file, also where the picture is withheld; items of one picture are one
    statistical cluster."""
    prompt: str
    """The question; "" for a classifier, which is asked none."""
    answers: Tuple[str, ...]
    """Accepted answers; ten of them are scored as VQAv2, fewer by exact match. Of the negation probes
    `is_not` and `absent`: what is depicted and must not be named. A classifier has one class, or none."""
    background: str = ""
    """What is behind the objects, "" when the data do not say."""
    split: str = ""
    """"common" or "counter": whether class and background usually go together; "" when not said."""
    caption: str = ""
    """What is true of the picture, in a sentence that retrieval looks for; "" when not said."""

    @property
    def kind(self) -> Kind:
        name = self.condition.partition(":")[0]
        return Kind(name) if name in _KINDS else Kind.CORRUPTED

    @property
    def unseen(self) -> bool:
        """Whether the picture that the question is about is withheld: the reply tells of no sight."""
        return self.kind in (Kind.NEGATED_BLIND, Kind.BLIND)

    @property
    def form(self) -> str:
        """Of a negation probe, e.g. "is_not"; otherwise what else follows a colon."""
        return self.condition.partition(":")[2]

    @property
    def corruption(self) -> Optional[Tuple[str, int]]:
        """(name, severity) of what is done to the picture, perturbations included; None for other kinds."""
        if self.kind not in (Kind.CORRUPTED, Kind.PERTURBED):
            return None
        name, _, severity = self.condition.partition("/")
        return name, int(severity)

    @property
    def perturbed(self) -> bool:
        """Whether the change is a perturbation, which may cost nothing, and no corruption."""
        return self.kind is Kind.PERTURBED


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one model said on one item: greedy decoding, raw-logit log-probabilities."""

    item_id: str
    text: str
    token_ids: Tuple[int, ...]
    """Generated tokens, end-of-sequence included when it was produced; a classifier's is the class's place
    among the classes."""
    token_logprobs: Tuple[float, ...]
    """Natural logarithm of each generated token's (or the class's) probability, as many as `token_ids`."""
    finished: bool
    """False when `max_new_tokens` ended the answer."""
    selector: Optional[float] = None
    """How right the bundle's Selector takes the answer to be, in [0, 1]; None without one."""
    scores: Tuple[float, ...] = ()
    """A dual encoder's cosines between the picture and each class, in the order of the classes."""


@dataclasses.dataclass(frozen=True)
class Certainty:
    """What a bundle does with how sure it is: its confidence is scaled, and it may abstain."""

    temperature: float = 1.0
    """Divides the log-odds of the confidence, of a dual encoder the logits of all classes; 1 leaves them."""
    fitted_on: int = 0
    """Held-out answers that gave the temperature; 0: they could give none."""
    abstain: str = ""
    """What decides whether it answers: "selector", "maxprob", or "" for always answering."""
    threshold: Optional[float] = None
    """It answers from this score on; None with `abstain`: never, no threshold kept the risk."""
    graph: str = ""
    """The Selector's path inside the bundle, "" without one."""


@dataclasses.dataclass(frozen=True)
class PromptSpec:
    """The chat template rendered once on the host, with two slots left open.

    `with_image` and `text_only` contain the literal "{question}"; `with_image` also
    contains "{image}" where the picture's tokens go.
    """

    with_image: str
    text_only: str
    image_token: str
    fake_token: str
    """Around the tokens of each tile; "" for families that have none."""
    global_token: str
    """In front of the tokens of the whole picture; "" likewise."""
    tokens_per_tile: int


def kept_tokens(tokens: int, share: float) -> int:
    """How many of `tokens` image tokens are left when a share of them is kept: at least one of any."""
    return min(tokens, max(1, round(tokens * share)))


@dataclasses.dataclass(frozen=True)
class Pruning:
    """The decoder drops image tokens while it reads the prompt (FastV)."""

    layer: int
    """The first layer without them, counted from 0."""
    keep: float
    """Share of the prompt's image tokens that stay."""


Profiles = Mapping[str, Sequence[Mapping[str, Sequence[Sequence[int]]]]]
"""component → optimisation profiles, each input name → smallest, usual and largest shape."""


GENERATIVE, ENCODER_DECODER, DUAL_ENCODER = "generative", "encoder_decoder", "dual_encoder"


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything that the runner must know about a compiled model that answers in words, reading
    picture and question with its decoder.
    """

    family: str
    runtime: str
    """Which runtime executes the graphs: "onnxruntime", "litert" or "tensorrt"."""
    graphs: Mapping[str, str]
    """component → path inside the bundle: vision_encoder, embedding, decoder; LiteRT has one "model"."""
    image: Pixels
    prompt: PromptSpec
    image_token_id: int
    eos_token_ids: Tuple[int, ...]
    max_new_tokens: int
    max_context: int
    """KV-cache length in tokens: prompt and answer together."""
    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    profiles: Profiles = dataclasses.field(default_factory=dict)
    """Ranges that engines are built for; empty for runtimes that build none."""
    pruning: Optional[Pruning] = None
    """None for decoders that see every token in every layer."""
    hidden: bool = False
    """Whether the decoder also gives the hidden state behind its logits, for a Selector."""
    prefix: bool = False
    """Whether all tokens of the prompt see each other, later ones too; the answer is causal in any case."""
    position_rows: int = 1
    """Numbers that say where a token stands: 1, or 3 (time, height, width) for M-RoPE."""
    deepstack: int = 0
    """First decoder layers behind which image tokens get features of their own; an image token's embedding is
    followed by them, another token's by zeros."""
    kind: str = GENERATIVE

    @property
    def embed_size(self) -> int:
        """Width of embeddings and image features, what `deepstack` adds included."""
        return self.hidden_size * (1 + self.deepstack)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """The classes in words, and how words become rows of tokens."""

    classes: Tuple[str, ...]
    templates: Tuple[str, ...]
    """Sentences with one "{}" where the class goes; their embeddings are averaged."""
    length: int
    """Tokens that the text encoder reads, special ones included."""
    padded: bool
    """Whether every row has `length` tokens; otherwise rows end where their text ends."""
    pad_token_id: int
    end_token_id: Optional[int]
    """The token whose place holds the text's meaning; None: the last place of the row."""


@dataclasses.dataclass(frozen=True)
class DualEncoderSpec:
    """Everything that the runner must know about a compiled dual encoder: pictures and texts in one space."""

    family: str
    runtime: str
    """As in ModelSpec."""
    graphs: Mapping[str, str]
    """component → path inside the bundle: vision_encoder, text_encoder; LiteRT has one "model"."""
    image: FrameSpec
    text: TextSpec
    projection_size: int
    """Width of the space that both encoders map into."""
    vocab_size: int
    logit_scale: float
    """What cosines are multiplied by before the activation (the exponential of the stored parameter)."""
    logit_bias: float
    activation: str
    """"softmax" over the classes, or "sigmoid" of each class alone."""
    feature_items: int = 0
    """So many of the first clean items leave their embeddings in the evidence."""
    profiles: Profiles = dataclasses.field(default_factory=dict)
    kind: str = DUAL_ENCODER


@dataclasses.dataclass(frozen=True)
class EncoderDecoderSpec:
    """Everything that the runner must know about a compiled encoder–decoder: a question about a picture is
    encoded once, and a decoder that attends to it writes the answer.
    """

    family: str
    runtime: str
    """As in ModelSpec."""
    graphs: Mapping[str, str]
    """component → path inside the bundle: vision_encoder, text_encoder, decoder; LiteRT has one "model"."""
    image: FrameSpec
    image_tokens: int
    """States that the vision encoder gives for a picture."""
    question_lengths: Tuple[int, ...]
    """Tokens that the text encoder reads, special ones included, ascending. The last is the longest question;
    graphs of static shapes have one signature per length, and shorter questions are padded."""
    pad_token_id: int
    start_token_id: int
    """What the decoder begins an answer with."""
    eos_token_ids: Tuple[int, ...]
    max_new_tokens: int
    """Also the length of the decoder's cache in tokens."""
    layers: int
    """Decoder layers."""
    heads: int
    head_dim: int
    hidden_size: int
    """Width of all three components."""
    vocab_size: int
    profiles: Profiles = dataclasses.field(default_factory=dict)
    kind: str = ENCODER_DECODER


Answering = Union[ModelSpec, EncoderDecoderSpec]
"""Models that answer a question in words."""

Model = Union[ModelSpec, EncoderDecoderSpec, DualEncoderSpec]


def model_from_json(data: Any, where: str) -> Model:
    """The specification in a bundle's model.json. Raises BundleError."""
    kinds: Dict[str, Type[Model]] = {
        GENERATIVE: ModelSpec,
        ENCODER_DECODER: EncoderDecoderSpec,
        DUAL_ENCODER: DualEncoderSpec,
    }
    kind = data.get("kind", GENERATIVE) if isinstance(data, dict) else GENERATIVE
    if not isinstance(kind, str) or kind not in kinds:
        raise BundleError(f"{where}: a model of kind {kind!r}; this edgevlm knows {', '.join(kinds)}.")
    return from_json(kinds[kind], data, where)

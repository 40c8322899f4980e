"""What crosses the device boundary: versioned JSON, read and written the same on both sides.

Python 3.8, standard library only. Every dataclass here is frozen, round-trips through
`to_json` / `from_json`, and rejects unknown keys, so that a file from another version
is refused instead of being half understood. A key with a plain default may be absent.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar

from edgevlm_runner.errors import BundleError

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
"""A question or picture from another distribution than the clean items'."""

T = TypeVar("T")


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
    answers: Tuple[str, ...]
    """Accepted answers; ten of them are scored as VQAv2, fewer by exact match. Of the negation probes
    `is_not` and `absent`: what is depicted and must not be named."""
    background: str = ""
    """What is behind the objects, "" when the data do not say."""

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
    """Generated tokens, end-of-sequence included when it was produced."""
    token_logprobs: Tuple[float, ...]
    """Natural logarithm of each generated token's probability, same length as `token_ids`."""
    finished: bool
    """False when `max_new_tokens` ended the answer."""
    selector: Optional[float] = None
    """How right the bundle's Selector takes the answer to be, in [0, 1]; None without one."""


@dataclasses.dataclass(frozen=True)
class Certainty:
    """What a bundle does with how sure it is: its confidence is scaled, and it may abstain."""

    temperature: float = 1.0
    """Divides the log-odds of the confidence; 1 leaves it as it is."""
    fitted_on: int = 0
    """Held-out answers that gave the temperature; 0: they could give none."""
    abstain: str = ""
    """What decides whether it answers: "selector", "maxprob", or "" for always answering."""
    threshold: Optional[float] = None
    """It answers from this score on; None with `abstain`: never, no threshold kept the risk."""
    graph: str = ""
    """The Selector's path inside the bundle, "" without one."""


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How pixels become tiles (the Idefics3 / SmolVLM preprocessor's numbers)."""

    tile_size: int
    """Side of one square tile in pixels."""
    longest_edge: int
    """The picture is resized to this before splitting."""
    split: bool
    """Cut into tiles plus one global view; otherwise one square tile."""
    max_tiles: Optional[int]
    """Upper bound on tiles per picture, global view included; None for the model's own."""
    resample: int
    """Pillow's filter number."""
    rescale_factor: float
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]


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
    global_token: str
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


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything that the runner must know about the compiled model."""

    family: str
    runtime: str
    """Which runtime executes the graphs: "onnxruntime", "litert" or "tensorrt"."""
    graphs: Mapping[str, str]
    """component → path inside the bundle: vision_encoder, embedding, decoder; LiteRT has one "model"."""
    image: ImageSpec
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


def to_json(value: Any) -> Any:
    """A frozen dataclass as plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def from_json(cls: Type[T], data: Any, where: str) -> T:
    """Build `cls` from parsed JSON; `where` names the file for the error message.

    Keys with a default may be missing. Raises BundleError on other missing, unknown or mistyped keys.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{where}: expected an object for {cls.__name__}, got {type(data).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    unknown, missing = sorted(set(data) - set(fields)), sorted(required - set(data))
    if unknown or missing:
        raise BundleError(
            f"{where}: {cls.__name__} has unknown keys {unknown} and lacks {missing}. "
            "The bundle was written by another version of edgevlm; compile it again."
        )
    nested: Dict[str, Any] = {}
    if cls is ModelSpec:
        nested = {"image": ImageSpec, "prompt": PromptSpec, "pruning": Pruning}
    values: Dict[str, Any] = {}
    for name, value in data.items():
        if name in nested and not (name == "pruning" and value is None):
            value = from_json(nested[name], value, where)
        elif isinstance(value, list):
            value = tuple(value)
        _check_type(str(fields[name].type), value, f"{where}: {cls.__name__}.{name}")
        if name == "profiles":
            _check_profiles(value, f"{where}: {cls.__name__}.{name}")
        values[name] = value
    return cls(**values)


_TYPES: Dict[str, Tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Optional[int]": (int, type(None)),
    "Optional[float]": (int, float, type(None)),
}


def _check_type(annotation: str, value: Any, where: str) -> None:
    """Scalars are checked one by one, sequences element by element; bool is no int here."""
    if annotation.startswith("Tuple["):
        element = annotation[len("Tuple[") :].split(",")[0]
        if not isinstance(value, tuple):
            raise BundleError(f"{where}: expected a list, got {type(value).__name__}.")
        for one in value:
            _check_type(element, one, where)
        return
    expected = _TYPES.get(annotation)
    if expected is None:
        return
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        raise BundleError(f"{where}: expected {annotation}, got {value!r}.")


def _check_profiles(value: Any, where: str) -> None:
    shapes = [
        shape
        for profiles in (value.values() if isinstance(value, dict) else [None])
        for profile in (profiles if isinstance(profiles, list) else [None])
        for three in (profile.values() if isinstance(profile, dict) else [None])
        for shape in (three if isinstance(three, list) and len(three) == 3 else [None])
    ]
    for shape in shapes:
        if not isinstance(shape, list) or any(type(size) is not int for size in shape):
            raise BundleError(
                f"{where}: expected component → list of profiles, each input → three lists of sizes."
            )


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One JSON object a line, keys in field order, UTF-8, newline at the end of each line."""
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")


def read_jsonl(path: Path, cls: Type[T]) -> List[T]:
    """Read what `write_jsonl` wrote. Raises BundleError with file and line number."""
    return list(_iter_jsonl(path, cls))


def _iter_jsonl(path: Path, cls: Type[T]) -> Iterator[T]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise BundleError(f"{path}:{number}: not JSON ({error}).") from error
        yield from_json(cls, data, f"{path}:{number}")

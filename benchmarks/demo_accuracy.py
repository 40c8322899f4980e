"""How good the demo VLM is, and how far one gets without looking: `python -m benchmarks.demo_accuracy`.

Prints a Markdown table of accuracy per kind of question on scenes that training never saw, beside the
accuracy of the same model on a grey picture (blind) and of the best guess from the question's text.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from edgevlm_runner.contract import CLEAN, Answer, Item, ModelSpec
from edgevlm_runner.inputs import Inputs, from_picture, load_tokenizer
from PIL import Image
from tokenizers import Tokenizer

from edgevlm_deploy import backends, quiet, reference, resources, source
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.demo.dataset import CROWDED, samples
from edgevlm_deploy.demo.questions import KINDS, ask_any
from edgevlm_deploy.demo.scenes import SIDE, Split, generator, scene
from edgevlm_deploy.metrics.accuracy import accuracy
from edgevlm_deploy.metrics.statistics import wilson
from edgevlm_deploy.target import Backend

GREY = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
GUESSING_SCENES = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=resources.DEMO_CHECKPOINT)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--crowded", action="store_true", help="crowd every second scene")
    arguments = parser.parse_args()
    with quiet.libraries(), TemporaryDirectory() as folder:
        asked = samples(
            Split.EVALUATION, arguments.pictures, len(KINDS), Path(folder), crowds=arguments.crowded
        )
        seen, blind = (answers(arguments.checkpoint, asked, grey) for grey in (False, True))
    print(table(asked, [one.text for one in seen], [one.text for one in blind], guesses(asked)))


def answers(checkpoint: Path, asked: Sequence[Sample], grey: bool) -> list[Answer]:
    """What the float model says, on the pictures or on grey ones."""
    model = source.inspect(checkpoint)
    graphs = backends.graph_names(Backend.ONNXRUNTIME)
    spec = source.model_spec(model, resources.recipe("default"), Backend.ONNXRUNTIME.value, graphs)
    tokenizer = load_tokenizer(model.tokenizer)
    loaded = source.load(model)

    def question(sample: Sample) -> reference.Question:
        assert sample.image is not None
        picture = GREY if grey else Image.open(sample.image).convert("RGB")
        return reference.Question(_item(sample), _inputs(picture, sample, spec, tokenizer))

    said: list[Answer] = []
    for start in range(0, len(asked), reference.BATCH):
        batch = [question(sample) for sample in asked[start : start + reference.BATCH]]
        said += reference.generate(loaded, batch, spec, tokenizer)
    return said


def _inputs(picture: Image.Image, sample: Sample, spec: ModelSpec, tokenizer: Tokenizer) -> Inputs:
    return from_picture(picture, sample.prompt, spec, tokenizer)


def _item(sample: Sample) -> Item:
    return Item(sample.id, sample.id, sample.group, CLEAN, "", "", sample.prompt, sample.answers)


def guesses(asked: Sequence[Sample]) -> list[str]:
    """The commonest training answer to the same words, else to the same kind of question."""
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(GUESSING_SCENES):
        for one in ask_any(scene(Split.TRAIN, index), len(KINDS), generator(Split.TRAIN, index, 1)):
            by_text[one.text][one.answer] += 1
            by_kind[one.kind][one.answer] += 1
    kinds = [one.group.removesuffix(CROWDED) for one in asked]
    known = [by_text.get(one.prompt) or by_kind[kind] for one, kind in zip(asked, kinds, strict=True)]
    return [answers.most_common(1)[0][0] for answers in known]


def table(asked: Sequence[Sample], seen: Sequence[str], blind: Sequence[str], guessed: Sequence[str]) -> str:
    lines = [
        "| kind | questions | accuracy | 95 % interval | blind (grey picture) | best guess from the words |",
        "|---|---|---|---|---|---|",
    ]
    for kind in (*KINDS, *(kind + CROWDED for kind in KINDS), "all"):
        rows = [i for i, one in enumerate(asked) if kind in (one.group, "all")]
        if not rows:
            continue
        shares = [
            sum(accuracy(said[i], asked[i].answers) for i in rows) / len(rows)
            for said in (seen, blind, guessed)
        ]
        low, high = wilson(shares[0] * len(rows), len(rows), 0.95)
        lines.append(
            f"| {kind} | {len(rows):,} | {shares[0]:.1%} | {low:.1%} – {high:.1%} "
            f"| {shares[1]:.1%} | {shares[2]:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

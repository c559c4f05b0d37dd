"""The other side of a comparison: models of anomalib, as its users train, export and run them.

    theirs/bin/python benchmarks/peers/theirs.py train --model stfpm --data DATA \
        --weights FILE --epochs 20 --out stfpm
    theirs/bin/python benchmarks/peers/theirs.py serve --exported stfpm/weights/onnx/model.onnx

`theirs` is a virtual environment of its own that has the packages anomalib, onnxscript and, for its
OpenVINO inferencer, openvino. This file runs there, so it imports nothing of Flawline. The scores
are those that the network gives: anomalib's own metric is computed after a normalisation that
clamps scores to [0, 1]. The last epoch counts. The model has the size and the backbone's weights of
Flawline's light setting, and Cflow its levels and its number of couplings; all other settings are
anomalib's defaults. Csflow is missing: its constructor takes no backbone.

`serve` speaks in lines of JSON. It first writes {"ready": facts}. A request is {"path": FILE,
"repeats": N, "settle_s": SECONDS}, its answer {"score": S, "milliseconds": [N numbers]} or
{"error": TEXT}. It ends when its input ends.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# Of the backbone, which anomalib takes from timm.
BACKBONE = "resnet18"
# Layers of the backbone that a weight file may lack, because no model here reads them.
UNUSED = ("layer4.", "fc.")
# The raw score is wanted, and no pictures.
WITHOUT_EXTRAS = {"post_processor": False, "evaluator": False, "visualizer": False}
# OpenVINO's name of a precision.
HINTS = {"fp32": "f32", "bf16": "bf16"}
# Pillow's number of its bilinear filter.
BILINEAR = 2
# Name of Flawline's method -> class of anomalib, its arguments, and anomalib's batch size for it.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "stfpm": ("Stfpm", {"backbone": BACKBONE}, 32),
    "rd4ad": ("ReverseDistillation", {"backbone": BACKBONE}, 16),
    "cflow": (
        "Cflow",
        {"backbone": BACKBONE, "layers": ("layer2", "layer3"), "coupling_blocks": 4},
        16,
    ),
    "supersimplenet": ("Supersimplenet", {"backbone": BACKBONE}, 32),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    result: int = args.work(args)
    return result


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as every other command does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{train,serve}", parser_class=_Parser)
    train = commands.add_parser("train", help="train a model, measure it and export it")
    train.set_defaults(work=_train_and_export)
    train.add_argument("--model", choices=MODELS, required=True)
    train.add_argument("--data", type=Path, required=True, help="train/good, test/good, test/...")
    train.add_argument("--weights", type=Path, required=True, help="of the backbone, a state dict")
    train.add_argument("--epochs", type=int, required=True, help="passes over the good images")
    train.add_argument("--size", type=int, default=256, help="of the input in pixels")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", type=Path, required=True, help="folder of the exported model")
    serve = commands.add_parser("serve", help="judge images that are asked for on stdin")
    serve.set_defaults(work=_serve)
    serve.add_argument("--exported", type=Path, required=True, help=".onnx or .xml, or .pt")
    serve.add_argument("--size", type=int, default=256, help="of the input in pixels")
    serve.add_argument("--precision", choices=HINTS, default="fp32", help="of OpenVINO")
    serve.add_argument("--threads", type=int, help="default is the library's")
    return parser


def _train_and_export(args: argparse.Namespace) -> int:
    _use_weights(args.weights)
    model, data, row = _train(args)
    scores, labels = _raw_scores(model, data)
    row["images"] = len(labels)
    row["image_auroc"] = round(auroc(labels, scores), 4)
    print(json.dumps(row))
    print(model.to_onnx(args.out, input_size=(args.size, args.size)))
    print(model.to_torch(args.out))
    return 0


def _use_weights(path: Path) -> None:
    """Let every pretrained backbone have the weights of a file instead of a download."""
    import timm
    import torch

    library: Any = timm
    create: Callable[..., Any] = library.create_model

    def create_with_weights(name: str, pretrained: bool = False, **options: Any) -> Any:
        network = create(name, pretrained=False, **options)
        if pretrained:
            result = network.load_state_dict(torch.load(path), strict=False)
            missing = [key for key in result.missing_keys if not key.startswith(UNUSED)]
            if missing:
                sys.exit(f"{path}: has no {missing[0]}; give the weights of {name}")
        return network

    library.create_model = create_with_weights


def _train(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Return the trained model, its data, and the facts of the training."""
    import anomalib
    from anomalib import models
    from anomalib.engine import Engine
    from lightning.pytorch import seed_everything

    seed_everything(args.seed)
    name, options, batch = MODELS[args.model]
    model = getattr(models, name)(**options, **WITHOUT_EXTRAS)
    data = _folder(args.data, batch)
    engine = Engine(
        max_epochs=args.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        default_root_dir=args.out / "training",
    )
    start = time.monotonic()
    engine.fit(model, datamodule=data)
    row = {
        "model": name,
        "anomalib": anomalib.__version__,
        "data": args.data.resolve().name,
        "seed": args.seed,
        "epochs": args.epochs,
        "batch": batch,
        "minutes": round((time.monotonic() - start) / 60, 1),
    }
    return model.eval(), data, row


def _folder(root: Path, batch: int) -> Any:
    """Return the images of a data set as anomalib reads them."""
    from anomalib.data import Folder

    defects = []
    for folder in sorted((root / "test").iterdir()):
        if folder.name != "good":
            defects.append(f"test/{folder.name}")
    return Folder(
        name=root.resolve().name,
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=defects,
        train_batch_size=batch,
        eval_batch_size=16,
        num_workers=0,
        val_split_mode="none",
    )


def _raw_scores(model: Any, data: Any) -> tuple[list[float], list[bool]]:
    """Return the scores of the test images, and whether each has a defect."""
    import torch

    scores: list[float] = []
    labels: list[bool] = []
    with torch.inference_mode():
        for batch in data.test_dataloader():
            scores += model(batch.image).pred_score.flatten().tolist()
            labels += batch.gt_label.bool().tolist()
    return scores, labels


def _serve(args: argparse.Namespace) -> int:
    """Answer requests until stdin ends."""
    # Libraries print on stdout, where only answers may be.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    judge, facts = _open(args)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer({"ready": facts})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(_judged(judge, request))
        except Exception as error:
            # Whatever their library raises is reported, and ends the comparison on the other side.
            answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
    return 0


def _open(args: argparse.Namespace) -> tuple[Callable[[Any], float], dict[str, Any]]:
    """Return a function that judges an image of Pillow, and what answers it."""
    import anomalib

    facts: dict[str, Any] = {"library": f"anomalib {anomalib.__version__}", "threads": args.threads}
    if args.exported.suffix == ".pt":
        import torch
        from anomalib.deploy import TorchInferencer

        if args.threads:
            torch.set_num_threads(args.threads)
        # The file is the user's own; anomalib asks for this because it unpickles it.
        os.environ["TRUST_REMOTE_CODE"] = "1"
        inferencer: Any = TorchInferencer(args.exported, device="cpu")
        facts |= {"inferencer": f"TorchInferencer, torch {torch.__version__}", "precision": "fp32"}
    else:
        import openvino
        from anomalib.deploy import OpenVINOInferencer

        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[args.precision]}
        if args.threads:
            config["INFERENCE_NUM_THREADS"] = args.threads
        inferencer = OpenVINOInferencer(args.exported, device="CPU", config=config)
        version = openvino.__version__.partition("-")[0]
        facts |= {"inferencer": f"OpenVINOInferencer, OpenVINO {version}"}
        facts |= {"precision": args.precision}
    size = (args.size, args.size)

    def judge(image: Any) -> float:
        # An exported model takes one size, so that its users resize the image; Pillow's filter is
        # the one of anomalib's own transform.
        prediction = inferencer.predict(image.resize(size, BILINEAR))
        return float(prediction.pred_score.reshape(-1)[0])

    return judge, facts


def _judged(judge: Callable[[Any], float], request: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    with Image.open(request["path"]) as file:
        image = file.convert("RGB")
    end = time.perf_counter() + request["settle_s"]
    score = judge(image)
    while time.perf_counter() < end:
        judge(image)
    milliseconds = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        score = judge(image)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {"score": score, "milliseconds": milliseconds}


def auroc(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Return the share of pairs of a defective and a good image in order; ties count half."""
    good = [score for score, label in zip(scores, labels, strict=True) if not label]
    defective = [score for score, label in zip(scores, labels, strict=True) if label]
    right = 0.0
    for score in defective:
        for other in good:
            right += (score > other) + 0.5 * (score == other)
    return right / (len(good) * len(defective))


if __name__ == "__main__":
    sys.exit(main())

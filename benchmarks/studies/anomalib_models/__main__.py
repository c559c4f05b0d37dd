"""Train a model of anomalib as its users do, measure its raw scores and export it.

    theirs/bin/python benchmarks/studies/anomalib_models --model stfpm --data DATA \
        --weights FILE --epochs 20 --out stfpm
    python -m benchmarks.studies.fusion --method stfpm --against stfpm/weights/onnx/model.onnx

`theirs` is a virtual environment of its own that has the packages anomalib and onnxscript. This
file runs there, so it imports nothing of Flawline. The image AUROC is that of the scores as the
network gives them: anomalib's own metric is computed after a normalisation that clamps scores to
[0, 1]. The last epoch counts. The model has the size and the backbone's weights of Flawline's light
setting, and Cflow its levels and its number of couplings; all other settings are anomalib's
defaults. Csflow is missing: its constructor takes no backbone, it always has EfficientNet-B5.
"""

from __future__ import annotations

import argparse
import json
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
# Name of Flawline's method -> class of anomalib, its arguments, and anomalib's batch size for it.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "stfpm": ("Stfpm", {"backbone": BACKBONE}, 32),
    "rd4ad": ("ReverseDistillation", {"backbone": BACKBONE}, 16),
    "cflow": (
        "Cflow",
        {"backbone": BACKBONE, "layers": ("layer2", "layer3"), "coupling_blocks": 4},
        16,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    _use_weights(args.weights)
    model, data, row = _train(args)
    scores, labels = _raw_scores(model, data)
    row["images"] = len(labels)
    row["image_auroc"] = round(auroc(labels, scores), 4)
    print(json.dumps(row))
    path = model.to_onnx(args.out, input_size=(args.size, args.size))
    print(path)
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as every other command does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--data", type=Path, required=True, help="train/good, test/good, test/...")
    parser.add_argument("--weights", type=Path, required=True, help="of the backbone, a state dict")
    parser.add_argument("--epochs", type=int, required=True, help="passes over the good images")
    parser.add_argument("--size", type=int, default=256, help="of the input in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported model")
    return parser


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
        "data": args.data.name,
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
        name=root.name,
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

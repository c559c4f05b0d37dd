"""The forms of one method: as torch modules, and as ONNX graphs divided into backbone and head."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import onnx
import onnx.shape_inference
import onnx.utils
import torch
from torch import nn

from flawline.benchmarks.measure.nodes import Node, profile_nodes
from flawline.benchmarks.published import find_published
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.console import first_line
from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.method import Method

PUBLISHED = "(a) as published"
LITERAL = "(b) literal"
FUSED = "(c) fused"
BACKBONE = "backbone alone"

# In the exported graph: paths of modules whose nodes compute the feature maps.
BACKBONE_PATHS = ("/backbone/", "/input/")


def build_forms(method: Method) -> dict[str, nn.Module]:
    """Return every form of a method by its label, in eval mode.

    All of them map uint8 [N, H, W, 3] to score [N] and map [N, H, W], and have a `head`. (a) is
    missing where benchmarks/published does not have the authors' code.
    """
    code = find_published(method.name)
    forms: dict[str, nn.Module] = {}
    if code.as_published is not None:
        forms[PUBLISHED] = code.as_published(method)
    forms[LITERAL] = code.as_literal(method)
    forms[FUSED] = method.fused()
    for label, make in code.alternatives.items():
        forms[label] = make(method)
    # The exporter gives every module back the mode of the outermost one, so set it there too.
    for form in forms.values():
        form.eval()
    return forms


def exportable_forms(method: Method, forms: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the forms that are compared as ONNX too; the authors' code is timed in torch only."""
    exportable = dict(forms)
    exportable.pop(PUBLISHED, None)
    if not find_published(method.name).literal_exports:
        del exportable[LITERAL]
    return exportable


@dataclass(frozen=True)
class ExportedForm:
    """A form as ONNX: the whole graph, the part of it up to the feature maps, and their nodes."""

    model: bytes
    backbone: bytes
    nodes: list[Node]
    backbone_nodes: list[Node]

    @classmethod
    def of_module(
        cls, module: nn.Module, method: Method, images: Image, threads: int | None
    ) -> ExportedForm:
        """Export a form of a method and profile it on uint8 [N, H, W, 3]."""
        with warnings.catch_warnings():
            # Literal forms branch on settings of the method, which are constants of the graph.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            try:
                model = onnx_from_module(module, method.geometry, method.outputs)
            except torch.onnx.OnnxExporterError as error:
                raise TrainError(
                    f"a form cannot be exported to ONNX ({first_line(error)}); write an exportable "
                    "literal form in benchmarks/published"
                ) from error
        backbone = _backbone_of(model)
        nodes = profile_nodes(model, images, threads)
        return cls(model, backbone, nodes, profile_nodes(backbone, images, threads))

    @property
    def node_count(self) -> int:
        """Number of nodes in the file, before ONNX Runtime's own fusions."""
        return sum(node_types(self.model).values())

    @property
    def head(self) -> list[Node]:
        """The nodes that ONNX Runtime runs after the backbone."""
        backbone = {node.name for node in self.backbone_nodes}
        head = []
        for node in self.nodes:
            if node.name not in backbone and BACKBONE_PATHS[0] not in node.name:
                head.append(node)
        return head


def _backbone_of(model: bytes) -> bytes:
    """Cut the part of a graph up to the feature maps that its head reads."""
    # The extractor needs the types of the feature maps, which become outputs.
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    made = set()
    outside = []
    for node in graph.graph.node:
        if node.name.startswith(BACKBONE_PATHS):
            made.update(node.output)
        else:
            outside.append(node)
    levels: list[str] = []
    for node in outside:
        for name in node.input:
            if name in made and name not in levels:
                levels.append(name)
    part = onnx.utils.Extractor(graph).extract_model(["image"], levels)
    serialised: bytes = part.SerializeToString()
    return serialised

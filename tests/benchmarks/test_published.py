"""The published code and the other forms of the methods compute what the methods compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images
from small_networks import FLOWS, options, small_network

from flawline.benchmarks import published
from flawline.benchmarks.published import find_published
from flawline.benchmarks.published.flow_forms import ExportableFlows, PublishedFlows
from flawline.benchmarks.published.form import LiteralForm
from flawline.benchmarks.published.simplenet import ExportableSimpleNet, PublishedSimpleNet
from flawline.benchmarks.studies.fusion.forms import build_forms
from flawline.benchmarks.studies.network import build_network
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.train import METHODS, TrainError
from flawline.train.blocks.fused_flow import FLOW_FORMS
from flawline.train.method import resolve_method

pytestmark = pytest.mark.torch


def assert_same(got: Any, expected: Any, tolerance: float, label: str = "") -> None:
    """Scores and maps agree within a tolerance relative to the deviation of the map.

    Without a map, it is relative to the deviation of the scores.
    """
    limit = tolerance * float(expected[1].std() if expected[1].numel() else expected[0].std())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=limit, msg=label)


@pytest.mark.parametrize("form", [PublishedSimpleNet, ExportableSimpleNet])
def test_the_authors_layouts_of_simplenet_compute_the_same(form: Any) -> None:
    method = small_network("simplenet", size=72).double()
    module = form(method).double().eval()
    with torch.inference_mode():
        for count in (1, 2):
            image = random_images(72, count)
            assert_same(module(image), method(image), 1e-9)


def test_dimensions_without_whole_factors_have_no_literal_onnx() -> None:
    method, _ = build_network(options("simplenet", settings=("level_dim=100", "target_dim=70")), 1)
    with pytest.raises(TrainError, match="by whole factors"):
        ExportableSimpleNet(method)


@pytest.mark.parametrize("name", METHODS)
def test_every_form_of_every_method_computes_the_same(name: str) -> None:
    size = max(64, resolve_method(name).smallest_size)
    method = small_network(name, size).double()
    forms = build_forms(method)
    image = random_images(size)
    with torch.inference_mode():
        expected = method(image)
        levels = find_published(name).levels(method, image)
        for label, form in forms.items():
            form.double()
            assert_same(form(image), expected, 1e-7, label)
            assert_same(form.head(*levels), expected, 1e-7, label)


def test_published_code_is_found_by_the_name_of_a_method_and_may_be_missing() -> None:
    assert find_published("simplenet").as_published is PublishedSimpleNet
    assert find_published("fastflow").as_published is PublishedFlows
    unknown = find_published("no-such-method")
    assert unknown.as_published is None
    assert unknown.as_literal is LiteralForm
    # A file that is named after no method would never be found.
    shared = {"__init__", "form", "flow_forms", "figures"}
    files = {path.stem for path in Path(published.__file__).parent.glob("*.py")}
    assert files - shared <= {name.replace("-", "_") for name in METHODS}


# ---------------------------------------------------------------- flows


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_literal_form_is_what_the_exporter_makes_of_freias_own(name: str) -> None:
    method = small_network(name)
    literal = onnx_from_module(ExportableFlows(method).eval(), method.geometry)
    plain = onnx_from_module(method, method.geometry)
    assert node_types(literal) == node_types(plain)


@pytest.mark.parametrize("name", FLOWS)
def test_the_forms_of_a_flow_are_what_they_are_called(name: str) -> None:
    method = small_network(name)

    def kinds_of(module: torch.nn.Module) -> Any:
        return node_types(onnx_from_module(module, method.geometry))

    kinds = {form: kinds_of(method.fused(form)) for form in FLOW_FORMS}
    assert kinds["padded"]["Gather"] == 0 < kinds["gathered"]["Gather"]
    assert kinds["multiplied"]["Gather"] == 0 < kinds["multiplied"]["Split"]
    prefix = "(d) fused, "
    for label, make in find_published(name).alternatives.items():
        if label.startswith(prefix):
            assert kinds_of(make(method)) == kinds[label.removeprefix(prefix)]
    shipped = kinds_of(method.fused())
    same = [form for form in FLOW_FORMS if kinds[form] == shipped]
    assert same == (["padded"] if name == "ssnf" else [])


@pytest.mark.parametrize("name", FLOWS)
def test_the_constants_of_a_flow_are_not_their_initial_values_and_follow_the_seed(
    name: str,
) -> None:
    one = small_network(name).state_dict()
    again = build_network(options(name), 1)[0].state_dict()
    other = small_network(name, seed=1).state_dict()
    for key, value in one.items():
        assert torch.equal(value, again[key]), key
    drawn = [key for key in one if key.endswith(("global_scale", "global_offset", "last.weight"))]
    assert len(drawn) == 3 * 2 * (1 if name == "ssnf" else 3)
    for key in drawn:
        assert one[key].std() > 0
        assert not torch.equal(one[key], other[key])


# ---------------------------------------------------------------- flows of positions


def test_the_published_form_of_a_flow_of_positions_calls_it_for_256_at_a_time() -> None:
    method = small_network("cflow", size=160)
    form: Any = find_published("cflow").as_published(method)
    calls: list[int] = []
    form.rest.flows[0].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    with torch.inference_mode():
        _, anomaly_map = form(random_images(160, 1))
    assert calls == [256, 144]
    assert float(anomaly_map.std()) > 1e-3

"""The vision system of OPC 40100-1 over OPC UA, with a real client."""

from __future__ import annotations

import dataclasses
import math
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("asyncua", reason="needs the extra opcua")

from asyncua import ua
from asyncua.sync import Client
from fakes.judgements import judgement
from fakes.peer_thread import run

from flawline.cameras import open_camera
from flawline.cameras.triggered import TriggeredCamera
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Output, OutputError, open_output
from flawline.runtime.outputs.opcua import OpcUa
from flawline.runtime.outputs.vision_tables import METHODS, NAMESPACE, OWN_NAMESPACE, STATES
from flawline.runtime.regions import Region, Regions
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally

pytestmark = pytest.mark.usefixtures("patient_pulses")
CAMERA = "synthetic://?width=64&height=48&queue=1000&answer_s=20&trigger="
WAIT_S = 30.0
WRONG_STATE, REFUSED, UNKNOWN, NOT_SUPPORTED = -1, -2, -3, -4


class Controller:
    """A client that starts jobs, reads their results and releases them."""

    def __init__(self, port: int, prepare: Callable[[Client], None] = lambda client: None) -> None:
        self.client = Client(f"opc.tcp://127.0.0.1:{port}/")
        try:
            prepare(self.client)
            self.client.connect()
        except BaseException:
            self.client.tloop.stop()
            raise
        self.client.load_data_type_definitions()
        self.model = self.client.get_namespace_index(NAMESPACE)
        self.own = self.client.get_namespace_index(OWN_NAMESPACE)

    def node(self, path: str) -> Any:
        return self.client.get_node(ua.NodeId(path, self.own))

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method; return its output arguments, of which the last is the error."""
        parent = self.node(METHODS[method][0])
        answer = parent.call_method(f"{self.model}:{method}", *arguments)
        return answer if isinstance(answer, list) else [answer]

    def cause(self, method: str) -> int:
        """Call a method that has a cause; return its error."""
        return int(self.call(method, ua.Variant(0, ua.VariantType.Int32), "test")[-1])

    def start(self, part: str = "", method: str = "StartSingleJob", recipe: str = "") -> list[Any]:
        return self.call(
            method,
            ua.MeasIdDataType(Id="M1"),
            ua.PartIdDataType(Id=part),
            ua.RecipeIdExternalDataType(Id=recipe),
            ua.ProductIdDataType(),
            ua.Variant([], ua.VariantType.Variant, is_array=True),
        )

    def shown(self) -> Any:
        return self.node("VisionSystem.ResultManagement.Results.Result").read_value()

    def states(self) -> tuple[str, str]:
        """Return the states of the two machines; of the second one "" while it has none."""
        machine = "VisionSystem.VisionStateMachine"
        top = self.node(f"{machine}.CurrentState").read_value().Text
        try:
            automatic = self.node(f"{machine}.AutomaticModeStateMachine.CurrentState").read_value()
        except ua.uaerrors.BadStateNotActive:
            return top, ""
        return top, automatic.Text

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, (self.states(), self.shown())

    def wait_for_state(self, state: str) -> None:
        self.wait_for(lambda: self.states() == ("Operational", state))

    def take(self) -> Any:
        """Wait for the next result, and release it."""
        self.wait_for(lambda: self.shown().ResultState != 0)
        result = self.shown()
        handle, content, error = self.get(result.ResultId)
        assert (content.ResultId, error) == (result.ResultId, 0)
        assert self.release(handle) == 0
        self.wait_for(lambda: self.shown().ResultId != result.ResultId)
        return result

    def get(self, identifier: Any) -> list[Any]:
        return self.call("GetResultById", identifier, ua.Variant(0, ua.VariantType.Int32))

    def release(self, handle: int) -> int:
        answer = self.call("ReleaseResultHandle", ua.Variant(handle, ua.VariantType.UInt32))
        return int(answer[-1])

    def find(self, part: str = "", state: int = 0, most: int = 0, start: int = 0) -> list[Any]:
        binary = [ua.ConfigurationIdDataType(), ua.ConfigurationIdDataType()]
        numbers = [ua.Variant(number, ua.VariantType.UInt32) for number in (most, start)]
        return self.call(
            "GetResultListFiltered",
            ua.Variant(state, ua.VariantType.Int32),
            ua.MeasIdDataType(),
            ua.PartIdDataType(Id=part),
            ua.RecipeIdExternalDataType(),
            ua.RecipeIdInternalDataType(),
            *binary,
            ua.ProductIdDataType(),
            ua.JobIdDataType(),
            *numbers,
            ua.Variant(0, ua.VariantType.Int32),
        )

    def close(self) -> None:
        self.client.disconnect()


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


@pytest.fixture
def output(bundle: Bundle, port: int) -> Iterator[Output]:
    with open_output(f"opcua:127.0.0.1:{port}?end_s=20&queue=100", bundle) as output:
        assert isinstance(output, OpcUa)
        output._start()
        yield output


@pytest.fixture
def controller(output: Output, port: int) -> Iterator[Controller]:
    controller = Controller(port)
    yield controller
    controller.close()


def stream(
    bundle: Bundle, output: Output, uri: str, work: Callable[[TriggeredCamera], None]
) -> None:
    """Judge what is started in `work`, which gets the camera and is done in a thread."""
    with open_camera(uri) as camera, Detector(bundle, "onnxruntime") as detector:
        assert isinstance(camera, TriggeredCamera)
        thread, errors = run(lambda: work(camera), camera.stop)
        thread.start()
        run_stream(camera, detector, [output], None, threading.Event(), Tally())
        thread.join(60)
        assert not errors, errors[0]


@pytest.mark.parametrize("parts", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_started_job_is_answered_once_in_order(
    bundle: Bundle, output: Output, controller: Controller, parts: int
) -> None:
    names = [f"SN {number}" for number in range(parts)]
    jobs: list[str] = []
    results: list[Any] = []

    def work(camera: TriggeredCamera) -> None:
        for name in names:
            controller.wait_for_state("Ready")
            job, error = controller.start(name)
            assert error == 0
            jobs.append(job.Id)
            results.append(controller.take())
        camera.end_of_pulses()

    stream(bundle, output, f"{CAMERA}software", work)
    assert [result.PartId.Id for result in results] == names
    assert [result.JobId.Id for result in results] == jobs
    assert len(set(jobs)) == parts
    assert [result.ResultId.Id for result in results] == [str(n + 1) for n in range(parts)]
    assert output.totals() == {"delivered": parts, "not_delivered": 0}
    first = results[0]
    assert (first.ResultState, first.IsPartial, first.MeasId.Id) == (1, False, "M1")
    assert first.InternalRecipeId.Id == bundle.short_id
    assert first.ProcessingTimes.EndTime >= first.ProcessingTimes.StartTime
    assert first.ProcessingTimes.ProcessingDuration > 0
    values = [variant.Value for variant in first.ResultContent]
    assert values == ["anomalous", True, 255.0, 100.0, "", -1, []]


@pytest.mark.slow
def test_a_part_without_an_image_has_failed(
    bundle: Bundle, output: Output, controller: Controller
) -> None:
    results: list[Any] = []

    def work(camera: TriggeredCamera) -> None:
        controller.wait_for_state("Ready")
        assert controller.start("A")[-1] == 0
        results.append(controller.take())
        camera.end_of_pulses()

    stream(bundle, output, f"{CAMERA}software&faults=0:damaged", work)
    assert (results[0].PartId.Id, results[0].ResultState) == ("A", 4)
    verdict, rejected, score, _, reason = (
        variant.Value for variant in results[0].ResultContent[:5]
    )
    assert (verdict, rejected) == ("unjudged", True)
    assert math.isnan(score)
    assert "as scripted" in reason


@pytest.mark.slow
def test_each_result_is_an_event(bundle: Bundle, output: Output, controller: Controller) -> None:
    events: list[Any] = []

    class Handler:
        def event_notification(self, event: Any) -> None:
            events.append(event)

    subscription = controller.client.create_subscription(10, Handler())
    event_type = controller.client.get_node(ua.NodeId(1024, controller.model))
    subscription.subscribe_events(controller.node("VisionSystem"), event_type)

    def work(camera: TriggeredCamera) -> None:
        for name in ("A", "B", "C"):
            controller.wait_for_state("Ready")
            assert controller.start(name)[-1] == 0
        controller.wait_for(lambda: len(events) == 3)
        for _ in range(3):
            controller.take()
        camera.end_of_pulses()

    stream(bundle, output, f"{CAMERA}software", work)
    subscription.delete()
    assert [event.PartId.Id for event in events] == ["A", "B", "C"]
    assert [event.ResultId.Id for event in events] == ["1", "2", "3"]
    assert {event.ResultState for event in events} == {1}
    assert events[0].Message.Text == "result 1: anomalous"


def test_the_states_follow_the_methods(
    output: Output, controller: Controller, bundle: Bundle
) -> None:
    assert controller.states() == ("Preoperational", "")
    assert controller.start("A")[-1] == WRONG_STATE
    with open_camera(f"{CAMERA}software") as camera:
        output.attach(camera)
        frames = iter(camera)
        reader = threading.Thread(target=lambda: next(frames, None), daemon=True)
        reader.start()
        controller.wait_for_state("Ready")
        machine = "VisionSystem.VisionStateMachine"
        identifier = controller.node(f"{machine}.AutomaticModeStateMachine.CurrentState.Id")
        assert identifier.read_value() == ua.NodeId(STATES["Ready"], controller.model)
        assert controller.start("", "StartContinuous")[-1] == NOT_SUPPORTED
        assert controller.start("A", recipe="another")[-1] == UNKNOWN
        assert controller.cause("Stop") == WRONG_STATE
        recipe = ua.RecipeIdExternalDataType(Id=bundle.short_id)
        nothing = ua.RecipeIdInternalDataType()
        assert controller.call("UnprepareRecipe", recipe, nothing)[-1] == 0
        controller.wait_for_state("Initialized")
        assert controller.start("A")[-1] == WRONG_STATE
        another = ua.RecipeIdExternalDataType(Id="another")
        assert controller.call("PrepareRecipe", another, nothing)[-1] == UNKNOWN
        answer = controller.call("PrepareRecipe", recipe, nothing)
        assert (answer[0].Id, answer[1:]) == (bundle.short_id, [True, 0])
        controller.wait_for_state("Ready")
        assert controller.cause("Halt") == 0
        controller.wait_for(lambda: controller.states() == ("Halted", ""))
        assert controller.cause("Reset") == 0
        assert controller.call("SelectModeAutomatic") == [0]
        controller.wait_for_state("Initialized")
        camera.stop()
        reader.join(WAIT_S)


def test_a_running_camera_is_started_and_stopped(output: Output, controller: Controller) -> None:
    with open_camera("synthetic://") as camera:
        output.attach(camera)
    controller.wait_for_state("ContinuousExecution")
    output.write(judgement(0))
    first = controller.take()
    assert first.PartId.Id == ""
    assert controller.cause("Stop") == 0
    controller.wait_for_state("Ready")
    output.write(judgement(1))
    assert controller.start("A")[-1] == REFUSED
    assert controller.start("", "StartContinuous")[-1] == 0
    output.write(judgement(2))
    second = controller.take()
    assert (first.ResultId.Id, second.ResultId.Id) == ("1", "2")
    assert second.JobId.Id != first.JobId.Id
    assert output.totals() == {"delivered": 2, "not_delivered": 0}


def test_results_are_found_by_their_parts_and_components(
    output: Output, controller: Controller
) -> None:
    with open_camera("synthetic://") as camera:
        output.attach(camera)
    controller.wait_for_state("ContinuousExecution")
    for index, part in enumerate("ABCA"):
        output.write(judgement(index, part))
    complete, count, _, found, error = controller.find("A")
    assert (complete, count, error) == (True, 2, 0)
    assert [result.ResultId.Id for result in found] == ["1", "4"]
    complete, count, _, found, _ = controller.find(most=2, start=1)
    assert (complete, [result.PartId.Id for result in found]) == (False, ["B", "C"])
    assert controller.find(state=4)[1] == 0
    zero = ua.Variant(0, ua.VariantType.Int32)
    answer = controller.call("GetResultComponentsById", ua.ResultIdDataType(Id="3"), zero)
    assert len(answer) == 17
    assert (answer[1], answer[6].Id, answer[-1]) == (3, "C", 0)
    handle, _, error = controller.get(ua.ResultIdDataType(Id="99"))
    assert (handle, error) == (0, UNKNOWN)
    # In any order, and each only once.
    assert [controller.release(handle) for handle in (3, 3, 1, 2, 4)] == [0, UNKNOWN, 0, 0, 0]
    assert output.totals() == {"delivered": 4, "not_delivered": 0}


def test_the_nodes_are_those_of_the_standard(output: Output, controller: Controller) -> None:
    system = controller.client.nodes.objects.get_child(f"{controller.model}:VisionSystem")
    assert system.read_type_definition() == ua.NodeId(1003, controller.model)
    for method, (parent, inputs, outputs) in METHODS.items():
        node = controller.node(f"{parent}.{method}")
        assert node.read_browse_name() == ua.QualifiedName(method, controller.model)
        for kind, texts in (("InputArguments", inputs), ("OutputArguments", outputs)):
            if texts:
                names = [argument.Name for argument in node.get_child(f"0:{kind}").read_value()]
                assert names == [text.split()[0] for text in texts]
    definition = controller.client.get_node(ua.NodeId(3006, controller.model))
    fields = definition.read_data_type_definition().Fields
    assert [field.Name for field in fields][:3] == [
        "ResultId",
        "HasTransferableDataOnFile",
        "IsPartial",
    ]
    assert controller.call("SimulationMode", True, ua.Variant(0, ua.VariantType.Int32), "") == [
        NOT_SUPPORTED
    ]
    either = ua.Variant(2, ua.VariantType.Int32)
    numbers = [ua.Variant(0, ua.VariantType.UInt32)] * 2
    empty = (ua.RecipeIdExternalDataType(), ua.ProductIdDataType())
    zero = ua.Variant(0, ua.VariantType.Int32)
    answer = controller.call("GetRecipeListFiltered", *empty, either, *numbers, zero)
    assert (answer[1], len(answer[3]), answer[-1]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "needs the address of this machine"),
        ("127.0.0.1:70000", "needs the address of this machine"),
        ("192.0.2.1:48400", "cannot listen"),
        ("127.0.0.1:0?end_s=-1", "end_s must be from 0"),
        ("127.0.0.1:0?certificate=c.pem", "certificate and key need each other"),
        ("127.0.0.1:0?credentials=c.txt", "credentials need certificate and key"),
        ("127.0.0.1:0?certificate=/absent&key=/absent", "file /absent cannot be read"),
    ],
)
def test_a_wrong_address_is_one_line(bundle: Bundle, target: str, message: str) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        open_output(f"opcua:{target}", bundle)
    assert "\n" not in str(caught.value)


def test_a_result_says_where_the_part_is_anomalous(output: Output, controller: Controller) -> None:
    with open_camera("synthetic://") as camera:
        output.attach(camera)
    controller.wait_for_state("ContinuousExecution")
    regions = Regions((Region((1, 2, 30, 40), 500, 120.5, (3, 4)),), 7)
    output.write(dataclasses.replace(judgement(0), regions=regions))
    output.write(judgement(1))
    contents = [[variant.Value for variant in controller.take().ResultContent] for _ in range(2)]
    assert contents[0][5:] == [7, [1, 2, 30, 40, 500, 120.5]]
    # Not known: the bundle has no pixel threshold.
    assert contents[1][5:] == [-1, []]


def test_the_bundle_is_the_only_configuration(
    output: Output, controller: Controller, bundle: Bundle
) -> None:
    path = "VisionSystem.ConfigurationManagement"
    assert controller.node(path).read_type_definition() == ua.NodeId(1006, controller.model)
    controller.wait_for(
        lambda: controller.node(f"{path}.ActiveConfiguration").read_value() is not None
    )
    active = controller.node(f"{path}.ActiveConfiguration").read_value()
    assert active.InternalId.Id == bundle.short_id
    zero = ua.Variant(0, ua.VariantType.Int32)
    numbers = [ua.Variant(0, ua.VariantType.UInt32)] * 2
    complete, count, _, found, error = controller.call("GetConfigurationList", *numbers, zero)
    assert (complete, count, found, error) == (True, 1, [active], 0)
    answer = controller.call("GetConfigurationById", active.InternalId, zero)
    assert answer[1:] == [active, 0]
    assert controller.call("ActivateConfiguration", active.InternalId) == [0]
    another = ua.ConfigurationIdDataType(Id="another")
    assert controller.call("GetConfigurationById", another, zero)[-1] == UNKNOWN
    assert controller.call("ActivateConfiguration", another) == [UNKNOWN]


def test_a_camera_that_cannot_be_opened_is_an_error(output: Output, controller: Controller) -> None:
    with open_camera(f"{CAMERA}software") as camera:
        output.attach(camera)
        camera.stop()
        # The thread of the camera notices it, too.
        list(camera)
    controller.wait_for(lambda: controller.states() == ("Error", ""))
    assert controller.start("A")[-1] == WRONG_STATE
    assert controller.cause("Reset") == 0
    controller.wait_for(lambda: controller.states() == ("Preoperational", ""))


@pytest.mark.slow
def test_a_client_that_is_gone_delays_nothing_and_the_next_one_gets_its_result(
    output: Output, controller: Controller, port: int
) -> None:
    with open_camera("synthetic://") as camera:
        output.attach(camera)
    controller.wait_for_state("ContinuousExecution")
    transport = controller.client.aio_obj.uaclient.protocol.transport
    controller.client.tloop.loop.call_soon_threadsafe(transport.abort)
    # Nothing is confirmed meanwhile, and nothing waits for that.
    for number in range(3):
        output.write(judgement(number, f"SN {number}"))
    other = Controller(port)
    assert [other.take().PartId.Id for _ in range(3)] == ["SN 0", "SN 1", "SN 2"]
    assert output.totals() == {"delivered": 3, "not_delivered": 0}
    other.close()


def test_clients_are_encrypted_and_give_a_password(
    bundle: Bundle, port: int, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl")
    files = {}
    for side in ("server", "client"):
        key, certificate = tmp_path / f"{side}_key.pem", tmp_path / f"{side}.pem"
        names = f"subjectAltName=URI:{OWN_NAMESPACE}.{side},IP:127.0.0.1"
        request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=flawline -addext"
        command = [
            "openssl",
            *request.split(),
            names,
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ]
        subprocess.run(command, check=True, capture_output=True)
        files[side] = (certificate, key)
    credentials = tmp_path / "user.txt"
    credentials.write_text("user=line4\npassword=secret-7\n")
    credentials.chmod(0o600)
    certificate, key = files["server"]
    options = f"certificate={certificate}&key={key}&credentials={credentials}"

    def encrypted(password: str | None) -> Callable[[Client], None]:
        def prepare(client: Client) -> None:
            own = ",".join(str(path) for path in files["client"])
            client.set_security_string(f"Basic256Sha256,SignAndEncrypt,{own}")
            if password is not None:
                client.set_user("line4")
                client.set_password(password)

        return prepare

    with open_output(f"opcua:127.0.0.1:{port}?{options}&end_s=0", bundle) as output:
        assert isinstance(output, OpcUa)
        output._start()
        controller = Controller(port, encrypted("secret-7"))
        assert controller.states() == ("Preoperational", "")
        controller.close()
        refused: list[Callable[[Client], None]] = [encrypted("secret-8"), encrypted(None)]
        refused.append(lambda client: None)
        for prepare in refused:
            with pytest.raises((ua.UaError, ConnectionError, TimeoutError)):
                Controller(port, prepare)

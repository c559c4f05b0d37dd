"""Results and triggers in an OPC UA server with nodes of OPC 40100-1, OPC UA for Machine Vision."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any, ClassVar

from flawline.cameras import Camera
from flawline.extras import missing_package
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import first_line
from flawline.runtime.outputs import Judgement, OutputError
from flawline.runtime.outputs.handshake import (
    HandshakeServer,
    Result,
    ServerThread,
    require_free,
)
from flawline.runtime.outputs.vision_methods import VisionMethods
from flawline.runtime.outputs.vision_model import Model, VisionNodes
from flawline.runtime.outputs.vision_results import VisionResult, flat_regions, structure
from flawline.runtime.outputs.vision_security import OpcUaOptions, Security
from flawline.runtime.outputs.vision_states import OPERATIONAL, VisionStates
from flawline.runtime.outputs.vision_tables import METHODS, NAMESPACE, OWN_NAMESPACE, STATES

PORT = 4840
START_S = 60.0
STOP_S = 5.0
TARGET = re.compile(r"(?P<host>[^\s/:@\[\]]+)(:(?P<port>\d{1,5}))?")


class OpcUa(HandshakeServer):
    """An OPC UA server with the state machines, methods, results and events of OPC 40100-1.

    `target` is the address to listen on; the server is opened with the first camera. StartSingleJob
    with a PartId sends the pulse to a camera with `trigger=software`, or names the next part of
    another trigger; its result has that PartId and the returned JobId. Each result is an event, and
    the oldest one that is not released is the value of the node Result, until ReleaseResultHandle
    is called. docs/outputs.md lists the nodes.
    """

    usage: ClassVar[str] = "opcua:ADDRESS[:PORT]"
    uses_regions = True
    Options: ClassVar[type[OpcUaOptions]] = OpcUaOptions
    untested: ClassVar[str | None] = "with the conformance tests of the OPC Foundation"

    def __init__(self, target: str, options: OpcUaOptions, bundle: Bundle) -> None:
        match = TARGET.fullmatch(target)
        if match is None or int(match["port"] or PORT) > 65535:
            raise OutputError(
                "output opcua: needs the address of this machine that clients connect to; "
                f"write {self.usage}, and 0.0.0.0 for all addresses"
            )
        self._address = (match["host"], int(match["port"] or PORT))
        super().__init__(f"output opcua: {target}", options, bundle)
        self._states = VisionStates()
        self._methods = VisionMethods(
            self._states,
            bundle.short_id,
            self._trigger,
            self._all_results,
            self._acknowledge,
        )
        self._methods.changed_at = bundle.calibrated_at
        self._security = Security(self._name, options)
        self._server: Any = None
        require_free(self._name, *self._address)

    @classmethod
    def missing(cls) -> str | None:
        if importlib.util.find_spec("asyncua") is None:
            return missing_package("asyncua")
        return None

    @classmethod
    def example(cls, folder: Path) -> str:
        """Return the address of this machine, with any free port."""
        return "127.0.0.1:0?end_s=0"

    def _start(self) -> None:
        if self._server is not None:
            return
        # A client that disconnects is no error; that nothing is encrypted is in the documentation.
        logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)
        self._thread = ServerThread("opcua")
        try:
            self._nodes: VisionNodes = self._thread.call(self._listen(), START_S)
        except OutputError:
            self._thread.close()
            raise
        except (RuntimeError, OSError) as error:
            self._thread.close()
            raise OutputError(
                f"{self._name}: cannot listen ({first_line(error)}); choose a free port"
            ) from error

    async def _listen(self) -> VisionNodes:
        import asyncio

        server = self._security.new_server()
        await server.init()
        host, port = self._address
        server.set_endpoint(f"opc.tcp://{host}:{port}/")
        server.set_server_name("Flawline")
        await server.set_application_uri(OWN_NAMESPACE)
        await self._security.apply(server)
        model = await server.register_namespace(NAMESPACE)
        own = await server.register_namespace(OWN_NAMESPACE)
        methods = {name: self._method(name) for name in METHODS}
        nodes = await Model(server, model, own).build(methods)
        self._news: asyncio.Queue[VisionResult | None] = asyncio.Queue()
        self._news.put_nowait(None)
        await server.start()
        self._server = server
        self._publisher = asyncio.ensure_future(self._publish(nodes))
        return nodes

    def _stop(self) -> None:
        if self._server is not None:
            self._thread.call(self._server.stop(), STOP_S)
            self._server = None
            self._thread.close()

    # What the stream calls.

    def attach(self, camera: Camera) -> None:
        # It takes a second of computing, which a stream that cannot start need not wait for.
        self._start()
        super().attach(camera)

    def write(self, judgement: Judgement) -> None:
        """Take a judgement over, unless it belongs to no job: it is then not sent, nor counted."""
        if self._server is not None and self._publisher.done():
            # It ends by itself only because of a fault in the program, which must not be hidden.
            self._publisher.result()
        if self._methods.has_job:
            super().write(judgement)

    def _message(self, judgement: Judgement) -> VisionResult:
        job = self._methods.take_job()
        processing = sum(judgement.verdict.milliseconds.values())
        result = super()._message(judgement)
        return VisionResult(
            **vars(result),
            bundle=self._bundle_id,
            job=job.name,
            measurement=job.measurement,
            processing=processing,
            regions_total=-1 if judgement.regions is None else judgement.regions.total,
            regions=flat_regions(judgement.regions),
        )

    def change_bundle(self, bundle: Bundle) -> None:
        super().change_bundle(bundle)
        self._methods.bundle_id = bundle.short_id
        self._methods.changed_at = bundle.calibrated_at
        if self._server is not None:
            self._thread.loop.call_soon_threadsafe(self._news.put_nowait, None)

    def _on_result(self, result: Result) -> None:
        assert isinstance(result, VisionResult)
        self._thread.loop.call_soon_threadsafe(self._finish_job, result)

    def _on_open(self) -> None:
        self._thread.loop.call_soon_threadsafe(self._start_up)

    def _on_failure(self) -> None:
        self._thread.loop.call_soon_threadsafe(self._fail)

    # What the thread of the server calls.

    def _finish_job(self, result: VisionResult) -> None:
        self._states.finish_job()
        self._news.put_nowait(result)

    def _fail(self) -> None:
        self._states.fail()
        self._news.put_nowait(None)

    def _start_up(self) -> None:
        self._states.start_up(continuous=not self._cameras)
        self._methods.start_up(
            by_software=any(camera.trigger == "software" for camera in self._cameras)
        )
        self._news.put_nowait(None)

    async def _publish(self, nodes: VisionNodes) -> None:
        """Write the nodes after each change, and send an event for each result, in their order."""
        last: Result | None = None
        active: Any = None
        await nodes.result.write_value(structure(last))
        while True:
            result = await self._news.get()
            if result is not None:
                content = structure(result)
                for field in content.__dataclass_fields__:
                    if hasattr(nodes.events.event, field):
                        setattr(nodes.events.event, field, getattr(content, field))
                await nodes.events.trigger(message=f"result {result.number}: {result.verdict}")
            await self._write_states(nodes)
            configuration = self._methods.configuration()
            if configuration != active:
                active = configuration
                await nodes.configuration.write_value(active)
            shown = self._shown
            if shown is not last:
                last = shown
                await nodes.result.write_value(structure(shown))

    async def _write_states(self, nodes: VisionNodes) -> None:
        from asyncua import ua

        state = self._states.state
        is_automatic = self._states.is_automatic
        top = OPERATIONAL if is_automatic else state
        await nodes.state.write_value(ua.LocalizedText(top))
        await nodes.state_id.write_value(ua.NodeId(STATES[top], nodes.model))
        if is_automatic:
            await nodes.automatic.write_value(ua.LocalizedText(state))
            await nodes.automatic_id.write_value(ua.NodeId(STATES[state], nodes.model))
            return
        inactive = ua.StatusCode(ua.UInt32(ua.StatusCodes.BadStateNotActive))
        for node in (nodes.automatic, nodes.automatic_id):
            await node.write_value(ua.DataValue(StatusCode=inactive))

    def _method(self, name: str) -> Any:
        """Return the function that the server calls for a method of METHODS."""

        async def call(_parent: Any, *variants: Any) -> list[Any]:
            answer = self._methods.call(name, [variant.Value for variant in variants])
            self._news.put_nowait(None)
            return answer

        return call

    def _all_results(self) -> list[VisionResult]:
        with self._changed:
            return [result for result in self._results if isinstance(result, VisionResult)]

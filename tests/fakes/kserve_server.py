"""A server of the KServe v2 protocol around ONNX Runtime, which fails as a test asks it to."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from flawline.runtime.bundle import Bundle

MODEL = "part"


class KServeServer:
    """Serves a graph on 127.0.0.1, as Triton declares it; attributes change what it does.

    The servicer is made in the constructor, because its base class needs gRPC.
    """

    def __init__(self, bundle: Bundle, port: int = 0) -> None:
        self.bundle = bundle
        self.load(bundle.model())
        self.version = "1"
        # What the model declares; the shapes of its outputs as Triton gives them.
        self.input = ("image", "UINT8", [-1, *bundle.manifest.graph_input.shape])
        self.outputs = {"score": [-1, 1]}
        if bundle.has_map:
            self.outputs["map"] = [-1, *bundle.map_size]
        # None is a server without this call, which only Triton has.
        self.config: dict[str, Any] | None = None
        # Results in the fields of protobuf, and not as bytes.
        self.typed = False
        # Status codes of the next requests for results, by their names.
        self.failures: list[str] = []
        self.delay_s = 0.0
        self.requests = 0
        self.headers: dict[str, str] = {}
        self.port = port
        self._lock = threading.Lock()
        self._server: Any = None
        self.start()

    @property
    def uri(self) -> str:
        return f"grpc://127.0.0.1:{self.port}/{MODEL}"

    @property
    def patient_uri(self) -> str:
        """The address with a time-out that a busy machine does not reach."""
        return f"{self.uri}?timeout=30"

    def load(self, model: Path | bytes) -> None:
        """Serve another graph."""
        source = model if isinstance(model, bytes) else model.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(source, options)

    def start(self, credentials: Any = None) -> None:
        """Listen, on the same port as before."""
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        # With SO_REUSEPORT, two servers could share a port.
        options = [("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(4), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_servicer(self), self._server)
        address = f"127.0.0.1:{self.port}"
        deadline = time.monotonic() + 10
        while True:
            try:
                if credentials is None:
                    self.port = self._server.add_insecure_port(address)
                else:
                    self.port = self._server.add_secure_port(address, credentials)
                break
            except RuntimeError:
                # The sockets of the server before are closed in another thread.
                assert time.monotonic() < deadline
                time.sleep(0.05)
        self._server.start()

    def kill(self) -> None:
        """Close all connections, and listen no longer."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def infer(self, request: Any) -> Any:
        """Return a ModelInferResponse."""
        from tritonclient.grpc.service_pb2 import ModelInferResponse

        (tensor,) = request.inputs
        assert (tensor.name, tensor.datatype) == ("image", "UINT8")
        image = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(tensor.shape)
        names = [output.name for output in request.outputs]
        with self._lock:
            results = self._session.run(names, {"image": image})
        answer = ModelInferResponse(model_name=request.model_name, model_version=self.version)
        for name, values in zip(names, results, strict=True):
            output = answer.outputs.add()
            output.name = name
            output.datatype = "FP32"
            # The score has an axis of one more where the model declares it.
            shape = (*values.shape, 1) if self.outputs[name] == [-1, 1] else values.shape
            output.shape.extend(shape)
            if self.typed:
                output.contents.fp32_contents.extend(values.ravel().tolist())
            else:
                answer.raw_output_contents.append(values.tobytes())
        return answer

    def metadata(self) -> Any:
        """Return a ModelMetadataResponse."""
        from tritonclient.grpc.service_pb2 import ModelMetadataResponse

        answer = ModelMetadataResponse(name=MODEL, versions=[self.version], platform="onnx")
        tensors = [(answer.inputs, *self.input)]
        tensors += [(answer.outputs, name, "FP32", shape) for name, shape in self.outputs.items()]
        for kind, name, datatype, shape in tensors:
            tensor = kind.add()
            tensor.name = name
            tensor.datatype = datatype
            tensor.shape.extend(shape)
        return answer


def _servicer(server: KServeServer) -> Any:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelMetadata(self, request: Any, context: Any) -> Any:
            if request.name != MODEL or request.version not in ("", server.version):
                context.abort(grpc.StatusCode.NOT_FOUND, f"Model {request.name} not found")
            return server.metadata()

        def ModelConfig(self, request: Any, context: Any) -> Any:
            if server.config is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
            answer = service_pb2.ModelConfigResponse()
            answer.config.max_batch_size = server.config["max_batch_size"]
            for name, value in server.config["parameters"].items():
                answer.config.parameters[name].string_value = value
            return answer

        def ModelInfer(self, request: Any, context: Any) -> Any:
            server.requests += 1
            server.headers = dict(context.invocation_metadata())
            time.sleep(server.delay_s)
            if server.failures:
                code = getattr(grpc.StatusCode, server.failures.pop(0))
                context.abort(code, "as the test asked")
            return server.infer(request)

    return Servicer()

"""A runtime of MLServer around the graph of a bundle; only MLServer's own process imports it."""

from __future__ import annotations

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxGraph(MLModel):
    """Runs the file that `parameters.uri` of the model's settings names."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        image = NumpyCodec.decode_input(payload.inputs[0])
        names = [output.name for output in payload.outputs]
        results = self._session.run(names, {"image": image})
        outputs = []
        for name, values in zip(names, results, strict=True):
            outputs.append(NumpyCodec.encode_output(name, values))
        return InferenceResponse(model_name=self.name, outputs=outputs)

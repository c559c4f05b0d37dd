"""What all classes of the fake TensorRT share: the control by a test, and members by version."""

from __future__ import annotations

from typing import Any

SIZE = 64  # height and width of the images that the fake network takes


class Control:
    """What a test makes the fake do, and what the fake was asked for."""

    def __init__(self, trt: Any, driver: Any, version: str, **settings: Any) -> None:
        self.trt = trt
        self.driver = driver
        self.version = version
        self.portable = version.startswith("rtx")
        self.layers = [("/body/Conv", "FLOAT"), ("/head/Pow", "FLOAT"), ("/head/Shape", "INT32")]
        self.outputs = ["score", "map"]
        # What the inspector says that the layers of a plan compute in.
        self.types = ["Half", "Half", "Float"]
        self.batch = -1  # of the graph
        self.refuse_plans = False
        self.refuse_build = False
        self.refuse_context = False
        self.dla_cores = 0
        self.builds: list[dict[str, Any]] = []
        self.contexts: list[Any] = []
        for name, value in settings.items():
            setattr(self, name, value)

    def require_driver(self) -> None:
        if not self.portable and not self.driver.fake_calls(b"cuInit"):
            raise AssertionError("TensorRT 8 crashes here, because the driver was not checked")


class FakeObject:
    """Refuses attributes that its class does not have in this version."""

    _trt: Any
    _control: Control
    _allowed: set[str]

    def __setattr__(self, name: str, value: Any) -> None:
        # A class that the code under test derives from a fake one may have any attribute.
        is_fake_class = type(self).__mro__[1] is FakeObject
        if is_fake_class and not name.startswith("_") and name not in self._allowed:
            version = self._control.version
            raise AttributeError(f"{type(self).__name__} of {version} has no {name}")
        object.__setattr__(self, name, value)

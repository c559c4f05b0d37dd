"""GenTL producers: which files they are, and one loaded producer for all cameras of a process.

A producer can be loaded once in a process, and searching for cameras again closes those that are
open. So its cameras share it, from the first that is opened to the last that is closed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.cameras import CameraError
from flawline.cameras.devices import Device
from flawline.cameras.genicam_settings import first_line

PATH_VARIABLE = "GENICAM_GENTL64_PATH"


@dataclass
class _Loaded:
    """A loaded producer, and how many cameras use it."""

    harvester: Any
    users: int = 0


_LOADED: dict[Path, _Loaded] = {}
# Cameras are opened by their capture threads.
_LOCK = threading.RLock()


def load_harvesters() -> Any:
    """Import the module of harvesters. Raises ImportError."""
    with warnings.catch_warnings():
        # With warnings as errors, those of its compiled parts could end the process.
        warnings.simplefilter("ignore")
        from harvesters import core
    # It prints stack traces of errors that are raised as well.
    logging.getLogger("harvesters.core").setLevel(logging.CRITICAL + 1)
    return core


def simulated_producer() -> Path | None:
    """Return the simulated GenTL producer that the genicam package brings, or None."""
    package = importlib.util.find_spec("genicam")
    if package is None or package.origin is None:
        return None
    producer = Path(package.origin).parent / "viky.cti"
    return producer if producer.is_file() else None


def find_producers(cti: str | None, source: str) -> list[Path]:
    """Return a producer's file, or all of the environment variable. Raises CameraError."""
    if cti is not None:
        if not Path(cti).is_file():
            raise CameraError(f"camera {source}: there is no such file {cti}; check the option cti")
        return [Path(cti).resolve()]
    found: list[Path] = []
    for folder in os.environ.get(PATH_VARIABLE, "").split(os.pathsep):
        if folder:
            found.extend(path.resolve() for path in sorted(Path(folder).glob("*.cti")))
    if not found:
        raise CameraError(
            f"camera {source}: no GenTL producer was found; install the software of the camera's "
            f"maker, and give its .cti file as ?cti=FILE or its folder in {PATH_VARIABLE}"
        )
    return found


def use_producer(producer: Path, source: str) -> list[Device]:
    """Load a producer, unless another camera has; return its cameras.

    The entry of each device is its position. Raises CameraError for a file that is no producer.
    """
    with _LOCK:
        loaded = _LOADED.get(producer)
        if loaded is None:
            _require_producer(producer, source)
            harvester = load_harvesters().Harvester()
            harvester.add_file(str(producer))
            harvester.update()
            loaded = _LOADED[producer] = _Loaded(harvester)
        loaded.users += 1
        devices = []
        for index, info in enumerate(loaded.harvester.device_info_list):
            serial = fact(info, "serial_number", None) or fact(info, "id_", "")
            name = fact(info, "user_defined_name", None) or ""
            devices.append(Device(serial, name, fact(info, "model", ""), (producer, index)))
        return devices


def create_acquirer(device: Device) -> tuple[Any, str]:
    """Open a camera of a loaded producer; return it and the name of its transport layer.

    Errors of harvesters are passed on.
    """
    with _LOCK:
        producer, index = device.entry
        harvester = _LOADED[producer].harvester
        transport = str(fact(harvester.device_info_list[index], "tl_type", ""))
        with _sigint_unchanged():
            return harvester.create(index), transport


@contextlib.contextmanager
def _sigint_unchanged() -> Iterator[None]:
    """Undo that harvesters, in the main thread, makes Ctrl-C close the camera and do no more."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def give_back(producer: Path) -> None:
    """Unload a producer if no other camera uses it."""
    with _LOCK:
        loaded = _LOADED[producer]
        loaded.users -= 1
        if loaded.users == 0:
            del _LOADED[producer]
            loaded.harvester.reset()


def fact(module: Any, name: str, default: Any) -> Any:
    """Return a fact of a camera or a buffer, or the default where the producer does not say it."""
    try:
        return getattr(module, name)
    except Exception:
        # The exceptions of the library are known only where it is installed.
        return default


def _require_producer(producer: Path, source: str) -> None:
    """Raise CameraError for a file that is no GenTL producer, which harvesters leaves out."""
    from genicam import gentl

    library = gentl.GenTLProducer.create_producer()
    try:
        library.open(str(producer))
    except Exception as error:
        raise CameraError(
            f"camera {source}: {producer} is no GenTL producer of this machine "
            f"({first_line(error)}); give the .cti file of the camera's maker for this processor"
        ) from error
    library.close()

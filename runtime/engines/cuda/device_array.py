"""Arrays in the memory of the GPU: those that an engine gives, and those that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flawline.runtime.console import first_line
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.cuda import dlpack
from flawline.runtime.engines.cuda.base import Cuda, DeviceMemory

# The types of numbers of an engine, as __cuda_array_interface__ names them: DLPack's kind and bits.
_NUMBERS = {"|u1": (dlpack.UNSIGNED, 8), "<f4": (dlpack.FLOAT, 32)}
UINT8 = "|u1"
FLOAT32 = "<f4"
# What TensorRT requires of the address of a tensor, in bytes.
ALIGNMENT = 256


class DeviceArray:
    """A contiguous array in the memory of the GPU, uint8 or float32, for other libraries to read.

    They take it without a copy through `__dlpack__` (torch.from_dlpack) or
    `__cuda_array_interface__` (cupy.asarray, torch.as_tensor). The values are complete: the engine
    has waited for them, so that no stream has to. The memory is freed with the last reference to
    this object and to what was made of it, also after the engine was closed.

    The engine overwrites the maps that it gives with its next call or `submit`. What reads them on
    a stream of its own must have finished by then.
    """

    def __init__(self, memory: DeviceMemory, shape: tuple[int, ...], numbers: str) -> None:
        self.shape = shape
        self.numbers = numbers
        self._memory = memory

    @property
    def address(self) -> int:
        """The address in device memory."""
        return self._memory.address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.numbers,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._memory.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule of DLPack. Raises BufferError for a copy or for another device.

        The values are complete, so that `stream` has nothing to wait for.
        """
        device = self.__dlpack_device__()
        if copy:
            raise BufferError("a map on the GPU is shared, not copied")
        if dl_device is not None and tuple(map(int, dl_device)) != device:
            raise BufferError(f"a map on the GPU is on the device {device}, not on {dl_device}")
        numbers = _NUMBERS[self.numbers]
        return dlpack.share(self.address, self.shape, numbers, device, self._memory)


@dataclass(frozen=True)
class DeviceImage:
    """An image of a caller in the memory of this GPU, uint8 and contiguous.

    `owner` keeps the memory from being freed while the engine reads it.
    """

    address: int
    shape: tuple[int, ...]
    owner: object


def device_image(image: Any, cuda: Cuda) -> DeviceImage:
    """Return the address and shape of an image in device memory; nothing is copied.

    The stream of `cuda` waits for the work that still writes the image: with `__dlpack__`, the
    library of the image lets it wait, and with `__cuda_array_interface__`, the host waits for the
    stream that is stated there. Raises EngineError for an image on another device, of another type
    than uint8, that is not contiguous or not aligned.
    """
    if hasattr(image, "__dlpack_device__"):
        view = _from_dlpack(image, cuda)
    else:
        view = _from_interface(image, cuda)
    if not view.is_uint8:
        raise EngineError("the image in GPU memory is not uint8; convert it first")
    if view.strides is not None and not _is_contiguous(view.image.shape, view.strides):
        raise EngineError("the image in GPU memory is not contiguous; copy it to an array that is")
    _require_usable(view.image.address, cuda)
    return view.image


class _View(NamedTuple):
    """An image as its library describes it. `strides` are in items; None if it is contiguous."""

    image: DeviceImage
    is_uint8: bool
    strides: tuple[int, ...] | None


def _from_dlpack(image: Any, cuda: Cuda) -> _View:
    kind, number = image.__dlpack_device__()
    if int(kind) not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        raise EngineError(
            f"the image is on a device of DLPack's kind {int(kind)}, and this engine reads CUDA's; "
            f"copy it to the host first"
        )
    _require_same(int(number), cuda)
    try:
        taken = dlpack.take(image.__dlpack__(stream=cuda.stream))
    except Exception as error:
        # Each library has exceptions of its own.
        raise EngineError(
            f"the library of the image does not share it ({first_line(error)}); "
            f"copy it to the host first"
        ) from error
    is_uint8 = (taken.code, taken.bits) == _NUMBERS[UINT8]
    return _View(DeviceImage(taken.address, taken.shape, taken.owner), is_uint8, taken.strides)


def _from_interface(image: Any, cuda: Cuda) -> _View:
    interface: Mapping[str, Any] = image.__cuda_array_interface__
    stream = interface.get("stream")
    if stream is not None:
        cuda.wait_for(int(stream))
    address = interface["data"][0]
    strides = interface.get("strides")
    if strides is not None:
        strides = tuple(strides)
    found = DeviceImage(int(address or 0), tuple(interface["shape"]), image)
    return _View(found, interface["typestr"] == UINT8, strides)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether the items follow each other in the order of the dimensions, the last fastest."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        # The stride of a dimension of one item is never used.
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _require_usable(address: int, cuda: Cuda) -> None:
    """Raise EngineError for memory of another device, and for an address that is not aligned."""
    number = cuda.device_of(address)
    if number is None:
        raise EngineError("the address of the image is not in GPU memory; copy it there first")
    _require_same(number, cuda)
    if address % ALIGNMENT != 0:
        raise EngineError(
            f"the address of the image in GPU memory is not a multiple of {ALIGNMENT}; "
            f"copy it to an array of its own"
        )


def _require_same(number: int, cuda: Cuda) -> None:
    if number != cuda.number:
        raise EngineError(
            f"the image is in the memory of GPU {number}, and this engine runs on GPU "
            f"{cuda.number} of those that CUDA_VISIBLE_DEVICES lists; copy it there first"
        )

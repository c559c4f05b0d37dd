"""Results as the structures of OPC 40100-1 (OPC UA for Machine Vision)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from flawline.runtime.outputs.handshake import Result
from flawline.runtime.regions import Regions

# Values of ResultStateDataType.
COMPLETED = 1
FAILED = 4


@dataclass(frozen=True)
class VisionResult(Result):
    """A result with the job that it belongs to, and the time of the detector in milliseconds.

    `bundle` is the identifier of the bundle that the part was judged with. `regions` has x, y,
    width, height, area and peak of each region that is listed, one after the other, and
    `regions_total` is the number of all; -1 if that is not known.
    """

    bundle: str = ""
    job: str = ""
    measurement: str = ""
    processing: float = 0.0
    regions_total: int = -1
    regions: tuple[float, ...] = ()

    @property
    def state(self) -> int:
        """The value of ResultStateDataType."""
        return FAILED if self.verdict == "unjudged" else COMPLETED


def flat_regions(regions: Regions | None) -> tuple[float, ...]:
    """Return the regions that are listed as `VisionResult.regions` holds them."""
    values: list[float] = []
    if regions is not None:
        for region in regions.listed:
            values += [*region.box, region.area, region.peak]
    return tuple(values)


def structure(result: Result | None) -> Any:
    """Return a result as ResultDataType; without one, its ResultState is 0, undefined."""
    from asyncua import ua

    if not isinstance(result, VisionResult):
        return ua.ResultDataType()
    started = datetime.fromtimestamp(result.started, timezone.utc)
    ended = datetime.fromtimestamp(result.started + result.judging, timezone.utc)
    content = ua.ResultDataType(
        ResultId=ua.ResultIdDataType(Id=str(result.number)),
        ResultState=result.state,
        PartId=ua.PartIdDataType(Id=result.part),
        InternalRecipeId=ua.RecipeIdInternalDataType(Id=result.bundle),
        InternalConfigurationId=ua.ConfigurationIdDataType(Id=result.bundle),
        JobId=ua.JobIdDataType(Id=result.job),
        CreationTime=ended,
        ProcessingTimes=ua.ProcessingTimesDataType(
            StartTime=started, EndTime=ended, ProcessingDuration=result.processing
        ),
        ResultContent=[
            ua.Variant(result.verdict, ua.VariantType.String),
            ua.Variant(result.rejected, ua.VariantType.Boolean),
            ua.Variant(float(result.score), ua.VariantType.Double),
            ua.Variant(float(result.threshold), ua.VariantType.Double),
            ua.Variant(result.reason, ua.VariantType.String),
            ua.Variant(result.regions_total, ua.VariantType.Int32),
            ua.Variant(list(result.regions), ua.VariantType.Double, is_array=True),
        ],
    )
    if result.measurement:
        content.MeasId = ua.MeasIdDataType(Id=result.measurement)
    return content

"""The states of a vision system in OPC 40100-1 (OPC UA for Machine Vision), as far as it has them.

The states of the two machines of the standard, VisionStateMachineType and, while that is
Operational, VisionAutomaticModeStateMachineType, are one value here.
"""

from __future__ import annotations

PREOPERATIONAL = "Preoperational"
HALTED = "Halted"
ERROR = "Error"
OPERATIONAL = "Operational"
INITIALIZED = "Initialized"
READY = "Ready"
SINGLE = "SingleExecution"
CONTINUOUS = "ContinuousExecution"
AUTOMATIC = (INITIALIZED, READY, SINGLE, CONTINUOUS)

# Method -> the states that it may be called in, and the state that follows.
METHODS = {
    "Halt": ((PREOPERATIONAL, ERROR, *AUTOMATIC), HALTED),
    "Reset": ((HALTED, ERROR, *AUTOMATIC), PREOPERATIONAL),
    "SelectModeAutomatic": ((PREOPERATIONAL,), INITIALIZED),
    "PrepareRecipe": ((INITIALIZED, READY), READY),
    "UnprepareRecipe": ((READY,), INITIALIZED),
    "StartSingleJob": ((READY,), SINGLE),
    "StartContinuous": ((READY,), CONTINUOUS),
    "Stop": ((SINGLE, CONTINUOUS), READY),
    "Abort": ((SINGLE, CONTINUOUS), READY),
}


class VisionStates:
    """The current state. Calls of several threads must be serialised by the caller."""

    def __init__(self) -> None:
        self.state = PREOPERATIONAL

    @property
    def is_automatic(self) -> bool:
        """Whether the machine of the automatic mode has a state."""
        return self.state in AUTOMATIC

    @property
    def is_prepared(self) -> bool:
        """Whether the recipe is prepared, so that jobs can be started."""
        return self.state in (READY, SINGLE, CONTINUOUS)

    def allows(self, method: str) -> bool:
        """Tell whether a method of METHODS may be called now."""
        return self.state in METHODS[method][0]

    def call(self, method: str) -> bool:
        """Make the transition of a method of METHODS; return False if it is not allowed now."""
        if not self.allows(method):
            return False
        self.state = METHODS[method][1]
        return True

    def start_up(self, continuous: bool) -> None:
        """Make the transitions from Preoperational to Ready, or to ContinuousExecution."""
        if self.state == PREOPERATIONAL:
            self.state = CONTINUOUS if continuous else READY

    def fail(self) -> None:
        """Make the transition to Error, which a client ends with Reset or Halt."""
        if self.state != HALTED:
            self.state = ERROR

    def finish_job(self) -> None:
        """A single job has its result."""
        if self.state == SINGLE:
            self.state = READY

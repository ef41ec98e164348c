"""Where a training step's time goes, and how much of a reward's time is hidden behind other work.

`Timeline` is all that a training loop needs; it names what its figures mean.

Modules: `timeline` (the face) on `recorder` (begins and ends), `wrapping` and `counting` (rewards), `devices`
(CUDA), `stages` (within a reward), `exclusive` (phases that add up), `files` (several processes); `ledger`
and `accounting` on `intervals` (sums, exposed and hidden); `summary`, `report`, `step_table` and `trace`
(what comes out); `page`, `advice` and `replay` (what is made of it).
"""

from fastreward.profiling.devices import CudaClock, DeviceClock
from fastreward.profiling.report import PhaseReport, Report, RewardReport, StepReport
from fastreward.profiling.spans import Process, Span
from fastreward.profiling.stages import stage
from fastreward.profiling.timeline import Timeline

__all__ = [
    "CudaClock",
    "DeviceClock",
    "PhaseReport",
    "Process",
    "Report",
    "RewardReport",
    "Span",
    "StepReport",
    "Timeline",
    "stage",
]

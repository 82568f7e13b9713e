"""A task: an objective by its modules and the terms of their losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from carrara.dataset.loader import Loaded
    from carrara.training.checkpoint import TrainingState
    from carrara.training.looks import Looks


class HeldOutLooks(Protocol):
    """What looks at held-out pictures for a task, between its steps, and answers for it."""

    timing: Looks

    def between(self, state: TrainingState) -> str:
        """As `Task.between`."""
        ...

    def finished(self, state: TrainingState) -> str:
        """As `Task.finished`."""
        ...

    def measures(self) -> Mapping[str, float]:
        """As `Task.measures`."""
        ...


class Task(ABC):
    """An objective: modules by name, and for each of them its named loss terms (already weighted).

    ``validation``, where there is one, looks at held-out pictures between the steps.
    """

    modules: Mapping[str, nn.Module]
    validation: HeldOutLooks | None = None

    @property
    def divisible(self) -> bool:
        """Whether parts of a batch may be asked about at the same time, in any order: its losses keep no state."""
        return False

    @abstractmethod
    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        """The terms whose sum the module ``update`` descends, each a scalar; none where it is not its turn.

        Means over the batch's pictures, so that parts of a batch can be computed one after another; all modules
        are asked about a part, in their order, before the next one comes, and no weights change in between.
        """

    def pending(self, state: TrainingState) -> str:
        """What `between` or `last` will do now that takes a while, in a word such as "validating", or ""."""
        return "validating" if self.validation and self.validation.timing.due(state) else ""

    def between(self, state: TrainingState) -> str:
        """Before each step: may look at held-out pictures and change the state.

        A function of the state alone, so that a resumed run does the same. Returns a note for the user, or "".
        """
        return self.validation.between(state) if self.validation else ""

    def last(self, state: TrainingState) -> str:
        """After the last step, as `between` before each."""
        return self.validation.between(state) if self.validation else ""

    def finished(self, state: TrainingState) -> str:
        """Asked after `between`: why training should end before its budget does, or "".

        A function of the state alone, too.
        """
        return self.validation.finished(state) if self.validation else ""

    def measures(self) -> Mapping[str, float]:
        """Numbers about the last step for the log, besides its losses.

        One called "held_out" decides which checkpoint is the best; it is that of the weights before the step.
        """
        return self.validation.measures() if self.validation else {}

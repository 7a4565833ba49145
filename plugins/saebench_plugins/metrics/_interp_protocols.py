"""How windows are drawn and a language model is asked: the paper's way, SAEBench's and Delphi's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, final

from pydantic import Field, PositiveInt, model_validator

from saebench_core import Model
from saebench_plugins.metrics._interp_dialogues import DETECTION, FUZZING, PAPER, SAEBENCH, Dialogue
from saebench_plugins.metrics._interp_peaks import Peaks, draw_peaks
from saebench_plugins.metrics._interp_samples import Sample, Sizes, draw_sample
from saebench_plugins.metrics._windows import Firing, Recorded

__all__ = ["AnyProtocol", "DelphiProtocol", "PaperProtocol", "Protocol", "SaebenchProtocol"]


class Protocol(Model, ABC):
    """How latents are tested."""

    latents: PositiveInt
    fewest: PositiveInt

    @property
    @abstractmethod
    def dialogue(self) -> Dialogue:
        """What a language model is asked."""

    @property
    @abstractmethod
    def span(self) -> int:
        """Tokens of what counts as one place where a latent fires: a window, or a single token."""

    @property
    @abstractmethod
    def judged(self) -> int:
        """Windows of a latent that are tested."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of the best answer that is the same for every window."""

    @property
    def needs_llm(self) -> bool:
        """Whether no proxy can follow it."""
        return False

    @abstractmethod
    def sample(self, latent: int, firing: Firing, recorded: Recorded, seed: int) -> Sample:
        """Draw a latent's windows, from where it fires in places of ``span`` tokens."""


@final
class PaperProtocol(Protocol):
    """The paper's (section 4.4): described from its largest windows, tested on as many active as silent ones."""

    type: Literal["paper"] = "paper"
    latents: PositiveInt = Field(200, description="Latents that are asked about, drawn among those that fire.")
    fewest: int = Field(10, ge=2, description="Windows in which a latent must fire; those with fewer count as dead.")
    width: int = Field(32, ge=4, description="Tokens of a window.")
    shown: PositiveInt = Field(15, description="Windows that a description is made from.")
    tested: int = Field(100, ge=2, description="Windows that it is tested on.")

    @property
    def dialogue(self) -> Dialogue:
        """Ten windows a question, answered by a list of zeros and ones."""
        return PAPER

    @property
    def span(self) -> int:
        """A window."""
        return self.width

    @property
    def judged(self) -> int:
        """As many active as silent ones."""
        return self.tested

    @property
    def chance(self) -> float:
        """Half of the windows are active."""
        return 0.5

    def sample(self, latent: int, firing: Firing, recorded: Recorded, seed: int) -> Sample:
        """Draw from a grid of windows."""
        return draw_sample(latent, firing, recorded, Sizes(self.width, self.shown, self.tested), seed)


@final
class DelphiProtocol(Protocol):
    """Delphi's (Paulo et al. 2024): described from windows of all strengths, with codes as numbers."""

    type: Literal["delphi"] = "delphi"
    scorer: Literal["detection", "fuzzing"] = Field(
        "detection", description="detection: which windows are active; fuzzing: which have the right tokens marked."
    )
    latents: PositiveInt = Field(200, description="Latents that are asked about, drawn among those that fire.")
    fewest: int = Field(200, ge=2, description="Windows in which a latent must fire; those with fewer are left out.")
    width: int = Field(32, ge=4, description="Tokens of a window.")
    shown: PositiveInt = Field(40, description="Windows that a description is made from.")
    tested: int = Field(100, ge=2, description="Windows that it is tested on.")

    @property
    def dialogue(self) -> Dialogue:
        """Five windows a question, answered by a list of zeros and ones."""
        return FUZZING if self.scorer == "fuzzing" else DETECTION

    @property
    def span(self) -> int:
        """A window."""
        return self.width

    @property
    def judged(self) -> int:
        """As many active as silent ones."""
        return self.tested

    @property
    def chance(self) -> float:
        """Half of the windows are active."""
        return 0.5

    @property
    def needs_llm(self) -> bool:
        """Proxies do not look at marks."""
        return self.scorer == "fuzzing"

    def sample(self, latent: int, firing: Firing, recorded: Recorded, seed: int) -> Sample:
        """Draw from a grid of windows, what is shown too."""
        sizes = Sizes(self.width, self.shown, self.tested, spread=True, fuzzed=self.scorer == "fuzzing")
        return draw_sample(latent, firing, recorded, sizes, seed)


@final
class SaebenchProtocol(Protocol):
    """SAEBench's: windows around peaks, all judged at once; most of them are silent.

    Other than there, no silent window is drawn in which the latent fires, no middle of a window lies in another, and
    answers that cannot be read are wrong.
    """

    type: Literal["saebench"] = "saebench"
    latents: PositiveInt = Field(1000, description="Latents that are asked about, drawn among those that fire.")
    fewest: PositiveInt = Field(16, description="Tokens at which a latent must fire; those with fewer count as dead.")
    around: PositiveInt = Field(10, description="Tokens on either side of the middle of a window.")
    top: int = Field(12, ge=2, description="Windows with the largest codes.")
    weighted: int = Field(7, ge=0, description="Windows drawn with the square of the code as weight.")
    held: PositiveInt = Field(2, description="Windows of each of both that are tested and not shown.")
    silent: PositiveInt = Field(10, description="Tested windows in which the latent does not fire.")

    @model_validator(mode="after")
    def _some_are_shown(self) -> SaebenchProtocol:
        if self.held >= self.top or 0 < self.weighted <= self.held:
            raise ValueError(
                f"of {self.top} top and {self.weighted} weighted windows {self.held} each are held back (held), so "
                "that none is left to be shown; give more, or no weighted ones"
            )
        return self

    @property
    def dialogue(self) -> Dialogue:
        """All windows in one question, answered by the numbers of those that are active."""
        return SAEBENCH

    @property
    def span(self) -> int:
        """One token."""
        return 1

    @property
    def judged(self) -> int:
        """Those held back, and silent ones."""
        return self._active + self.silent

    @property
    def _active(self) -> int:
        return self.held * (1 + (self.weighted > 0))

    @property
    def chance(self) -> float:
        """Most windows are silent: who says so of all is right of those."""
        return max(self._active, self.silent) / self.judged

    @property
    def needs_llm(self) -> bool:
        """Proxies call half of the windows active."""
        return True

    def sample(self, latent: int, firing: Firing, recorded: Recorded, seed: int) -> Sample:
        """Draw windows around peaks."""
        peaks = Peaks(self.around, self.top, self.weighted, self.held, self.silent)
        return draw_peaks(latent, firing, recorded, peaks, seed)


AnyProtocol = Annotated[PaperProtocol | SaebenchProtocol | DelphiProtocol, Field(discriminator="type")]
"""One of them, by its type."""

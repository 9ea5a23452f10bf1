"""The strength β of the regulariser over a run."""

import math
from typing import Literal

from pydantic import NonNegativeFloat

from klsweep.component import component


@component
class KL:
    """β per *sequence*: `coef` at the first update, going to `final_coef` at the last one unless constant."""

    coef: NonNegativeFloat
    schedule: Literal["constant", "linear", "cosine"]
    final_coef: NonNegativeFloat

    def beta(self, update: int, updates: int) -> float:
        """β at update 1..updates, from a = `coef` to b = `final_coef` with s = (update − 1)/(updates − 1).

        linear: a + (b − a)s; cosine: b + (a − b)(1 + cos πs)/2.
        """
        if self.schedule == "constant" or updates == 1:
            return self.coef
        progress = (update - 1) / (updates - 1)
        if self.schedule == "cosine":
            progress = (1.0 - math.cos(math.pi * progress)) / 2.0
        return self.coef + (self.final_coef - self.coef) * progress

    @property
    def is_zero(self) -> bool:
        """True when β is 0 at every update."""
        return self.coef == 0 and (self.schedule == "constant" or self.final_coef == 0)

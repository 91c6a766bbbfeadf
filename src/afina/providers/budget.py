"""Money is reserved before it is spent: a cap that many threads keep together.

Comes in: amounts in US dollars. It knows nothing of what they pay for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from afina.core.errors import AfinaError
from afina.providers.prices import dollars


class BudgetError(AfinaError):
    """What was asked for may cost more than the user allows, or its price was not agreed to."""


class Budget:
    """cap_usd: None for no cap. spent_usd: by earlier parts of the same work."""

    def __init__(self, cap_usd: float | None = None, spent_usd: float = 0.0) -> None:
        self.cap_usd, self.spent_usd = cap_usd, spent_usd
        self.reserved_usd = 0.0
        self._settled = threading.Condition()

    def reserve(self, amount_usd: float, purpose: str, wait_while: Callable[[], bool] | None = None) -> None:
        """Set the most that something can cost aside. Raises BudgetError if that would pass the cap.

        wait_while: while it holds, wait for what others have set aside to be settled, which mostly leaves money over;
        None: do not wait.
        """
        with self._settled:
            while wait_while is not None and self._passes(amount_usd) and self.reserved_usd > 0 and wait_while():
                self._settled.wait(timeout=0.5)
            if self._passes(amount_usd):
                before = self.spent_usd + self.reserved_usd
                raise BudgetError(
                    f"{purpose} may cost {dollars(amount_usd)}; with {dollars(before)} spent or set aside that passes "
                    f"max_cost_usd {self.cap_usd:g}. What is paid for is kept: raise it, and the same command goes on."
                )
            self.reserved_usd += amount_usd

    def _passes(self, amount_usd: float) -> bool:
        return self.cap_usd is not None and self.spent_usd + self.reserved_usd + amount_usd > self.cap_usd

    def settle(self, reserved_usd: float, actual_usd: float) -> None:
        """Put what was really paid in the place of what was set aside."""
        with self._settled:
            self.reserved_usd -= reserved_usd
            self.spent_usd += actual_usd
            if self.reserved_usd < 1e-12:  # sums of fractions leave dust, for which nobody should wait
                self.reserved_usd = 0.0
            self._settled.notify_all()

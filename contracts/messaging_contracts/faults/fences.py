"""A fence grows with each owner of a key (9): whoever comes later, has a larger one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_contracts.faults.handlings import Causes, Handling
    from messaging_contracts.faults.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Fences:
    """Judges the handlings of one key. A fence of 0 says that the broker has none."""

    causes: Causes
    verdict: Verdict

    def judge(self, key: str, lane: Sequence[Handling]) -> None:
        """Add what is found to the verdict."""
        owner: Handling | None = None
        for one in lane:
            fence = one.begun.fence
            if not fence:
                continue
            if owner is None or fence > owner.begun.fence:
                owner = one
            elif fence < owner.begun.fence or one.begun.member != owner.begun.member:
                # A member that does not know yet that it lost the key; or fences that are times of day.
                if self.causes.of(one, one.begun.at) or self.causes.jumped_by(one.begun.at):
                    self.verdict.stale_fences += 1
                else:
                    self.verdict.fences_went_back.append(
                        f"key {key}: {one} with fence {fence} after {owner} with fence {owner.begun.fence}"
                    )

"""What a suite came to."""

import dataclasses


@dataclasses.dataclass
class Tally:
    """Counts of one suite. A miss is a case's name and the reason."""

    title: str
    judged_by: str
    cases: int = 0
    misses: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, reason: str | None) -> None:
        """One more case: `reason` says why it misses, None that it does not."""
        self.cases += 1
        if reason is not None:
            self.misses.append((name, reason))

    @property
    def passed(self) -> int:
        return self.cases - len(self.misses)

"""A finding: what a look at a run says: what it looked at, what is the matter, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """Something that is the matter. ``serious``: pictures cannot be good with it."""

    name: str
    words: str
    fix: str
    serious: bool = True


@dataclass(frozen=True)
class Check:
    """One look: its name, what it saw in numbers, its findings; or why it could not look (``skipped``)."""

    name: str
    saw: str
    findings: Sequence[Finding] = ()
    skipped: bool = False

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        found = [
            {"name": f.name, "words": f.words, "fix": f.fix, "serious": f.serious} for f in self.findings
        ]
        return {"check": self.name, "saw": self.saw, "skipped": self.skipped, "findings": found}


def not_looked(name: str, why: str) -> Check:
    """A look that could not be taken."""
    return Check(name, why, skipped=True)

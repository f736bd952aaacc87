"""Result of a check."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Result of one check. fix: empty if all is well."""

    what: str
    result: str
    fix: str = ""
    serious: bool = True

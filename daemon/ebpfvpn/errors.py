"""What an operator is told: one line that says what, where and what to do."""

from __future__ import annotations


class OperatorError(Exception):
    """Something that the operator can put right; `str` is one line, and never holds a secret."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())

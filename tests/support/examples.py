"""The number of generated examples of a test that needs more, or fewer, than the default."""

from __future__ import annotations

import hypothesis

__all__ = ["examples"]

_USUAL = hypothesis.settings.get_profile("default").max_examples


def examples(count: int) -> int:
    """`count`, reduced as the loaded profile reduces the default: `make quick` generates a fifth."""
    return max(1, count * hypothesis.settings().max_examples // _USUAL)

"""Which backend can read the items of a request."""

from __future__ import annotations

import pytest

from azure_openai_proxy.api.response_items import Item
from azure_openai_proxy.routing import item_owners
from azure_openai_proxy.routing.affinity import Owners
from azure_openai_proxy.routing.item_owners import Found

OLD, NEW = Item(0, "reasoning", "rs_a", "tail a"), Item(2, "reasoning", "", "tail b")
REFERENCE, SEALED = Item(1, "reference", "rs_a"), Item(3, "encrypted", "", "tail a")
UNKNOWN, WHOLE = Item(4, "reference", "rs_x"), Item(5, "whole", "fc_b")


@pytest.fixture
def owners() -> Owners:
    owners = Owners()
    for id_, name in (("rs_a", "a"), ("tail a", "a"), ("tail b", "b"), ("fc_b", "b")):
        owners.claim(id_, name)
    return owners


@pytest.mark.parametrize(
    ("items", "gone", "drop", "found"),
    [
        ([UNKNOWN, WHOLE], "", False, Found()),
        ([OLD], "", False, Found(OLD, "a")),
        ([OLD, NEW, UNKNOWN], "b", False, Found(NEW, "b")),
        ([NEW, REFERENCE], "", False, Found(REFERENCE, "a")),
        ([OLD, NEW], "", True, Found(NEW, "b", (0,), ("a",))),
        ([OLD, NEW], "b", True, Found(OLD, "a", (2,), ("b",))),
        ([OLD, NEW], "ab", True, Found(None, "", (2, 0), ("b", "a"))),
        ([OLD], "a", True, Found(None, "", (0,), ("a",))),
        ([REFERENCE, NEW], "a", True, Found(REFERENCE, "a", (2,), ("b",))),
        ([OLD, SEALED], "a", True, Found(SEALED, "a")),
    ],
)
def test_decide(items: list[Item], gone: str, drop: bool, found: Found, owners: Owners) -> None:
    """The newest item decides. Encrypted reasoning can be left out, a reference or another encrypted item cannot."""
    assert found == item_owners.decide(items, owners, lambda name: name in gone, drop=drop)


def test_preferred(owners: Owners) -> None:
    """The backend of the newest complete item is preferred."""
    assert "b" == item_owners.preferred([WHOLE, OLD, Item(6, "whole", "msg_x"), Item(7, "whole")], owners)
    assert None is item_owners.preferred([OLD], owners)

"""What clients wait for, taken in turns: one who sends much delays himself alone."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """A queue for each client; ``get`` takes the next item of the client whose turn it is."""

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[Item]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_client)

    def put(self, client: str, item: Item, *, first: bool = False) -> None:
        """Add an item, behind the client's others or before them."""
        items = self._by_client.setdefault(client, deque())
        if first:
            items.appendleft(item)
        else:
            items.append(item)

    def get(self) -> Item | None:
        """The next item, or None where nothing waits."""
        if not self._by_client:
            return None
        client, items = next(iter(self._by_client.items()))
        item = items.popleft()
        if items:
            self._by_client.move_to_end(client)
        else:
            del self._by_client[client]
        return item

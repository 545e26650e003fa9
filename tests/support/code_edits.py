"""What people ask of a coder: a file, a change, and the whole file back. Files of our own making, some 60 to 90 lines each.

Each change concerns the first 300 tokens of the answer and more, so that also a short answer has edits in it.
"""

from __future__ import annotations

from dataclasses import dataclass

STOCK = '''\
"""What a small shop has on its shelves."""

from dataclasses import dataclass, field


@dataclass
class Item:
    name: str
    price_cents: int
    count: int = 0


@dataclass
class Stock:
    items: dict[str, Item] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def add(self, name, price_cents, count):
        if count <= 0:
            raise ValueError("count must be positive")
        item = self.items.get(name)
        if item is None:
            item = Item(name, price_cents)
            self.items[name] = item
        item.count += count
        self.history.append(f"added {count} of {name}")
        return item

    def remove(self, name, count):
        if count <= 0:
            raise ValueError("count must be positive")
        item = self.items.get(name)
        if item is None:
            raise KeyError(name)
        if item.count < count:
            raise ValueError(f"only {item.count} of {name} left")
        item.count -= count
        self.history.append(f"removed {count} of {name}")
        return item

    def change_price(self, name, price_cents):
        item = self.items.get(name)
        if item is None:
            raise KeyError(name)
        item.price_cents = price_cents
        self.history.append(f"changed price of {name}")
        return item

    def value_cents(self):
        total = 0
        for item in self.items.values():
            total += item.price_cents * item.count
        return total

    def shortages(self, least):
        found = []
        for item in self.items.values():
            if item.count < least:
                found.append(item.name)
        return sorted(found)

    def report(self):
        lines = []
        for name in sorted(self.items):
            item = self.items[name]
            lines.append(f"{name}: {item.count} at {item.price_cents / 100:.2f}")
        lines.append(f"total: {self.value_cents() / 100:.2f}")
        return "\\n".join(lines)
'''
ROUTES = """\
import heapq
import json
from pathlib import Path


def read_roads(path):
    roads = {}
    for line in Path(path).read_text().splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        start, end, length = line.split(",")
        roads.setdefault(start, []).append((end, float(length)))
        roads.setdefault(end, []).append((start, float(length)))
    return roads


def shortest(roads, start, end):
    queue = [(0.0, start, [start])]
    seen = set()
    while queue:
        length, place, way = heapq.heappop(queue)
        if place == end:
            return length, way
        if place in seen:
            continue
        seen.add(place)
        for other, step in roads.get(place, []):
            if other not in seen:
                heapq.heappush(queue, (length + step, other, way + [other]))
    return None


def within(roads, start, most):
    queue = [(0.0, start)]
    seen = {}
    while queue:
        length, place = heapq.heappop(queue)
        if place in seen or length > most:
            continue
        seen[place] = length
        for other, step in roads.get(place, []):
            if other not in seen:
                heapq.heappush(queue, (length + step, other))
    return seen


def longest_road(roads):
    best = None
    for start, steps in roads.items():
        for end, length in steps:
            if best is None or length > best[2]:
                best = (start, end, length)
    return best


def save_ways(roads, pairs, path):
    found = []
    for start, end in pairs:
        answer = shortest(roads, start, end)
        if answer is None:
            found.append({"start": start, "end": end, "way": None})
            continue
        length, way = answer
        found.append({"start": start, "end": end, "length": length, "way": way})
    Path(path).write_text(json.dumps(found, indent=2))
    return len(found)
"""


@dataclass(frozen=True, slots=True)
class CodeEdit:
    """A change to ask for."""

    name: str
    file: str
    change: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """Returns: the chat that asks for it."""
        text = f"```python\n{self.file}```\n\n{self.change} Answer with the whole changed file and nothing else."
        return [{"role": "user", "content": text}]


EDITS = (
    CodeEdit("rename a variable", STOCK, "Rename the attribute `count` of `Item` to `quantity`, wherever it is used."),
    CodeEdit(
        "add a parameter", STOCK, "Add a parameter `reason` to `add` and `remove`, and write it into the history."
    ),
    CodeEdit("add docstrings", ROUTES, "Add a docstring of one line to every function."),
    CodeEdit("rename a function", ROUTES, "Rename `read_roads` to `load_roads` and the variable `seen` to `visited`."),
    CodeEdit("add type hints", ROUTES, "Add type hints to the parameters and the result of every function."),
)

"""What a verb found: the dictionary that `--json` prints, which nobody can change by accident."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False, repr=False)
class Result(Mapping[str, Any]):
    """A mapping from names to JSON data; whatever it gives away is a copy."""

    found: Mapping[str, Any]

    def __post_init__(self) -> None:
        plain = json.loads(json.dumps(dict(self.found)))  # with lists for tuples, as whoever reads the JSON has it
        object.__setattr__(self, "found", plain)

    def __getitem__(self, name: str) -> Any:
        return copy.deepcopy(self.found[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __repr__(self) -> str:
        return f"Result of {', '.join(self.found)}"

    def __len__(self) -> int:
        return len(self.found)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `--json` prints it; a copy."""
        return copy.deepcopy(dict(self.found))

    def to_json(self) -> str:
        """The text that `--json` prints."""
        return as_text(self.found)


def as_text(found: Mapping[str, Any]) -> str:
    """JSON that every reader takes: NaN is an error, not a number."""
    return json.dumps(dict(found), indent=2, allow_nan=False)

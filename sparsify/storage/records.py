"""Frozen dataclasses as JSON and back: their fields say it all, and no class has anything written by hand.

A field is a key.  None is null, but for fields with the metadata `OMIT`, which have no key then.
Reading ignores keys that nobody knows and gives fields that lack one their default.
"""

from __future__ import annotations

import collections.abc
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

ABSENT = "absent"
OMIT = {ABSENT: ""}  # metadata of a field without a key where it is None; {ABSENT: other}: where `other` is
PLAIN = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Record:
    """Something that is reported."""

    def present(self) -> list[str]:
        """Names of the fields that the JSON has."""
        return [f.name for f in fields(self)
                if ABSENT not in f.metadata or getattr(self, f.metadata[ABSENT] or f.name) is not None]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types; a copy."""
        return {name: plain(getattr(self, name)) for name in self.present()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "") -> Self:
        """What `to_dict` made, here or in an older version.  where: path of the data in the whole, for messages.

        Raises ValueError for a key that is missing and for a value of another type.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{where or 'the report'} is {data!r:.60}, expected an object")
        prefix, kinds = where and f"{where}.", get_type_hints(cls)
        for f in fields(cls):
            if f.name not in data and f.default is f.default_factory is MISSING:
                raise ValueError(
                    f"the report has no {prefix}{f.name}, so it is none of `sparsify` or a part of it is lost; "
                    f"make it again"
                )
        known = [f.name for f in fields(cls) if f.name in data]
        return cls(**{name: read(kinds[name], data[name], prefix + name) for name in known})


@dataclass(frozen=True, repr=False)
class Result(Record, Mapping[str, Any]):
    """A record that is a mapping, too, from names to the JSON data that `to_dict` has; what it gives away is a copy."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.present():
            raise KeyError(name)
        return plain(getattr(self, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.present())

    def __len__(self) -> int:
        return len(self.present())

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {', '.join(self)}"

    def to_json(self) -> str:
        """The text that `--json` prints: JSON that every reader takes, where NaN is an error and not a number."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def plain(value: Any) -> Any:
    """A copy in JSON types: objects, lists, and what neither is."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def read(kind: Any, value: Any, where: str) -> Any:
    """JSON data as a type: records, tuples, sequences, mappings, and text, numbers and truth as they are."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is None and NoneType in inner:
            return None
        return read(next(one for one in inner if one is not NoneType), value, where)
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_dict(value, where)
    if origin is collections.abc.Mapping and isinstance(value, Mapping):
        return {key: read(inner[1], one, f"{where}.{key}") for key, one in value.items()}
    if origin in (tuple, collections.abc.Sequence) and isinstance(value, list | tuple):
        listed = [read(inner[0], one, f"{where}[{i}]") for i, one in enumerate(value)]
        return tuple(listed) if origin is tuple else listed
    fits = kind is Any or isinstance(value, (int, float) if kind is float else kind if kind in PLAIN else ())
    if not fits or (isinstance(value, bool) and kind in (int, float)):
        raise ValueError(f"{where} is {value!r:.60}, expected {PLAIN.get(kind, 'a list or an object')}")
    return value

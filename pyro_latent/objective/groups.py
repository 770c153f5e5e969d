"""What hangs together: names that are connected by groups that share them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

Name = TypeVar("Name")


def connected(names: Iterable[Name], groups: Iterable[Collection[Name]]) -> list[list[Name]]:
    """The names in lists that share no group, each in the order given; by union and find."""
    parent = {name: name for name in names}

    def root(name: Name) -> Name:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for group in groups:
        first, *others = group
        for other in others:
            a, b = root(first), root(other)
            if a != b:
                parent[b] = a
    found: dict[Name, list[Name]] = {}
    for name in parent:
        found.setdefault(root(name), []).append(name)
    return list(found.values())


__all__ = ["connected"]

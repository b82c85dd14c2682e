"""YAML as text and mappings alone: each key once, nothing that stands for something else."""

from __future__ import annotations

from typing import Any

import yaml

DEEPEST = 20


def parse_yaml(text: str) -> Any:
    """Reads YAML whose values all stay text: YAML 1.1 reads 2:30 as 150, and no as false.

    Raises:
        yaml.YAMLError: If it is no YAML.
        ValueError: If a key occurs twice, it is nested deeply, or it uses aliases, by which a few
            lines become gigabytes, or tags, which name what should be made of a value.

    Example:
        >>> parse_yaml("count: 3")
        {'count': '3'}
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.BaseLoader):
    """The loader that makes no objects, without aliases and double keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it uses aliases (*name)")
        if getattr(self.peek_event(), "tag", None) is not None:
            raise ValueError("it uses tags (!name)")
        if self.depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep=True)
        if len(found) < len(node.value):
            raise ValueError("a key occurs twice in one mapping")
        return found

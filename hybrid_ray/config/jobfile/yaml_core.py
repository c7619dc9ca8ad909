"""YAML 1.2 (core schema), which reads values as most people expect: 0600 is six hundred, 1:30 and yes are text, 1e-3 is
a number. A repeated key is an error.
"""

import re
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode
from yaml.tokens import Token

from hybrid_ray.errors import ConfigError

__all__ = ["dump_yaml", "parse_yaml"]

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _tag, (_form, _starts) in _SCALARS.items():
    for _start in _starts:
        _RESOLVERS.setdefault(_start, []).append((f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_form})$")))


_DEEPEST = 50
_TOO_DEEP = f"lists and mappings are nested deeper than {_DEEPEST} levels"


class _Loader(yaml.SafeLoader):
    """Reads plain values: null, true and false, numbers, text, lists and mappings without repeated keys."""

    yaml_implicit_resolvers = _RESOLVERS
    depth = 0
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def flatten_mapping(self, node: MappingNode) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConstructorError(
                    None, None, f"{key.value} is set twice, in line {seen[key.value]} and in line {line}: keep one"
                )
            seen[key.value] = line
        super().flatten_mapping(node)

    def fetch_flow_collection_start(self, token: type[Token]) -> None:
        if self.flow_level >= _DEEPEST:  # here, because PyYAML reads ahead, in quadratic time
            raise ConstructorError(None, None, _TOO_DEEP)
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ConstructorError(None, None, _TOO_DEEP)
        found = super().compose_node(parent, index)
        self.depth -= 1
        return found


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back equal."""

    yaml_implicit_resolvers = _RESOLVERS


def _whole(loader: _Loader, node: Node) -> int:
    text = loader.construct_scalar(node)  # type: ignore[arg-type]
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _number(loader: _Loader, node: Node) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))  # type: ignore[arg-type]


for _tag in ("null", "bool", "str", "seq", "map"):
    _name = f"tag:yaml.org,2002:{_tag}"
    _Loader.add_constructor(_name, yaml.SafeLoader.yaml_constructors[_name])
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
_Loader.yaml_constructors[None] = yaml.SafeLoader.construct_undefined


def parse_yaml(text: str, *, source: str) -> Any:
    """The value of a YAML text.

    Args:
        source: name of the text, for messages.

    Raises:
        ConfigError: the text is not valid YAML or holds something other than plain values.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # an invalid int or float, or a number of thousands of digits
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def dump_yaml(value: Any) -> str:
    """YAML text of plain values."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text

"""Configuration files in layers: what a file extends, the file, then settings from the command line.

Every value remembers the file and line it came from, so that an error can name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pose.errors import InputError

KeyPath = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, reading `5e-4` as a number (YAML 1.1 wants `5.0e-4` and takes the other for text)."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def dump_yaml(values: dict[str, Any]) -> str:
    """`values` as YAML that `read_layers` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass
class Layers:
    """The merged `values`, and for each key path the place ("FILE:LINE" or "--set") that set it last."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Where `path`, or the nearest mapping above it, was set."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.source


def read_layers(path: Path | str, settings: Sequence[str] = ()) -> Layers:
    """Read the YAML file at `path`, on top of the file it `extends`, with `settings` ("key.path=value") on top of both.

    `extends` names a file relative to the one that holds it. Mappings are merged key by key, anything else is
    replaced; a mapping that names another `kind` than the one below it replaces it whole, and so does a file's
    `variants`, whose keys are names of its own.
    """
    layers = Layers(source=str(path))
    _add_file(layers, Path(path), below=())
    overrides, origins = _read_settings(settings)
    for keys, place in list(origins.items()):
        for length in range(1, len(keys)):  # a setting below a plain value replaces that value
            if not isinstance(_value_at(layers.values, keys[:length]), dict | None):
                origins[keys[:length]] = place
    layers.origins.update(origins)
    layers.values = merge(layers.values, overrides)
    return layers


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, as `read_layers` describes; neither is changed."""
    if "kind" in above and "kind" in below and above["kind"] != below["kind"]:
        return above
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _value_at(values: Any, path: KeyPath) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _add_file(layers: Layers, path: Path, below: tuple[Path, ...]) -> None:
    if path.resolve() in below:
        raise InputError(f"{path}: 'extends' leads back to this file")
    values, origins = _read_file(path)
    base = values.pop("extends", None)
    origin = origins.pop(("extends",), str(path))
    if base is not None:
        if not isinstance(base, str):
            raise InputError(f"{origin}: extends: the name of one file is wanted")
        if not (path.parent / base).is_file():
            raise InputError(f"{origin}: extends: {path.parent / base}: no such file")
        _add_file(layers, path.parent / base, (*below, path.resolve()))
    if "variants" in values:
        layers.values.pop("variants", None)
    layers.origins.update(origins)
    layers.values = merge(layers.values, values)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error.reason})") from None
    loader = _Loader(text)
    origins: dict[KeyPath, str] = {}
    try:
        node = loader.get_single_node()
        values = {} if node is None else _construct(loader, node, (), str(path), origins)
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise InputError(f"{path}: a mapping of keys to values is wanted")
    return values, origins


def _construct(loader: _Loader, node: yaml.Node, path: KeyPath, file: str, origins: dict[KeyPath, str]) -> Any:
    """The value of `node`. Aliases are refused: an edit to one key would change another."""
    place = f"{file}:{node.start_mark.line + 1}"
    if node.start_mark.index in loader.__dict__.setdefault("seen", set()) and not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{place}: anchors and aliases are not supported; write the value out")
    loader.__dict__["seen"].add(node.start_mark.index)
    if not node.tag.startswith("tag:yaml.org,2002:") or "python/" in node.tag:
        raise InputError(f"{place}: {'.'.join(path)}: the tag {node.tag} is not supported")
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, str(i)), file, origins) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node)
        except (ValueError, KeyError, IndexError, AttributeError) as error:  # "2020-13-45", "!!bool maybe"
            raise InputError(f"{place}: {'.'.join(path)}: {node.value!r} is no {node.tag[18:]} ({error})") from None
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"{file}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
            raise InputError(f"{line}: plain keys are wanted")
        key = key_node.value
        if key in mapping:
            raise InputError(f"{line}: {'.'.join((*path, key))} is set twice")
        origins[(*path, key)] = line
        mapping[key] = _construct(loader, value_node, (*path, key), file, origins)
    return mapping


def _read_settings(settings: Sequence[str]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise InputError(f"--set {setting}: key.path=value is wanted")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            value = None if node is None else _construct(loader, node, path, f"--set {name.strip()}", {})
        except (yaml.YAMLError, RecursionError):
            raise InputError(f"--set {setting}: the value is not YAML") from None
        finally:
            loader.dispose()
        target = values
        for i, key in enumerate(path[:-1]):
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise InputError(f"--set {setting}: {'.'.join(path[: i + 1])} was set to a value before")
        target[path[-1]] = value
        for touched in (path, *_paths_below(value, path)):
            origins[touched] = f"--set {name.strip()}"
    return values, origins


def _paths_below(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, str(key))
            yield from _paths_below(item, (*path, str(key)))

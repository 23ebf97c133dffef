"""What an OpenAPI document says of an operation: examples of its path and body, and which paths there are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Document", "operations"]

_METHODS = "get|post|put|patch|delete|head|options"


class Document:
    """One that is JSON."""

    def __init__(self, document: Any) -> None:
        self._document = document

    def operation(self, method: str, path: str) -> Any:
        """None: it has no such operation. `path` is below the server's."""
        return (self._document["paths"].get(path) or {}).get(method.lower())

    def values(self, operation: Any) -> dict[str, str]:
        """An example of each path parameter."""
        found = (self._resolved(parameter) for parameter in operation.get("parameters", []))
        return {it["name"]: str(it.get("example") or self.example(it["schema"]) or "x") for it in found if it["in"] == "path"}

    def body(self, operation: Any, content_type: str) -> Any:
        """The least that a body of this type needs; None: it takes none."""
        content = self._resolved(operation.get("requestBody") or {}).get("content") or {}
        return self.example(content[content_type]["schema"]) if content_type in content else None

    def is_file(self, operation: Any, content_type: str, name: str) -> bool:
        """Is that member of a form a file, or a list of files?"""
        schema = self._resolved(self._resolved(operation["requestBody"])["content"][content_type]["schema"])
        member = self._resolved(schema.get("properties", {}).get(name, {}))
        kinds = [member, *map(self._resolved, member.get("anyOf", [])), *map(self._resolved, member.get("oneOf", []))]
        return any("binary" in (kind.get("format"), self._resolved(kind.get("items", {})).get("format")) for kind in kinds)

    def example(self, schema: Any, seen: tuple[str, ...] = ()) -> Any:
        """A value that fits: what the schema gives as one, or the simplest. Of an object the required members, and `model`."""
        if reference := schema.get("$ref"):
            return {} if reference in seen else self.example(self._resolved(schema), (*seen, reference))
        for name in ("const", "default"):
            if schema.get(name) not in (None, ""):
                return schema[name]
        if schema.get("enum"):
            return schema["enum"][0]
        if parts := schema.get("allOf"):
            values = [self.example(part, seen) for part in parts]
            objects = [value for value in values if isinstance(value, dict)]
            return {name: value for part in objects for name, value in part.items()} if objects else values[0]
        if choices := schema.get("anyOf") or schema.get("oneOf"):
            return next((value for choice in choices if (value := self.example(choice, seen)) is not None), None)
        if "properties" in schema:
            members = schema["properties"]
            return {name: self.example(members[name], seen) for name in members if name in schema.get("required", []) or name == "model"}
        match schema.get("type"):
            case "string":
                return schema["example"] if isinstance(schema.get("example"), str) else "x" * max(1, schema.get("minLength", 1))
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return False
            case "array":
                return [self.example(schema.get("items", {}), seen)] * max(1, schema.get("minItems", 1))
            case "null":
                return None
        return {}

    def _resolved(self, value: Any) -> Any:
        while "$ref" in value:
            reference, value = value["$ref"], self._document
            for name in reference.removeprefix("#/").split("/"):
                value = value[name]
        return value


def operations(path: Path) -> set[tuple[str, str]]:
    """Every method and path, parameters as `{}`; of a document in JSON, or in YAML as these are written."""
    text = path.read_text()
    if path.suffix == ".json":
        import json

        found = [(method, place) for place, item in json.loads(text)["paths"].items() for method in item if method in _METHODS.split("|")]
    else:
        block = re.split(r"^\S", text.split("\npaths:\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
        found, place = [], ""
        for line in block.splitlines():
            if match := re.fullmatch(r"  ['\"]?(/.*?)['\"]?:", line):
                place = match[1]
            elif match := re.fullmatch(rf"    ({_METHODS}):", line):
                found.append((match[1], place))
    return {(method.upper(), re.sub(r"\{.*?\}", "{}", place)) for method, place in found}

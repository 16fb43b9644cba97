"""The API's description as one page that needs nothing else: no script, and nothing from elsewhere."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader

_PAGES = Environment(loader=PackageLoader("nescio.serving", "page"), autoescape=True, trim_blocks=True)


def described(openapi: dict[str, Any]) -> str:
    """A page with every endpoint: what it takes, what it answers, and how the answer is built."""
    schemas = openapi.get("components", {}).get("schemas", {})
    endpoints = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("description", operation.get("summary", "")),
            "parameters": [*operation.get("parameters", ()), *_form(operation, schemas)],
            "answers": [(s, a["description"], _form_of(a)) for s, a in sorted(operation.get("responses", {}).items())],
        }
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    return _PAGES.get_template("docs.html.j2").render(
        info=openapi["info"],
        endpoints=endpoints,
        token="securitySchemes" in openapi.get("components", {}),
        schemas={
            name: [(field, _kind(s), s.get("description", "")) for field, s in schema.get("properties", {}).items()]
            for name, schema in schemas.items()
            if not name.startswith("Body_")
        },
    )


def _form(operation: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """Fields of the form that an endpoint takes, as its parameters are given."""
    content = operation.get("requestBody", {}).get("content", {}).values()
    bodies = [schemas.get(_name(c["schema"]), c["schema"]) for c in content]
    return [
        {"name": name, "in": "form", "schema": schema, "description": schema.get("description", ""), "required": True}
        for body in bodies
        for name, schema in body.get("properties", {}).items()
    ]


def _form_of(answer: dict[str, Any]) -> str:
    return next((_kind(c.get("schema", {})) or kind for kind, c in answer.get("content", {}).items()), "")


def _kind(schema: dict[str, Any]) -> str:
    """A type in words: ``list of ImageVerdict``, ``number or null``."""
    if "$ref" in schema:
        return _name(schema)
    if "anyOf" in schema:
        return " or ".join(_kind(s) for s in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if schema.get("contentMediaType"):
        return "file"
    return str(schema.get("type", "")) + (f" = {json.dumps(schema['default'])}" if "default" in schema else "")


def _name(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


_PAGES.filters["kind"] = _kind

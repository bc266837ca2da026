"""/docs: routes and fields as a page without scripts, made of /openapi.json and loading nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: the service's routes</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page.css">
</head>
<body>
<header><h1>{title} <span>{version}</span></h1><a href="openapi.json">openapi.json</a></header>
<p>{description}</p>
{routes}
</body>
</html>
"""
_ROUTE = '<section><h2><code>{method} {path}</code></h2><p class="note">{summary}</p>{fields}</section>'
_TABLE = "<table><thead><tr><th>field</th><th>type</th><th></th></tr></thead><tbody>{rows}</tbody></table>"
_ROW = "<tr><td><code>{name}</code></td><td>{type}</td><td>{words}</td></tr>"


def description_page(openapi: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI description."""
    info = openapi["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=escape(info["description"]),
        routes="\n".join(_routes(openapi)),
    )


def _routes(openapi: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            rows = "".join(_rows(operation))
            yield _ROUTE.format(
                method=escape(method.upper()),
                path=escape(path),
                summary=escape(operation.get("summary", "")),
                fields=_TABLE.format(rows=rows) if rows else "",
            )


def _rows(operation: Mapping[str, Any]) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        yield _row(f"?{parameter['name']}", parameter["schema"], parameter["schema"].get("description", ""))
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for name, field in schema.get("properties", {}).items():
        yield _row(name, field, field.get("description", ""))


def _row(name: str, schema: Mapping[str, Any], words: str) -> str:
    return _ROW.format(name=escape(name), type=escape(_type(schema)), words=escape(words))


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON type in words; null, which every optional field may be, is left out."""
    if "anyOf" in schema:
        return " or ".join(words for one in schema["anyOf"] if (words := _type(one)) != "null")
    if "$ref" in schema:
        return '{"text": …}' if schema["$ref"].endswith("/Document") else "object"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "any"))

"""Builds a manifest's JSON Schema, with which editors complete and check manifests."""

from typing import Any

from runtime.manifest.entries import ManifestFile
from runtime.manifest.field_texts import read_field_texts

_NUMBERS = {"integer", "number", "boolean"}
_REFERENCE = {"type": "string", "pattern": r"\$\{[^}]+\}"}


def draw_manifest_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one manifest file; `${NAME}` is allowed for every number too."""
    schema = ManifestFile.model_json_schema()
    texts = read_field_texts()
    for name, part in ((ManifestFile.__name__, schema), *schema["$defs"].items()):
        for field, drawn in part["properties"].items():
            if text := texts[name].get(field):
                drawn["description"] = text
    # It may stand in the file's defaults.
    schema["$defs"]["ConsumerBindingSpec"]["required"].remove("stream")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_allow_references(schema),
        "title": "Runtime manifest",
    }


def _allow_references(part: Any) -> Any:  # noqa: ANN401 - any part of a JSON Schema
    if isinstance(part, list):
        return [_allow_references(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    widened = {key: _allow_references(inner) for key, inner in part.items()}
    if widened.get("type") in _NUMBERS and "const" not in widened:
        kept = {key: widened.pop(key) for key in ("title", "default", "description") if key in part}
        return {**kept, "anyOf": [widened, _REFERENCE]}
    return widened

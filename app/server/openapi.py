"""The bodies of our endpoints in the OpenAPI document: they are parsed by us, so FastAPI does not know them."""

from fastapi import FastAPI
from pydantic import BaseModel

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

# One event of a stream; `data` is a chunk as JSON, an error, or "[DONE]".
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}


def request_body(kind: type[BaseModel]) -> dict:
    """What to add to an endpoint that takes a body of this kind."""
    schema = {"$ref": _REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def add_bodies(app: FastAPI, *kinds: type[BaseModel]) -> None:
    """Puts these bodies, and the shape of every failure, into the document of `app`."""
    make = app.openapi

    def openapi() -> dict:
        made_before = app.openapi_schema is not None
        document = make()
        if not made_before:
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for kind in kinds:
                schema = kind.model_json_schema(ref_template=_REFERENCE)
                schemas |= schema.pop("$defs", {}) | {kind.__name__: schema}
            schemas["Error"] = _ERROR
            for operation in (one for path in document["paths"].values() for one in path.values()):
                if "requestBody" in operation:
                    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
                shape = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}
                operation["responses"] = {
                    "200": operation["responses"]["200"],
                    "4XX": {"description": "What was wrong with the request", "content": shape},
                    "5XX": {"description": "Not answered; 503 and 429 can be tried again", "content": shape},
                }
        return document

    app.openapi = openapi

"""The OpenAPI description of the HTTP routes."""

from __future__ import annotations

from typing import Any

from trecvit import __version__

_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "expected", "got"],
            "properties": {"code": _TEXT, "expected": _TEXT, "got": _TEXT},
        }
    },
}
_MODEL = {
    "type": "object",
    "required": ["name", "task", "labels", "image_size", "max_points", "state_bytes"],
    "properties": {
        "name": _TEXT,
        "task": {"enum": ["classify", "track"]},
        "labels": {"type": "array", "items": _TEXT},
        "image_size": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
        "max_points": _COUNT,
        "state_bytes": _COUNT,
    },
}
_SESSION = {
    "type": "object",
    "required": ["session", "model", "frame", "seen", "dropped", "points", "connected", "state_bytes"],
    "properties": {
        "session": _TEXT,
        "model": _TEXT,
        "frame": {"type": ["integer", "null"]},
        "seen": _COUNT,
        "dropped": _COUNT,
        "points": _COUNT,
        "connected": {"type": "boolean"},
        "state_bytes": _COUNT,
    },
}
_CLASSIFIED = {
    "type": "object",
    "required": ["model", "frames", "top"],
    "properties": {
        "model": _TEXT,
        "frames": _COUNT,
        "top": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["label", "probability"],
                "properties": {"label": _TEXT, "probability": {"type": "number", "minimum": 0, "maximum": 1}},
            },
        },
    },
}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": _TEXT}}


def description() -> dict[str, Any]:
    """Return the description, OpenAPI 3.1."""
    session_parameters = [
        {"name": "id", "in": "path", "required": True, "schema": _TEXT},
        {"name": "X-Session-Token", "in": "header", "required": True, "schema": _TEXT},
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "trecvit serve",
            "version": __version__,
            "description": "Live streams use the WebSocket /v1/stream with the protocol trecvit.v1: docs/serving.md.",
        },
        "components": {
            "schemas": {"Error": _ERROR, "Model": _MODEL, "Session": _SESSION},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "paths": {
            "/v1/classify": {
                "post": _upload(
                    "Classify a video file",
                    [
                        _query("model", "A classifier; by default the first.", _TEXT),
                        _query("clips", "Clips to average over.", {"type": "integer", "minimum": 1, "maximum": 16}),
                        _query("top", "Classes to return.", {"type": "integer", "minimum": 1, "maximum": 100}),
                    ],
                    _json(_CLASSIFIED),
                )
            },
            "/v1/track": {
                "post": _upload(
                    "Track points through a video file, a line of JSON for each frame as it is tracked",
                    [
                        _query("model", "A tracker; by default the first.", _TEXT),
                        _query("points", "x,y;x,y@frame in pixels; instead of grid.", _TEXT),
                        _query("grid", "n x n points of the first frame.", {"type": "integer", "minimum": 1}),
                    ],
                    {"description": "Lines", "content": {"application/x-ndjson": {"schema": _TEXT}}},
                )
            },
            "/v1/models": {
                "get": _operation(
                    "List the models",
                    {200: _json({"type": "object", "required": ["models"], "properties": {"models": _list("Model")}})},
                )
            },
            "/v1/sessions/{id}": {
                "parameters": session_parameters,
                "get": _operation("Describe a session", {200: _json(_reference("Session")), 404: _error()}),
                "delete": _operation("End a session and forget it", {204: {"description": "Done"}, 404: _error()}),
            },
            "/healthz": {"get": _operation("Whether the server answers", {200: _json(_STATUS)}, open_to_all=True)},
            "/readyz": {
                "get": _operation(
                    "Whether all models run", {200: _json(_STATUS), 503: _json(_STATUS)}, open_to_all=True
                )
            },
            "/metrics": {
                "get": _operation(
                    "Counters for Prometheus",
                    {200: {"description": "Text", "content": {"text/plain": {"schema": _TEXT}}}},
                )
            },
            "/openapi.json": {"get": _operation("This description", {200: _json({"type": "object"})})},
        },
    }


def _operation(summary: str, responses: dict[int, Any], *, open_to_all: bool = False) -> dict[str, Any]:
    refusals = {403: _error(), 421: _error()} if open_to_all else {401: _error(), 403: _error(), 421: _error()}
    answers = {str(status): answer for status, answer in (responses | refusals).items()}
    security: dict[str, Any] = {} if open_to_all else {"security": [{}, {"bearer": []}]}
    return {"summary": summary, "responses": answers, **security}


def _upload(summary: str, parameters: list[Any], answer: dict[str, Any]) -> dict[str, Any]:
    body = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    responses = {200: answer, 413: _error(), 422: _error(), 503: _error()}
    return {**_operation(summary, responses), "parameters": parameters, "requestBody": body}


def _query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _reference(name)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "Done", "content": {"application/json": {"schema": schema}}}


def _error() -> dict[str, Any]:
    return {"description": "Refused", "content": {"application/json": {"schema": _reference("Error")}}}

"""schemathesis reads our OpenAPI document and sends what fits it and what does not: never a 5xx, always our shape."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from mmvl import VLM
from mmvl.app.server import ServerSettings, create_app

OPERATIONS = ["GET /health", "GET /metrics", "GET /v1/models", "GET /v1/models/{name}"]
OPERATIONS += ["POST /v1/chat/completions", "POST /v1/completions"]


@pytest.fixture(scope="module")
def operations(tiny_model_dir) -> dict:
    """What the document of a server offers, by method and path."""
    vlm, names = VLM(tiny_model_dir, device="cpu"), ("localhost", "testserver")
    app = create_app(vlm, ServerSettings(served_names=("tiny",), default_max_tokens=1, allow_hosts=names))
    document = schemathesis.openapi.from_asgi("/openapi.json", app)
    found = [result.ok() for result in document.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_every_operation_is_tried(operations):
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "fitting"),
    [(label, True) for label in OPERATIONS] + [(label, False) for label in OPERATIONS if label.startswith("POST")],
)
def test_no_request_breaks_the_server(operations, label, fitting):
    operation = operations[label]
    mode = schemathesis.GenerationMode.POSITIVE if fitting else schemathesis.GenerationMode.NEGATIVE
    examples = 30 if operation.body else 5
    phases, checks = [Phase.generate], list(HealthCheck)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        suppress_health_check=checks,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "tiny"  # any other name ends in 404
            if isinstance(case.body.get("messages"), list):
                case.body["messages"].append({"role": "user", "content": "?"})  # what the schema cannot ask for
        answer = case.call()
        assert answer.status_code < 500, answer.text
        assert answer.status_code < 400 or len(answer.content) < 4096
        case.validate_response(answer, checks=[content_type_conformance, response_schema_conformance])
        statuses.add(answer.status_code)

    statuses = set()
    send()
    if fitting and operation.body:
        assert 200 in statuses

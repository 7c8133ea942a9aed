"""Failures in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, short, and never an echo.

What a client sent, paths, addresses and texts of other libraries' exceptions do not belong into an answer: they have
leaked secrets and made error bodies of a hundred megabytes in other servers.
"""

import re
from collections.abc import Sequence

from pydantic import ValidationError

CLIENT_LEFT = 499  # nginx's code; nobody sees it but the metrics
MAX_MESSAGE = 1000  # characters
MAX_FAULTS, MAX_COUNTED = 4, 10_000  # of a request: told in one message, looked at
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_PLAIN_NAME = re.compile(r"[a-z_]{1,40}")


class ApiError(Exception):
    """What a client is told. `retry_after` (seconds) also says that trying again can help."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    @property
    def type(self) -> str:
        if self.status >= 500:
            return "server_error"
        return _TYPES.get(self.status, "invalid_request_error")

    def body(self) -> dict:
        message = str(self)
        if len(message) > MAX_MESSAGE:
            message = message[: MAX_MESSAGE - 3] + "..."
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The official client retries 408, 409, 429 and 5xx; it is told not to where that cannot help."""
        if self.retry_after is not None:
            return {"retry-after": str(max(1, round(self.retry_after)))}
        return {"x-should-retry": "false"}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def out_of_time() -> ApiError:
    return ApiError(504, "The request's time is over.", code="timeout")


def from_validation(error: ValidationError) -> ApiError:
    """pydantic's findings as one short message, without what was sent."""
    if error.error_count() > MAX_COUNTED:  # a list of them all would be larger than the request
        return invalid("The body has too many faults to list.", code="invalid_value")
    faults = error.errors(include_url=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        return invalid("The body is not valid JSON.", code="invalid_json")
    told = [_fault(fault) for fault in faults[:MAX_FAULTS]]
    more = f" (and {len(faults) - MAX_FAULTS} more)" if len(faults) > MAX_FAULTS else ""
    code = "unsupported_parameter" if faults[0]["type"] in ("unsupported", "extra_forbidden") else "invalid_value"
    param = _place(faults[0]["loc"]) or faults[0].get("ctx", {}).get("param")
    return invalid("; ".join(told) + more, param=param, code=code)


def _fault(fault: dict) -> str:
    place = _place(fault["loc"]) or "the body"
    match fault["type"]:
        case "extra_forbidden":
            return f"{place}: no such parameter here"
        case "union_tag_invalid":
            return f"{place}: {fault['ctx']['discriminator']} must be one of {fault['ctx']['expected_tags']}"
        case "missing":
            return f"{place} is missing"
        case "contradiction":
            return fault["msg"]
        case "value_error":  # raised by us; pydantic puts its own words before ours
            return f"{place}: {fault['ctx']['error']}"
        case _:
            return f"{place}: {fault['msg']}"


def _place(location: Sequence[str | int]) -> str:
    """("messages", 0, "user", "content", "parts", 1) -> "messages[0].content[1]".

    What stands behind a list's index, and "str" or "parts", are pydantic's names for the branch of a union. Names of
    fields that nobody would use are not repeated.
    """
    place, before = "", None
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif not (isinstance(before, int) or before == "response_format" or part in ("str", "parts", "ids", "lists")):
            place += ("." if place else "") + (part if _PLAIN_NAME.fullmatch(part) else "?")
        before = part
    return place

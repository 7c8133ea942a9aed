"""What an answerer gives back for an item, and the row that it becomes."""

from mmvl.app.batch.items import Item


def failure(item: Item, reason: str) -> dict:
    """The result of an item that cannot be asked."""
    if not item.request:
        return {"error": reason}
    from mmvl.app.server.errors import invalid

    return {"status": 400, "body": invalid(reason).body()}


def succeeded(result: dict) -> bool:
    return "error" not in result and result.get("status", 200) == 200


def tokens_of(result: dict) -> int:
    """Tokens generated for a result that succeeded."""
    if "body" in result:
        return result["body"]["usage"]["completion_tokens"]
    return result["completion_tokens"]


def row_of(item: Item, result: dict, task: str) -> dict:
    """The row of an item, without the settings: see `rows.py`."""
    if "status" in result:
        response = {"status_code": result["status"], "request_id": result["body"].get("id"), "body": result["body"]}
        return {"id": f"batch_req_{item.id}", "custom_id": item.id, "response": response, "error": None}
    asked = {"question": item.prompt} if task == "vqa" and item.prompt else {}
    return {"id": item.id} | item.shown | asked | result

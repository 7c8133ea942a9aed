"""The process that reads a PDF: PDFium is native code, not thread-safe, and fed by strangers, so it runs by itself.

Run as a script by `mmvl.media`, so that nothing of mmvl (nor torch) is imported here. stdin: one line of JSON
(`path` or `size` in bytes, `pages`, `max_pages`, `dpi`, `long_side`, `memory`), then the PDF's bytes if it has no path.
stdout: one line of JSON and the pixels for each page, then a line `{"done": true}`; or a line `{"error": ...}`.
With `count` instead of `pages` and what follows it: a line `{"count": ...}`.
"""

import json
import sys

import pypdfium2

PASSWORD, SIZE, PAGES, RANGE, BROKEN = "password", "size", "pages", "range", "broken"  # the errors
_SHORTEST_SIDE = 8  # pixels; below that a page is a line, not a page
_PDFIUM_PASSWORD_ERROR = 4


def main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    _limit_memory(job["memory"])
    try:
        document = pypdfium2.PdfDocument(job["path"] if job["path"] else sys.stdin.buffer.read(job["size"]))
        count = len(document)
    except pypdfium2.PdfiumError as error:
        return _send({"error": PASSWORD if error.err_code == _PDFIUM_PASSWORD_ERROR else BROKEN})
    if job.get("count"):
        return _send({"count": count})
    wanted = job["pages"] or list(range(1, count + 1))
    if any(number > count for number in wanted) or not count:
        return _send({"error": RANGE, "count": count})
    if len(wanted) > job["max_pages"]:
        return _send({"error": PAGES, "count": len(wanted)})
    document.init_forms()  # else the filled-in fields of a form stay invisible
    for number in wanted:
        try:
            page = document[number - 1]
            width, height = page.get_size()
            scale = min(job["dpi"] / 72, (job["long_side"] - 1e-6) / max(width, height))  # pypdfium2 rounds up
            if min(width, height) * scale < _SHORTEST_SIDE:
                return _send({"error": SIZE, "page": number, "points": [round(width), round(height)]})
            bitmap = page.render(scale=scale, rev_byteorder=True)
        except pypdfium2.PdfiumError:
            return _send({"error": BROKEN, "page": number})
        assert bitmap.mode == "RGB", bitmap.mode
        _send({"page": number, "size": [bitmap.width, bitmap.height], "stride": bitmap.stride})
        sys.stdout.buffer.write(bitmap.buffer)
        bitmap.close()
        page.close()
    _send({"done": True})


def _send(record: dict) -> None:
    sys.stdout.buffer.write(json.dumps(record).encode() + b"\n")


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:  # no such thing on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()

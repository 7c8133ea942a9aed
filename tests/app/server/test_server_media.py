"""Pictures and PDFs of strangers: odd ones are read, hostile ones are refused in a few words and little memory."""

import gzip
import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
FILES = Path(__file__).parent.parent / "files"


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def zeros_png(width: int, height: int) -> bytes:
    """A PNG that is small in bytes and huge in pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def endless_jpeg() -> bytes:
    data = saved(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last_scan * 5000 + data[-2:]


PICTURE = Image.linear_gradient("L").resize((40, 30))
ODD = {
    "one pixel": lambda: saved(Image.new("RGB", (1, 1)), "PNG"),
    "one column": lambda: saved(Image.new("RGB", (1, 20_000)), "PNG"),
    "CMYK": lambda: saved(PICTURE.convert("CMYK"), "JPEG"),
    "16 bits": lambda: saved(PICTURE.convert("I;16"), "PNG"),
    "palette with transparency": lambda: saved(PICTURE.convert("P"), "PNG", transparency=3),
    "animated": lambda: saved(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(90)] * 5),
    "WebP": lambda: saved(PICTURE, "WEBP"),
    "BMP": lambda: saved(PICTURE, "BMP"),
    "TIFF": lambda: saved(PICTURE, "TIFF", compression="tiff_deflate"),
}
HOSTILE = {
    "169 million pixels in 20 KB": (lambda: zeros_png(13_000, 13_000), "pixels"),
    "400 million pixels": (lambda: zeros_png(20_000, 20_000), "pixels"),
    "FITS": (lambda: gzip.compress(b"SIMPLE  =                    T" + b" " * 5000), "not an image"),
    "JPEG 2000": (lambda: b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100), "not an image"),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "truncated": (lambda: saved(PICTURE.resize((300, 300)), "PNG")[:-60], "truncated"),
    "random": (lambda: bytes(range(256)) * 8, "not an image"),
    "endless JPEG": (endless_jpeg, "scans"),
    "broken PDF": (lambda: b"%PDF-1.7\nthis is no PDF", "PDF"),
    "encrypted PDF": (lambda: (FILES / "encrypted.pdf").read_bytes(), "password"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_read(server, asked, as_image, name):
    answer = server.post(json=asked("?", as_image(ODD[name](), mime="image/any")))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_few_words(server, asked, as_file, name):
    make, says = HOSTILE[name]
    start = time.monotonic()
    answer = server.post(json=asked("?", as_file(make())))
    assert answer.status_code == 422 and says in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "messages[0].content[0]"
    assert_no_leak(answer)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_seen_upright(server, asked, as_image, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    sides = (90, 30) if turn < 5 else (30, 90)  # seen upright, all are the same picture
    plain = Image.new("RGB", (90, 30))
    turned = saved(Image.new("RGB", sides), "JPEG", exif=exif)
    tokens = [
        server.post(json=asked("?", as_image(image))).json()["usage"]["prompt_tokens_details"]["image_tokens"]
        for image in (turned, plain)
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("data:image/png;base64", 400),
        ("data:image/png,iVBORw0K", 400),
        ("data:image/png;base64,%%%", 400),
        ("data:image/png;base64,", 400),
        ("data:image/png;base64,QQ", 400),
        ("data:;charset=utf-8;BASE64,QUJD", 422),  # as RFC 2397 has it; but "ABC" is no picture
        ("file:///etc/passwd", 400),
        ("/etc/passwd", 400),
        ("", 400),
    ],
)
def test_odd_data_urls(server, asked, url, status):
    answer = server.post(json=asked("?", {"type": "image_url", "image_url": {"url": url}}))
    assert answer.status_code == status
    assert_no_leak(answer)


def test_files_that_are_missing_or_of_the_wrong_kind(server, asked, as_image, as_file, two_pages):
    for part, status in [
        ({"type": "file", "file": {"filename": "x.pdf"}}, 400),
        ({"type": "file", "file": {"file_id": "file-1"}}, 400),
        (as_image(two_pages), 400),
        (as_file(two_pages, pages="7"), 422),
        (as_file(two_pages, pages="x"), 422),
        (as_file(saved(PICTURE, "PNG")), 200),
    ]:
        answer = server.post(json=asked("?", part))
        assert answer.status_code == status, answer.text
        if status != 200:
            assert_no_leak(answer)


def test_limits_of_a_request(serve, tiny, asked, as_image, as_file, two_pages):
    limits = dict(max_images=2, max_image_mb=1, max_image_megapixels=1, max_pdf_pages=1)
    with serve(tiny, **limits) as server:
        small = as_image(PICTURE)
        for parts, status in [
            ([small] * 2, 200),
            ([small] * 3, 413),
            ([as_image(bytes(1 << 20))], 422),
            ([as_image(bytes((1 << 20) + 10))], 413),
            ([as_image(zeros_png(1001, 1000))], 422),
            ([as_file(two_pages)], 422),
            ([as_file(two_pages, pages="1"), small], 200),
            ([as_file(two_pages, pages="1"), small, small], 413),
        ]:
            answer = server.post(json=asked("?", *parts))
            assert answer.status_code == status, answer.text


def test_a_pdf_that_never_ends_is_given_up(serve, tiny, asked, as_file):
    with serve(tiny, pdf_seconds=1) as server:
        answer = server.post(json=asked("?", as_file(_forms_in_forms())))
        assert answer.status_code == 422 and "takes more than 1 s" in answer.text


def test_pictures_and_texts_do_not_wait_for_a_slow_pdf(serve, tiny, asked, as_image, as_file):
    with serve(tiny, pdf_seconds=3, decode_threads=1) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(lambda: server.post(json=asked("?", as_file(_forms_in_forms()))).status_code)
        for body in (asked("?", as_image(PICTURE)), asked()):
            assert server.post(json=body).status_code == 200
        assert not slow.done()
        assert slow.result() == 422


def test_thirty_two_bombs_at_once_take_the_memory_of_two(serve, tiny, asked, as_image, as_file):
    """Eight pictures of 9 million pixels in 2 KB each are within the limit; decoded together they take 600 MiB."""
    process, peak, done = psutil.Process(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    with serve(tiny, decode_threads=2) as server:
        server.post(json=asked("?", as_image(PICTURE)))
        bodies = [asked("?", as_image(zeros_png(3000, 3000)), max_tokens=1)] * 8
        bodies += [asked("?", as_image(zeros_png(13_000, 13_000)))] * 24
        before = process.memory_info().rss
        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(32) as pool:
            statuses = list(pool.map(lambda body: server.post(json=body).status_code, bodies))
        done.set()
        watcher.join()
        assert statuses == [200] * 8 + [422] * 24
        assert (peak - before) >> 20 < 300, f"{(peak - before) >> 20} MiB"


SECRET = "s3cr3t-marker"


@pytest.mark.parametrize(
    "body",
    [
        {"model": SECRET, "messages": [{"role": "user", "content": "?"}]},
        {"messages": [{"role": SECRET, "content": SECRET}], "model": "tiny", SECRET: SECRET},
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": SECRET}] * 1000}]},
        {"model": "tiny", "messages": [{"role": "user", "content": "?", SECRET * 1000: 1}]},
        {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "stop": [SECRET * 1000]},
        {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "temperature": SECRET},
        {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "n": [SECRET]},
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "?"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": SECRET}}},
        },
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": SECRET}}]}]},
        [SECRET],
        SECRET,
    ],
)
def test_errors_repeat_nothing_that_was_sent(server, body):
    answer = server.post(json=body)
    assert 400 <= answer.status_code < 500
    assert SECRET not in answer.text
    assert_no_leak(answer)


def assert_no_leak(answer) -> None:
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(answer.content) < 4096
    for leak in ("0x", "<_io", "Traceback", "/tmp", "/work", "/usr", "/etc", "base64,", "\n"):
        assert leak not in error["message"], error


def _forms_in_forms() -> bytes:
    """A PDF of 3 KB that draws 20 ** 10 rectangles: forms that draw forms that draw forms."""
    forms = []
    for i in range(10):
        content = "/F Do " * 20 if i < 9 else "0 0 9 9 re f " * 20
        inner = f"/Resources << /XObject << /F {6 + i} 0 R >> >> " if i < 9 else ""
        head = f"<< /Type /XObject /Subtype /Form /BBox [0 0 99 99] {inner}/Length {len(content)} >>"
        forms.append(f"{head} stream\n{content}\nendstream")
    page = (
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 4 0 R /Resources << /XObject << /F 5 0 R >> >> >>"
    )
    bodies = ["<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Count 1 /Kids [3 0 R] >>", page]
    bodies += ["<< /Length 5 >> stream\n/F Do\nendstream", *forms]
    return (
        "%PDF-1.7\n"
        + "".join(f"{n} 0 obj {body} endobj\n" for n, body in enumerate(bodies, 1))
        + (f"trailer << /Size {len(bodies) + 1} /Root 1 0 R >>\n%%EOF\n")
    ).encode()

"""Images and PDFs as pages: what is rendered, and that hostile PDFs end in one line, in time, in another process.

files/needs_password.pdf (AES-256, user password "u") and files/owner_password_only.pdf are a blank page of 100 x 50
points, encrypted with pikepdf.
"""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvl import media
from mmvl.media import iter_media, load_media, page_numbers, pdf_page_count

FILES = Path(__file__).with_name("files")
RED_CORNER = "1 0 0 rg 0 0 40 20 re f"  # at the bottom left


def make_pdf(*pages, objects=()):
    """A PDF by hand: pages are (width, height, content, further keys); after one page, objects count from 5 0."""
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(len(pages)))
    bodies = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>"]
    for i, (width, height, content, keys) in enumerate(pages):
        box = f"/MediaBox [0 0 {width} {height}]"
        bodies.append(f"<< /Type /Page /Parent 2 0 R {box} /Contents {4 + 2 * i} 0 R {keys} >>")
        bodies.append(f"<< /Length {len(content)} >> stream\n{content}\nendstream")
    bodies += objects
    data, offsets = "%PDF-1.7\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj {body} endobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size {len(bodies) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return (data + f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n" + table + trailer).encode("latin-1")


def refusal(*args, **options):
    with pytest.raises(ValueError) as caught:
        load_media(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


def test_images_are_one_page(tmp_path, picture_path):
    (page,) = load_media(picture_path)
    assert page.image.mode == "RGB" and page.image.size == (60, 40)
    assert page.name == str(picture_path) and page.number is None
    assert load_media(picture_path.read_bytes(), name="upload")[0].name == "upload"
    assert load_media(Image.new("L", (3, 3)))[0].image.mode == "RGB"
    assert "60 x 40" in refusal(picture_path, max_pixels=100)
    assert "NoneType" in refusal(None)
    assert "damaged" in refusal(b"no image")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_media(tmp_path / "missing.pdf")


def test_a_jpeg_of_endless_scans():
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    assert load_media(data[:-2] + last_scan * 20 + data[-2:])[0].image.size == (64, 64)
    assert "scans" in refusal(data[:-2] + last_scan * 200 + data[-2:])


def test_pdf_pages(tmp_path):
    data = make_pdf((100, 50, RED_CORNER, ""), (100, 50, RED_CORNER, "/Rotate 90"), (595, 842, "", ""))
    path = tmp_path / "some pages é.pdf"
    path.write_bytes(data)
    pages = load_media(path)
    assert [page.image.size for page in pages] == [(200, 100), (100, 200), (1190, 1684)]
    assert [page.number for page in pages] == [1, 2, 3]
    assert pages[1].name == f"{path}, page 2"
    assert all(page.image.mode == "RGB" for page in pages)
    red, white = [255, 0, 0], [255, 255, 255]
    upright, turned = np.asarray(pages[0].image), np.asarray(pages[1].image)
    assert upright[95, 5].tolist() == red and upright[5, 5].tolist() == upright[95, 190].tolist() == white
    assert turned[5, 5].tolist() == red and turned[195, 5].tolist() == white
    for page, again in zip(pages, load_media(data), strict=True):  # bytes, widths whose rows are padded too
        np.testing.assert_array_equal(np.asarray(page.image), np.asarray(again.image))


def test_rows_of_odd_width():
    (page,) = load_media(make_pdf((50.5, 30, "0 0 1 rg 0 0 60 40 re f", "")))
    assert page.image.size[0] % 4 and np.asarray(page.image)[:, :-1].reshape(-1, 3).tolist()[-1] == [0, 0, 255]
    assert (np.asarray(page.image)[:, :-1] == [0, 0, 255]).all()


def test_choosing_pages():
    data = make_pdf(*[(72 + n, 72, "", "") for n in range(5)])
    assert [p.number for p in load_media(data, pages="2-3,5")] == [2, 3, 5]
    assert [p.image.width for p in load_media(data, pages=[4, 1])] == [150, 144]
    assert "5 pages" in refusal(data, pages="6") and "5 pages, more than the limit of 4" in refusal(data, max_pages=4)
    assert len(load_media(data, pages="1-4", max_pages=4)) == 4
    assert "counted from 1" in refusal(data, pages=[0])


def test_counting_pages(tmp_path):
    path = tmp_path / "three.pdf"
    path.write_bytes(data := make_pdf(*[(72, 72, "", "")] * 3))
    assert pdf_page_count(path) == pdf_page_count(data) == 3
    for source, says in ((b"no PDF", "not a PDF"), (data[:60], "damaged"), (FILES / "needs_password.pdf", "password")):
        with pytest.raises(ValueError, match=says):
            pdf_page_count(source, name="upload")


def test_pages_come_one_by_one_and_closing_ends_the_process(monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(media.subprocess, "Popen", Popen)
    pages = iter_media(make_pdf(*[(1000, 1000, "", "")] * 30), timeout=2)
    assert next(pages).number == 1
    assert started[0].poll() is None, "it waits to be read: 30 such pages do not fit into a pipe"
    time.sleep(2.1)  # the reader's own time does not count
    assert next(pages).number == 2
    pages.close()
    assert started[0].poll() is not None


def test_page_numbers():
    assert page_numbers("1-3,7") == [1, 2, 3, 7] and page_numbers(" 2 , 1") == [2, 1]
    for text in ("", "x", "1-", "-1", "0", "3-2", "1,,2", "1-2-3", "²", "1-999999999"):
        with pytest.raises(ValueError, match="pages"):
            page_numbers(text)


def test_encrypted():
    assert "password" in refusal(FILES / "needs_password.pdf")
    assert load_media(FILES / "owner_password_only.pdf")[0].image.size == (200, 100)


def test_absurd_page_sizes():
    (page,) = load_media(make_pdf((14400, 14400, "", "")))
    assert page.image.size == (2016, 2016)
    assert load_media(make_pdf((200_000, 100_000, "", "")))[0].image.size == (2016, 1008)
    assert "page 2" in (message := refusal(make_pdf((99, 99, "", ""), (5, 14400, "", "")))) and "5 x 14400" in message
    assert "1 x 1 points" in refusal(make_pdf((1, 1, "", "")))


def test_damaged(tmp_path):
    data = make_pdf((100, 50, RED_CORNER, ""))
    empty = tmp_path / "empty.pdf"
    empty.write_bytes(b"")
    for source in (data[:60], b"%PDF-1.7", b"%PDF-1.7" + os.urandom(500), empty, make_pdf()):
        assert "damaged" in refusal(source)


def test_too_large(monkeypatch):
    monkeypatch.setattr(media, "MAX_PDF_BYTES", 100)
    assert "limit" in refusal(make_pdf((100, 50, "", "")))


def test_a_page_that_never_ends():
    """Forms that draw forms that draw forms: a few hundred bytes, 20 ** 10 rectangles."""
    forms = [
        "<< /Type /XObject /Subtype /Form /BBox [0 0 99 99] "
        + (f"/Resources << /XObject << /F {6 + i} 0 R >> >> " if i < 9 else "")
        + f"/Length {len(content)} >> stream\n{content}\nendstream"
        for i in range(10)
        for content in [("/F Do " * 20) if i < 9 else "0 0 9 9 re f " * 20]
    ]
    data = make_pdf((99, 99, "/F Do", "/Resources << /XObject << /F 5 0 R >> >>"), objects=forms)
    start = time.monotonic()
    assert "takes more than 1.5 s" in refusal(data, timeout=1.5)
    assert time.monotonic() - start < 10


def test_a_worker_that_hangs_is_killed(tmp_path, monkeypatch):
    worker, pid_file = tmp_path / "worker.py", tmp_path / "pid"
    worker.write_text(f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    monkeypatch.setattr(media, "_WORKER", worker)
    assert "takes more than" in refusal(make_pdf((9, 9, "", "")), timeout=3)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 11)", "raise MemoryError", "print('{\"page\": 1, ')"])
def test_a_worker_that_dies(tmp_path, monkeypatch, end):
    worker = tmp_path / "worker.py"
    half_a_page = '{"page": 1, "size": [9, 9], "stride": 27}'
    worker.write_text(f"import os\nprint('{half_a_page}', flush=True)\n{end}\n")
    monkeypatch.setattr(media, "_WORKER", worker)
    assert "crashed" in refusal(make_pdf((9, 9, "", "")))


def test_memory_is_limited(monkeypatch):
    data = make_pdf((1000, 1000, "", ""))
    monkeypatch.setattr(media, "_PDF_MEMORY", 32 << 20)
    assert "memory" in refusal(data)


def test_modules_of_the_users_directory_are_not_run(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('wrong json')")
    (tmp_path / "pypdfium2.py").write_text("raise SystemExit('wrong pypdfium2')")
    monkeypatch.chdir(tmp_path)
    assert load_media(make_pdf((100, 50, "", "")))[0].image.size == (200, 100)


def test_neither_media_nor_its_worker_load_torch():
    script = "import sys, runpy, mmvl.media as m\nrunpy.run_path(str(m._WORKER))\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"

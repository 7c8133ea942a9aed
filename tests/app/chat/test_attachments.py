"""Files of visitors: only what was uploaded is opened, PDFs by their chosen pages, and what was opened is kept."""

import pytest
from PIL import Image

from mmvl.app.chat.attachments import Attachments, chosen_pages, page_ranges
from mmvl.app.chat.picker import open_pdfs, picker_html
from mmvl.app.server import ServerSettings
from mmvl.app.server.content import MediaLimits
from mmvl.processor import Processor


@pytest.fixture(scope="module")
def processor(tiny_model_dir):
    return Processor.from_pretrained(tiny_model_dir)


@pytest.fixture
def attachments(picture_folder, processor):
    return Attachments(picture_folder, processor, MediaLimits.of(ServerSettings(max_pdf_pages=2)), 1)


def test_pictures_and_pages(attachments, picture_folder):
    (picture,) = attachments.open(attachments.attach(picture_folder / "red.png"))
    assert picture.name == "red.png" and picture.preview.startswith("data:image/webp;base64,")
    pages = attachments.open(attachments.attach(picture_folder / "two.pdf"))
    assert [page.name for page in pages] == ["two.pdf, page 1", "two.pdf, page 2"]
    (second,) = attachments.open(attachments.attach(picture_folder / "two.pdf", [2]))
    assert second.tiled.digest == pages[1].tiled.digest


def test_what_was_opened_is_kept_up_to_a_size(picture_folder, processor, attachments):
    file = attachments.attach(picture_folder / "red.png")
    assert attachments.opened(file) is None
    assert attachments.open(file) is attachments.open(file)
    small = Attachments(picture_folder, processor, attachments.limits, 1, max_bytes=1)
    first, second = (small.attach(picture_folder / name) for name in ("red.png", "inside/blue.jpg"))
    small.open(first)
    small.open(second)
    assert small.opened(first) is None and small.opened(second) is not None


def test_nothing_else_on_the_machine_is_opened(attachments, picture_folder, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (picture_folder / "link.png").symlink_to(tmp_path / "secret.png")
    outside = (tmp_path / "secret.png", picture_folder / ".." / "secret.png", "/etc/passwd")
    for path in (*outside, picture_folder / "link.png"):
        assert not attachments.is_here(path)
        with pytest.raises(ValueError, match="attach it again"):
            attachments.attach(path)


def test_pages_in_words():
    assert chosen_pages("3, 1-2,2", 5) == (1, 2, 3)
    assert page_ranges((1, 2, 3, 7, 9, 10)) == "1-3,7,9-10"
    for text in ("", "0", "6", "2-1", "x", "1-99999"):
        with pytest.raises(ValueError):
            chosen_pages(text, 5)


def test_the_picker_offers_the_pages_of_pdfs_and_tells_of_damaged_ones(attachments, picture_folder):
    (picture_folder / "<b>.pdf").write_bytes(b"%PDF-1.7 nothing")
    paths = [str(picture_folder / name) for name in ("two.pdf", "red.png", "<b>.pdf")]
    pdfs = open_pdfs(attachments, paths, {})
    assert list(pdfs) == [paths[0], paths[2]]
    html = picker_html(pdfs, 2)
    assert html.count('type="checkbox"') == 2 and 'aria-label="Page 2 of two.pdf"' in html
    assert "<b>" not in html and str(picture_folder) not in html.replace(f'data-path="{paths[0]}"', "")
    assert open_pdfs(attachments, paths, pdfs)[paths[0]] is pdfs[paths[0]]

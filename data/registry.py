"""The names under which `mmvl data render NAME` and `mmvl data import NAME` find their functions."""

from collections.abc import Callable
from dataclasses import dataclass

from mmvl.data.clip_art import import_clip_art
from mmvl.data.easy_vqa import import_easy_vqa
from mmvl.data.import_albums import import_albums
from mmvl.data.import_captions import import_coco, import_folder
from mmvl.data.import_conversations import import_jsonl, import_llava, import_text_files
from mmvl.data.import_documents import import_chartqa, import_docvqa, import_sroie
from mmvl.data.import_pairs import import_pairs
from mmvl.data.import_tables import import_wikitablequestions
from mmvl.data.import_text_questions import import_text_questions
from mmvl.data.render_charts import render_charts
from mmvl.data.render_documents import render_documents
from mmvl.data.render_emoji import render_emoji
from mmvl.data.render_labelled import render_labelled
from mmvl.data.render_pages import render_pages
from mmvl.data.render_receipts import render_receipt_lines, render_receipts
from mmvl.data.render_scans import render_chart_scans, render_scan_lines, render_scans
from mmvl.data.render_screens import render_screens
from mmvl.data.render_tables import render_tables
from mmvl.data.render_text_lines import render_text_lines
from mmvl.data.stamps import import_stamps
from mmvl.data.text import import_text
from mmvl.data.vqa_v2 import import_vqa


@dataclass(frozen=True)
class Tool:
    """A function (out_dir, count, seed, workers, *, progress, **settings) -> list of shard paths, and what it does."""

    run: Callable
    help: str


RENDERERS = {
    "text-lines": Tool(render_text_lines, "One line of print a picture (needs fonts=DIR corpus=DIR)."),
    "documents": Tool(render_documents, "Notes, receipts, letters, labels with questions (fonts=DIR corpus=DIR)."),
    "labelled": Tool(render_labelled, "Cards, forms, tags of labelled values (fonts=DIR corpus=DIR)."),
    "pages": Tool(render_pages, "Letters, forms, invoices, memos, notes (fonts=DIR corpus=DIR)."),
    "receipts": Tool(render_receipts, "Till slips on worn paper (fonts=DIR corpus=DIR)."),
    "receipt-lines": Tool(render_receipt_lines, "Lines cut out of till slips (fonts=DIR corpus=DIR)."),
    "tables": Tool(render_tables, "Tables, real and invented (fonts=DIR corpus=DIR tables=FILE)."),
    "charts": Tool(render_charts, "Charts of invented and real numbers (fonts=DIR corpus=DIR tables=FILE)."),
    "scans": Tool(render_scans, "Real receipts, seen otherwise each time (receipts=FILE)."),
    "scan-lines": Tool(render_scan_lines, "Lines cut out of real receipts (receipts=FILE)."),
    "chart-scans": Tool(render_chart_scans, "Real charts, seen otherwise each time (charts=FILE)."),
    "screens": Tool(render_screens, "Windows of programs (fonts=DIR corpus=DIR)."),
    "emoji": Tool(render_emoji, "Colour emoji and their names (fonts=DIR with NotoColorEmoji.ttf)."),
}

IMPORTERS = {
    "easy-vqa": Tool(import_easy_vqa, "Coloured shapes with questions, from the PyPI package easy-vqa."),
    "stamps": Tool(import_stamps, "Tux Paint's captioned stamps (packages=DIR of unpacked Debian packages, or /)."),
    "clip-art": Tool(import_clip_art, "The Open Clip Art Library's drawings and names (packages=DIR, as for stamps)."),
    "text": Tool(import_text, "Plain documents (corpus=DIR of .jsonl.gz files)."),
    "text-questions": Tool(import_text_questions, "Questions about prose, forms, lists, tables as text (corpus=DIR)."),
    "text-files": Tool(import_text_files, "Plain text (files=FILE or DIR of .txt and .md)."),
    "jsonl": Tool(import_jsonl, "Lines of documents, conversations, preference pairs (file=FILE images=DIR)."),
    "llava": Tool(import_llava, "LLaVA-style conversations (file=FILE.json images=DIR)."),
    "coco": Tool(import_coco, "COCO captions (file=annotations/captions_train2017.json; images=DIR if not beside it)."),
    "folder": Tool(import_folder, "Pictures with .txt files beside them (images=DIR)."),
    "sroie": Tool(import_sroie, "SROIE receipts (files=DIR with img, box, entities, or .tar)."),
    "chartqa": Tool(import_chartqa, "ChartQA (images=DIR or .tar, file=train_human.json)."),
    "docvqa": Tool(import_docvqa, "DocVQA (file=train_v1.0_withQT.json; images=DIR if not beside it)."),
    "vqa-v2": Tool(import_vqa, "VQA v2 (file=v2_OpenEnded_mscoco_train2014_questions.json, answers beside it)."),
    "albums": Tool(import_albums, "Conversations over several pictures of other shards (shards=DIR,DIR)."),
    "pairs": Tool(import_pairs, "Preference pairs out of other shards (shards=DIR)."),
    "wikitablequestions": Tool(import_wikitablequestions, "Tables drawn, with questions (tables=DIR file=.tsv)."),
}

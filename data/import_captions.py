"""Importers of captioned pictures: COCO's annotation file, and a folder of images with .txt files beside them.

COCO Captions: Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015; the captions are
under CC BY 4.0, the photographs under the terms of Flickr that the annotation file lists.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mmvl.data.files import Files, read_json
from mmvl.data.find_pictures import Pictures
from mmvl.data.importing import Item, import_items, picture
from mmvl.data.turns import Made, assistant, user

QUESTIONS = (
    "Describe the picture.", "What does the picture show?", "Caption this image.", "What do you see?",
    "What is in the picture?", "Write a caption.",
)  # fmt: skip
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def captioned(source: str, shown: tuple[str, bytes], caption: str, rng, **meta) -> Made:
    """A caption sample, its request drawn by rng."""
    caption = " ".join(caption.split())
    if not caption:
        raise ValueError("the caption is empty")
    file = f"0.{shown[0]}"
    messages = [user(rng.choice(QUESTIONS), file), assistant(caption)]
    return {"source": source, "kind": "caption", "messages": messages, "meta": meta}, {file: shown[1]}


def import_coco(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    file: str | Path,
    images: str | Path | None = None,
    captions: int = 1,
    longest: int = 0,
    split: str = "all",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """COCO's captions_*.json `file`, with its `images` (folder, tar or zip; without it see `find_pictures`).

    captions: samples a picture, drawn without repetition (0: one for every caption). longest: see `picture`.
    """
    annotations, pictures = read_json(file), Pictures(file, images)
    try:
        names = {image["id"]: image["file_name"] for image in annotations["images"]}
        said = defaultdict(list)
        for annotation in annotations["annotations"]:
            said[annotation["image_id"]].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: not COCO captions ({error!r} is missing)") from None

    def item(key, number: int) -> Item:
        def make(rng) -> Made:
            name = names.get(key, f"image {key} of the annotations")
            order = sorted(said[key])
            rng.shuffle(order)
            return captioned("coco-captions", picture(pictures.read(name), longest), order[number], rng, image=key)

        return Item(f"coco/{key}", make)

    items = [item(key, n) for key in sorted(said) for n in range(min(captions or len(said[key]), len(said[key])))]
    return import_items(out_dir, "coco", items, count, seed, workers, split=split, progress=progress, problems=problems)


def import_folder(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    images: str | Path,
    source: str = "folder",
    longest: int = 0,
    split: str = "all",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Pictures with a caption in the .txt of the same name, in a folder (with all below it), a tar or a zip.

    A picture without a .txt, or an empty one, is skipped and named.
    """
    files = Files(images)
    names = [name for name in files.names if PurePosixPath(name).suffix.lower() in IMAGES]
    if not names:
        raise FileNotFoundError(f"{images}: no pictures ({', '.join(IMAGES)})")

    def item(name: str) -> Item:
        def make(rng) -> Made:
            caption = files.read(str(PurePosixPath(name).with_suffix(".txt"))).decode("utf-8", errors="replace")
            return captioned(source, picture(files.read(name), longest), caption, rng, file=name)

        return Item(name, make)

    items = [item(name) for name in names]
    return import_items(
        out_dir, "folder", items, count, seed, workers, split=split, progress=progress, problems=problems
    )

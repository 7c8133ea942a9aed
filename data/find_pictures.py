"""Where the pictures lie that an annotation file names: one rule for every public format that has such a file.

Releases give annotations and pictures out as separate archives, and what the annotations call `documents/x.png` is
`spdocvqa_images/x.png` once both are unpacked. So a picture is looked for as it is named and by its bare name, in:

1. the folder of the annotation file, and the one above it;
2. in each of these, the folders of PLACES;
3. in each of all these, the folders that the file's name has between underscores (captions_val2017.json: val2017).
"""

import os
from pathlib import Path, PurePosixPath

from mmvl.data.files import Files

PLACES = ("images", "png", "spdocvqa_images", "Images/mscoco")


class Pictures:
    """The pictures of the annotation file `file`: of `images` (a folder with all below it, tar, zip) where that is
    given, else where the rule of this file finds them. FileNotFoundError where there is no such file, or no `images`.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None):
        self.file = Path(file)
        if not self.file.is_file():
            raise FileNotFoundError(f"no such file: {file}")
        self._files = None if images is None else Files(images)
        if self._files is not None:
            self._by_base = {PurePosixPath(name).name: name for name in self._files.names}
            return
        here = Path(os.path.abspath(self.file)).parent  # as it was named: links are not followed
        words = ["", *self.file.stem.split("_")]
        places = (top / place / word for top in (here, here.parent) for place in ("", *PLACES) for word in words)
        self.folders = [folder for folder in dict.fromkeys(places) if folder.is_dir()]

    def find(self, name: str) -> Path:
        """The file of a picture; only without `images`, which may be an archive.

        ValueError for a name that leads out of the folders; FileNotFoundError says where it was looked for.
        """
        named = PurePosixPath(name)
        if named.is_absolute() or ".." in named.parts:
            raise ValueError(f"{self.file} names a picture outside its folder: {name!r}")
        for folder in self.folders:
            for inside in dict.fromkeys((name, named.name)):
                if inside and (folder / inside).is_file():
                    return folder / inside
        looked = ", ".join(str(folder) for folder in self.folders)
        raise FileNotFoundError(
            f"{self.file} names the picture {name!r}, which is in none of {looked}: unpack pictures into one of them"
        )

    def read(self, name: str) -> bytes:
        """The bytes of a picture; errors as `find`."""
        if self._files is None:
            return self.find(name).read_bytes()
        return self._files.read(name if name in self._files else self._by_base.get(PurePosixPath(name).name, name))


def annotation_file(path: str | Path, pattern: str) -> Path:
    """`path`, if it is a file; of a folder the one file like `pattern` in it or in the folders right below it.

    Of several it is the one for validation (`val` in its name), which is there to be measured on: test sets come
    without answers. FileNotFoundError for none, ValueError where that leaves several.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    found = sorted([*path.glob(pattern), *path.glob(f"*/{pattern}")])
    if not found:
        raise FileNotFoundError(f"{path} has no {pattern}, neither in it nor in the folders right below: name the file")
    chosen = [file for file in found if "val" in file.name] or found
    if len(chosen) > 1:
        raise ValueError(f"{path} has several {pattern}, name one of them: {', '.join(str(file) for file in chosen)}")
    return chosen[0]

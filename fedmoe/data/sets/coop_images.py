"""A folder of images where CoOp has it: what data sets with and without a split file share."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from fedmoe.data.base import DataSet
from fedmoe.data.sets.image_files import files_key, find_folder
from fedmoe.errors import UserError
from fedmoe.io import read_regular

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class CoopImages(DataSet):
    """A folder of images where CoOp has it, with CoOp's caption as an option.

    Raises:
        UserError: on reading: the folder is missing, or could not be downloaded.
    """

    root: str = "data"
    """Folder that holds the data set's folder."""
    download: bool = False
    """Where the images are missing, let torchvision download them to root."""
    captions: Literal["plain", "coop"] = "plain"
    """Caption of a class for zero-shot prediction. plain: "a photo of a {class}.", for every data set the same; coop:
    CoOp's caption for this data set."""

    folders: ClassVar[tuple[str, ...]]
    """The data set's folder below ``root``: CoOp's, then torchvision's."""
    image_folder: ClassVar[str]
    """Folder of the images in that folder; "" for that folder itself."""
    torchvision_name: ClassVar[str | None] = None
    """torchvision's class that downloads the data set; None where it has none that does."""
    coop_template: ClassVar[str] = DataSet.template
    """CoOp's caption of a class."""

    @property
    def template(self) -> str:  # type: ignore[override]  # chosen by a setting here, a constant elsewhere
        return self.coop_template if self.captions == "coop" else DataSet.template

    @cached_property
    def _folder(self) -> Path:
        """The data set's folder: the first of ``folders`` that has images, else the first."""
        root = Path(self.root).expanduser()
        for attempt in range(2):
            for name in self.folders:
                if os.path.isdir(root / name / self.image_folder):
                    return root / name
            if self.download and attempt == 0:
                if self.torchvision_name is None:
                    raise UserError(
                        f"data.download is true, but torchvision does not download {self.name}; valid is false, with "
                        f"the images in {root / self.folders[0] / self.image_folder}."
                    )
                torchvision_download(self.torchvision_name, root)
        below = f"{self.folders[0]}/{self.image_folder}".rstrip("/")
        hint = "" if self.download or self.torchvision_name is None else "; data.download=true fetches it"
        find_folder(self.root, below, f"{below}/ and in it the images of {self.name}{hint}")
        return root / self.folders[0]

    def _source_key(self) -> str:
        raw = self._raw
        return f"{self.name} {files_key(self._folder / self.image_folder, raw.train.paths or (), raw.test.paths or ())}"


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, without white space at their ends, and their numbers from 1.

    Raises:
        UserError: the file is missing or is no text; the sentence says ``what`` it tells.
    """
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}), which tells {what}; valid is the "
            "file that comes with the data set."
        ) from error
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def torchvision_download(name: str, root: Path) -> None:
    """Let torchvision's data set class ``name`` download its files to ``root``.

    Raises:
        UserError: it fails, for whatever reason.
    """
    from torchvision import datasets

    log.warning("Downloading %s to %s.", name, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # whatever the network, the archive or the disk raise
        raise download_error(name, root, error) from error


def download_error(name: str, root: Path, error: Exception) -> UserError:
    """The sentence for a download that failed."""
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(". ") or type(error).__name__
    return UserError(
        f"data.download is true, but torchvision could not download {name} to {root} ({reason[:200]}); where there is "
        "no network, place the files there and leave data.download out."
    )

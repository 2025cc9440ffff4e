"""SA-1B in its download format: tars of ``sa_<n>.jpg`` and ``sa_<n>.json``, read without unpacking."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import InputError


@dataclass(frozen=True)
class Member:
    """Location of one image and its masks."""

    tar: Path
    stem: str
    image_offset: int
    image_bytes: int
    json_offset: int
    json_bytes: int

    def read(self) -> tuple[bytes, bytes]:
        """The image's and the json's bytes.

        Raises:
            InputError: The tar is truncated.
        """
        try:
            with self.tar.open("rb") as stream:
                stream.seek(self.image_offset)
                image = stream.read(self.image_bytes)
                stream.seek(self.json_offset)
                text = stream.read(self.json_bytes)
        except OSError as error:
            raise InputError(f"{self.tar} cannot be read ({error.strerror}): restore it.") from None
        if len(image) != self.image_bytes or len(text) != self.json_bytes:
            raise InputError(f"{self.tar} is truncated at {self.stem}: download it again.")
        return image, text


def members(directory: Path) -> list[Member]:
    """All samples of all tars in ``directory``, sorted by tar and name.

    Raises:
        InputError: There are no tars, one is damaged, or an image and its json are not both present.
    """
    tars = sorted(directory.glob("*.tar")) if directory.is_dir() else []
    if not tars:
        raise InputError(f"{directory} holds no *.tar files: put SA-1B's shards there or correct the path.")
    return [member for tar in tars for member in _members(tar)]


def _members(path: Path) -> list[Member]:
    offsets: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                name = Path(info.name)
                if info.isfile() and name.suffix in (".jpg", ".json"):
                    offsets.setdefault(name.stem, {})[name.suffix] = (info.offset_data, info.size)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} is not a readable tar ({error}): download it again.") from None
    for stem, parts in offsets.items():
        if len(parts) != 2:
            raise InputError(f"{path}: {stem}{next(iter(parts))} has no companion: download the tar again.")
    return [Member(path, stem, *offsets[stem][".jpg"], *offsets[stem][".json"]) for stem in sorted(offsets)]

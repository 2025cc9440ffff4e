"""SA-1B as it is downloaded: tars of ``sa_<n>.jpg`` and ``sa_<n>.json`` side by side, not to be unpacked."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import InputError


@dataclass(frozen=True)
class Member:
    """Where one image and its masks lie."""

    tar: Path
    stem: str
    image_offset: int
    image_bytes: int
    json_offset: int
    json_bytes: int

    def read(self) -> tuple[bytes, bytes]:
        """The image's and the json's bytes.

        Raises:
            InputError: The tar has been cut short since it was listed.
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
            raise InputError(f"{self.tar} is cut short at {self.stem}: download it again.")
        return image, text


def members(directory: Path) -> list[Member]:
    """All samples of all tars of ``directory``, by tar and name.

    Raises:
        InputError: There are no tars, one is damaged, or an image has no json or the other way round.
    """
    tars = sorted(directory.glob("*.tar")) if directory.is_dir() else []
    if not tars:
        raise InputError(f"{directory} holds no *.tar files: put SA-1B's shards there or correct the path.")
    return [member for tar in tars for member in _members(tar)]


def _members(path: Path) -> list[Member]:
    places: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                name = Path(info.name)
                if info.isfile() and name.suffix in (".jpg", ".json"):
                    places.setdefault(name.stem, {})[name.suffix] = (info.offset_data, info.size)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} is no readable tar ({error}): download it again.") from None
    for stem, found in places.items():
        if len(found) != 2:
            raise InputError(f"{path}: {stem}{next(iter(found))} has no companion: download the tar again.")
    return [Member(path, stem, *places[stem][".jpg"], *places[stem][".json"]) for stem in sorted(places)]

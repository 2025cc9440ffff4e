"""A registered version as a folder that is ready to be pushed to a model hub."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.core.errors import InputError
from pipeline.promote import about
from pipeline.promote.download import download_all

_LARGE = ("*.bin", "*.engine", "*.onnx", "*.parquet", "*.safetensors")
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LARGE)
"""Files that Git LFS stores."""


def hf(model: str, directory: Path) -> str:
    """Write a version as a repository of the Hugging Face Hub.

    Args:
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        directory: Folder to create.

    Returns:
        A summary with the command that pushes the folder.

    Raises:
        InputError: The folder is not empty, there is no such version, it was registered by an earlier release, or
            MLflow cannot be reached.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} is not an empty folder: give another, or remove what is in it.")
    with TemporaryDirectory() as scratch:
        parts = download_all(model, scratch)
        if parts.about is None:
            raise InputError(f"{model} has no model card: register it again with this release.")
        draft = directory.with_name(f".{directory.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(parts.about, draft)
        shutil.copytree(parts.engine, draft / "engine")
        (draft / ".gitattributes").write_text(ATTRIBUTES)
        if directory.exists():
            directory.rmdir()
        draft.rename(directory)
    files = sum(path.is_file() for path in directory.rglob("*"))
    return (
        f"{directory}: {files} files of {model}, described in {directory / about.README}\n"
        f"push it with: hf upload USER/NAME {directory}"
    )

"""JSON of bounded size and depth, without duplicate keys, and the bounds of its numbers.

NaN and Infinity, which Python's parser takes, are refused by the types of the records, whose errors name the record.
"""

import json
import re
import reprlib
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.core.errors import InputError
from pipeline.core.untrusted.regular_file import read_bytes

LARGEST = 4 << 30
"""Bytes of a file; LVIS's training annotations have 1.1 GB."""
DEEPEST = 64
"""Levels of nested lists and objects."""
LARGEST_INTEGER = (1 << 63) - 1
FARTHEST = 1_000_000
"""Largest absolute coordinate in pixels."""
LONGEST_SIDE = 16_384
"""Largest height and width of an image or mask in pixels; pycocotools counts the pixels of a mask in 32 bits."""

Id = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
Coordinate = Annotated[float, Field(ge=-FARTHEST, le=FARTHEST, allow_inf_nan=False)]
Extent = Annotated[float, Field(ge=0, le=FARTHEST, allow_inf_nan=False)]
"""Width or height of a box in pixels."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = dict(zip(b"[]{}", (1, -1, 1, -1), strict=True))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_JSON_NAMES = {
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "list_type": "Input should be a valid array",
    "tuple_type": "Input should be a valid array",
}
"""Faults that pydantic words for Python's types."""

ModelT = TypeVar("ModelT")


def load(path: Path, limit: int = LARGEST, *, remedy: str = "Correct it.") -> Any:
    """Read a JSON file without checking what it says.

    Args:
        path: The file.
        limit: Largest accepted size in bytes.
        remedy: Sentence that ends an error.

    Raises:
        MissingFileError: There is no such file.
        InputError: It is not a regular file, is too large, or is not JSON within the bounds.
    """
    return parse(read_bytes(path, limit, remedy=remedy), str(path), remedy=remedy)


def parse(data: bytes, name: str, *, remedy: str = "Correct it.") -> Any:
    """`load` for bytes; ``name`` names them in errors.

    Raises:
        InputError: They are not JSON within the bounds.
    """
    # The depth comes first: a parser's own limit is that of the interpreter's stack.
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > DEEPEST:
        raise InputError(f"{name} is nested more than {DEEPEST} levels deep. {remedy}")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is not JSON (half of a surrogate pair). {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON ({error}). {remedy}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {shown(repeated)} occurs twice in an object")
    return value


def validated(value: Any, model: type[ModelT] | Any, name: str, *, remedy: str = "Correct it.") -> Any:
    """Validate a value of `load` with a pydantic model or type.

    Raises:
        InputError: It does not match; the message names the first fault and its record.
    """
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InputError(f"{name}: {fault_of(error)} {remedy}") from None


def fault_of(error: ValidationError) -> str:
    """The first fault of a validation in one sentence."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "the top level"
    what = _JSON_NAMES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    more = f", and {error.error_count() - 1} more faults" if error.error_count() > 1 else ""
    return f"{where}: {what}, not {shown(fault['input'])}{more}."


class _Short(reprlib.Repr):
    """Repr of any JSON value: bounded in length and depth, and able to show integers of any size."""

    def repr_int(self, value: int, level: int) -> str:
        return f"an integer of {value.bit_length()} bits" if value.bit_length() > 128 else repr(value)


def shown(value: Any) -> str:
    """A value in an error, at most 60 characters."""
    short = _Short()
    short.maxstring = short.maxother = 60
    text = short.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

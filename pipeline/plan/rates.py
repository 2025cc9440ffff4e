"""The table of rates, ``rates.yaml``, and a record of those that a plan used."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

_FILE = Path(__file__).with_name("rates.yaml")


class Rate(BaseModel):
    """A speed, and how it is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Annotated[float, Field(gt=0)]
    unit: str
    hardware: str
    """The processor or GPU."""
    source: Literal["measured", "published", "estimate"]
    origin: str
    """The command, the publication, or what the estimate is derived from."""


class Sa1bSize(BaseModel):
    """Extent of SA-1B as it is published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int
    tars: int
    bytes: int


class SetSize(BaseModel):
    """Extent of a validation set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int
    instances: int
    bytes: int


class Table(BaseModel):
    """Content of ``rates.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sa1b: Sa1bSize
    sets: dict[str, SetSize]
    image_bytes: int
    rates: dict[str, Rate]


@cache
def table() -> Table:
    """The table, read once."""
    return Table.model_validate(yaml.safe_load(_FILE.read_text()))


class Used:
    """Rates by name, with a record of those that were asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str) -> float:
        """The value of a rate.

        Raises:
            KeyError: There is none of this name.
        """
        value = table().rates[name].value
        if name not in self.names:
            self.names.append(name)
        return value

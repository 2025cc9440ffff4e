"""A registered model as the server takes it, from a real MLflow store."""

import pytest

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.promote.source import Registered
from pipeline.serve.source import Source
from pipeline.tracking import Store
from tests.predict.test_registered import registered  # noqa: F401 - a fixture


def test_an_alias_follows_its_version_and_gives_its_artifact(registered, tmp_path):  # noqa: F811
    source = Registered("models:/m@champion")
    assert isinstance(source, Source)
    assert source.version() == "1"
    fetched = source.fetch("1", tmp_path / "fetched")
    assert Card.read(fetched).digest == Card.read(registered / "checkpoint").digest
    Store.open().client.delete_registered_model_alias("m", "champion")
    with pytest.raises(InputError, match="has no models:/m@champion"):
        source.version()
    assert Registered("models:/m/1").version() == "1"
    with pytest.raises(InputError, match="is not a registered model"):
        Registered("models:/m")

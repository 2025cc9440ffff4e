"""The data set that a stage reads, as MLflow's dataset input of its run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from pipeline.core.artifact import read_metrics
from pipeline.core.stage import Keys, Stage

DATASET = "prepare"
"""The stage whose artifact is the data set."""
CONTEXTS: Mapping[str, str] = {
    "embed": "training",
    "distill": "training",
    "align": "training",
    "quantize": "calibration",
    "build_engine": "calibration",
    "evaluate_teacher": "validation",
    "evaluate": "validation",
    "compare": "validation",
}
"""What stages use the data set for, in MLflow's words."""
_LONGEST_DIGEST = 36


def log_dataset(
    client: MlflowClient,
    run: str,
    stage: Stage,
    params: Mapping[str, Any],
    keys: Keys,
    parents: Mapping[str, str],
) -> None:
    """Log the data set that one repetition reads; nothing where it reads none.

    Its name and source are those of ``prepare.data`` in params.yaml, its digest that of the artifact `prepare` made of
    it, its profile the counts of images and instances.

    Args:
        client: Of the store.
        run: The run's id.
        stage: The stage that reads.
        params: All of params.yaml.
        keys: Of the repetition.
        parents: Digests of the artifacts that it reads, by stage.
    """
    source = next((dep for dep in stage.deps if dep.name == DATASET), None)
    if source is None or DATASET not in parents:
        return
    place, settings = source.path(keys), source.settings(params, keys)
    data = str(settings.get("data", place)) if isinstance(settings, Mapping) else str(place)
    dataset = Dataset(
        Path(data).stem,
        parents[DATASET][:_LONGEST_DIGEST],
        "local",
        json.dumps({"uri": data}),
        profile=json.dumps(read_metrics(place)),
    )
    context = InputTag("mlflow.data.context", CONTEXTS[stage.name])
    client.log_inputs(run, datasets=[DatasetInput(dataset, tags=[context])])

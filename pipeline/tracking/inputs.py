"""Logging of a stage's data set as an MLflow dataset input."""

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
"""Stage name to MLflow's dataset context."""
_LONGEST_DIGEST = 36


def log_dataset(
    client: MlflowClient,
    run: str,
    stage: Stage,
    params: Mapping[str, Any],
    keys: Keys,
    parents: Mapping[str, str],
) -> None:
    """Log the data set that a repetition of a stage reads, if any.

    Its name and source come from ``prepare.data`` in params.yaml, its digest from the artifact of `prepare`. Its
    profile is the counts of images and instances.

    Args:
        client: MLflow client.
        run: Run id.
        stage: Stage that reads it.
        params: All of params.yaml.
        keys: Keys of the repetition.
        parents: Digests of the artifacts it reads, by stage.
    """
    source = next((dep for dep in stage.deps if dep.name == DATASET), None)
    if source is None or DATASET not in parents:
        return
    directory, settings = source.path(keys), source.settings(params, keys)
    data = str(settings.get("data", directory)) if isinstance(settings, Mapping) else str(directory)
    dataset = Dataset(
        Path(data).stem,
        parents[DATASET][:_LONGEST_DIGEST],
        "local",
        json.dumps({"uri": data}),
        profile=json.dumps(read_metrics(directory)),
    )
    context = InputTag("mlflow.data.context", CONTEXTS[stage.name])
    client.log_inputs(run, datasets=[DatasetInput(dataset, tags=[context])])

"""The commands of ``python -m pipeline``: each is a typed function, read by typer.

Nothing heavy is imported before a command runs: DVC starts one process for each stage, and people ask for help.
"""

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from pipeline import __version__
from pipeline.bench.ablations.settings import QuantizationSettings, RecipesSettings
from pipeline.bench.settings import Settings, SubjectName
from pipeline.cli import registry_commands
from pipeline.cli.stage_commands import command_of, help_of
from pipeline.core import preflight
from pipeline.core.bundled import directory_of
from pipeline.core.command_line import DEBUG_OPTION, PLAIN, Json, Numbers, numbers, with_options_of
from pipeline.core.config import read_params
from pipeline.core.dvc_files import dvc_yaml
from pipeline.core.failures import guarded
from pipeline.core.stage import refuse_unknown_sections
from pipeline.serve.settings import ServeSettings
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.core.params import Section

Function = Callable[..., Any]


app = typer.Typer(
    help="Turn a Segment Anything teacher into small, fast, quantized, registered students.",
    epilog="Parameters are read from params.yaml. `dvc repro` runs every stage that is not up to date; "
    "`python -m flows.release` does so as a Prefect flow.",
    no_args_is_help=True,
    **PLAIN,
)
ablations = typer.Typer(
    help="What each choice of a recipe or of a quantization is worth, all else equal.", no_args_is_help=True, **PLAIN
)
publishing = typer.Typer(
    help="Write a registered version as a folder that is ready to be pushed.", no_args_is_help=True, **PLAIN
)


@publishing.callback()
def _publishing() -> None: ...


def command(function: Function, *, of: typer.Typer = app, name: str = "") -> Function:
    """Register a command that returns the text to print."""
    name = name or function.__name__

    @wraps(function)
    def run(**arguments: Any) -> int:
        def printed() -> int:
            typer.echo(function(**arguments))
            return 0

        return guarded(printed, name)

    of.command(name)(run)
    return function


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"sam-distillery {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool, Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, DEBUG_OPTION] = False,
) -> None: ...


for _stage in STAGES:
    app.command(_stage.name, help=help_of(_stage))(command_of(_stage))


@command
def preset(
    name: Annotated[str, Argument(metavar="NAME", help="A file of presets/, without .yaml.")],
    changes: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Values to change: build_engine.engine=onnxruntime")
    ] = None,
) -> str:
    """Make presets/NAME.yaml the active params.yaml.

    Example: python -m pipeline preset demo quantize.method=onnxruntime
    """
    from pipeline.core.params import check
    from pipeline.core.presets import activate

    def checked(values: Mapping[str, Any], names: set[str]) -> None:
        refuse_unknown_sections(STAGES, values)
        check(_sections(names), values)

    return activate(name, changes or (), checked)


@command
def params(
    schema: Annotated[bool, Option("--schema", help="Print the JSON schema of params.yaml instead.")] = False,
    as_json: Json = False,
) -> str:
    """Print every parameter as the stages see it, and whether it is from params.yaml or a default."""
    from pipeline.core import params

    if schema:
        return params.schema(_sections())
    values = read_params()
    refuse_unknown_sections(STAGES, values)
    resolved = params.resolve(_sections(), values)
    return params.as_json(resolved) if as_json else params.as_text(resolved)


def _sections(names: Collection[str] = ()) -> "list[Section]":
    """The sections of params.yaml, or those of these names: each imports the code that reads it."""
    from pipeline.core.params import Section, sections

    stages = [stage for stage in STAGES if not names or (stage.section or stage.name).partition(".")[0] in names]
    if names and "promote" not in names:
        return sections(stages)
    from pipeline.ops.gate import PromoteConfig

    return sections(stages, [Section("promote", PromoteConfig)])


@command
def dvc() -> str:
    """Print dvc.yaml as the stages declare it."""
    return dvc_yaml(STAGES).removesuffix("\n")


@command
def versions() -> str:
    """Print deps/versions.yaml: the locked versions of libraries that decide results."""
    from pipeline import stages

    return stages.versions()


@command
def links() -> str:
    """Write deps/models/: links to each model's code, for dvc.yaml."""
    from pipeline.models.students import link

    return link()


@command
def record(as_json: Json = False) -> str:
    """Give every artifact its MLflow run, also those that DVC restored from its cache."""
    preflight.check_registry()
    from pipeline.tracking import record_all

    runs = dict(record_all(STAGES, read_params()))
    if as_json:
        return json.dumps(runs, indent=1)
    return "\n".join(f"{target:<50} {run}" for target, run in runs.items()) or "there is no artifact: run `dvc repro`"


@command
def train_teacher(
    data: Annotated[Path, Argument(help="Folder of photographs: images/ and instances.json, in COCO format.")],
    cutouts: Annotated[Path | None, Option(help="Folder of PNG files whose alpha channel is an object's mask.")] = None,
    textures: Annotated[list[Path] | None, Option(help="Folder of JPEG files without masks; may be repeated.")] = None,
    imagenet: Annotated[
        Path | None, Option(help="EfficientNet-Lite0's weights, a .pth file. [default: the installed package's]")
    ] = None,
    start: Annotated[Path | None, Option(help="Weights of a bundled teacher to start from.")] = None,
    steps: Annotated[int | None, Option(help="Steps in all. [default: the recipe's]")] = None,
    cooldown_steps: Annotated[int | None, Option(help="Steps of the cool-down. [default: the recipe's]")] = None,
    device: Annotated[str, Option(help="As torch names it.")] = "cpu",
    install: Annotated[bool, Option("--install", help="Replace the bundled weights by the new ones.")] = False,
) -> str:
    """Train the bundled teacher by its recipe, pipeline/train_teacher/recipe.yaml.

    An interrupted training resumes from its checkpoint, also with other numbers of steps. Accuracy on held-out
    photographs and scenes is appended to artifacts/train_teacher/log.jsonl.

    Example: python -m pipeline train_teacher ../shared/data/coco_free --textures photographs --steps 20000
    """
    from pipeline.train_teacher import train_teacher as train

    return train(
        data,
        cutouts=cutouts,
        textures=textures or [],
        imagenet=imagenet,
        start=start,
        device=device,
        install=install,
        changes={k: v for k, v in {"steps": steps, "cooldown_steps": cooldown_steps}.items() if v is not None},
    )


@command
def compose(
    data: Annotated[Path, Argument(help="Folder of photographs: images/ and instances.json, in COCO format.")],
    out: Annotated[Path, Argument(help="Directory to create.")],
    count: Annotated[int, Option(min=1, help="Number of images.")] = 2000,
    cutouts: Annotated[Path | None, Option(help="Folder of PNG files whose alpha channel is an object's mask.")] = None,
    textures: Annotated[list[Path] | None, Option(help="Folder of JPEG files without masks; may be repeated.")] = None,
    seed: Annotated[int, Option(help="Seed of all randomness.")] = 0,
) -> str:
    """Write images composed as train_teacher does, with masks in COCO format, to distill students from.

    Preset bundled_students reads them.

    Example: python -m pipeline compose ../shared/data/coco_free data/composed --count 2000
    """
    from pipeline.train_teacher.composed import write_composed

    return write_composed(data, out, count, cutouts=cutouts, textures=textures or [], seed=seed)


@command
def bundle(
    checkpoint: Annotated[Path, Argument(metavar="DIR", help="A student's checkpoint: artifacts/align/STUDENT.")],
    data: Annotated[Path, Argument(metavar="DATA", help="The photographs of train_teacher, 40 of which are measured.")],
    params: Annotated[Path, Option(help="The parameters it was trained with.")] = Path("params.yaml"),
) -> str:
    """Replace a bundled student by the image encoder of a checkpoint.

    Its decoder must be the bundled teacher's, as preset bundled_students trains it. Held-out accuracy is written beside
    the weights, in pipeline/teacher/STUDENT/.

    Example: python -m pipeline bundle artifacts/align/tinysam_nano ../shared/data/coco_free
    """
    from pipeline.train_teacher.students import bundle as run

    return run(checkpoint, data, params)


@command
@with_options_of(Settings, "settings")
def bench(
    subject: Annotated[Literal[SubjectName, "serve"], Argument(help="What to measure.")],
    settings: Settings,
    as_json: Json = False,
) -> str:
    """Time models side by side: runtimes, precisions and students in one run.

    attention: dense and dilated, by segment and interval. encoder: latency of one image. decoder: milliseconds per
    prompt, segment_anything's and ours. training: one step of distillation beside a bare loop. loading: images per
    second that one core prepares for each recipe. evaluate: milliseconds per instance, the published evaluation and
    ours. everything: all masks of one image, segment_anything's generator and ours.

    The first row is the baseline of the column speedup. Rows are measured in turns, after warm-up, while the machine is
    quiet; docs/benchmarks.md explains the columns.

    Example: python -m pipeline bench encoder --students efficientvit_sam_l0 --precisions fp32,int8
    """
    from pipeline.bench.side_by_side import SUBJECTS, compare

    subjects = SUBJECTS
    if subject == "serve":  # what it measures is above the other subjects
        from pipeline.serve.load import SUBJECT

        subjects = {subject: SUBJECT}
    report = compare(subject, settings, subjects)
    return report.json() if as_json else report.text()


@partial(command, of=ablations)
@with_options_of(RecipesSettings, "settings")
def recipes(settings: RecipesSettings, as_json: Json = False) -> str:
    """Train students by several distillation recipes, and compare box and one-click mIoU.

    Needs `dvc repro embed`. Trains by section distill.STUDENT of params.yaml, with another recipe, steps and seed;
    ema_decay stays, and suits few steps only if it is low. Measures on the validation split, before alignment.
    """
    from pipeline.bench.ablations.recipes import recipes as measure
    from pipeline.bench.ablations.recipes import table

    rows = measure(settings)
    return json.dumps(rows, indent=1) if as_json else table(rows)


@partial(command, of=ablations)
@with_options_of(QuantizationSettings, "settings")
def quantization(settings: QuantizationSettings, as_json: Json = False) -> str:
    """Quantize students by several methods and widths, and compare box and one-click mIoU.

    Needs `dvc repro align`. Simulates the encoder's quantization by section quantize of params.yaml, with another
    method, calibration and seed. Measures on the validation split.

    Example: python -m pipeline ablations quantization --students tinysam_nano --methods max,search --widths w6a6
    """
    from pipeline.bench.ablations.quantization import quantization as measure
    from pipeline.bench.ablations.quantization import table

    rows = measure(settings)
    return json.dumps(rows, indent=1) if as_json else table(rows)


app.add_typer(ablations, name="ablations")


@command
def score(
    gt: Annotated[Path, Option(metavar="JSON", help="Annotations in COCO's or LVIS's format.")],
    results: Annotated[Path, Option(metavar="JSON", help="Detections in COCO's results format.")],
    iou_type: Annotated[Literal["segm", "bbox"], Option(help="Match masks or boxes.")],
    lvis: Annotated[
        bool, Option("--lvis", help="LVIS's rules: 300 detections; rare, common and frequent categories.")
    ] = False,
) -> str:
    """Print the average precision of a results file as JSON.

    COCO's twelve figures or LVIS's thirteen, to six digits; -1 where there is nothing to find.

    Example: python -m pipeline score --gt instances_val2017.json --results detections.json --iou-type segm
    """
    from pipeline.evaluate.average_precision import score as average_precision

    return average_precision(gt=gt, results=results, iou_type=iou_type, lvis=lvis)


@command
def verify(
    directory: Annotated[Path, Argument(metavar="DIR", help="An engine: artifacts/build_engine/STUDENT/int8.")],
    against: Annotated[
        Path | None,
        Option(metavar="DIR", help="The fp32 engine of the same student, to time beside; default: DIR/../fp32."),
    ] = None,
    device: Annotated[str | None, Option(help="As torch names it; default: the engine's own.")] = None,
    threads: Annotated[int | None, Option(min=1, help="Processor threads; default: the runtime's choice.")] = None,
    as_json: Json = False,
) -> str:
    """Repeat an engine's self-check on this machine.

    Prints the cosine of embeddings and the IoU of masks to the student in fp32, the processor's instructions, library
    versions, and whether the lower precision is faster here. Exits with 1 if the engine misses the gate it was built
    under.

    Example: python -m pipeline verify artifacts/build_engine/tinysam_nano/int8
    """
    from pipeline.verify import verify as check

    return check(directory=directory, against=against, device=device, threads=threads, as_json=as_json)


@command
def doctor(as_json: Json = False) -> str:
    """Examine this machine: processor, memory, disk, GPUs, libraries, presets that fit, servers.

    One line per check with ok, warning or fault, and the remedy. Exits with 1 on a fault. Add its output to a report of
    a problem.
    """
    from pipeline.doctor import doctor as examine

    return examine(as_json=as_json)


@command
def plan(
    preset: Annotated[
        str | None, Option(metavar="NAME", help="A file of presets/, without .yaml. [default: params.yaml]")
    ] = None,
    gpus: Annotated[Numbers, numbers("Numbers of GPUs, a column each.")] = Numbers((1, 8)),  # noqa: B008
    cores: Annotated[int | None, Option(min=1, help="Processor cores. [default: 12 per GPU]")] = None,
    images: Annotated[
        int | None, Option(min=1, help="Images. [default: one tar, 1 % and 100 % of SA-1B, or the source's own]")
    ] = None,
    fit: Annotated[bool, Option("--fit", help="List all presets, and what each lacks on this machine.")] = False,
    as_json: Json = False,
) -> str:
    """Estimate time and disk of each stage, and say what this machine's disks lack.

    Disk follows from the files' formats; time from the parameters and a table of rates, of which each says whether it
    was measured, published by others, or is an estimate.

    Example: python -m pipeline plan --preset tinysam_sa1b --gpus 1,8
    """
    from pipeline.plan import plan as estimate

    return estimate(preset=preset, gpus=gpus, cores=cores, images=images, fit=fit, as_json=as_json)


@command
def export_triton(
    model: Annotated[
        Path, Argument(metavar="MODEL", help="An ONNX artifact, or an engine for ONNX Runtime or TensorRT.")
    ],
    out: Annotated[Path, Argument(metavar="REPOSITORY", help="Folder of Triton's models; created if it is new.")],
    name: Annotated[str | None, Option(help="Name of the ensemble. [default: STUDENT_PRECISION]")] = None,
    max_batch: Annotated[int, Option(min=1, help="Images that the encoder takes at once.")] = 8,
    max_queue_delay_us: Annotated[int, Option(min=0, help="Microseconds that an image waits for others.")] = 2000,
    instances: Annotated[int, Option(min=1, help="Copies of each part on each GPU.")] = 1,
) -> str:
    """Add a model to a repository of NVIDIA's Triton Inference Server: encoder, decoder and their ensemble.

    Example: python -m pipeline export_triton artifacts/quantize/tinysam_nano/int8 triton
    """
    from pipeline.export_triton import RepositoryOptions
    from pipeline.export_triton import export_triton as export

    options = RepositoryOptions(
        name=name, max_batch=max_batch, max_queue_delay_us=max_queue_delay_us, instances=instances
    )
    return "\n".join(map(str, export(model, out, options)))


@command
def predict(
    model: Annotated[
        str,
        Argument(metavar="MODEL", help="Checkpoint, ONNX or engine artifact; models:/NAME@ALIAS; or bundled:MODEL."),
    ],
    images: Annotated[
        Path, Argument(metavar="IMAGES", help="A folder, an image, or a text file with one image path per line.")
    ],
    out: Annotated[Path, Option(metavar="DIR", help="Folder of results: new, empty, or of an earlier prediction.")],
    boxes: Annotated[Path | None, Option(metavar="JSON", help="A detector's boxes, one mask each.")] = None,
    points: Annotated[Path | None, Option(metavar="JSON", help="Points, one mask per entry.")] = None,
    everything: Annotated[bool, Option("--everything", help="All masks of each image; the default.")] = False,
    annotations: Annotated[
        Path | None, Option(metavar="JSON", help="COCO json that names the image ids of --boxes or --points.")
    ] = None,
    format: Annotated[Literal["coco", "png", "yolo"], Option(help="What to write.")] = "coco",
    overlays: Annotated[bool, Option("--overlays", help="Also write the images with coloured masks.")] = False,
    min_score: Annotated[
        float | None,
        Option(help="Least score of a box; for points and everything, least predicted IoU (everything: 0.88)."),
    ] = None,
    device: Annotated[str, Option(help="As torch names it; auto: a GPU for checkpoints if there is one.")] = "auto",
    threads: Annotated[int | None, Option(min=1, help="Processor threads; default: the runtime's choice.")] = None,
    as_json: Json = False,
) -> str:
    """Segment images: masks for a detector's boxes, for points, or of everything.

    Writes COCO json, label maps (16-bit PNG) or YOLO segmentation labels. An interrupted run resumes when repeated.
    Images that cannot be used are skipped, and the command exits with 2.

    Example: python -m pipeline predict artifacts/align/tinysam_nano photos --boxes detections.json --out predictions
    """
    from contextlib import AbstractContextManager, nullcontext

    from pipeline.predict import Options, summary
    from pipeline.predict import predict as run

    options = Options(
        boxes=boxes,
        points=points,
        everything=everything,
        annotations=annotations,
        format=format,
        overlays=overlays,
        min_score=min_score,
        device=device,
        threads=threads,
    )
    source: AbstractContextManager[Path] = nullcontext(directory_of(model))
    if model.startswith("models:/"):
        from pipeline.promote.download import downloaded

        source = downloaded(model)
    with source as directory:
        result = run(model=directory, images=images, out=out, options=options)
    return json.dumps(result, indent=1) if as_json else summary(out, result)


@command
@with_options_of(ServeSettings, "settings")
def serve(
    model: Annotated[
        str, Option(metavar="MODEL", help="Checkpoint, ONNX or engine artifact; models:/NAME@ALIAS; or bundled:MODEL.")
    ],
    settings: ServeSettings,
) -> str:
    """Serve a model over HTTP, with a page to try it at /.

    Embeddings of images stay in memory under an id. A models:/NAME@ALIAS is followed: a new version is taken up without
    a restart if it passes its self-check.

    Example: python -m pipeline serve --model bundled:bundled_v2
    """
    from pipeline.serve.server import serve as run
    from pipeline.serve.source import Artifact, Source

    source: Source = Artifact(directory_of(model))
    if model.startswith("models:/"):
        from pipeline.promote.source import Registered

        source = Registered(model)
    return run(source, settings)


for _function in registry_commands.COMMANDS:
    command(_function)
command(registry_commands.hf, of=publishing)
app.add_typer(publishing, name="publish")

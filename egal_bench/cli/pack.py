"""`egal-bench pack`: its flags, and those of each source, which derive from the signature of the source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer import Option as Flag

from egal_bench.cli.flags import command_of, own_parameters
from egal_bench.cli.output import Json, counted_noun, print_json
from egal_bench.errors import BenchError, unknown


def pack(
    source: Annotated[str, typer.Argument(help="what INPUT is: `egal-bench list sources`")],
    input: Annotated[
        str,
        typer.Argument(
            help="folder of the data; wds: or tars, as files or {000..009}.tar; coco: ANNOTATIONS.json IMAGES; "
            "phantom: brain or chest"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="folder of the shard set, new or empty")],
    size: Annotated[int, Flag(help="pixels per side of the packed images")] = 224,
    channels: Annotated[int | None, Flag(help="1 (grey) or 3 (RGB); none: what the source says, else 1")] = None,
    dtype: Annotated[
        Literal["uint8", "uint16"], Flag(help="type of the packed pixels; uint16 goes with npy, or with grey png")
    ] = "uint8",
    resize: Annotated[
        Literal["letterbox", "squash"], Flag(help="keep the aspect and pad with 0, or stretch")
    ] = "letterbox",
    shard_mb: Annotated[float, Flag(help="largest size of a shard, MB (10^6 bytes)")] = 64,
    image_format: Annotated[Literal["npy", "png", "jpg"], Flag(help="npy reads fastest; jpg is lossy")] = "npy",
    test: Annotated[float, Flag(help="share of the samples in the test set, above 0 and below 1")] = 0.3,
    seed: Annotated[int, Flag(help="seed of the split, and of the phantom's images")] = 0,
    only_class: Annotated[
        list[str] | None, Flag(help="pack only this class; repeat the flag to pack several classes", metavar="NAME")
    ] = None,
    drop_class: Annotated[
        list[str] | None, Flag(help="leave this class out; repeat the flag to leave out several", metavar="NAME")
    ] = None,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Pack annotated images into a shard set. `egal-bench pack SOURCE --help` adds the flags of that source."""
    import egal_shards
    from egal_shards.sources import SOURCES

    make = SOURCES[source].load()
    accepted = inspect.signature(make).parameters
    shared = {k: v for k, v in {"size": size, "test": test, "seed": seed}.items() if k in accepted}
    data = make(input, **shared, **flags).of_classes(only_class or (), drop_class or ())
    if channels is None:
        channels = data.channels or 1
    manifest = egal_shards.pack(
        data, out, size=size, channels=channels, dtype=dtype, resize=resize, shard_mb=shard_mb,
        image_format=image_format, split=egal_shards.Split(test=test, seed=seed),
    )  # fmt: skip
    counts, shards = manifest.counts, manifest.shards
    sides = ", ".join(f"{n} {side}" for side, n in counts.splits.items())
    samples, files = counted_noun(counts.samples, "sample"), counted_noun(len(shards), "shard")
    labels = f"of {len(manifest.classes)} classes" if manifest.classes else "without labels"
    print(f"{out}: {samples} ({sides}) {labels} in {files}")
    if as_json:
        size_of_all = sum(shard.bytes for shard in shards)
        print_json({"samples": counts.samples, "shards": len(shards), "bytes": size_of_all, "ok": True})


def pack_command(words: Sequence[str]) -> Callable[..., None]:
    """Return `pack` with the flags of the source that these words of the command line name."""
    from egal_shards.sources import SOURCES

    source = next((word for word in words if word in SOURCES), None)
    if source is None and words and not words[0].startswith("-"):
        raise unknown("source", words[0], SOURCES)
    parameters = own_parameters(pack)
    parse: dict[str, Callable[[str], Any]] = {}
    if source:
        parse = _add_source_flags(parameters, source)
    _check_known(words, parameters, source)

    def checked_pack(**values: Any) -> None:
        if values["source"] != source:
            raise BenchError(f"SOURCE comes first: egal-bench pack {values['source']} …")
        arguments = {name: value for name, value in values.items() if value is not None}
        pack(**{name: parse[name](value) if name in parse else value for name, value in arguments.items()})

    checked_pack.__doc__ = pack.__doc__
    return command_of(checked_pack, parameters)


def _add_source_flags(parameters: list[inspect.Parameter], source: str) -> dict[str, Callable[[str], Any]]:
    """Add a flag for each annotated parameter of `source`; return what turns each flag's text into its value."""
    from egal_shards.sources import SOURCES

    make = SOURCES[source].load()
    parse: dict[str, Callable[[str], Any]] = {}
    for name, hint in get_type_hints(make, include_extras=True).items():
        if get_origin(hint) is Annotated:
            default = inspect.signature(make).parameters[name].default
            text = f"{source}: {hint.__metadata__[0]}  [default: {_written(default)}]"
            parameter, parse[name] = _flag(name, hint.__origin__, text)
            parameters.append(parameter)
        elif Sequence[str | Path] in get_args(hint):  # the source takes several paths, so INPUT may be several words
            index = [parameter.name for parameter in parameters].index("input")
            several = Annotated[list[str], *parameters[index].annotation.__metadata__]
            parameters[index] = parameters[index].replace(annotation=several)
    return parse


def _check_known(words: Sequence[str], parameters: Sequence[inspect.Parameter], source: str | None) -> None:
    """Raise BenchError for a flag among `words` that neither `pack` nor the source has."""
    flags = {f"--{parameter.name.replace('_', '-')}" for parameter in parameters} | {"--json", "--help"}
    for flag in (word.split("=")[0] for word in words if word.startswith("--")):
        if flag not in flags:
            raise BenchError(f"{flag} is not a flag of pack {source or 'SOURCE'}: leave it out")


def _flag(name: str, hint: Any, text: str) -> tuple[inspect.Parameter, Callable[[Any], Any]]:
    """Return the flag for a parameter of type `hint`, and what turns the flag's value into the parameter's."""
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)

    def parameter(kind: Any) -> inspect.Parameter:
        annotation = Annotated[kind, Flag(help=text)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    if Sequence[str] in kinds:
        return parameter(str | None), lambda value: tuple(part.strip() for part in value.split(","))
    if tuple[float, float] in kinds:
        return parameter(str | None), lambda value: _pair(name, value)
    return parameter(kinds[0] | None), lambda value: value


def _pair(name: str, text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise BenchError(f"--{name} {text!r} is not LOW,HIGH, two numbers") from None
    return low, high


def _written(default: Any) -> str:
    if default is None:
        return "none"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)

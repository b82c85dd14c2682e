"""The networks of a bundle as ONNX, TorchScript or PT2, compared with it before they stay.

Each file is run by its own runtime, on inputs that it was not traced with, for one volume and for
three at once; files appear only if all of them agree.
"""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvae3d import __version__
from medvae3d.apps.bundle import Bundle
from medvae3d.apps.exported_parts import Part, parts_of
from medvae3d.data.intensity import IntensityChannels
from medvae3d.data.locks import missing, remove_empty
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import BundleError, OutputError, SettingError
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.numerics import at_least_float32
from medvae3d.synthesis.records import plain

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts", "pt2": ".pt2"}
OPSET = 18
"""What torch's exporter writes by itself, so that no operator is converted down."""
TOLERANCE = 1e-4
# Batches that the exported file is compared on; it was traced with two.
BATCHES = (1, 3)

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def export_model(
    bundle: Bundle,
    out: str | os.PathLike[str],
    format: str | None = None,
    *,
    decoder_only: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Writes the decoder of a bundle, its other parts beside it, and what is to be known of them.

    Args:
        bundle: A bundle on the CPU.
        out: File of the decoder, such as ``lung.onnx``; others are ``lung_encoder.onnx`` and so
            on, and ``lung.json`` describes them.
        format: ``onnx``, ``torchscript`` or ``pt2``; told from the ending if not given.
        decoder_only: Whether to leave the encoder out, and of a two-stage bundle its first stage.
        progress: Called before each part with its index, the number of parts and its name.

    Returns:
        What the JSON file says.

    Raises:
        SettingError: If the format is unknown, or what writes or runs it is not installed.
        OutputError: If a file exists already, or cannot be written.
        BundleError: If a part gives other numbers than the original.
    """
    out = Path(out)
    format = _format_of(out, format)
    _require_installed(format)
    parts = parts_of(bundle.network, bundle.recipe.spatial_shape, name=bundle.name)
    parts = parts[:1] if decoder_only else parts
    files = {part.name: _place(out, part.name) for part in parts}
    about = out.with_suffix(".json")
    _require_free([*files.values(), about])
    made: list[tuple[Path, Path]] = []
    described = {}
    folders = missing(out.parent)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for index, part in enumerate(parts):
            if progress is not None:
                progress(index, len(parts), part.name)
            place = files[part.name]
            # With its ending: the runtimes look at it.
            staged = place.with_name(f".{os.getpid()}.{place.name}")
            made.append((staged, place))
            with _quiet(), torch.no_grad():
                WRITERS[format](part, staged)
                error = _compared(part, RUNNERS[format](staged), place)
            described[part.name] = {
                "file": place.name,
                "inputs": {name: ["batch", *shape[1:]] for name, shape in part.inputs.items()},
                "outputs": list(part.outputs),
                "largest_difference": error,
            }
        facts = _facts(bundle, format, described)
        for staged, place in made:
            os.replace(staged, place)
        write_bytes(about, json.dumps(facts, indent=1).encode() + b"\n")
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{out} cannot be written: {error.strerror or error}. Choose a folder with room that "
            f"you may write to."
        ) from error
    finally:
        for staged, _ in made:
            staged.unlink(missing_ok=True)
        remove_empty(folders)
    return facts


def _format_of(out: Path, format: str | None) -> str:
    listed = ", ".join(SUFFIXES)
    if format is None:
        found = {suffix: name for name, suffix in SUFFIXES.items()}.get(out.suffix.lower())
        if found is None:
            raise SettingError(
                f"--out is {out}, whose ending is none of {', '.join(SUFFIXES.values())}; name the "
                f"format with --format {listed}."
            )
        return found
    if format not in SUFFIXES:
        raise SettingError(f"--format is {format!r}; allowed are {listed}. Name one of them.")
    if not out.suffix or out.suffix == ".json":
        raise SettingError(
            f"--out is {out}; allowed is a file with an ending, such as model{SUFFIXES[format]}."
        )
    return format


def _require_installed(format: str) -> None:
    if format != "onnx":
        return
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SettingError(
            f"ONNX needs {error.name}, which is not installed; it comes with "
            f"pip install 'medvae3d[export]'. Or use --format pt2, which needs torch alone."
        ) from error


def _place(out: Path, part: str) -> Path:
    return out if part == "decoder" else out.with_name(f"{out.stem}_{part}{out.suffix}")


def _require_free(files: Sequence[Path]) -> None:
    there = [str(file) for file in files if file.exists()]
    if there:
        raise OutputError(
            f"{', '.join(there)} exist already; allowed are new files. Choose another name, or "
            f"remove them."
        )


# -- formats ------------------------------------------------------------------------------------


def _exported(part: Part) -> Any:
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = (tuple({0: batch} for _ in part.inputs),)
    return torch.export.export(part.network, part.example(2), dynamic_shapes=shapes, strict=False)


def _write_onnx(part: Part, path: Path) -> None:
    torch.onnx.export(
        _exported(part),
        (),
        str(path),
        input_names=list(part.inputs),
        output_names=list(part.outputs),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _run_onnx(path: Path) -> Run:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        given = {name: each.numpy() for name, each in zip(names, tensors, strict=True)}
        return [torch.from_numpy(each) for each in session.run(None, given)]

    return run


def _write(path: Path, save: Callable[[io.BytesIO], None]) -> None:
    """Saves to memory first: where a disk is full, torch's own writer ends the process."""
    file = io.BytesIO()
    save(file)
    path.write_bytes(file.getvalue())


def _write_torchscript(part: Part, path: Path) -> None:
    traced: Any = torch.jit.trace(part.network, part.example(2), check_trace=False)
    _write(path, lambda file: torch.jit.save(traced, file))


def _run_torchscript(path: Path) -> Run:
    loaded = torch.jit.load(str(path))
    return lambda tensors: loaded(*tensors)


def _write_pt2(part: Part, path: Path) -> None:
    made = _exported(part)
    _write(path, lambda file: torch.export.save(made, file))


def _run_pt2(path: Path) -> Run:
    loaded = torch.export.load(str(path)).module()
    return lambda tensors: loaded(*tensors)


WRITERS = {"onnx": _write_onnx, "torchscript": _write_torchscript, "pt2": _write_pt2}
RUNNERS = {"onnx": _run_onnx, "torchscript": _run_torchscript, "pt2": _run_pt2}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps exporters from telling of their own workings; what counts is compared afterwards."""
    known = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [each.level for each in known]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in known:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(known, levels, strict=True):
                each.setLevel(level)


# -- checking and describing --------------------------------------------------------------------


def _compared(part: Part, run: Run, place: Path) -> float:
    """The largest difference to the original.

    Raises:
        BundleError: If it is larger than allowed.
    """
    worst = 0.0
    for batch in BATCHES:
        given = part.example(batch, seed=batch)
        wanted, found = part.network(*given), run(given)
        for name, ours, theirs in zip(part.outputs, wanted, found, strict=True):
            is_same = ours.shape == theirs.shape
            ours, theirs = at_least_float32(ours), at_least_float32(theirs)
            off = float((ours - theirs).abs().max()) if is_same else float("inf")
            if not off <= TOLERANCE:
                raise BundleError(
                    f"{place.name}: {name} differs by {off:.2g} from what the bundle gives for "
                    f"{batch} volumes (allowed: {TOLERANCE:g}), so it was not written. Try another "
                    f"--format, and report it with the versions of `medvae3d doctor`."
                )
            worst = max(worst, off)
    return worst


def _facts(bundle: Bundle, format: str, parts: dict[str, Any]) -> dict[str, Any]:
    recipe, network = bundle.recipe, bundle.network
    models: dict[str, Any] = {"": network}
    if isinstance(network, TwoStageModel):
        models = {"": network.texture, "shape_": network.shape}
    statistics = bundle.statistics
    intensities = IntensityChannels(tuple(each.intensity for each in recipe.channels)).to_config()
    limits = zip(statistics.names, statistics.low.tolist(), statistics.high.tolist(), strict=True)
    return {
        "medvae3d": __version__,
        "bundle": f"{bundle.name} {bundle.version}",
        "weights_sha256": bundle.weights_sha256,
        "format": format,
        "opset": OPSET if format == "onnx" else None,
        "torch": torch.__version__,
        "parts": parts,
        "latent_scale": {f"{key}z": float(model.latent_scale) for key, model in models.items()},
        "latent": "units of the prior; the scale is applied inside of decoder and encoder",
        "attributes": [{"name": n, "low": plain(a), "high": plain(b)} for n, a, b in limits],
        "channels": [
            {"name": each.name, "unit": each.unit, "intensity": intensity}
            for each, intensity in zip(recipe.channels, intensities, strict=True)
        ],
        "labels": dict(recipe.labels),
        "spacing_mm": list(recipe.spacing),
        "spatial_shape": list(recipe.spatial_shape),
        "axes": "RAS",
        "licence": dict(bundle.licence),
        "cite": list(bundle.cite),
    }

"""Features of trained networks, whose weights the user has on disk; nothing is downloaded.

MedicalNet is a 3-D ResNet trained to segment many organs, RadImageNet a 2-D ResNet trained on
radiological slices. Each file is read without running code of its own, and compared key by key with
the network that it is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import ResNet
from monai.networks.nets.resnet import get_inplanes, get_medicalnet_pretrained_resnet_args
from torch import Tensor, nn

from medvae3d.errors import SettingError, UnreadableFileError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.features import Rows, slices_along
from medvae3d.models.weights import read_tensors

UNSTATED = "not stated; ask whoever published the weights"
_LAYERS: dict[int, tuple[str, list[int]]] = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
}
# Heads of other tasks, which features do not use.
_HEADS = ("fc.", "conv_seg.", "num_batches_tracked")
# Children of torchvision's ResNet by their place, as RadImageNet's file names them.
_PLACES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def read_weights(path: str | Path, what: str) -> dict[str, Tensor]:
    """Reads a state dict, itself or under ``state_dict``; no code of the file is run.

    Args:
        path: The file.
        what: What it should hold, for messages.

    Raises:
        UnreadableFileError: If there is no such file or something else in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UnreadableFileError(
            f"weights {path} not found; nothing is downloaded here. Put the state dict of {what} "
            f"there, or leave these features out."
        )
    try:
        found = read_tensors(path)
    except (OSError, ValueError) as error:
        raise UnreadableFileError(
            f"weights {path} cannot be read as a plain state dict ({error}). Save the network's "
            f"state_dict() with torch.save, and name that file."
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UnreadableFileError(
            f"weights {path} hold {type(found).__name__}, not a state dict of tensors. Save the "
            f"state_dict() of {what}, and name that file."
        )
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def load_exactly(
    network: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str
) -> nn.Module:
    """Loads weights that fit key by key and shape by shape; heads of other tasks are left out.

    Raises:
        UnreadableFileError: If a key is missing, another is unknown or a shape differs.
    """
    wanted = {k: v for k, v in network.state_dict().items() if "num_batches_tracked" not in k}
    given = {k: v for k, v in state.items() if not any(head in k for head in _HEADS)}
    missing = sorted(set(wanted) - set(given))
    unknown = sorted(set(given) - set(wanted))
    shapes = sorted(
        f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in set(wanted) & set(given)
        if given[key].shape != wanted[key].shape
    )
    faults = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    if said := [
        f"{len(keys)} {fault} ({', '.join(keys[:4])}{', ...' * (len(keys) > 4)})"
        for fault, keys in faults.items()
        if keys
    ]:
        raise UnreadableFileError(
            f"weights {path} do not fit {what}: of {len(wanted)} keys, {'; '.join(said)}. Check "
            f"the depth of the network and that the file is meant for it."
        )
    network.load_state_dict(given, strict=False)
    return network.eval().requires_grad_(False)


def depth_of(state: Mapping[str, Tensor]) -> int:
    """The depth of the ResNet that has these weights; 50 if it is none that is known."""
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    blocks = [
        len({key.split(".")[1] for key in state if key.startswith(f"layer{layer}.")})
        for layer in range(1, 5)
    ]
    return next((depth for depth, known in _LAYERS.items() if known == (block, blocks)), 50)


def _resnet(depth: int, spatial_dims: int, channels: int, shortcut: str, bias: bool) -> nn.Module:
    block, layers = _LAYERS[depth]
    network: nn.Module = ResNet(
        block,
        layers,
        get_inplanes(),
        spatial_dims=spatial_dims,
        n_input_channels=channels,
        conv1_t_stride=2,
        shortcut_type=shortcut,
        feed_forward=False,
        bias_downsample=bias,
    )
    return network


class MedicalNet:
    """Pooled features of MedicalNet's 3-D ResNet, of each channel by itself.

    Volumes are brought to mean 0 and deviation 1 over what was observed. MONAI's layout is used,
    which halves the resolution where the original dilates.

    Args:
        weights: State dict of the backbone.
        depth: 10, 18, 34 or 50; what the file holds by default.
        licence: Of the weights; MedicalNet's own are MIT.

    Raises:
        SettingError: If there is no such depth.
        UnreadableFileError: If the weights are not those of this network.

    References:
        - Chen, Ma and Zheng, Med3D, arXiv:1904.00625.
    """

    def __init__(self, weights: str | Path, depth: int | None = None, licence: str = "MIT") -> None:
        if depth is not None and depth not in _LAYERS:
            raise SettingError(
                f"MedicalNet depth is {depth}; allowed are {', '.join(map(str, _LAYERS))}."
            )
        state = read_weights(weights, "MedicalNet's ResNet")
        depth = depth or depth_of(state)
        what = f"MedicalNet's resnet{depth}"
        bias, shortcut = get_medicalnet_pretrained_resnet_args(depth)
        network = _resnet(depth, 3, 1, shortcut, bias)
        self._network = load_exactly(network, state, weights, what)
        self.name, self.licence = f"MedicalNet {depth}", licence
        self.depth, self.file = depth, Path(weights).name

    def describe(self) -> dict[str, Any]:
        return {"network": "MedicalNet", "depth": self.depth, "file": self.file, "trained": True}

    def feature_names(self, channels: int) -> tuple[str, ...]:
        return ()

    @torch.no_grad()
    def __call__(self, cases: Cases, spacing_mm: Sequence[float]) -> Rows:
        rows = []
        for part in cases.batches(2):
            valid = (part.valid > 0).float()
            count = valid.sum((2, 3, 4), keepdim=True)
            mean = (part.image * valid).sum((2, 3, 4), keepdim=True) / count
            centred = (part.image - mean) * valid
            scale = (centred.square().sum((2, 3, 4), keepdim=True) / count).sqrt()
            x = centred / scale.clamp_min(1e-6)
            found = [self._network(x[:, c, None]).flatten(1) for c in range(x.shape[1])]
            rows.append(torch.cat(found, dim=1))
        return torch.cat(rows).double().numpy()


class RadImageNet:
    """Pooled features of RadImageNet's ResNet50 on slices of the three planes (2.5-D).

    Slices, from -1 to 1, are given three times as the three colours; small ones are enlarged, and
    features are averaged over slices and planes.

    Args:
        weights: State dict, with RadImageNet's names (``backbone.0.weight``) or torchvision's.
        licence: Of the weights.
        slice_step: Distance between slices that are looked at.

    Raises:
        UnreadableFileError: If the weights are not those of this network.

    References:
        - Mei et al., RadImageNet, Radiology: Artificial Intelligence 4 (2022).
    """

    name = "RadImageNet"

    def __init__(self, weights: str | Path, licence: str = UNSTATED, slice_step: int = 4) -> None:
        what = "RadImageNet's resnet50"
        state = {_torchvision_key(k): v for k, v in read_weights(weights, what).items()}
        network = _resnet(50, 2, 3, "B", False)
        self._network = load_exactly(network, state, weights, what)
        self.licence, self.slice_step, self.file = licence, slice_step, Path(weights).name

    def describe(self) -> dict[str, Any]:
        step = self.slice_step
        return {"network": "resnet50", "file": self.file, "trained": True, "slice step": step}

    def feature_names(self, channels: int) -> tuple[str, ...]:
        return ()

    @torch.no_grad()
    def __call__(self, cases: Cases, spacing_mm: Sequence[float]) -> Rows:
        rows = []
        for part in cases.batches(1):
            x = torch.where(part.valid > 0, part.image.float(), -1.0)
            columns = []
            for channel in range(x.shape[1]):
                planes = [
                    self._network(
                        at_least(
                            slices_along(x[:, channel, None], axis, self.slice_step), 64
                        ).expand(-1, 3, -1, -1)
                    ).flatten(1)
                    for axis in (2, 3, 4)
                ]
                columns.append(torch.stack([plane.mean(0) for plane in planes]).mean(0))
            rows.append(torch.cat(columns))
        found = torch.stack(rows).double().numpy()
        found[~(cases.valid > 0).flatten(1).any(1).numpy()] = np.nan
        return found


def _torchvision_key(key: str) -> str:
    """``backbone.4.0.conv1.weight`` as ``layer1.0.conv1.weight``; others stay."""
    place, _, rest = key.removeprefix("backbone.").partition(".")
    if key.startswith("backbone.") and place in _PLACES:
        return f"{_PLACES[place]}.{rest}"
    return key


def at_least(x: Tensor, side: int) -> Tensor:
    """Images enlarged until their smaller side has so many pixels."""
    small = min(x.shape[2:])
    if small >= side:
        return x
    size = [-(-n * side // small) for n in x.shape[2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def trained_features(
    kind: Literal["medicalnet", "radimagenet"], weights: str | Path, **settings: Any
) -> MedicalNet | RadImageNet:
    """Features of a trained network by its name, with weights from a file.

    Raises:
        SettingError: If the name is unknown.
    """
    kinds: dict[str, Any] = {"medicalnet": MedicalNet, "radimagenet": RadImageNet}
    if kind not in kinds:
        raise SettingError(f"feature network {kind!r} is unknown; allowed: {', '.join(kinds)}.")
    made: MedicalNet | RadImageNet = kinds[kind](weights, **settings)
    return made

r"""What a model has to beat: principal components, and lesions filled in without a model.

Principal components of image and mask together, as many as the latent has elements or as the cases
allow, are the best linear autoencoder of the training cases:

.. math:: \hat y = \bar y + W^\top W (y - \bar y), \qquad y = [t, m_1, \dots, m_N]

with :math:`t = (x + 1) / 2` and one 0/1 map :math:`m` for each label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.voxelwise import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CasePCA:
    """Principal components of image and mask, fitted with scikit-learn.

    Args:
        components: Most components; fewer where the cases do not span so many.
        values: Label values, background first.
        with_image: Whether the image belongs to a case, or the mask alone.
    """

    def __init__(self, components: int, values: Sequence[int] = (0, 1), with_image: bool = True):
        if components < 1:
            raise SettingError(f"components is {components}; allowed is 1 or more.")
        self.wanted = components
        self.values = tuple(values)
        self.with_image = with_image
        self._pca: PCA | None = None
        self._mean: NDArray[np.float32] | None = None

    @property
    def components(self) -> int:
        """How many components there are."""
        return 0 if self._pca is None else int(self._pca.n_components_)

    def fit(self, cases: Cases) -> CasePCA:
        """Fits mean and components."""
        rows = self._rows(cases)
        self._mean = rows.mean(0)
        count = min(self.wanted, len(rows) - 1, rows.shape[1])
        if count:
            self._pca = PCA(count, svd_solver="full").fit(rows)
        return self

    def reconstruct(self, cases: Cases) -> tuple[Tensor, Tensor]:
        """Image, normalised, and label map of each case, by its components."""
        rows = self._rows(cases)
        if self._pca is None:
            made = np.broadcast_to(self._fitted, rows.shape)
        else:
            made = self._pca.inverse_transform(self._pca.transform(rows))
        return self._volumes(made, cases)

    def mean_case(self, cases: Cases) -> tuple[Tensor, Tensor]:
        """The mean of the training cases, once for each case."""
        shape = (len(cases), len(self._fitted))
        return self._volumes(np.broadcast_to(self._fitted, shape), cases)

    @property
    def _fitted(self) -> NDArray[np.float32]:
        if self._mean is None:
            raise SettingError("principal components were asked for before `fit`; fit them first.")
        return self._mean

    def _rows(self, cases: Cases) -> NDArray[np.float32]:
        parts = [unit(cases.image)] if self.with_image else []
        parts += [(cases.mask == value).float() for value in self.values[1:]]
        return np.asarray(torch.cat(parts, dim=1).flatten(1).numpy(), np.float32)

    def _volumes(self, rows: NDArray[np.float32], cases: Cases) -> tuple[Tensor, Tensor]:
        maps = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
        maps = maps.reshape(len(cases), -1, *cases.mask.shape[2:])
        channels = cases.image.shape[1] if self.with_image else 0
        image = 2 * maps[:, :channels] - 1 if channels else cases.image
        return image, threshold(maps[:, channels:], self.values)


def threshold(maps: Tensor, values: Sequence[int]) -> Tensor:
    """The likeliest label of each voxel from one map a label; with one label, that is 0.5.

    Shape:
        - ``maps``: :math:`(B, N - 1, I, J, K)`; output: :math:`(B, 1, I, J, K)`, float32
    """
    if maps.shape[1] == 1:
        return (maps > 0.5).float() * values[1]
    best, index = maps.max(1, keepdim=True)
    table = torch.tensor(values[1:], dtype=torch.float32)
    return torch.where(best > 1 - maps.sum(1, keepdim=True), table[index], 0.0)


# -- lesions filled in without a model ------------------------------------------------------------


def lesion_mean(train: Cases) -> Tensor:
    """Mean normalised intensity inside of the training lesions, ``(C,)``."""
    inside = (train.region > 0) & (train.valid > 0)
    weight = inside.double()
    total: Tensor = (train.image.double() * weight).sum((0, 2, 3, 4)) / weight.sum()
    return total.float()


def constant_fill(train: Cases, unseen: Cases) -> Tensor:
    """Every lesion filled with the mean of the training lesions, ``(B, C, I, J, K)``."""
    fill = lesion_mean(train).reshape(1, -1, 1, 1, 1)
    return torch.where(unseen.region > 0, fill, unseen.image)


def paste_nearest(train: Cases, unseen: Cases) -> Tensor:
    """Every lesion filled with the training lesion of the most similar shape.

    Similar means the largest Dice after the centres of mass are brought together to the voxel.
    Where the pasted lesion has no voxel, its mean is put.

    Shape:
        - output: :math:`(B, C, I, J, K)`, as ``unseen.image`` outside of lesions
    """
    known = [centred(region) for region in train.region]
    flat = torch.stack([moved for moved, _ in known]).flatten(1)
    sizes = flat.sum(1)
    made = unseen.image.clone()
    for row, region in enumerate(unseen.region):
        shape, shift = centred(region)
        target = shape.flatten()
        dice = 2 * (flat @ target) / (sizes + target.sum())
        best = int(dice.argmax())
        move = tuple(a - b for a, b in zip(known[best][1], shift, strict=True))
        pasted = torch.roll(train.image[best], move, (1, 2, 3))
        inside = torch.roll(train.region[best], move, (1, 2, 3)) > 0
        source = train.region[best].expand_as(train.image[best]) > 0
        mean = train.image[best][source].reshape(len(pasted), -1).mean(1).reshape(-1, 1, 1, 1)
        filled = torch.where(inside, pasted, mean)
        made[row] = torch.where(region > 0, filled, unseen.image[row])
    return made


def centred(mask: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """A mask :math:`(1, I, J, K)` with its centre of mass in the middle, and by how much it moved.

    It is rolled: what leaves on one side comes in on the other, which a lesion in the middle of its
    patch never does.
    """
    inside = (mask > 0).float()
    places = inside[0].nonzero().float().mean(0) if inside.any() else torch.zeros(3)
    middle = [(n - 1) / 2 for n in mask.shape[1:]]
    i, j, k = (round(m - float(p)) for m, p in zip(middle, places, strict=True))
    return torch.roll(inside, (i, j, k), (1, 2, 3)), (i, j, k)

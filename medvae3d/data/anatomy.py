"""The anatomy of a procedural head, as functions of a point.

Points are in mm in head coordinates: origin in the middle of the cerebrum, axes right, anterior
and superior. Surfaces are signed distances in mm, positive inside, exact near the surface and good
enough further off. A tissue's share of a voxel falls linearly over one voxel across its surface,
which is its partial volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

# (FLAIR, T1) brightness. FLAIR: CSF nulled, grey above white; T1: white above grey above CSF.
TISSUES = {
    "air": (0.0, 0.0),
    "fat": (0.58, 0.92),
    "muscle": (0.28, 0.36),
    "bone": (0.04, 0.05),
    "marrow": (0.20, 0.45),
    "csf": (0.09, 0.15),
    "grey": (0.58, 0.47),
    "white": (0.45, 0.74),
    "deep": (0.52, 0.57),
    "pallidum": (0.42, 0.67),
    "cap": (0.62, 0.70),
}
HEAD_MM = (172.0, 210.0, 162.0)
# Right lateral ventricle: frontal horn, body, atrium and occipital horn; then the temporal horn.
VENTRICLES = (
    (
        ((14, 47, -8), 1.5), ((11, 37, -1), 4.6), ((8.5, 19, 5), 5.8), ((9.5, 0, 9), 5.0),
        ((15, -15, 8), 5.2), ((25, -28, 0), 6.5), ((24, -52, -8), 1.2),
    ),
    (((25, -28, 0), 4.5), ((34, -17, -20), 2.4), ((34, 2, -31), 1.2)),
)  # fmt: skip
# (centre, semi-axes) of the right side; the left one is its mirror image.
CAUDATE = ((14, 27, 1), (4.0, 14, 8))
PUTAMEN = ((27, 18, -12), (5.0, 16, 9))
PALLIDUM = ((20, 12, -14), (4.0, 9, 6))
THALAMUS = ((11, -3, -6), (8.5, 14, 9))
FAR_MM = -40.0
FOLD_CELLS = 64
FOLD_CELL_MM = 3.0
# Folds are told by the point of this sphere that lies towards a voxel, so that they run radially.
FOLD_RADIUS_MM = 74.0


@dataclass(frozen=True)
class Share:
    """Share of a voxel that lies inside a surface; ``slope`` is one over its size in mm."""

    slope: float

    def __call__(self, distance: Floats) -> Floats:
        return np.clip(distance * np.float32(self.slope) + np.float32(0.5), 0, 1)


@dataclass(frozen=True)
class Tissue:
    """What lies at some points: brightness and the distances that later steps need."""

    image: Floats
    head: Floats
    brain: Floats
    white: Floats
    ventricle: Floats


@dataclass(frozen=True)
class Head:
    """One subject: all that is drawn of a head before it is painted on a grid.

    Attributes:
        frame: World to head coordinates without the shift, :math:`(3, 3)`.
        shift: The shift in mm.
        warp: Wave vectors, phases and amplitudes of a smooth deformation.
        folds: Distance in mm to the nearest sulcus on the fold sphere, deep and shallow ones.
        ventricle_mm: Added to the radius of the ventricles.
        sulcus_mm: Half the width of a sulcus.
        scalp_mm: Thickness of skull and scalp.
    """

    frame: Floats
    shift: Floats
    warp: tuple[Floats, Floats, Floats]
    folds: tuple[Floats, Floats]
    ventricle_mm: float
    sulcus_mm: float
    scalp_mm: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, size: float) -> Head:
        """Draws a subject whose head is ``size`` times as large as an adult's."""
        angles = rng.normal(0, (3, 3, 4)).clip(-9, 9)  # nod, tilt, turn in degrees
        scale = size * rng.uniform(0.95, 1.0, 3)
        frame = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() / scale[:, None]
        waves = rng.normal(size=(3, 6))
        waves *= 2 * np.pi / rng.uniform(75, 150, 6) / np.linalg.norm(waves, axis=0)
        warp = (
            waves.astype(np.float32),
            rng.uniform(0, 2 * np.pi, 6).astype(np.float32),
            rng.normal(0, 0.75, (6, 3)).astype(np.float32),
        )
        folds = (_sheets(rng, 38.0), _sheets(rng, 25.0))
        return cls(
            frame=frame.astype(np.float32),
            shift=rng.normal(0, 1.5 * size, 3).astype(np.float32),
            warp=warp,
            folds=folds,
            ventricle_mm=float(rng.uniform(-0.3, 3.0)),
            sulcus_mm=float(rng.uniform(0.5, 1.1)),
            scalp_mm=(float(rng.uniform(5, 7)), float(rng.uniform(4, 7))),
        )

    def place(self, world: Floats) -> Floats:
        """Takes world points :math:`(3, N)` to head coordinates, deformation included."""
        points = self.frame @ (world - self.shift[:, None])
        waves, phases, amplitudes = self.warp
        return points + amplitudes.T @ np.sin(waves.T @ points + phases[:, None])

    def paint(self, world: Floats, voxel_mm: float) -> Tissue:
        """Tells the tissue at world points :math:`(3, N)`.

        Args:
            world: The points in mm.
            voxel_mm: Size of a voxel; surfaces are blurred over this length.
        """
        share = Share(1 / (voxel_mm * float(np.cbrt(abs(np.linalg.det(self.frame))))))
        points = self.place(world)
        head = self._skin(*points)
        # Half of a field of view is air and a third is brain: each step is done where it counts.
        part = np.flatnonzero(head > -0.5 / share.slope)
        points = points[:, part]
        x, y, z = points
        side = np.abs(x)
        parts = _brain(x, y, z, side)
        tissue = self._around(points, side, parts, head[part], share)
        brain = np.maximum(np.maximum(*parts[:2]), parts[2])
        inside = np.flatnonzero(brain > -0.5 / share.slope)
        inner, white, ventricle = self._inside(
            points[:, inside], side[inside], [distance[inside] for distance in parts], share
        )
        inner_share = share(brain[inside])
        tissue[:, inside] += inner_share * (inner - tissue[:, inside])

        image = np.zeros((len(tissue), len(head)), np.float32)
        image[:, part] = tissue
        everywhere = np.full((3, len(head)), FAR_MM, np.float32)
        everywhere[0, part] = brain
        everywhere[1, part[inside]] = white * inner_share
        everywhere[2, part[inside]] = ventricle
        return Tissue(image, head, everywhere[0], everywhere[1].clip(0), everywhere[2])

    def _skin(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Signed distance to the outside of the head."""
        skull = _ellipsoid(x, y, z, (0, -1, -2), (70, 89, 65), boxy=True)
        face = _ellipsoid(x, y, z, (0, 18, -62), (64, 82, 90))
        neck = 52 - np.hypot(x, y + 20)
        nape = _ellipsoid(x, y, z, (0, -38, -46), (64, 56, 44))
        low = _smooth_max(np.minimum(_smooth_max(face, neck), -20 - z), nape)
        return _smooth_max(skull + sum(self.scalp_mm), low, 12.0)

    def _inside(
        self, points: Floats, side: Floats, parts: Sequence[Floats], share: Share
    ) -> tuple[Floats, Floats, Floats]:
        """Brightness of the brain, share of white matter, distance to the ventricles."""
        _, y, z = points
        cerebrum, cerebellum, stem = parts
        ventricle, inner = self._ventricles(side, y, z)
        sulcus = self._sulci(points, side, cerebrum, cerebellum)
        # No cortex at the stem, nor where it meets the thalamus and hypothalamus.
        core = np.maximum(stem + 2, _ellipsoid(side, y, z, (0, 4, -24), (19, 28, 21)))
        sulcus += 2 * np.maximum(core, 0) + 2 * np.maximum(cerebellum - cerebrum, 0)
        # A sulcus opens towards the surface.
        width = self.sulcus_mm * (0.8 + 1.2 * np.exp(cerebrum.clip(0, 40) * -0.2))
        depth = np.minimum(np.maximum(cerebrum, stem), sulcus - width)
        grey = share(2.6 - depth)
        # In the cerebellum the leaves are thinner than a voxel: stripes around a white core.
        leaves = 5.0 + 3.0 * np.sin(1.05 * (z + 0.35 * y) + 0.08 * side)
        grey = np.where(cerebellum > cerebrum, share(leaves + 2.5 - cerebellum), grey)
        in_stem = stem > np.maximum(cerebrum, cerebellum) - 2
        grey = np.where(in_stem, 0.25, grey)
        caudate, putamen = _ellipsoid(side, y, z, *CAUDATE), _ellipsoid(side, y, z, *PUTAMEN)
        deep = np.maximum(np.maximum(caudate, putamen), _ellipsoid(side, y, z, *THALAMUS))
        pallidum = _ellipsoid(side, y, z, *PALLIDUM)
        # A sulcus thinner than a voxel never fills one.
        thin = self.sulcus_mm * 2 / max(2 * self.sulcus_mm, float(1 / share.slope))
        csf = np.maximum(share(np.maximum(ventricle, inner)), thin * share(width - sulcus))

        image = _uniform("white", len(side))
        _blend(image, "cap", 0.8 * np.clip(1 + ventricle / 2.5, 0, 1))
        _blend(image, "pallidum", share(pallidum))
        _blend(image, "deep", share(deep))
        _blend(image, "grey", grey)
        _blend(image, "csf", csf)
        white = (1 - grey) * (1 - csf) * (1 - share(np.maximum(deep, pallidum) + 1))
        white *= share(-np.maximum(core, inner + 3))
        return image, np.where(cerebrum > np.maximum(cerebellum, stem), white, 0), ventricle

    def _around(
        self, points: Floats, side: Floats, parts: Sequence[Floats], head: Floats, share: Share
    ) -> Floats:
        """Brightness of meninges, skull and scalp."""
        x, y, z = points
        # Inner face of the skull: the brain and a little more, smoothed.
        low = np.where(z < 4, (z - 4) * 1.45, z - 4)
        vault = _ellipsoid(x, y, low, (0, -1, 0), (69, 88, 60))
        hull = _smooth_max(vault, np.maximum(parts[0], parts[1]) + 2.5)
        skull, _ = self.scalp_mm
        bands = np.sin(0.13 * x + np.sin(0.09 * z)) + np.sin(0.11 * y + 0.07 * z + np.sin(0.13 * x))
        image = _uniform("air", len(side))
        _blend(image, "fat", share(head))
        _blend(image, "muscle", share(head - 3.5) * np.clip(0.6 * bands - (z + 22) / 18, 0, 1))
        _blend(image, "air", share(_ellipsoid(side, y, z, (14, 78, -48), (13, 16, 22))))
        _blend(image, "bone", share(hull + skull))
        _blend(image, "marrow", share(1.0 - np.abs(hull + skull / 2)))
        _blend(image, "csf", share(hull))
        return image

    def _ventricles(self, side: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Signed distances to the lateral ventricles, and to the third and fourth."""
        distance = np.full(side.shape, FAR_MM, np.float32)
        near = np.flatnonzero((side < 50) & (y > -68) & (y < 62) & (z > -46) & (z < 28))
        x, y, z = side[near], y[near], z[near]
        found = np.full(x.shape, FAR_MM, np.float32)
        for tube in VENTRICLES:
            for (start, first), (end, last) in zip(tube[:-1], tube[1:], strict=True):
                gap, t = _segment(x, y, z, start, end)
                radius = first + (last - first) * t + self.ventricle_mm * min(first, last) / 4
                np.maximum(found, radius - gap, out=found)
        third = _ellipsoid(x, y, z, (0, 9, -15), (1.6 + 0.6 * self.ventricle_mm, 14, 11))
        fourth = _ellipsoid(x, y, z, (0, -30, -46), (7, 5, 9))
        distance[near] = found
        inner = np.full(side.shape, FAR_MM, np.float32)
        inner[near] = np.maximum(third, fourth)
        return distance, inner

    def _sulci(self, points: Floats, side: Floats, cerebrum: Floats, cerebellum: Floats) -> Floats:
        """Distance to the nearest sulcus or fissure."""
        x, y, z = points
        radius = np.sqrt(x * x + y * y + z * z) + 1
        # A little less than radial, so that sulci lean and curve on their way in.
        lean = np.stack([np.sin(0.09 * z + 0.05 * y), np.sin(0.1 * x), np.sin(0.08 * y + 0.06 * x)])
        target = points * (0.65 * FOLD_RADIUS_MM / radius + 0.35) + 4 * lean
        index = target / FOLD_CELL_MM + (FOLD_CELLS - 1) / 2
        shrink = radius / FOLD_RADIUS_MM
        # Between the hemispheres, down to the corpus callosum.
        callosum = _ellipse(y, z, (13, -10), (37, 31))
        nearest = np.hypot(side, np.maximum(-callosum, 0))
        # Between temporal and frontal lobe, in to the insula.
        height = z + 4 + 0.5 * y
        sylvian = np.sqrt(
            height**2 + np.maximum(38 - side, 0) ** 2 + np.maximum(np.abs(y - 8) - 30, 0) ** 2
        )
        nearest = np.minimum(nearest, sylvian - 0.8)
        nearest = np.minimum(nearest, np.abs(cerebrum - cerebellum) * 1.2 + 0.4)
        for fold, end in zip(self.folds, (22.0, 11.0), strict=True):
            near = np.flatnonzero(cerebrum < end + 5)
            sheet = ndimage.map_coordinates(fold, index[:, near], order=1, mode="grid-wrap")
            sheet = np.hypot(sheet * shrink[near], np.maximum(cerebrum[near] - end, 0))
            nearest[near] = np.minimum(nearest[near], sheet)
        return nearest


def _brain(x: Floats, y: Floats, z: Floats, side: Floats) -> tuple[Floats, Floats, Floats]:
    """Signed distances to cerebrum, cerebellum and brain stem."""
    # Narrower in front, and flat below.
    width = x / (1 - 0.06 * y / 86)
    height = np.where(z < 6, (z - 6) * (58 / 44), z - 6)
    cerebrum = _ellipsoid(width, y, height, (0, 0, 0), (66, 85, 57), boxy=True)
    temporal = _ellipsoid(side, y, z, (44, 6, -38), (21, 42, 21))
    cerebellum = _ellipsoid(side, y, z, (22, -47, -52), (30, 29, 23))
    stem = np.minimum(14 - np.hypot(x, (y + 10) * 0.9), -12 - z)
    pons = _ellipsoid(x, y, z, (0, -7, -50), (17, 13, 13))
    return np.maximum(cerebrum, temporal), cerebellum, np.maximum(stem, pons)


def _ellipsoid(
    x: Floats,
    y: Floats,
    z: Floats,
    centre: Sequence[float],
    axes: Sequence[float],
    boxy: bool = False,
) -> Floats:
    """Distance to an ellipsoid, or to one with the power 2.5 in place of 2."""
    u, v, w = ((p - c) / a for p, c, a in zip((x, y, z), centre, axes, strict=True))
    level = np.sqrt(u * u + v * v + w * w) + 1e-3
    slope = np.sqrt((u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (w / axes[2]) ** 2)
    radius = level / (slope + 1e-3 / min(axes))
    if boxy:
        level = (sum(p * p * np.sqrt(np.abs(p)) for p in (u, v, w)) + 1e-6) ** np.float32(0.4)
    return (1 - level) * radius


def _smooth_max(a: Floats, b: Floats, width: float = 6.0) -> Floats:
    """The larger one, rounded off where they are within ``width`` of each other."""
    near = np.maximum(1 - np.abs(a - b) / width, 0)
    return np.maximum(a, b) + near * near * (width / 4)


def _ellipse(y: Floats, z: Floats, centre: Sequence[float], axes: Sequence[float]) -> Floats:
    """Distance to an ellipse, positive outside."""
    level = np.hypot((y - centre[0]) / axes[0], (z - centre[1]) / axes[1])
    return (level - 1) * min(axes)


def _segment(
    x: Floats, y: Floats, z: Floats, start: Sequence[float], end: Sequence[float]
) -> tuple[Floats, Floats]:
    """Distance to a segment, and where along it the foot lies, 0 to 1."""
    a, b, c = (e - s for s, e in zip(start, end, strict=True))
    x, y, z = (p - s for p, s in zip((x, y, z), start, strict=True))
    t = np.clip((x * a + y * b + z * c) / (a * a + b * b + c * c), 0, 1)
    return np.sqrt((x - t * a) ** 2 + (y - t * b) ** 2 + (z - t * c) ** 2), t


def _sheets(rng: np.random.Generator, wavelength_mm: float) -> Floats:
    """Distance in mm to the zero crossings of band-limited noise, on a periodic lattice."""
    noise = rng.standard_normal((FOLD_CELLS,) * 3, dtype=np.float32)
    axis = fft.fftfreq(FOLD_CELLS, FOLD_CELL_MM).astype(np.float32)
    half = fft.rfftfreq(FOLD_CELLS, FOLD_CELL_MM).astype(np.float32)
    frequency = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + half**2)
    band = np.exp(-0.5 * ((frequency * wavelength_mm - 1) / 0.22) ** 2)
    noise = fft.irfftn(fft.rfftn(noise) * band, s=noise.shape)
    slope = sum(
        ((np.roll(noise, -1, i) - np.roll(noise, 1, i)) / (2 * FOLD_CELL_MM)) ** 2 for i in range(3)
    )
    # The floor keeps flat places of the noise from becoming lakes.
    return np.asarray(noise / np.sqrt(slope + 0.3 * slope.mean()), np.float32)


def _uniform(tissue: str, count: int) -> Floats:
    return np.repeat(np.array(TISSUES[tissue], np.float32)[:, None], count, axis=1)


def _blend(image: Floats, tissue: str, share: Floats) -> None:
    for channel, value in zip(image, TISSUES[tissue], strict=True):
        channel += share * (np.float32(value) - channel)

"""A contrast-enhanced T1 head: the ICBM 152 average brain with a simulated skull, scalp and tumour.

The brain is read from the installed package ``nilearn``, whose copy of the template is cut to the brain; the layers
around it are drawn at their usual depths so that the picture is that of a head, as an engine expects it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.phantoms.shapes import smooth_noise, smooth_step

TEMPLATE_FILE = Path("datasets", "data", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
TUMOUR_CENTRE = (36.0, -14.0, 26.0)  # RAS in mm: the right centrum semiovale, beside the lateral ventricle
TUMOUR_RADIUS = 19.0  # mm
MIDDLE = -18.0  # mm, A: the middle of the head from front to back
SLAB_BOTTOM = -24.0  # mm, S: below, the skull base would have to be invented
COARSE = 4  # mm: the grid on which the depths of the layers are computed; they are smooth
WINDOW = (0.0, 820.0)

NOTICE = (
    "Brain: ICBM 152 nonlinear symmetric template, version 2009a, as shipped in the Python package nilearn. "
    "Fonov V, Evans AC, Botteron K, Almli CR, McKinstry RC, Collins DL. NeuroImage 2011;54:313-327. "
    "Skull, scalp, vessels, tumour, oedema and noise are simulated; nobody has this tumour.\n\n"
    "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill "
    "University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose "
    "and without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors "
    "and McGill University make no representations about the suitability of this software for any purpose. It is "
    'provided "as is" without express or implied warranty. The authors are not responsible for any data loss, '
    "equipment damage, property loss, or injury to subjects or patients resulting from the use or misuse of this "
    "software package."
)


@dataclass(frozen=True)
class Grid:
    """RAS coordinates in mm of the simulated voxels: the lowest slice, the front and the patient's right come first.

    Attributes:
        r, a, s: Coordinates of the columns (1, 1, I), rows (1, J, 1) and slices (K, 1, 1), float32.
        step: Distance of the slices in mm; rows and columns are 1 mm apart.
    """

    r: np.ndarray
    a: np.ndarray
    s: np.ndarray
    step: float

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.s), self.a.size, self.r.size

    def noise(self, rng: np.random.Generator, sigma: float) -> np.ndarray:
        """Return noise of this grid's shape, smoothed by ``sigma`` in mm."""
        return smooth_noise(rng, self.shape, (sigma / self.step, sigma, sigma))


def template_path() -> Path:
    """Return the template's file in the installed package ``nilearn``, found without importing it.

    Raises:
        InputError: nilearn is not installed, or this release of it ships no such file.
    """
    found = importlib.util.find_spec("nilearn")
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise InputError(
            "The brain samples need the ICBM 152 template that comes with the package nilearn, which is not installed; "
            "run: pip install --no-deps nilearn"
        )
    path = Path(folders[0], TEMPLATE_FILE)
    if not path.is_file():
        raise InputError(
            f"This nilearn has no file {TEMPLATE_FILE.as_posix()}; run: pip install --no-deps nilearn==0.14.1"
        )
    return path


def simulate_head(seed: int, heights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Return the noise-free intensity (K, J, I) float32, the tumour (K, J, I) bool and their grid.

    Args:
        seed: Decides everything that is random.
        heights: (K,) equidistant positions in mm above the template's origin.
        size: Rows and columns, 1 mm apart; the first row is in front, the first column on the patient's right.
    """
    import SimpleITK

    image = SimpleITK.ReadImage(str(template_path()))
    array = SimpleITK.GetArrayFromImage(image)[:, ::-1, ::-1]  # the file runs to the right and to the front
    margin = 30  # mm of air around the template's field of view
    array = np.pad(array, ((0, 0), (margin, margin), (margin, margin)))
    left, back, bottom = -image.GetOrigin()[0], -image.GetOrigin()[1], image.GetOrigin()[2]
    right, front = left + image.GetSize()[0] - 1, back + image.GetSize()[1] - 1
    column, row = int(right + margin) - size // 2, int(front + margin - MIDDLE) - size // 2
    array = array[:, row : row + size, column : column + size]
    a = (front + margin - row - np.arange(size, dtype=np.float32))[None, :, None]
    r = (right + margin - column - np.arange(size, dtype=np.float32))[None, None, :]
    s = heights.astype(np.float32)[:, None, None]
    grid = Grid(r, a, s, float(heights[1] - heights[0]))
    # The layers depend on the brain above and below, so their depths are computed before the slab is cut out.
    depth = interpolate_slices(_depth_outside_brain(array > 0), (heights - bottom) / COARSE, size)
    below = np.floor(heights - bottom).astype(int)
    weight = (heights - bottom - below).astype(np.float32)[:, None, None]
    template = array[below] * (1 - weight) + array[below + 1] * weight
    rng = np.random.default_rng(seed)
    field, offset = _tumour_field(rng, grid)
    template = _push_aside(template, offset, field, grid)
    intensity = np.interp(template, (0, 70, 110, 150, 185, 222, 255), (0, 55, 95, 190, 262, 330, 350))
    intensity = _draw_vessels(rng, intensity.astype(np.float32), template, depth, grid)
    intensity = _draw_shells(rng, intensity, template > 0, depth, grid)
    intensity = _draw_tumour(rng, intensity, field, template, grid)
    intensity *= 1 + 0.06 * grid.noise(rng, 45) + 0.0012 * np.clip(-a, 0, 90)  # receive coil
    return np.clip(intensity, 0, None).astype(np.float32), field > 0, grid


def slice_image(seed: int, size: int = 384, spacing: float = 0.625) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one axial slice (H, W) int16, its truth (H, W) bool and the 4x4 IJK-to-RAS matrix in mm."""
    height = TUMOUR_CENTRE[2]
    intensity, tumour, grid = simulate_head(seed, height + np.arange(-2.0, 3.0), 248)
    centre = 123.5
    step = (np.arange(size) - (size - 1) / 2) * spacing + centre
    where = np.meshgrid(step, step, indexing="ij")
    plane = ndimage.map_coordinates(intensity.mean(axis=0), where, order=3)
    truth = ndimage.map_coordinates(tumour.mean(axis=0), where, order=1) > 0.5
    matrix = np.diag([-spacing, -spacing, 1.0, 1.0])
    matrix[:3, 3] = grid.r.flat[0] - step[0], grid.a.flat[0] - step[0], height
    return _measure(np.random.default_rng(seed + 1), plane, 0.75), truth, matrix


def volume_image(seed: int, thickness: float = 5.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 24 axial slices (K, J, I) int16, their truth and the IJK-to-RAS matrix: 1 x 1 x ``thickness`` mm."""
    per_slice, slices, size = 2, 24, 224
    heights = SLAB_BOTTOM + (np.arange(slices * per_slice) + 0.5) * thickness / per_slice
    intensity, tumour, grid = simulate_head(seed, heights, size)
    grouped = (slices, per_slice, size, size)
    truth = tumour.reshape(grouped).mean(axis=1) > 0.5
    matrix = np.diag([-1.0, -1.0, thickness, 1.0])
    matrix[:3, 3] = grid.r.flat[0], grid.a.flat[0], SLAB_BOTTOM + thickness / 2
    return _measure(np.random.default_rng(seed + 1), intensity.reshape(grouped).mean(axis=1), 0.5), truth, matrix


def _measure(rng: np.random.Generator, intensity: np.ndarray, blur: float) -> np.ndarray:
    """Return the magnitude image: Rician noise (Gaussian in both channels), slightly correlated, as int16."""
    sigmas = (0,) * (intensity.ndim - 2) + (blur, blur)
    channels = ndimage.gaussian_filter(rng.standard_normal((2, *intensity.shape), np.float32), (0, *sigmas))
    channels *= 8.5 / channels.std()
    return np.rint(np.hypot(intensity + channels[0], channels[1])).astype(np.int16)


def _depth_outside_brain(brain: np.ndarray) -> np.ndarray:
    """Return how far outside the smoothed brain surface a point lies, in mm, on a grid of ``COARSE`` mm."""
    reduced = brain[::COARSE, ::COARSE, ::COARSE]
    coarse = (ndimage.gaussian_filter(reduced.astype(np.float32), 2.2) > 0.42) | reduced
    depth = ndimage.distance_transform_edt(~coarse) - ndimage.distance_transform_edt(coarse)
    return COARSE * ndimage.gaussian_filter(depth.astype(np.float32), 1.0)


def interpolate_slices(coarse: np.ndarray, slices: np.ndarray, size: int) -> np.ndarray:
    """Return (len(slices), size, size) from a grid of ``COARSE`` mm, linearly; ``slices`` are its slice positions."""
    for axis, position in enumerate((slices, np.arange(size) / COARSE, np.arange(size) / COARSE)):
        position = np.clip(position, 0, coarse.shape[axis] - 1.001)
        left = position.astype(int)
        weight = (position - left).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = np.take(coarse, left, axis) * (1 - weight) + np.take(coarse, left + 1, axis) * weight
    return coarse


def _tumour_field(rng: np.random.Generator, grid: Grid) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return a field that is 1 in the tumour's middle and 0 at its irregular edge, and the offsets in mm."""
    offset = tuple(axis - centre for axis, centre in zip((grid.r, grid.a, grid.s), TUMOUR_CENTRE, strict=True))
    distance = np.sqrt((offset[0] / 0.9) ** 2 + (offset[1] / 1.15) ** 2 + offset[2] ** 2)
    lobes, fringe = grid.noise(rng, 6.5), grid.noise(rng, 2.6)
    return 1 - distance / TUMOUR_RADIUS + 0.13 * lobes * np.minimum(distance / 8, 1) + 0.04 * fringe, offset


def _push_aside(template: np.ndarray, offset: tuple[np.ndarray, ...], field: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the template displaced by the growing mass: tissue moves outwards, less and less with the distance."""
    near = np.nonzero(field > -1.6)
    box = tuple(slice(max(0, int(index.min()) - 1), int(index.max()) + 2) for index in near)
    right, front, up = offset[0][..., box[2]], offset[1][:, box[1]], offset[2][box[0]]
    distance = np.sqrt(right**2 + front**2 + up**2) + 1e-3
    share = 6.0 * np.exp(-((distance / 26) ** 2)) * np.minimum(distance / 8, 1) / distance
    corner = np.array([b.start for b in box], np.float32)[:, None, None, None]
    source = np.indices(distance.shape, np.float32) + corner
    source -= share * np.stack(np.broadcast_arrays(up / grid.step, -front, -right))  # rows and columns run down
    moved = template.copy()
    moved[box] = ndimage.map_coordinates(template, source, order=1, mode="nearest")
    return moved


def _draw_vessels(
    rng: np.random.Generator, intensity: np.ndarray, template: np.ndarray, depth: np.ndarray, grid: Grid
) -> np.ndarray:
    """Add enhancing vessels in the sulci and the fissure: thin bright spots where the template is dark."""
    spots = smooth_noise(rng, grid.shape, (3 / grid.step, 1.1, 1.1))
    sulcus = (template > 0) & (template < 165) & (depth > -13)
    intensity = intensity + 270 * sulcus * smooth_step(spots - 1.9, 0.8)
    fissure = (np.abs(grid.r) < 1.6) & (template < 190) & (template > 0) & (depth > -22)
    return np.where(fissure, np.maximum(intensity, 235 + 60 * spots), intensity)


def _draw_shells(
    rng: np.random.Generator, intensity: np.ndarray, brain: np.ndarray, depth: np.ndarray, grid: Grid
) -> np.ndarray:
    """Draw fluid, dura, skull with marrow, temporal muscle, fat and skin at their depths outside the brain."""
    r, a, s = np.abs(grid.r), grid.a, grid.s
    wide, fine = grid.noise(rng, 18), grid.noise(rng, 1.6)
    temporal = 9 * np.exp(-(((a - 12) / 34) ** 2) - (np.clip(s - 2, 0, None) / 26) ** 2) * smooth_step(r - 48, 20)
    inner = 2.2 + 0.4 * wide
    outer = inner + 6.0 + 0.4 * wide + 1.5 * np.exp(-((r / 30) ** 2))
    muscle = outer + temporal
    fat = muscle + 4.4 + 0.35 * wide + 2.0 * smooth_step(-a - 60, 50)
    layers = (  # (lower bound in mm, intensity), from the brain outwards
        (-99, 70 + 8 * fine),
        (inner - 0.9, 300 + 30 * fine),  # dura, which enhances
        (inner, np.float32(18)),
        (inner + 1.6, 185 + 70 * wide + 25 * fine),  # marrow
        (outer - 1.8, np.float32(18)),
        (outer, 175 + 35 * fine),
        (muscle, 570 + 60 * fine + 60 * wide),
        (fat, 300 + 40 * fine),
        (fat + 1.8, np.float32(0)),
    )
    drawn = np.zeros_like(depth)
    previous = np.float32(0)
    for bound, value in layers:
        drawn += smooth_step(depth - bound, 1.3) * (value - previous)
        previous = value
    half_width = 2.6 + 2.6 * smooth_step(-a - 20, 120) + 0.5 * wide
    sinus = smooth_step(5.0 - depth, 1.5) * smooth_step(half_width - r - 0.7 * np.clip(4 - depth, 0, 6), 1.6)
    sinus *= (depth > -3) & ~brain
    drawn = drawn * (1 - sinus) + (520 + 40 * fine) * sinus
    return np.where(brain, intensity, drawn).astype(np.float32)


def _draw_tumour(
    rng: np.random.Generator, intensity: np.ndarray, field: np.ndarray, template: np.ndarray, grid: Grid
) -> np.ndarray:
    """Draw oedema (darker white matter around), an enhancing rim of varying thickness and a necrotic core."""
    texture, patchy = grid.noise(rng, 1.8), grid.noise(rng, 5.5)
    white = smooth_step(template - 196, 24)
    oedema = smooth_step(field + 0.7 + 0.25 * patchy, 0.6) * white
    intensity = intensity * (1 - 0.25 * oedema)
    inside = smooth_step(field, 0.10)
    core = smooth_step(field - 0.30 - 0.11 * patchy, 0.16)
    solid, necrosis = 535 + 50 * texture + 50 * patchy, 150 + 22 * texture
    return intensity * (1 - inside) + inside * (solid * (1 - core) + necrosis * core)

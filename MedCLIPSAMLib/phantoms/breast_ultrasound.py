"""A B-mode image of the breast: layered tissue, an irregular hypoechoic mass, attenuation, speckle and log compression.

The image is built in decibels of echo amplitude (echogenicity, thin reflectors, attenuation along the beam), then
multiplied by compounded Rayleigh speckle and compressed, as a scanner does (Wagner RF et al., IEEE Trans Sonics
Ultrason 1983;30:156-163).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MedCLIPSAMLib.phantoms.shapes import smooth_noise, smooth_step

HEIGHT, WIDTH = 400, 480
SPACING = 0.1  # mm
DYNAMIC_RANGE = 62.0  # dB
MASS_CENTRE = (22.0, 17.2)  # mm, x and depth
MASS_AXES = (7.6, 5.0)  # mm


def breast_image(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a B-mode image (H, W) uint8, the mass (H, W) bool and the 4x4 IJK-to-RAS matrix in mm."""
    rng = np.random.default_rng(seed)
    depth, x = np.meshgrid(
        (np.arange(HEIGHT, dtype=np.float32) + 0.5) * SPACING,
        (np.arange(WIDTH, dtype=np.float32) + 0.5) * SPACING,
        indexing="ij",
    )
    field = _mass_field(rng, x, depth)
    bend = 2.2 * np.exp(-(((x - MASS_CENTRE[0]) / 11) ** 2))  # layers are lifted and pressed apart by the mass
    decibel = _tissue(rng, x, depth, bend)
    decibel = _draw_mass(rng, decibel, field, x, depth)
    decibel -= _attenuation(rng, field, depth)
    decibel += 0.8 * smooth_noise(rng, (WIDTH,), 9)[None]  # beams differ a little in contact and gain
    decibel = ndimage.gaussian_filter(decibel, (0.6, 1.6))  # the beam is wider than the pulse is long
    amplitude = 10 ** (decibel / 20) * _speckle(rng, depth)
    compressed = 20 * np.log10(amplitude + 10 ** (-58 / 20))
    image = 255 * np.clip(compressed / DYNAMIC_RANGE + 0.95, 0, 1) ** 1.3
    matrix = np.diag([-SPACING, -SPACING, 1.0, 1.0])
    return np.rint(ndimage.gaussian_filter(image, 0.45)).astype(np.uint8), field > 0, matrix


def _wave(rng: np.random.Generator, amplitude: float, scale: float) -> np.ndarray:
    """Return (1, W) a wavy offset in mm whose crests are about ``scale`` mm apart."""
    return amplitude * smooth_noise(rng, (WIDTH,), scale / SPACING / 4)[None]


def _strands(
    rng: np.random.Generator, level: np.ndarray, along: float, across: float, slope: float = 0.0, share: float = 1.1
) -> np.ndarray:
    """Return bright strands in [0, 1] that follow the layers.

    Args:
        rng: Source of noise.
        level: (H, W) depth within the layer in mm: lines of equal level are where the strands run.
        along, across: Length and thickness of the strands in mm.
        slope: Rise of the strands against the layer, mm per mm.
        share: Higher is rarer, in standard deviations of the texture.
    """
    texture = smooth_noise(rng, (HEIGHT * 2, WIDTH), (across / SPACING, along / SPACING))
    wander = 1.1 * smooth_noise(rng, level.shape, (40, 55))  # mm
    rows = (level + wander + slope * np.linspace(-WIDTH / 2, WIDTH / 2, WIDTH) * SPACING) / SPACING + HEIGHT * 0.6
    columns = np.broadcast_to(np.arange(WIDTH, dtype=np.float32), level.shape)
    drawn = ndimage.map_coordinates(texture, [rows, columns], order=1, mode="reflect")
    return smooth_step(drawn - share, 1.5)


def _tissue(rng: np.random.Generator, x: np.ndarray, depth: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Return the echogenicity in dB of skin, fat, glandular tissue, retromammary fat, muscle and chest wall."""
    shape = depth.shape
    skin = 1.7 + _wave(rng, 0.10, 40)
    fat = 9.0 + _wave(rng, 0.9, 26) + _wave(rng, 0.4, 7) - bend * 0.7
    gland = 25.2 + _wave(rng, 1.2, 36) + _wave(rng, 0.5, 9) + bend * 0.3
    muscle = 28.4 + _wave(rng, 0.9, 40) + bend * 0.2
    wall = 36.6 + _wave(rng, 0.6, 50)
    blotch, cloud, fine = (smooth_noise(rng, shape, sigma) for sigma in ((8, 13), (26, 42), (2.0, 4.5)))
    wide = smooth_noise(rng, shape, (60, 80))
    lobules = np.maximum(smooth_noise(rng, shape, (6, 10)) - 0.5, 0)
    level = depth - fat

    fat_echo = -31.5 + 1.3 * cloud + 1.2 * fine + 0.8 * blotch
    fat_echo += 19 * _strands(rng, depth, 6.0, 0.12, 0.16, 1.75) + 15 * _strands(rng, depth, 4.0, 0.12, -0.35, 1.9)
    fat_echo += 13 * _strands(rng, depth + 0.3 * bend, 7.0, 0.16, 0.0, 1.7)
    gland_echo = -20.5 + 3.2 * blotch + 2.6 * cloud + 2.0 * wide + 3.0 * fine - 6.5 * lobules
    gland_echo += 8 * _strands(rng, level * 0.8, 1.3, 0.20) + 6 * _strands(rng, level, 0.7, 0.16, 0.12)
    gland_echo += 7 * _strands(rng, level, 2.6, 0.17, -0.15, 1.4)
    deep_fat_echo = -31 + 2 * cloud + 11 * _strands(rng, depth - muscle, 2.5, 0.18, 0.05)
    muscle_echo = -35 + 2.2 * fine + 2.5 * wide + 11 * _strands(rng, depth - muscle, 1.6, 0.17, 0.05, 0.7)
    muscle_echo += 10 * _strands(rng, depth - muscle, 3.6, 0.15, 0.03, 1.3)
    wall_echo = -39 + 2 * cloud + 12 * _strands(rng, depth - wall, 2.5, 0.22)

    decibel = np.full(shape, -17.0, np.float32) + 2.5 * fine
    decibel += 8 * np.exp(-(((depth - 0.3) / 0.28) ** 2)) + 10 * np.exp(-(((depth - skin) / 0.2) ** 2))
    for boundary, echo, edge in (
        (skin, fat_echo, 0.5),
        (fat, gland_echo, 0.8),
        (gland, deep_fat_echo, 1.6),
        (muscle, muscle_echo, 1.0),
        (wall, wall_echo, 1.0),
    ):
        inside = smooth_step(depth - boundary, edge)
        decibel = decibel * (1 - inside) + echo * inside
    for boundary, gain, patchy in ((fat, 9, cloud), (muscle, 14, blotch), (wall, 14, -cloud)):  # fascia reflects
        decibel += gain * np.exp(-(((depth - boundary) / 0.2) ** 2)) * smooth_step(patchy + 0.3, 2)
    return decibel


def _mass_field(rng: np.random.Generator, x: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return a field that is positive inside the lobulated, angular mass, in units of its radius."""
    dx, dy = (x - MASS_CENTRE[0]) / MASS_AXES[0], (depth - MASS_CENTRE[1]) / MASS_AXES[1]
    angle = np.arctan2(dy, dx)
    margin = sum(
        scale * np.cos(order * angle + phase)
        for order, scale, phase in zip(
            range(2, 10),
            rng.normal(0, 1, 8) * [0.05, 0.075, 0.06, 0.05, 0.04, 0.03, 0.025, 0.02],
            rng.uniform(0, 2 * np.pi, 8),
            strict=True,
        )
    )
    return (1 + margin - np.hypot(dx, dy) + 0.03 * smooth_noise(rng, x.shape, 5)).astype(np.float32)


def _draw_mass(
    rng: np.random.Generator, decibel: np.ndarray, field: np.ndarray, x: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Draw the mass (dark, uneven), its echogenic halo and a few bright specks inside."""
    cloud, fine = smooth_noise(rng, field.shape, (8, 12)), smooth_noise(rng, field.shape, (2, 4))
    sharp = smooth_noise(rng, field.shape, 16)
    halo = np.exp(-(((field + 0.13) / 0.11) ** 2)) * smooth_step(sharp + 0.7, 2.5)
    decibel = decibel + 5.0 * halo
    inside = smooth_step(field, 0.20 - 0.05 * np.clip(sharp, -2, 2))
    echo = -45.5 + 3.0 * cloud + 2.2 * fine + 6 * smooth_step(0.25 - field, 0.5)
    specks = smooth_step(smooth_noise(rng, field.shape, 1.3) - 3.1, 0.4) * (field > 0.15)
    return decibel * (1 - inside) + (echo + 20 * specks) * inside


def _attenuation(rng: np.random.Generator, field: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the loss in dB along each beam after depth compensation: residual, shadow of the mass, edge shadows."""
    along = np.cumsum(field > 0, axis=0) * SPACING  # mm of mass passed
    shadow = 0.5 * ndimage.gaussian_filter1d(along, 16, axis=1)
    below = smooth_step(depth - MASS_CENTRE[1], 5)
    columns = np.flatnonzero((field > 0).any(axis=0))
    edges = np.zeros_like(field)
    for column in (columns[0] + 7, columns[-1] - 7):
        edges += 4.0 * np.exp(-(((np.arange(WIDTH) - column) / 12.0) ** 2))[None]
    contact = 1.6 * np.maximum(smooth_noise(rng, (WIDTH,), 30), 0)[None]
    side = 2.5 * (np.linspace(-1, 1, WIDTH)[None] ** 4)
    return shadow + edges * below + (contact + side) * depth / 20 + 0.42 * np.maximum(depth - 22, 0) + 0.05 * depth


def _speckle(rng: np.random.Generator, depth: np.ndarray, looks: int = 4) -> np.ndarray:
    """Return the speckle amplitude (mean square 1): the mean of ``looks`` Rayleigh patterns, wider with the depth."""
    total = np.zeros(depth.shape, np.float32)
    far = np.clip(depth / depth.max(), 0, 1)
    for _ in range(looks):
        parts = rng.standard_normal((2, *depth.shape), np.float32)
        near, wide = (
            np.stack([ndimage.gaussian_filter(part, sigma) for part in parts]) for sigma in ((0.75, 1.5), (1.0, 3.2))
        )
        wave = near / near.std() * np.sqrt(1 - far) + wide / wide.std() * np.sqrt(far)
        total += np.hypot(wave[0], wave[1])
    return total / np.sqrt(np.mean(total**2))

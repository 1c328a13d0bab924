"""A frontal chest film: how much tissue, air and bone each ray passes, then the detector's logarithm and noise.

The body is given by its chords: every organ by an outline in the frontal plane and its thickness along the ray; ribs,
clavicles, vessels and other slender parts as tubes in space whose mass is projected. Rays are parallel, back to front.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MedCLIPSAMLib.phantoms.shapes import (
    closed_spline,
    fill_outline,
    open_spline,
    project_points,
    signed_distance,
    smooth_noise,
    smooth_step,
    vessel_tree,
)

SIZE, SPACING = 448, 0.8  # mm
WINDOW = (0.0, 4095.0)
TISSUE, BONE = 0.0185, 0.052  # linear attenuation per mm near 70 keV
LUNG_DENSITY = 0.27  # of tissue

# Outlines in mm: x to the patient's left (the right of the picture) from the middle, z from the top edge downwards.
RIGHT_LUNG = [(-52, 64), (-86, 84), (-114, 128), (-130, 186), (-138, 246), (-142, 300), (-142, 316), (-126, 300)]
RIGHT_LUNG += [(-98, 278), (-66, 274), (-40, 288), (-36, 262), (-37, 226), (-29, 190), (-27, 150), (-23, 112)]
RIGHT_LUNG += [(-27, 76)]
LEFT_LUNG = [(52, 64), (86, 84), (114, 128), (130, 186), (139, 246), (144, 306), (144, 326), (130, 314), (110, 296)]
LEFT_LUNG += [(92, 290), (88, 272), (76, 240), (58, 208), (42, 184), (33, 164), (37, 144), (38, 126), (28, 108)]
LEFT_LUNG += [(26, 76)]
HEART = [(-20, 184), (-38, 216), (-43, 250), (-34, 288), (10, 302), (64, 304), (96, 292), (92, 268), (76, 238)]
HEART += [(54, 206), (34, 180), (5, 172)]
BODY = [(-54, -60), (-50, 10), (-60, 34), (-110, 48), (-170, 62), (-225, 100), (-250, 200), (-250, 480), (0, 520)]
BODY += [(250, 480), (250, 200), (225, 100), (170, 62), (110, 48), (60, 34), (50, 10), (54, -60)]
TRUNK_EDGE = [(152, 176), (163, 210), (166, 270), (163, 330), (157, 420)]  # below the armpit
ARM_EDGE = [(152, 176), (176, 205), (196, 270), (210, 330), (226, 420)]


def chest_film(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the film (H, W) uint16 of 12 bit, bright where tissue is dense, the lung fields and the IJK-to-RAS matrix.

    The lung fields (H, W) bool leave out the lung behind the heart and below the domes of the diaphragm, as readers
    outline it.
    """
    rng = np.random.default_rng(seed)
    film = _Film(rng)
    attenuation = film.attenuation()
    photons = 1.5e5
    density = -np.log((rng.poisson(photons * np.exp(-ndimage.gaussian_filter(attenuation, 0.55))) + 1.0) / photons)
    # The tone curve of a digital film: coarse contrast is compressed, so that lung and mediastinum are both readable.
    inside = ndimage.gaussian_filter((film.body > 0).astype(np.float32), 24) + 1e-3
    coarse = ndimage.gaussian_filter(np.where(film.body > 0, density, 0), 24) / inside
    detail = density - ndimage.gaussian_filter(density, 5)
    density = density - 0.36 * (coarse - 3.3) * smooth_step(film.body, 8) + 0.7 * detail
    value = np.interp(density, (0.0, 0.6, 1.5, 2.2, 2.9, 3.6, 4.8), (0.02, 0.09, 0.25, 0.45, 0.71, 0.88, 1.0))
    matrix = np.diag([-SPACING, -SPACING, 1.0, 1.0])
    matrix[:2, 3] = (SIZE - 1) / 2 * SPACING
    return np.rint(value * 4095).astype(np.uint16), film.lungs > 0, matrix


class _Film:
    """The projection of the body; lengths in mm, maps (SIZE, SIZE)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.shape = (SIZE, SIZE)
        position = (np.arange(SIZE, dtype=np.float32) + 0.5) * SPACING
        self.x, self.z = position[None] - SIZE * SPACING / 2, position[:, None]
        self.body = self._body()
        self.lungs = np.maximum(self.distance(RIGHT_LUNG, 1.5), self.distance(LEFT_LUNG, 1.5))

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Return positions (N, 2) as (x, z) in mm as pixels."""
        return (points + np.array([SIZE * SPACING / 2, 0.0])) / SPACING

    def distance(self, outline: list[tuple[float, float]], wobble: float = 0.0) -> np.ndarray:
        """Return the signed distance in mm (positive inside) to a smooth outline with a little random shape."""
        curve = closed_spline(outline)
        if wobble:
            shift = ndimage.gaussian_filter1d(self.rng.standard_normal(curve.shape), 16, axis=0, mode="wrap")
            curve = curve + wobble * shift / shift.std()
        return signed_distance(fill_outline(self.pixels(curve), self.shape)) * SPACING

    def _body(self) -> np.ndarray:
        """Return the signed distance to the silhouette: neck, shoulders, trunk and, apart from it, the arms."""
        body = fill_outline(self.pixels(closed_spline(BODY)), self.shape)
        trunk, arm = open_spline(TRUNK_EDGE), open_spline(ARM_EDGE)
        for side in (-1, 1):
            gap = np.vstack([trunk, arm[::-1]]) * [side, 1]
            body &= ~fill_outline(self.pixels(gap), self.shape)
        distance = signed_distance(ndimage.gaussian_filter(body.astype(np.float32), 2) > 0.5)
        return ndimage.gaussian_filter(distance, 1.5) * SPACING

    def attenuation(self) -> np.ndarray:
        """Return the line integral of the attenuation for every ray."""
        cloud = smooth_noise(self.rng, self.shape, 30)
        round_off = np.sqrt(1 - (1 - np.clip(self.body / 62, 0, 1)) ** 2)
        depth = 105 + 92 * smooth_step(self.z - 110, 190) + 12 * smooth_step(self.z - 300, 120)  # neck to abdomen
        arms = smooth_step(np.abs(self.x) - 150, 30)
        tissue = round_off * (depth * (1 - 0.30 * arms) + 2.5 * cloud)
        tissue -= (1 - LUNG_DENSITY) * self._lung_depth()
        tissue += self._soft_parts()
        tissue -= self._airways()
        tissue += 1.5 * self._vessels()
        bone = self._ribs() + self._shoulders() + self._spine()
        return TISSUE * np.maximum(tissue, 0) + (BONE - TISSUE) * bone

    def _lung_depth(self) -> np.ndarray:
        """Return the length of lung along each ray, with the parts behind the heart and below the domes."""
        wall = np.sqrt(1 - (1 - np.clip(self.lungs / 52, 0, 1)) ** 2)
        height = 62 + 76 * smooth_step(self.z - 50, 170)
        fields = np.where(self.lungs > 0, height * (0.30 + 0.70 * wall) * smooth_step(self.lungs, 3), 0)
        cavity = np.exp(-((np.abs(self.x) / 118) ** 6)) * smooth_step(self.z - 150, 80)
        behind = 34 * smooth_step(345 - self.z, 70) * cavity * smooth_step(np.abs(self.x) - 16, 22)
        return fields + np.where(self.lungs > 0, 0, behind * smooth_step(-self.lungs, 4))

    def _soft_parts(self) -> np.ndarray:
        """Return extra tissue: heart, great vessels, aortic knob, breasts and muscle folds, less the stomach's air."""
        heart = self.distance(HEART, 1.0)
        extra = 34 * np.sqrt(1 - (1 - np.clip(heart / 40, 0, 1)) ** 2) * smooth_step(self.z - 205, 60)
        extra += 8 * smooth_step(heart, 6) * (1 - smooth_step(self.z - 205, 60))
        middle = np.exp(-((self.x / 25) ** 4)) * smooth_step(self.z - 40, 60) * smooth_step(330 - self.z, 80)
        extra += 22 * middle
        knob = 1 - np.hypot((self.x - 22) / 18, (self.z - 128) / 18)
        extra += 20 * np.sqrt(np.clip(knob, 0, 1))
        aorta = 10 - np.abs(self.x - 27 + (self.z - 150) * 0.055)
        extra += 1.3 * np.clip(aorta, 0, 10) * smooth_step(self.z - 125, 20) * smooth_step(320 - self.z, 30)
        for side in (-1, 1):
            breast = np.hypot((self.x - side * 84) / 60, (self.z - 232) / 56)
            extra += 13 * np.sqrt(np.clip(1 - breast**2, 0, 1)) * smooth_step(1.0 - breast, 0.3)
            pectoral = (self.x * side - 70) / 95 + (self.z - 108) / 88
            extra += 10 * smooth_step(1 - np.abs(pectoral - 0.5), 0.9) * smooth_step(np.abs(self.x) - 40, 70)
            hilum = np.hypot((self.x - side * 41) / 15, (self.z - 182 + 6 * (side > 0)) / 24)
            extra += 9 * smooth_step(1 - hilum, 1.0)
        bubble = np.hypot((self.x - 72) / 30, (self.z - 326) / 15) + 0.10 * smooth_noise(self.rng, self.shape, 14)
        bowel = np.hypot((self.x - 112) / 20, (self.z - 358) / 17) + 0.15 * smooth_noise(self.rng, self.shape, 9)
        extra -= 22 * np.sqrt(np.clip(1 - bubble, 0, 1)) + 16 * np.sqrt(np.clip(1 - bowel, 0, 1))
        liver = np.exp(-(((self.x + 70) / 90) ** 2)) * smooth_step(self.z - 285, 60)
        return extra + 8 * liver

    def _airways(self) -> np.ndarray:
        """Return the air along the rays in trachea and main bronchi, in mm."""
        air = np.zeros(self.shape)
        trachea = [(0, -20, 0), (1, 60, 0), (4, 120, 0), (3, 165, 0)]
        for path, radius in (
            (trachea, 8.5),
            ([(3, 162, 0), (-14, 178, 0), (-34, 196, 0)], 6.0),
            ([(3, 162, 0), (22, 178, 0), (46, 190, 0)], 5.2),
        ):
            air += self.tube(np.array(path, float), radius, radius, None)
        return ndimage.gaussian_filter(air, 1.0)

    def _vessels(self) -> np.ndarray:
        """Return the blood along the rays in the lungs' vessels, in mm."""
        rows, columns = np.nonzero(self.lungs > 3)
        total = np.zeros(self.shape)
        for side in (-1, 1):
            own = np.flatnonzero(side * self.x[0, columns] > 0)
            chosen = self.rng.choice(own, 900)
            targets = np.column_stack([self.x[0, columns[chosen]], self.z[rows[chosen], 0], np.zeros(900)])
            targets[:, 2] = self.rng.uniform(-55, 55, 900)
            for part, z in enumerate((166.0, 186.0, 200.0)):  # upper, middle and lower branches leave apart
                root = np.array([side * (36.0 + 2 * part), z - 6 * (side > 0), 0.0])
                own_part = targets[part::3]
                points, radii, _ = vessel_tree(self.rng, root, own_part, leaf_radius=0.55, spacing=1.0)
                # A sample stands for 1 mm of a cylinder: its volume over the pixel's area is the chord it adds.
                total += project_points(self.pixels(points[:, :2]), np.pi * radii**2 / SPACING**2, self.shape)
        total = ndimage.gaussian_filter(total, 0.9) * smooth_step(self.lungs + 6, 6)
        return 11 * np.tanh(total / 11)

    def tube(self, path: np.ndarray, tall: float, deep: float, wall: float | None, fine: int = 500) -> np.ndarray:
        """Return the length of bone (or air) along the rays through a tube in space, in mm.

        Args:
            path: (N, 3) as (x, z, y) in mm, y along the ray: the curve through these points is the tube's axis.
            tall, deep: Half axes of its elliptic section across and along the ray, in mm.
            wall: Thickness of the cortex in mm, with sparse bone inside; None fills the tube evenly.
            fine: Samples along the axis.
        """
        curve = open_spline([tuple(point) for point in path], fine)
        step = np.gradient(curve, axis=0)
        length = np.linalg.norm(step, axis=1)
        tangent = step / length[:, None]
        ray = np.array([0.0, 0.0, 1.0])
        across = np.cross(tangent, ray)
        across /= np.maximum(np.linalg.norm(across, axis=1), 1e-6)[:, None]
        along = np.cross(across, tangent)
        u, v = (grid.ravel() for grid in np.meshgrid(np.linspace(-1, 1, 25), np.linspace(-1, 1, 17)))
        radius = np.hypot(u, v)
        u, v, radius = u[radius <= 1], v[radius <= 1], radius[radius <= 1]
        share = np.ones(len(u)) if wall is None else np.where(radius > 1 - wall / min(tall, deep), 1.0, 0.22)
        area = np.pi * tall * deep / len(u)
        section = across[:, None] * (u * tall)[None, :, None] + along[:, None] * (v * deep)[None, :, None]
        points = curve[:, None] + section
        weights = length[:, None] * share[None] * area / SPACING**2
        return project_points(self.pixels(points[..., :2].reshape(-1, 2)), weights.ravel(), self.shape)

    def _ribs(self) -> np.ndarray:
        """Return the bone in ten pairs of ribs: from the spine backwards round the wall and down to the front."""
        bone = np.zeros(self.shape)
        for index in range(10):
            start = 50 + 25.5 * index + 0.35 * index**1.5
            width = float(np.interp(index, range(10), (70, 100, 118, 129, 137, 142, 145, 147, 149, 150)))
            depth = float(np.interp(index, (0, 4, 9), (48, 78, 88)))
            drop = 26 + 5.5 * index
            last = np.radians(float(np.interp(index, (0, 1, 6, 9), (158, 152, 138, 116))))
            turn = np.linspace(np.radians(9), last, 14)
            for side in (-1, 1):
                jitter = self.rng.normal(0, 1.2)
                x = side * width * np.sin(turn) ** 0.9
                sink = np.clip(turn / np.pi, 0, 1)
                z = start + jitter - (5 + 0.6 * index) * np.sin(np.clip(2.2 * turn, 0, np.pi)) + drop * 2.2 * sink**1.7
                y = -depth * np.cos(turn)
                bone += self.tube(np.column_stack([x, z, y]), 6.4 - 0.25 * (index < 1), 3.2, 1.05)
        return 1.15 * ndimage.gaussian_filter(bone, 0.8)

    def _shoulders(self) -> np.ndarray:
        """Return the bone in clavicles, shoulder blades and the heads of the upper arms."""
        bone = np.zeros(self.shape)
        for side in (-1, 1):
            clavicle = [(14, 96, 40), (46, 82, 44), (88, 70, 22), (128, 62, -6), (158, 58, -18)]
            bone += self.tube(np.array(clavicle) * [side, 1, 1], 6.2, 5.2, 1.5)
            spine_of_blade = [(118, 92, -60), (140, 76, -52), (166, 60, -36)]
            bone += 0.7 * self.tube(np.array(spine_of_blade) * [side, 1, 1], 5.0, 3.5, 1.2)
            border = [(122, 86, -62), (116, 120, -64), (124, 160, -66), (140, 192, -60)]
            lateral = [(164, 100, -40), (156, 134, -52), (148, 168, -60), (140, 192, -60)]
            bone += 0.45 * self.tube(np.array(border) * [side, 1, 1], 3.0, 2.6, 1.0)
            bone += 0.8 * self.tube(np.array(lateral) * [side, 1, 1], 4.5, 4.0, 1.3)
            blade = [(122, 86), (116, 120), (124, 160), (140, 192), (148, 168), (156, 134), (166, 98), (146, 80)]
            plate = self.distance([(side * x, z) for x, z in blade])
            bone += 1.6 * smooth_step(plate, 4)
            arm = [(186, 92, -20), (196, 120, -20), (204, 180, -20), (218, 300, -20)]
            bone += self.tube(np.array(arm) * [side, 1, 1], 11.5, 10.5, 2.6)
            head = np.hypot(self.x - side * 181, self.z - 92) / 24
            bone += 8 * np.sqrt(np.clip(1 - head**2, 0, 1)) * 0.8
        return 1.25 * ndimage.gaussian_filter(bone, 0.8)

    def _spine(self) -> np.ndarray:
        """Return the bone in the vertebrae (bodies, end plates, pedicles, processes) and the sternum."""
        bone = np.zeros(self.shape)
        for index in range(-2, 17):
            middle, height = 40 + 23.5 * index + 0.28 * index * abs(index), 9.2 + 0.24 * max(index, 0)
            half = 13.5 + 0.32 * max(index, 0)
            waist = half - 1.6 * (1 - np.clip(np.abs(self.z - middle) / height, 0, 1) ** 2)
            level = np.abs(self.z - middle)
            body = (0.25 + 0.75 * smooth_step(height - level, 2.2)) * (level < height + 2.5)  # the disc between is soft
            inside = smooth_step(waist - np.abs(self.x), 2.0) * body
            plates = np.exp(-(((np.abs(self.z - middle) - height + 1.2) / 1.1) ** 2))
            sides = np.exp(-(((np.abs(self.x) - waist + 0.8) / 1.0) ** 2))
            bone += inside * (6.5 + 2.6 * plates + 2.0 * sides)
            for side in (-1, 1):
                pedicle = np.hypot((self.x - side * (half - 4.5)) / 3.6, (self.z - middle + 1.5) / 5.2)
                bone += 3.6 * np.exp(-(((pedicle - 1) / 0.28) ** 2))
                process = [(side * half * 0.8, middle - 3, -50.0), (side * (half + 15), middle - 7, -60.0)]
                bone += 0.55 * self.tube(np.array(process), 4.2, 3.6, 1.2, 60)
            tip = np.hypot(self.x / 3.2, (self.z - middle - 9) / 6.0)
            bone += 3.4 * np.exp(-(((tip - 1) / 0.3) ** 2))
        sternum = smooth_step(17 - np.abs(self.x), 5) * smooth_step(self.z - 98, 6) * smooth_step(262 - self.z, 10)
        return ndimage.gaussian_filter(bone + 1.6 * sternum, 0.7)

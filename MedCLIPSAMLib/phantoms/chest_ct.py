"""An axial chest CT slice in Hounsfield units at the level of the heart: lungs with vessels, bones, fat and noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MedCLIPSAMLib.phantoms.shapes import (
    closed_spline,
    draw_discs,
    fill_outline,
    signed_distance,
    smooth_noise,
    smooth_step,
    vessel_tree,
)

SIZE, SPACING = 384, 0.9  # mm
WINDOW = (-1000.0, 400.0)
AIR, LUNG, FAT, MUSCLE, BLOOD, MARROW, CORTEX = -1000.0, -750.0, -105.0, 55.0, 45.0, 190.0, 780.0
MIDDLE = (0.0, 2.0)  # mm: where (0, 0) of the outlines lies against the image's centre

# Outlines in mm: x to the patient's left (the right of the picture), y to the back.
SKIN = [(0, -103), (45, -112), (95, -104), (142, -70), (166, -14), (164, 42), (138, 86), (86, 110), (30, 117), (0, 112)]
SKIN += [(-30, 117), (-86, 110), (-138, 86), (-164, 42), (-166, -14), (-142, -70), (-95, -104), (-45, -112)]
CAVITY = [(0, -74), (40, -84), (85, -74), (120, -38), (131, 10), (121, 55), (88, 84), (48, 90), (27, 72), (0, 62)]
CAVITY += [(-27, 72), (-48, 90), (-88, 84), (-121, 55), (-131, 10), (-120, -38), (-85, -74), (-40, -84)]
HEART = [(-12, -62), (14, -70), (46, -64), (72, -40), (80, -12), (70, 10), (44, 22), (10, 26), (-22, 20), (-42, 0)]
HEART += [(-44, -26), (-32, -50)]
MEDIASTINUM = [(-8, -90), (8, -90), (9, -66), (34, -20), (30, 20), (40, 36), (38, 52), (26, 60), (26, 78), (0, 84)]
MEDIASTINUM += [(-24, 78), (-22, 56), (-12, 44), (-20, 24), (-26, -20), (-8, -66)]
VERTEBRA = [(0, 44), (13, 45), (19, 53), (18, 66), (11, 73), (0, 71), (-11, 73), (-18, 66), (-19, 53), (-13, 45)]
ARCH = [(0, 72), (12, 70), (20, 74), (38, 72), (44, 77), (37, 82), (20, 84), (7, 92), (4, 104), (0, 108)]
ARCH += [(-4, 104), (-7, 92), (-20, 84), (-37, 82), (-44, 77), (-38, 72), (-20, 74), (-12, 70)]


def chest_slice(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the slice (H, W) int16 in HU, the lungs (H, W) bool (without large vessels) and the IJK-to-RAS matrix."""
    rng = np.random.default_rng(seed)
    fine = 2  # drawn at twice the resolution, then averaged: partial volume at every edge
    scene = _Scene(rng, SIZE * fine, SPACING / fine)
    hounsfield, lungs = scene.draw()
    hounsfield = hounsfield.reshape(SIZE, fine, SIZE, fine).mean(axis=(1, 3))
    lungs = lungs.reshape(SIZE, fine, SIZE, fine).mean(axis=(1, 3)) > 0.5
    hounsfield = ndimage.gaussian_filter(hounsfield, 0.45)
    noise = rng.standard_normal((SIZE, SIZE), np.float32)
    noise = ndimage.gaussian_filter(noise, 0.55) - 0.6 * ndimage.gaussian_filter(noise, 1.6)  # ramp-filtered: blue-ish
    centre = np.hypot(*np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE)))
    noise *= 36 / noise.std() * (1.15 - 0.45 * np.clip(centre, 0, 1))
    hounsfield = np.clip(hounsfield + noise, -1024, 3071)
    matrix = np.diag([-SPACING, -SPACING, 1.0, 1.0])
    matrix[:2, 3] = (SIZE - 1) / 2 * SPACING
    return np.rint(hounsfield).astype(np.int16), lungs, matrix


class _Scene:
    """The slice at ``size`` pixels of ``spacing`` mm; each method paints one part over what is there."""

    def __init__(self, rng: np.random.Generator, size: int, spacing: float) -> None:
        self.rng, self.size, self.spacing = rng, size, spacing
        self.shape = (size, size)
        position = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) * spacing
        self.x, self.y = position[None] - MIDDLE[0], position[:, None] - MIDDLE[1]
        self.image = np.full(self.shape, AIR, np.float32)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Return positions (N, 2) in mm as pixels."""
        return (points + MIDDLE) / self.spacing + self.size / 2

    def inside(self, outline: list[tuple[float, float]], wobble: float = 1.5) -> np.ndarray:
        """Return the signed distance in mm (positive inside) to a smooth outline with a little random shape."""
        curve = closed_spline(outline)
        shift = ndimage.gaussian_filter1d(self.rng.standard_normal(curve.shape), 14, axis=0, mode="wrap")
        curve = curve + wobble * shift / shift.std()
        return signed_distance(fill_outline(self.pixels(curve), self.shape)) * self.spacing

    def paint(self, where: np.ndarray, value: np.ndarray | float, edge: float = 0.8) -> None:
        """Put ``value`` where the signed distance ``where`` (mm) is positive, with an edge ``edge`` mm wide."""
        weight = smooth_step(where, edge)
        self.image += weight * (value - self.image)

    def ellipse(self, x: float, y: float, a: float, b: float, angle: float = 0.0) -> np.ndarray:
        """Return the approximate signed distance to an ellipse in mm; ``angle`` in radians turns its long axis."""
        u = (self.x - x) * np.cos(angle) + (self.y - y) * np.sin(angle)
        v = -(self.x - x) * np.sin(angle) + (self.y - y) * np.cos(angle)
        return (1 - np.hypot(u / a, v / b)) * min(a, b)

    def bone(self, where: np.ndarray, cortex: float) -> None:
        """Paint a bone: cortex of the given thickness in mm and uneven marrow inside."""
        self.paint(where, CORTEX)
        self.paint(where - cortex, MARROW + 55 * self.grain, 1.2)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the noise-free slice in HU and the lungs without large vessels (bool)."""
        self.grain = smooth_noise(self.rng, self.shape, 2.2)
        cloud = smooth_noise(self.rng, self.shape, 14)
        self._draw_table()
        skin, cavity = self.inside(SKIN, 1.8), self.inside(CAVITY, 1.2)
        self.paint(skin, 20.0)
        self.paint(skin - 1.8, FAT + 7 * cloud + 5 * self.grain)
        self._draw_wall(skin, cavity, cloud)
        mediastinum = self.inside(MEDIASTINUM, 0.8)
        heart = self.inside(HEART, 1.2)
        self.paint(cavity, FAT + 10 * cloud)
        centre = np.maximum(mediastinum, heart)
        lungs = np.minimum(cavity - 0.6, -centre)
        lungs = 2.5 - ndimage.distance_transform_edt(lungs < 2.5).astype(np.float32) * self.spacing  # rounded corners
        large = self._draw_lungs(lungs, cloud)
        large |= self._draw_heart(heart, mediastinum, cloud)
        self._draw_bones(cavity)
        return self.image, (lungs > 0) & ~large

    def _draw_table(self) -> None:
        """Draw the two shells of the patient table and a thin cushion."""
        shells = ((520.0, 152, -380.0, 1.5), (500.0, 139, -820.0, 1.2), (483.0, 122, -935.0, 4.0))
        for radius, bottom, value, width in shells:
            distance = np.hypot(self.x, self.y - (bottom - radius))
            self.paint(width - np.abs(distance - radius), value, 1.2)

    def _draw_wall(self, skin: np.ndarray, cavity: np.ndarray, cloud: np.ndarray) -> None:
        """Draw the chest wall's muscles: a shell around the cavity, the back, the flanks and the pectorals."""
        striae = smooth_noise(self.rng, self.shape, (3, 7))
        muscle = MUSCLE + 8 * cloud
        self.paint(np.minimum(cavity + 13 + 1.2 * cloud, skin - 5), muscle - 22 * np.maximum(striae, 0))
        for side in (-1, 1):
            flank = self.ellipse(side * 141, 26, 8.5, 40, side * 0.12)
            back = self.ellipse(side * 31, 88, 27, 12.5, side * -0.16)
            shoulder_blade = self.ellipse(side * 112, 76, 36, 9, side * -0.72)
            pectoral = self.ellipse(side * 70, -88, 40, 7.5, side * 0.36)
            for part in (flank, back, shoulder_blade, pectoral):
                inside = np.minimum(part + 0.9 * cloud, skin - 4.5)
                self.paint(inside, muscle - 45 * np.maximum(striae - 0.4, 0), 1.5)

    def _draw_lungs(self, lungs: np.ndarray, cloud: np.ndarray) -> np.ndarray:
        """Draw both lungs with arteries, veins and bronchi; return where vessels are thicker than 5 mm."""
        self.paint(lungs, LUNG + 0.5 * self.y + 12 * cloud + 18 * self.grain, 1.0)  # gravity makes the back denser
        rows, columns = np.nonzero(lungs > 1.5)
        trees = []
        for side in (-1, 1):
            self._draw_bronchi(side, lungs)
            own = np.flatnonzero(side * self.x[0, columns] > 0)
            for root, count in (((side * 40.0, 12.0, 0.0), 560), ((side * 38.0, 28.0, -6.0), 420)):
                chosen = self.rng.choice(own, count)
                height = self.rng.uniform(-42, 42, count)
                targets = np.column_stack([self.x[0, columns[chosen]], self.y[rows[chosen], 0], height])
                trees.append(vessel_tree(self.rng, np.array(root), targets)[:2])
        points, radii = (np.concatenate(part) for part in zip(*trees, strict=True))
        near = np.abs(points[:, 2]) < radii + 0.6  # the slice has a thickness
        points, radii = points[near], radii[near]
        shown = np.sqrt(np.maximum(radii**2 - np.maximum(np.abs(points[:, 2]) - 0.5, 0) ** 2, 0.05)) / self.spacing
        pixels = self.pixels(points[:, :2])
        vessels = ndimage.gaussian_filter(draw_discs(pixels, shown, self.shape), 0.5) * (lungs > -2)
        self.image += 0.95 * vessels * (BLOOD - self.image)
        thick = radii > 2.5
        return draw_discs(pixels[thick], shown[thick], self.shape) > 0.5

    def _draw_bronchi(self, side: int, lungs: np.ndarray) -> None:
        """Draw bronchi beside the hilum: air inside a thin wall, an artery at their side."""
        for x, y, radius in ((46, 9, 4.0), (54, 24, 3.0), (62, 6, 2.2), (64, 33, 1.9)):
            x, y, turn = side * (x + self.rng.normal(0, 2)), y + self.rng.normal(0, 3), self.rng.uniform(0, 3)
            tube = np.minimum(self.ellipse(x, y, radius * self.rng.uniform(1.0, 1.6), radius, turn), lungs + 4)
            artery = self.ellipse(x + side * 1.9 * radius, y + 0.6 * radius, 1.2 * radius, 0.95 * radius, turn)
            self.paint(np.minimum(artery, lungs + 2), BLOOD)
            self.paint(tube + 0.8, -180.0)
            self.paint(tube, -970.0)

    def _draw_heart(self, heart: np.ndarray, mediastinum: np.ndarray, cloud: np.ndarray) -> np.ndarray:
        """Draw mediastinal fat, hilar vessels, heart, oesophagus and aorta; return where the hilar vessels are."""
        self.paint(mediastinum, FAT + 45 + 25 * cloud, 1.2)
        hilum = np.zeros(self.shape, bool)
        for side in (-1, 1):  # pulmonary veins and arteries at the hilum
            for x, y, a, b, angle in ((33, 12, 15, 6.5, 0.3), (36, 30, 12, 6, -0.5), (44, 19, 7, 6, 0.0)):
                vessel = self.ellipse(side * x, y, a, b, side * angle)
                self.paint(vessel, BLOOD, 1.5)
                hilum |= vessel > 0
        self.paint(heart, FAT + 70, 1.2)
        self.paint(heart - 2.2 - 0.8 * np.maximum(cloud, 0), BLOOD + 4 * cloud, 2.5)
        for x, y, a, b, angle in ((-22, 6, 15, 2.2, 0.9), (52, -44, 13, 2.0, 0.8), (30, 17, 20, 1.8, -0.25)):  # grooves
            self.paint(np.minimum(self.ellipse(x, y, a, b, angle) + 0.5 * cloud, heart - 1), -45.0, 2.5)
        self.paint(self.ellipse(-3, 34, 9, 5, 0.2), 38.0)
        self.paint(self.ellipse(-4, 34, 2.2, 1.3, 0.2), -350.0, 1.5)
        self.paint(self.ellipse(25, 44, 13.2, 12.8), BLOOD + 3)
        self.paint(1.1 - np.abs(self.ellipse(25, 44, 13.2, 12.8)), 62.0)
        return hilum

    def _draw_bones(self, cavity: np.ndarray) -> None:
        """Draw the vertebra with its arch and canal, ribs along the cavity, and the sternum."""
        arch, body = self.inside(ARCH, 0.3), self.inside(VERTEBRA, 0.3)
        self.bone(arch, 1.7)
        self.bone(body, 1.5)
        canal = self.ellipse(0, 79, 8.5, 7.0)
        self.paint(canal + 1.2, CORTEX)
        self.paint(canal, 5.0)
        self.paint(self.ellipse(0, 79, 5.0, 3.8), 38.0, 1.5)
        outline = closed_spline(CAVITY, 2000)
        angle = np.degrees(np.arctan2(outline[:, 1], outline[:, 0]))
        tangent = np.gradient(outline, axis=0)
        for degrees, length, thickness in ((64, 21, 5.0), (29, 13, 4.6), (-1, 15, 4.4), (-27, 11, 4.2), (-46, 8, 3.8)):
            for side in (1, -1):
                turned = degrees + self.rng.normal(0, 2.5)
                turned = turned if side == 1 else 180 - turned
                index = int(np.argmin(np.abs((angle - turned + 180) % 360 - 180)))
                direction = np.arctan2(tangent[index, 1], tangent[index, 0])
                normal = np.array([np.sin(direction), -np.cos(direction)])
                normal *= np.sign(np.dot(normal, outline[index]))
                x, y = outline[index] + normal * 7.0
                rib = self.ellipse(x, y, length * self.rng.uniform(0.8, 1.2), thickness, direction)
                self.bone(np.minimum(rib, -cavity - 1.5), 1.3)
        for side in (1, -1):
            cartilage = self.ellipse(side * 30, -93, 15, 5.5, side * 0.10)
            self.paint(np.minimum(cartilage, -cavity - 1), 95.0, 1.5)
        self.bone(self.ellipse(0, -92, 17, 6.2), 1.4)

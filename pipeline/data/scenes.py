"""Procedural scenes with exact masks, for the demo, the tests and the bundled teacher.

A scene is a textured background with shapes painted back to front: ellipses, polygons, blobs, rings with holes, thin
bars and glyph-like strokes, some with nested parts. Later shapes occlude earlier ones; a part is a separate instance
that does not occlude its whole. Light, blur, noise and JPEG come last. All randomness comes from the given generator.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

Alpha = Float[np.ndarray, "s s"]
"""Coverage of each pixel in [0, 1]."""

SUPERSAMPLING = 2
MIN_VISIBLE_PX = 100
"""Instances with fewer visible pixels at 256 x 256 are dropped; scaled with the area."""
MIN_VISIBLE_SHARE = 0.2
"""Smallest visible fraction of an instance; more occluded ones are dropped, since their masks are no longer shapes."""
RADII = (0.075, 0.36)
"""Smallest and largest radius of a shape as fractions of the side, sampled log-uniformly."""
SHADOW_CHANCE, OUTLINE_CHANCE, PARTS_CHANCE = 0.3, 0.15, 0.35


@dataclass(frozen=True)
class Scene:
    """An image and the visible mask of each instance."""

    image: UInt8[np.ndarray, "s s 3"]
    masks: list[Bool[np.ndarray, "s s"]]


def render(rng: np.random.Generator, side: int) -> Scene:
    """Paint one scene of ``side`` x ``side`` pixels, RGB."""
    canvas = _texture(rng, side, _color(rng))
    alphas: list[Alpha] = []
    layers: list[int] = []  # the painted shape an instance belongs to: parts do not occlude their whole
    coverage: list[Alpha] = []  # what each painted shape hides
    for layer in range(int(rng.integers(3, 10))):
        radius = float(np.exp(rng.uniform(*np.log(RADII))))
        whole = _shape(rng, side, rng.uniform(0.05, 0.95, 2), radius)
        canvas = _paint(rng, canvas, whole)
        alphas.append(whole)
        layers.append(layer)
        coverage.append(whole)
        if rng.random() < PARTS_CHANCE:
            for part in _parts(rng, whole):
                canvas = _paint(rng, canvas, part)
                alphas.append(part)
                layers.append(layer)
    masks = _visible(alphas, layers, coverage, MIN_VISIBLE_PX * side * side / 256**2)
    return Scene(_photograph(rng, canvas), masks)


def _visible(alphas: list[Alpha], layers: list[int], coverage: list[Alpha], min_area: float) -> list[np.ndarray]:
    masks = []
    for alpha, layer in zip(alphas, layers, strict=True):
        whole = alpha >= 0.5
        mask = whole.copy()
        for later in coverage[layer + 1 :]:
            mask &= later < 0.5
        if mask.sum() >= max(min_area, MIN_VISIBLE_SHARE * whole.sum()):
            masks.append(mask)
    return masks


# --- shapes -------------------------------------------------------------------------------------------------


def _shape(rng: np.random.Generator, side: int, center: np.ndarray, radius: float) -> Alpha:
    """Coverage of a random shape; ``center`` and ``radius`` are fractions of the side."""
    draw = _SHAPES[rng.choice(len(_SHAPES), p=_SHARES)]
    fine = side * SUPERSAMPLING
    alpha = np.zeros((fine, fine), np.uint8)
    draw(rng, alpha, center * fine, radius * fine)
    small = cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def _outline(rng: np.random.Generator, center: np.ndarray, radii: np.ndarray, squash: float) -> np.ndarray:
    """Points around ``center`` at ``radii``, squashed and rotated: ``(n, 1, 2)`` integer pixels."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii * squash], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.round(points @ rotation.T + center).astype(np.int32)[:, None]


def _ellipse(rng: np.random.Generator, alpha: np.ndarray, center: np.ndarray, radius: float) -> None:
    cv2.fillPoly(alpha, [_outline(rng, center, np.full(72, radius), rng.uniform(0.35, 1))], 255)


def _polygon(rng: np.random.Generator, alpha: np.ndarray, center: np.ndarray, radius: float) -> None:
    corners = int(rng.integers(3, 9))
    radii = radius * rng.uniform(0.55, 1.1, corners)
    cv2.fillPoly(alpha, [_outline(rng, center, radii, rng.uniform(0.5, 1))], 255)


def _star(rng: np.random.Generator, alpha: np.ndarray, center: np.ndarray, radius: float) -> None:
    radii = np.tile([radius * 1.15, radius * rng.uniform(0.4, 0.7)], int(rng.integers(4, 8)))
    cv2.fillPoly(alpha, [_outline(rng, center, radii, rng.uniform(0.7, 1))], 255)


def _blob(rng: np.random.Generator, alpha: np.ndarray, center: np.ndarray, radius: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    waves = np.zeros_like(angles)
    for k in (1, 2, 3, 4, 5):
        waves += rng.uniform(0, 0.28 / k) * np.cos(k * angles + rng.uniform(0, 6.3))
    cv2.fillPoly(alpha, [_outline(rng, center, radius * (1 + waves), rng.uniform(0.6, 1))], 255)


def _ring(rng: np.random.Generator, alpha: np.ndarray, center: np.ndarray, radius: float) -> None:
    radius = max(radius, 0.07 * len(alpha))
    hole = rng.uniform(0.4, 0.72)
    outer = _outline(rng, center, np.full(72, radius), rng.uniform(0.6, 1))
    inner = np.round((outer - center) * hole + center).astype(np.int32)
    cv2.fillPoly(alpha, [outer, inner], 255)  # even-odd: the inner outline cuts a hole


def _bar(rng: np.random.Generator, alpha: np.ndarray, center: np.ndarray, radius: float) -> None:
    length = radius * rng.uniform(1.2, 2.2)
    thickness = max(0.022 * len(alpha), radius * rng.uniform(0.12, 0.35))
    box = cv2.boxPoints((tuple(map(float, center)), (float(2 * length), float(thickness)), float(rng.uniform(0, 180))))
    cv2.fillPoly(alpha, [np.round(box).astype(np.int32)[:, None]], 255)


def _glyph(rng: np.random.Generator, alpha: np.ndarray, center: np.ndarray, radius: float) -> None:
    """Thick connected strokes in a few directions, like a letter."""
    radius = max(radius, 0.08 * len(alpha))
    stroke = int(max(0.026 * len(alpha), radius * rng.uniform(0.2, 0.36)))
    grid = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)], np.float64)
    nodes = center + grid[rng.permutation(len(grid))[: int(rng.integers(3, 6))]] * radius * np.array([0.7, 1])
    cv2.polylines(alpha, [np.round(nodes).astype(np.int32)[:, None]], bool(rng.random() < 0.3), 255, stroke)
    if rng.random() < 0.5:
        axes = (int(radius * 0.6), int(radius * rng.uniform(0.4, 0.9)))
        start = float(rng.uniform(0, 360))
        middle = (int(nodes[0][0]), int(nodes[0][1]))
        turn, arc = float(rng.uniform(0, 180)), float(rng.uniform(120, 300))
        cv2.ellipse(alpha, middle, axes, turn, start, start + arc, 255, stroke)


_Draw = Callable[[np.random.Generator, np.ndarray, np.ndarray, float], None]
_SHAPES: list[_Draw] = [_ellipse, _polygon, _star, _blob, _ring, _bar, _glyph]
_SHARES = [0.2, 0.22, 0.06, 0.2, 0.1, 0.1, 0.12]


def _parts(rng: np.random.Generator, whole: Alpha) -> list[Alpha]:
    """One to three non-overlapping shapes inside ``whole``, clipped at its border."""
    side = len(whole)
    rows, columns = np.nonzero(whole >= 0.5)
    if len(rows) < 0.02 * side * side:
        return []
    reach = np.sqrt(len(rows) / np.pi) / side
    taken = np.zeros_like(whole)
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        pick = int(rng.integers(len(rows)))
        center = np.array([columns[pick], rows[pick]]) / side
        part = _shape(rng, side, center, float(reach * rng.uniform(0.3, 0.55))) * whole
        if (part * taken).max() < 0.1 and 0.03 * len(rows) < (part >= 0.5).sum() < 0.6 * len(rows):
            parts.append(part)
            taken = np.maximum(taken, part)
    return parts


# --- surfaces and light -------------------------------------------------------------------------------------


def _color(rng: np.random.Generator) -> np.ndarray:
    """A random RGB color, from greyish to vivid."""
    grey = rng.uniform(20, 235)
    return np.clip(grey + rng.normal(0, 1, 3) * rng.uniform(5, 75), 0, 255).astype(np.float32)


def _noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth noise of three octaves with mean 0 and about unit spread."""
    total = np.zeros((side, side), np.float32)
    cells = int(rng.integers(2, 12))
    for octave in range(3):
        grid = rng.standard_normal((min(side, cells << octave),) * 2).astype(np.float32)
        total += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total


def _texture(rng: np.random.Generator, side: int, color: np.ndarray) -> np.ndarray:
    """A surface of one color with a gradient and a pattern: ``(side, side, 3)`` float32 in 0..255."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    turn = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    light = rng.uniform(-60, 60) * (along - along.mean())
    kind = rng.choice(4, p=[0.3, 0.4, 0.2, 0.1])
    strength = rng.uniform(4, 26)
    if kind == 1:
        light = light + strength * _noise(rng, side)
    elif kind == 2:  # stripes
        light = light + strength * np.sign(np.sin(along * rng.uniform(20, 110)))
    elif kind == 3:  # checks
        across = y * np.cos(turn) - x * np.sin(turn)
        period = rng.uniform(15, 60)
        light = light + strength * np.sign(np.sin(along * period) * np.sin(across * period))
    tint = rng.uniform(0.6, 1.2, 3).astype(np.float32)
    return color + light[..., None].astype(np.float32) * tint


def _paint(rng: np.random.Generator, canvas: np.ndarray, alpha: Alpha) -> np.ndarray:
    """Paint a shape over the canvas in a color that differs from what it covers."""
    side = len(canvas)
    beneath = canvas[alpha >= 0.5].mean(axis=0) if (alpha >= 0.5).any() else canvas.mean(axis=(0, 1))
    color = max((_color(rng) for _ in range(3)), key=lambda c: min(np.abs(c - beneath).sum(), 140))
    if rng.random() < SHADOW_CHANCE:
        right, down = rng.uniform(-0.03, 0.03) * side, rng.uniform(0.005, 0.03) * side
        offset = np.array([[1, 0, right], [0, 1, down]], np.float32)
        shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, offset, (side, side)), (0, 0), 0.012 * side)
        canvas = canvas * (1 - rng.uniform(0.2, 0.6) * shadow[..., None])
    surface = _texture(rng, side, color)
    if rng.random() < OUTLINE_CHANCE:
        inner = cv2.erode(alpha, np.ones((3, 3), np.uint8), iterations=max(1, side // 170))
        surface = surface * (0.35 + 0.65 * inner[..., None])
    return canvas + alpha[..., None] * (surface - canvas)


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> UInt8[np.ndarray, "s s 3"]:
    """Simulate a camera: uneven light, blur, noise, JPEG."""
    side = len(canvas)
    if rng.random() < 0.5:
        canvas = canvas * (1 + 0.12 * np.clip(_noise(rng, side), -2, 2))[..., None]
    canvas = canvas * rng.uniform(0.75, 1.2) + rng.uniform(-15, 15)
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 1.1) * side / 256)
    if rng.random() < 0.6:
        canvas = canvas + rng.standard_normal(canvas.shape).astype(np.float32) * rng.uniform(1, 9)
    image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(45, 95))
        _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))[..., ::-1]
    return np.ascontiguousarray(image)

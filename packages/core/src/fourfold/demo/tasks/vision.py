"""demo-vision and demo-clip: name the colour and the shape in a 96 x 96 picture, and how it moves in a clip.

The shapes are drawn with NumPy alone, from inequalities on pixel coordinates, so that a seed gives the same pixels
on every machine. 96 pixels a side are 16 x 16 patches of 6 pixels: Gemma 4's image processor keeps that size and
makes 64 soft tokens of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
import numpy.typing as npt

from fourfold.demo.tasks.problem import Frames, Problem, Task
from fourfold.demo.tasks.words import pick_system

SIDE = 96
NUM_FRAMES = 4
#: Seconds between a clip's frames, as its prompt states them.
FRAME_SECONDS = 1.0

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (235, 220, 50),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "purple": (135, 50, 175),
    "pink": (245, 150, 190),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
MOTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

_PICTURE_PROMPTS = (
    "What is in the picture?",
    "Name the colour and the shape.",
    "Which shape do you see, and what colour is it?",
    "Describe the picture.",
)
_CLIP_PROMPTS = (
    "What moves in the clip, and which way?",
    "Name the colour, the shape and the direction.",
    "Describe the clip.",
)


@dataclass(frozen=True)
class Scene:
    """Everything that decides the pixels. Lengths in pixels, ``turn`` in degrees, ``ground`` the background's grey."""

    colour: str
    shape: str
    x: int
    y: int
    radius: int
    turn: int
    ground: int
    noise_seed: int
    step: tuple[int, int] = (0, 0)
    num_frames: int = 1

    def render(self) -> Frames:
        """uint8 [num_frames, SIDE, SIDE, 3]."""
        noise = np.random.default_rng(self.noise_seed)
        frames = np.empty((self.num_frames, SIDE, SIDE, 3), dtype=np.uint8)
        paint = np.array(COLOURS[self.colour]) + noise.integers(-18, 19, size=3)
        for index in range(self.num_frames):
            canvas = self.ground + noise.integers(-16, 17, size=(SIDE, SIDE, 3))
            mask = self._mask(self.x + index * self.step[0], self.y + index * self.step[1])
            canvas[mask] = paint + noise.integers(-12, 13, size=(int(mask.sum()), 3))
            frames[index] = np.clip(canvas, 0, 255)
        return frames

    def _mask(self, x: int, y: int) -> npt.NDArray[np.bool_]:
        angle = np.deg2rad(self.turn)
        rows, columns = np.mgrid[0:SIDE, 0:SIDE]
        dx, dy = (columns - x) / self.radius, (rows - y) / self.radius
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        inside: npt.NDArray[np.bool_] = _INSIDE[self.shape](u, v)
        return inside


_Plane = npt.NDArray[np.float64]


def _half_planes(u: _Plane, v: _Plane, corners: int, offset: float) -> npt.NDArray[np.int64]:
    """How many of a regular polygon's sides have the point on their inner side; one side faces down."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    inner = [u * np.cos(angle) + v * np.sin(angle) <= offset for angle in angles]
    held: npt.NDArray[np.int64] = np.sum(inner, axis=0)
    return held


_INSIDE = {
    "circle": lambda u, v: u * u + v * v <= 0.8,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.8,
    "triangle": lambda u, v: _half_planes(u, v, corners=3, offset=0.5) == 3,
    "diamond": lambda u, v: 1.3 * abs(u) + abs(v) <= 1.0,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.28) & (np.maximum(abs(u), abs(v)) <= 0.95),
    # A pentagram is where at least four of a pentagon's five sides agree.
    "star": lambda u, v: (_half_planes(u, -v, corners=5, offset=0.38) >= 4) & (u * u + v * v <= 1.6),
}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _draw_scene(rng: Random, *, motion: str | None) -> Scene:
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    radius = rng.randint(13, 34) if motion is None else rng.randint(13, 24)
    step = rng.randint(5, 13) if motion else 0
    dx, dy = MOTIONS[motion] if motion else (0, 0)
    travel = step * (NUM_FRAMES - 1)

    def start(direction: int) -> int:
        low, high = radius, SIDE - radius
        if direction > 0:
            high = max(low, high - travel)
        if direction < 0:
            low = min(high, low + travel)
        return rng.randint(low, high)

    return Scene(
        colour=colour, shape=shape, x=start(dx), y=start(dy), radius=radius, turn=rng.randint(-12, 12),
        ground=rng.randint(40, 150), noise_seed=rng.getrandbits(32), step=(dx * step, dy * step),
        num_frames=NUM_FRAMES if motion else 1,
    )  # fmt: skip


def make_picture(rng: Random) -> Problem:
    """One picture with a question."""
    scene = _draw_scene(rng, motion=None)
    return Problem(
        task="vision",
        key=f"vision:{scene}",
        prompt=rng.choice(_PICTURE_PROMPTS),
        target=f"{_article(scene.colour).capitalize()} {scene.colour} {scene.shape}.",
        answer=f"{scene.colour} {scene.shape}",
        system=pick_system(rng),
        medium="image",
        metadata={"colour": scene.colour, "shape": scene.shape},
        render=scene.render,
    )


def make_clip(rng: Random) -> Problem:
    """One clip of four frames with a question."""
    motion = rng.choice(list(MOTIONS))
    scene = _draw_scene(rng, motion=motion)
    return Problem(
        task="clip",
        key=f"clip:{scene}",
        prompt=rng.choice(_CLIP_PROMPTS),
        target=f"{_article(scene.colour).capitalize()} {scene.colour} {scene.shape} moves {motion}.",
        answer=f"{scene.colour} {scene.shape} {motion}",
        system=pick_system(rng),
        medium="video",
        metadata={"colour": scene.colour, "shape": scene.shape, "motion": motion},
        render=scene.render,
    )


def _check_named(problem: Problem, response: str, *, vocabularies: dict[str, tuple[str, ...]]) -> dict[str, bool]:
    """The response must name the right word of each vocabulary, and none of the wrong ones."""
    words = set(response.lower().replace(".", " ").replace(",", " ").split())
    return {part: words & set(known) == {problem.metadata[part]} for part, known in vocabularies.items()}


_PICTURE_VOCABULARIES = {"colour": tuple(COLOURS), "shape": SHAPES}

VISION = Task("vision", make_picture, partial(_check_named, vocabularies=_PICTURE_VOCABULARIES), max_new_tokens=16)
CLIP = Task(
    "clip",
    make_clip,
    partial(_check_named, vocabularies={**_PICTURE_VOCABULARIES, "motion": tuple(MOTIONS)}),
    max_new_tokens=16,
)

"""The pictures and questions that the small model learns from.

A scene is one to three objects, drawn by one artist, on a coloured background. Because we compose
it, we know every answer. The drawings are openly licensed emoji (see NOTICE.md); two artists are
never trained on, so that accuracy on their drawings is honest.
"""

import functools
import io
import zipfile
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from minipali.locations import box_tokens

OBJECTS = (
    "apple", "ball", "balloon", "bicycle", "cactus", "cake", "car", "cat",
    "clock", "crown", "dog", "frog", "guitar", "hamburger", "key", "moon",
    "mushroom", "penguin", "pig", "pizza", "rocket", "sunflower", "tree", "umbrella",
)  # fmt: skip

BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (22, 22, 22),
    "grey": (128, 128, 128),
    "red": (205, 45, 45),
    "pink": (240, 150, 185),
    "yellow": (240, 205, 40),
    "green": (60, 165, 70),
    "blue": (50, 100, 215),
    "purple": (140, 65, 175),
}

PLACES = ("left", "right", "top", "bottom")

# Each artist's sets of drawings. The three Fluent sets are one artist's work in three styles.
TRAINING_ARTISTS = {
    "noto": ("noto",),
    "noto-v1": ("noto-v1",),
    "emojione": ("emojione",),
    "fluent": ("fluent-flat", "fluent", "fluent-3d"),
    "streamline": ("streamline",),
}
VALIDATION_ARTIST = {"fxemoji": ("fxemoji",)}  # for watching and choosing; never trained on
TEST_ARTIST = {"twemoji": ("twemoji",)}  # for the model card alone; never trained or chosen on

SIDE = 72  # pixels of a scene at scale 1, the small model's picture size
GRID = 3  # box edges lie on multiples of this many pixels, so 25 of the 1024 <loc> tokens occur


@dataclass(frozen=True)
class Thing:
    """One object: its name and its box (y0, x0, y1, x1) as fractions of the picture."""

    name: str
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        y0, x0, y1, x1 = self.box
        return (y0 + y1) / 2, (x0 + x1) / 2


@dataclass(frozen=True)
class Scene:
    """A picture as uint8 (y, x, 3), the background's name, and the objects from left to right."""

    pixels: np.ndarray
    background: str
    things: tuple[Thing, ...]

    @property
    def picture(self) -> Image.Image:
        return Image.fromarray(self.pixels)


@functools.cache
def sprites() -> dict[tuple[str, str], Image.Image]:
    """All drawings by (set, name): RGBA, 96 x 96, read from the archive once."""
    archive = resources.files("minipali") / "assets" / "sprites.zip"
    found = {}
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as opened:
        for entry in opened.namelist():
            drawing_set, name = entry.removesuffix(".png").split("/")
            found[drawing_set, name] = Image.open(io.BytesIO(opened.read(entry))).convert("RGBA")
    return found


def examples() -> dict[str, Image.Image]:
    """The example pictures of the package by name, 288 x 288 pixels; no scene of the training."""
    folder = resources.files("minipali") / "assets" / "pictures"
    return {
        entry.name.removesuffix(".png"): Image.open(io.BytesIO(entry.read_bytes())).convert("RGB")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".png")
    }


def drawings_of(name: str, artists: dict[str, tuple[str, ...]]) -> list[str]:
    """The sets of these artists that hold a drawing of the object."""
    return [s for own in artists.values() for s in own if (s, name) in sprites()]


@functools.lru_cache(maxsize=4_000)
def _turned(drawing_set: str, name: str, angle: int, mirrored: bool) -> Image.Image:
    """One drawing, mirrored and turned, cut to what is not transparent."""
    image = sprites()[drawing_set, name]
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        image = image.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return image.crop(image.getchannel("A").point([255 * (a > 40) for a in range(256)]).getbbox())


@functools.lru_cache(maxsize=20_000)
def _drawn(drawing_set: str, name: str, angle: int, mirrored: bool, stretch: int, long: int):
    """The drawing stretched by `stretch` percent and resized to whole grid cells: uint8 (h, w, 4).

    long: its longer side in pixels.
    """
    image = _turned(drawing_set, name, angle, mirrored)
    width, height = image.width * (1 + stretch / 100), image.height * (1 - stretch / 100)
    unit = GRID * max(width, height) / long
    cells = (max(1, round(width / unit)), max(1, round(height / unit)))
    smaller = cells[0] * GRID <= image.width
    filter = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return np.asarray(image.resize((cells[0] * GRID, cells[1] * GRID), filter))


def _recoloured(drawing: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Turn the hue and change contrast and brightness a little: float32 RGB, 0 to 255."""
    rgb = drawing[..., :3].astype(np.float32)
    if strength == 0:
        return rgb
    # A rotation about the grey axis turns the hue and keeps greys grey.
    turn = rng.normal(0, 0.25 * strength)
    if rng.random() < 0.12 * strength:
        turn = rng.uniform(-np.pi, np.pi)
    c, s = np.cos(turn), np.sin(turn)
    a, b, d = c + (1 - c) / 3, (1 - c) / 3 - s / 3**0.5, (1 - c) / 3 + s / 3**0.5
    matrix = np.array([[a, b, d], [d, a, b], [b, d, a]], np.float32)
    gain = rng.uniform(1 - 0.25 * strength, 1 + 0.2 * strength)
    return (rgb @ matrix.T - 128) * gain + 128 + rng.normal(0, 12 * strength)


def _painted(rgb: np.ndarray, colour: str) -> np.ndarray:
    """A drawing (h, w, 3) in shades of the named colour alone."""
    light = rgb.mean(axis=2, keepdims=True) / 255
    return np.array(BACKGROUNDS[colour], np.float32) * (0.45 + 0.55 * light)


def _background(rng: np.random.Generator, name: str, side: int) -> np.ndarray:
    """A plain, shaded or spotted surface of the named colour: float32 (side, side, 3)."""
    colour = np.array(BACKGROUNDS[name], np.float32) + rng.normal(0, 7, 3)
    surface = np.broadcast_to(colour, (side, side, 3)).astype(np.float32)
    kind = rng.integers(3)
    if kind == 1:  # shaded along a random direction
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        angle = rng.uniform(0, 2 * np.pi)
        surface += ((np.cos(angle) * x + np.sin(angle) * y) * rng.uniform(4, 18))[..., None]
    elif kind == 2:  # soft spots
        spots = rng.normal(0, rng.uniform(3, 9), (9, 9)).astype(np.float32)
        spots = np.asarray(Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC))
        surface += spots[..., None]
    return surface


def _place(rng: np.random.Generator, sizes: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
    """Corners on the grid so that no two objects overlap, or None if none was found."""
    taken: list[tuple[int, int, int, int]] = []
    for height, width in sizes:
        for _ in range(30):
            y = GRID * rng.integers((SIDE - height) // GRID + 1)
            x = GRID * rng.integers((SIDE - width) // GRID + 1)
            clear = (
                y + height <= ty or ty + th <= y or x + width <= tx or tx + tw <= x
                for ty, tx, th, tw in taken
            )
            if all(clear):
                taken.append((y, x, height, width))
                break
        else:
            return None
    return [(y, x) for y, x, _, _ in taken]


SIZES = {1: (27, 63), 2: (24, 42), 3: (21, 33)}  # longest side in pixels by number of objects


def compose(
    rng: np.random.Generator,
    artists: dict[str, tuple[str, ...]],
    count: int | None = None,
    names: list[str] | None = None,
    strength: float = 0.0,
    scale: int = 1,
    colour: str | None = None,
) -> Scene:
    """A new scene by one of the artists.

    count: 1 to 3 objects (random by default); names: which (random by default, sometimes the same
    twice); strength: how far colours and shapes may move, 0 (as drawn, the evaluation's setting)
    to 1 (the training's); scale: the picture is 72 * scale pixels wide; colour: one of BACKGROUNDS,
    in whose shades all objects are painted, or as they were drawn.
    """
    if names is None:
        count = int(rng.integers(1, 4)) if count is None else count
        known = [name for name in OBJECTS if drawings_of(name, artists)]
        names = [known[i] for i in rng.choice(len(known), count, replace=False)]
        if count > 1 and rng.random() < 0.4:
            names = [names[0]] * int(rng.integers(2, count + 1)) + names[1:]
            names = names[:count]
    own = artists[list(artists)[rng.integers(len(artists))]]
    sets = []
    for name in names:
        # An artist who never drew an object borrows another's drawing of it.
        having = [s for s in own if (s, name) in sprites()] or drawings_of(name, artists)
        if not having:
            raise ValueError(f"there must be a drawing of {name!r} by one of {', '.join(artists)}")
        sets.append(having[rng.integers(len(having))])
    while True:
        low, high = SIZES[len(names)]
        drawn, sizes = [], []
        for drawing_set, name in zip(sets, names, strict=True):
            long = GRID * int(rng.integers(low // GRID, high // GRID + 1))
            stretch = 5 * round(rng.integers(-3, 4) * strength)
            angle = 6 * round(rng.integers(-3, 4) * strength)
            look = (drawing_set, name, angle, bool(rng.random() < 0.5 * strength), stretch)
            small = _drawn(*look, long)
            sizes.append(small.shape[:2])
            drawn.append(small if scale == 1 else _drawn(*look, long * scale))
        corners = _place(rng, sizes)
        if corners is not None:
            break
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    pixels = _background(rng, background, SIDE * scale)
    things = []
    for drawing, name, (height, width), (y, x) in zip(drawn, names, sizes, corners, strict=True):
        if drawing.shape[:2] != (height * scale, width * scale):
            whole = Image.fromarray(drawing).resize((width * scale, height * scale))
            drawing = np.asarray(whole)
        opacity = drawing[..., 3:].astype(np.float32) / 255
        place = pixels[y * scale : (y + height) * scale, x * scale : (x + width) * scale]
        shown = _recoloured(drawing, rng, strength)
        place += opacity * ((shown if colour is None else _painted(shown, colour)) - place)
        box = tuple(float(edge / SIDE) for edge in (y, x, y + height, x + width))
        things.append(Thing(name, box))
    if strength:
        pixels += rng.normal(0, 4 * strength * rng.random(), pixels.shape)
        pixels = (pixels - 128) * rng.uniform(0.9, 1.1) + 128
    things.sort(key=lambda thing: (thing.centre[1], thing.centre[0]))
    return Scene(pixels.clip(0, 255).round().astype(np.uint8), background, tuple(things))


def pixel_values(scenes: list[Scene]) -> Tensor:
    """Scenes of the model's own picture size -> (b, 3, y, x) in [-1, 1], as the processor does."""
    stacked = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).float()
    return rearrange(stacked, "b y x c -> b c y x") / 255 * 2 - 1


# --- questions and answers, in PaliGemma's own prompt style ---------------------------------------


def plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def caption(scene: Scene) -> str:
    """All objects from left to right, equal ones together, and the background."""
    counts: dict[str, int] = {}
    for thing in scene.things:
        counts[thing.name] = counts.get(thing.name, 0) + 1
    parts = [
        with_article(name) if n == 1 else f"{('two', 'three')[n - 2]} {plural(name)}"
        for name, n in counts.items()
    ]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{listed} on a {scene.background} background"


def extreme(scene: Scene, place: str, margin: float = 0.12) -> Thing | None:
    """The object farthest to the left, right, top or bottom, if it is clearly so."""
    axis = 0 if place in ("top", "bottom") else 1
    ordered = sorted(
        scene.things, key=lambda t: t.centre[axis], reverse=place in ("right", "bottom")
    )
    if len(ordered) < 2 or abs(ordered[0].centre[axis] - ordered[1].centre[axis]) < margin:
        return None
    return ordered[0]


def detection(scene: Scene, name: str) -> str:
    """The boxes of all objects of that name: `<loc y0><loc x0><loc y1><loc x1> name ; ...`."""
    return " ; ".join(
        f"{box_tokens(thing.box)} {name}" for thing in scene.things if thing.name == name
    )


@dataclass(frozen=True)
class Question:
    """task: which row of the model card it counts for; answer: what the model should say."""

    task: str
    prompt: str
    answer: str


TASKS = (
    "naming", "background", "places", "counting", "counting NAME", "yes/no", "detection", "caption",
)  # fmt: skip


def ask(rng: np.random.Generator, scene: Scene, task: str) -> Question | None:
    """A question of that task about this scene, or None where it makes no sense."""
    names = sorted({thing.name for thing in scene.things})
    present = names[rng.integers(len(names))]
    absent = present
    while absent in names:
        absent = OBJECTS[rng.integers(len(OBJECTS))]
    if task == "naming":
        return (
            Question(task, "answer en what is this?", present) if len(scene.things) == 1 else None
        )
    if task == "background":
        prompt = "answer en what colour is the background?"
        return Question(task, prompt, scene.background)
    if task == "places":
        for place in rng.permutation(PLACES):
            if found := extreme(scene, place):
                where = f"at the {place}" if place in ("top", "bottom") else f"on the {place}"
                return Question(task, f"answer en what is {where}?", found.name)
        return None
    if task == "counting":
        prompt = "answer en how many objects are there?"
        return Question(task, prompt, str(len(scene.things)))
    if task == "counting NAME":
        name = absent if rng.random() < 0.25 else present
        count = sum(thing.name == name for thing in scene.things)
        word = name if rng.random() < 0.2 else plural(name)
        return Question(task, f"answer en how many {word} are there?", str(count))
    if task == "yes/no":
        yes = rng.random() < 0.5
        name = present if yes else absent
        word = f"a {name}" if rng.random() < 0.2 else with_article(name)
        return Question(task, f"answer en is there {word}?", "yes" if yes else "no")
    if task == "detection":
        name = absent if rng.random() < 0.08 else present
        return Question(task, f"detect {name}", detection(scene, name))
    if task == "caption":
        return Question(task, "caption en", caption(scene))
    raise ValueError(f"task must be one of {TASKS}, found {task!r}")


def patch_cover(box: tuple[float, float, float, float], side: int) -> Tensor:
    """Which part of each of the side x side patches lies in a box: (n,) from 0 to 1.

    box: (y0, x0, y1, x1) as fractions of the picture.
    """
    y0, x0, y1, x1 = (side * edge for edge in box)
    start = torch.arange(side)
    rows = ((start + 1).clamp(max=y1) - start.clamp(min=y0)).clamp(min=0)
    columns = ((start + 1).clamp(max=x1) - start.clamp(min=x0)).clamp(min=0)
    return torch.outer(rows, columns).flatten()

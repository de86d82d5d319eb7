"""Turn openly licensed emoji artwork into ``minipali/assets/sprites.zip``.

Usage::

    python tools/render_sprites.py NODE_MODULES_FOLDER

The folder must hold the icon packages named in ``ARTISTS`` (see NOTICE.md for versions and
licences).  Every picture is rasterised, cropped to what is drawn, resized so that its longest
side is 92 pixels, centred on a transparent 96 x 96 canvas, reduced to a small palette and
stored as ``ARTIST/NAME.png``.  On one machine the same input gives the same bytes.

Needs ``resvg_py``, ``pillow`` and ``numpy``; the package itself does not need ``resvg_py``.
"""

import io
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

CANVAS, LONGEST, COLOURS = 96, 92, 128
RASTER = 512  # vector drawings are first rasterised this large
ALPHA_FLOOR = 24  # fainter pixels do not count when cropping
OUTPUT = Path(__file__).resolve().parents[1] / "minipali" / "assets" / "sprites.zip"

# artist -> package folder.  "fluent-3d" holds pictures named by code point, the others hold SVG.
ARTISTS = {
    "noto": "@iconify-json/noto",
    "noto-v1": "@iconify-json/noto-v1",
    "twemoji": "@iconify-json/twemoji",
    "emojione": "@iconify-json/emojione",
    "fxemoji": "@iconify-json/fxemoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "fluent": "@iconify-json/fluent-emoji",
    "fluent-3d": "@lobehub/fluent-emoji-3d",
    "streamline": "@iconify-json/streamline-emojis",
}


def entry(code, slug, **other):
    """One object: file name in fluent-3d, usual slug, and slugs of the artists that differ."""
    return {"fluent-3d": code, "*": slug} | {k.replace("_", "-"): v for k, v in other.items()}


# name -> where to find it.  A slug of None means: this artist has no such drawing.
OBJECTS = {
    "apple": entry("1f34e", "red-apple", fxemoji="redapple"),
    "ball": entry("26bd", "soccer-ball", fxemoji="soccerball"),
    "balloon": entry("1f388", "balloon"),
    "banana": entry("1f34c", "banana"),
    "bear": entry("1f43b", "bear", emojione="bear-face", streamline="bear-face"),
    "bee": entry("1f41d", "honeybee"),
    "bell": entry("1f514", "bell"),
    "bicycle": entry("1f6b2", "bicycle"),
    "bird": entry("1f426", "bird", fxemoji=None, streamline="bird-2"),
    "boat": entry("26f5", "sailboat"),
    "book": entry("1f4d7", "green-book", fxemoji="greenbook"),
    "bus": entry("1f68c", "bus"),
    "butterfly": entry("1f98b", "butterfly"),
    "cactus": entry("1f335", "cactus", streamline="cactus-1"),
    "cake": entry("1f382", "birthday-cake", fxemoji="birthdaycake", streamline="birthday-cake-1"),
    "camera": entry("1f4f7", "camera"),
    "car": entry("1f697", "automobile"),
    "carrot": entry("1f955", "carrot"),
    "cat": entry("1f431", "cat-face", fxemoji="cat"),
    "cherry": entry("1f352", "cherries"),
    "chick": entry("1f425", "front-facing-baby-chick", fxemoji="frontfacingchick"),
    "clock": entry("23f0", "alarm-clock", fxemoji="alarmclock"),
    "cow": entry("1f42e", "cow-face", fxemoji="cowface"),
    "crown": entry("1f451", "crown"),
    "dog": entry("1f436", "dog-face", fxemoji="dog"),
    "doughnut": entry("1f369", "doughnut", streamline="doughnut-1"),
    "drum": entry("1f941", "drum"),
    "elephant": entry("1f418", "elephant"),
    "fish": entry("1f41f", "fish", streamline="tropical-fish"),
    "frog": entry("1f438", "frog", emojione="frog-face", streamline="frog-face"),
    "ghost": entry("1f47b", "ghost"),
    "grapes": entry("1f347", "grapes"),
    "guitar": entry("1f3b8", "guitar"),
    "hamburger": entry("1f354", "hamburger", streamline="hamburger-1"),
    "hammer": entry("1f528", "hammer"),
    "hat": entry("1f452", "womans-hat", fxemoji="womanshat"),
    "heart": entry("2764-fe0f", "red-heart", fxemoji="redheart", streamline="heart-suit"),
    "helicopter": entry("1f681", "helicopter"),
    "house": entry("1f3e0", "house", fxemoji="housebuilding", streamline="house-with-garden"),
    "key": entry("1f511", "key"),
    "lemon": entry("1f34b", "lemon"),
    "lollipop": entry("1f36d", "lollipop"),
    "monkey": entry("1f435", "monkey-face", fxemoji="monkeyface"),
    "moon": entry("1f319", "crescent-moon", fxemoji="crescentmoon"),
    "mouse": entry("1f42d", "mouse-face", fxemoji="mouse"),
    "mushroom": entry("1f344", "mushroom"),
    "owl": entry("1f989", "owl"),
    "panda": entry("1f43c", "panda", fxemoji="pandaface", emojione="panda-face"),
    "pear": entry("1f350", "pear"),
    "penguin": entry("1f427", "penguin", streamline=None),
    "pig": entry("1f437", "pig-face", fxemoji="pig"),
    "pineapple": entry("1f34d", "pineapple"),
    "pizza": entry("1f355", "pizza", fxemoji="sliceofpizza", streamline="pizza-1"),
    "plane": entry("2708-fe0f", "airplane"),
    "rabbit": entry("1f430", "rabbit-face", fxemoji="bunny"),
    "rocket": entry("1f680", "rocket"),
    "snail": entry("1f40c", "snail"),
    "star": entry("2b50", "star"),
    "strawberry": entry("1f353", "strawberry", streamline="strawberry-1"),
    "sun": entry("2600-fe0f", "sun", fxemoji="whitesun"),
    "sunflower": entry("1f33b", "sunflower", streamline="sunflower-1"),
    "tractor": entry("1f69c", "tractor"),
    "train": entry("1f682", "locomotive", fxemoji="steamlocomotive"),
    "tree": entry("1f333", "deciduous-tree", fxemoji="deciduoustree"),
    "trophy": entry("1f3c6", "trophy"),
    "truck": entry("1f69a", "delivery-truck", fxemoji="deliverytruck"),
    "tulip": entry("1f337", "tulip"),
    "turtle": entry("1f422", "turtle"),
    "umbrella": entry("2602-fe0f", "umbrella", fxemoji="umbrellawithraindrops"),
    "watermelon": entry("1f349", "watermelon", streamline="watermelon-1"),
    "whale": entry("1f433", "spouting-whale", fxemoji="spurtingwhale"),
}

# (artist, slug) -> numbers of the SVG elements left out, so that only the object itself remains:
# a backdrop, rain, bubbles, a glow, sparkles, notes, a face, a tree beside the house.  The
# numbers hold for the package versions in NOTICE.md.
LEFT_OUT = {
    ("emojione", "fish"): range(8, 11),
    ("fxemoji", "sailboat"): [0],
    ("fxemoji", "star"): [1],
    ("fxemoji", "umbrellawithraindrops"): [3],
    ("noto", "birthday-cake"): [23],
    ("noto", "rocket"): range(18, 21),
    ("streamline", "guitar"): range(14, 20),
    ("streamline", "house-with-garden"): range(6),
    ("streamline", "rocket"): range(17, 27),
    ("streamline", "watermelon-1"): range(11, 32),
}
SHADOW = re.compile(r'<path fill="#45413c" [^>]*opacity="\.15"/>')  # on the ground, in streamline


def from_svg(artist, icons, slug):
    """Rasterise one drawing of an icon package, or return None if the package lacks it."""
    while slug in icons.get("aliases", {}):
        slug = icons["aliases"][slug]["parent"]
    icon = icons["icons"].get(slug)
    if icon is None:
        return None
    parts = re.split(r"(<[^>]+>)", icon["body"])
    for number in LEFT_OUT.get((artist, slug), ()):
        parts[2 * number + 1] = ""
    body = SHADOW.sub("", "".join(parts))
    box = " ".join(
        str(icon.get(key, icons.get(key, default)))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{RASTER}" height="{RASTER}">{body}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def normalise(picture):
    """Crop to what is drawn, resize its longest side to LONGEST, centre it on the canvas."""
    ys, xs = np.nonzero(np.asarray(picture)[..., 3] >= ALPHA_FLOOR)
    picture = picture.crop((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    scale = LONGEST / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    # Premultiplied alpha keeps the colour of transparent pixels out of the edges.
    picture = picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    canvas.paste(picture, ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2))
    return canvas


def to_png(picture):
    """Return the bytes of a palette PNG whose palette has an alpha channel."""
    pixels = np.asarray(picture.convert("RGBa"), dtype=np.float32).reshape(-1, 4)
    colours, index, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    rough = picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    rough = np.asarray(rough.convert("RGBA").convert("RGBa"), dtype=np.float32).reshape(-1, 4)
    palette = np.unique(rough, axis=0)
    for _ in range(12):  # k-means: the nearest palette entry, then the mean of its pixels
        nearest = np.argmin((palette**2).sum(1) - 2 * colours @ palette.T, axis=1)
        weight = np.bincount(nearest, counts, len(palette))
        for channel in range(4):
            total = np.bincount(nearest, counts * colours[:, channel], len(palette))
            palette[:, channel] = np.where(weight > 0, total / np.maximum(weight, 1), 0)
    palette = np.clip(np.rint(palette), 0, 255)
    palette[palette[:, 3] < 4] = 0
    palette[:, :3] = np.minimum(palette[:, :3], palette[:, 3:])
    straight = Image.fromarray(palette[None].astype(np.uint8), "RGBa").convert("RGBA")
    straight = np.asarray(straight)[0]
    small = Image.fromarray(nearest[index.reshape(-1)].reshape(CANVAS, CANVAS).astype(np.uint8))
    small.putpalette(straight[:, :3].tobytes())
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True, transparency=straight[:, 3].tobytes())
    return out.getvalue()


def render(folder):
    """Yield (artist, name, picture) for every drawing that exists."""
    for artist, package in ARTISTS.items():
        icons = None
        if artist != "fluent-3d":
            icons = json.loads((folder / package / "icons.json").read_text(encoding="utf-8"))
        for name, where in OBJECTS.items():
            slug = where.get(artist, where["*"])
            if icons is not None:
                picture = from_svg(artist, icons, slug)
            else:
                path = folder / package / "assets" / f"{slug}.webp"
                picture = Image.open(path).convert("RGBA") if path.exists() else None
            if picture is not None:
                yield artist, name, normalise(picture)


def main(folder):
    files = {f"{artist}/{name}.png": to_png(pic) for artist, name, pic in render(folder)}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(OUTPUT, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(path, (2000, 1, 1, 0, 0, 0)), files[path])
    print(f"{OUTPUT}: {len(files)} pictures, {OUTPUT.stat().st_size / 1e6:.2f} MB")
    for artist in ARTISTS:
        lacks = [name for name in OBJECTS if f"{artist}/{name}.png" not in files]
        print(f"{artist:12s} lacks: {', '.join(lacks) or '-'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Compose the example pictures of the package: new scenes, 288 x 288 pixels.

    python tools/render_pictures.py            writes minipali/assets/pictures/*.png
    python tools/render_pictures.py answers    writes docs/what_it_is.png, with the model's answers

Half are drawn by artists that the small model was trained on, half by the test artist, whose
drawings it never saw. No training scene has these places, sizes and backgrounds.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minipali import detect, generate, load, scenes
from minipali.locations import draw_boxes

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "minipali" / "assets" / "pictures"

PICTURES = {  # file name: artists, objects, seed
    "cat_and_ball": ({"noto": ("noto",)}, ["cat", "ball"], 4),
    "three_apples": ({"fluent": ("fluent-3d",)}, ["apple", "apple", "apple"], 9),
    "rocket_moon_clock": ({"emojione": ("emojione",)}, ["rocket", "moon", "clock"], 1),
    "penguin_test_artist": (scenes.TEST_ARTIST, ["penguin"], 3),
    "dog_and_car_test_artist": (scenes.TEST_ARTIST, ["dog", "car"], 246),
    "two_frogs_and_pizza_test_artist": (scenes.TEST_ARTIST, ["frog", "frog", "pizza"], 12),
}

SHOWN = {  # picture: what to detect, what to ask
    "dog_and_car_test_artist": (
        ["dog", "car"],
        ["caption en", "answer en what is on the left?", "answer en is there a cactus?"],
    ),
    "two_frogs_and_pizza_test_artist": (
        ["frog", "pizza"],
        ["answer en how many frogs are there?", "answer en what is on the right?", "detect pizza"],
    ),
}


def compose_pictures() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (artists, names, seed) in PICTURES.items():
        scene = scenes.compose(np.random.default_rng(seed), artists, names=names, scale=4)
        scene.picture.quantize(128).save(FOLDER / f"{name}.png", optimize=True)
        print(f"{name}: {scenes.caption(scene)}")


def draw_answers() -> None:
    """The README's picture: boxes and answers, just as the model gives them."""
    model, processor = load("small")
    figure, axes = plt.subplots(len(SHOWN), 2, figsize=(9, 3.2 * len(SHOWN)), layout="constrained")
    for (left, right), (name, (objects, prompts)) in zip(axes, SHOWN.items(), strict=True):
        picture = scenes.examples()[name]
        found = [box for wanted in objects for box in detect(model, processor, picture, wanted)]
        left.imshow(draw_boxes(picture, found))
        for line, prompt in enumerate(prompts):
            answer = generate(model, processor, picture, prompt)
            y = 0.88 - line * 0.32
            right.text(0, y, prompt, family="monospace", fontsize=11, color="#555555")
            right.text(0.03, y - 0.13, answer, fontsize=13, weight="bold", color="#0072B2")
            print(f"{name}: {prompt} -> {answer}")
        left.axis("off"), right.axis("off")
    target = ROOT / "docs" / "what_it_is.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    draw_answers() if sys.argv[1:] == ["answers"] else compose_pictures()

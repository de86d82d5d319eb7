"""Compose the example pictures of the package: new scenes, 288 x 288 pixels.

    python tools/render_pictures.py            writes minipali/assets/pictures/*.png

Half are drawn by artists that the small model was trained on, half by the test artist, whose
drawings it never saw. No training scene has these places, sizes and backgrounds.
"""

from pathlib import Path

import numpy as np

from minipali import scenes

FOLDER = Path(__file__).resolve().parents[1] / "minipali" / "assets" / "pictures"

PICTURES = {  # file name: artists, objects, seed
    "cat_and_ball": ({"noto": ("noto",)}, ["cat", "ball"], 4),
    "three_apples": ({"fluent": ("fluent-3d",)}, ["apple", "apple", "apple"], 9),
    "rocket_moon_clock": ({"emojione": ("emojione",)}, ["rocket", "moon", "clock"], 1),
    "penguin_test_artist": (scenes.TEST_ARTIST, ["penguin"], 3),
    "dog_and_car_test_artist": (scenes.TEST_ARTIST, ["dog", "car"], 6),
    "two_frogs_and_pizza_test_artist": (scenes.TEST_ARTIST, ["frog", "frog", "pizza"], 5),
}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (artists, names, seed) in PICTURES.items():
        scene = scenes.compose(np.random.default_rng(seed), artists, names=names, scale=4)
        scene.picture.quantize(128).save(FOLDER / f"{name}.png", optimize=True)
        print(f"{name}: {scenes.caption(scene)}")

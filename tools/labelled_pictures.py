"""Make a folder of labelled pictures, as somebody may have them who wants to fine-tune a model.

    python tools/labelled_pictures.py FOLDER [--name bus] [--pictures 40]
    minipali finetune FOLDER --output learned

The pictures show an object that the small model has never seen, from drawings that the package
holds and nothing was trained on: alone, or beside an object that it knows. A few show known objects
alone, so that the new word does not become the answer to everything. train.jsonl is by the training
artists; validation.jsonl by another one, whose drawings of no object were learned from.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from minipali import scenes

SCALE = 4  # 288 pixels, as the example pictures


def names_of(rng: np.random.Generator, number: int, name: str) -> list[str]:
    """What picture `number` shows: of each four, two the new object, one both, one a known one."""
    known = scenes.OBJECTS[rng.integers(len(scenes.OBJECTS))]
    return [[name], [name, known], [name], [known]][number % 4]


def lines(scene: scenes.Scene, rng: np.random.Generator, image: str) -> list[dict]:
    """Two questions about a picture, in the words that the small model knows."""
    tasks = ("naming" if len(scene.things) == 1 else "places", "detection")
    asked = [scenes.ask(rng, scene, task) for task in tasks]
    return [
        {"image": image, "prefix": one.prompt, "suffix": one.answer}
        for one in asked
        if one is not None and one.answer
    ]


def make(folder: Path, name: str, pictures: int, seed: int) -> None:
    for file, artists, part in (
        ("train", scenes.TRAINING_ARTISTS, 0),
        ("validation", scenes.VALIDATION_ARTIST, 1),
    ):
        rng = np.random.default_rng([seed, part])
        (folder / file).mkdir(parents=True, exist_ok=True)
        written = []
        for number in range(pictures):
            names = names_of(rng, number, name)
            scene = scenes.compose(rng, artists, names=names, scale=SCALE)
            image = f"{file}/{number + 1:02d}.png"
            scene.picture.save(folder / image)
            written += lines(scene, rng, image)
        text = "".join(json.dumps(line) + "\n" for line in written)
        (folder / f"{file}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        print(f"{folder / file}.jsonl: {len(written)} lines about {pictures} pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="bus", help="default bus")
    parser.add_argument("--pictures", type=int, default=40, help="default 40")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    known = {name for _, name in scenes.sprites()}
    if given.name not in known - set(scenes.OBJECTS):
        parser.error(f"--name must be one of {', '.join(sorted(known - set(scenes.OBJECTS)))}")
    make(given.folder, given.name, given.pictures, given.seed)


if __name__ == "__main__":
    main()

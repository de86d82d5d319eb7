"""How well a model answers questions about new scenes, task by task and artist by artist.

python -m minipali.evaluation            the tables of the small model's card
"""

import argparse
import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minipali import scenes
from minipali.contrastive import Contrastive, similarities
from minipali.generation import token_steps
from minipali.locations import overlap, read_boxes
from minipali.paligemma import PaliGemma
from minipali.tokens import Processor

ARTISTS = {
    "training": scenes.TRAINING_ARTISTS,
    "validation": scenes.VALIDATION_ARTIST,
    "test": scenes.TEST_ARTIST,
}

# The order fixes each task's random numbers: new tasks go to the end.
TASKS = scenes.TASKS


def score(question: scenes.Question, answer: str) -> float:
    """1 for the right words. For detection: found boxes / the larger of true and told boxes.

    A box is found if it overlaps a true one by more than half (intersection over union); each true
    box is found once. "Nothing there" is right if nothing is told.
    """
    if question.task != "detection":
        return float(answer == question.answer)
    true = [box for _, box in read_boxes(question.answer)]
    told = [box for _, box in read_boxes(answer)]
    if not true:
        return float(not told)
    left, found = list(told), 0
    for box in true:
        best = max(left, key=lambda other: overlap(box, other), default=None)
        if best is not None and overlap(box, best) > 0.5:
            left.remove(best)
            found += 1
    return found / max(len(true), len(told))


def evaluation_set(
    artists: dict, each: int, seed: int, tasks: tuple[str, ...] = TASKS
) -> list[tuple[scenes.Scene, scenes.Question]]:
    """`each` questions of every task about new scenes, coloured as the artists drew them."""
    asked = []
    for number, task in enumerate(tasks):
        rng = np.random.default_rng([seed, 10_000 + TASKS.index(task)])
        while len(asked) < (number + 1) * each:
            count = 1 if task == "naming" else int(rng.integers(1, 4))
            scene = scenes.compose(rng, artists, count)
            question = scenes.ask(rng, scene, task)
            if question is not None:
                asked.append((scene, question))
    return asked


def answers(
    model: PaliGemma,
    processor: Processor,
    asked: list[tuple[scenes.Scene, scenes.Question]],
    shown: str = "own",
    batch_size: int = 100,
    progress: bool = False,
) -> list[str]:
    """Greedy answers.

    shown: the picture that each question comes with: its "own", the one "before" it in the list, or
    one that is all "grey" (zeros).
    """
    if shown not in ("own", "before", "grey"):
        raise ValueError(f"shown must be own, before or grey, found {shown!r}")
    pictures, told = [scene for scene, _ in asked], []
    if shown == "before":
        pictures = pictures[-1:] + pictures[:-1]
    starts = range(0, len(asked), batch_size)
    quiet = None if progress else True  # None: quiet where no terminal reads it
    for start in tqdm(starts, desc="questions / 100", disable=quiet, leave=False):
        part = slice(start, start + batch_size)
        pixels = scenes.pixel_values(pictures[part])
        prompts = [processor.prompt_ids(question.prompt) for _, question in asked[part]]
        batch = processor.pad(prompts, [[] for _ in prompts])
        batch["pixel_values"] = torch.zeros_like(pixels) if shown == "grey" else pixels
        steps = token_steps(model, batch, max_new_tokens=24)
        told += [processor.decode(row) for row in torch.stack(list(steps), dim=1).tolist()]
    return told


def by_task(asked: list[tuple[scenes.Scene, scenes.Question]], told: list[str]) -> dict[str, float]:
    """Mean score, 0 to 1, of the answers to each task's questions."""
    scores: dict[str, list[float]] = {}
    for (_, question), answer in zip(asked, told, strict=True):
        scores.setdefault(question.task, []).append(score(question, answer))
    return {task: float(np.mean(own)) for task, own in scores.items()}


def accuracies(
    model: PaliGemma,
    processor: Processor,
    artists: dict,
    each: int = 200,
    seed: int = 1,
    shown: str = "own",
    progress: bool = False,
) -> dict[str, float]:
    """Mean score by task, 0 to 1, of greedy answers about new scenes by these artists."""
    asked = evaluation_set(artists, each, seed)
    return by_task(asked, answers(model, processor, asked, shown, progress=progress))


def commonest(
    artists: dict, each: int = 200, seed: int = 1, learned_from: int = 2000
) -> dict[str, float]:
    """Mean score by task, 0 to 1, of whoever never looks and knows which answers are frequent.

    The answer is the commonest one to the prompt, in `learned_from` other questions of each task.
    """
    asked = evaluation_set(artists, each, seed)
    counts: dict[str, Counter] = {}
    for _, question in evaluation_set(scenes.TRAINING_ARTISTS, learned_from, seed + 1):
        counts.setdefault(question.prompt, Counter())[question.answer] += 1
    told = [
        counts[question.prompt].most_common(1)[0][0] if question.prompt in counts else ""
        for _, question in asked
    ]
    return by_task(asked, told)


def interval(share: float, number: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of `number` independent questions."""
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    spread = math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    half = spread * z / (1 + z**2 / number)
    return max(0.0, centre - half), min(1.0, centre + half)


@torch.inference_mode()
def zero_shot(
    towers: Contrastive,
    names: tuple[Tensor, Tensor],
    artists: dict,
    number: int = 480,
    seed: int = 1,
) -> float:
    """Share of single-object pictures whose most similar name is the right one.

    names: ids and mask of "a NAME" for all of scenes.OBJECTS.
    """
    rng = np.random.default_rng([seed, 20_000])
    objects = [i % len(scenes.OBJECTS) for i in range(number)]
    made = [scenes.compose(rng, artists, names=[scenes.OBJECTS[i]]) for i in objects]
    pictures = towers.embed_pictures(scenes.pixel_values(made))
    nearest = similarities(pictures, towers.text_tower(*names)).argmax(dim=1)
    return float((nearest == torch.tensor(objects)).float().mean())


def table(columns: dict[str, dict[str, float]], each: int) -> str:
    """A Markdown table of accuracies in percent with their 95 % intervals, a row for each task.

    columns: heading -> accuracy of each task; each: questions a cell.
    """
    lines = ["| task | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for task in TASKS:
        cells = []
        for found in columns.values():
            low, high = interval(found[task], each)
            cells.append(f"{100 * found[task]:.1f} ({100 * low:.0f}-{100 * high:.0f})")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(model: PaliGemma, processor: Processor, each: int = 500, seed: int = 2026) -> str:
    """The model card's tables: groups of artists, without the own picture, each artist alone.

    The seed differs from the one that training is watched with, so these scenes are new.
    """

    def right(artists: dict, shown: str = "own") -> dict[str, float]:
        return accuracies(model, processor, artists, each, seed, shown, progress=True)

    training = scenes.TRAINING_ARTISTS
    groups = {name: right(artists) for name, artists in ARTISTS.items()}
    without = {
        "its own picture": groups["training"],
        "no look, commonest answer": commonest(training, each, seed, learned_from=4 * each),
        "another picture": right(training, "before"),
        "a grey picture": right(training, "grey"),
    }
    alone = {name: right({name: sets}) for name, sets in training.items()}
    return "\n\n".join(table(columns, each) for columns in (groups, without, alone))


def main() -> None:
    from minipali.weights import WeightsError, load

    parser = argparse.ArgumentParser(
        prog="python -m minipali.evaluation",
        description="Measure a model as the small model's card does.",
    )
    parser.add_argument("--model", default="small", help="small (default) or a folder")
    parser.add_argument(
        "--each", type=int, default=500, help="questions a task and artist, default 500"
    )
    given = parser.parse_args()
    if given.each < 1:
        parser.error(f"--each must be 1 or more, found {given.each}")
    try:
        print(report(*load(given.model), each=given.each))
    except (WeightsError, OSError) as error:
        parser.exit(2, f"minipali: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130)


if __name__ == "__main__":
    main()

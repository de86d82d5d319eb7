"""Lesson 21. Graft: a vision tower joined to a language model that has only ever read.

python -m minipali.graft train     the projector and LoRA, about 16 minutes on two cores
python -m minipali.graft exam      the tables of the card

The tower is the small model's, the language model SmolLM2-135M, and both stay as they are. New are
a projector between them, found by least squares, and LoRA beside the language model's attention.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from minipali import evaluation, published, scenes, variants, weights
from minipali.config import PaliGemmaConfig
from minipali.gemma import Gemma
from minipali.gguf_tokenizers import Tokenizer
from minipali.lora import add_lora, find_targets, merge_lora
from minipali.paligemma import PaliGemma
from minipali.tokens import IGNORE, Processor, pad_rows
from minipali.training import fit, row_labels

SHIPPED = Path(__file__).parent / "assets" / "graft" / "graft.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK, ALPHA = 8, 16.0

# --- the two halves, and what joins them ---------------------------------------------------------


class Projector(nn.Linear):
    """Patch vectors to vectors of the language model's width, plus one for each patch's place."""

    def __init__(self, patch_width: int, width: int, patches: int):
        super().__init__(patch_width, width)
        self.places = nn.Parameter(torch.zeros(patches, width))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, patch_width) -> (b, n, width)."""
        return super().forward(x) + self.places


def join(eyes: PaliGemma, language_model: Gemma, tokenizer: Tokenizer) -> PaliGemma:
    """A PaliGemma with the tower of one model and the language model of another, both frozen.

    Changes the language model: its table gets one row more, for <image>, as Gemma's did when it
    became PaliGemma's. The projector is random until `fit_projector`.
    """
    vocabulary, width = language_model.embed_tokens.weight.shape
    text = replace(language_model.config, vocab_size=vocabulary + 1)
    config = PaliGemmaConfig(eyes.config.vision, text, vocabulary, 0, tokenizer.eos, FIRST)
    with torch.device("meta"):
        model = PaliGemma(config)
    table = torch.cat((language_model.embed_tokens.weight, torch.zeros(1, width)))
    language_model.embed_tokens = nn.Embedding.from_pretrained(table)
    language_model.config = text
    model.vision_tower, model.language_model = eyes.vision_tower, language_model
    vision = config.vision
    model.multi_modal_projector = Projector(vision.hidden_size, width, vision.num_patches)
    return model.requires_grad_(False).eval()


FIRST = 1  # <|im_start|>, the token that stood first in most texts that SmolLM2 was trained on


class GraftProcessor(Processor):
    """As `Processor`, with the language model's tokens: the first token, the picture, the question.

    Nothing is prefix here: like every text that the language model has read, a row is causal.
    """

    def __init__(self, tokenizer: Tokenizer, config: PaliGemmaConfig):
        self.config, self.tokenizer = config, tokenizer

    def encode(self, text: str) -> list[int]:
        """Text -> token ids, with the space in front with which words stand inside a text."""
        return self.tokenizer.encode(f" {text}")

    def decode(self, ids) -> str:
        silent = (self.config.eos_token_id, self.config.pad_token_id, self.config.image_token_id)
        return self.tokenizer.decode([i for i in map(int, ids) if i not in silent]).strip()

    def prompt_ids(self, prompt: str) -> list[int]:
        """First token, image tokens, question; PaliGemma's "answer en" in front may be there."""
        picture = [self.config.image_token_id] * self.config.vision.num_patches
        return [FIRST, *picture, *self.encode(prompt.removeprefix("answer en "))]

    def pad(self, prefixes, suffixes, side: str = "left") -> dict[str, Tensor]:
        batch = super().pad(prefixes, suffixes, side)
        return batch | {"token_type_ids": torch.ones_like(batch["input_ids"])}


# --- a projector without training ----------------------------------------------------------------


def closed_form_projector(
    patches: Tensor, words: Tensor, ridge: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """The linear map that takes patch vectors nearest to words: weight (d, p) and bias (d,).

    patches: (n, p); words: (n, d), the vector of what covers each patch. Of all maps it has the
    smallest mean squared error plus `ridge` times the sum of the squared weights (not the bias).
    """
    x, y = patches.double(), words.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x.T @ y / len(x)).T
    return weight.float(), (y_mean - weight @ x_mean).float()


WORDS = (*scenes.OBJECTS, *scenes.BACKGROUNDS)


def word_vectors(model: PaliGemma, encode: Callable[[str], list[int]], words) -> Tensor:
    """The mean of each word's token vectors, as the language model reads them: (words, d)."""
    rows = [torch.tensor(encode(word)) for word in words]
    return torch.stack([model.language_model.embed(ids).mean(dim=0) for ids in rows]).detach()


def word_shares(scene: scenes.Scene, side: int) -> Tensor:
    """How much of each patch each of WORDS covers: (n, words), rows sum to 1.

    An object covers its box. These are the patch labels: they say where everything is.
    """
    shares = torch.zeros(side * side, len(WORDS))
    for thing in scene.things:
        shares[:, WORDS.index(thing.name)] += scenes.patch_cover(thing.box, side)
    shares[:, WORDS.index(scene.background)] = 1 - shares.sum(dim=1)
    return shares


def where_vectors(words: Tensor, side: int) -> Tensor:
    """For each patch a mix of left and right plus one of top and bottom: (n, d).

    words: (4, d), the vectors of left, right, top, bottom.
    """
    left, right, top, bottom = words
    part = torch.linspace(0, 1, side)[:, None]
    across, down = (1 - part) * left + part * right, (1 - part) * top + part * bottom
    return (down[:, None] + across[None, :]).flatten(0, 1)


@torch.no_grad()
def fit_projector(model: PaliGemma, encode, made: list[scenes.Scene], where: float = 0.3) -> float:
    """Set the projector by least squares on these scenes; returns R2, the share it explains.

    where: how much of the words for its place each patch gets.
    """
    vision, projector = model.config.vision, model.multi_modal_projector
    side = vision.image_size // vision.patch_size
    parts = [scenes.pixel_values(made[i : i + 50]) for i in range(0, len(made), 50)]
    patches = torch.cat([model.vision_tower(part).flatten(0, 1) for part in parts])
    shares = torch.cat([word_shares(scene, side) for scene in made])
    words = shares @ word_vectors(model, encode, WORDS)
    weight, bias = closed_form_projector(patches, words)
    projector.weight.copy_(weight)
    projector.bias.copy_(bias)
    places = word_vectors(model, encode, scenes.PLACES)
    projector.places.copy_(where * where_vectors(places, side))
    left = (words - F.linear(patches, weight, bias)).square().sum()
    return 1 - float(left / (words - words.mean(dim=0)).square().sum())


# --- several questions about one picture in one row ----------------------------------------------


def shared_mask(owner: Tensor) -> Tensor:
    """Which key each query may see, where several questions share a picture.

    owner: (b, s), 0 at the picture, k at the tokens of question k, -1 at padding -> bool
    (b, 1, s, s). Nobody sees what comes later; a question sees the picture and itself.
    """
    place = torch.arange(owner.shape[1])
    own = owner[:, :, None] == owner[:, None, :]
    shared = (owner == 0)[:, None, :]
    return ((own | shared) & (place[None, :] <= place[:, None]))[:, None]


def shared_positions(owner: Tensor) -> Tensor:
    """Positions from 1, (b, s): each question goes on where the picture ended.

    So a token's position is the number of tokens that it sees.
    """
    return shared_mask(owner)[:, 0].sum(dim=-1)


def shared_logits(
    model: PaliGemma, pixels: Tensor, rows: list[list[tuple[list[int], list[int]]]]
) -> tuple[Tensor, Tensor]:
    """The logits from which each token of an answer is told, (tokens, v), and these tokens.

    pixels: (b, 3, y, x); rows: for each picture its questions, each as ids and labels.
    """
    ids = pad_rows([[i for own, _ in row for i in own] for row in rows], 0, "right")[0]
    labels = pad_rows([[i for _, own in row for i in own] for row in rows], IGNORE, "right")[0]
    owners = [[k for k, (own, _) in enumerate(row, 1) for _ in own] for row in rows]
    language, b = model.language_model, len(rows)
    with torch.no_grad():
        seen = model.vision_tower(pixels)
    first = language.embed(torch.full((b, 1), FIRST))
    start = torch.cat((first, model.multi_modal_projector(seen)), dim=1)
    n = start.shape[1]
    owner = torch.cat((torch.zeros(b, n, dtype=int), pad_rows(owners, -1, "right")[0]), dim=1)
    x = torch.cat((start, language.embed(ids)), dim=1)
    x = language(x, shared_positions(owner), shared_mask(owner))
    wanted = labels[:, 1:] != IGNORE  # each place tells the next token
    return language.logits(x[:, n:-1][wanted]), labels[:, 1:][wanted]


# --- training ------------------------------------------------------------------------------------

# How often each kind of question is asked. Never about a category ("is there an animal?").
SHARES = {"naming": 2, "background": 1, "places": 3, "counting": 2, "counting NAME": 2, "yes/no": 3}
FITTED = 1000  # pictures from which the projector is computed
PICTURES, EACH, STEPS = 4, 6, 400  # pictures a step, questions a picture
RATE, PROJECTOR_RATE = 1e-3, 5e-4


def questions(rng: np.random.Generator, scene: scenes.Scene, number: int) -> list[scenes.Question]:
    """Different questions about a scene, drawn by SHARES."""
    names, shares = list(SHARES), np.array([*SHARES.values()]) / sum(SHARES.values())
    found: dict[str, scenes.Question] = {}
    while len(found) < number:
        question = scenes.ask(rng, scene, names[rng.choice(len(names), p=shares)])
        if question is not None:
            found[question.prompt] = question
    return list(found.values())


def question_row(processor: GraftProcessor, asked: scenes.Question) -> tuple[list[int], list[int]]:
    """Ids and labels of one question, without the picture before it."""
    start = 1 + processor.config.vision.num_patches
    prompt, answer = processor.prompt_ids(asked.prompt)[start:], processor.encode(asked.answer)
    return row_labels(prompt, answer, processor.config.eos_token_id)


def new_graft() -> tuple[PaliGemma, GraftProcessor]:
    """Tower and language model side by side, the projector random. PublishedError, WeightsError."""
    language_model, tokenizer = variants.load("smollm2")
    model = join(weights.load("small")[0], language_model, tokenizer)
    return model, GraftProcessor(tokenizer, model.config)


def train(
    model: PaliGemma,
    processor: GraftProcessor,
    seed: int = 0,
    steps: int = STEPS,
    after: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fit the projector, add LoRA, and train both; returns the loss of each step.

    after(done, loss) is called after each step. The model is changed.
    """
    torch.manual_seed(seed)
    rng, artists = np.random.default_rng([seed, 0]), scenes.TRAINING_ARTISTS
    made = [scenes.compose(rng, artists, strength=1.0) for _ in range(FITTED)]
    fit_projector(model, processor.encode, made)
    add_lora(model.language_model, list(TARGETS), RANK, ALPHA)
    model.multi_modal_projector.requires_grad_(True)
    lora = [p for p in model.language_model.parameters() if p.requires_grad]
    own = list(model.multi_modal_projector.parameters())
    groups = [{"params": lora, "lr": RATE}, {"params": own, "lr": PROJECTOR_RATE}]
    maker = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)

    def step_loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 1, step])
        counts = rng.choice([1, 2, 3], PICTURES, p=[0.3, 0.35, 0.35])
        made = [scenes.compose(rng, artists, int(count), strength=1.0) for count in counts]
        rows = [[question_row(processor, one) for one in questions(rng, s, EACH)] for s in made]
        return F.cross_entropy(*shared_logits(model, scenes.pixel_values(made), rows))

    return fit(model, step_loss, steps, [maker], after=after)


# --- the part that is new, as a file -------------------------------------------------------------


def new_part(model: PaliGemma) -> dict[str, Tensor]:
    """What was trained: the projector and the LoRA matrices, by their names in the model."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("multi_modal_projector.") or ".lora_" in name
    }


def save(model: PaliGemma, file: Path) -> None:
    """Write projector and LoRA, in float16, and which language model they belong to."""
    found = {name: x.detach().half().contiguous() for name, x in new_part(model).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")  # a file that was there stays until this is whole
    save_file(found, part, {"language_model": published.PUBLISHED["smollm2"].sha256})
    os.replace(part, file)


def put(model: PaliGemma, file: Path = SHIPPED) -> None:
    """Give a new graft what a file holds, with LoRA merged.

    Raises WeightsError, before the model is touched, if the file is damaged or belongs to another
    language model.
    """
    with weights.open_weights(file) as stored:
        base = (stored.metadata() or {}).get("language_model")
        found = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
    shapes = {name: tuple(x.shape) for name, x in found.items()}
    if base != published.PUBLISHED["smollm2"].sha256 or shapes != new_shapes(model):
        raise weights.WeightsError(
            f"{file} must hold the projector and the LoRA matrices of a graft on this SmolLM2:"
            " make it again with `python -m minipali.graft train`"
        )
    add_lora(model.language_model, list(TARGETS), RANK, ALPHA)
    for name, place in new_part(model).items():
        place.data.copy_(found[name])
    merge_lora(model)
    model.requires_grad_(False).eval()


def new_shapes(model: PaliGemma) -> dict[str, tuple[int, ...]]:
    """What `new_part` will hold once a new graft has LoRA: name -> shape."""
    shapes = {name: tuple(x.shape) for name, x in new_part(model).items()}
    for name in find_targets(model.language_model, list(TARGETS)):
        n, d = model.language_model.get_submodule(name).weight.shape
        shapes[f"language_model.{name}.lora_A"] = (RANK, d)
        shapes[f"language_model.{name}.lora_B"] = (n, RANK)
    return shapes


def load(file: Path = SHIPPED) -> tuple[PaliGemma, GraftProcessor]:
    """The graft in float32, in eval mode, and its processor: `new_graft` and `put`."""
    model, processor = new_graft()
    put(model, file)
    return model, processor


# --- the exam ------------------------------------------------------------------------------------

TASKS = tuple(SHARES)
# What no training question names. A mushroom is left out, because people do not agree about it.
CATEGORIES = {
    "animal": ("cat", "dog", "frog", "penguin", "pig"),
    "vehicle": ("bicycle", "car", "rocket"),
    "food": ("apple", "cake", "hamburger", "pizza"),
    "fruit": ("apple",),
    "plant": ("cactus", "sunflower", "tree"),
    "instrument": ("guitar",),
    "toy": ("ball", "balloon"),
}


def category_set(artists: dict, each: int, seed: int) -> list[tuple[scenes.Scene, scenes.Question]]:
    """For each category `each` questions "is there an animal?", half of them to be answered yes.

    The pictures have one to three objects, all of different names.
    """
    rng, asked = np.random.default_rng([seed, 30_000]), []
    for category, members in CATEGORIES.items():
        others = [n for n in scenes.OBJECTS if n not in members and n != "mushroom"]
        for i in range(each):
            count = int(rng.integers(1, 4))
            names = [str(name) for name in rng.choice(others, count, replace=False)]
            if i % 2:
                names[0] = str(rng.choice(members))
            scene = scenes.compose(rng, artists, names=names)
            prompt = f"answer en is there {scenes.with_article(category)}?"
            asked.append((scene, scenes.Question(category, prompt, "yes" if i % 2 else "no")))
    return asked


def exam(
    model: PaliGemma,
    processor: Processor,
    artists: dict,
    each: int = 200,
    seed: int = 21,
    shown: str = "own",
) -> dict[str, float]:
    """Mean score by task and by category, 0 to 1, of greedy answers about new scenes.

    shown: see `minipali.evaluation.answers`; without the own picture the categories are left out,
    because theirs come in turns, so that the picture before always has the other answer.
    """
    asked = evaluation.evaluation_set(artists, each, seed, TASKS)
    if shown == "own":
        asked += category_set(artists, each // 2, seed)
    return evaluation.by_task(asked, evaluation.answers(model, processor, asked, shown))


def measured(what: str, file: Path, artists: dict, each: int, seed: int = 21) -> dict[str, float]:
    """One column of the card: of the graft in `file` with its "own" picture, the one "before" it,
    or a "grey" one; of the "small" model; or of the "commonest" answer, which has no categories."""
    if what == "commonest":
        found = evaluation.commonest(artists, each, seed)
        return {task: found[task] for task in TASKS}
    model, processor = weights.load("small") if what == "small" else load(file)
    return exam(model, processor, artists, each, seed, "own" if what == "small" else what)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minipali.graft")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("train", help="make the file that `exam` and `minipali ask` use")
    one.add_argument("--file", type=Path, default=Path("runs/graft/graft.safetensors"))
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--steps", type=int, default=STEPS)
    one = verbs.add_parser("exam", help="measure on drawings that nothing was trained on")
    one.add_argument("--file", type=Path, default=SHIPPED)
    one.add_argument("--artist", choices=evaluation.ARTISTS, default="test")
    one.add_argument("--each", type=int, default=200, help="questions of a task, default 200")
    kinds = ("own", "before", "grey", "small", "commonest")
    one.add_argument("--what", choices=kinds, default="own", help="who is measured")
    one.add_argument("--json", type=Path, help="put the result into this file, too")
    one.add_argument("--column", help="its name in there; default: what is measured")
    given = parser.parse_args()
    if (number := given.steps if given.verb == "train" else given.each) < 2:
        parser.error(f"--steps and --each must be at least 2, found {number}")
    try:
        if given.verb == "train":

            def tell(done: int, loss: float) -> None:
                if done % 10 == 0:
                    print(f"step {done} of {given.steps}, loss {loss:.3f}", flush=True)

            model, processor = new_graft()
            train(model, processor, given.seed, given.steps, tell)
            save(model, given.file)
            print(f"written {given.file}: python -m minipali.graft exam --file {given.file}")
            return
        found = measured(given.what, given.file, evaluation.ARTISTS[given.artist], given.each)
        for task, right in found.items():
            low, high = evaluation.interval(right, given.each // (1 if task in TASKS else 2))
            print(f"{task:14} {100 * right:5.1f} ({100 * low:.0f}-{100 * high:.0f})")
        if given.json:
            table = json.loads(given.json.read_text("utf-8")) if given.json.exists() else {}
            table[given.column or given.what] = {k: round(v, 4) for k, v in found.items()}
            given.json.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    except (OSError, ValueError) as error:  # PublishedError and WeightsError are such
        print(f"minipali: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

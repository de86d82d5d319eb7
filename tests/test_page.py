"""The live model: JavaScript against Python, number by number in Node, and as a page in a browser.

Expected values come from the Python side alone: SentencePiece, Pillow and torch.
"""

import base64
import copy
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from browsing import visit, wait_for
from conftest import ROUNDING, fresh_model
from PIL import Image
from safetensors.torch import save_file

import minipali
import minipali.page
from minipali import generation, scenes
from minipali.attention import attend, attention_weights
from minipali.cli import main
from minipali.locations import box_tokens, read_boxes
from minipali.masks import COLOURS, MaskCodec, published_name, read_masks
from minipali.page import DRAWINGS, EXAMPLES, PageError, make_page
from minipali.tokens import Processor, to_pixels
from minipali.training import suffix_loss
from minipali.weights import load

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from render_pictures import PICTURES  # noqa: E402

FOLDER = Path(minipali.page.__file__).parent
NODE = shutil.which("node")

ODD_TEXTS = [
    "",
    " ",
    "caption en",
    "  two  spaces   and a tab\t.",
    "a\nb\n\nc",
    "answer en what is on the left?",
    "Größe, naïve, 東京, Привет",
    "👩‍👩‍👧 🐶🐱 e\u0301",
    "<loc0000><loc1023> cat ; <seg000><seg127>",
    "<loc1024><seg128><loc12>",
    "<bos>x<eos><pad><unk><mask><0x41>",
    "▁ already ▁▁ escaped",
    "answeranswer en enen thethe",
    "x" * 90,
    "\0\x7f\u200b\ufeff\ufffd",
    "∑ 12345 - detect  umbrella?!",
]


# --- in Node -------------------------------------------------------------------------------------

# Reads one JSON object a line, does what it says, and writes one line of JSON each.
RUNNER = """
const fs = require("fs"), vm = require("vm"), readline = require("readline");
for (const file of ["reading.js", "model.js", "masks.js"])
  vm.runInThisContext(fs.readFileSync(`${process.argv[2]}/${file}`, "utf8"), file);
vm.runInThisContext(`
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const floats = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);
let model, tokenizer, features, codec;
const verbs = {
  open: ({ folder }, read) => {
    const config = JSON.parse(read(folder + "/config.json"));
    const weights = readSafetensors(new Uint8Array(read(folder + "/model.safetensors")));
    model = new PaliGemma(config, weights);
    tokenizer = new Tokenizer(new Uint8Array(read(folder + "/tokenizer.model")), config);
  },
  encode: ({ text }) => tokenizer.encode(text),
  decode: ({ ids }) => tokenizer.decode(ids),
  token: ({ id }) => tokenizer.token(id),
  prompt: ({ text }) => tokenizer.promptIds(text),
  pixels: ({ data, width, height, side }) =>
    floats(toPixels({ data: bytes(data), width, height }, side)).toString("base64"),
  see: ({ data, width, height }) => {
    const side = model.config.vision_config.image_size;
    features = model.imageFeatures(toPixels({ data: bytes(data), width, height }, side));
  },
  ask: ({ prompt, width, height, logits, options }) => {
    const steps = [...tokenSteps(model, features, tokenizer.promptIds(prompt), options)];
    const ids = steps.map((step) => step.id), text = tokenizer.decode(ids);
    const told = logits && steps.map((step) => floats(step.logits).toString("base64"));
    const seen = steps.map((step) => step.seen.map((one) => floats(one).toString("base64")));
    return { ids, text, boxes: readBoxes(text, height, width), logits: told, seen };
  },
  distribution: ({ logits, temperature, topP }) => [...distribution(logits, temperature, topP)],
  codec: ({ file }, read) => { codec = readSafetensors(new Uint8Array(read(file))); },
  decodeMask: ({ codes }) => floats(decodeMask(codes, codec)).toString("base64"),
  masks: ({ answer, height, width }) => readMasks(answer, codec, height, width)
    .map(({ name, box, mask }) => ({ name, box, mask: floats(mask).toString("base64") })),
};
`);
const read = (file) => fs.readFileSync(file);
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { verb, ...rest } = JSON.parse(line);
    let answer;
  try {
    answer = { value: vm.runInThisContext(`verbs.${verb}`)(rest, read) };
  } catch (error) {
    answer = { error: error.message };
  }
  process.stdout.write(JSON.stringify(answer) + "\\n");
});
"""


class Node:
    """JavaScript's side: `node("encode", text="a")` -> what the verb of RUNNER returns."""

    def __init__(self, runner: Path):
        self.process = subprocess.Popen(
            [NODE, runner, FOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def __call__(self, verb: str, **given):
        self.process.stdin.write(json.dumps({"verb": verb, **given}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer.get("value")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    if NODE is None:
        pytest.skip("no Node.js here: it is the system's package `nodejs`")
    runner = tmp_path_factory.mktemp("node") / "runner.js"
    runner.write_text(RUNNER, encoding="utf-8")
    started = Node(runner)
    yield started
    started.process.communicate()
    assert started.process.returncode == 0


@pytest.fixture(scope="module")
def small():
    return load("small")


@pytest.fixture
def small_node(node, small_folder):
    node("open", folder=str(small_folder))
    return node


def rgba(picture: Image.Image) -> dict:
    """A picture as a canvas gives it, for RUNNER."""
    data = base64.b64encode(picture.convert("RGBA").tobytes()).decode()
    return {"data": data, "width": picture.width, "height": picture.height}


def numbers(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_token_ids(small_node, small, text):
    _, processor = small
    ids = processor.encode(text)
    assert small_node("encode", text=text) == ids
    assert small_node("decode", ids=ids) == processor.decode(ids)
    if "<image>" not in text:
        assert small_node("prompt", text=text) == processor.prompt_ids(text)


def test_any_ids_are_read_as_in_python(small_node, small):
    """Also halves of characters, special tokens between them, and rows that are no text."""
    _, processor = small
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, size, 12).tolist() for size in (12, 262, 262, 640, 1856) * 8]
    rows += [[2, 300, 1792, 1793, 1855, 0, 1]]
    # Bytes of a character cut short, of one that is too long, and of half a surrogate pair.
    rows += [
        [6 + byte for byte in text] for text in (b"\xf0\x9f\x90", b"\xc0\xaf", b"\xed\xa0\x80")
    ]
    for row in rows:
        assert small_node("decode", ids=row) == processor.decode(row), row
    for token_id in range(0, 1856, 7):
        assert small_node("token", id=token_id) == processor.token(token_id)


@pytest.mark.parametrize("prompt, what", [("<image>", "must not contain"), ("a" * 600, "shorten")])
def test_prompts_that_cannot_be_asked(small_node, prompt, what):
    with pytest.raises(ValueError, match=what):
        small_node("prompt", text=prompt)


@pytest.mark.parametrize(
    "size",
    [(72, 72), (288, 288), (71, 73), (71, 75), (1, 1), (3, 200), (90, 108), (90, 109), (500, 333)],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pixels_are_pillows_to_the_bit(node, size, mode):
    width, height = size
    if height - 12 > 2 * max(0, width - 12) and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow before 13 resizes tall pictures in the other order, one level apart")
    rng = np.random.default_rng(sum(size))
    noise = rng.integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    picture = Image.fromarray(noise, mode=None)
    for side in (72, 12):
        found = numbers(node("pixels", **rgba(picture), side=side))
        assert torch.equal(found.view(3, side, side), to_pixels(picture, side))


def check_logits(node, model, processor, picture, prompt, options=None):
    """Each step's logits in Node, and what torch says after the same tokens."""
    node("see", **rgba(picture))
    found = node("ask", prompt=prompt, logits=True, width=1, height=1, options=options or {})
    prefix = processor.prompt_ids(prompt)
    ids = torch.tensor([prefix + found["ids"][:-1]])
    is_suffix = (torch.arange(ids.shape[1]) >= len(prefix))[None].long()
    pixels = processor.pixel_values([picture])
    with torch.no_grad():
        logits = model(ids, pixels, torch.ones_like(ids), is_suffix)[0, len(prefix) - 1 :]
    told = torch.stack([numbers(row) for row in found["logits"]])
    text = slice(0, model.config.image_token_id)  # the rest is no text, and never chosen
    assert told[:, text.stop :].max() == -torch.inf
    assert (told - logits)[:, text].abs().max() < ROUNDING


@pytest.mark.parametrize("prompt", ["caption en", "detect frog", "<loc0100> à la carte  ?"])
def test_logits(small_node, small, prompt):
    picture = scenes.examples()["two_frogs_and_pizza_test_artist"]
    check_logits(small_node, *small, picture, prompt)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_of_another_model(node, saved, tmp_path, dtype):
    """Whose sizes all differ, and whose eps and theta are not the usual ones."""
    minipali.save(*load(saved, dtype=dtype), tmp_path / "model")
    node("open", folder=str(tmp_path / "model"))
    model, processor = load(tmp_path / "model", dtype="float32")
    picture = scenes.examples()["penguin_test_artist"]
    check_logits(node, model, processor, picture, "caption en", {"maxNewTokens": 20})


def test_attention(small_node, small, monkeypatch):
    """What is shown as attention is what each layer's heads compute with at the last place."""
    model, processor = small
    picture, weights = scenes.examples()["three_apples"], []

    def recording(query, key, value, mask=None):
        weights.append(attention_weights(query, key, mask))
        return attend(query, key, value, mask)

    monkeypatch.setattr("minipali.gqa.attend", recording)
    batch = processor(picture, "caption en")
    with torch.no_grad():
        model(**batch)
    small_node("see", **rgba(picture))
    found = small_node("ask", prompt="caption en", width=1, height=1, options={"maxNewTokens": 1})
    length = batch["input_ids"].shape[1]
    for expected, told in zip(weights, found["seen"][0], strict=True):
        last = expected.reshape(4, length, length)[:, -1]  # (h, s)
        assert torch.allclose(numbers(told).view(4, length), last, atol=1e-5)


@pytest.mark.parametrize("temperature, top_p", [(1, 1), (0.5, 1), (2, 0.9), (0.3, 0.01)])
def test_what_is_drawn_from(node, temperature, top_p):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)) * 3
    expected = generation.distribution(logits, temperature, top_p=top_p)[0]
    given = {"temperature": temperature, "topP": top_p}
    found = torch.tensor(node("distribution", logits=logits[0].tolist(), **given)).float()
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_seed_repeats_an_answer(small_node):
    small_node("see", **rgba(scenes.examples()["three_apples"]))

    def draw(seed):
        options = {"temperature": 3, "topP": 0.999, "seed": seed, "maxNewTokens": 12}
        return small_node("ask", prompt="caption en", width=1, height=1, options=options)["ids"]

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(6)}) > 3


def questions(number: int):
    """New scenes of the test artist, 4 in 10 of them with a question of detection."""
    rng = np.random.default_rng(12)
    asked = []
    while len(asked) < number:
        scene = scenes.compose(rng, scenes.TEST_ARTIST, scale=4)
        task = "detection" if len(asked) % 5 < 2 else scenes.TASKS[rng.integers(8)]
        if question := scenes.ask(rng, scene, task):
            asked.append((scene.picture, question.prompt))
    return asked


def test_answers_and_boxes(small_node, small):
    """On 200 scenes of the test artist, by an artist that the model was never trained on."""
    model, processor = small
    asked, told = questions(200), []
    for start in range(0, len(asked), 50):
        pictures, prompts = zip(*asked[start : start + 50], strict=True)
        told += minipali.generate(model, processor, list(pictures), list(prompts))
    boxes = 0
    for (picture, prompt), text in zip(asked, told, strict=True):
        small_node("see", **rgba(picture))
        size = {"width": picture.width, "height": picture.height}
        found = small_node("ask", prompt=prompt, **size, options={})
        assert found["text"] == text, prompt
        expected = [(n, [edge * 288 for edge in box]) for n, box in read_boxes(text)]
        assert [box["name"] for box in found["boxes"]] == [name for name, _ in expected]
        for told_box, (_, box) in zip(found["boxes"], expected, strict=True):
            assert told_box["box"] == pytest.approx(box)
        boxes += len(expected)
    assert boxes > 60


@torch.no_grad()
def make_codec(**sizes) -> MaskCodec:
    """With random weights of float16, and as much inside as outside."""
    random = torch.Generator().manual_seed(3)
    codec = MaskCodec(**sizes).requires_grad_(False)
    for p in codec.parameters():
        fan = p[0].numel() if p.ndim == 4 else 4
        p.copy_((torch.randn(p.shape, generator=random) * (2 / fan) ** 0.5).half())
    drawn = codec.decode(torch.randint(len(codec.codebook), (8, 16), generator=random))
    codec.decoder[-1].bias.sub_(drawn.median()).copy_(codec.decoder[-1].bias.half())
    return codec


@pytest.fixture(
    params=[{}, {"channels": (3, 5), "width": 7, "entries": 11}], ids=["published", "small"]
)
def codec_node(node, request, tmp_path):
    """(codec, Node with the same codec): the published sizes, and sizes that all differ."""
    codec = make_codec(**request.param)
    weights = {name: one for name, one in codec.state_dict().items() if "encoder" not in name}
    save_file({name: one.half() for name, one in weights.items()}, tmp_path / "codec.safetensors")
    node("codec", file=str(tmp_path / "codec.safetensors"))
    return codec, node


def test_a_decoded_mask(codec_node):
    codec, node = codec_node
    for row in torch.randint(len(codec.codebook), (4, 16), generator=torch.Generator()).tolist():
        expected = codec.decode(torch.tensor([row]))[0]
        assert expected.std() > 0.1  # else nothing would be compared
        assert (numbers(node("decodeMask", codes=row)).view_as(expected) - expected).abs().max() < (
            1e-4
        )


def codes(*given: int) -> str:
    return "".join(f"<seg{code:03d}>" for code in given)


def test_masks_of_an_answer(codec_node):
    """Read as in Python, and equal but for pixels where the resized number is nearly 0."""
    codec, node = codec_node
    places, all_codes = box_tokens((0.1, 0.22, 0.87, 0.6)), codes(*range(5), *range(11))
    one = f"{places} {all_codes} red car"
    two = f"{one} ; {box_tokens((0, 0.5, 1, 1))}{codes(*[10, 3] * 8)} cat"
    odd = [
        "",
        "a cat",
        f"{places} cat",
        one.replace("<seg003>", "", 1),  # 15 codes
        f"{one.replace('<seg003>', '', 1)} ; {one}",
        one.replace("<seg003>", "<seg003><seg003>", 1),  # 17
        one.replace("<seg003>", "<seg011>", 1),  # which the small codec has not
        one.replace("<seg003>", "<seg128>", 1),
        one.replace("<seg003>", "<seg3>", 1),
        one.replace("<loc0102>", "<loc1024>", 1),
        one.replace("<loc0102>", "", 1),
        f"<loc0007>{one}",
        f"{box_tokens((0.9, 0.1, 0.1, 0.9))}{all_codes} upside down",
        f"{box_tokens((0.5, 0.1, 0.5, 0.9))}{all_codes} flat",
        f"{box_tokens((0.5, 0.1, 0.501, 0.9))}{all_codes} less than a pixel",
        f"{places}\n{all_codes}",
    ]
    less, more = copy.deepcopy(codec), copy.deepcopy(codec)
    less.decoder[-1].bias -= 1e-3
    more.decoder[-1].bias += 1e-3
    read = 0
    for answer, (height, width) in itertools.chain(
        itertools.product([one, two], [(64, 64), (37, 90), (300, 288), (900, 11), (1, 1)]),
        itertools.product(odd, [(20, 30)]),
    ):
        found = node("masks", answer=answer, height=height, width=width)
        surely, perhaps = (read_masks(answer, c, height, width) for c in (less, more))
        assert [mask["name"] for mask in found] == [name for name, _, _ in surely], answer
        for told, (_, box, inside), (_, _, at_most) in zip(found, surely, perhaps, strict=True):
            assert told["box"] == pytest.approx(box)
            mask = np.frombuffer(base64.b64decode(told["mask"]), np.uint8)
            mask = mask.reshape(height, width)
            assert mask.max() <= 1
            assert (mask >= inside).all() and (mask <= at_most).all(), answer
            assert (at_most & ~inside).mean() < 0.01  # so nearly all pixels are compared
            read += 0 < mask.sum() < height * width
    assert read > 12


# --- the file ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The small model's page, written by the command, at an address of a browser."""
    file = tmp_path_factory.mktemp("page é") / "a page.html"
    assert main(["page", "--output", str(file)]) == 0
    return file


def test_one_file_of_six_megabytes_that_asks_for_nothing(page):
    assert page.stat().st_size <= 6_000_000
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<!-- \w+ -->", text)  # every part has found its place
    loaded = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert all(re.match("data:|https:", address) for address in loaded)
    assert not re.search(r"""(?:src=["']|url\(|@import)\s*["']?https?:""", text)


# How the artists want to be named, see NOTICE.md.
CREDITS = {
    "twemoji": "Twemoji, copyright 2019 Twitter, Inc and other contributors",
    "emojione": "EmojiOne 2, by EmojiOne",
    "fluent-3d": "copyright (c) Microsoft Corporation, packaging copyright (c) 2023 LobeHub",
}


def test_what_a_page_must_carry_when_it_is_sent_on(page):
    """The artists of all its drawings, their licences, and that they were changed."""
    [licences] = re.findall(
        "<summary>Licences</summary>(.*?)</details>", page.read_text("utf-8"), re.S
    )
    text = " ".join(re.sub("<[^>]*>", " ", licences).split())
    notice = (ROOT / "NOTICE.md").read_text(encoding="utf-8")
    [mit] = re.findall("(Permission is hereby granted.*?SOFTWARE[.])\n", notice, re.S)
    assert " ".join(mit.split()) in text
    drawn = [artists for name in EXAMPLES for artists in PICTURES[name][0].values()]
    for artist in {DRAWINGS, *itertools.chain(*drawn)}:
        assert CREDITS[artist] in text
    for words in ("the minipali authors", "modified", "CC BY 4.0", "without warranties"):
        assert words in text


def test_what_the_command_says(tmp_path, capsys, saved):
    assert main(["page", str(saved), "--output", str(tmp_path / "mine.html")]) == 0
    assert re.search(r"mine\.html, \d\.\d MB: open it in a browser", capsys.readouterr().out)
    for output, what in (
        (tmp_path / "page.png", "must end in .html"),
        (tmp_path / "none" / "page.html", "folder that exists"),
        (tmp_path, "must end in .html"),
    ):
        assert main(["page", "--output", str(output)]) == 2
        assert what in capsys.readouterr().err
    assert main(["page", str(tmp_path), "--output", str(tmp_path / "a.html")]) == 2
    assert "must hold config.json" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


@pytest.fixture(scope="module")
def codec():
    return make_codec()


@pytest.fixture
def codec_file(codec, tmp_path):
    """As big_vision gives it out; numpy may store an array column by column too."""
    arrays = {published_name(name): one.numpy() for name, one in codec.state_dict().items()}
    np.savez(tmp_path / "vae-oid.npz", **{n: np.asfortranarray(a) for n, a in arrays.items()})
    return tmp_path / "vae-oid.npz"


def test_the_command_with_a_codec(codec_file, saved, tmp_path, capsys):
    with_codec = tmp_path / "with.html"
    assert main(["page", str(saved), "--codec", str(codec_file), "--output", str(with_codec)]) == 0
    assert main(["page", str(saved), "--output", str(tmp_path / "without.html")]) == 0
    size = with_codec.stat().st_size
    assert 2e6 < size - (tmp_path / "without.html").stat().st_size < 3.5e6
    capsys.readouterr()
    (tmp_path / "bad.npz").write_bytes(codec_file.read_bytes()[:1000])
    for file, what in (("none.npz", "no file"), ("bad.npz", "must be a whole npz file")):
        arguments = ["--codec", str(tmp_path / file), "--output", str(with_codec)]
        assert main(["page", str(saved), *arguments]) == 2
        assert what in capsys.readouterr().err
    assert with_codec.stat().st_size == size  # the old one stays


def test_models_that_a_page_cannot_hold(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("minipali.page.MOST", 1000)
    with pytest.raises(PageError, match="at most 1,000 parameters, found"):
        make_page(saved)
    monkeypatch.undo()
    model, processor = load(saved)
    with torch.no_grad():
        model.language_model.norm.weight.fill_(1e5)
    minipali.save(model, processor, tmp_path / "large")
    with pytest.raises(PageError, match="at most 65,504"):
        make_page(tmp_path / "large")
    codec = make_codec(channels=(3, 5))
    codec.codebook[0, 0] = 1e5
    with pytest.raises(PageError, match="weights of the codec must be at most 65,504"):
        make_page(saved, codec)


def test_a_tokenizer_that_a_page_does_not_know(saved, monkeypatch):
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a dog and a cat", "two cats on a red background"] * 50),
        model_writer=made,
        model_type="unigram",
        vocab_size=22,
        minloglevel=2,
    )
    other = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    model, processor = load(saved)
    processor.sentencepiece = other
    monkeypatch.setattr("minipali.page.load", lambda source: (model, processor))
    with pytest.raises(PageError, match="byte-pair encoding"):
        make_page(saved)


# --- in a browser --------------------------------------------------------------------------------


def ask(browser, **question):
    return browser.run(f"minipali.ask({json.dumps(question)})")


def url(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


# The controls that a screen reader would announce without a name.
NAMELESS = """[...document.querySelectorAll("button, input, select, canvas, summary")]
  .filter((one) => !one.hidden && !one.ariaLabel && !one.labels?.length && !one.innerText?.trim()
    && !one.textContent.trim()).map((one) => one.outerHTML)"""
TEXT = """document.getElementById("answer").textContent"""


def test_a_person_with_the_page(browser, page, small):
    """Sees an answer, asks by a prompt of the page, and looks at a token; nothing is fetched."""
    model, processor = small
    visit(browser, page)
    [first, *_] = browser.run("minipali.ready.then((ready) => ready.examples)")
    picture = scenes.examples()[first]
    caption = minipali.generate(model, processor, picture, "caption en")
    assert browser.run(TEXT) == caption
    told = [f"{t}" for t in processor.encode(caption)]
    assert browser.run("""document.querySelectorAll("#tokens button").length""") == len(told) + 1

    browser.run("""[...document.querySelectorAll("#prompts button")]
        .find((button) => button.textContent === "detect dog").click()""")
    wait_for(lambda: browser.run("""document.querySelectorAll("#boxes text").length""") == 1)
    [(name, (y0, x0, y1, x1))] = minipali.detect(model, processor, picture, "dog")
    drawn = """["y", "x", "height", "width"].map((side) =>
        Number(document.querySelector("#boxes rect").getAttribute(side)))"""
    assert browser.run(drawn) == pytest.approx([y0, x0, y1 - y0, x1 - x0])
    assert browser.run(TEXT) == name
    looked = """document.getElementById("looked").textContent"""
    before = browser.run(looked)
    browser.run("""document.querySelectorAll("#tokens button")[4].click()""")
    assert browser.run(looked) != before
    assert "dog" in browser.run("""document.getElementById("rivals").innerText""")
    assert browser.run(NAMELESS) == []
    assert browser.run("""document.getElementById("problem").hidden""")

    kinds = {urllib.parse.urlparse(address).scheme for address in browser.requests}
    assert kinds <= {"file", "data", "blob", "about"}
    files = {address for address in browser.requests if address.startswith("file:")}
    assert files == {page.as_uri()}


def test_a_scene_composed_with_the_keyboard(browser, page):
    visit(browser, page)
    key = """new KeyboardEvent("keydown", {{ key: "{}", bubbles: true, cancelable: true }})"""
    browser.run("""document.getElementById("compose").click()""")
    things = """[...document.querySelectorAll("#things button")].map((one) => one.ariaLabel)"""
    assert len(browser.run(things)) == 2
    wait_for(lambda: browser.run(TEXT) == "a cat and an apple on a blue background", seconds=30)
    asked = """[...document.querySelectorAll("#prompts button")].map((one) => one.textContent)"""
    assert "detect cat" in browser.run(asked)  # the thing that came last
    browser.run(
        f"""document.querySelector("#things button").dispatchEvent({key.format("Delete")})"""
    )
    browser.run(
        f"""document.querySelector("#things button").dispatchEvent({key.format("Delete")})"""
    )
    browser.run("""document.querySelector('#drawings [data-name="penguin"]').click()""")
    browser.run("""document.querySelector('#backgrounds [data-name="blue"]').click()""")
    for name in ["ArrowLeft"] * 30 + ["ArrowUp"] * 30 + ["+"]:
        browser.run(
            f"""document.querySelector("#things button").dispatchEvent({key.format(name)})"""
        )
    assert browser.run(things) == ["penguin, 0 % from the left, 0 % from the top"]
    wait_for(lambda: browser.run(TEXT) == "a penguin on a blue background", seconds=30)


def test_a_pointer_drags_and_draws(browser, page):
    visit(browser, page)

    def middle(selector):
        return browser.run(f"""(() => {{
          const place = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
          return [place.x + place.width / 2, place.y + place.height / 2];
        }})()""")

    def drag(selector, by):
        x, y = middle(selector)
        for kind, step in (("mousePressed", 0), ("mouseMoved", 0.5), ("mouseMoved", 1)):
            at = {"x": x + by * step, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            browser.call("Input.dispatchMouseEvent", type=kind, **at)
        browser.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    browser.run("""document.getElementById("compose").click()""")
    x, _ = middle("#things button")
    by = 40 if x < middle("#picture")[0] else -40
    drag("#things button", by)
    assert middle("#things button")[0] == pytest.approx(x + by, abs=1)

    browser.run("""document.getElementById("draw").click()""")
    browser.run("""document.getElementById("blank").click()""")
    drag("#picture", 40)
    label = """document.getElementById("picture").ariaLabel"""
    assert browser.run(label) == "Your drawing"
    assert browser.run("[...pen.getImageData(150, 144, 1, 1).data]") == [0xD6, 0x28, 0x28, 255]

    browser.run("""take(new File(["abc"], "notes.txt"), "")""")
    assert "notes.txt must be a picture" in browser.run(
        """document.getElementById("problem").textContent"""
    )
    assert browser.run(label) == "Your drawing"  # which stays


OUTLINE = f"<loc0100><loc0200><loc0900><loc0700> {codes(*range(0, 128, 8))} apple"
TOLD = """document.getElementById("told").textContent"""


def finish(browser, answer: str) -> str:
    """What the page says of an answer."""
    browser.run(f"""loading.then(({{ tokenizer, codec }}) =>
        finish(tokenizer, codec, "segment apple", {json.dumps(answer)}))""")
    return browser.run(TOLD)


def test_an_outline_in_a_page_without_a_codec(browser, page):
    """It draws the box, and says what the outline would take."""
    visit(browser, page)
    told = finish(browser, OUTLINE)
    assert browser.run(TEXT) == "apple"
    drawn = """["y", "x", "height", "width"].map((side) =>
        Number(document.querySelector("#boxes rect").getAttribute(side)))"""
    [(_, (y0, x0, y1, x1))] = read_boxes(OUTLINE)
    assert browser.run(drawn) == pytest.approx([288 * n for n in (y0, x0, y1 - y0, x1 - x0)])
    assert "no mask decoder" in told and "`minipali page` with --codec" in told
    assert browser.run("""document.querySelector("#boxes image")""") is None


@pytest.fixture(scope="module")
def segmenting(small_folder, tmp_path_factory):
    """The folder of a tiny model that has learned one answer by heart, with an outline."""
    model = fresh_model().train()
    processor = Processor(small_folder / "tokenizer.model", model.config)
    batch = processor(scenes.examples()["three_apples"], "segment apple", OUTLINE)
    labels = batch.pop("labels")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        suffix_loss(model(**batch), labels).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("segmenting") / "model"
    minipali.save(model.half(), processor, folder)
    return folder


# What is drawn over the picture at a place in its pixels: [red, green, blue, alpha].
OVER = """(async () => {{
  const image = new Image();
  image.src = document.querySelector("#boxes image").getAttribute("href");
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  return [...canvas.getImageData({x}, {y}, 1, 1).data];
}})()"""


def test_a_page_that_draws_masks(browser, segmenting, codec, tmp_path):
    """Asked for an apple by the page's own prompt, and as another page would ask."""
    file = tmp_path / "masks.html"
    file.write_text(make_page(segmenting, codec), encoding="utf-8")
    model, processor = load(segmenting, dtype="float32")
    picture = scenes.examples()["three_apples"]
    [(name, box, mask)] = minipali.asking.segment(model, processor, codec, picture, "apple")
    assert 1000 < mask.sum() < 0.9 * (box[2] - box[0]) * (box[3] - box[1])
    visit(browser, file)
    browser.run("""[...document.querySelectorAll("#examples button")]
        .find((one) => one.dataset.name === "three_apples").click()""")
    chip = """[...document.querySelectorAll("#prompts button")]
        .find((one) => one.textContent === "segment apple")"""
    wait_for(lambda: browser.run(f"!!{chip}"), seconds=30)  # the picture is open
    browser.run(f"{chip}.click()")
    wait_for(lambda: "Outlines in colour" in browser.run(TOLD), seconds=30)
    assert browser.run(TEXT) == name
    [pixels] = re.findall(r"Outlines in colour: apple ([\d,]+) pixels[.]", browser.run(TOLD))
    assert int(pixels.replace(",", "")) == pytest.approx(mask.sum(), abs=20)
    for inside, colour in ((mask, [*COLOURS[0], 128]), (~mask, [0, 0, 0, 0])):
        y, x = np.argwhere(inside)[inside.sum() // 2].tolist()
        assert browser.run(OVER.format(x=x, y=y)) == pytest.approx(colour, abs=1)
    script = """minipali.ask({ image: "three_apples", prompt: "segment apple" })
      .then(({ masks }) => masks.map((one) => ({ ...one, mask: [...one.mask] })))"""
    [told] = browser.run(script)
    assert told["name"] == name and told["box"] == pytest.approx(box)
    found = np.array(told["mask"]).reshape(mask.shape)
    assert (found != mask).sum() < 20  # where the number is nearly 0
    cut = OUTLINE.replace("<seg008>", "")
    assert "no whole outline" in finish(browser, cut)
    assert browser.run("""document.querySelector("#boxes image")""") is None


def test_a_picture_of_a_visitor(browser, page):
    """It may be anything, so the page says what the model has seen; an error leaves nothing."""
    visit(browser, page)
    told = """document.getElementById("told").textContent"""
    assert "never a photograph" not in browser.run(told)
    photograph = url(Image.effect_noise((300, 500), 60))
    browser.run(f"""(async () => {{
      const files = new DataTransfer();
      const blob = await (await fetch({json.dumps(photograph)})).blob();
      files.items.add(new File([blob], "a photograph.png", {{ type: "image/png" }}));
      dispatchEvent(new DragEvent("drop", {{ dataTransfer: files, cancelable: true }}));
    }})()""")
    wait_for(lambda: "never a photograph" in browser.run(told), seconds=30)
    label = """document.getElementById("picture").ariaLabel"""
    assert browser.run(label) == "Your picture: a photograph.png"

    browser.run("""document.getElementById("prompt").value = "what is <image>?" """)
    browser.run("""document.getElementById("ask").click()""")
    problem = """document.getElementById("problem").innerText"""
    wait_for(lambda: "must not contain '<image>'" in browser.run(problem), seconds=30)
    for part in ("answer", "told", "tokens"):
        assert browser.run(f"""document.getElementById("{part}").textContent""") == ""


def test_asked_by_another_page(browser, page, small):
    """`minipali.ask` gives torch's answers for examples, data URLs and ImageData."""
    model, processor = small
    visit(browser, page)
    asked = questions(20)
    pictures, prompts = zip(*asked, strict=True)
    told = minipali.generate(model, processor, list(pictures), list(prompts))
    for (picture, prompt), text in zip(asked, told, strict=True):
        found = ask(browser, image=url(picture), prompt=prompt)
        assert found["text"] == text
        assert "".join(t["token"] for t in found["tokens"][:-1]).replace("▁", " ") == text
        assert all(0 < t["probability"] <= 1 for t in found["tokens"])
        boxes = [(n, [edge * 288 for edge in box]) for n, box in read_boxes(text)]
        assert [box["name"] for box in found["boxes"]] == [name for name, _ in boxes]
        for told_box, (_, box) in zip(found["boxes"], boxes, strict=True):
            assert told_box["box"] == pytest.approx(box)
    answer = minipali.generate(model, processor, scenes.examples()["three_apples"], "caption en")
    assert ask(browser, image="three_apples", prompt="caption en")["text"] == answer
    grey = Image.new("RGB", (50, 40), (128, 128, 128))
    script = """(() => {
      const numbers = new Uint8ClampedArray(50 * 40 * 4).map((_, i) => (i % 4 === 3 ? 255 : 128));
      return minipali.ask({ image: new ImageData(numbers, 50), prompt: "caption en" });
    })()"""
    assert browser.run(script)["text"] == minipali.generate(model, processor, grey, "caption en")
    drawn = [ask(browser, image="three_apples", prompt="caption en", temperature=2, seed=7)["text"]
             for _ in range(2)]  # fmt: skip
    assert drawn[0] == drawn[1]
    for question, what in (
        ({"image": "nothing", "prompt": "caption en"}, "one of dog_and_car_test_artist"),
        ({"image": "data:text/plain,no", "prompt": "caption en"}, "that this browser can open"),
        ({"image": "three_apples"}, "prompt must be text"),
        ({"image": "three_apples", "prompt": "a", "temperature": -1}, "temperature must be"),
    ):
        script = f"minipali.ask({json.dumps(question)}).then(String, (error) => error.message)"
        assert what in browser.run(script)


def test_a_page_of_another_model(browser, saved, tmp_path):
    """Of other sizes, without any training: it says what torch says."""
    file = tmp_path / "other.html"
    file.write_text(make_page(saved), encoding="utf-8")
    minipali.save(*load(saved, dtype="float16"), tmp_path / "rounded")
    model, processor = load(tmp_path / "rounded", dtype="float32")
    visit(browser, file)
    picture = scenes.examples()["three_apples"]
    text = minipali.generate(model, processor, picture, "caption en", max_new_tokens=8)
    found = ask(browser, image="three_apples", prompt="caption en", maxNewTokens=8)
    assert found["text"] == text
    assert browser.run("""document.getElementById("layer").length""") == 3
    assert browser.run("""document.getElementById("about-model").textContent""").startswith(
        "Model,"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser, page, scheme):
    """390 pixels wide without a sideways scroll, and letters that stand out from the ground."""
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2,
                 mobile=True)  # fmt: skip
    browser.call(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    visit(browser, page)
    place = """document.getElementById("{}").getBoundingClientRect().{}"""
    assert browser.run(place.format("picture", "bottom")) <= browser.run(
        place.format("answer", "top")
    )
    assert browser.run(place.format("answer", "bottom")) <= 844  # seen without scrolling
    browser.run("""document.querySelectorAll("details").forEach((one) => one.open = true)""")
    browser.run("""document.getElementById("compose").click()""")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    # [letters, ground] of each kind of text, as red, green, blue
    colours = browser.run("""(() => {
      const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
      const ground = (one) => {
        const own = numbers(getComputedStyle(one).backgroundColor);
        return own.length === 4 && own[3] < 1 ? ground(one.parentElement) : own;
      };
      return ["body", ".hint", "#answer", "#ask", "h2", "#tokens small", "#rivals td", "a",
        "#words small"]
        .map((name) => document.querySelector(name))
        .map((one) => [numbers(getComputedStyle(one).color), ground(one)]);
    })()""")
    light = [sum(ground) for _, ground in colours]
    assert (light[0] > 600) == (scheme == "light")

    def luminance(colour):
        linear = [(c / 255 / 12.92, ((c / 255 + 0.055) / 1.055) ** 2.4)[c > 10] for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for letters, ground in colours:
        low, high = sorted(map(luminance, (letters[:3], ground[:3])))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2, level AA

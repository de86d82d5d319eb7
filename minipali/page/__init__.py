"""The live model: a trained model and all that it needs, as one web page that opens from disk.

`model.js` holds PaliGemma once more, in JavaScript; `reading.js` what stands around it; `masks.js`
the decoder of a mask codec; `app.js` the page's own doing. Nothing is asked of a server: weights,
pictures and code are in the file.
"""

import base64
import html
import io
import json
import zipfile
import zlib
from importlib import resources
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from minipali import config as configs
from minipali.masks import COLOURS, MaskCodec
from minipali.saving import weights_to_save
from minipali.scenes import BACKGROUNDS, OBJECTS, with_article
from minipali.tokenizer_files import NORMAL, parse_pieces
from minipali.tokens import Processor
from minipali.weights import SMALL, load

MOST = 50_000_000  # parameters: a page of about 115 MB, and seconds for each token
SCRIPTS = ("reading.js", "model.js", "masks.js", "app.js")

# Those whose licences a page can keep by naming the artist: Noto's wants its whole text handed on.
EXAMPLES = (
    "dog_and_car_test_artist",
    "two_frogs_and_pizza_test_artist",
    "rocket_moon_clock",
    "three_apples",
    "penguin_test_artist",
)
DRAWINGS = "twemoji"  # what scenes are composed from: drawings that the small model never saw

PROMPTS = (
    "caption en",
    "answer en what is on the left?",
    "answer en what colour is the background?",
    "answer en how many objects are there?",
)
WITH_NAME = ("detect {name}", "answer en is there {a name}?")
WITH_CODEC = ("segment {name}",)

# What the page says about its model: of a model of this course, and of any other.
LEARNED = (
    "It has seen scenes of one to three emoji drawings, of 24 things on nine colours, and never a"
    " photograph. Show it one, and it answers with the words it has, and sounds as sure as ever.",
    "It knows the kinds of questions that are offered here. It does not understand other ones.",
    "It squeezes a picture into a square of 72 x 72 pixels: what is small in it is gone.",
    "Its boxes lie on a grid of 24 steps, and it counts to three.",
)
OTHER = (
    "It knows what it was trained on, and this page does not know what that was. The questions that"
    " are offered here are PaliGemma's usual ones.",
)


class PageError(ValueError):
    """A model that a page cannot hold."""


def make_page(source: str | Path = "small", codec: MaskCodec | None = None) -> str:
    """The HTML of a page in which the model answers.

    source: as in `minipali.load`; codec: what turns a model's `<seg>` tokens into masks, of which
    the page gets the decoder. All weights are rounded to float16. Raises PageError for a model of
    more than MOST parameters, with weights that float16 cannot hold, or with a tokenizer that is no
    plain byte-pair encoding; and what `load` raises.
    """
    model, processor = load(source)
    _check(model, processor, source)
    decoder = codec.state_dict() if codec else {}
    decoder = {name: one for name, one in decoder.items() if not name.startswith("encoder.")}
    of_the_course = _tokenizer(processor) == (SMALL / "tokenizer.model").read_bytes()
    data = {
        "name": "the small model" if source == "small" else Path(source).resolve().name,
        "config": configs.to_dict(model.config, "float16"),
        "tokenizer": _text(_tokenizer(processor)),
        "examples": {name: _url(_asset(f"pictures/{name}.png")) for name in EXAMPLES},
        "drawings": {name: _url(png) for name, png in _drawings().items()},
        "names": {name: with_article(name) for name in OBJECTS},
        "backgrounds": BACKGROUNDS,
        "prompts": [*PROMPTS, *WITH_NAME, *(WITH_CODEC if codec else ())],
        "colours": COLOURS,
        "limits": [*(LEARNED if of_the_course else OTHER), "It cannot say: I do not know."],
    }
    parts = {
        "style": _file("page.css"),
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
        "weights": _packed(weights_to_save(model), f"{source}"),
        "codec": _packed(decoder, "the codec") if codec else "",
        "scripts": "\n".join(f"<script>\n{_file(name)}</script>" for name in SCRIPTS),
        "name": html.escape(data["name"]),
    }
    page = _file("page.html")
    for name, part in parts.items():
        page = page.replace(f"<!-- {name} -->", part)
    return page


def _check(model, processor: Processor, source) -> None:
    if (kind := model.config.text.model_type) != "gemma":
        raise PageError(
            f"a page must have a PaliGemma 1, whose decoder is its own, found {kind} in {source}:"
            " ask that model with `minipali ask`"
        )
    count = sum(p.numel() for p in model.parameters())
    if count > MOST:
        raise PageError(
            f"a page must have a model of at most {MOST:,} parameters, found {count:,} in {source}:"
            " no browser would load it in a reasonable time; show a smaller model"
        )
    if model.config.vision.num_channels != 3:
        raise PageError(f"a page must have a model of pictures in 3 colours, as {source} has not")
    # Byte-pair encoding ranks its pieces by whole numbers, and this page takes text as it is:
    # spaces stay, and no letter is replaced by another.
    pieces = parse_pieces(_tokenizer(processor))
    ranked = all(score == int(score) <= 0 for _, score, kind in pieces if kind == NORMAL)
    if not ranked or processor.sentencepiece.Normalize(" \ufb01  x ") != "▁\ufb01▁▁x▁":
        raise PageError(
            f"the tokenizer of {source} must be a byte-pair encoding that leaves the text as it is,"
            " as PaliGemma's is: a page knows no other"
        )


def _tokenizer(processor: Processor) -> bytes:
    return processor.sentencepiece.serialized_model_proto()


def _packed(weights: dict[str, Tensor], whose: str) -> str:
    """Weights as text: safetensors of float16, compressed. `unpack` in app.js reads it."""
    halves = {name: weight.half().contiguous() for name, weight in weights.items()}
    if not all(weight.isfinite().all() for weight in halves.values()):
        raise PageError(f"all weights of {whose} must be at most 65,504 for a page, in float16")
    numbers = save(halves, {"format": "pt"})
    # The first bytes of all 16-bit numbers, then the second ones: so they compress by 15 %.
    return _text(zlib.compress(numbers[0::2] + numbers[1::2], 9))


def _drawings() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(_asset("sprites.zip"))) as opened:
        return {name: opened.read(f"{DRAWINGS}/{name}.png") for name in OBJECTS}


def _asset(name: str) -> bytes:
    return (resources.files("minipali") / "assets" / name).read_bytes()


def _file(name: str) -> str:
    return (resources.files("minipali") / "page" / name).read_text(encoding="utf-8")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{_text(png)}"

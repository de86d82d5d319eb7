"""What the figures of all lessons share: showing with alt text, colours, the map of the model.

A figure reaches the notebook with its alt text, so that a screen reader, and whoever reads the
notebook as text, gets what it shows. Colours are from Okabe and Ito's set, which colour-blind
readers can tell apart, and never carry a meaning alone.
"""

import base64
import html
import importlib.util
import inspect
import io
import os
import textwrap
import warnings
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image
from torch import Tensor

from minipali.config import PaliGemmaConfig

# Libraries that a lesson imports later (transformers) ask tqdm for Jupyter's bars, and tqdm says in
# red that ipywidgets is missing. It says so at its first import alone: here, where nobody hears.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")
    import tqdm.auto  # noqa: F401

BLUE, ORANGE, GREEN, GREY, DARK = "#0072B2", "#E69F00", "#009E73", "#999999", "#222222"
DPI = 80


def show(figure: Figure, alt: str) -> None:
    """Display a figure with its alt text, and close it."""
    from IPython.display import display

    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    alt, png = " ".join(alt.split()), held.getvalue()
    # JupyterLab puts no alt text on a PNG, but keeps that of an HTML image; the PNG itself is for
    # viewers that show no HTML.
    data = base64.b64encode(png).decode()
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
    display(
        {"text/html": image, "image/png": data, "text/plain": f"Figure: {alt}"},
        metadata={"image/png": {"alt": alt}},
        raw=True,
    )


def slide(draw: Callable[..., None], **values: Sequence) -> None:
    """A figure with a slider for each of its arguments, where somebody can move them.

    draw: shows a figure, and has a default for each argument; values: argument -> the values that
    its slider runs through, the default among them. Sliders take ipywidgets and a page of
    Jupyter's own server; elsewhere (in a build, in tests, on the site) this is `draw()`.
    """
    # The server sets it for the kernels that it starts. A stored slider would be dead, and other
    # viewers would fetch the code of the sliders from the network.
    if "JPY_SESSION_NAME" not in os.environ or importlib.util.find_spec("ipywidgets") is None:
        return draw()
    from ipywidgets import Layout, SelectionSlider, interact

    def slider(name, options):
        return SelectionSlider(
            options=list(options),
            value=inspect.signature(draw).parameters[name].default,
            description=name.replace("_", "-"),
            continuous_update=False,  # draws once the slider is let go
            layout=Layout(width="30em"),
            style={"description_width": "7em"},
        )

    interact(draw, **{name: slider(name, options) for name, options in values.items()})


def as_picture(pixels: Tensor) -> np.ndarray:
    """(3, y, x) in [-1, 1] -> (y, x, 3) in [0, 1], for drawing."""
    return rearrange(pixels.detach().float(), "c y x -> y x c").add(1).div(2).clamp(0, 1).numpy()


def model_map(lit: str, config: PaliGemmaConfig) -> None:
    """The whole model as boxes with its real sizes; the part of this lesson is lit.

    lit: "patches", "vision", "projector", "tokens", "decoder", "head", or "all".
    """
    v, t = config.vision, config.text
    side = v.image_size // v.patch_size
    depth = f"{v.num_hidden_layers} layers\nwidth {v.hidden_size}"
    decoder = f"{t.num_hidden_layers} layers\nwidth {t.hidden_size}"
    boxes = [  # key, left, bottom, width, text
        ("picture", 0.0, 2.2, 1.7, f"picture\n{v.image_size} x {v.image_size} px"),
        ("patches", 2.3, 2.2, 2.5, f"patch embedding\n{side} x {side} = {v.num_patches}\npatches"),
        ("vision", 5.4, 2.2, 2.2, f"vision tower\n{depth}"),
        ("projector", 8.2, 2.2, 1.9, f"projector\n{v.hidden_size} to\n{t.hidden_size}"),
        ("question", 0.0, 0.0, 1.7, "question\nas text"),
        ("tokens", 2.3, 0.0, 2.5, f"tokens\ntable of\n{t.vocab_size:,} rows"),
        ("decoder", 10.8, 1.1, 2.5, f"Gemma decoder\n{decoder}"),
        ("head", 13.9, 1.1, 1.7, "head:\nnext\ntoken"),
    ]
    figure, axes = plt.subplots(figsize=(10, 2.6))
    centre = {}
    h = 1.35
    for key, x, y, w, text in boxes:
        on = lit in (key, "all") and key not in ("picture", "question")
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                w,
                h,
                boxstyle="round,pad=0.04",
                linewidth=3 if on else 1,
                edgecolor=BLUE if on else GREY,
                facecolor="#CDE6F5" if on else "white",
            )  # fmt: skip
        )
        axes.text(
            x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9,
            color=DARK if on or lit == "all" else "#555555",
        )  # fmt: skip
        centre[key] = (x, x + w, y + h / 2)
    arrows = [("picture", "patches"), ("patches", "vision"), ("vision", "projector"),
              ("projector", "decoder"), ("question", "tokens"), ("tokens", "decoder"),
              ("decoder", "head")]  # fmt: skip
    for a, b in arrows:
        axes.annotate(
            "", (centre[b][0] - 0.08, centre[b][2]), (centre[a][1] + 0.08, centre[a][2]),
            arrowprops={"arrowstyle": "->", "color": DARK, "lw": 1.3},
        )  # fmt: skip
    axes.set(xlim=(-0.2, 15.8), ylim=(-0.2, 3.7), aspect="equal")
    axes.axis("off")
    told = "Every part is lit." if lit == "all" else f"Lit in this lesson: {lit}."
    show(
        figure,
        f"""Map of PaliGemma. A picture of {v.image_size} pixels goes through the patch embedding
        ({v.num_patches} patches), the vision tower ({v.num_hidden_layers} layers) and the
        projector; a question becomes tokens. Both enter the Gemma decoder ({t.num_hidden_layers}
        layers), whose head gives the next token. {told}""",
    )


def pictures(images: list, titles: list[str], alt: str, columns: int = 4) -> None:
    """Pictures side by side with a line of text under each; long lines are wrapped."""
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    figure, axes = plt.subplots(rows, columns, figsize=(2.5 * columns, 2.9 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image if isinstance(image, Image.Image) else np.asarray(image))
        axis.set_title("\n".join(textwrap.wrap(title, 26)), fontsize=10, y=-0.08, va="top")
    show(figure, alt)


def boxes(image: Image.Image, found: list[tuple[str, tuple]], alt: str) -> None:
    """A picture with named boxes (y0, x0, y1, x1) in its pixels."""
    figure, axis = plt.subplots(figsize=(3.4, 3.4))
    axis.imshow(image)
    for name, (y0, x0, y1, x1) in found:
        for colour, width in (("black", 4), ("white", 2)):
            axis.add_patch(
                Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=width)
            )
        axis.text(
            x0, y0 - 3, name, color="white", fontsize=10, va="bottom",
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axis.axis("off")
    show(figure, alt)

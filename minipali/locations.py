"""Lesson 15. Places in a picture as tokens: boxes to text and back.

A box is (y0, x0, y1, x1), as fractions of the picture's height and width or in its pixels. Vertical
comes before horizontal, in the tokens too.
"""

import re

from PIL import Image, ImageDraw

from minipali.tokens import LOCATIONS

Box = tuple[float, float, float, float]

# As published: four locations, 16 segments if there is a mask, the name; objects joined by " ; ".
_BOX = re.compile(r"<loc([0-9]{4})>" * 4 + r"\s*(?:<seg[0-9]{3}>\s*)*([^;<]*)")


def box_tokens(box: Box) -> str:
    """Fractions (y0, x0, y1, x1) -> "<loc....><loc....><loc....><loc....>".

    A fraction f becomes number round(f * 1023), so that 0 and 1 are both exact. Fractions outside
    0 to 1 are moved to the edge. Source: big_vision's PaliGemma configuration.
    """
    last = LOCATIONS - 1
    return "".join(f"<loc{round(min(max(place, 0.0), 1.0) * last):04d}>" for place in box)


def read_boxes(answer: str) -> list[tuple[str, Box]]:
    """All complete boxes in an answer with their names, as fractions: [(name, (y0, x0, y1, x1))].

    The masks of an answer to "segment" are passed over, see `minipali.masks.read_masks`. Incomplete
    boxes and numbers above 1023 are passed over: a model may say anything.
    """
    found = []
    for *places, name in _BOX.findall(answer):
        numbers = [int(place) for place in places]
        if max(numbers) < LOCATIONS:
            box = tuple(number / (LOCATIONS - 1) for number in numbers)
            found.append((name.strip(), box))
    return found


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 (apart) to 1 (the same box)."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (a, b)]
    return shared / (sum(areas) - shared) if shared else 0.0


def draw_boxes(picture: Image.Image, boxes: list[tuple[str, Box]]) -> Image.Image:
    """A copy of the picture with named boxes, given in its pixels."""
    drawn = picture.convert("RGB").copy()
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(min(drawn.size) / 100))
    for name, (y0, x0, y1, x1) in boxes:
        # White on black shows on every background.
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        pen.rectangle(corners, outline="black", width=3 * line)
        pen.rectangle([c + d * line for c, d in zip(corners, (1, 1, -1, -1), strict=True)]
                      if corners[2] - corners[0] > 2 * line and corners[3] - corners[1] > 2 * line
                      else corners, outline="white", width=line)  # fmt: skip
        size = max(10, drawn.height // 18)
        at = (corners[0] + 3 * line, corners[1] + 2 * line)
        pen.text(
            at, name, fill="white", font_size=size, stroke_width=max(1, line), stroke_fill="black"
        )
    return drawn

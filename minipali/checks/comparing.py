"""Whether a result is the right one, and if not, how it differs, in words.

Shape before dtype, dtype before values; where, and how the right numbers are misplaced.
"""

from numbers import Integral, Number

import torch
from torch import Tensor

NEARLY = 1e-3  # of one number; many could not come so near by chance that more is allowed them
NEARLY_OF_MANY = 1e-2  # 16 bits lose so much
NEAR = (
    "All of it is nearly right: digits are lost on the way (in numbers that almost cancel, in too"
    " coarse a step, in too few bits), or a small number is added or left out."
)
MOST = 300  # characters of anything that a learner's code made


def shown(value) -> str:
    """A value as text: not longer than MOST, and whatever its own `__str__` does."""
    try:
        text = str(value)
    except Exception:
        return f"{_a(type(value).__name__)} that cannot be shown"
    return text if len(text) <= MOST else f"{text[:MOST]}… ({len(text)} characters)"


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "AEIOUaeiou" else f"a {word}"


def same(a, b, tolerance: float) -> bool:
    """Whether two results are equal: also in type, and tensors in shape, dtype and device.

    b is the right one: where it is a whole number, a float is none.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (
            (a.is_nested, a.layout, a.device, a.dtype) == (b.is_nested, b.layout, b.device, b.dtype)
            and a.shape == b.shape
            and torch.allclose(
                a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True
            )
        )
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, Number) and isinstance(b, Number):  # NumPy's too
        if isinstance(b, Integral) and not isinstance(a, Integral):
            return False
        return abs(a - b) <= tolerance * max(1.0, abs(b)) or (a != a and b != b)  # nan, as above
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)


def same_gradient(a, b, tolerance: float) -> bool:
    """Whether two gradients are equal, up to the noise of their own sums; None is: no gradient.

    b is the right one. On paper many of its numbers are 0 (those of a bias of keys, which moves
    all scores of a query alike) and come out of a sum of terms as large as the others. So what
    counts is the largest of its numbers; a sum that cancels loses about ten times what one does.
    """
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not b.numel():
        return same(a, b, tolerance)
    largest = b.double().nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    size = max(1.0, 10 * largest)
    return a.dtype == b.dtype and same(a.double() / size, b.double() / size, tolerance)


def difference(result, expected, axes: str, tolerance: float) -> str:
    """What is wrong with a result that is not a tuple of parts, or "".

    axes: names of the axes of the expected tensor; divided by bars where their number differs.
    """
    if result is None and expected is not None and not isinstance(expected, str):
        return "your function returned None. Is a `return` missing?"
    if result is None or expected is None:
        told = f"the result must be {shown(expected)}, found {shown(result)}."
        return "" if result is expected else told
    numbers = isinstance(result, Number) and isinstance(expected, Number)
    if not numbers and not isinstance(result, type(expected)):
        found = type(result).__name__
        array = found == "ndarray" and isinstance(expected, Tensor)
        more = " torch.from_numpy makes a tensor of it." if array else ""
        return f"the result must be {_a(type(expected).__name__)}, found {_a(found)}.{more}"
    if isinstance(expected, Tensor):
        kinds = [kind.split() for kind in axes.split("|")]
        names = next((kind for kind in kinds if len(kind) == expected.ndim), kinds[0])
        return _of_tensors(result, expected, names, tolerance)
    if same(result, expected, tolerance):
        return ""
    whole = " whole numbers (int):" if _floats_for_ints(result, expected) else ""
    return f"the result must be{whole} {shown(expected)}, found {shown(result)}."


def _floats_for_ints(result, expected) -> bool:
    """Whether a float stands somewhere in a list where the right one has a whole number."""
    if not isinstance(expected, (tuple, list)) or len(result) != len(expected):
        return False
    return any(
        isinstance(want, Integral) and isinstance(got, Number) and not isinstance(got, Integral)
        for got, want in zip(result, expected, strict=True)
    )


def of_parts(
    result, expected: tuple, parts: tuple[str, ...], axes: str, written: int, tolerance: float
) -> str:
    """What is wrong with the first wrong part of a tuple, or "".

    parts: their names, of which the last `written` are those that the function writes into; axes:
    of each part, divided by semicolons.
    """
    returned = len(parts) - written
    if not isinstance(result, tuple) or len(result) != len(expected):
        found = type(result).__name__
        if isinstance(result, tuple):
            found = f"a tuple of {len(result) - written}"
        return f"it must end with `return {', '.join(parts[:returned])}`; found {found}."
    each = zip(parts, result, expected, axes.split(";"), strict=True)
    for number, (name, got, want, own) in enumerate(each, start=1):
        if complaint := difference(got, want, own, tolerance):
            if number > returned:
                return f"{name}, which your function shall write into: {complaint}"
            return f"{name}, part {number} of the result: {complaint}"
    return ""


def _of_tensors(result: Tensor, expected: Tensor, axes: list[str], tolerance: float) -> str:
    if result.is_nested or result.layout != expected.layout:
        kind = "nested" if result.is_nested else str(result.layout).removeprefix("torch.")
        return f"the result must be an ordinary tensor with all its numbers, found a {kind} one."
    if result.ndim != expected.ndim:
        want, got = ("1 axis" if n == 1 else f"{n} axes" for n in (expected.ndim, result.ndim))
        return (
            f"the result must have {want} ({' '.join(axes[: expected.ndim])}), shape"
            f" {tuple(expected.shape)}; found {got}, shape {tuple(result.shape)}."
        )
    if result.shape != expected.shape:
        wrong = [
            f"axis {i} ({axes[i]}) must be {want}, found {got}"
            for i, (want, got) in enumerate(zip(expected.shape, result.shape, strict=True))
            if want != got
        ]
        return f"the shape is wrong: {'; '.join(wrong)}."
    if result.dtype != expected.dtype:
        return f"the dtype must be {expected.dtype}, found {result.dtype}."
    if result.device != expected.device:
        return f"the result must be on {expected.device}, found {result.device}."
    bad = (~result.isfinite()) & expected.isfinite()
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        place = f" at {_place(axes, where)}" if where else ""
        return f"the result has {result[where].item()}{place}."
    if same(result, expected, tolerance):
        return ""
    limit = NEARLY_OF_MANY if expected.numel() > 2 else NEARLY
    nearly = expected.is_floating_point() and same(result, expected, limit)
    near = f" {NEAR}" if nearly else ""
    if result.ndim == 0:
        want, got = _told_apart(expected, result, 6)
        return f"the result must be {want}, found {got}.{near}"
    if moved := _moved(result, expected, axes):
        return moved
    agree = (result == expected) | (result.isnan() & expected.isnan())  # inf - inf would be nan
    apart = (result.double() - expected.double()).abs().nan_to_num(nan=torch.inf)
    apart.masked_fill_(agree, 0)
    where = tuple(torch.stack(torch.unravel_index(apart.argmax(), apart.shape)).tolist())
    share = (apart > tolerance).double().mean().item()
    largest = "One of them is" if expected.dtype == torch.bool else "The largest difference is"
    want, got = _told_apart(expected[where], result[where], 4)
    return (
        f"the shape is right, but {share:.0%} of the values are not. {largest}"
        f" at {_place(axes, where)}: expected {want}, found {got}.{near}"
    )


def _told_apart(expected: Tensor, result: Tensor, digits: int) -> tuple[str, str]:
    """Both numbers, with as many digits as it takes to tell them apart, and at least those."""
    want, got = expected.item(), result.item()
    if not expected.is_floating_point():
        return str(want), str(got)
    texts = [(f"{want:.{n}g}", f"{got:.{n}g}") for n in range(digits, 18)]
    return next((both for both in texts if both[0] != both[1]), texts[-1])


def of_gradients(
    result: tuple, expected: tuple, parameters: tuple[str, ...], tolerance: float
) -> str:
    """What is wrong with the gradients that reach the parameters, or "". None is: no gradient."""
    for name, got, want in zip(parameters, result, expected, strict=True):
        if got is None and want is not None:
            return (
                f"the values are right, but no gradient reaches `{name}`, so nothing before it"
                " could learn. Something takes it out of autograd's graph: .item(), float(),"
                " .detach(), .data, torch.tensor(...), no_grad or NumPy."
            )
        if want is None:
            if got is not None and got.any():
                return f"the values are right, but a gradient reaches `{name}`, and none may."
        elif want.isfinite().all() and not got.isfinite().all():
            wrong = got[~got.isfinite()][0].item()
            return (
                f"the values are right, but the gradient that reaches `{name}` has {wrong}. On the"
                " way back torch.where and masks multiply what they leave out by 0, and 0 times"
                " infinity is nan: keep overflow (exp of a large number), a division by 0 and the"
                " root of 0 out of that part, too."
            )
        elif not same_gradient(got, want, tolerance):
            return (
                f"the values are right, but the gradient that reaches `{name}` is not. Where values"
                " are made in several steps, one of them may be out of autograd's graph: .item(),"
                " .detach(), no_grad."
            )
    return ""


def _moved(result: Tensor, expected: Tensor, axes: list[str]) -> str:
    """How the right numbers are arranged wrongly, or "" if they are not the right numbers."""

    def alike(a: Tensor, b: Tensor) -> bool:
        return same(a.flatten(1).sort(dim=1).values, b.flatten(1).sort(dim=1).values, 1e-6)

    if result.ndim != 3 or not alike(result[None], expected[None]):
        return ""
    start = "all the right numbers are there, but not in their places:"
    if not alike(result, expected):
        return f"{start} some are in another {axes[0]}. The axis {axes[0]} must stay in front."
    flat, wanted = result.flatten(0, 1), expected.flatten(0, 1)
    if alike(flat, wanted):
        return f"{start} along {axes[2]} they have another order."
    order = [rows.sort(dim=-1).values.tolist() for rows in (result, expected)]
    if all(sorted(a) == sorted(b) for a, b in zip(*order, strict=True)):
        return f"{start} along {axes[1]} they have another order."
    return f"{start} numbers that belong to different {axes[1]} are mixed."


def _place(axes: list[str], where: tuple[int, ...]) -> str:
    named = [(axis, index) for axis, index in zip(axes, where, strict=False) if axis != "1"]
    return ", ".join(f"{axis} {index}" for axis, index in named) or "0"

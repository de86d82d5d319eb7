"""What torch's commonest errors mean: which axis met which."""

import re

from torch import Tensor

PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "linear", "addmm", "mv"}
CUTS = {"reshape", "view", "unflatten"}
# What torch says when it cannot stretch a tensor to a shape, or write it into a part of another.
STRETCHED = re.compile(
    r"Target sizes: \[(?P<into>[-\d, ]+)\]\.  Tensor sizes: \[(?P<given>[-\d, ]+)\]"
    r"|tensor of shape \[(?P<written>[-\d, ]+)\] .* result of shape \[(?P<part>[-\d, ]+)\]"
)


def axis_names(text: str | None, parameters: list[str], arguments: tuple) -> dict[int, str]:
    """Names of sizes, {5: "d"}, where a docstring tells the axes as in "x: (b, n, d); eps: ...".

    A size that several axes have gets all their names.
    """
    names: dict[int, list[str]] = {}
    for owners, inside in re.findall(r"((?:\w+, )*\w+): [^(\n]*\(([\w, ]+)\)", text or ""):
        axes = [axis.strip() for axis in inside.split(",") if axis.strip()]
        for owner in owners.split(", "):
            given = dict(zip(parameters, arguments, strict=False)).get(owner)
            if not isinstance(given, Tensor) or given.ndim != len(axes):
                continue
            for axis, size in zip(axes, given.shape, strict=True):
                known = names.setdefault(size, [])
                if axis not in known and not axis.isdigit():
                    known.append(axis)
    return {size: " or ".join(axes) for size, axes in names.items() if axes}


def of_shapes(error: BaseException, names: dict[int, str]) -> str:
    """A sentence that says what an error of torch's says about axes, or ""."""

    def told(size: int) -> str:
        return f"{names[size]} ({size})" if size in names else str(size)

    def whole(shape: tuple[int, ...]) -> str:
        return f"({', '.join(map(told, shape))})"

    function, shapes = getattr(error, "of_torch", ("", []))
    if (
        function in CUTS
        and shapes
        and (cut := re.search(r"shape '\[(.*?)\]' is invalid", str(error)))
    ):
        return (
            f". Here `{function}` must keep all numbers: {whole(shapes[0])} cannot become"
            f" ({cut[1]})."
        )
    if isinstance(error, RuntimeError) and (fit := STRETCHED.search(str(error))):
        given = tuple(map(int, (fit["given"] or fit["written"]).split(", ")))
        return (
            f". Here {whole(given)} is to fill ({fit['into'] or fit['part']}): only an axis of"
            " length 1 can be stretched, and all others must be equal."
        )
    if len(shapes) < 2 or not isinstance(error, RuntimeError) or function == "einsum":
        return ""  # einsum's own text names the axes, and it stretches by letters, not places
    if function == "__setitem__":
        return ""  # it writes into a part, whose shape is not known here
    a, b = shapes[:2]
    start = f". Here `{function.strip('_')}` met {whole(a)} and {whole(b)}"
    if function in PRODUCTS and a and b:
        inner = b[-1] if function == "linear" or len(b) == 1 else b[-2]
        if a[-1] != inner:
            return (
                f"{start}: the last axis of the first, {told(a[-1])}, is multiplied with"
                f" {told(inner)} of the second, and the two must be equal. Is an axis to be turned"
                " (.mT), or the other one meant?"
            )
        a, b = a[:-2], b[:-2]
    for one, other in zip(reversed(a), reversed(b), strict=False):
        if one != other and 1 not in (one, other):
            keep = "" if len(a) == len(b) else " An axis of length 1 (keepdim=True) would fit."
            return f"{start}: counted from the right, {told(one)} stands over {told(other)}.{keep}"
    return f"{start}."

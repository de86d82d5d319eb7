"""Lesson 16: masks as tokens; the published codec against flax's semantics in plain numpy."""

import functools
import io
import os
import zipfile

import numpy as np
import pytest
import torch

from minipali.checks import exercise
from minipali.checks.engine import CORRECT, WRONG, examine
from minipali.checks.masks import follow, nearest_code, straight_through, try_codec
from minipali.locations import box_tokens
from minipali.masks import MaskCodec, MasksError, load_codec, place_mask, read_masks

BLOCK = {"0": (128, 128, 3, 3), "2": (128, 128, 3, 3), "4": (128, 128, 1, 1)}
# As Ning et al. configure it, and as big_vision reads it: names and shapes by hand.
SHAPES = {
    "_vq_vae._embedding": (128, 512),
    "_vq_vae._ema_cluster_size": (128,),
    "_vq_vae._ema_w": (128, 512),
    **{
        f"{name}.{kind}": shape if kind == "weight" else (bias,)
        for name, shape, bias in [
            ("encoder.0", (16, 1, 4, 4), 16),
            ("encoder.2", (32, 16, 4, 4), 32),
            ("encoder.4", (64, 32, 4, 4), 64),
            ("encoder.6", (128, 64, 4, 4), 128),
            *((f"encoder.8.net.{i}", shape, 128) for i, shape in BLOCK.items()),
            *((f"encoder.9.net.{i}", shape, 128) for i, shape in BLOCK.items()),
            ("encoder.10", (512, 128, 1, 1), 512),
            ("decoder.0", (128, 512, 1, 1), 128),
            *((f"decoder.2.net.{i}", shape, 128) for i, shape in BLOCK.items()),
            *((f"decoder.3.net.{i}", shape, 128) for i, shape in BLOCK.items()),
            ("decoder.4", (128, 128, 4, 4), 128),
            ("decoder.6", (128, 64, 4, 4), 64),
            ("decoder.8", (64, 32, 4, 4), 32),
            ("decoder.10", (32, 16, 4, 4), 16),
            ("decoder.12", (1, 16, 1, 1), 1),
        ]
        for kind in ("weight", "bias")
    },
}


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    made = {}
    for name, shape in SHAPES.items():
        fan = np.prod(shape[1:]) if len(shape) == 4 else 30
        made[name] = (random.standard_normal(shape) * (2 / fan) ** 0.5).astype(np.float32)
    return made


def saved(folder, arrays):
    np.savez(folder / "vae-oid.npz", **arrays)
    return folder / "vae-oid.npz"


@pytest.fixture
def file(tmp_path, arrays):
    return saved(tmp_path, arrays)


# --- big_vision's decoder and encoder, layer by layer, in numpy. Pictures are (y, x, c) and kernels
# (y, x, in, out), as in flax; nothing here knows of torch. ---------------------------------------


def correlate(x, kernel, stride=1):
    """No padding: y[i, j] = sum over the window that begins at (i, j) * stride."""
    ky, kx, _, _ = kernel.shape
    windows = np.lib.stride_tricks.sliding_window_view(x, (ky, kx), axis=(0, 1))
    return np.einsum("yxcij,ijco->yxo", windows[::stride, ::stride], kernel)


def padded(x, before, after):
    return np.pad(x, ((before, after), (before, after), (0, 0)))


def flax_conv(arrays, name, x, padding):
    kernel = arrays[name + ".weight"].transpose(2, 3, 1, 0)  # as big_vision transposes it
    return correlate(padded(x, padding, padding), kernel) + arrays[name + ".bias"]


def flax_conv_transpose(arrays, name, x):
    """strides 2, padding 2, transpose_kernel=True: both flips of lax.conv_transpose written out."""
    kernel = arrays[name + ".weight"].transpose(2, 3, 1, 0)
    kernel = kernel[::-1, ::-1].swapaxes(2, 3)
    spread = np.zeros((2 * x.shape[0] - 1, 2 * x.shape[1] - 1, x.shape[2]))
    spread[::2, ::2] = x
    return correlate(padded(spread, 2, 2), kernel) + arrays[name + ".bias"]


def same_conv(arrays, name, x, stride):
    """TensorFlow's SAME: ceil(size / stride) rows; the smaller half of the padding in front."""
    kernel = arrays[name + ".weight"].transpose(2, 3, 1, 0)
    size, width = x.shape[0], kernel.shape[0]
    total = max((-(-size // stride) - 1) * stride + width - size, 0)
    x = padded(x, total // 2, total - total // 2)
    return correlate(x, kernel, stride) + arrays[name + ".bias"]


def relu(x):
    return np.maximum(x, 0)


def block(conv, x):
    return conv("4", relu(conv("2", relu(conv("0", x))))) + x


def decoded(arrays, codes):
    x = arrays["_vq_vae._embedding"][codes].reshape(4, 4, 512)
    x = relu(flax_conv(arrays, "decoder.0", x, 0))
    for number in (2, 3):
        x = block(
            lambda i, x, n=number: flax_conv(arrays, f"decoder.{n}.net.{i}", x, int(i != "4")), x
        )
    for number in (4, 6, 8, 10):
        x = relu(flax_conv_transpose(arrays, f"decoder.{number}", x))
    return flax_conv(arrays, "decoder.12", x, 0)[..., 0]


def encoded(arrays, mask):
    """The 16 vectors (16, d) that are looked up in the codebook."""
    x = 2.0 * (mask[..., None] - 0.5)
    for number in (0, 2, 4, 6):
        x = relu(same_conv(arrays, f"encoder.{number}", x, 2))
    for number in (8, 9):
        x = block(lambda i, x, n=number: same_conv(arrays, f"encoder.{n}.net.{i}", x, 1), x)
    return same_conv(arrays, "encoder.10", x, 1).reshape(16, 512)


def test_the_decoder_agrees_with_flax_in_numpy(file, arrays):
    codes = np.random.default_rng(1).integers(128, size=(2, 16))
    found = load_codec(file).decode(torch.tensor(codes)).numpy()
    expected = np.stack([decoded(arrays, row) for row in codes])
    assert found.shape == (2, 64, 64)
    assert np.abs(expected).max() > 0.1  # else nothing would be compared
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_encoder_agrees_with_big_vision_in_numpy(tmp_path, arrays):
    random = np.random.default_rng(2)
    drawn = [np.kron(random.random((8, 8)) < 0.5, np.ones((8, 8))) for _ in range(10)]
    vectors = [encoded(arrays, mask) for mask in drawn]
    # Vectors of the first eight masks are the codebook, so that the others find different entries.
    table = np.concatenate(vectors[:8]).astype(np.float32)
    codec = load_codec(saved(tmp_path, arrays | {"_vq_vae._embedding": table}))
    found = codec.encode(torch.tensor(np.stack(drawn), dtype=torch.float32)).numpy()
    assert found[:8].ravel().tolist() == list(range(128))
    for mine, x in zip(found[8:], vectors[8:], strict=True):
        nearest = ((x[:, None] - table[None]) ** 2).sum(axis=-1).argmin(axis=-1)
        assert len(set(nearest)) > 4
        np.testing.assert_array_equal(mine, nearest)


def test_every_published_name_has_its_place_and_the_statistics_may_be_missing(tmp_path, arrays):
    codec = load_codec(saved(tmp_path, arrays))
    assert sum(p.numel() for p in codec.parameters()) == sum(
        one.size for name, one in arrays.items() if "_ema_" not in name
    )
    assert torch.equal(codec.codebook, torch.tensor(arrays["_vq_vae._embedding"]))
    assert not any(p.requires_grad for p in codec.parameters()) and not codec.training
    load_codec(saved(tmp_path, {n: a for n, a in arrays.items() if "_ema_" not in n}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("decoder.6.bias"), "missing 1: decoder.6.bias"),
        (lambda a: [a.pop(n) for n in list(a) if n.startswith("dec")], "missing 24: decoder.0.b"),
        (lambda a: a.update(other=np.zeros(3)), "1 unknown arrays: other"),
        (
            lambda a: a.update({"decoder.6.weight": a["decoder.6.weight"].swapaxes(0, 1)}),
            r"decoder.6.weight must be .* \(128, 64, 4, 4\), found .* \(64, 128, 4, 4\)",
        ),
        (
            lambda a: a.update({"decoder.12.bias": np.zeros(1, int)}),
            "decoder.12.bias must be float of .* found int64",
        ),
        (
            lambda a: a.update({"decoder.12.bias": np.array([print], object)}),
            "without pickle: Object arrays cannot be loaded",
        ),
        (lambda a: a.update({"_vq_vae._ema_w": np.zeros(20_000_000)}), "at most 100,000,000 bytes"),
    ],
)
def test_anything_but_the_published_arrays_is_refused_and_named(tmp_path, arrays, change, said):
    changed = dict(arrays)
    change(changed)
    with pytest.raises(MasksError, match=said):
        load_codec(saved(tmp_path, changed))


def test_files_that_are_no_whole_npz_are_refused(tmp_path, file):
    with pytest.raises(MasksError, match="no file .*big_vision"):
        load_codec(tmp_path / "none.npz")
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    single, pickled = io.BytesIO(), io.BytesIO()
    np.save(single, np.zeros(3))
    np.save(pickled, np.array([print], object), allow_pickle=True)
    for name, damaged in {
        "cut": content[: len(content) // 2],
        "changed": bytes(flipped),
        "empty": b"",
        "text": b"<html>not found</html>",
        "single": single.getvalue(),
        "pickled": pickled.getvalue(),
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(MasksError, match=name):
            load_codec(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    with pytest.raises(MasksError, match="missing 47"):
        load_codec(tmp_path / "other.zip")


def npy(header: str, content: bytes = b"") -> bytes:
    """An array's file with any text where its kind and shape belong."""
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode() + content


def test_damaged_members_are_refused_whatever_numpy_raises(tmp_path, arrays):
    def header(kind="'<f4'", shape="(1,)") -> str:
        return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n"

    whole = {n + ".npy": npy(header(shape=str(a.shape)), a.tobytes()) for n, a in arrays.items()}
    for number, damaged in enumerate(
        (
            b"",  # numpy gives out bytes where an array is due
            b"not an array",
            npy(header())[:7],
            npy(header()),  # no numbers
            npy(header(shape="(10**12,)")),
            npy(header(shape="(1000000000000000,)")),  # more than any memory
            npy(header(shape="(-1,)")),
            npy(header(kind="'<f")),  # a text without end: TokenError
            npy(header(kind="'|O'")),
            npy(header(kind="'<f4', " * 900)),
            npy("{" * 300),
            npy("(" * 9000),
            npy("\0" * 100),
            npy(""),
        )
    ):
        file = tmp_path / f"{number}.npz"
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in (whole | {"decoder.12.bias.npy": damaged}).items():
                archive.writestr(name, content)
        with pytest.raises(MasksError, match=rf"{number}\.npz") as refused:
            load_codec(file)
        assert len(str(refused.value)) < 600
    with zipfile.ZipFile(tmp_path / "whole.npz", "w") as archive:
        for name, content in whole.items():
            archive.writestr(name, content)
    load_codec(tmp_path / "whole.npz")  # so it was the damage


@pytest.mark.parametrize("kind", ["<f2", "<f8", ">f4", np.longdouble])
def test_floats_of_any_kind_become_float32(tmp_path, arrays, kind):
    changed = arrays | {"decoder.12.bias": np.array([0.5], kind)}
    codec = load_codec(saved(tmp_path, changed))
    assert codec.decoder[-1].bias.tolist() == [0.5]
    assert {p.dtype for p in codec.parameters()} == {torch.float32}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(MasksError, match="no file"):
        load_codec(tmp_path / "pipe.npz")


# --- small codecs, as the lesson trains them ------------------------------------------------------


def test_a_small_codec_has_the_sizes_that_its_channels_say():
    codec = MaskCodec(channels=(3, 5), width=7, entries=11)
    drawn = torch.rand(2, 16, 16)
    codes = codec.encode(drawn)
    assert codes.shape == (2, 16) and codec.decode(codes).shape == drawn.shape
    assert codec.side == 16 and int(codes.max()) < 11


def test_each_vector_gets_its_nearest_entry_row_by_row():
    codec = MaskCodec(channels=(3,), width=2, entries=4)
    codec.codebook.data = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    x = torch.tensor([[[1.0, 8], [2, 7]], [[1.0, 1], [8, 8]]])[None]  # (b, d, y, x)
    assert codec.nearest(x).tolist() == [[0, 1, 2, 3]]


# --- placing and reading --------------------------------------------------------------------------


class Halves(torch.nn.Module):
    """A make-believe codec: inside where the column is in the first `codes[0]` 64ths."""

    codebook = torch.zeros(128, 1)

    def decode(self, codes):
        columns = torch.arange(64).expand(len(codes), 64, 64)
        return torch.where(columns < codes[:, :1, None], 1.0, -1.0)


def text(box, codes, name):
    return box_tokens(box) + "".join(f"<seg{code:03d}>" for code in codes) + f" {name}"


def test_a_mask_is_read_and_put_into_its_box_of_a_wide_picture():
    answer = text((0.0, 0.5, 1.0, 1.0), [32] * 16, "red car")
    [(name, box, mask)] = read_masks(answer, Halves(), height=20, width=80)
    assert name == "red car"
    assert box == pytest.approx((0, 40, 20, 80), abs=0.05)
    assert mask.shape == (20, 80) and mask.dtype == bool
    assert mask[:, 40:60].all() and mask.sum() == 20 * 20


def test_several_objects_are_read_and_nonsense_is_passed_over():
    good = text((0.1, 0.1, 0.9, 0.9), [64] * 16, "cat")
    names = [name for name, _, _ in read_masks(f"{good} ; {good}s", Halves(), 9, 9)]
    assert names == ["cat", "cats"]
    for bad in (
        "",
        "a cat",
        "<loc0100><loc0100><loc0900><loc0900> cat",  # no mask
        good.replace("<seg064>", "", 1),  # 15 codes
        good.replace("<seg064>", "<seg128>", 1),
        good.replace("<loc0102>", "<loc1024>", 1),
        text((0.9, 0.1, 0.1, 0.9), [64] * 16, "upside down"),
        text((0.5, 0.1, 0.5, 0.9), [64] * 16, "flat"),
    ):
        assert read_masks(bad, Halves(), 9, 9) == []
    assert len(read_masks(f"{good.replace('<seg064>', '', 1)} ; {good}", Halves(), 9, 9)) == 1


def test_codes_go_to_the_device_of_the_codec():
    class Elsewhere(Halves):
        codebook = torch.zeros(128, 1, device="meta")  # any device that is not the CPU

        def decode(self, codes):
            assert codes.device == self.codebook.device
            return torch.ones(len(codes), 64, 64)

    [(_, _, mask)] = read_masks(text((0.0, 0.0, 1.0, 1.0), [1] * 16, "cat"), Elsewhere(), 9, 9)
    assert mask.all()


def test_a_box_smaller_than_a_pixel_and_one_outside_hide_nothing_and_crash_nothing():
    whole = torch.ones(64, 64)
    assert not place_mask(whole, (3.1, 3.1, 3.2, 8.0), 10, 10).any()
    assert place_mask(whole, (-5.0, 8.0, 2.0, 20.0), 10, 10).sum() == 4


def test_numbers_are_resized_before_they_are_compared_with_zero():
    slope = torch.linspace(-1, 1, 64).expand(64, 64)  # crosses 0 in the middle
    placed = place_mask(slope, (0, 0, 8, 640), 8, 640)
    assert placed[:, 330:].all() and not placed[:, :310].any()
    soft = torch.tensor([[-3.0, 1.0]])  # crosses at three quarters, not in the middle
    assert place_mask(soft, (0, 0, 4, 400), 4, 400)[0].argmax() == pytest.approx(250, abs=2)


# --- the exercise ---------------------------------------------------------------------------------


def test_the_exercise_chooses_the_codes_that_the_codec_chooses():
    torch.manual_seed(0)
    codec = MaskCodec(channels=(8, 16), width=6)
    x = torch.randn(3, 6, 4, 4)
    assert torch.equal(nearest_code(x.flatten(2).mT, codec.codebook), codec.nearest(x))


def test_the_exercise_puts_masks_where_the_package_does():
    random = torch.Generator().manual_seed(0)
    paste_mask = exercise("paste_mask").reference
    for _ in range(40):
        mask = torch.randn(16, 16, generator=random)
        height, width = torch.randint(5, 60, (2,), generator=random).tolist()
        y, x = (torch.rand(2, generator=random).sort().values for _ in range(2))
        box = [v.item() for v in (y[0] * height, x[0] * width, y[1] * height, x[1] * width)]
        assert (paste_mask(mask, box, height, width).numpy() == place_mask(
            mask, box, height, width)).all()  # fmt: skip


def test_no_pixel_of_the_exercise_depends_on_rounding():
    """So pillow's and torch's resize are both right."""

    def by_torch(limit, mask, box, height, width):
        y0, x0, y1, x1 = map(round, box)
        picture = torch.zeros(height, width, dtype=torch.bool)
        if y1 > y0 and x1 > x0:
            values = torch.nn.functional.interpolate(
                mask[None, None], (y1 - y0, x1 - x0), mode="bilinear", antialias=True
            )
            picture[y0:y1, x0:x1] = values[0, 0] > limit
        return picture

    for limit in (0.0, 1e-5):
        attempt = functools.partial(by_torch, limit)
        assert examine(exercise("paste_mask"), attempt).status == CORRECT


def test_a_codebook_that_follows_is_the_weighted_mean_of_all_it_was_given():
    random, decay, m = torch.Generator().manual_seed(0), 0.7, 3
    counts, sums = torch.ones(m), torch.randn(m, 2, generator=random)
    seen = [[(1.0, entry)] for entry in sums]
    for _ in range(4):
        vectors, codes = (
            torch.randn(2, 5, 2, generator=random),
            torch.randint(m, (2, 5), generator=random),
        )
        counts, sums, codebook = follow(vectors, codes, counts, sums, decay)
        for j in range(m):
            seen[j] = [(decay * weight, value) for weight, value in seen[j]]
            seen[j] += [(1 - decay, v) for v in vectors[codes == j]]
    for j in range(m):
        weights = sum(weight for weight, _ in seen[j])
        mean = sum(weight * value for weight, value in seen[j]) / weights
        torch.testing.assert_close(counts[j].item(), weights)
        torch.testing.assert_close(codebook[j], mean)


def test_a_gradient_where_none_may_be_is_told():
    outcome = examine(exercise("straight_through"), lambda v, c: v + (c - v).detach() + 3 * (
        c - c.detach()))  # fmt: skip
    assert outcome.status == WRONG
    assert "a gradient reaches `chosen`, and none may" in outcome.message


def stub(*given):
    raise NotImplementedError


def crash(*given):
    raise RuntimeError("no")


def test_a_codec_is_trained_with_a_learners_pieces(capsys):
    right = [nearest_code, straight_through, follow]
    assert try_codec(*right, floor=0.0, steps=3).codebook.isfinite().all()
    assert "correct. Mean IoU" in capsys.readouterr().out
    try_codec(*right, floor=1.0, steps=3)
    assert "wrong. Mean IoU" in capsys.readouterr().out
    for place in range(3):
        others = [*right]
        for broken, said in ((stub, "not attempted"), (crash, "crashed. RuntimeError: no")):
            others[place] = broken
            assert try_codec(*others, floor=0.0, steps=3) is None
            assert said in capsys.readouterr().out

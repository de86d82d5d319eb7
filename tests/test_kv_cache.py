"""Lesson 08: the cache, alone and inside the model."""

import copy

import pytest
import torch
from conftest import ROUNDING, make_batch, make_ours, make_theirs

from minipali.checks import exercise
from minipali.checks.engine import CORRECT, CRASHED, WRONG, examine
from minipali.kv_cache import KVCache, cache_update
from minipali.swap import swap


def new(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """2 key/value heads of 10."""
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 2, length, 10, generator=random) for _ in "kv")


def test_what_was_stored_comes_back_in_order_layer_by_layer():
    cache = KVCache(batch=3, max_length=7)
    given = {layer: [new(n, 10 * layer + n) for n in (4, 1, 2)] for layer in range(3)}
    for step, n in enumerate((4, 1, 2)):
        cache.extend(torch.ones(3, n, dtype=torch.bool))
        for layer in range(3):
            found = cache.update(layer, *given[layer][step])
            for kind in (0, 1):
                so_far = [pair[kind] for pair in given[layer][: step + 1]]
                assert torch.equal(found[kind], torch.cat(so_far, dim=2))
    assert cache.length == cache.max_length == 7


def test_nothing_old_is_copied():
    cache = KVCache(batch=3, max_length=7)
    cache.extend(torch.ones(3, 4, dtype=torch.bool))
    first, _ = cache.update(0, *new(4, 0))
    cache.extend(torch.ones(3, 1, dtype=torch.bool))
    second, _ = cache.update(0, *new(1, 1))
    assert first.data_ptr() == second.data_ptr() == cache.keys[0].data_ptr()


def test_padding_is_remembered():
    cache = KVCache(batch=2, max_length=5)
    cache.extend(torch.tensor([[False, True, True], [True, True, False]]))
    cache.extend(torch.tensor([[True], [False]]))
    expected = [[False, True, True, True], [True, True, False, False]]
    assert cache.is_real.tolist() == expected


def test_a_full_cache_says_so_and_stays_as_it_was():
    cache = KVCache(batch=2, max_length=4)
    cache.extend(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="holds 4 tokens and 3 are taken.* 2 more"):
        cache.extend(torch.ones(2, 2, dtype=torch.bool))
    assert cache.length == 3
    cache.extend(torch.ones(2, 1, dtype=torch.bool))
    assert cache.length == 4


def test_a_cache_of_another_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch of 2, found 3"):
        KVCache(batch=2, max_length=4).extend(torch.ones(3, 1, dtype=torch.bool))


def test_a_cache_holds_only_the_key_value_heads():
    model, cache = copy.deepcopy(make_ours()).bfloat16(), KVCache(batch=3, max_length=7)
    with torch.no_grad():
        model(torch.ones(3, 4, dtype=torch.long), kv_cache=cache)
    buffers = [*cache.keys.values(), *cache.values.values()]
    numbers = sum(x.numel() for x in buffers)
    assert numbers == 2 * 3 * 3 * 2 * 7 * 10  # k and v, layers, batch, heads, places, head dim
    assert {x.dtype for x in buffers} == {torch.bfloat16}


def fed_in_chunks(model, batch, cuts, spare: int = 0) -> torch.Tensor:
    """Logits of the batch, given to a cache piece by piece; cut i starts the piece i + 1."""
    rows, length = batch["input_ids"].shape
    cache = KVCache(rows, length + spare)
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        part = {k: v[:, start:end] for k, v in batch.items() if k != "pixel_values"}
        if start == 0:
            part["pixel_values"] = batch["pixel_values"]
        with torch.no_grad():
            pieces.append(model(**part, kv_cache=cache))
    assert cache.length == length
    return torch.cat(pieces, dim=1)


# 9 patches + 4 words = 13 places of prefix in each row, and 6 of suffix.
@pytest.mark.parametrize("cuts", [[13], [13, 14, 15, 16, 17, 18], [13, 16], [15, 18], [14]])
def test_cached_equals_uncached_however_the_suffix_is_cut(pair, cuts):
    ours, theirs = pair
    batch = make_batch([(4, 6), (4, 6)])
    with torch.no_grad():
        whole = ours(**batch)
        expected = theirs(**batch).logits
    for spare in (0, 5):  # unused places must not be seen
        found = fed_in_chunks(ours, batch, cuts, spare)
        torch.testing.assert_close(found, whole, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_cached_equals_uncached_with_left_padding(model):
    batch = make_batch([(4, 3), (1, 3), (2, 3)])  # all suffixes start at the same place
    is_real = batch["attention_mask"].bool()
    with torch.no_grad():
        whole = model(**batch)
    for cuts in ([13], [13, 14, 15], [13, 15]):
        found = fed_in_chunks(model, batch, cuts)
        torch.testing.assert_close(found[is_real], whole[is_real], rtol=0, atol=ROUNDING)


def test_cached_equals_uncached_when_rows_end_at_different_places(model):
    """Right padding inside the cache, then more tokens: padding lies in the middle."""
    rows = [make_batch([(n, 5)], seed=n) for n in (4, 1, 2)]
    longest, n = 13, 9
    first = {k: [] for k in ("input_ids", "attention_mask", "token_type_ids")}
    second = {k: [] for k in first}
    for row, words in zip(rows, (4, 1, 2), strict=True):
        for k in first:
            head, tail = row[k][0, : n + words], row[k][0, n + words :]
            first[k].append(torch.cat((head, head.new_zeros(longest - len(head)))))
            second[k].append(tail)
    first, second = ({k: torch.stack(v) for k, v in part.items()} for part in (first, second))
    pixels = torch.cat([row["pixel_values"] for row in rows])
    cache = KVCache(3, longest + 5)
    with torch.no_grad():
        model(**first, pixel_values=pixels, kv_cache=cache)
        found = torch.cat(
            [
                model(**{k: v[:, a:b] for k, v in second.items()}, kv_cache=cache)
                for a, b in ((0, 2), (2, 3), (3, 5))
            ],
            dim=1,
        )
        for i, row in enumerate(rows):
            alone = make_theirs()(**row).logits[0, -5:]
            torch.testing.assert_close(found[i], alone, rtol=0, atol=ROUNDING)


def test_a_prefix_that_comes_later_is_refused(model):
    batch = make_batch([(4, 2)])
    cache = KVCache(1, 20)
    first = {k: v[:, :11] for k, v in batch.items() if k != "pixel_values"}
    rest = {k: v[:, 11:] for k, v in batch.items() if k != "pixel_values"}
    with torch.no_grad():
        model(**first, pixel_values=batch["pixel_values"], kv_cache=cache)
        with pytest.raises(ValueError, match="whole in the first call"):
            model(**rest, kv_cache=cache)
        assert cache.length == 11  # the refused call left nothing behind


def test_more_tokens_than_the_cache_holds_are_refused(model):
    batch = make_batch([(4, 2)])
    with pytest.raises(ValueError, match="no room for 15 more"):
        model(**batch, kv_cache=KVCache(1, 14))


def test_a_cache_begun_in_inference_mode_is_gone_on_with_outside(model):
    batch = make_batch([(4, 3)])
    ids, cache = batch["input_ids"], KVCache(1, 16)
    with torch.no_grad():
        expected = model(**batch)
    with torch.inference_mode():
        first = model(ids[:, :13], batch["pixel_values"], kv_cache=cache)
    with torch.no_grad():
        later = model(ids[:, 13:], kv_cache=cache)
    torch.testing.assert_close(torch.cat((first, later), 1), expected, rtol=0, atol=ROUNDING)


def test_the_first_tokens_say_on_which_device_and_in_which_dtype():
    cache = KVCache(batch=3, max_length=7)
    for step in range(2):
        is_real = torch.ones(3, 2, dtype=torch.bool, device="meta")
        assert cache.extend(is_real).device.type == "meta"
        key, value = (x.to("meta", torch.float64) for x in new(2, step))
        for kept in cache.update(0, key, value):
            assert kept.shape == (3, 2, 2 * step + 2, 10)
            assert (kept.device.type, kept.dtype) == ("meta", torch.float64)


def test_without_types_later_tokens_are_suffix_and_first_ones_prefix(model):
    batch = make_batch([(4, 3)])
    ids, pixels = batch["input_ids"], batch["pixel_values"]
    cache = KVCache(1, 16)
    with torch.no_grad():
        expected = model(**batch)
        first = model(ids[:, :13], pixels, kv_cache=cache)
        later = model(ids[:, 13:], kv_cache=cache)
    torch.testing.assert_close(torch.cat((first, later), 1), expected, rtol=0, atol=ROUNDING)


# The lesson's pieces inside a model, and its loop.


def restarting(is_real, earlier):
    return is_real.cumsum(dim=1).clamp(min=1)


def forgetful(keys, values, start, key, value):
    """What is returned is right, but nothing is kept."""
    return (
        torch.cat((keys[:, :, :start], key), dim=2),
        torch.cat((values[:, :, :start], value), dim=2),
    )


def joined(keys, values, start, key, value):
    """Right, and as little like the package's as possible."""
    for buffer, new in ((keys, key), (values, value)):
        for i in range(new.shape[2]):
            buffer.select(2, start + i).copy_(new[:, :, i])
    return tuple(buffer.narrow(2, 0, start + key.shape[2]).clone() for buffer in (keys, values))


def counted_one_by_one(is_real, earlier):
    rows = []
    for row, before in zip(is_real.tolist(), earlier.flatten().tolist(), strict=True):
        rows.append([max(1, before + sum(row[: i + 1])) for i in range(len(row))])
    return torch.tensor(rows)


def test_swap_takes_right_pieces_and_notices_wrong_ones_in_the_second_call(model, capsys):
    swap(model, cache_update=joined, token_positions=counted_one_by_one)
    assert "correct" in capsys.readouterr().out
    for piece in ({"cache_update": forgetful}, {"token_positions": restarting}):
        swap(model, **piece)
        said = capsys.readouterr().out
        assert "wrong" in said and "with a cache" in said and "(call 2)" in said


def test_every_layer_of_a_new_cache_has_buffers_of_its_own(model):
    cache = model.new_cache(2, 5)
    with torch.no_grad():
        model(torch.ones(2, 3, dtype=torch.long), kv_cache=cache)
    places = {x.data_ptr() for x in (*cache.keys.values(), *cache.values.values())}
    assert len(places) == 2 * model.config.text.num_hidden_layers


def without_cache(prompt, is_real, steps, layers, embed, project, rotate, attend, finish, head):
    """The loop of the exercise with everything computed again."""
    all_logits, first = [], prompt.shape[1]
    for _ in range(steps):
        positions, x = counted_one_by_one(is_real, torch.zeros(len(prompt), 1)), embed(prompt)
        for i in range(layers):
            query, key, value = project(i, x)
            # Queries of the prompt see the prompt, later ones what is not later than they are.
            place = torch.arange(prompt.shape[1])
            mask = is_real[:, None, None] & (place <= place[:, None].clamp(min=first - 1))
            query, key = rotate(query, positions), rotate(key, positions)
            x = finish(i, x, attend(query, key, value, mask))
        all_logits.append(head(x[:, -1]))
        new = all_logits[-1].argmax(dim=-1, keepdim=True)
        prompt = torch.cat((prompt, new), dim=1)
        is_real = torch.cat((is_real, torch.ones_like(new, dtype=torch.bool)), dim=1)
    return torch.stack(all_logits, dim=1)


def test_the_exercises_loop_is_the_loop_without_a_cache():
    for case in exercise("decode").cases():
        expected = without_cache(*case)
        torch.testing.assert_close(exercise("decode").reference(*case), expected)
        best = expected.topk(2, dim=-1).values
        assert (best[..., 0] - best[..., 1]).min() > 0.1  # rounding cannot change a choice


def looping(fed=lambda prompt, ids, new: new, double=False, one_list=False, mask="grown"):
    """A loop with lists that are concatenated, and one thing changed that cannot go unnoticed."""

    def decode(prompt, is_real, steps, layers, embed, project, rotate, attend, finish, head):
        keys, values, all_logits = {}, {}, []
        ids, new, seen = prompt, prompt, is_real
        positions = restarting(is_real, None)
        for _ in range(steps):
            x = embed(new)
            for i in range(layers):
                query, key, value = project(i, x)
                query, key = rotate(query, positions), rotate(key, positions)
                place = 0 if one_list else i
                for kept, part in ((keys, key), (values, value)):
                    old = [kept[place]] if place in kept else [part] * double
                    kept[place] = torch.cat((*old, part), dim=2)
                shown = {"grown": seen, "prompt": is_real}.get(mask)
                shown = None if shown is None else shown[:, None, None]
                x = finish(i, x, attend(query, keys[place], values[place], shown))
            all_logits.append(head(x[:, -1]))
            new = all_logits[-1].argmax(dim=-1, keepdim=True)
            ids = torch.cat((ids, new), dim=1)
            seen = torch.cat((seen, torch.ones_like(new, dtype=torch.bool)), dim=1)
            new = fed(prompt, ids, new)
            positions = (positions[:, -1:] + 1).expand(new.shape)
        return torch.stack(all_logits, dim=1)

    return decode


@pytest.mark.parametrize(
    ("changed", "status", "said"),
    [
        ({}, CORRECT, "all logits"),
        ({"fed": lambda prompt, ids, new: ids}, CRASHED, "project got 6 tokens at once"),
        ({"fed": lambda prompt, ids, new: ids[:, -2:]}, CRASHED, "project got 2 tokens at once"),
        ({"fed": lambda prompt, ids, new: ids[:, 1:]}, CRASHED, "project got 5 tokens at once"),
        (
            {"fed": lambda prompt, ids, new: prompt},
            CRASHED,
            "prompt goes through the model a second",
        ),
        ({"double": True}, CRASHED, "attend got 10 keys and a mask for 5"),
        ({"one_list": True}, CRASHED, "attend got 10 keys and a mask for 5"),
        ({"mask": "prompt"}, CRASHED, "attend got 6 keys and a mask for 5"),
        ({"mask": None}, CRASHED, "attend got no mask"),
    ],
)
def test_the_given_functions_refuse_what_a_cached_loop_never_asks(changed, status, said):
    outcome = examine(exercise("decode"), looping(**changed))
    assert outcome.status == status
    assert said in outcome.message


def test_a_buffer_written_beyond_its_new_places_is_noticed():
    def clears_the_rest(keys, values, start, key, value):
        keys[:, :, start:], values[:, :, start:] = 0, 0
        return joined(keys, values, start, key, value)

    outcome = examine(exercise("cache_update"), clears_the_rest)
    assert outcome.status == WRONG
    assert "keys, which your function shall write into" in outcome.message
    assert examine(exercise("cache_update"), joined).status == CORRECT


def test_what_stands_in_a_buffer_is_not_said_to_be_returned():
    def replaces_the_buffers(keys, values, start, key, value):
        keys.data, values.data = joined(keys, values, start, key, value)
        return keys, values

    outcome = examine(exercise("cache_update"), replaces_the_buffers)
    assert outcome.message.startswith("What stands at the end in keys is what all_keys must be.")


def ring_of_lists(write):
    """Old tokens are read one by one, and new ones written by `write(ring, places, new)`."""

    def update(keys, values, start, key, value):
        window, t, seen = keys.shape[2], key.shape[2], []
        places = torch.arange(start, start + t) % window
        for ring, new in ((keys, key), (values, value)):
            old = [ring[:, :, [n % window]] for n in range(max(0, start - window + 1), start)]
            seen.append(torch.cat((*old, new), dim=2))
            write(ring, places, new)
        return tuple(seen)

    return update


def by_assignment(ring, places, new):
    ring[:, :, places.tolist()] = new


def the_last_of_each(ring, places, new):
    window = ring.shape[2]
    by_assignment(ring, places[-window:], new[:, :, -window:])


@pytest.mark.parametrize("write", [by_assignment, lambda ring, *what: ring.index_copy_(2, *what)])
def test_which_of_two_tokens_stays_is_not_left_to_torch(write):
    outcome = examine(exercise("ring_update"), ring_of_lists(write))
    assert outcome.status == CRASHED and "[0, 1, 2, 3, 4, 0, 1, 2]" in outcome.message
    assert examine(exercise("ring_update"), ring_of_lists(the_last_of_each)).status == CORRECT


def test_a_ring_gives_the_end_of_what_an_ordinary_cache_gives(model, capsys):
    """Whatever the calls are; and where nothing is left behind, the ring is a cache."""
    ring_update, window, start = exercise("ring_update").reference, 5, 0
    rings, buffers = ([torch.full((3, 2, n, 10), 1e9) for _ in "kv"] for n in (window, 40))
    for step, t in enumerate((3, 1, 1, 4, 1, 9, 5, 2)):
        seen = ring_update(*rings, start, *new(t, step))
        whole = cache_update(*buffers, start, *new(t, step))
        for part, everything in zip(seen, whole, strict=True):
            assert torch.equal(part, everything[:, :, -(window - 1 + t) :])
        start += t
    swap(model, cache_update=ring_update)
    assert "correct" in capsys.readouterr().out


def test_a_part_of_another_shape_than_what_is_written_into_it_is_told_by_axes():
    def half(keys, values, start, key, value):
        """key: (b, g, t, k)"""
        keys[:, :, start : start + 4] = key

    def by_places(keys, values, start, key, value):
        """key: (b, g, t, k)"""
        keys[:, :, [0, 1]] = key

    for attempt, part in ((half, "(3, 2, 4, 5)"), (by_places, "(3, 2, 2, 5)")):
        outcome = examine(exercise("cache_update"), attempt)
        assert outcome.status == CRASHED
        assert f"Here (b (3), g (2), t (7), k (5)) is to fill {part}: only an" in outcome.message


def test_a_ring_that_is_returned_itself_is_not_said_to_ignore_what_is_written():
    def whole(keys, values, start, key, value):
        window = keys.shape[2]
        places = [(start + n) % window for n in range(key.shape[2])][-window:]
        keys[:, :, places], values[:, :, places] = key[:, :, -window:], value[:, :, -window:]
        return keys, values

    message = examine(exercise("ring_update"), whole).message
    assert "no effect" not in message and "What you return as seen_keys is what keys" in message

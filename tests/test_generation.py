"""Lesson 12: choosing tokens, stopping, streaming; and what must not be computed twice."""

import numpy as np
import pytest
import torch
from conftest import fresh_model, make_batch, make_ours, make_theirs

from minipali import generate, load, scenes
from minipali.checks import engine, exercise
from minipali.checks.engine import CORRECT, CRASHED, WRONG, examine
from minipali.generation import choose, distribution, token_steps
from minipali.hooks import watch
from minipali.locations import read_boxes
from minipali.paligemma import PaliGemma
from minipali.swap import put

QUESTIONS = [(5, 0), (1, 0), (8, 0)]  # prompts of different lengths, no suffix


def answer_ids(model, batch, max_new_tokens=8, **options) -> list[list[int]]:
    steps = list(token_steps(model, batch, max_new_tokens, **options))
    return torch.stack(steps, dim=1).tolist()


def their_answer_ids(theirs, batch, max_new_tokens=8, **options) -> list[list[int]]:
    """Greedy, without the image token and the rows that fill up the table."""
    out = theirs.generate(
        **batch, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True,
        suppress_tokens=list(range(1792, 1856)), **options,
    )  # fmt: skip
    return out[:, batch["input_ids"].shape[1] :].tolist()


def with_eos(eos: int) -> PaliGemma:
    """The same model, to which another token means the end."""
    return fresh_model(eos_token_id=eos)


def row_alone(batch, i) -> dict[str, torch.Tensor]:
    real = batch["attention_mask"][i].bool()
    alone = {k: v[i : i + 1, real] for k, v in batch.items() if k != "pixel_values"}
    return alone | {"pixel_values": batch["pixel_values"][i : i + 1]}


@pytest.fixture(scope="module")
def stopping():
    """(model, batch on the left, answers, eos): the rows stop after different numbers of tokens."""
    batch = make_batch(QUESTIONS)
    eos = answer_ids(make_ours(), batch)[0][2]
    answers = answer_ids(with_eos(eos), batch)
    assert answers[0].index(eos) <= 2
    assert len({row.index(eos) if eos in row else len(row) for row in answers}) > 1
    return with_eos(eos), batch, answers, eos


# --- greedy --------------------------------------------------------------------------------------


def test_greedy_tokens_equal_transformers(pair):
    ours, theirs = pair
    told = set()
    for seed in range(4):
        batch = make_batch(QUESTIONS, seed=seed)
        found = answer_ids(ours, batch, 10)
        assert found == their_answer_ids(theirs, batch, 10, eos_token_id=None)
        told |= {token for row in found for token in row}
    assert len(told) > 8  # the answers differ, so that agreement means something


def test_greedy_tokens_equal_the_whole_sequence_computed_anew_at_every_step(pair):
    """No cache and no shortcut: transformers' forward over everything, suffix types included."""
    ours, theirs = pair
    batch = make_batch([(4, 0)])
    for token in answer_ids(ours, batch)[0]:
        with torch.no_grad():
            logits = theirs(**batch).logits[0, -1, :1792]
        assert token == int(logits.argmax())
        for name, value in (("input_ids", token), ("attention_mask", 1), ("token_type_ids", 1)):
            batch[name] = torch.cat((batch[name], torch.tensor([[value]])), dim=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_answers_as_its_rows_alone_wherever_the_padding(model, side):
    batch = make_batch(QUESTIONS, side)
    found = answer_ids(model, batch)
    for i in range(len(QUESTIONS)):
        assert found[i] == answer_ids(model, row_alone(batch, i))[0]


# --- stopping ------------------------------------------------------------------------------------


def test_rows_stop_at_eos_independently_and_go_on_as_padding(stopping):
    model, batch, answers, eos = stopping
    theirs = make_theirs()
    assert answers == their_answer_ids(theirs, batch, eos_token_id=eos, pad_token_id=0)
    for row in answers:
        if eos in row:
            assert set(row[row.index(eos) + 1 :]) <= {0}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_that_stopped_does_not_disturb_the_others(stopping, side):
    model, _, answers, eos = stopping
    batch = make_batch(QUESTIONS, side)
    assert answer_ids(model, batch) == answers
    for i, row in enumerate(answers):
        alone = answer_ids(model, row_alone(batch, i))[0]
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {0}


def test_generation_ends_when_the_last_row_has_said_eos(stopping):
    model, batch, answers, eos = stopping
    alone = answer_ids(model, row_alone(batch, 0), 50)[0]
    assert alone[-1] == eos and alone.count(eos) == 1 and len(alone) <= 3


def test_at_most_so_many_tokens(model):
    batch = make_batch([(3, 0)])
    for number in (1, 2, 5):
        assert len(answer_ids(model, batch, number)[0]) == number


def test_prompt_and_answer_fill_the_positions_but_no_more(model):
    batch = make_batch([(110, 0)])  # 9 + 110 of 128 positions
    assert len(answer_ids(model, batch, 9)[0]) == 9
    with pytest.raises(ValueError, match=r"at most 128 tokens together, found 119 \+ 10"):
        answer_ids(model, batch, 10)


# --- what is computed ----------------------------------------------------------------------------


def test_pictures_pass_the_vision_tower_once_and_only_one_place_a_row_gets_logits(model):
    batch = make_batch(QUESTIONS)
    seen = {"tower": [], "head": [], "decoder": []}
    parts = {"tower": model.vision_tower, "decoder": model.language_model}
    count = {"tower": len, "decoder": lambda x: x.shape[1]}
    logits = model.language_model.logits
    model.language_model.logits = lambda x: (seen["head"].append(tuple(x.shape)), logits(x))[1]
    try:
        with watch(parts.items(), lambda name, given, _: seen[name].append(count[name](given[0]))):
            answer_ids(model, batch, 5)
    finally:
        del model.language_model.logits
    assert seen["tower"] == [3]
    assert seen["head"] == [(3, 24)] * 5
    assert seen["decoder"] == [17, 1, 1, 1, 1]  # the prompt once, then token by token


def test_labels_of_a_training_batch_are_ignored(model):
    batch = make_batch([(3, 0)])
    assert answer_ids(model, batch | {"labels": batch["input_ids"]}) == answer_ids(model, batch)


def test_generation_leaves_the_batch_as_it_was(model):
    batch = make_batch(QUESTIONS)
    before = {name: tensor.clone() for name, tensor in batch.items()}
    answer_ids(model, batch, 3)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[name], before[name]) for name in before)


@pytest.mark.parametrize("options", [{}, {"temperature": 50.0, "seed": 0}])
def test_image_token_and_filling_rows_are_never_chosen(options):
    model = fresh_model()
    with torch.no_grad():
        # The decoder ends in ones, so that a logit is the sum of a row: these are the favourites.
        model.language_model.norm.register_forward_hook(lambda m, i, o: torch.ones_like(o))
        model.language_model.embed_tokens.weight[1792:] += 5
    batch = make_batch([(3, 0)] * 20)
    found = answer_ids(model, batch, 5, **options)
    assert max(max(row) for row in found) < 1792


# --- drawing -------------------------------------------------------------------------------------


def random_logits(rows: int = 3, vocabulary: int = 50, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def by_hand(logits, temperature, top_k, top_p) -> np.ndarray:
    """The definition in float64, token by token from the most likely down."""
    result = np.zeros(logits.shape)
    for row, scores in enumerate(logits.double().numpy() / temperature):
        order = sorted(range(len(scores)), key=lambda token: -scores[token])
        kept = order[: top_k or len(order)]
        odds = {token: np.exp(scores[token] - scores[order[0]]) for token in kept}
        total = sum(odds.values())
        nucleus, reached = [], 0.0
        for token in kept:
            nucleus.append(token)
            reached += odds[token] / total
            if top_p is not None and reached >= top_p:
                break
        total = sum(odds[token] for token in nucleus)
        for token in nucleus:
            result[row, token] = odds[token] / total
    return result


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 50, 1000])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95, 1.0])
def test_probabilities_follow_the_definition(temperature, top_k, top_p):
    logits = random_logits()
    found = distribution(logits, temperature, top_k, top_p).numpy()
    np.testing.assert_allclose(found, by_hand(logits, temperature, top_k, top_p), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(None, None), (7, None), (None, 0.6), (7, 0.6), (None, 0.05)]
)
def test_probabilities_equal_transformers(top_k, top_p):
    theirs = pytest.importorskip("transformers")
    logits = random_logits()
    scores = theirs.TemperatureLogitsWarper(0.7)(None, logits)
    if top_k is not None:
        scores = theirs.TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = theirs.TopPLogitsWarper(top_p)(None, scores)
    found = distribution(logits, 0.7, top_k, top_p)
    torch.testing.assert_close(found, scores.softmax(-1), rtol=0, atol=1e-6)


def test_top_p_keeps_the_token_that_crosses_it():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.79, 2), (0.81, 3), (1.0, 3)):
        assert int((distribution(logits, top_p=top_p) > 0).sum()) == kept


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_top_p_is_exact_over_the_real_vocabulary(spread):
    """With sums in float32, top_p=1.0 would lose 41,264 of the 257,216 tokens."""
    random = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(1, 257_216, generator=random)
    exact = logits[0].double().numpy()
    exact = np.exp(exact - exact.max())
    exact /= exact.sum()
    assert int((distribution(logits, top_p=1.0) > 0).sum()) == 257_216
    ordered = np.sort(exact)[::-1].cumsum()
    for top_p in (0.5, 0.9, 0.99, 0.999_999):
        kept = distribution(logits, top_p=top_p)[0] > 0
        assert int(kept.sum()) == int(np.searchsorted(ordered, top_p)) + 1
        assert exact[kept.numpy()].sum() >= top_p


def test_forbidden_tokens_have_no_probability_and_tiny_temperatures_no_nan():
    logits = random_logits()
    logits[:, 40:] = float("-inf")
    for temperature in (1.0, 1e-6, 1e-30):
        found = distribution(logits, temperature, top_k=45, top_p=0.99)
        assert (found[:, 40:] == 0).all()
        torch.testing.assert_close(found.sum(-1), torch.ones(3))
    assert torch.equal(found.argmax(-1), logits.argmax(-1))
    assert found.max(-1).values.tolist() == [1, 1, 1]


def test_logits_are_not_changed():
    logits = random_logits()
    before = logits.clone()
    distribution(logits, 0.5, 3, 0.5), choose(logits, 0.5, 3, 0.5), choose(logits)
    assert torch.equal(logits, before)


def test_a_token_is_drawn_with_those_probabilities(monkeypatch):
    given = []

    def record(probabilities, number, generator=None):
        given.append(probabilities)
        return probabilities.argmin(dim=-1, keepdim=True)  # whatever is drawn is returned

    monkeypatch.setattr(torch, "multinomial", record)
    logits = random_logits()
    found = choose(logits, 0.7, 7, 0.9)
    expected = torch.from_numpy(by_hand(logits, 0.7, 7, 0.9)).float()
    torch.testing.assert_close(given[0], expected, rtol=0, atol=1e-6)
    assert torch.equal(found, given[0].argmin(dim=-1))


def test_temperature_zero_is_the_most_likely_token():
    logits = random_logits()
    assert torch.equal(choose(logits), logits.argmax(-1))
    assert torch.equal(choose(logits, temperature=0.7, top_k=1), logits.argmax(-1))


def test_a_seed_repeats_an_answer_and_another_gives_another(model):
    batch = make_batch(QUESTIONS)
    first = answer_ids(model, batch, temperature=1.0, seed=1)
    torch.rand(10)  # the global generator plays no part
    assert answer_ids(model, batch, temperature=1.0, seed=1) == first
    assert answer_ids(model, batch, temperature=1.0, seed=2) != first


# --- the learner's own pieces --------------------------------------------------------------------


def test_a_distribution_put_on_the_model_is_drawn_from(model, monkeypatch):
    def only_seven(logits, temperature, top_k, top_p):
        assert (temperature, top_k, top_p) == (0.7, 9, 0.8)
        return torch.nn.functional.one_hot(torch.full((len(logits),), 7), logits.shape[1]).float()

    monkeypatch.setattr(model, "distribution", only_seven, raising=False)
    found = answer_ids(model, make_batch(QUESTIONS), 4, temperature=0.7, top_k=9, top_p=0.8)
    assert found == [[7] * 4] * 3


def test_a_loop_put_on_the_model_gets_the_first_logits_and_a_step(model, monkeypatch):
    def backwards(logits, step, choose, eos, pad, max_new_tokens):
        assert (eos, pad, max_new_tokens) == (1, 0, 4)
        first = choose(logits)
        following = choose(step(first, torch.ones(len(first), dtype=torch.bool)))
        return [following, first]  # a list will do

    batch = make_batch(QUESTIONS)
    expected = answer_ids(model, batch, 4)
    monkeypatch.setattr(model, "continue_tokens", backwards, raising=False)
    assert answer_ids(model, batch, 4) == [row[1::-1] for row in expected]


def through(steps):
    """What a loop gives out, its steps side by side."""
    return lambda *given: torch.stack(list(steps(*given)), dim=1)


def honest_loop(logits, step, choose, eos, pad, max_new_tokens):
    running = torch.ones(len(logits), dtype=torch.bool)
    for number in range(max_new_tokens):
        tokens = torch.where(running, choose(logits), pad)
        yield tokens
        running = running & (tokens != eos)
        if number + 1 == max_new_tokens or not running.any():
            return
        logits = step(tokens, running)


def test_a_loop_may_yield_or_return_a_list():
    one = exercise("continue_tokens")
    assert examine(one, honest_loop).status == CORRECT
    for kind in (list, tuple):
        assert examine(one, lambda *given, kind=kind: kind(honest_loop(*given))).status == CORRECT
    # whoever goes through it, as `stream` does, gets rows and not steps
    outcome = examine(one, through(honest_loop))
    assert outcome.status == WRONG and "all steps come as one tensor" in outcome.message


def test_a_loop_without_an_end_is_ended_and_told_so():
    def endless(logits, step, choose, eos, pad, max_new_tokens):
        yield from honest_loop(logits, step, choose, eos, pad, 10**9)

    def deaf(logits, step, choose, eos, pad, max_new_tokens):
        running = torch.ones(len(logits), dtype=torch.bool)
        for _ in range(max_new_tokens):
            tokens = torch.where(running, choose(logits), pad)
            yield tokens
            running = running & (tokens != eos)
            logits = step(tokens, running)

    one = exercise("continue_tokens")
    assert "end after max_new_tokens?" in examine(one, endless).message
    assert "it goes on with padding until max_new_tokens" in examine(one, deaf).message


@pytest.mark.parametrize("way", ["look again", "look and forget", "the same image again"])
def test_a_second_look_is_named_whatever_becomes_of_it(way):
    def attempt(pixels, prompt, look, read, choose, usable, eos, pad, max_new_tokens):
        image = look(pixels)

        def step(tokens, running):
            seen = image if way == "the same image again" else look(pixels)
            seen = None if way == "look and forget" else seen
            return read(tokens[:, None], seen)[:, :usable]

        logits = read(prompt, image)[:, :usable]
        return through(honest_loop)(logits, step, choose, eos, pad, max_new_tokens)

    outcome = examine(exercise("answer"), attempt)
    assert outcome.status == WRONG
    assert outcome.message.startswith("The picture is used again after the first call")


def test_cutting_off_the_columns_that_are_no_text_masks_them_too():
    def attempt(pixels, prompt, look, read, choose, usable, eos, pad, max_new_tokens):
        def step(tokens, running):
            return read(tokens[:, None], None)[:, :usable]

        logits = read(prompt, look(pixels))[:, :usable]
        return through(honest_loop)(logits, step, choose, eos, pad, max_new_tokens)

    assert examine(exercise("answer"), attempt).status == CORRECT


def finished_answers(names, between, eos, boxes):
    """All right answers with up to so many boxes, of places 0 and 1."""
    places = [(y0, x0, y1, x1) for y0 in (0, 1) for x0 in (0, 1) for y1 in range(y0, 2)
              for x1 in range(x0, 2)]  # fmt: skip
    whole = [[*place, *name] for place in places for name in names]
    answers, grown = [[eos]], whole
    for _ in range(boxes):
        answers += [[*one, eos] for one in grown]
        grown = [[*one, *between, *box] for one in grown for box in whole]
    return answers


@pytest.mark.parametrize("between", [[5], [5, 6], [5, 6, 5]])
def test_allowed_next_allows_just_what_begins_a_right_answer(between):
    names, eos = [[2], [2, 3], [3, 4, 2]], 7
    right = finished_answers(names, between, eos, boxes=2)
    follows = {}
    for one in right:
        for place, token in enumerate(one):
            follows.setdefault(tuple(one[:place]), set()).add(token)
    allowed_next, is_place = exercise("allowed_next").reference, torch.arange(9) < 2
    # Of the second box's end `follows` knows too little: no third comes.
    known = [told for told in follows if sum(token < 2 for token in told) < 8]
    assert len(known) > 400
    for told in known:
        found = allowed_next(list(told), is_place, names, between, eos)
        assert set(found.nonzero()[:, 0].tolist()) == follows[told], told


def test_with_allowed_next_the_trained_model_says_boxes_alone_whatever_is_drawn():
    model, processor = load("small")
    is_place = torch.zeros(model.config.text.vocab_size, dtype=torch.bool)
    is_place[processor.first_location : processor.first_location + 1024] = True
    names = [processor.encode(" " + name) for name in scenes.OBJECTS]
    between, allowed_next = (
        processor.encode(" ; <loc0000>")[:-1],
        exercise("allowed_next").reference,
    )

    def boxes_alone(logits, step, choose, eos, pad, most):
        told = []

        def choose_allowed(logits):
            allowed = allowed_next(told, is_place, names, between, eos)
            tokens = choose(logits.masked_fill(~allowed, float("-inf")))
            told.append(int(tokens[0]))
            return tokens

        yield from honest_loop(logits, step, choose_allowed, eos, pad, most)

    picture = scenes.examples()["two_frogs_and_pizza_test_artist"]
    boxed, found = put(model, continue_tokens=boxes_alone), 0
    greedy = generate(model, processor, picture, "detect frog")
    assert (
        generate(boxed, processor, picture, "detect frog") == greedy
    )  # nothing right is forbidden
    for seed in range(5):
        said = generate(boxed, processor, picture, "detect frog", 60, temperature=3.0, seed=seed)
        whole = said.split(" ; ")
        boxes = read_boxes(said)
        found += len(boxes)
        assert len(boxes) >= len(whole) - 1  # the last may be cut off at 60 tokens
        for name, (y0, x0, y1, x1) in boxes[: len(whole) - 1]:
            assert name in scenes.OBJECTS and y0 <= y1 and x0 <= x1
    assert found > 3


def test_a_useless_step_is_told():
    def one_more(logits, step, choose, eos, pad, most):
        running = torch.ones(len(logits), dtype=torch.bool)
        for _ in range(most):
            tokens = torch.where(running, choose(logits), pad)
            yield tokens
            running = running & (tokens != eos)
            if not running.any():
                return
            logits = step(tokens, running)

    outcome = examine(exercise("continue_tokens"), one_more)
    assert outcome.status == CRASHED and "step was called after the last token" in outcome.message


def row_by_row(choose):
    return lambda logits: torch.cat([choose(row[None]) for row in logits])


def without_the_last(choose):
    return lambda logits: choose(logits.index_fill(1, torch.tensor([-1]), float("-inf")))


@pytest.mark.parametrize(
    ("changed", "said"),
    [(row_by_row, "for all rows together"), (without_the_last, "logits as they come")],
)
def test_choose_is_asked_about_all_rows_as_they_come(changed, said):
    def attempt(logits, step, choose, eos, pad, most):
        yield from honest_loop(logits, step, changed(choose), eos, pad, most)

    outcome = examine(exercise("continue_tokens"), attempt)
    assert outcome.status == CRASHED and said in outcome.message


def test_an_end_that_is_missing_after_some_names_is_not_said_to_be_missing_after_all(monkeypatch):
    monkeypatch.setattr(engine, "_finished_modules", lambda exercise: set())
    reference = exercise("allowed_next").reference

    def attempt(told, is_place, names, between, eos):
        allowed = reference(told, is_place, names, between, eos)
        if told and allowed.sum() > 2:
            allowed[eos] = False
        return allowed

    said = examine(exercise("allowed_next"), attempt).message
    assert said.startswith("After a name that is the beginning of a longer one")

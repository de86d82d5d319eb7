"""Lesson 21: a vision tower on a language model that has only read.

Most tests join the small model's tower to a tiny language model with random weights, whose tokens
are bytes. What needs SmolLM2 is skipped where it has not been downloaded.
"""

import os

import numpy as np
import pytest
import torch
from conftest import randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minipali
from minipali import cli, graft, published, scenes, weights
from minipali.config import text_config
from minipali.gemma import Gemma
from minipali.gguf_tokenizers import Tokenizer
from minipali.lora import lora_layers
from minipali.variants import causal_states

BYTES = Tokenizer(
    lambda text: list(text.encode()), lambda ids: bytes(ids).decode("latin-1"), 2, False
)


def tiny_graft():
    """The small model's tower, and a random Llama that reads bytes."""
    sizes = {
        "vocab_size": 256, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
        "max_position_embeddings": 200,
    }  # fmt: skip
    language_model = Gemma(text_config("llama", **sizes))
    randomise(language_model)
    model = graft.join(weights.load("small")[0], language_model, BYTES)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.multi_modal_projector.weight, std=0.1)
    torch.nn.init.normal_(model.multi_modal_projector.places, std=0.1)
    return model, graft.GraftProcessor(BYTES, model.config)


@pytest.fixture(scope="module")
def smollm2():
    try:
        return published.find("smollm2")
    except published.PublishedError as error:
        pytest.skip(str(error))


# --- the projector without training --------------------------------------------------------------


@pytest.mark.parametrize(("n", "p", "ridge"), [(30, 4, 0.0), (30, 4, 0.3), (5, 8, 0.2)])
def test_the_projector_is_what_least_squares_finds_in_rows_that_pull_to_zero(n, p, ridge):
    """A ridge is as if there were p patches more, each a unit vector whose word is zero."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=random).double() + 3
    y = torch.randn(n, 6, generator=random).double() - 2
    own, pulls = torch.ones(n, 1), torch.zeros(p, 1)
    unit = torch.eye(p).double() * (n * ridge) ** 0.5
    rows = torch.cat((torch.cat((x, own), dim=1), torch.cat((unit, pulls), dim=1)))
    wanted = torch.cat((y, torch.zeros(p, 6)))
    found = torch.linalg.lstsq(rows, wanted).solution.float()
    weight, bias = graft.closed_form_projector(x.float(), y.float(), ridge)
    torch.testing.assert_close(weight, found[:-1].T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias, found[-1], atol=1e-4, rtol=1e-4)


def test_a_patch_is_covered_by_objects_and_the_background_and_nothing_else():
    thing = scenes.Thing("cat", (0.0, 0.0, 0.25, 0.5))  # of 6 patches: 1.5 rows, 3 columns
    scene = scenes.Scene(np.zeros((72, 72, 3), np.uint8), "pink", (thing,))
    shares = graft.word_shares(scene, 6).unflatten(0, (6, 6))
    cat, pink = (shares[..., graft.WORDS.index(word)] for word in ("cat", "pink"))
    assert cat[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert cat[1].tolist() == [0.5, 0.5, 0.5, 0, 0, 0]
    torch.testing.assert_close(cat + pink, torch.ones(6, 6))


def test_the_fitted_projector_knows_left_from_right():
    model, processor = tiny_graft()
    rng = np.random.default_rng(0)
    made = [scenes.compose(rng, scenes.TRAINING_ARTISTS) for _ in range(60)]
    r2 = graft.fit_projector(model, processor.encode, made, where=1.0)
    assert 0.3 < r2 < 1
    places = model.multi_modal_projector.places.unflatten(0, (6, 6))
    left, right, top, bottom = graft.word_vectors(model, processor.encode, scenes.PLACES)
    torch.testing.assert_close(places[0, 0], left + top)
    torch.testing.assert_close(places[5, 0], left + bottom)
    torch.testing.assert_close(places[0, 5], right + top)


# --- questions that share a picture --------------------------------------------------------------


def test_who_sees_whom_is_what_the_rules_say_one_by_one():
    owner = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1], [0, 0, 0, 2, 1, 1, -1, -1]])
    mask = graft.shared_mask(owner)
    assert mask.shape == (2, 1, 8, 8)
    for b, query, key in np.ndindex(2, 8, 8):
        its, other = owner[b, query], owner[b, key]
        assert bool(mask[b, 0, query, key]) == bool(key <= query and other in (0, its))
    assert graft.shared_positions(owner)[0].tolist() == [1, 2, 3, 4, 5, 4, 5, 4]


def test_questions_in_one_row_get_the_logits_that_each_gets_alone_from_the_whole_model():
    model, processor = tiny_graft()
    rng = np.random.default_rng(3)
    made = [scenes.compose(rng, scenes.TRAINING_ARTISTS, count) for count in (3, 2)]
    asked = [
        graft.questions(rng, scene, number) for scene, number in zip(made, (3, 2), strict=True)
    ]
    rows = [[graft.question_row(processor, one) for one in own] for own in asked]
    found, tokens = graft.shared_logits(model, scenes.pixel_values(made), rows)
    alone, answers = [], []
    for scene, own in zip(made, asked, strict=True):
        for question in own:
            batch = processor(scene.picture, question.prompt, question.answer)
            wanted = batch.pop("labels")[0, 1:]
            alone.append(model(**batch)[0, :-1][wanted >= 0])
            answers += wanted[wanted >= 0].tolist()
    assert tokens.tolist() == answers
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_text_alone_is_read_as_before_the_graft():
    model, _ = tiny_graft()
    ids = torch.tensor([[1, 70, 71, 72, 73]])
    kinds = torch.ones_like(ids)
    found = model.hidden_states(ids, token_type_ids=kinds)
    torch.testing.assert_close(found, causal_states(model.language_model, ids))


# --- training and its file -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model, processor, file) after two steps. Do not change it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(graft, "PICTURES", 1)
    patch.setattr(graft, "FITTED", 40)
    model, processor = tiny_graft()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    graft.train(model, processor, steps=2)
    patch.undo()
    for name, x in before.items():
        place = name.replace("_proj.weight", "_proj.base.weight")
        after = model.state_dict().get(name, model.state_dict().get(place))
        moved = not torch.equal(after, x)
        assert moved == name.startswith("multi_modal_projector."), name
    file = tmp_path_factory.mktemp("graft") / "new" / "graft.safetensors"
    graft.save(model, file)
    return model, processor, file


def test_the_file_holds_what_is_new_in_float16_and_gives_the_same_answers(trained, monkeypatch):
    model, processor, file = trained
    with safe_open(file, "pt") as stored:
        names = set(stored.keys())
        assert {stored.get_tensor(name).dtype for name in names} == {torch.float16}
    layers = lora_layers(model.language_model)
    assert len(layers) == 8
    assert len(names) == 2 * len(layers) + 3
    monkeypatch.setattr(graft, "new_graft", tiny_graft)
    again, other = graft.load(file)
    assert not lora_layers(again)
    batch = processor(scenes.examples()["three_apples"], "what is this?")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch), model(**batch), atol=0.05, rtol=0.05)
    assert other.config == processor.config


def test_a_file_of_another_language_model_or_with_a_matrix_missing_is_refused(
    trained, monkeypatch, tmp_path
):
    monkeypatch.setattr(graft, "new_graft", tiny_graft)
    numbers, own = load_file(trained[2]), {"language_model": published.PUBLISHED["smollm2"].sha256}
    fewer = {name: x for name, x in numbers.items() if "places" not in name}
    for number, (wrong, about) in enumerate(((numbers, {"language_model": "x"}), (fewer, own))):
        save_file(wrong, tmp_path / f"{number}.safetensors", about)
        with pytest.raises(weights.WeightsError, match="must hold the projector"):
            graft.load(tmp_path / f"{number}.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(trained[2].read_bytes()[:5000])
    with pytest.raises(weights.WeightsError, match="cut off"):
        graft.load(tmp_path / "cut.safetensors")


def test_the_file_that_comes_with_the_package_is_small_and_whole():
    assert graft.SHIPPED.stat().st_size <= 3_000_000
    with safe_open(graft.SHIPPED, "pt") as stored:
        about, numbers = stored.metadata(), [stored.get_tensor(name) for name in stored.keys()]  # noqa: SIM118
    assert about["language_model"] == published.PUBLISHED["smollm2"].sha256
    assert all(x.isfinite().all() for x in numbers)


# --- the exam ------------------------------------------------------------------------------------


def test_half_of_the_questions_about_categories_are_to_be_answered_yes_and_truly():
    asked = graft.category_set(scenes.VALIDATION_ARTIST, 6, seed=0)
    assert len(asked) == 6 * len(graft.CATEGORIES)
    for scene, question in asked:
        names = {thing.name for thing in scene.things}
        members = set(graft.CATEGORIES[question.task])
        assert (question.answer == "yes") == bool(names & members)
        assert "mushroom" not in names
    assert sum(question.answer == "yes" for _, question in asked) == len(asked) // 2


def test_no_training_question_names_a_category():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = scenes.compose(rng, scenes.TRAINING_ARTISTS)
        for question in graft.questions(rng, scene, 3):
            words = set(question.prompt.removesuffix("?").split())
            assert not words & set(graft.CATEGORIES)


def test_an_exam_has_a_share_for_each_task_and_category():
    model, processor = tiny_graft()
    found = graft.exam(model, processor, scenes.VALIDATION_ARTIST, each=2)
    assert list(found) == [*graft.TASKS, *graft.CATEGORIES]
    assert all(0 <= share <= 1 for share in found.values())


# --- as a user calls it --------------------------------------------------------------------------


def test_without_smollm2_the_command_that_brings_it_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MINIPALI_WEIGHTS", str(tmp_path))
    assert cli.main(["ask", "--model", "graft"]) == 2
    assert "python course.py weights smollm2" in capsys.readouterr().err


def test_the_graft_is_not_loaded_in_ways_that_it_does_not_have():
    with pytest.raises(ValueError, match="float32"):
        minipali.load("graft", dtype="bfloat16")
    assert cli.main(["finetune", os.devnull, "--model", "graft", "--check"]) == 2


def test_in_four_bits_it_is_refused(smollm2):
    assert cli.main(["ask", "--model", "graft", "--int4"]) == 2


def test_it_answers_about_the_test_artists_pictures(smollm2):
    model, processor = minipali.load("graft")
    pictures = scenes.examples()
    penguin, frogs = pictures["penguin_test_artist"], pictures["two_frogs_and_pizza_test_artist"]
    asked = [(penguin, "what is this?"), (frogs, "answer en how many objects are there?")]
    told = minipali.generate(model, processor, *map(list, zip(*asked, strict=True)))
    assert told == ["penguin", "3"]
    assert "".join(minipali.stream(model, processor, penguin, "what is this?")) == "penguin"

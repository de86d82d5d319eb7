# %% [markdown]
# # 13 · Training: what the model is asked to say
#
# All pieces are there, and for twelve lessons they had trained weights. Where do weights come from?
# From one number, the loss, and from a loop of four lines that makes it smaller. The loop is easy. The
# hard part is to ask for the right thing: today you will see a model with a loss of nearly zero that
# cannot answer a single question.
#
# ## Where we are

# %%
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from minipali import figures, load, scenes, small_tasks, training

torch.set_num_threads(1)  # models so small that more threads only wait for each other
model, processor = load("small")
figures.model_map("all", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **build** the labels of a row and the loss on its suffix, shifted and with padding left out,
# 2. **train**: write the loop, learn one batch by heart first, and watch a model learn to see,
# 3. **judge** a run: by its answers, by several seeds, and on two processes at once.
#
# Time: 45 minutes. You need: the whole model (lesson 11), greedy answers (12), the tower's training
# (05). Two to three minutes of this are training; start with *Run All*, then read.
#
# ## Predict
#
# - A row holds 36 image tokens, `<bos>`, the question and a newline, then `dog` and `<eos>`. How
#   many of its places count in the loss?
# - Someone forgets to shift the labels. How low does the loss get?
# - Two models with the same new decoder, one with a trained vision tower, the other with a random one,
#   see the same 1,920 pictures. Which question tells them apart: *what is this?* or *what colour is the
#   background?*
# - Two processes share a batch. Each takes the mean of its half, and the two gradients are averaged. Is
#   this the gradient of the whole batch?
#
# ## By hand: the loss of an answer
#
# The answer is `dog`, then `<eos>`. The vocabulary has four tokens: dog, cat, two, `<eos>`. After the
# question the model gives them the shares 1/2, 1/4, 1/8, 1/8, and after `dog` a quarter each. The loss
# of a token is **-log of its share**, and the loss of the answer is the mean over its tokens. On paper:
# log 2 = 0.69 for `dog`, log 4 = 1.39 for `<eos>`, and the mean is 1.04.

# %%
shares = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25] * 4])  # after the question, after "dog"
wanted = torch.tensor([0, 3])  # dog, <eos>
each = -shares[[0, 1], wanted].log()
print(f"each {each[0]:.4f}, {each[1]:.4f}, mean {each.mean():.4f}")
print(f"from logits, in one call: {F.cross_entropy(shares.log(), wanted):.4f}")
print(f"guessing among all {model.config.text.vocab_size:,} tokens: {np.log(1856):.2f}")

# %% [markdown]
# `cross_entropy` takes logits and does softmax, log and mean at once, without overflow (lesson 05).
# Remember the last number. A new model knows nothing, and its loss is about log of the vocabulary. If
# your first loss is far from that, stop and look.
#
# ## Build: the labels
#
# A training row is question *and* answer: prefix, suffix, `<eos>`. The **labels** are a second row of
# the same length. They repeat the suffix with its `<eos>`, and hold a mark, -100, where nothing is asked:
# on the picture, on the question, and later on padding. Nobody wants a model that writes questions.


# %%
from minipali.tokens import pad_rows


def row_labels(prefix, suffix, eos=1, ignore=-100):
    """One row: its ids, and a label for every place."""
    answer = suffix + [eos]
    return prefix + answer, [ignore] * len(prefix) + answer


def batch_of(prompts, suffixes):
    """Rows padded on the right: what the model takes, and the labels (b, t)."""
    prefixes = [processor.prompt_ids(prompt) for prompt in prompts]
    pairs = zip(prefixes, suffixes, strict=True)
    rows = [row_labels(prefix, processor.encode(suffix)) for prefix, suffix in pairs]
    ids, mask = pad_rows([ids for ids, _ in rows], 0, "right")
    labels, _ = pad_rows([labels for _, labels in rows], -100, "right")
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | {"token_type_ids": (labels != -100).long()}, labels


# %% [markdown]
# The third input, `token_type_ids`, tells the prefix-LM mask of lesson 11 which tokens are suffix.
#
# ## Build: the shift
#
# In `labels` each place holds its **own** token. But a place predicts the **next** token. So the two are
# moved against each other by one: the logits without the last place, the labels without the first.
# Then all places of a batch go into one list, those with the mark are left out, and the rest is
# averaged.


# %%
def suffix_loss(logits, labels, ignore=-100):
    """(b, t, v), (b, t) -> (): the mean over all tokens of all suffixes."""
    predicted = logits[:, :-1].flatten(0, 1)  # the last place predicts nothing that we know
    wanted = labels[:, 1:].flatten()  # the first token is predicted by nobody
    return F.cross_entropy(predicted, wanted, ignore_index=ignore)


# %%
scene = scenes.compose(np.random.default_rng(4), scenes.VALIDATION_ARTIST, names=["dog"])
prompts = ["answer en what is this?", "caption en"]
inputs, labels = batch_of(prompts, ["dog", scenes.caption(scene)])
with torch.inference_mode():
    logits = model(**inputs, pixel_values=scenes.pixel_values([scene, scene]))
print(f"places that count {(labels != -100).sum(dim=1).tolist()}, of {labels.shape[1]} in a row")

# %%
losses = F.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none")  # 0 at the mark
words = [[processor.token(token) for token in row[35:]] for row in inputs["input_ids"].tolist()]
figures.training.rows(scene.picture, words, labels[:, 35:], losses[:, 35:])
best = processor.token(logits[1, 41].argmax().item())
print(f'mean {suffix_loss(logits, labels):.3f}; after "a dog" the model would say {best!r}')

# %% [markdown]
# This is the picture to remember. Only the ends of the rows are drawn: there are 35 more image tokens on
# the left. Read the first row. `\\n` is the newline that ends the question, and there the model must say
# `dog`. At `dog` it must say `<eos>`. **Two places count**, of nearly fifty. At `<eos>` itself
# there is nothing left to say, and nobody asks what padding would say.
#
# The numbers are the trained model's losses, for a drawing by an artist whom it has never seen. It pays
# where the *picture* decides. Is it a dog? And after "a dog", is that all, or does another object come?
# Where the words before decide, it pays nothing.
#
# ## Build: the loop
#
# Each step is four lines, always in this order:
#
# 1. `zero_grad`: forget the gradients of the step before. `backward` *adds* to what is there.
# 2. `backward`: for each weight, how would the loss change if it grew?
# 3. **clip**: all gradients together are one long vector. If it is longer than 1, shorten it to 1. One
#    strange batch then cannot throw the model off its way.
# 4. `step`: the optimizer moves the weights. The **learning rate** says how far.
#
# The rate is not constant. It **warms up** from almost zero, because the first gradients of a new model
# say little, and in the end it **decays** to zero, so that the weights come to rest. We use AdamW, which
# gives each weight a step of its own size, and shrinks all weights a little at each step if asked to
# (**weight decay**).


# %%
def fit(learner, step_loss, steps, optimizers, warmup=10, decay=0.4, clip=1.0, after=None):
    """Train; step_loss(step) makes the loss of a step. Returns all losses."""
    groups = [group for one in optimizers for group in one.param_groups]
    rates, losses = [group["lr"] for group in groups], []
    for step in range(steps):
        loss = step_loss(step)
        learner.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), clip)
        factor = min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        for one in optimizers:
            one.step()
        losses.append(loss.item())
        if after:
            after(step + 1, loss.item())
    return losses


# %% [markdown]
# ## See it: one batch by heart
#
# Before anything else, train on **one batch**, again and again. A model that cannot learn sixteen
# captions by heart will not learn sixteen thousand, and you find out in seconds. We make a new model
# with a small tower and two decoder layers, all weights random.

# %%
rng = np.random.default_rng(5)
made = [scenes.compose(rng, scenes.TRAINING_ARTISTS) for _ in range(16)]
new = [scenes.compose(rng, scenes.TRAINING_ARTISTS) for _ in range(100)]
inputs, labels = batch_of(["caption en"] * 16, [scenes.caption(scene) for scene in made])
inputs["pixel_values"] = scenes.pixel_values(made)

# %%
from minipali.config import VisionConfig
from minipali.evaluation import answers

tower = VisionConfig(64, 128, 2, 2, image_size=72, patch_size=12)  # width, MLP, layers, heads


def by_heart(loss=suffix_loss, labels=labels, steps=90):
    learner = small_tasks.tiny_model(model, tower=tower)
    adam = torch.optim.AdamW(learner.parameters(), lr=6e-3, betas=(0.9, 0.95))
    return learner, fit(learner, lambda step: loss(learner(**inputs), labels), steps, [adam])


def captions(learner, made):
    question = scenes.Question("caption", "caption en", "")
    return answers(learner, processor, [(scene, question) for scene in made])


def right(learner, made):
    told = captions(learner, made)
    return sum(a == scenes.caption(scene) for a, scene in zip(told, made, strict=True))


# %%
learner, losses = by_heart()
print(f"{sum(p.numel() for p in learner.parameters()):,} weights")
print(f"loss: first {losses[0]:.2f}, last {losses[-1]:.4f}")
print(f"right: {right(learner, made)} of these 16, {right(learner, new)} of 100 new ones")
for scene in (made[0], new[0]):
    print(f"{scenes.caption(scene)!r}: it says {captions(learner, [scene])[0]!r}")

# %% [markdown]
# It has them by heart, and it understands nothing: of a hundred new pictures hardly one is right. This is
# what the test is for. It says that labels, loss, gradients and mask hang together, and no more.
#
# ## Break it: four wrong losses
#
# The same test with four mistakes, each of them one line. Look at the losses first. Which run would
# you trust?

# %%
wrong = {
    "not shifted": {"loss": lambda logits, labels: F.cross_entropy(logits.mT, labels)},
    "prefix in the loss": {"labels": inputs["input_ids"].where(inputs["input_ids"] > 0, -100)},
    "padding in the loss": {"labels": labels.where(inputs["attention_mask"] > 0, 0)},
    "eos missing": {"labels": labels.where(labels != 1, -100)},
}

# %%
broken = {"right": (learner, losses)} | {name: by_heart(**how) for name, how in wrong.items()}
figures.training.mistakes({name: losses for name, (_, losses) in broken.items()}, 1856)
for name, (one, _) in broken.items():
    said = captions(one, made[:1])[0]
    print(f"{name:20} {right(one, made):2} of 16, says {said[:66]!r}")

# %% [markdown]
# The lowest loss, 0.0001, belongs to a model that says nothing but newlines. This is the second answer of
# *Predict*.
#
# - **Not shifted**: at each place it is asked for the token that it has just read. That is easy, and
#   the loss starts low. (The head compares a place with the same table that its token came from.) In
#   use it repeats the last token of the question for ever.
# - **Prefix in the loss**: most places now belong to the question and the picture. The prefix sees
#   itself whole (lesson 11), so it may copy its next token. The mean is full of such easy places, and
#   the answers get what is left.
# - **Padding in the loss**: the model also learns to say padding after padding. Here it did no harm.
#   But the number lies: the more padding, the easier the average place.
# - **`<eos>` missing**: every word is right, and the answer never ends.
#
# **A loss can only tell how well the model does what you asked.** So ask it, and read its answers.
#
# ## Break it: gradients that pile up, and two modes
#
# Two more mistakes are not in the loss but in the loop. Without `zero_grad` each step repeats all
# steps before it. And some modules have two **modes**. Dropout sets random numbers to zero while it
# trains, and BatchNorm looks at its neighbours in the batch (lesson 02). `module.eval()` switches that
# off, `module.train()` on again.

# %% tags=["nbval-check-output"]
weight = torch.tensor(2.0, requires_grad=True)
for step in (1, 2, 3):
    (5 * weight).backward()  # the slope is 5, each time
    print(f"step {step}, gradient {weight.grad.item()}")

# %% tags=["nbval-check-output"]
drop, ones = nn.Dropout(0.5), torch.ones(99)
for mode in (drop.train, drop.eval):
    print(f"{mode.__name__} mode: dropout changes nothing?", torch.equal(mode()(ones), ones))
two_modes = sum(isinstance(one, (nn.Dropout, nn.BatchNorm1d)) for one in model.modules())
print("modules with two modes in our model:", two_modes)

# %% [markdown]
# Our model has no such module, so forgetting `eval()` costs nothing here. Write it all the same: `eval()`
# before you measure, `train()` before you go on. In the exercise there is a module where it matters.
#
# ## See it: learning to see, live
#
# Now new pictures in every step: single objects by the training artists, turned and recoloured, with
# two questions each. No picture comes twice, so nothing can be learned by heart. Two models start with
# the **same random decoder**. One gets the tower of our shipped model, the other a random tower of the
# same size. The exam: new pictures by the validation artist, whom neither the run nor the shipped tower
# has seen.
#
# In fairness: the shipped tower went through both stages that you will see below. It knows these 24
# objects. So this is no contest. It shows what a tower is worth that can see. (It learns on, at 0.3 of
# the rate. Two optimizers share the work, as in the shipped model's training.)

# %%
from minipali.evaluation import evaluation_set, score

prompts = ["answer en what is this?", "answer en what colour is the background?"]
exam = evaluation_set(scenes.VALIDATION_ARTIST, 100, seed=6, tasks=("naming", "background"))


def live_loss(learner, rng, pictures=16):
    made = [
        scenes.compose(rng, scenes.TRAINING_ARTISTS, 1, strength=rng.random() ** 0.5)
        for _ in range(pictures)
    ]
    truth = [answer for scene in made for answer in (scene.things[0].name, scene.background)]
    inputs, labels = batch_of(prompts * pictures, truth)
    image = learner.image_features(scenes.pixel_values(made))  # each picture is looked at once
    image = image.repeat_interleave(2, dim=0)
    x = learner.hidden_states(**inputs, image_features=image)  # (b, t, d)
    return suffix_loss(learner.language_model.logits(x), labels)


# %%
def live(tower=None, gentle=1.0, steps=120):
    learner, rng = small_tasks.tiny_model(model), np.random.default_rng(7)
    if tower is not None:
        learner.vision_tower.load_state_dict(tower.state_dict())
    run = {"steps": [], "naming": [], "background": []}

    def examine(done, loss):
        if done % 20 == 0:
            told = answers(learner, processor, exam)
            marks = [score(one, a) for (_, one), a in zip(exam, told, strict=True)]
            run["steps"].append(done)
            run["naming"].append(np.mean(marks[:100]))
            run["background"].append(np.mean(marks[100:]))

    makers = training.optimizers(learner, matrix_lr=0.01, other_lr=3e-3, gentle=gentle)
    losses = fit(learner, lambda step: live_loss(learner, rng), steps, makers, after=examine)
    return {"losses": losses, **run}


# %%
runs = {"trained tower": live(model.vision_tower, gentle=0.3)}

# %%
runs["random tower"] = live()
figures.training.live(runs)
last = {name: np.mean(run["losses"][-20:]) for name, run in runs.items()}
print({name: f"{loss:.2f}" for name, loss in last.items()}, f"log(24) / 4 = {np.log(24) / 4:.2f}")

# %% [markdown]
# The background comes first, from both towers: a colour is in the pixels, and a decoder can learn to
# read it from random features. Naming is the question that tells them apart. From the trained tower it
# takes off, from the random one it hardly moves. (One run each. But 78 against 8 % is no luck.)
#
# Look at the loss on the left. The orange line stops at 0.8, and we can say where that is. A pair of
# answers has four tokens: name, `<eos>`, colour, `<eos>`. If three of them are sure and the name is a
# guess among 24, the mean is (log 24) / 4 = 0.79. **A plateau is often a number that you can name.**
#
# The random tower would learn too, with more time. A fair comparison was made when the shipped model was
# trained: the second stage with and without the first. After 1,000 of its steps 98 against 59 % of the
# names were right, and 91 against 30 % of the places (from the model card).
#
# ## See it: which parts of the recipe matter?
#
# Warm-up, decay, clipping, weight decay: everybody uses them. Take one away at a time, and see what
# is lost. This is called an **ablation**. We need many short runs, so the task is smaller: the shipped
# tower is frozen and looks at 1,000 pictures once, and only a new decoder learns to name them, in 100
# steps. The learning rate of 0.01 is bold: three times AdamW's in the shipped model's recipe.
#
# One run can be luck. So we train each variant with **three seeds**: other start weights, other batches.


# %%
task = small_tasks.speaking_task(model, processor, number=1000)


def short_run(seed, warmup=20, decay=0.4, clip=1.0, weight_decay=0.1, steps=100):
    """The share of right names, new pictures by the validation artist."""
    learner, rng = small_tasks.fresh_decoder(model, seed), np.random.default_rng(seed)
    speaker, learned = small_tasks.Speaker(learner), [*learner.multi_modal_projector.parameters()]
    learned += learner.language_model.parameters()
    adam = torch.optim.AdamW(learned, 0.01, (0.9, 0.95), weight_decay=weight_decay)

    def step_loss(step):
        chosen = rng.integers(1000, size=16).tolist()
        inputs, labels = small_tasks.speaking_batch(task, chosen)
        return suffix_loss(speaker(inputs), labels)

    fit(learner, step_loss, steps, [adam], warmup, decay, clip)
    return small_tasks.right_share(learner, task)


# %%
off = {
    "no warm-up": {"warmup": 1}, "no decay": {"decay": 0.01}, "no clipping": {"clip": np.inf},
    "no weight decay": {"weight_decay": 0.0},
}  # fmt: skip
nothing = {name: value for one in off.values() for name, value in one.items()}
variants = {"everything": {}, **off, "nothing": nothing}
found = {name: [short_run(seed, **how) for seed in range(3)] for name, how in variants.items()}
for name, ends in found.items():
    print(f"{name:16} mean {np.mean(ends):.0%}, seeds", " ".join(f"{end:.0%}" for end in ends))
wobble = np.median([np.std(ends, ddof=1) for ends in found.values()])
print(f"\nstandard deviation of the seeds in a row (median): {wobble:.1%}")
print(f"standard error of a difference of two means of three: {wobble * (2 / 3) ** 0.5:.1%}")
figures.training.ablations(found, "everything")

# %% [markdown]
# The band is where three runs of *one* recipe end. Do not believe a difference of two means that is less
# than twice its standard error, here about 6 points.
#
# - **Clipping** passes that test by far, and so does "nothing", which lacks it too. No other row does.
# - **No decay** is 5 points lower, but seeds alone do that. Whoever trains once may "find" anything in
#   this table, also that weight decay hurts. (It can hardly do anything in 100 steps: it shrinks the
#   weights by less than a tenth in all.)
#
# This does not make the other parts useless. It says that this small experiment cannot see them. And
# what it does see, it sees at its bold rate. With a gentler one, less may depend on clipping.
#
# ## See it: how the shipped model was trained
#
# Our model's own log, as it was written. `torchrun --nproc-per-node 2 -m minipali.recipe small`
# repeats it, in about an hour and a half on two cores.

# %%
from minipali import checkpoints, recipe

print(recipe.Recipe())
lines = checkpoints.read_log(Path(recipe.__file__).parent / "assets/small/training_log.jsonl")
figures.training.log(lines)

# %% [markdown]
# - **Contrastive stage**: the tower learns from pictures and sentences, with the sigmoid loss of lesson
#   05. Then the text tower is thrown away.
# - **Generative stage**: tower, projector and decoder learn to answer, with today's loss. Nothing is
#   frozen, but the tower's rate is 0.3 of the rest, so that a decoder that knows nothing yet does not
#   spoil it. PaliGemma did the same in large: nothing frozen, and a slow warm-up for the tower.
# - Both losses bend down at the end, where the rate decays (the last 40 % of the steps). And both stages
#   begin with mostly single objects and mix in two and three later, so early and late losses do not
#   belong to the same task.
# - Backgrounds are right at once. Captions, in which every word must be right, come last.
# - The dashed lines are an artist whom the model never saw. What lies between dashed and solid was learned
#   about these artists, not about dogs.
#
# One more thing is different from AdamW alone. Matrices inside blocks learn with **Muon**: instead of a
# step of its own size for each number, the whole matrix of gradients is turned into one that stretches all
# directions about equally. When we tried both, it learned about twice as much from a picture.
#
# ## See it: two processes, and a trap
#
# Twice as many machines, twice as many pictures a step: that is **data-parallel** training. Every
# process holds the whole model, with the same weights, and takes its own part of the batch. After
# `backward` all of them average their gradients. Then each makes the same step, so the weights stay
# equal.
#
# Is the average right? Process 0 has two captions, process 1 two short names. Each takes the mean over
# *its* tokens. Two real processes compute the gradient in two ways, and we compare with one process
# that has everything.

# %%
WORKER = """
import sys
from datetime import timedelta
import torch, torch.distributed as dist
from safetensors.torch import load_file, save_file
from minipali import load
from minipali.training import suffix_loss

rank, folder = int(sys.argv[1]), sys.argv[2]
store = dist.FileStore(folder + "/meeting_point", 2)  # they find each other by a file
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=90))
model, own = load("small")[0], slice(2 * rank, 2 * rank + 2)
inputs = {name: x[own] for name, x in load_file(folder + "/batch.safetensors").items()}
labels = inputs.pop("labels")
here = (labels[:, 1:] != -100).sum()
both = here.clone()
dist.all_reduce(both)  # the sum over the processes
for way, factor in {"mean of means": 1.0, "weighted": 2 * here / both}.items():
    model.zero_grad()
    (factor * suffix_loss(model(**inputs), labels)).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    dist.all_reduce(gradient)
    save_file({"gradient": gradient / 2}, folder + f"/{way} {rank}")
dist.barrier(), dist.destroy_process_group()  # nobody leaves before all are done
"""

# %%
import subprocess
import sys
import tempfile

from safetensors.torch import load_file, save_file

four = [scenes.compose(rng, scenes.VALIDATION_ARTIST, 1) for _ in range(4)]
truth = [scenes.caption(s) for s in four[:2]] + [s.things[0].name for s in four[2:]]
inputs, labels = batch_of(["caption en"] * 2 + prompts[:1] * 2, truth)
inputs["pixel_values"] = scenes.pixel_values(four)
suffix_loss(model(**inputs), labels).backward()
whole = torch.cat([p.grad.flatten() for p in model.parameters()])
print("tokens that count in each row:", (labels[:, 1:] != -100).sum(dim=1).tolist())
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    Path(folder, "worker.py").write_text(WORKER)
    save_file(inputs | {"labels": labels}, Path(folder, "batch.safetensors"))
    command = [sys.executable, str(Path(folder, "worker.py"))]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    workers = [subprocess.Popen([*command, str(r), folder], **output) for r in (0, 1)]
    told = [worker.communicate(timeout=100)[0] for worker in workers]
    assert len(list(Path(folder).glob("weighted*"))) == 2, told
    for way in ("mean of means", "weighted"):
        first, second = (load_file(Path(folder, f"{way} {r}"))["gradient"] for r in (0, 1))
        off_by = (first - whole).norm() / whole.norm()
        print(f"{way:14} the processes agree: {torch.equal(first, second)}, off by {off_by:.2%}")

# %% [markdown]
# The last answer of *Predict* is no, and not by little. One process has 14 tokens, the other 4, and each
# gets half a vote. So a token of a short answer counts 3.5 times as much as one of a long answer. The
# remedy is one number that the processes tell each other: how many tokens count in all. Each weighs its
# mean by its share, and the difference is gone.
#
# Both processes agree in either way. Nothing crashes, the loss falls. transformers had this mistake in
# *gradient accumulation*, where one process takes the parts one after the other, until October 2024
# ([pull request 34191](https://github.com/huggingface/transformers/pull/34191)).
#
# Is it a mistake? That depends on what you want. big_vision, which trained PaliGemma, averages **within
# each row** first, so that each answer has one vote, long or short. Halves with equally many rows then
# average rightly. And our shipped model? It puts short and long answers into separate batches, and takes
# means of means. So a word of a short answer had more weight. Know what your choice is.
#
# Two more things change. Each process needs its own random numbers, or all see the same pictures. And
# what looks across a batch sees only its own part: BatchNorm, and the table of a contrastive loss
# (lesson 05 passes sentences round for that).
#
# ## Check
#
# Your labels against the processor's, your loss against the package's, and against a plain loop over
# the places that count.

# %% tags=["nbval-check-output"]
questions = ["caption en", "answer en how many objects are there?", "detect dog"]
suffixes = ["a dog and a car on a blue background", "2", ""]
pictures = [scenes.examples()["dog_and_car_test_artist"]] * 3
theirs = processor(pictures, questions, suffixes, padding_side="right")
inputs, labels = batch_of(questions, suffixes)
for name in inputs:
    print(f"{name:15}", torch.equal(inputs[name], theirs[name]))
noise = torch.randn(*labels.shape, 1856, generator=torch.Generator().manual_seed(0))
print("labels         ", torch.equal(labels, theirs["labels"]))
loss, by_hand = suffix_loss(noise, labels), []
for row, place in (labels != -100).nonzero().tolist():
    by_hand.append(-noise[row, place - 1].log_softmax(dim=-1)[labels[row, place]])
print("loss, by hand  ", torch.allclose(loss, torch.stack(by_hand).mean(), atol=1e-5))
print("loss, package  ", torch.allclose(loss, training.suffix_loss(noise, labels), atol=1e-6))

# %% [markdown]
# The last question, `detect dog` with an empty answer, has one place that counts: the newline, which
# must say `<eos>`. To say nothing must be learned too.
#
# ## In the real model
#
# What does training cost? In 32-bit numbers each weight needs 4 bytes, its gradient 4 more, and AdamW
# keeps two numbers for it. A multiplication with its addition is 2 FLOP forward, and backward takes about
# twice that: **6 FLOP for each weight and each token** is the usual estimate. And the logits: a batch of
# 32 rows, with questions of 10 tokens and answers of 20, at all places or only where there is a loss.

# %% tags=["nbval-check-output"]
from minipali.config import preset
from minipali.paligemma import PaliGemma

for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    config = preset(name)
    with torch.device("meta"):  # sizes without memory
        weights = sum(p.numel() for p in PaliGemma(config).parameters())
    places = config.vision.num_patches + 1 + 10 + 20 + 1
    everywhere, suffix = (4 * 32 * n * config.text.vocab_size / 1e9 for n in (places, 21))
    print(
        f"{name:16} {weights:13,} weights, {16 * weights / 1e9:6.2f} GB,"
        f" {6 * weights * 32 * places / 1e12:8.3f} TFLOP a step,"
        f" logits {everywhere:6.3f} or {suffix:.3f} GB"
    )

# %% [markdown]
# 46.8 GB before a single activation is stored: more than most graphics cards have. So people train with
# fewer bits, spread the optimizer's numbers over machines, or train few weights (LoRA). The decoder is
# nearly all of the work. And logits only where there is a loss save 9 of 9.5 GB at 224 pixels. The package
# does that in its training.
#
# ## Your turn
#
# Open [the exercise](../exercises/13_training.ipynb). You write the labels, the loss and the loop, and
# then they teach a new decoder to name what the trained tower sees, in seconds.
#
# ## Take away
#
# - The loss is the mean of -log share over the tokens of the answers, `<eos>` included. Each place
#   predicts the next token; picture, question and padding do not count.
# - First one batch by heart, then real training. A low loss is no proof: ask the model.
# - One run is no proof either. Train with several seeds, and average over tokens, not over means.
#
# **Self-test**
#
# <details><summary>Your first loss is 0.3 and not 7.5, with a new model. What do you think of?</summary>
#
# That the labels are not shifted, or that the answer can be seen (a full mask, lesson 11), or that the
# mean is taken over many places without a loss. A new model cannot know anything yet.
# </details>
#
# <details><summary>Why is the label of `dog` not at the newline, where the model has to say it?</summary>
#
# It could be: it is a convention. Everybody keeps labels at their own places and shifts inside the loss. Who
# shifts in both asks for the token after the next.
# </details>
#
# <details><summary>A batch is too large for the memory. You take four parts after each other, call
# `backward` for each, and then one `step`. What must you watch?</summary>
#
# Zero the gradients once, before the first part, and divide each part's *sum* by the number of tokens in
# all four. It is the trap of the two processes again, in one process.
# </details>
#
# **Sources.** Loss on the suffix, stages, nothing frozen: Beyer et al. 2024, *PaliGemma*, arXiv
# 2407.07726, section 3.2. Mean within each row first: `big_vision/trainers/proj/paligemma/train.py`. AdamW:
# Loshchilov and Hutter 2017, arXiv 1711.05101. Clipping: Pascanu et al. 2013, arXiv 1211.5063. 6 FLOP:
# Kaplan et al. 2020, arXiv 2001.08361, section 2.1. Muon: Jordan et al. 2024.
#
# ### What the notes say, and what is true
#
# The notes end where the model gives out logits. Of what trains it they have this:
#
# | the notes say | true |
# |---|---|
# | `self.dropout = config.attention_dropout`, because a dot product "may be too large" | the scale 1 / sqrt(k) is for that (lesson 03); dropout sets weights to zero at random, against learning by heart |
# | dropout on the attention weights, "only during training" | right, by `training=self.training`; and its rate is 0.0 by default in SigLIP and Gemma, so it drops nothing |
# | the code ends with `return outputs`, the logits | for training a loss follows: shifted by one place, on the suffix with its `<eos>` alone |

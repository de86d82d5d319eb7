# %% [markdown]
# # 13 · Training: what the model is asked to say
#
# All pieces are there, and for twelve lessons they had trained weights. Where do weights come from?
# From one number, the loss, and from a loop that makes it smaller. The hard part is to ask for the
# right thing: today you will see a model with a loss of nearly zero that cannot answer a single
# question.
#
# ## Do you remember?
#
# <details><summary>Place 3 of a row belongs to the question, place 7 to the answer. May 3 look at 7, and
# may 7 look at 3?</summary>
#
# 3 may not look at 7, and 7 may look at 3. The prefix sees itself whole, the answer sees the prefix
# and what came before it (lesson 11).
# </details>
#
# <details><summary>Two logits are 0 and log 3. Which probabilities does the softmax make of
# them?</summary>
#
# Their exponentials are 1 and 3, so 1/4 and 3/4 (lesson 03).
# </details>
#
# <details><summary>A loop takes the most likely token again and again, until it is
# <code>&lt;eos&gt;</code>. For one picture it never ends. What is missing?</summary>
#
# A limit. Nothing forces a model to say <code>&lt;eos&gt;</code>, so a loop needs a largest number
# of new tokens, too (lesson 12).
# </details>
#
# ## Where we are

# %%
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from minipali import figures, load, scenes, small_tasks, training
from minipali.checks import reveal

# %%
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
# 3. **judge** a run by what it answers, not by its loss.
#
# Time: 70 minutes. You need: the whole model (lesson 11), greedy answers (12), loss and gradients
# (02). Some cells train for a minute: start with *Run All*, then read.
#
# ## Predict
#
# 1. A row holds 36 image tokens, `<bos>`, the question and a newline, then `dog` and `<eos>`. How
#    many of its places count in the loss?
# 2. A model learns 16 captions by heart (it memorises them), and its loss ends at 0.001. Another
#    one is trained with labels that nobody shifted. Where does its loss end: far above, about
#    there, or below?
# 3. Two models have the same new decoder. One has a trained vision tower, the other a random one.
#    Which question tells them apart: "what is this?" (write `"name"`) or "what colour is the
#    background?" (write `"colour"`)?

# %%
guess_places, guess_unshifted, guess_question = ..., ..., ...

# %% [markdown]
# ## By hand: the loss of an answer
#
# The answer is `dog`, then `<eos>`. The vocabulary has four tokens: dog, cat, two, `<eos>`. After
# the question the model gives them the probabilities 1/2, 1/4, 1/8, 1/8, and after `dog` a quarter
# each. The loss of a token is **minus the logarithm of its probability**: log 2 = 0.69 for `dog`,
# log 4 = 1.39 for `<eos>`. The loss of the answer is the mean, 1.04.

# %% tags=["nbval-check-output"]
shares = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25] * 4])  # after the question, after "dog"
wanted = torch.tensor([0, 3])  # dog, <eos>
each = -shares[[0, 1], wanted].log()
print(f"each {each[0]:.2f}, {each[1]:.2f}, mean {each.mean():.2f}")
print(f"from logits, in one call: {F.cross_entropy(shares.log(), wanted):.2f}")
print(f"all {model.config.text.vocab_size:,} tokens alike: {np.log(1856):.2f}")

# %% [markdown]
# The last number is the loss of a model that gives all tokens the same probability. A new model is
# near it, or about one above, because its random logits are not alike. If your first loss is far
# from it, stop and look.
#
# ## Build: the labels
#
# A training row is question *and* answer: prefix, suffix, `<eos>`. The **labels** are a second row
# of the same length. They repeat the suffix with its `<eos>`, each token at its own place, and hold
# a mark, -100, where nothing is asked: on the picture, on the question, and later on padding.
#
# **Write it now**: [exercise 13](../exercises/13_training.ipynb), part 1. Two lists of ids come in,
# two lists of equal length go out. Two results, with `<eos>` = 1 and the mark -100: prefix [7, 8]
# and suffix [5] give the ids [7, 8, 5, 1] and the labels [-100, -100, 5, 1]; prefix [7] and an
# empty suffix give [7, 1] and [-100, 1]. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def row_labels(prefix, suffix, eos=1, ignore=-100):
    """One row: its ids, and a label for every place."""
    answer = suffix + [eos]
    return prefix + answer, [ignore] * len(prefix) + answer


# %% [markdown]
# A batch of such rows is padded on the right. A third input, `token_type_ids`, tells the prefix-LM
# mask of lesson 11 which tokens are suffix.

# %%
from minipali.tokens import pad_rows


def batch_of(prompts, suffixes):
    """What the model takes, and the labels (b, t)."""
    prefixes = [processor.prompt_ids(prompt) for prompt in prompts]
    pairs = zip(prefixes, suffixes, strict=True)
    rows = [row_labels(prefix, processor.encode(suffix)) for prefix, suffix in pairs]
    ids, mask = pad_rows([ids for ids, _ in rows], 0, "right")
    labels, _ = pad_rows([labels for _, labels in rows], -100, "right")
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | {"token_type_ids": (labels != -100).long()}, labels


# %% [markdown]
# ## Build: the shift
#
# In `labels` each place holds its **own** token. But a place predicts the **next** token. So place
# $i$ of the logits meets place $i + 1$ of the labels. Let $S$ be all places $i$, of all rows, at
# which the label $y_{i+1}$ is not the mark, and $p_i$ the softmax of the logits at $i$. The loss is
# a mean over them:
#
# $$\text{loss} = -\frac{1}{|S|} \sum_{i \in S} \log p_i(y_{i+1})$$
#
# **Write it now**: exercise 13, part 2. Logits (b, t, v) and labels (b, t) come in, one number goes
# out. Two results: if all logits are 0 and v is 4, the loss is log 4 = 1.39, whatever is asked; the
# labels [-100, 0, 3] and the logits log(1/2, 1/4, 1/8, 1/8), then zeros, then anything, give 1.04,
# as by hand. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
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
counted = (labels != -100).sum(dim=1).tolist()
reveal(f"places that count, of {labels.shape[1]}", guess_places, counted[0])

# %%
losses = F.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none")  # 0 at the mark
words = [[processor.token(token) for token in row[35:]] for row in inputs["input_ids"].tolist()]
figures.training.rows(scene.picture, words, labels[:, 35:], losses[:, 35:])
best = processor.token(logits[1, 41].argmax().item())
print(f'mean {suffix_loss(logits, labels):.2f}; after "a dog" the model would say {best!r}')

# %% [markdown]
# This is the picture to remember. (35 more image tokens are on the left.) Read the first row. At
# `\n`, the newline that ends the question, the model must say `dog`. At `dog` it must say `<eos>`.
# **Two places count.**
#
# The numbers are the trained model's losses, for an artist whom it has never seen. They are large
# where the *picture* decides: is it a dog, and after "a dog", is that all? (The colour is easy.)
# Where the words before decide, they are 0.
#
# ## Build: the loop
#
# To the step of lesson 02 (`zero_grad`, `backward`, move the weights) come four things:
#
# - **Clip**: all gradients together are one long vector. If it is longer than 1, shorten it to 1,
#   so that one strange batch cannot move the model far.
# - An **optimizer** moves the weights. **AdamW** gives each weight a step of its own size, and can
#   shrink all weights a little at each step (**weight decay**).
# - The learning rate **warms up** from almost zero, because early gradients say little, and in the
#   end **decays** to zero, so that the weights come to rest.
# - Dropout (random zeros) and BatchNorm (lesson 02) behave differently in training. So
#   `module.train()` comes before steps, `module.eval()` before a measurement. Our model has
#   neither; the exercise's module has.
#
# **Write it now**: exercise 13, part 3, a loop with clipping and both modes. Two results, for one
# weight of 2, the loss 5 · weight, SGD with the rate 0.1 and gradients clipped to 1: the gradient
# is 5, clipped to 1, so the weight goes to 1.9 and to 1.8; the losses, noted before each step, are
# 10 and 9.5. Then open the cell, which has the schedule of the rate in place of the modes.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
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
# captions by heart will not learn sixteen thousand, and you find out in seconds. Ours is small, all
# its weights random.

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
# It has them by heart, and it understands nothing: of a hundred new pictures hardly one is right.
# The test says that labels, loss, gradients and mask work together, and no more.
#
# ## Break it: four wrong losses
#
# The same test with four mistakes, each of them one line. By its loss, which run would you trust?

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
reveal("loss without the shift", guess_unshifted, f"{broken['not shifted'][1][-1]:.4f}")

# %% [markdown]
# The lowest loss belongs to a model that says nothing but newlines.
#
# - **Not shifted**: each place is asked for the token that it has just read. In use it repeats the
#   last token of the question for ever.
# - **Prefix in the loss**: most places now belong to picture and question. The prefix sees itself
#   whole, so it may copy its next token, and the answers get what is left.
# - **Padding in the loss**: here it did no harm. But the number misleads: the more padding, the
#   easier the average place.
# - **`<eos>` missing**: every word is right, and the answer never ends.
#
# **A loss can only tell how well the model does what you asked.** So ask it, and read its answers.
#
# And without `zero_grad`, each step repeats all steps before it, because `backward` *adds*:

# %% tags=["nbval-check-output"]
weight = torch.tensor(2.0, requires_grad=True)
for step in (1, 2, 3):
    (5 * weight).backward()  # the slope is 5, each time
    print(f"step {step}, gradient {weight.grad.item()}")

# %% [markdown]
# ## See it: learning to see, live
#
# Now new pictures in every step, so nothing can be learned by heart. Two models start with the
# **same random decoder**. One gets the tower of our shipped model, the other a random one. The
# exam: new pictures by the validation artist, whom neither the run nor the shipped tower has seen.
#
# This comparison is not fair. The shipped tower knows these 24 objects: its first stage had
# pictures with sentences, **and for every patch the name of the object that covers it**, which the
# published SigLIP never had. (The tower learns on, at 0.3 of the rate. The matrices inside blocks
# have an optimizer of their own, *Muon*; an optional part below says what it does.)

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
print("loss, the last 20 steps:", {name: f"{loss:.2f}" for name, loss in last.items()})
ends = [[run[task][-1] for task in ("naming", "background")] for run in runs.values()]
apart = dict(zip(("name", "colour"), np.subtract(*ends), strict=True))
reveal("tells the towers apart", guess_question, max(apart, key=apart.get))

# %% [markdown]
# The background comes first, from both towers: a colour can be read even from random features.
# Naming tells them apart. (One run each.)
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: which parts of the recipe matter?
#
# Warm-up, decay, clipping, weight decay: everybody uses them. Take one away at a time, and see what
# is lost. This is called an **ablation**. We need many short runs, so the task is smaller: the
# shipped tower is frozen and looks at 1,000 pictures once, and only a new decoder learns to name
# them, in 100 steps. The learning rate of 0.01 is bold: three times AdamW's in the shipped model's
# recipe.
#
# One run can be luck. So we train each variant with **three seeds**: other start weights, other
# batches.


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
found = {}
for name in list(variants)[:3]:  # the others in a cell of their own: each takes a while
    found[name] = [short_run(seed, **variants[name]) for seed in range(3)]

# %%
for name in list(variants)[3:]:
    found[name] = [short_run(seed, **variants[name]) for seed in range(3)]
usual = found["everything"]
for name, ends in found.items():
    shares, apart = " ".join(f"{end:.0%}" for end in ends), np.mean(ends) - np.mean(usual)
    error = np.hypot(np.std(ends, ddof=1), np.std(usual, ddof=1)) / 3**0.5
    print(f"{name:16} mean {np.mean(ends):.0%}, seeds {shares}: {apart / error:+.1f} errors")
figures.training.ablations(found, "everything")

# %% [markdown]
# The band is where three runs of *one* recipe end. The last column divides the difference of two
# means by its own **standard error**: the spread of both rows together, over the root of three.
# With many runs a difference of 2 such errors is rarely luck. With three runs the spread itself is
# hardly known, and the tables of the t-test ask for 2.8 to 4.3.
#
# - **No clipping** and "nothing", which lacks it too, end lowest. They come near that line, and do
#   not pass it for certain. A firm answer needs ten seeds.
# - **No warm-up** and **no decay** look worse as well, but seeds alone may do that. Whoever trains
#   once may "find" anything in this table, also that weight decay hurts. (It can hardly do anything
#   in 100 steps: it shrinks the weights by less than a tenth in all.)
#
# This does not make the other parts useless. It says that this small experiment cannot see them.
# And what it does see, it sees at its bold rate. With a gentler one, less may depend on clipping.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: how the shipped model was trained
#
# Our model's own log, as it was written. `torchrun --nproc-per-node 2 -m minipali.recipe small`
# repeats it, in about an hour and a half on two cores (30 and 64 minutes for the two stages, by the
# model's card).

# %%
from minipali import checkpoints, recipe

print(recipe.Recipe())
lines = checkpoints.read_log(Path(recipe.__file__).parent / "assets/small/training_log.jsonl")
figures.training.log(lines)

# %% [markdown]
# - **Contrastive stage**: the tower learns from pictures and sentences, with lesson 05's sigmoid
#   loss. The scenes are composed, so it is known which object covers which patch, and the same loss
#   compares *each patch* with the names. Then the text tower is thrown away.
# - **Generative stage**: tower, projector and decoder learn to answer, with today's loss. Nothing
#   is frozen, but the tower's rate is 0.3 of the rest, so that a decoder that knows nothing yet
#   does not spoil it. PaliGemma did the same in large: nothing frozen, and a slow warm-up for the
#   tower.
# - Both losses bend down at the end, where the rate decays (the last 40 % of the steps). And both
#   stages begin with mostly single objects and mix in two and three later, so early and late losses
#   do not belong to the same task.
# - Backgrounds are right at once. Captions, in which every word must be right, come last.
# - The dashed lines are an artist whom the model never saw. What lies between dashed and solid was
#   learned about these artists, not about dogs.
#
# Does the first stage pay? The card has the second stage without it, from a random tower. After the
# same 1,000 steps 98 % of the names were right with the first stage and 59 % without it, and 91
# against 30 % of the places. But remember what the first stage was given: labels for every patch.
#
# **Muon** is the optimizer of the matrices inside blocks. A gradient that is a matrix stretches
# some directions much more than others: these are its **singular values**. A step along it moves
# the weak directions hardly at all. Muon (Jordan et al. 2024) keeps the directions and makes the
# stretches much more alike, and it does so with matrix products alone. Here is the gradient of one
# matrix of our model, before and after:

# %%
inputs, labels = batch_of(prompts[:1] * 16, [scene.things[0].name for scene in new[:16]])
model.zero_grad()
suffix_loss(model(**inputs, pixel_values=scenes.pixel_values(new[:16])), labels).backward()
gradient = model.language_model.layers[0].mlp.gate_proj.weight.grad
for name, x in (("gradient", gradient), ("Muon's step", training.orthogonalise(gradient[None])[0])):
    sizes = torch.linalg.svdvals(x)[[0, 15, 31, 63, 127]]
    print(f"{name:12} singular values", " ".join(f"{size / sizes[0]:.3f}" for size in sizes))

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: two processes, and a trap
#
# Twice as many machines, twice as many pictures a step: that is **data-parallel** training. Every
# process holds the whole model, with the same weights, and takes its own part of the batch. After
# `backward` all of them average their gradients. Then each makes the same step, so the weights stay
# equal.
#
# Is the average right? Process 0 has two captions, process 1 two short names. Each takes the mean
# over *its* tokens. Two real processes compute the gradient in two ways, and we compare with one
# process that has everything.

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
model.zero_grad()
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
# It is not, and not by little. One process has 14 tokens, the other 4, and each gets half a vote.
# So a token of a short answer counts 3.5 times as much as one of a long answer. The remedy is one
# number that the processes tell each other: how many tokens count in all. Each weighs its mean by
# its share, and the difference is gone.
#
# Both processes agree in either way. Nothing crashes, the loss falls. transformers had this mistake
# in *gradient accumulation*, where one process takes the parts one after the other. The repair
# began in October 2024 ([pull request
# 34191](https://github.com/huggingface/transformers/pull/34191)), and more of it followed
# ([35438](https://github.com/huggingface/transformers/pull/35438)).
#
# Is it a mistake? That depends on what you want. big_vision, which trained PaliGemma, averages
# **within each row** first, so that each answer has one vote, long or short. Halves with equally
# many rows then average rightly. And our shipped model? It puts short and long answers into
# separate batches, and takes means of means. So a word of a short answer had more weight. Know what
# your choice is.
#
# Two more things change. Each process needs its own random numbers, or all see the same pictures.
# And what looks across a batch sees only its own part: BatchNorm, and the table of a contrastive
# loss (lesson 05).
#
# %% [markdown]
# ## Check
#
# Your labels against the processor's, your loss against the package's, and against a plain loop
# over the places that count.

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
# The last question, `detect dog` with an empty answer, has one place that counts: the newline,
# which must say `<eos>`. To say nothing must be learned too.
#
# ## In the real model
#
# In 32-bit numbers each weight needs 4 bytes, its gradient 4 more, and AdamW keeps two numbers for
# it: 16 bytes. A multiplication with its addition is 2 FLOP forward, and backward takes about twice
# that: **6 FLOP for each weight of a matrix and each place that goes through it**. (To look up a
# row of the table is free. As head it counts, where there is a loss.) Attention comes on top. A
# batch of 32 rows, with questions of 10 tokens and answers of 20:

# %%
from minipali.config import preset
from minipali.paligemma import PaliGemma


def matrices(part):  # without the tables of tokens and of positions
    tables = ("embed_tokens", "position_embedding")
    named = ((name.split("."), p) for name, p in part.named_parameters() if p.ndim > 1)
    return sum(p.numel() for name, p in named if not set(tables) & set(name))


# %% tags=["nbval-check-output"]
for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    config = preset(name)
    v, t, n = config.vision, config.text, config.vision.num_patches
    with torch.device("meta"):  # sizes without memory
        real = PaliGemma(config)
    memory = 16 * sum(p.numel() for p in real.parameters()) / 1e9
    places, asked = n + 1 + 10 + 21, 21  # <bos>, the question, the answer and its <eos>
    eyes = n * (matrices(real.vision_tower) + matrices(real.multi_modal_projector))
    eyes += 2 * v.num_hidden_layers * n**2 * v.hidden_size  # scores and weighted sums
    words = places * matrices(real.language_model) + asked * t.vocab_size * t.hidden_size
    words += 2 * t.num_hidden_layers * places**2 * t.num_attention_heads * t.head_dim
    logits = [4 * 32 * m * t.vocab_size / 1e9 for m in (places, asked)]
    print(f"{name:16} {memory:5.2f} GB, {6 * 32 * (eyes + words) / 1e12:8.2f} TFLOP a step,"
          f" decoder {words / (eyes + words):.0%}, logits {logits[0]:6.2f} or {logits[1]:.2f} GB")  # fmt: skip

# %% [markdown]
# 46.78 GB before a single activation is stored. So people train with fewer bits, spread the
# optimizer's numbers over machines, or train few weights. And the package makes logits only where
# there is a loss: the last column.
#
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/13_training.ipynb). Your labels, loss and loop
# teach a new decoder to name what the trained tower sees, in seconds. It has one piece more that no
# cell of this lesson shows.
#
# Here the decoder was new and the tower was not. Exercise 11 promised learned numbers that are all
# yours: they come in lesson 17, where your pieces, losses and loop train a whole model from random
# weights.
#
# ## Take away
#
# - The loss is the mean of minus log probability over the tokens of the answers, `<eos>` included.
#   Each place predicts the next token; picture, question and padding do not count.
# - First one batch by heart, then real training.
# - A low loss is no proof: ask the model, about pictures that it has not seen.
#
# **Self-test**
#
# <details><summary>Your first loss is 0.3 and not 7.5, with a new model. What do you think of?</summary>
#
# That the labels are not shifted, or that the answer can be seen (a full mask, lesson 11), or that
# the mean is taken over many places without a loss. A new model cannot know anything yet.
# </details>
#
# <details><summary>Why is the label of <code>dog</code> not at the newline, where the model has to say
# it?</summary>
#
# It could be: it is a convention. Everybody keeps labels at their own places and shifts inside the
# loss. Who shifts in both asks for the token after the next.
# </details>
#
# <details><summary>In the live run the loss of the random tower stops near 0.8. A pair of answers has four
# tokens: name, <code>&lt;eos&gt;</code>, colour, <code>&lt;eos&gt;</code>. Where does this number
# come from?</summary>
#
# Three of the tokens are sure and cost nothing. The name is a guess among 24, which costs log 24 =
# 3.18. The mean is 3.18 / 4 = 0.79. A plateau is often a number that you can name.
# </details>
#
# <details><summary>Two variants of a recipe end at 74 and 67 % right, one run each. Which is
# better?</summary>
#
# You cannot tell. Runs of one recipe with other seeds may differ by as much (the optional part on
# the recipe measures it). Repeat both with several seeds.
# </details>
#
# **Sources.** Loss on the suffix, stages, nothing frozen: Beyer et al. 2024, *PaliGemma*, arXiv
# 2407.07726, its part on pretraining stages. Mean within each row first:
# `big_vision/trainers/proj/paligemma/train.py`. AdamW: Loshchilov and Hutter 2017, arXiv
# 1711.05101. Clipping: Pascanu et al. 2013, arXiv 1211.5063. 6 FLOP for a weight: Kaplan et al.
# 2020, arXiv 2001.08361, which leaves the tables out of its N, too. Muon: Jordan et al. 2024.
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

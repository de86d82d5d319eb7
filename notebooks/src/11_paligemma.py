# %% [markdown]
# # 11 · PaliGemma: two kinds of tokens in one row
#
# You have a vision tower (lesson 04) and a language model (lesson 10). Today they meet, and it takes three
# small pieces: a linear map, a way to put image tokens before the words, and a table that says who may see
# whom. Then the whole model stands, and it answers.
#
# ## Do you remember?
#
# <details><summary>Which four parts does the row of a question have, and in which order?</summary>
#
# Image tokens, bos, the prompt, a newline.
# </details>
#
# <details><summary>In a padded row, <code>is_real</code> is 0, 0, 1, 1. What does
# <code>is_real.cumsum(dim=0).clamp(min=1)</code> give, and what is it for?</summary>
#
# 1, 1, 1, 2: the positions. Padding takes none, so the first real token has position 1.
# </details>
#
# <details><summary>A decoder chooses the right words, but gives nearly all of them a chance of 1.00. Which
# step was left out?</summary>
#
# The final norm. Which word leads does not depend on the length of the vector, but the chances do.
# </details>
#
# ## Where we are

# %%
import torch
import torch.nn.functional as F

from minipali import detect, figures, generate, load, scenes
from minipali.checks import reveal
from minipali.swap import put

model, processor = load("small")
figures.model_map("all", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **merge** image tokens and words into one row, in the right order and the right scale,
# 2. **draw** the prefix-LM mask, and say what breaks under a causal and under a full one,
# 3. **assemble** the whole model, with padding, from the pieces of all lessons so far.
#
# Time: 60 minutes. You need: masks (lesson 03), padding (06), positions and cache (07, 08), and the
# decoder (10).
#
# ## Predict
#
# Write a guess in place of each `...`. The lesson answers it later, beside your guess.
#
# 1. Some say that text is multiplied by sqrt(d) "so that picture and text have the same scale". In our
#    model, how many times as large are the numbers of an image token as those of a word?
# 2. A small decoder learns to predict rolls of a die, with a mask that lets it see the roll that it shall
#    predict. When it is used, the next roll has not happened yet. Which share does it get right then?
# 3. The picture stands *before* the question. Suppose it may not see the question. Which task loses
#    more: `"naming"` (*what is this?*) or `"yes/no"` (*is there a dog?*)?

# %%
guess_scale, guess_die, guess_task = ..., ..., ...

# %% [markdown]
# ## By hand: who sees whom
#
# Take a tiny row: two image tokens, one word of the prompt, two words of the answer: `i i p s s`.
# Picture and prompt are the **prefix**; they are given at once. The answer is the **suffix**; it is
# written word by word. Two rules: *everybody sees the whole prefix. Of the suffix, a token sees what is
# not later than itself.* On paper: draw the table of 5 x 5, a row for each token that looks, and count
# the `#` in each row.

# %% tags=["nbval-check-output"]
row = "iipss"
for query, kind in enumerate(row):
    sees = [row[key] != "s" or key <= query for key in range(5)]
    print(kind, "".join("#" if yes else "." for yes in sees), sum(sees))

# %% [markdown]
# In all 18 of 25. Under a **causal** mask, where nobody sees what is later, it would be 15. The three more
# are the places where a token of the prefix sees a later one. This is the **prefix-LM** mask.
#
# ## Build: from the tower to the decoder
#
# The tower gives 36 vectors of 160 numbers. The decoder wants 128. So there is a **projector**: one
# linear map with a bias, the same for each patch, with no activation and no norm after it. What comes
# out are the **image tokens**.
#
# **Write it now**: [exercise 11](../exercises/11_paligemma.ipynb), part 1. Two results, for the weight
# rows (1, 1), (0, 1), (2, 0) and the bias (0, 0, 1): if the tower gives (1, 2), the image token is
# (3, 2, 3); if it gives (0, 0), it is the bias. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def image_tokens(pixels, vision_tower, weight, bias):
    """(b, c, y, x) -> (b, n, d): one vector in the decoder's width for each patch."""
    return F.linear(vision_tower(pixels), weight, bias)


# %% [markdown]
# ## Build: merging
#
# The processor left 36 places in each row for the picture, with the id of `<image>` (lesson 06). Here
# are two rows, with the patches where they will go, and padding before the shorter one.

# %%
pictures = [scenes.examples()[name] for name in ("dog_and_car_test_artist", "cat_and_ball")]
batch = processor(pictures, ["answer en is there a dog?", "detect ball"])
figures.paligemma.rows(processor, batch)

# %% [markdown]
# The embedding table has a row for `<image>` too, but it means nothing and is overwritten. In come the
# words (b, t, d), the image tokens (b, n, d), and `is_image` (b, t), which is True n times in each row.
# Out goes (b, t, d).
#
# **Write it now**: exercise 11, part 2. Two results, with vectors of one number and `-` for an image
# place: the row `- - 2 7` and the picture 10, 11 become 10, 11, 2, 7. The row `0 - - 9`, with padding
# in front, and the picture 20, 21 become 0, 20, 21, 9. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def merge(text, image, is_image):
    """(b, t, d), (b, n, d), bool (b, t) with n times True in a row -> (b, t, d)."""
    return text.masked_scatter(is_image[..., None], image.to(text.dtype))


# %% tags=["nbval-check-output"]
text = torch.tensor([[-1.0, -1, 2, 7], [0, -1, -1, 9]])[..., None]  # (b, t, 1)
toy = torch.tensor([[10.0, 11], [20, 21]])[..., None]  # (b, n, 1)
print(merge(text, toy, text[..., 0] == -1)[..., 0].tolist())
print(merge(text, toy.transpose(0, 1), text[..., 0] == -1)[..., 0].tolist(), "<- (n, b, d)")

# %% [markdown]
# torch's `masked_scatter` walks through the True places and puts the *next unused number* into each. In
# the second line the picture came as (n, b, d). It gives no error, and the two pictures are mixed: it
# does not look at rows, it only counts.
#
# ## Build: the scale, or who divides by sqrt(d)
#
# Gemma multiplies each row of its embedding table by $\sqrt d$ (lesson 10), here 11.3. For the image
# tokens there are two schemes:
#
# - **A** (big_vision, this course, transformers today): text $\cdot \sqrt d$. Image tokens stay as they
#   are.
# - **B** (transformers for a long time, and the notes): image tokens $/ \sqrt d$, merge, and then
#   *everything* $\cdot \sqrt d$.
#
# In B the picture is divided and multiplied by the same number, so A and B are the same, up to rounding.
# But **half of B** (divide, and then multiply only the text) makes the picture 11 times too small, and
# the other half (do not divide, and then multiply everything) 11 times too large.

# %%
projector = model.requires_grad_(False).multi_modal_projector  # nothing trains this model today
gemma, is_image = model.language_model, batch["input_ids"] == model.config.image_token_id
map_of = projector.weight, projector.bias
image = image_tokens(batch["pixel_values"], model.vision_tower, *map_of)
text = gemma.embed(batch["input_ids"])  # (b, t, d), times sqrt(d)

# %%
factors = {"picture scaled as well": 128**0.5, "right": 1.0, "picture divided": 128**-0.5}
schemes = {name: merge(text, image * by, is_image)[0] for name, by in factors.items()}
figures.paligemma.sizes(schemes, is_image[0])
size = schemes["right"].square().mean(dim=-1).sqrt()
ratio = size[is_image[0]].mean() / size[~is_image[0]].mean()
reveal("image tokens beside text", guess_scale, f"{ratio:.1f} times as large")

# %% [markdown]
# So the factor does not bring the two to one scale. The size of the image tokens is what the projector
# learned in training.
#
# ## Build: the mask
#
# Now the table of *By hand* for a whole batch. One rule is new: padding is seen by nobody. Query $t$ may
# look at key $s$ if
#
# $$\text{real}_s \;\wedge\; \left(\neg\,\text{suffix}_s \,\vee\, s \le t\right).$$
#
# With a cache (lesson 08) only the last `queries` tokens ask, while all tokens so far are keys.
#
# **Write it now**: exercise 11, part 3. In come `is_real` and `is_suffix`, (b, s); out goes (b, 1, t, s).
# Two results: the table above for `i i p s s`; and for the row `. i p s`, with padding in front, and
# `queries` = 2: the rows `. # # .` and `. # # #`. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def not_later(s, queries):
    place = torch.arange(s)
    return place[None, :] <= place[s - queries :, None]  # (t, s)


def prefix_lm_mask(is_real, is_suffix, queries):
    """bool (b, s), bool (b, s) -> bool (b, 1, t, s) for the last t = queries tokens."""
    early = ~is_suffix[:, None, :] | not_later(is_real.shape[1], queries)  #  i i p s s
    return (is_real[:, None, :] & early)[:, None]  #                        i # # # . .
    #                                                                       i # # # . .
    #                                                                       p # # # . .
    #                                                                       s # # # # .
    #                                                                       s # # # # #


# %% [markdown]
# Beside it two other masks, over our first question and its answer, with the picture shortened to four
# tokens.


# %%
def causal_mask(is_real, is_suffix, queries):
    return prefix_lm_mask(is_real, torch.ones_like(is_suffix), queries)


def full_mask(is_real, is_suffix, queries):
    return prefix_lm_mask(is_real, torch.zeros_like(is_suffix), queries)


# %%
masks = {"causal": causal_mask, "full": full_mask, "prefix-LM": prefix_lm_mask}
tokens = [processor.token(i) for i in batch["input_ids"][0, 32:]] + ["yes", "<eos>"]
suffix = torch.tensor([[False] * (len(tokens) - 2) + [True, True]])
drawn = {name: mask(suffix | True, suffix, len(tokens))[0, 0] for name, mask in masks.items()}
figures.paligemma.masks(drawn, tokens)

# %% [markdown]
# - **Causal**: the picture, which comes first, knows nothing of the question. It must be ready for *any*
#   question.
# - **Full**: the token that shall predict `yes` sees `yes`.
# - **Prefix-LM**: the picture knows the question, the answer knows only its own past.
#
# ## Build: the whole model
#
# The summary of eleven lessons. (`attention_mask` is 1 at real tokens, `token_type_ids` is 1 in the
# suffix.)

# %%
from minipali.rope import rope_angles


def forward(input_ids, pixel_values, attention_mask, token_type_ids):
    """(b, t), (b, c, y, x), (b, t), (b, t) -> logits (b, t, v)."""
    is_real, is_suffix = attention_mask.bool(), token_type_ids.bool()
    text = gemma.embed(input_ids)  # (b, t, d), times sqrt(d)
    image = image_tokens(pixel_values, model.vision_tower, projector.weight, projector.bias)
    x = merge(text, image, input_ids == model.config.image_token_id)

    mask = prefix_lm_mask(is_real, is_suffix, input_ids.shape[1])  # (b, 1, t, s)
    positions = is_real.cumsum(dim=1).clamp(min=1)  # padding takes none (lesson 08)
    angles = rope_angles(positions, gemma.config.head_dim, gemma.config.rope_theta)
    for layer in gemma.layers:
        x = layer(x, angles, mask)
    return gemma.logits(gemma.norm(x))


# %%
prompts = ["answer en is there a dog?", "answer en what is on the left?", "answer en what is this?"]
three = [pictures[0], pictures[0], scenes.examples()["penguin_test_artist"]]
best = forward(**processor(three, prompts))[:, -1].argmax(dim=-1)
for prompt, token in zip(prompts, best.tolist(), strict=True):
    print(f"{prompt:32} {processor.token(token)}")

# %% [markdown]
# The last line of `forward` is the head. There is no language model *behind* the decoder: the decoder
# is the language model.
#
# ## Break it: a mask that shows the answer
#
# In our trained model the full mask changes no answer: while an answer is written, there is no later
# token to look at. So is it harmless? Train with it, on something that nobody can learn: dice. A tiny
# decoder reads 4 rolls as prefix and must predict 8 more, each from those before. With a fair die,
# log 6 = 1.79 is the best loss that there is. Two trainings with each mask.

# %%
from minipali.config import TextConfig
from minipali.gemma import Gemma

tiny = TextConfig(6, 32, 64, 1, 4, 2, head_dim=16)  # 6 words, width 32, MLP 64, 1 layer, heads 4, 2


def read(decoder, rolls, mask_of):  # (b, t) -> logits (b, t, 6); the first 4 rolls are prefix
    place = torch.ones_like(rolls).cumsum(dim=1)
    mask = mask_of(place > 0, place > 4, rolls.shape[1])
    return decoder.logits(decoder(decoder.embed(rolls), place, mask))


# %%
def train(mask_of, seed, steps=200):
    torch.manual_seed(seed)
    decoder, losses = Gemma(tiny), []
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.01)
    for _ in range(steps):
        rolls = torch.randint(6, (32, 12))
        guesses = read(decoder, rolls, mask_of)[:, 3:-1]  # each for the roll after it
        loss = F.cross_entropy(guesses.flatten(0, 1), rolls[:, 4:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return decoder, losses


trained = {name: [train(masks[name], seed) for seed in range(2)] for name in ("prefix-LM", "full")}

# %%
curves = {f"{name} mask": runs[0][1] for name, runs in trained.items()}
figures.paligemma.losses(curves, chance=1 / 6)
rolls = torch.randint(6, (2000, 12), generator=torch.Generator().manual_seed(1))
for name, runs in trained.items():
    for decoder, _ in runs:
        exam = read(decoder, rolls, masks[name])[:, 3:-1].argmax(dim=-1) == rolls[:, 4:]
        use = read(decoder, rolls[:, :8], masks[name])[:, -1].argmax(dim=-1) == rolls[:, 8]
        exam, use = exam.double().mean(), use.double().mean()
        print(f"{name:9} right as in training {exam:.2f}, in use {use:.2f}")
reveal("full mask, right in use", guess_die, f"{use:.2f}")

# %% [markdown]
# With the full mask the decoders predict dice! They can only have copied: the roll stands one place to
# the right. In use they are at chance, 1/6. **A loss that is too good is a symptom.** This has happened:
# the first version of PaliGemma in transformers had a mask of all ones, which is right for answering and
# leaks the labels in training
# ([pull request 30918](https://github.com/huggingface/transformers/pull/30918)).
#
# ## See it: what each mistake costs
#
# Each mistake in the trained model: 40 questions of each task, about new scenes by an artist whose drawings
# were never trained on. In "question causal" the picture is the whole prefix, and the question counts as
# suffix. In "order reversed" the last patch comes first. The last row always gives the commonest answer.


# %%
def only_picture(is_real, is_suffix, queries):
    return prefix_lm_mask(is_real, is_real.cumsum(dim=1) > 36, queries)


def backwards(text, image, is_image):
    return merge(text, image.flip(1), is_image)


changes = {
    "right": {},
    "full mask": {"prefix_lm_mask": full_mask},
    "causal mask": {"prefix_lm_mask": causal_mask},
    "question causal": {"prefix_lm_mask": only_picture},
    "order reversed": {"merge": backwards},
}
variants = {name: put(model, **change) for name, change in changes.items()}


# %%
from minipali.evaluation import evaluation_set, score
from minipali.generation import token_steps

asked = evaluation_set(scenes.VALIDATION_ARTIST, each=40, seed=11)
exam = processor.pad([processor.prompt_ids(q.prompt) for _, q in asked], [[]] * len(asked))
features = model.image_features(scenes.pixel_values([scene for scene, _ in asked]))


def told(which, batch):
    replies = []
    for part in zip(*(tensor.split(120) for tensor in batch.values()), strict=True):
        steps = token_steps(which, dict(zip(batch, part, strict=True)), max_new_tokens=24)
        rows = torch.stack(list(steps), dim=1)  # (b, t)
        replies += [processor.decode(row) for row in rows.tolist()]
    return replies


# %%
exam["image_features"] = features
replied = {name: told(which, exam) for name, which in variants.items()}
for name, factor in (("picture x sqrt(d)", 128**0.5), ("picture / sqrt(d)", 128**-0.5)):
    replied[name] = told(model, exam | {"image_features": features * factor})
words = [[q.answer for _, q in asked if q.task == task] for task in scenes.TASKS]
replied["commonest answer"] = [max(set(one), key=one.count) for one in words for _ in range(40)]
marks = {}
for name, replies in replied.items():
    each = [score(question, reply) for (_, question), reply in zip(asked, replies, strict=True)]
    marks[name] = torch.tensor(each).reshape(8, 40)  # (task, question)
figures.paligemma.damage(marks, list(scenes.TASKS))
lost = (marks["right"] - marks["causal mask"]).mean(dim=1)
more = max(("naming", "yes/no"), key=lambda task: lost[scenes.TASKS.index(task)])
reveal("loses more under a causal mask", guess_task, more)

# %% [markdown]
# A frame marks a loss too large to be luck with the questions. Row by row:
#
# - **Full mask**: the same as right. Answers cannot show this mistake.
# - **Causal**: naming and colours hardly notice. What falls, to about what the commonest answer gets or
#   less, are the questions that *name* an object. "Question causal" lets the picture see itself
#   whole, and falls in the same tasks. So what is missing is the picture's view of the question.
# - **Order reversed**: tasks about places. (An optional part shows the boxes.)
# - **Picture x sqrt(d)**: detection breaks. Each layer *adds* to the token (lesson 10), and a vector 11
#   times too long hardly notices: the patches learn little from the question.
# - **Picture / sqrt(d)** is the opposite: what the layers add drowns the picture.
#
# No single question finds all of these mistakes. And this is one model from one training.
#
# ## Check
#
# The results by hand. Then logits at all real places, with padding on both sides and with a suffix, and
# one row of a batch against the same row alone.

# %% tags=["nbval-check-output"]
weight, bias = torch.tensor([[1.0, 1], [0, 1], [2, 0]]), torch.tensor([0.0, 0, 1])
of_tower = torch.tensor([[[1.0, 2], [0, 0]]])
print(image_tokens(of_tower, lambda pixels: pixels, weight, bias).tolist())

# %% tags=["nbval-check-output"]
kinds = torch.tensor([[kind == "s" for kind in "iipss"]])
print(prefix_lm_mask(kinds | True, kinds, 5)[0, 0].sum(dim=1).tolist())
real, kinds = torch.tensor([[False, True, True, True]]), torch.tensor([[False, False, False, True]])
print(prefix_lm_mask(real, kinds, 2)[0, 0].int().tolist())

# %% tags=["nbval-check-output"]
from minipali import paligemma

prompts, suffixes = ["caption en", "answer en is there a dog?"], ["a dog and a car", "yes"]
for side in ("left", "right"):
    full = processor(pictures, prompts, suffixes, side)
    del full["labels"]
    real, kind = full["attention_mask"].bool(), full["token_type_ids"].bool()
    ours, package = forward(**full), model(**full)
    print(side, "logits:", torch.allclose(ours[real], package[real], atol=1e-3))
    mask = paligemma.prefix_lm_mask(real, kind, 3)
    print(side, "mask:  ", torch.equal(prefix_lm_mask(real, kind, 3), mask))
    row = {name: tensor[:1][:, real[0]] for name, tensor in full.items() if tensor.ndim == 2}
    single = forward(**row, pixel_values=full["pixel_values"][:1])[0]
    print(side, "alone: ", torch.allclose(single, ours[0][real[0]], atol=1e-3))

# %% [markdown]
# ## In the real model
#
# PaliGemma 3B, with a prompt of 16 tokens and an answer of 8. The mask is counted at one byte for each
# pair.

# %% tags=["nbval-check-output"]
from minipali.config import preset

for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    config = preset(name)
    with torch.device("meta"):  # shapes without numbers
        skeleton = paligemma.PaliGemma(config)
    parts = skeleton, skeleton.multi_modal_projector
    whole, bridge = (sum(p.numel() for p in part.parameters()) for part in parts)
    n, s = config.vision.num_patches, config.vision.num_patches + 16 + 8
    print(
        f"{name:16} projector {bridge:9,} of {whole:13,} parameters;"
        f" {n:4} of {s:4} tokens are picture; mask {s * s / 1e6:6.3f} MB"
    )

# %% [markdown]
# The projector is one linear map, less than a thousandth of the 2.9 billion parameters. And the row
# is nearly all picture.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: merging by where, and rounding
#
# `torch.where(mask, a, b)` takes from `a` where the mask is True, else from `b`. So `a` and `b` need the
# same length, and our picture has 36 tokens while the row has more. Stretch the picture first: for each
# place, *which* image token would it be? A running count of the image places says so.


# %%
def merge_by_where(text, image, is_image):
    number = (is_image.cumsum(dim=1) - 1).clamp(min=0)  # (b, t): which image token
    row = torch.arange(len(text))[:, None]
    return torch.where(is_image[..., None], image[row, number], text)


x = merge(text, image, is_image)
print("the same by where:", torch.equal(x, merge_by_where(text, image, is_image)))

# %% [markdown]
# Schemes A and B are the same on paper. In a computer each step rounds:

# %%
for dtype in (torch.float32, torch.bfloat16):
    a, root = image.to(dtype), torch.tensor(128**0.5, dtype=dtype)
    b = a / 128**0.5 * root
    moved, worst = (a != b).double().mean(), ((b - a).abs() / a.abs()).max()
    print(f"{str(dtype)[6:]:8} sqrt(d) = {root:.4f}, numbers that moved: {moved:.0%},", end=" ")
    print(f"the worst by 1 part in {1 / worst:,.0f}")

# %% [markdown]
# In 32 bits that hardly matters. In bfloat16, which keeps 8 binary digits, some numbers move by one
# step of rounding. That is no worse than any other step in bfloat16, but an exact comparison of two
# implementations will fail on it. Compare in 32 bits. (The published config also has an entry
# `projector_hidden_act`. Nothing uses it.)

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: the order of the image tokens
#
# "Order reversed" hands the same 36 vectors over, last patch first. Each vector came from the tower, where
# a position was added to it (lesson 01). So it might know itself where it belongs. Does the decoder ask it?

# %%
found = {
    name: [
        box
        for thing in ("dog", "car")
        for box in detect(variants[name], processor, pictures[0], thing)
    ]
    for name in ("right", "order reversed")
}
figures.paligemma.boxes(pictures[0], found)
left = generate(
    variants["order reversed"], processor, pictures[0], "answer en what is on the left?"
)
print("on the left, reversed:", left)

# %% [markdown]
# The boxes lie about where they would if the picture were turned by half a circle. No pixel moved, and
# yet left is right and top is bottom. So this decoder reads *where* from the place in the row, by RoPE,
# as in lesson 07, and hardly from the vectors. It still knows *what*.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: padding that is seen
#
# If padding is masked as a key and takes no position, it must change nothing, whichever side it is on.
# (Some code, that in the notes too, also sets the vectors of padding to zero. That replaces no mask: a zero
# vector is still a key, and takes its share of the softmax.) And if somebody forgets `is_real`? Then
# everybody looks at padding, and there is the more of it, the longer the longest prompt of the batch is. We
# ask 40 questions, fill all rows up to a length, and count the answers that change.

# %%
few = asked[::8]  # 5 of each task


def filled(length, side):
    """The questions in one batch, filled up as if one prompt in it had that many tokens."""
    prompts = [processor.prompt_ids(question.prompt) for _, question in few] + [[0] * length]
    batch = processor.pad(prompts, [[]] * len(prompts), side)
    batch = {name: tensor[:-1] for name, tensor in batch.items() if name != "labels"}
    return batch | {"pixel_values": scenes.pixel_values([scene for scene, _ in few])}


# %%
seen = put(model, prefix_lm_mask=lambda r, s, t: prefix_lm_mask(torch.ones_like(r), s, t))
right = told(model, filled(0, "left"))
for length, side in ((0, "left"), (0, "right"), (180, "left"), (180, "right")):
    batch = filled(length, side)
    masked, visible = (
        sum(a != b for a, b in zip(right, told(which, batch), strict=True))
        for which in (model, seen)
    )
    print(f"{length:3} {side:5} changed answers: padding masked {masked}, padding seen {visible}")

# %% [markdown]
# With the mask, no answer changes. Without it, the damage depends on *who else is in the batch*. With
# little padding all is well here, and a mistake like this lives long. It did in transformers: for a while
# its prefix rule made padding visible in training, because it came after the padding rule
# ([issue 35855](https://github.com/huggingface/transformers/issues/35855)).

# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/11_paligemma.ipynb). At its end the trained model runs
# on your pieces from *all* lessons so far. Only the learned numbers are the package's. (In exercise 13 a
# decoder of the package is trained, with your loss and your loop.) It has one piece more that no cell of
# this lesson shows.
#
# ## Take away
#
# - Picture and text meet in one row: image tokens replace placeholders, in order, unscaled; text is
#   multiplied by sqrt(d). Attention in the decoder does the rest.
# - The prefix sees itself whole, the suffix sees what came before, padding is seen by nobody.
# - Many mistakes here crash nothing. In our model some show only in some tasks, one only in training.
#
# **Self-test**
#
# <details><summary>Why does a full mask leave the answers of <code>generate</code> as they are?</summary>
#
# The first call holds the prefix alone, and under both masks it sees itself whole. Then each new token
# comes alone and sees everything before it. A later token never exists.
# </details>
#
# <details><summary>Someone trains with a causal mask everywhere, from scratch. Is that wrong?</summary>
#
# No. It is another model: each patch must prepare for any question, and the work shifts to the text
# tokens, which see the picture. What is wrong is to train with one mask and answer with another.
# </details>
#
# <details><summary>A colleague divides image tokens by sqrt(d) and says that transformers did so for
# years. What do you look for next?</summary>
#
# The multiplication. If the whole merged sequence is multiplied by sqrt(d) later, all is well. If only
# the text is, the picture is sqrt(d) times too small. vLLM had just this when one half was moved and
# the other stayed (issue 52667).
# </details>
#
# **Sources.** Mask and architecture: PaliGemma, Beyer et al. 2024, arXiv 2407.07726 (a figure draws the
# mask). Reference code: google-research/big_vision, `models/proj/paligemma/paligemma.py`,
# `make_attn_mask`. The scale: huggingface/transformers issue 37117, hkproj/pytorch-paligemma issue 13,
# vllm-project/vllm issue 52667. Masks: huggingface/transformers issue 35855, pull requests 30918 and
# 30967.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | contrastive learning makes the vector that goes into Gemma | it trained the tower beforehand (and that of our small model learned from a label on every patch, too); picture and text meet first in the decoder's attention |
# | Gemma stands for "Generalized Estimating Equation Model-based Analysis" | it is a name, Latin for gem |
# | image features are divided so that picture and text have one scale | the division undoes a later multiplication of everything; in our trained model the sizes differ by far |
# | masks say which tokens are important | they say which *kind* a token is: text, image or padding |
# | padding brings picture and text to the same length | it fills up rows of unequal text in a batch; the picture has the same number of tokens in all rows |
# | `assert torch.all(attention_mask == 1)` below a comment on right-padding | that code takes no padding at all, on either side |
# | without an activation a linear model overfits | without one, the layers collapse into a single linear map (lesson 04); Gemma's MLP is also gated |
# | the vector passes 6 decoder layers and then goes to the language model | 18 layers in PaliGemma 3B, and they *are* the language model; after them come a norm and the embedding table as head |

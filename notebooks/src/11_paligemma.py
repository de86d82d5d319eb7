# %% [markdown]
# # 11 · PaliGemma: two kinds of tokens in one row
#
# You have a vision tower (lesson 04) and a language model (lesson 10). They have never met. Today
# they do, and it takes three small pieces: a linear map, a way to put image tokens between words, and
# a table that says who may see whom. Then the whole model stands, and it answers.
#
# ## Where we are

# %%
import torch

from minipali import detect, figures, generate, load, scenes

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
# Time: 45 minutes. You need: masks (lesson 03), padding (06), positions and cache (07, 08), and the
# decoder (10).
#
# ## Predict
#
# - The picture stands *before* the question in the row. Should the picture's tokens be allowed to see
#   the question? Which would suffer if they were not: "what is this?" or "is there a dog?"
# - You hand the 36 image tokens to the decoder in reverse order and change no number in them. A dog is
#   on the left, a car on the right. What does the model answer to "what is on the left?"
# - A model learns with a mask under which it sees the answer that it shall predict. What happens to
#   its loss? And to its answers, when it is used?
# - Text is multiplied by sqrt(d) so that "picture and text have the same scale". Do they?
#
# ## By hand: who sees whom
#
# Take a tiny row: two image tokens, one word of the prompt, two words of the answer: `i i p s s`.
# Picture and prompt are the **prefix**; they are given at once. The answer is the **suffix**; it is
# written word by word. So we want two rules. *Everybody sees the whole prefix. Of the suffix, a token
# sees what is not later than itself.* On paper: draw the table of 5 x 5, a row for each token that
# looks, and count the `#` in each row.

# %%
is_suffix = torch.tensor([kind == "s" for kind in "iipss"])
place = torch.arange(5)
not_later = place[None, :] <= place[:, None]  # (t, s): key s is not later than query t
visible = ~is_suffix[None, :] | not_later
for kind, row in zip("iipss", visible.tolist(), strict=True):
    print(kind, "".join("#" if sees else "." for sees in row), sum(row))

# %% [markdown]
# 3, 3, 3, 4, 5: in all 18 of 25. A causal table would have 15. The three more are the places where a
# token of the prefix sees a later one. Keep this table; it returns at full size.
#
# ## Build: from the tower to the decoder
#
# The tower gives 36 vectors of 160 numbers. The decoder wants 128. So there is a **projector**: one
# linear map with a bias, the same for each patch. There is no activation and no norm after it. (The
# published config has an entry `projector_hidden_act`. It is not used.) What comes out are the **image
# tokens**.


# %%
import torch.nn.functional as F


def image_tokens(pixels, vision_tower, weight, bias):
    """(b, c, y, x) -> (b, n, d): one vector in the decoder's width for each patch."""
    return F.linear(vision_tower(pixels), weight, bias)


# %%
projector = model.requires_grad_(False).multi_modal_projector  # nothing trains this model today
pictures = [scenes.examples()[name] for name in ("dog_and_car_test_artist", "cat_and_ball")]
batch = processor(pictures, ["answer en is there a dog?", "detect ball"])
tower = model.vision_tower
image = image_tokens(batch["pixel_values"], tower, projector.weight, projector.bias)
print("image tokens:", tuple(image.shape), " input_ids:", tuple(batch["input_ids"].shape))

# %% [markdown]
# ## Build: merging
#
# The processor left 36 places in each row for the picture, with the id of `<image>` (lesson 06). Here
# are the two rows, with the patches where they will go. The second prompt is shorter, so its row has
# padding in front.

# %%
figures.paligemma.rows(processor, batch)

# %% [markdown]
# The embedding table has a row for `<image>` too, but it means nothing and is overwritten. For that
# torch has two tools:
#
# - `torch.where(mask, a, b)` takes from `a` where the mask is True, else from `b`. So `a` and `b` need
#   the same length. Our picture has 36 tokens and the row has more.
# - `text.masked_scatter(mask, image)` walks through the True places and puts the *next unused number*
#   of `image` into each. Lengths may differ. The order is all that counts.
#
# A row of four, width 1. The marks -1 are the image places, and the second row has padding in front:

# %%
text = torch.tensor([[-1.0, -1, 2, 7], [0, -1, -1, 9]])[..., None]  # (b, t, 1)
toy = torch.tensor([[10.0, 11], [20, 21]])[..., None]  # (b, n, 1)
print(text.masked_scatter(text == -1, toy)[..., 0].tolist())
print(text.masked_scatter(text == -1, toy.transpose(0, 1))[..., 0].tolist(), "<- (n, b, d)")

# %% [markdown]
# In the second line the picture came as (n, b, d). The shapes still fit, and the two pictures are
# mixed. `masked_scatter` asks no questions: it counts.
#
# `where` can do it as well, if the picture is stretched first: for each place, *which* image token
# would it be? A running count of the image places says so.


# %%
def merge(text, image, is_image):
    """(b, t, d), (b, n, d), bool (b, t) with n times True in a row -> (b, t, d)."""
    return text.masked_scatter(is_image[..., None], image.to(text.dtype))


def merge_by_where(text, image, is_image):
    """The same by `where`: stretch the picture to the length of the row, then choose."""
    number = (is_image.cumsum(dim=1) - 1).clamp(min=0)  # (b, t): which image token
    row = torch.arange(len(text))[:, None]
    return torch.where(is_image[..., None], image[row, number], text)


gemma, is_image = model.language_model, batch["input_ids"] == model.config.image_token_id
text = gemma.embed(batch["input_ids"])  # (b, t, d), times sqrt(d)
x = merge(text, image, is_image)
print(tuple(x.shape), "the same by where:", torch.equal(x, merge_by_where(text, image, is_image)))

# %% [markdown]
# ## Build: the scale, or who divides by sqrt(d)
#
# Gemma multiplies each row of its embedding table by sqrt(d) (lesson 10), here 11.3. What about the
# image tokens? There are two schemes in the wild:
#
# - **A** (big_vision, this course, transformers today): text · sqrt(d). Image tokens stay as they are.
# - **B** (transformers for a long time, and the notes): image tokens / sqrt(d), merge, and then
#   *everything* · sqrt(d).
#
# In B the picture is divided and multiplied by the same number. So A and B are the same, on paper. In
# a computer each step rounds.

# %%
for dtype in (torch.float32, torch.bfloat16):
    a, root = image.to(dtype), torch.tensor(128**0.5, dtype=dtype)
    b = a / 128**0.5 * root
    moved, worst = (a != b).double().mean(), ((b - a).abs() / a.abs()).max()
    print(f"{str(dtype)[6:]:8} sqrt(d) = {root:.4f}, numbers that moved: {moved:.0%},", end=" ")
    print(f"the worst by 1 part in {1 / worst:,.0f}")

# %% [markdown]
# In 32 bits the difference is dust. In bfloat16, which keeps 8 binary digits, some numbers move by one
# step of rounding. That is no worse than any other step in bfloat16, but an exact comparison of two
# implementations will fail on it. Compare in 32 bits.
#
# Mixing the schemes is another matter. **Half of B** (divide, and then multiply only the text) makes
# the picture 11 times too small. **B's other half** (multiply everything, divide nothing) makes it 11
# times too large. See the sizes of all tokens in our first row:

# %%
factors = {"picture scaled as well": 128**0.5, "right": 1.0, "picture divided": 128**-0.5}
schemes = {name: merge(text, image * by, is_image)[0] for name, by in factors.items()}
figures.paligemma.sizes(schemes, is_image[0])

# %% [markdown]
# This answers the last question of *Predict*. In the right scheme the image tokens are *not* as large
# as the text: their numbers are several times larger. The factor does not bring the two to one scale.
# It belongs to Gemma's text. The size of the image tokens is what the projector learned in training.
#
# ## Build: the mask
#
# Now the table of *By hand* for a whole batch. One rule is new: padding is seen by nobody. And with a
# cache (lesson 08) only the last `queries` tokens ask, while all tokens so far are keys.


# %%
def not_later(s, queries):
    place = torch.arange(s)
    return place[None, :] <= place[s - queries :, None]  # (t, s)


def causal_mask(is_real, is_suffix, queries):
    return (is_real[:, None, :] & not_later(is_real.shape[1], queries))[:, None]


def full_mask(is_real, is_suffix, queries):
    return is_real[:, None, None, :].expand(-1, 1, queries, -1)


def prefix_lm_mask(is_real, is_suffix, queries):
    """bool (b, s), bool (b, s) -> bool (b, 1, t, s) for the last t = queries tokens."""
    early = ~is_suffix[:, None, :] | not_later(is_real.shape[1], queries)  #  i i p s s
    return (is_real[:, None, :] & early)[:, None]  #                        i # # # . .
    #                                                                       i # # # . .
    #                                                                       p # # # . .
    #                                                                       s # # # # .
    #                                                                       s # # # # #


# %%
tokens = [processor.token(i) for i in batch["input_ids"][0, 32:]] + ["yes", "<eos>"]
suffix = torch.tensor([[False] * (len(tokens) - 2) + [True, True]])
masks = {"causal": causal_mask, "full": full_mask, "prefix-LM": prefix_lm_mask}
drawn = {name: mask(suffix | True, suffix, len(tokens))[0, 0] for name, mask in masks.items()}
figures.paligemma.masks(drawn, tokens)

# %% [markdown]
# The picture is shortened to four tokens. Compare the three:
#
# - **Causal**: no token of the prefix sees a later one. The picture, which comes first, knows nothing
#   of the question. It must be ready for *any* question.
# - **Full**: the token that shall predict `yes` sees `yes`.
# - **Prefix-LM**: the picture knows the question, the answer knows only its own past.
#
# When the model is *used*, the first call holds no suffix at all, and all of its tokens are prefix. The
# answer then comes one token at a time, after everything that its cache holds.
#
# ## Build: the whole model
#
# Everything is there. Read this as the summary of eleven lessons, a line for each. Below it, three
# questions of unequal length as one batch. Their answers have one word, so one call is enough.

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


prompts = ["answer en is there a dog?", "answer en what is on the left?", "answer en what is this?"]
three = [pictures[0], pictures[0], scenes.examples()["penguin_test_artist"]]
best = forward(**processor(three, prompts))[:, -1].argmax(dim=-1)
for prompt, token in zip(prompts, best.tolist(), strict=True):
    print(f"{prompt:32} {processor.token(token)}")

# %% [markdown]
# The last line of `forward` is the head. There is no language model *behind* the decoder: the decoder
# is the language model, and the embedding table, used backwards, turns its vectors into logits.
#
# ## Build: padding
#
# Texts of unequal length make a batch by padding. (The picture needs none: it has the same number of
# patches in every row.) If padding is masked as a key and takes no position, it must change nothing,
# whichever side it is on. (Some code, that in the notes too, also sets the vectors of padding to zero.
# That replaces no mask: a zero vector is still a key, and takes its share of the softmax.) Three prompts,
# alone and in one batch:

# %%
from minipali.generation import token_steps


def told(which, batch):
    steps = torch.stack(list(token_steps(which, batch, max_new_tokens=24)), dim=1)  # (b, t)
    return [processor.decode(row) for row in steps.tolist()]


prompts = ["caption en", "answer en how many objects are there?", "detect dog"]
alone = [told(model, processor(pictures[0], prompt))[0] for prompt in prompts]
for side in ("left", "right"):
    padded = processor(pictures[:1] * 3, prompts, padding_side=side)
    print(side, padded["attention_mask"].sum(dim=1).tolist(), "real tokens, the same answers:",
          told(model, padded) == alone)  # fmt: skip

# %% [markdown]
# And if somebody forgets `is_real`? Then everybody looks at padding, and there is the more of it, the
# longer the longest prompt of the batch is. We ask 40 questions about new scenes by an artist whose
# drawings were never trained on, fill all rows up to a length, and count the answers that change.

# %%
from minipali.evaluation import answers, evaluation_set, score
from minipali.swap import swap

asked = evaluation_set(scenes.VALIDATION_ARTIST, each=40, seed=11)
few = asked[::8]  # 5 of each task


def filled(length, side):
    """The questions in one batch, filled up as if one prompt in it had that many tokens."""
    prompts = [processor.prompt_ids(question.prompt) for _, question in few] + [[0] * length]
    batch = processor.pad(prompts, [[]] * len(prompts), side)
    batch = {name: tensor[:-1] for name, tensor in batch.items() if name != "labels"}
    return batch | {"pixel_values": scenes.pixel_values([scene for scene, _ in few])}


seen = swap(model, prefix_lm_mask=lambda r, s, t: prefix_lm_mask(torch.ones_like(r), s, t))
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
# little padding all is well or nearly so, and a mistake like this lives long. It did in transformers:
# for a while its prefix rule made padding visible in training, because it came after the padding rule
# ([issue 35855](https://github.com/huggingface/transformers/issues/35855)).
#
# ## Break it: the order of the image tokens
#
# Back to *Predict*. Same numbers, last patch first. Each vector came from the tower, where a position
# was added to it (lesson 01). So it might know itself where it belongs. Does the decoder ask it?

# %%
upside_down = swap(model, merge=lambda text, image, where: merge(text, image.flip(1), where))
for prompt in ("answer en what is on the left?", "answer en what is on the right?"):
    for name, which in (("right order", model), ("reversed", upside_down)):
        print(f"{prompt:32} {name:12} {generate(which, processor, pictures[0], prompt)}")

# %%
found = {
    name: [box for thing in ("dog", "car") for box in detect(which, processor, pictures[0], thing)]
    for name, which in (("right order", model), ("image tokens reversed", upside_down))
}
figures.paligemma.boxes(pictures[0], found)

# %% [markdown]
# The boxes lie about where they would if the picture were turned by half a circle. No pixel moved, and
# yet left is right and top is bottom. So this decoder reads *where* from the place in the row, by RoPE,
# and hardly from the vectors. It still knows *what*. Nothing crashed, and a question such as "what
# colour is the background?" would never have found the mistake.
#
# ## Break it: the answer on the table
#
# Now the full mask. In our trained model it changes no answer, as you will see in a table below: while
# an answer is written, there is no later token to look at. So is it harmless? Train with it. We take
# something that nobody can learn: dice. A tiny decoder reads 4 rolls as prefix and must predict 8 more,
# each from those before. With a fair die, log 6 = 1.79 is the best loss that there is. We train two,
# with nothing but the mask between them.

# %%
from minipali.config import TextConfig
from minipali.gemma import Gemma

tiny = TextConfig(6, 32, 64, 1, 4, 2, head_dim=16)  # 6 words, width 32, MLP 64, 1 layer, heads 4, 2


def read(decoder, rolls, mask_of):  # (b, t) -> logits (b, t, 6); the first 4 rolls are prefix
    place = torch.ones_like(rolls).cumsum(dim=1)
    mask = mask_of(place > 0, place > 4, rolls.shape[1])
    return decoder.logits(decoder(decoder.embed(rolls), place, mask))


def train(mask_of, steps=200):
    torch.manual_seed(0)
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


# %%
trained = {name: train(masks[name]) for name in ("prefix-LM", "full")}
figures.paligemma.losses({f"{k} mask": losses for k, (_, losses) in trained.items()}, chance=1 / 6)
rolls = torch.randint(6, (2000, 12), generator=torch.Generator().manual_seed(1))
for name, (decoder, _) in trained.items():
    exam = read(decoder, rolls, masks[name])[:, 3:-1].argmax(dim=-1) == rolls[:, 4:]
    use = read(decoder, rolls[:, :8], masks[name])[:, -1].argmax(dim=-1) == rolls[:, 8]
    print(f"{name:9} right as in training {exam.double().mean():.2f}", end=", ")
    print(f"in use {use.double().mean():.2f}")

# %% [markdown]
# The decoder with the full mask predicts dice! It can only have copied: the roll stands one place to the
# right. Its loss is wonderful, and in use, where the next roll has not happened, it is at chance, 1/6.
# **A loss that is too good is a symptom.** This, too, has happened: the first version of PaliGemma in
# transformers had a mask of all ones, which is right for answering and leaks the labels in training
# ([pull request 30918](https://github.com/huggingface/transformers/pull/30918)).
#
# ## See it: what each mistake costs
#
# All mistakes at once, each swapped into the trained model. `swap` says what differs first. "Question
# causal" is a half-way house: the picture is the whole prefix, and the question counts as suffix.


# %%
def only_picture(is_real, is_suffix, queries):
    return prefix_lm_mask(is_real, is_real.cumsum(dim=1) > 36, queries)


def picture_times(factor):
    return lambda *given: image_tokens(*given) * factor


variants = {
    "right": model,
    "full mask": swap(model, prefix_lm_mask=full_mask),
    "causal mask": swap(model, prefix_lm_mask=causal_mask),
    "question causal": swap(model, prefix_lm_mask=only_picture),
    "picture x sqrt(d)": swap(model, image_tokens=picture_times(128**0.5)),
    "picture / sqrt(d)": swap(model, image_tokens=picture_times(128**-0.5)),
    "order reversed": upside_down,
}

# %%
marks = {}
for name, which in variants.items():
    replies = answers(which, processor, asked)
    each = [score(question, reply) for (_, question), reply in zip(asked, replies, strict=True)]
    marks[name] = torch.tensor(each).reshape(8, 40)  # (task, question)
figures.paligemma.damage(marks, list(scenes.TASKS))

# %% [markdown]
# A frame marks a loss of more than 3 standard errors, counted question by question. Row by row:
#
# - **Full mask**: the same as right. Answers cannot show this mistake. (`swap` found it, because its
#   test row has a suffix.)
# - **Causal**: naming and colours hardly notice. What falls are the questions that *name* an object:
#   "is there a dog?", "how many dogs", "detect dog". "Question causal" lets the picture see itself
#   whole, and falls in the same places. So what is missing is the picture's view of the question: the
#   first answer to *Predict*. Our reading: each patch looks up what is sought, asks itself "is that
#   me?", and the last token collects the result. The paper gives a reason of this kind for its mask:
#   image tokens can look ahead at the task and change accordingly.
# - **Picture x sqrt(d)**: detection breaks, and the other two that name an object fall as well. Look at
#   what `swap` said: the first layer that differs is the norm *after* the first attention. The norm
#   before it had taken the scale away. But what a layer finds is *added* to the token (lesson 10), and a
#   vector 11 times too long hardly notices. The patches stay what they are and learn little from the
#   question.
# - **Picture / sqrt(d)** is the opposite: what the layers add drowns the picture. Now names, colours,
#   places and captions break, and the questions that name an object suffer less.
# - **Order reversed**: tasks about places.
#
# No single question finds all of these mistakes. Test a new model on tasks that differ.
#
# ## Check
#
# Our functions against the package: logits at all real places, with padding on both sides and with a
# suffix; the masks; and one row of a batch against the same row alone.

# %% tags=["nbval-check-output"]
from minipali import paligemma

prompts, suffixes = ["caption en", "answer en is there a dog?"], ["a dog and a car", "yes"]
for side in ("left", "right"):
    full = processor(pictures, prompts, suffixes, side)
    del full["labels"]
    is_real, kind = full["attention_mask"].bool(), full["token_type_ids"].bool()
    with torch.inference_mode():
        ours, package = forward(**full), model(**full)
    print(side, "logits:", torch.allclose(ours[is_real], package[is_real], atol=1e-3))
    same = [
        torch.equal(prefix_lm_mask(is_real, kind, t), paligemma.prefix_lm_mask(is_real, kind, t))
        for t in (is_real.shape[1], 3, 1)
    ]
    row = {name: tensor[:1][:, is_real[0]] for name, tensor in full.items() if tensor.ndim == 2}
    with torch.inference_mode():
        single = forward(**row, pixel_values=full["pixel_values"][:1])[0]
    print(side, "masks:", same, "alone:", torch.allclose(single, ours[0][is_real[0]], atol=1e-3))

# %% [markdown]
# ## In the real model
#
# What today's pieces are in PaliGemma 3B, with a prompt of 16 tokens and an answer of 8. The mask is
# counted at one byte for each pair.

# %% tags=["nbval-check-output"]
from minipali.config import preset

for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    config = preset(name)
    with torch.device("meta"):  # shapes without numbers
        skeleton = paligemma.PaliGemma(config)
    whole, bridge = (
        sum(p.numel() for p in part.parameters())
        for part in (skeleton, skeleton.multi_modal_projector)
    )
    n, d = config.vision.num_patches, config.text.hidden_size
    s = n + 16 + 8
    print(
        f"{name:16} projector {bridge:9,} of {whole:13,} parameters; sqrt(d) {d**0.5:5.2f};"
        f" {n:4} of {s:4} tokens are picture; mask {s * s / 1e6:6.3f} MB"
    )

# %% [markdown]
# The bridge between eye and tongue is one matrix, less than a thousandth of the 2.9 billion parameters.
# And in these models the row is nearly all picture.
#
# ## Your turn
#
# Open [the exercise](../exercises/11_paligemma.ipynb). You write `image_tokens`, `merge` and
# `prefix_lm_mask`. At its end the trained model runs on your pieces from *all* lessons: what you have
# written so far is collected from your exercises and put in together.
#
# ## Take away
#
# - Picture and text meet in one row: image tokens replace placeholders, in order, unscaled; text is
#   multiplied by sqrt(d). Attention in the decoder does the rest.
# - The prefix sees itself whole, the suffix sees what came before, padding is seen by nobody.
# - Many mistakes here crash nothing. Some show only in some tasks, one only in training.
#
# **Self-test**
#
# <details><summary>Why does a full mask leave the answers of `generate` as they are?</summary>
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
# **Sources.** Mask and architecture: PaliGemma, Beyer et al. 2024, arXiv 2407.07726 (figure 2 draws
# the mask). Reference code: google-research/big_vision, `models/proj/paligemma/paligemma.py`,
# `make_attn_mask`. The scale: huggingface/transformers issue 37117, hkproj/pytorch-paligemma issue 13,
# vllm-project/vllm issue 52667. Masks: huggingface/transformers issue 35855, pull requests 30918 and
# 30967.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | contrastive learning makes the vector that goes into Gemma | it trained the tower beforehand; picture and text meet first in the decoder's attention |
# | Gemma stands for "Generalized Estimating Equation Model-based Analysis" | it is a name, Latin for gem |
# | image features are divided so that picture and text have one scale | the division undoes a later multiplication of everything; in our trained model the sizes differ by far |
# | masks say which tokens are important | they say which *kind* a token is: text, image or padding |
# | padding brings picture and text to the same length | it fills up rows of unequal text in a batch; the picture has the same number of tokens in all rows |
# | `assert torch.all(attention_mask == 1)` below a comment on right-padding | that code takes no padding at all, on either side |
# | without an activation a linear model overfits | without one, the layers collapse into a single linear map (lesson 04); Gemma's MLP is also gated |
# | the vector passes 6 decoder layers and then goes to the language model | 18 layers in PaliGemma 3B, and they *are* the language model; after them come a norm and the embedding table as head |

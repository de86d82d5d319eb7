"""Lesson 11. PaliGemma: image tokens in front of text tokens, one decoder over both."""

import torch
from torch import Tensor, nn

from minipali.config import PaliGemmaConfig
from minipali.gemma import Gemma
from minipali.kv_cache import KVCache
from minipali.vision import VisionTower


def merge(text: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
    """Put image features, in order, where the sequence has image tokens.

    text: (b, t, d), image: (b, n, d), is_image: bool (b, t), True n times a row -> (b, t, d).
    """
    return text.masked_scatter(is_image[..., None], image.to(text.dtype))


def prefix_lm_mask(is_real: Tensor, is_suffix: Tensor, queries: int | None = None) -> Tensor:
    """Which key each query may see: the whole prefix, and of the suffix what is not later.

    is_real, is_suffix: bool (b, s) -> bool (b, 1, t, s) for the last t = `queries` tokens (all by
    default). A key is visible if it is real and either belongs to the prefix (picture and prompt)
    or is not later than the query; so the prefix never sees the suffix.

                  i i p p s s        i image, p prompt, s suffix, # visible
                i # # # # . .
                p # # # # . .
                s # # # # # .
                s # # # # # #

    Source: PaliGemma (Beyer et al. 2024), figure 2; big_vision's make_attn_mask.
    """
    place = torch.arange(is_real.shape[1], device=is_real.device)
    start = 0 if queries is None else is_real.shape[1] - queries
    not_later = place[None, :] <= place[start:, None]  # (t, s)
    visible = is_real[:, None, :] & (~is_suffix[:, None, :] | not_later)
    return visible[:, None]


def sliding_mask(mask: Tensor, is_real: Tensor, is_suffix: Tensor, window: int) -> Tensor:
    """What a layer with a sliding window leaves of `prefix_lm_mask`.

    mask: bool (b, 1, t, s); is_real, is_suffix: bool (b, s), as there -> bool (b, 1, t, s). A
    suffix token sees itself and the window - 1 real tokens before it; the prefix sees itself whole.
    So transformers has it for PaliGemma 2. big_vision, whose code Google published for it, has no
    window at all: the two differ where picture, prompt and answer have more tokens than the window
    of 4096, which means pictures of 896 px.
    """
    place, t = is_real.cumsum(dim=1), mask.shape[2]
    near = place[:, None, :] > place[:, -t:, None] - window  # (b, t, s)
    return mask & (near | ~is_suffix[:, -t:, None])[:, None]


def token_positions(is_real: Tensor, earlier: Tensor | int = 0) -> Tensor:
    """The position of each token, counted from 1; padding takes none.

    is_real: bool (b, t), False at padding; earlier: (b, 1), how many real tokens came before these
    -> (b, t). Padding in front gets 1, for want of a better number: nothing looks at it. From 1 as
    in transformers (big_vision: 0); RoPE is relative, so it makes no difference to the result.
    """
    return (is_real.cumsum(dim=1) + earlier).clamp(min=1)


class PaliGemma(nn.Module):
    """Vision tower, one linear projector, Gemma.

    `language_model.embed_tokens.weight` is also the head.
    """

    def __init__(self, config: PaliGemmaConfig):
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = nn.Linear(config.vision.hidden_size, config.text.hidden_size)
        self.language_model = Gemma(config.text)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """(b, c, y, x) in [-1, 1] -> image tokens for the decoder, (b, n, d).

        They are not scaled by sqrt(d), as text is.
        """
        return self.multi_modal_projector(self.vision_tower(pixel_values))

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        """An empty cache for `batch` rows of up to `max_length` tokens, padding included."""
        return KVCache(batch, max_length)

    def hidden_states(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        kv_cache: KVCache | None = None,
        image_features: Tensor | None = None,
    ) -> Tensor:
        """What the head turns into logits: (b, t, d). Arguments as in `forward`.

        image_features: (b, n, d), in place of pixel_values, where they are known already.
        """
        first = kv_cache is None or kv_cache.length == 0
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        if token_type_ids is None:
            # A first call without types is all prefix; a later one can only be suffix.
            token_type_ids = torch.full_like(input_ids, not first, dtype=torch.bool)
        is_real, is_suffix = attention_mask.bool(), token_type_ids.bool()
        self._check(input_ids, pixel_values, image_features, is_real, is_suffix, first)

        x = self.language_model.embed(input_ids)
        if image_features is None and pixel_values is not None:
            image_features = self.image_features(pixel_values)
        if image_features is not None:
            x = merge(x, image_features, input_ids == self.config.image_token_id)

        is_real_key = is_real if kv_cache is None else kv_cache.extend(is_real)  # (b, s)
        t = input_ids.shape[1]
        cached = is_real_key[:, :-t]  # (b, s - t)
        positions = token_positions(is_real, cached.sum(dim=1, keepdim=True))
        # Everything cached is earlier than this call's tokens, so its kind does not matter.
        is_suffix = torch.cat((torch.zeros_like(cached), is_suffix), dim=1)
        mask = prefix_lm_mask(is_real_key, is_suffix, t)
        window = self.config.text.sliding_window
        near = window and sliding_mask(mask, is_real_key, is_suffix, window)
        return self.language_model(x, positions, mask, kv_cache, near)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        """Logits (b, t, v) for the token after each place.

        input_ids: (b, t); pixel_values: (b, c, y, x) in [-1, 1]; attention_mask: (b, t), 0 at
        padding (left or right); token_type_ids: (b, t), 0 prefix, 1 suffix; kv_cache: filled by
        earlier calls. With a cache, the whole prefix must come in the first call, because its
        tokens see each other, and every argument is about this call's tokens alone. The labels of a
        training batch are not for the model but for the loss: take them out with `.pop("labels")`.
        Raises ValueError if the pictures do not match the image tokens.
        """
        x = self.hidden_states(input_ids, pixel_values, attention_mask, token_type_ids, kv_cache)
        return self.language_model.logits(x)

    def _check(self, input_ids, pixel_values, image_features, is_real, is_suffix, first):
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be (batch, tokens), found {tuple(input_ids.shape)}")
        for name, given in (("attention_mask", is_real), ("token_type_ids", is_suffix)):
            if given.shape != input_ids.shape:
                raise ValueError(
                    f"{name} must have the shape of input_ids {tuple(input_ids.shape)}, found"
                    f" {tuple(given.shape)}"
                )
        if not first and not bool((is_suffix | ~is_real).all()):
            raise ValueError(
                "with a filled cache all new tokens must be suffix (token_type_ids 1): the prefix"
                " sees itself whole, so it must be given whole in the first call"
            )
        expected = 0
        if pixel_values is not None and image_features is not None:
            raise ValueError("give pixel_values or image_features (what they become), not both")
        if pixel_values is not None or image_features is not None:
            pictures = pixel_values if pixel_values is not None else image_features
            expected = self.config.vision.num_patches
            if len(pictures) != len(input_ids):
                raise ValueError(
                    f"there must be one picture a row: {len(input_ids)} rows of input_ids, found"
                    f" {len(pictures)} pictures"
                )
        counts = (input_ids == self.config.image_token_id).sum(dim=1)
        if not bool((counts == expected).all()):
            raise ValueError(
                f"each row must hold {expected} image tokens (id {self.config.image_token_id}),"
                f" found {counts.tolist()}; the processor puts them there, and pictures belong to"
                " the first call alone"
            )

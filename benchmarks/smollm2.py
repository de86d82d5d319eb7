"""A published language model, SmolLM2 135M in float32, against transformers: prefill and decoding.

python course.py weights smollm2       gets it
python benchmarks/smollm2.py
"""

import argparse

from measuring import by_turns, machine, table, write

TOKENS = 24  # that are written


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure SmolLM2 against transformers.")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    import torch

    import minipali
    from minipali.kv_cache import KVCache
    from minipali.variants import causal_states, chat_prompt, continue_text

    model, tokenizer = minipali.load("smollm2")
    theirs = transformers_model(model)
    story = (
        "Tell a story about a dog that learns to ride a bicycle, and about the cat that watches."
    )
    ids = tokenizer.encode(chat_prompt([("user", story * 8)]))
    told = {}

    @torch.inference_mode()
    def prefill():
        cache = KVCache(1, len(ids))
        states = causal_states(model, torch.tensor([ids]), kv_cache=cache)
        told["ours"] = model.logits(states[:, -1])

    @torch.inference_mode()
    def their_prefill():
        given = torch.tensor([ids])
        told["transformers"] = theirs(given, use_cache=True, logits_to_keep=1).logits[:, -1]

    result = {"machine": machine(), "tokens of the prompt": len(ids)}
    took = by_turns({"ours": prefill, "transformers": their_prefill}, given.rounds)
    torch.testing.assert_close(told["ours"], told["transformers"], rtol=0, atol=2e-3)
    result["prefill"] = table(took, "ours")

    short = ids[:16]

    def write_ours():
        told["ours"] = list(continue_text(model, short, -1, TOKENS))

    def write_theirs():
        given = torch.tensor([short])
        found = theirs.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        told["transformers"] = found[0, len(short) :].tolist()

    took = by_turns({"ours": write_ours, "transformers": write_theirs}, given.rounds)
    assert told["ours"] == told["transformers"], "both must write the same"
    result["decoding"] = table(took, "ours", TOKENS)
    write("smollm2", result)


def transformers_model(model):
    """transformers' Llama around the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    with torch.device("meta"):
        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=c.vocab_size,
                hidden_size=c.hidden_size,
                intermediate_size=c.intermediate_size,
                num_hidden_layers=c.num_hidden_layers,
                num_attention_heads=c.num_attention_heads,
                num_key_value_heads=c.num_key_value_heads,
                head_dim=c.head_dim,
                max_position_embeddings=c.max_position_embeddings,
                rms_norm_eps=c.rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
                tie_word_embeddings=True,
            )
        )
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    theirs.load_state_dict(weights, strict=True, assign=True)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)  # made without numbers
    return theirs.eval()


if __name__ == "__main__":
    main()

"""A masked diffusion sampler on one screen: one row, one full forward for each step, no batching, no caching, no shortcuts.

The fast loop in `unmask.sampling.denoise` must give the same completions. Read this file first to see what that loop computes.
"""

from __future__ import annotations

import torch

from unmask.functional.noise import ORDER_STREAM, TOKEN_STREAM, counter_uniform


def denoise_plain(denoiser, prompt, sampler, seed):
    """Returns the tokens of one completion, the step that committed each of them, and its log-probability in nats."""
    length, num_steps = sampler.max_completion_length, sampler.steps
    tokens = torch.full((length,), denoiser.mask_id)
    step_of, logprob_of = torch.full((length,), num_steps), torch.zeros(length)
    steps_per_block = num_steps * sampler.block // length
    rule, _, bound = sampler.schedule.partition("=")
    bound = float(bound or 0)
    for step in range(num_steps):
        # The fixed schedule gives each block its own steps; an adaptive one goes on with the first block that has a mask.
        masked = (tokens == denoiser.mask_id).nonzero().flatten().tolist()
        if not masked:
            break
        block = step // steps_per_block if rule == "fixed" else masked[0] // sampler.block
        hidden = [i for i in masked if i // sampler.block == block]
        # The whole sequence in one forward; the head is read at every position of the completion.
        ids = torch.cat([prompt, tokens]).unsqueeze(0)
        logits = denoiser(ids, None, torch.arange(len(prompt), ids.shape[1]).unsqueeze(0))[0]
        proposals, logprobs, priority, confidence, entropy = {}, {}, {}, {}, {}
        for i in hidden:
            logp = torch.log_softmax(logits[i] / (sampler.temperature or 1.0), dim=-1)
            if sampler.temperature == 0:
                proposals[i] = int(logits[i].argmax())
            else:  # invert the running sum of the probabilities at a number that depends on seed, step and position alone
                cumulative = logp.double().exp().cumsum(0)
                threshold = counter_uniform(seed, TOKEN_STREAM, step, i) * cumulative[-1]
                proposals[i] = int((cumulative > threshold).int().argmax())
            logprobs[i] = float(logp[proposals[i]])
            p = logits[i].softmax(-1).double()
            priority[i] = {
                "low_confidence": float(p[proposals[i]]),  # keeps the most confident, so it remasks the least confident
                "max_probability": float(p.max()),
                "margin": float(p.topk(2).values.diff().neg()),
                "entropy": float((p * p.clamp_min(1e-300).log()).sum()),
                "random": float(counter_uniform(seed, ORDER_STREAM, step, i)),
                "left_to_right": -i,
            }[sampler.order]
            confidence[i] = float(p[proposals[i]] if sampler.order == "low_confidence" else p.max())
            entropy[i] = -float((p * p.clamp_min(1e-300).log()).sum())
        # The masked positions of the block are shared evenly over the steps that are left, larger shares first.
        share = -(-len(hidden) // ((block + 1) * steps_per_block - step))
        ranked = sorted(hidden, key=lambda i: -priority[i])
        for m, i in enumerate(ranked, start=1):
            total, largest = sum(entropy[j] for j in ranked[:m]), max(entropy[j] for j in ranked[:m])
            is_within = {  # an adaptive schedule adds positions up to the first that its bound does not allow
                "fixed": False,
                "threshold": confidence[i] >= bound,
                "factor": (m + 1) * (1 - confidence[i]) < bound,
                "entropy_bound": total - largest <= bound,
            }[rule]
            if not is_within:
                break
            share = max(share, m)
        for i in ranked[:share]:
            tokens[i], step_of[i], logprob_of[i] = proposals[i], step, logprobs[i]
        # A row ends when an EOS has nothing hidden before it: what is still hidden becomes EOS without being sampled.
        ends = (tokens == denoiser.eos_id).nonzero().flatten()
        if len(ends) and not (tokens[: ends[0]] == denoiser.mask_id).any():
            return tokens.masked_fill(tokens == denoiser.mask_id, denoiser.eos_id), step_of, logprob_of
    return tokens, step_of, logprob_of

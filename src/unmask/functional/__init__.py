"""The mathematics as pure functions on tensors: no model, no tokenizer, no global state.

One idea a file:

- `noise`: random numbers as a function of integer keys, so that a row does not depend on its batch
- `distribution`: the token distribution at a temperature and support, its entropy, and a draw from it
- `selection`: which denoising steps of a trajectory are trained
- `plackett_luce`: the probability of an ordering drawn without replacement
- `advantage`: group baselines, the stepwise return, control variates
- `surrogate`: policy-gradient losses with a trust region, and KL terms
- `elbo`: the masked-diffusion bound on log p(x)
- `schedule`: how many tokens each step commits, and the learning rate
- `intervals`: the confidence interval of a solve rate
- `paired`: two results on the same rows: bootstrap interval and exact test
- `pass_at_k`: the chance that one of k completions is right

Letters: B completions, G group size, K selected steps, L positions, T steps, V vocabulary. Steps run in execution
order, 0 = all masked. Floating inputs narrower than float32 are raised to float32; float64 stays float64.
"""

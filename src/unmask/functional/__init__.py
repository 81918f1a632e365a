"""The mathematics as pure functions on tensors: no model, no tokenizer, no global state.

One idea per file:

- `noise`: random numbers as a function of integer keys, so that a row does not depend on its batch
- `distribution`: the token distribution at a temperature and support, its entropy, and samples
- `selection`: the denoising steps of a trajectory that are trained
- `plackett_luce`: the probability of an ordering drawn without replacement
- `advantage`: group baselines, the stepwise return, control variates
- `surrogate`: policy-gradient losses with a trust region, and KL terms
- `elbo`: the masked-diffusion bound on log p(x)
- `masking`: masks of completions, and an upper bound on their likelihood
- `completions`: for each completion, the sum of the values of its views
- `step_draws`: denoising steps drawn evenly over a batch
- `schedule`: the number of tokens that each step commits, and the learning rate
- `intervals`: the confidence interval of a solve rate
- `paired`: comparison of two results on the same examples: bootstrap interval and exact test
- `pass_at_k`: the probability that one of k completions is right

Letters stand for sizes: B completions, G completions in a group, K selected steps, L positions, T
denoising steps, V tokens in the vocabulary. Steps are numbered in order of execution; before step 0
all positions are masked. Floating inputs narrower than float32 are converted to float32; float64
stays float64.
"""

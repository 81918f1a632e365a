"""What settings are called elsewhere: in TRL, transformers, peft, verl, released diffusion code and on the command line.

For each name what to use instead. A key in backquotes alone is the same setting under another name; a sentence explains what
is different, and its keys are in backquotes too. Of several answers the first is taken whose keys the recipe can have. `*`
stands for any letters. A name with a dot is one in that section alone, because there it means something else than elsewhere.
"""

from __future__ import annotations

_BATCH = (
    "A training step takes `num_prompts` prompts with `num_generations` completions each, over all processes; "
    "`views_per_forward` limits how many of them one forward holds.",
    "A step takes `batch_size` demonstrations, over all processes; `max_tokens_per_forward` limits how many of them one "
    "forward holds.",
    "Did you mean `tasks.NAME.overrides.num_prompts`?",
)
_EPOCHS = (
    "There are no epochs: `max_steps` is the number of training steps, and each step takes `num_prompts` prompts.",
    "There are no epochs: `max_steps` is the number of training steps, and each step takes `batch_size` demonstrations.",
    "There are no epochs: `tasks.NAME.budget` says what a run may spend.",
)
_ACCUMULATION = (
    "A step is always whole, so there is nothing to accumulate: `views_per_forward` or `max_tokens_per_forward` says how much "
    "of it one forward holds, which changes memory and not results.",
    "A step is always whole, so there is nothing to accumulate: `max_tokens_per_forward` says how much of it one forward "
    "holds, which changes memory and not results.",
)
_LENGTH = ("`sampler.max_completion_length`", "`max_completion_length`")
_ORDER = "The order in which positions are committed is `sampler.order`."
_PROMPT_LENGTH = (
    "Prompts are never cut: a prompt and `sampler.max_completion_length` must fit into the model together. Rows of a data set "
    "whose prompts do not fit are left out with task.unusable_rows=drop.",
    "Prompts are never cut: a prompt and `max_completion_length` must fit into the model together. Rows of a data set whose "
    "prompts or demonstrations do not fit are left out with task.unusable_rows=drop.",
)
_LORA = "Low-rank adapters are trained when a key of `lora` is set, such as lora.r=16."
_SCHEDULE = "The schedule has `optim.warmup_steps`, `optim.lr_schedule` and `optim.lr_floor`."
_WARMUP = "Warm-up is given in steps: `optim.warmup_steps`."
_BETAS = "Set both decays of AdamW: `optim.betas`, as in optim.betas=[0.9, 0.95]."
_LOG = "Every step is written to metrics.jsonl in the run folder, so there is no interval to set."
_ENGINE = (
    "Completions are denoised by the model itself; engines for autoregressive generation do not run diffusion models."
)
_TOKENS = "Diffusion models fill positions in any order, so settings of autoregressive generation do not apply."
_PROCESSES = (
    "How ranks share a model is chosen outside the recipe: "
    'accelerate launch --config_file "$(unmask preset zero3)" -m unmask train RECIPE.'
)
_LOADER = "Rows are held in memory, so there is no data loader to set."
_HUB = "The finished model is pushed to the repository that `push_to_hub` names; nothing else of the hub is a setting."
_MEMORY = "Memory depends on `rollout_batch_size`, `views_per_forward`, `max_tokens_per_forward` and `gradient_checkpointing`."
_BEST = "With `evaluation.split` set to validation the best model is kept in best/ by itself."
_SAVE = "Checkpoints are written every `save_steps` steps, and `save_total_limit` of them are kept."
_EVAL = "Evaluation is every `evaluation.eval_steps` steps, before the first step and after the last."
_RATIO = "What is clipped, and how, is an option of the method: `method.epsilon`."
_REFERENCE = "The reference policy is the model that the run began with; `sync_ref_model` lets it follow the policy."
_NONE = "It is a setting of transformers' Trainer or of TRL that has no counterpart here."
_DATA = "Rows come from the task: set `task.type` to dataset and task.path to a file."
_METHOD = "The method decides the loss and its terms: `method.type`; unmask methods lists them."
_WEIGHTS = "Weights are loaded in `dtype`; all forwards run in `mixed_precision`."
_DEVICE = (
    "A GPU is used if there is one. The environment variable CUDA_VISIBLE_DEVICES chooses which; empty, it hides all."
)
_CRITIC = "There is no value model: advantages compare the completions of a prompt, and `method.type` says how."
_DRAWS = (
    "How many random masks a likelihood is estimated with is an option of the method; unmask methods NAME shows it."
)
_STOPPING = "Training ends after `max_steps` steps; nothing stops it earlier."
_TOKENIZER = "The tokenizer is the one in the model's folder."
_HUB_ACCESS = "How the hub is reached is set by its environment variables, such as HF_TOKEN and HF_HOME."
_REMOTE_CODE = "No code of a checkpoint is ever run; unmask convert makes a native model of a released one."
_TRACKER = (
    "Set `report_to` to the tracker's name. A run is called what its folder is called; the tracker's own environment variables "
    "set the rest."
)
_FOLDER = "`output_dir` is the run folder. It is never overwritten: use another one, or --resume to continue it."
_START = (
    "A run starts from the folder that `model` names, which may be a checkpoint of a run; --resume continues a run."
)
_SYSTEM = "A system message is part of a row's prompt, as the first of its chat messages."
_EVAL_STEPS = ("`evaluation.eval_steps`",)
_EVAL_ROWS = ("`evaluation.num_rows`", "`num_rows`")
_KL = ("`method.beta`",)
_GROUP = ("`num_generations`", "`samples`")
_ADVANTAGE = "Advantages are differences of rewards; they are not divided by a standard deviation."

OVERLOADED = frozenset({"batch_size", "config", "seed"})
"""Names of keys that mostly mean something else where they are not a key."""

ELSEWHERE: dict[str, str | tuple[str, ...]] = {
    # TRL and transformers
    "lr": "`optim.learning_rate`",
    "learning_rate": "`optim.learning_rate`",
    "num_train_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "epochs": _EPOCHS,
    "max_train_steps": "`max_steps`",
    "train_steps": "`max_steps`",
    "num_train_steps": "`max_steps`",
    "per_device_train_batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "batch_size": _BATCH,
    "per_device_eval_batch_size": "`evaluation.batch_size`",
    "eval_batch_size": "`evaluation.batch_size`",
    "generation_batch_size": "`rollout_batch_size`",
    "steps_per_generation": "Completions are used for `num_iterations` passes, each of `num_minibatches` updates.",
    "gradient_accumulation_steps": _ACCUMULATION,
    "group_size": "`num_generations`",
    "num_completions": "`num_generations`",
    "num_return_sequences": "`num_generations`",
    "rollout_n": "`num_generations`",
    "num_generations_eval": "A run evaluates one completion for each row; unmask eval --samples takes more.",
    "lr_scheduler*": _SCHEDULE,
    "scheduler": _SCHEDULE,
    "warmup": _WARMUP,
    "warmup_ratio": _WARMUP,
    "num_warmup_steps": _WARMUP,
    "adam_beta1": _BETAS,
    "adam_beta2": _BETAS,
    "adam_epsilon": "AdamW's epsilon is fixed at torch's default.",
    "optimizer": "`optim`",
    "optim_*": "The optimizer is `optim.type`; its settings are `optim.learning_rate`, `optim.betas` and `optim.options`.",
    "clip_grad_norm": "`optim.max_grad_norm`",
    "grad_clip": "`optim.max_grad_norm`",
    "gradient_clipping": "`optim.max_grad_norm`",
    "max_length": _LENGTH,
    "max_new_tokens": _LENGTH,
    "max_tokens": _LENGTH,
    "max_prompt_length": _PROMPT_LENGTH,
    "max_seq_length": _PROMPT_LENGTH,
    "max_model_length": _PROMPT_LENGTH,
    "bf16": "Set `mixed_precision` to bf16.",
    "fp16": "Set `mixed_precision` to bf16 or no; fp16 is not offered.",
    "*_full_eval": _WEIGHTS,
    "tf32": _WEIGHTS,
    "torch_dtype": "`dtype`",
    "cast_lm_head_to_fp32": _WEIGHTS,
    "model_init_kwargs": _WEIGHTS,
    "model_name*": "`model`",
    "model_path": "`model`",
    "pretrained": "`model`",
    "torch_compile*": "`compile`",
    "activation_checkpointing*": "`gradient_checkpointing`",
    "gradient_checkpointing_kwargs": "`gradient_checkpointing`",
    "logging_*": _LOG,
    "log_level*": _LOG,
    "log_on_each_node": _LOG,
    "log_interval": _LOG,
    "log_with": "`report_to`",
    "loggers": "`report_to`",
    "trackers": "`report_to`",
    "wandb": "Set `report_to` to wandb.",
    "wandb_*": _TRACKER,
    "log_completions*": "Rollouts are kept in the run folder every `log_rollouts_steps` steps.",
    "log_unique_prompts": "Of a kept rollout, `log_rollouts_groups` prompts with all their completions are kept.",
    "num_completions_to_print": "Of a kept rollout, `log_rollouts_groups` prompts with all their completions are kept.",
    "run_name": "A run is called what its folder is called: `output_dir`.",
    "project": "A run is called what its folder is called: `output_dir`.",
    "trackio_*": "Set `report_to` to trackio.",
    "eval_strategy": _EVAL,
    "evaluation_strategy": _EVAL,
    "eval_on_start": _EVAL,
    "eval_delay": _EVAL,
    "eval_accumulation_steps": "`evaluation.batch_size`",
    "eval_*": _NONE,
    "save_strategy": _SAVE,
    "save_every": _SAVE,
    "save_only_model": _SAVE,
    "save_on_each_node": _SAVE,
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "hub_*": _HUB,
    "data_seed": "`seed`",
    "full_determinism": "Runs are reproducible by `seed` without further settings.",
    "resume_from_checkpoint": "To continue a run, give the same command again with --resume.",
    "ignore_data_skip": "To continue a run, give the same command again with --resume.",
    "do_train": "unmask train trains, and unmask eval evaluates.",
    "do_eval": _EVAL,
    "do_predict": "unmask train trains, and unmask eval evaluates.",
    "use_cpu": _DEVICE,
    "no_cuda": _DEVICE,
    "device": _DEVICE,
    "device_map": _DEVICE,
    "deepspeed": _PROCESSES,
    "fsdp*": _PROCESSES,
    "ddp_*": _PROCESSES,
    "ds3_gather_for_generation": _PROCESSES,
    "local_rank": _PROCESSES,
    "accelerator_config": _PROCESSES,
    "parallelism_config": _PROCESSES,
    "dataloader_*": _LOADER,
    "shuffle_dataset": "Prompts are drawn in an order that `seed` decides.",
    "train_sampling_strategy": "Prompts are drawn in an order that `seed` decides.",
    "remove_unused_columns": "Reward functions are given every column of a row; none is removed.",
    "train_dataset": _DATA,
    "eval_dataset": _DATA,
    "dataset": _DATA,
    "dataset_*": _DATA,
    "train_file": _DATA,
    "max_*_samples": "`num_rows`",
    "*_samples_per_task": "`evaluation.num_rows`",
    "loss_type": _METHOD,
    "algorithm": "`method.type`",
    "algo": "`method.type`",
    "scale_rewards": _ADVANTAGE,
    "multi_objective_aggregation": "Rewards are added up with `reward_weights`.",
    "reward_model*": "`reward_funcs`",
    "reward_functions": "`reward_funcs`",
    "reward_func": "`reward_funcs`",
    "reward_fn": "`reward_funcs`",
    "delta": _RATIO,
    "epsilon_low": "`method.epsilon`",
    "clip_range": "`method.epsilon`",
    "clip_eps": "`method.epsilon`",
    "clip_ratio": "`method.epsilon`",
    "cliprange": "`method.epsilon`",
    "importance_sampling_level": _METHOD,
    "sapo_temperature_*": _METHOD,
    "mask_truncated_completions": _METHOD,
    "top_entropy_quantile": _METHOD,
    "off_policy_mask_threshold": _METHOD,
    "use_bias_correction_kl": _METHOD,
    "gamma": _METHOD,
    "lam": _METHOD,
    "entropy_coef*": _METHOD,
    "kl_beta": "`method.beta`",
    "kl_coef": "`method.beta`",
    "init_kl_coef": "`method.beta`",
    "ref_model": _REFERENCE,
    "callbacks": "In Python, give Trainer a function of the step and its metrics: observe=my_function.",
    "optimizers": "The optimizer is `optim.type`; its settings are `optim.learning_rate`, `optim.betas` and `optim.options`.",
    "data_collator": _LOADER,
    "compute_metrics": "Accuracy is measured by the task. Other numbers can be reward functions with a weight of 0.",
    "reward_processing_classes": "A reward function is a plain Python function: `reward_funcs`. Load a reward model inside it.",
    "disable_dropout": "Dropout of the model is always off; adapters have `lora.dropout`.",
    "num_inner_epochs": "`num_iterations`",
    "num_ppo_epochs": "`num_iterations`",
    "ppo_epochs": "`num_iterations`",
    "mu": "`num_iterations`",
    "use_vllm": _ENGINE,
    "vllm_*": _ENGINE,
    "sglang_*": _ENGINE,
    "use_transformers_*": _ENGINE,
    "min_p": "Tokens are restricted by `sampler.top_k` and `sampler.top_p` only.",
    "repetition_penalty": _TOKENS,
    "num_beams": _TOKENS,
    "do_sample": "Tokens are sampled at `sampler.temperature`; 0 takes the likeliest.",
    "generation_kwargs": "How completions are denoised is set below `sampler`.",
    "generation_config": "How completions are denoised is set below `sampler`.",
    "generation": "`sampler`",
    "sampling": "`sampler`",
    "sampling_params": "`sampler`",
    "cache_implementation": _TOKENS,
    "use_cache": _TOKENS,
    "chat_template*": "The chat template is the one of the model's tokenizer.",
    "*tool*": "A completion is one text; tools are not called.",
    "environment_factory": "A completion is one text; environments are not called.",
    "use_liger_*": _MEMORY,
    "liger_*": _MEMORY,
    "auto_find_batch_size": "Set `max_tokens_per_forward` to auto.",
    "torch_empty_cache_steps": _MEMORY,
    # peft
    "peft_config": _LORA,
    "use_peft": _LORA,
    "use_lora": _LORA,
    "rank": "`lora.r`",
    "lora_r": "`lora.r`",
    "lora_rank": "`lora.r`",
    "lora_alpha": "`lora.alpha`",
    "lora_dropout": "`lora.dropout`",
    "*target_modules": "`lora.targets`",
    "load_in_4bit": "Set `lora.quantize` to 4bit.",
    "load_in_8bit": "Weights can be quantized to 4 bits only: `lora.quantize`.",
    "use_4bit": "Set `lora.quantize` to 4bit.",
    # verl, OpenRLHF and open-r1
    "*rollout_ref.model.*": "`model`",
    "critic.*": _CRITIC,
    "critic*": _CRITIC,
    "value_coef*": _CRITIC,
    "vf_coef": _CRITIC,
    "gae_lambda": _CRITIC,
    "custom_reward_function.*": "`reward_funcs`",
    "reward_model.*": "`reward_funcs`",
    "reward_function": "`reward_funcs`",
    "data.*files": _DATA,
    "*train_files": _DATA,
    "*val_files": _DATA,
    "*validation_file": _DATA,
    "test_file": _DATA,
    "eval_file": _DATA,
    "*prompt_key": "`task.prompt_column`",
    "val_batch_size": "`evaluation.batch_size`",
    "max_response_length": _LENGTH,
    "response_length": _LENGTH,
    "generate_max_len": _LENGTH,
    "*rollout.n": "`num_generations`",
    "n_samples_per_prompt": _GROUP,
    "samples_per_prompt": _GROUP,
    "num_samples_per_prompt": _GROUP,
    "num_generations": "`samples`",
    "num_samples": "`samples`",
    "*mini_batch_size": "`num_minibatches`",
    "*micro_batch_size*": _ACCUMULATION,
    "*_epochs": _EPOCHS,
    "*_epoch": _EPOCHS,
    "total_training_steps": "`max_steps`",
    "total_steps": "`max_steps`",
    "*kl_loss_coef": _KL,
    "*kl_loss_type": "`method.kl`",
    "use_kl_loss": "A KL term is there when its weight is above 0: `method.beta`.",
    "use_kl_in_reward": "A KL term is part of the loss: `method.beta`.",
    "adv_estimator": "`method.type`",
    "advantage*": _METHOD,
    "loss_agg_mode": _METHOD,
    "norm_adv_by_std*": _ADVANTAGE,
    "*gpu_memory_utilization": _ENGINE,
    "tensor_model_parallel_size": _ENGINE,
    "*gpus_per_node": _PROCESSES,
    "num_gpus": _PROCESSES,
    "n_gpu*": _PROCESSES,
    "nnodes": _PROCESSES,
    "num_nodes": _PROCESSES,
    "num_processes": _PROCESSES,
    "world_size": _PROCESSES,
    "master_*": _PROCESSES,
    "enable_gradient_checkpointing": "`gradient_checkpointing`",
    "save_freq": "`save_steps`",
    "save_interval": "`save_steps`",
    "checkpoint_interval": "`save_steps`",
    "test_freq": _EVAL_STEPS,
    "eval_freq": _EVAL_STEPS,
    "eval_interval": _EVAL_STEPS,
    "eval_every*": _EVAL_STEPS,
    "evaluation.steps": _EVAL_STEPS,
    "evaluation.every": _EVAL_STEPS,
    "evaluation.interval": _EVAL_STEPS,
    "evaluation.freq*": _EVAL_STEPS,
    "val_before_train": _EVAL,
    "evaluation.n": _EVAL_ROWS,
    "evaluation.batch": "`evaluation.batch_size`",
    "*eval_samples": _EVAL_ROWS,
    "eval_rows": _EVAL_ROWS,
    "test_rows": _EVAL_ROWS,
    "limit": _EVAL_ROWS,
    "log_freq": _LOG,
    "log_every*": _LOG,
    "logger": "`report_to`",
    "project_name": _TRACKER,
    "experiment_name": _TRACKER,
    "entity": _TRACKER,
    "default_local_dir": _FOLDER,
    "overwrite_output_dir": _FOLDER,
    "checkpoint*": _START,
    "ckpt*": _START,
    "init_from": _START,
    "resume_mode": "To continue a run, give the same command again with --resume.",
    "early_stopping*": _STOPPING,
    "patience": _STOPPING,
    "system_prompt": _SYSTEM,
    "tokenizer*": _TOKENIZER,
    "padding_side": _TOKENIZER,
    "pad_token*": _TOKENIZER,
    "trust_remote_code": _REMOTE_CODE,
    "cache_dir": _HUB_ACCESS,
    "hf_token": _HUB_ACCESS,
    "token": _HUB_ACCESS,
    "attn_implementation": "Attention runs as the model's class implements it; it is not a setting.",
    "model_revision": (
        "Download the revision first and set `model` to its folder: hf download ID --revision NAME --local-dir FOLDER."
    ),
    "quantization*": "Weights can be quantized to 4 bits: `lora.quantize`.",
    "amp": "`mixed_precision`",
    "fp8": "Set `mixed_precision` to bf16 or no; fp8 is not offered.",
    "config": "The recipe is the command's first argument, a shipped name or a YAML file.",
    "recipe": "The recipe is the command's first argument, a shipped name or a YAML file.",
    "*clip_epsilon": "`method.epsilon`",
    "clip_grad*": "`optim.max_grad_norm`",
    "beta1": _BETAS,
    "beta2": _BETAS,
    # letters of the papers
    "task.?": "The options of a task are shown by unmask tasks NAME.",
    "*.seed": ("`seed`", "`seeds`"),
    "g": _GROUP,
    "k": "`method.num_selected`",
    "n": _GROUP,
    # released code of diffusion language models
    "num_mc*": _DRAWS,
    "mc_num": _DRAWS,
    "*remask*": _ORDER,
    "rollout_temperature": "`sampler.temperature`",
    "sampling_temperature": "`sampler.temperature`",
    "sampler.eval_temperature": "`evaluation.temperatures`",
    "diffusion_steps": "`sampler.num_steps`",
    "denoising_steps": "`sampler.num_steps`",
    "num_inference_steps": "`sampler.num_steps`",
    "gen_steps": "`sampler.num_steps`",
    "gen_length": _LENGTH,
    "completion_length": _LENGTH,
    "cfg_scale": "`sampler.guidance`",
    "guidance_scale": "`sampler.guidance`",
    "block_size": "`sampler.block_length`",
    "remasking": _ORDER,
    "alg": _ORDER,
    "alg_temp": "`sampler.order_temperature`",
    "p_mask_prompt": "The share of a prompt that is masked is an option of some methods: `method.prompt_mask_ratio`.",
    "mask_id": "The id of the mask token is read from the model's tokenizer.",
    "mask_token_id": "The id of the mask token is read from the model's tokenizer.",
    "random_masking": _METHOD,
    # this command line
    "length": _LENGTH,
    "steps": (
        "`sampler.num_steps` is the number of denoising steps of a completion, `max_steps` the number of training steps.",
        "`max_steps`",
        "`sampler.num_steps`",
    ),
    "num_steps": ("`sampler.num_steps`", "`max_steps`"),
    "rows": ("`num_rows`", "`evaluation.num_rows`"),
    "output": "`output_dir`",
    "out": "`output_dir`",
    "reward": "`reward_funcs`",
    "rewards": "`reward_funcs`",
    "resume": "To continue a run, give the same command again with --resume.",
    "eval": "`evaluation`",
    "temp": "`sampler.temperature`",
    "eval_temperature": "`evaluation.temperatures`",
    "seed": "`seeds`",
    "random_seed": ("`seed`", "`seeds`"),
    "precision": "`mixed_precision`",
}

ELSEWHERE |= dict.fromkeys(
    (
        "average_tokens_across_devices",
        "batch_eval_metrics",
        "debug",
        "disable_tqdm",
        "enable_jit_checkpoint",
        "include_for_metrics",
        "include_num_input_tokens_seen",
        "label_names",
        "label_smoothing_factor",
        "length_column_name",
        "neftune_noise_alpha",
        "prediction_loss_only",
        "restore_callback_states_from_checkpoint",
        "skip_memory_metrics",
    ),
    _NONE,
)

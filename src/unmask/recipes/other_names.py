"""Names of settings in TRL, transformers, peft, verl and released diffusion code. The table answers
each name with the setting of this project that corresponds to it.

An answer that is only a key in backquotes names the same setting. An answer that is a sentence
explains a difference; its keys are in backquotes too. If there are several answers, the first one
whose keys the recipe can have is used. In a name, `*` and `?` match as in file names. A name with a
dot applies only in the section before the dot, where it has another meaning than elsewhere.
"""

from __future__ import annotations

Answer = str | tuple[str, ...]
"""Advice for an unknown key: one text for all recipes, or one for each kind of recipe."""

OVERLOADED = frozenset({"batch_size", "config", "seed"})
"""Names of keys that usually mean something else outside the section that they belong to."""

NAMES: dict[Answer, str] = {
    # The size and number of steps
    "`max_steps`": "max_train_steps train_steps num_train_steps total_training_steps total_steps",
    "`num_iterations`": "num_inner_epochs num_ppo_epochs ppo_epochs mu",
    "`num_minibatches`": "*mini_batch_size",
    "`num_generations`": "group_size num_completions num_return_sequences rollout_n *rollout.n",
    ("`num_generations`", "`samples`"): "n_samples_per_prompt samples_per_prompt num_samples_per_prompt g n",
    "`samples`": "num_generations num_samples",
    "`rollout_batch_size`": "generation_batch_size",
    "Groups without signal are replaced in at most `refill_rounds` extra rollouts of a training step.": (
        "dynamic_sampl* filter_groups* *max_num_gen_batches max_resample_times"
    ),
    "`seed`": "data_seed",
    "`seeds`": "seed",
    ("`seed`", "`seeds`"): "*.seed random_seed",
    (
        "`sampler.num_steps` is the number of denoising steps of a completion, `max_steps` the number of training steps.",
        "`max_steps`",
        "`sampler.num_steps`",
    ): "steps",
    (
        "There are no epochs: `max_steps` is the number of training steps, and each step takes `num_prompts` prompts.",
        "There are no epochs: `max_steps` is the number of training steps, and each step takes `batch_size` demonstrations.",
        "There are no epochs: `tasks.NAME.budget` limits a run.",
    ): "num_train_epochs num_epochs epochs *_epochs *_epoch",
    (
        "Set `num_prompts`, the number of prompts in a training step over all ranks, and `num_generations`, the number "
        "of completions of each prompt. To save memory, lower `views_per_forward`.",
        "Set `batch_size`, the number of demonstrations in a training step over all ranks. To save memory, lower "
        "`max_tokens_per_forward`.",
        "Did you mean `tasks.NAME.overrides.num_prompts`?",
    ): "per_device_train_batch_size train_batch_size batch_size",
    (
        "There is no setting for accumulation: `views_per_forward` or `max_tokens_per_forward` splits a training step "
        "into forwards, which changes memory and not results.",
        "There is no setting for accumulation: `max_tokens_per_forward` splits a training step into forwards, which "
        "changes memory and not results.",
    ): "gradient_accumulation_steps *micro_batch_size*",
    "Completions are used for `num_iterations` passes of `num_minibatches` optimizer steps each.": "steps_per_generation",
    "Training ends after `max_steps` steps; there is no early stopping.": "early_stopping* patience",
    # The optimizer
    "`optim`": "optimizer",
    "`optim.learning_rate`": "lr learning_rate",
    "`optim.max_grad_norm`": "clip_grad_norm grad_clip gradient_clipping clip_grad*",
    "The optimizer is `optim.type`; its settings are `optim.learning_rate`, `optim.betas` and `optim.options`.": (
        "optim_* optimizers"
    ),
    "Set both decay rates of AdamW: `optim.betas`, as in optim.betas=[0.9, 0.95].": "adam_beta1 adam_beta2 beta1 beta2",
    "AdamW's epsilon is fixed at torch's default.": "adam_epsilon",
    "The schedule has `optim.warmup_steps`, `optim.lr_schedule` and `optim.lr_floor`.": "lr_scheduler* scheduler",
    "Warm-up is a number of steps: `optim.warmup_steps`.": "warmup warmup_ratio num_warmup_steps",
    # How completions are denoised
    "`sampler`": "generation sampling sampling_params",
    "`sampler.num_steps`": "diffusion_steps denoising_steps num_inference_steps gen_steps",
    ("`sampler.num_steps`", "`max_steps`"): "num_steps",
    ("`sampler.max_completion_length`", "`max_completion_length`"): (
        "max_length max_new_tokens max_tokens max_response_length response_length generate_max_len gen_length "
        "completion_length length"
    ),
    "`sampler.temperature`": "rollout_temperature sampling_temperature temp",
    "`sampler.guidance`": "cfg_scale guidance_scale",
    "`sampler.block_length`": "block_size",
    "`sampler.cache`, as in sampler.cache=dual.": "use_cache *dual_cache kv_cache prefix_cache",
    "`sampler.order_temperature`": "alg_temp",
    "`sampler.order` decides which positions a step commits; all others are masked again.": "*remask* remasking alg",
    "The settings of denoising are below `sampler`.": "generation_kwargs generation_config",
    "`sampler.temperature` sets how tokens are sampled; 0 takes the most likely token.": "do_sample",
    "Only `sampler.top_k` and `sampler.top_p` restrict the tokens.": "min_p",
    "Diffusion models fill positions in any order, so settings of autoregressive generation do not apply.": (
        "repetition_penalty num_beams cache_implementation"
    ),
    "`rollout_engine.urls` names the servers that denoise completions, and `rollout_engine.type` = http uses them.": (
        "use_vllm vllm_mode vllm_server_base_url vllm_server_host vllm_server_port sglang_* rollout.name"
    ),
    "`rollout_engine.timeout`": "vllm_server_timeout",
    "The model itself denoises completions; engines for autoregressive generation do not run diffusion models.": (
        "vllm_* use_transformers_* *gpu_memory_utilization tensor_model_parallel_size"
    ),
    (
        "Prompts are never truncated: a prompt and `sampler.max_completion_length` must fit into the model together. "
        "task.unusable_rows=drop leaves out examples of a dataset whose prompts do not fit.",
        "Prompts are never truncated: a prompt and `max_completion_length` must fit into the model together. "
        "task.unusable_rows=drop leaves out examples of a dataset whose prompts or demonstrations do not fit.",
    ): "max_prompt_length max_seq_length max_model_length",
    "The chat template belongs to the model's tokenizer.": "chat_template*",
    "A completion is one text, so there are no tool calls.": "*tool*",
    "A completion is one text, so there are no environments.": "environment_factory",
    "A system message is the first chat message of an example's prompt.": "system_prompt",
    # The behaviour policy
    "`behaviour.level`": (
        "vllm_importance_sampling_correction vllm_importance_sampling_mode rollout_importance_sampling_mode *rollout_is"
    ),
    "`behaviour.cap`": (
        "vllm_importance_sampling_cap rollout_importance_sampling_threshold *rollout_is_threshold *tis_imp_ratio_cap"
    ),
    "`behaviour.band`": "*rollout_rs *rollout_rs_threshold",
    "`behaviour.normalise`": "*rollout_is_batch_normalize behaviour.normalize",
    # The method and its loss
    "`method.type`": "algorithm algo adv_estimator",
    "`method.beta`": "kl_beta kl_coef init_kl_coef *kl_loss_coef",
    "`method.kl`": "*kl_loss_type",
    "`method.epsilon`": "epsilon_low clip_range clip_eps clip_ratio cliprange *clip_epsilon",
    "`method.num_selected`": "k",
    "The method decides the loss and its terms: `method.type`. To list all methods: unmask methods": (
        "loss_type importance_sampling_level sapo_temperature_* mask_truncated_completions top_entropy_quantile "
        "off_policy_mask_threshold use_bias_correction_kl gamma lam entropy_coef* advantage* loss_agg_mode random_masking"
    ),
    "Clipping is an option of the method: `method.epsilon`.": "delta",
    "A KL penalty is used if its weight is above 0: `method.beta`.": "use_kl_loss",
    "The KL penalty is part of the loss: `method.beta`.": "use_kl_in_reward",
    "Advantages are differences of rewards; they are not divided by a standard deviation.": "scale_rewards norm_adv_by_std*",
    "There is no value model: advantages compare the completions of a prompt, and `method.type` decides how.": (
        "critic.* critic* value_coef* vf_coef gae_lambda"
    ),
    "The number of random masks for a likelihood estimate is an option of the method. To list its options: unmask methods NAME": (
        "num_mc* mc_num"
    ),
    "The share of the prompt to mask is an option of some methods: `method.prompt_mask_ratio`.": "p_mask_prompt",
    "The reference policy is the initial model; with `sync_ref_model` it follows the policy.": "ref_model",
    # Rewards
    "`reward_funcs`": (
        "reward_model* reward_functions reward_func reward_fn custom_reward_function.* reward_model.* reward_function "
        "reward rewards"
    ),
    "The reward is a weighted sum: `reward_weights`.": "multi_objective_aggregation",
    "A reward function is a plain Python function: `reward_funcs`. Load a reward model inside it.": (
        "reward_processing_classes"
    ),
    # Examples and evaluation
    "`num_rows`": "max_*_samples",
    ("`num_rows`", "`evaluation.num_rows`"): "rows",
    "`task.prompt_column`": "*prompt_key",
    "Examples come from the task: set `task.type` to dataset and task.path to a file.": (
        "train_dataset eval_dataset dataset dataset_* train_file data.*files *train_files *val_files *validation_file "
        "test_file eval_file"
    ),
    "The options depend on the task. To list them: unmask tasks NAME": "task.?",
    "Examples are held in memory, so there is no data loader.": "dataloader_* data_collator",
    "`seed` decides the order of the prompts.": "shuffle_dataset train_sampling_strategy",
    "Reward functions receive every column of an example; no column is removed.": "remove_unused_columns",
    "`evaluation`": "eval",
    "`evaluation.batch_size`": (
        "per_device_eval_batch_size eval_batch_size eval_accumulation_steps val_batch_size evaluation.batch"
    ),
    "`evaluation.num_rows`": "*_samples_per_task",
    ("`evaluation.num_rows`", "`num_rows`"): "evaluation.n *eval_samples eval_rows test_rows limit",
    "`evaluation.temperatures`": "sampler.eval_temperature eval_temperature",
    "`evaluation.eval_steps`": (
        "test_freq eval_freq eval_interval eval_every* evaluation.steps evaluation.every evaluation.interval "
        "evaluation.freq*"
    ),
    "An evaluation takes place every `evaluation.eval_steps` steps, before the first step and after the last.": (
        "eval_strategy evaluation_strategy eval_on_start eval_delay do_eval val_before_train"
    ),
    "Evaluation during a run takes one completion for each example; unmask eval --samples takes more.": (
        "num_generations_eval"
    ),
    "The task measures accuracy. Other numbers can be reward functions with a weight of 0.": "compute_metrics",
    "unmask train trains, and unmask eval evaluates.": "do_train do_predict",
    # The model
    "`model`": "model_name* model_path pretrained *rollout_ref.model.*",
    "Set `precision` to bf16 or float32; it covers the weights and all forward passes.": (
        "dtype torch_dtype mixed_precision amp *_full_eval"
    ),
    "`compile`": "torch_compile*",
    "`gradient_checkpointing`": "activation_checkpointing* gradient_checkpointing_kwargs enable_gradient_checkpointing",
    "Set `precision` to bf16.": "bf16",
    "Set `precision` to bf16 or float32; fp16 is not supported.": "fp16",
    "Set `precision` to bf16 or float32; fp8 is not supported.": "fp8",
    "Logits are always float32, also with `precision` bf16.": "cast_lm_head_to_fp32 enable_fp32_lm_head",
    "`precision` is the only setting of number formats.": "tf32 model_init_kwargs",
    "Memory depends on `rollout_batch_size`, `views_per_forward`, `max_tokens_per_forward` and `gradient_checkpointing`.": (
        "use_liger_* liger_* torch_empty_cache_steps"
    ),
    "Set `max_tokens_per_forward` to auto.": "auto_find_batch_size",
    "The model's dropout is always off; adapters have `lora.dropout`.": "disable_dropout",
    "The class of the model decides how attention is computed; there is no setting for it.": "attn_implementation",
    "Download the revision first and set `model` to its folder: hf download ID --revision NAME --local-dir FOLDER.": (
        "model_revision"
    ),
    "The tokenizer is the one in the model's folder.": "tokenizer* padding_side pad_token*",
    "The id of the mask token comes from the model's tokenizer.": "mask_id mask_token_id",
    "Code in a checkpoint is never run; unmask convert makes a native model from a released one.": "trust_remote_code",
    "The hub's own environment variables, such as HF_TOKEN and HF_HOME, set how it is reached.": "cache_dir hf_token token",
    # Adapters
    "To turn on low-rank adapters, set any key under `lora`, such as lora.r=16.": "peft_config use_peft use_lora",
    "`lora.r`": "rank lora_r lora_rank",
    "`lora.alpha`": "lora_alpha",
    "`lora.dropout`": "lora_dropout",
    "`lora.targets`": "*target_modules",
    "Set `lora.quantize` to 4bit.": "load_in_4bit use_4bit",
    "Weights can be quantized to 4 bits only: `lora.quantize`.": "load_in_8bit",
    "Weights can be quantized to 4 bits: `lora.quantize`.": "quantization*",
    # What a run writes
    "`output_dir`": "output out",
    "`output_dir` is the run folder. It is never overwritten: use another one, or --resume to continue it.": (
        "default_local_dir overwrite_output_dir"
    ),
    "A run has the name of its folder: `output_dir`.": "run_name project",
    "`report_to`": "log_with loggers trackers logger",
    "Set `report_to` to wandb.": "wandb",
    "Set `report_to` to trackio.": "trackio_*",
    "Set `report_to` to the tracker's name. A run has the name of its folder, and the tracker's own environment "
    "variables set the rest.": "wandb_* project_name experiment_name entity",
    "Every step is written to metrics.jsonl in the run folder, so there is no interval to set.": (
        "logging_* log_level* log_on_each_node log_interval log_freq log_every*"
    ),
    "Rollouts are saved in the run folder every `log_rollouts_steps` steps.": "log_completions*",
    "A saved rollout holds all completions of `log_rollouts_groups` prompts.": "log_unique_prompts num_completions_to_print",
    "`save_steps`": "save_freq save_interval checkpoint_interval",
    "A checkpoint is written every `save_steps` steps, and the newest `save_total_limit` checkpoints are kept.": (
        "save_strategy save_every save_only_model save_on_each_node"
    ),
    "With `evaluation.split` set to validation, the best model is saved in best/.": (
        "load_best_model_at_end metric_for_best_model greater_is_better"
    ),
    "The finished model is pushed to the repository `push_to_hub`; the hub has no other settings.": "hub_*",
    "A run starts from the folder `model`, which may be a checkpoint of a run; --resume continues a run.": (
        "checkpoint* ckpt* init_from"
    ),
    "To continue a run, repeat its command with --resume.": "resume_from_checkpoint ignore_data_skip resume_mode resume",
    "`deterministic`": "full_determinism",
    "In Python, give Trainer a function of the step and its metrics: observe=my_function.": "callbacks",
    # The machine
    "A GPU is used if there is one. The environment variable CUDA_VISIBLE_DEVICES selects GPUs; empty, it hides them.": (
        "use_cpu no_cuda device device_map"
    ),
    "How ranks share a model is chosen outside the recipe: "
    'accelerate launch --config_file "$(unmask preset zero3)" -m unmask train RECIPE.': (
        "deepspeed fsdp* ddp_* ds3_gather_for_generation local_rank accelerator_config parallelism_config *gpus_per_node "
        "num_gpus n_gpu* nnodes num_nodes num_processes world_size master_*"
    ),
    "The recipe is the command's first argument, a shipped name or a YAML file.": "config recipe",
    # No counterpart
    "It is a setting of transformers' Trainer or of TRL that has no counterpart here.": (
        "eval_* average_tokens_across_devices batch_eval_metrics debug disable_tqdm enable_jit_checkpoint "
        "include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor length_column_name "
        "neftune_noise_alpha prediction_loss_only restore_callback_states_from_checkpoint skip_memory_metrics"
    ),
}
"""Names that each answer applies to, separated by spaces."""

ANSWERS: dict[str, Answer] = {
    name: answer
    for name, answer in sorted(
        ((name, answer) for answer, names in NAMES.items() for name in names.split()), key=lambda entry: -len(entry[0])
    )
}
"""Answer to each name or pattern. Longer patterns come first, so that the first match is the most
specific one."""

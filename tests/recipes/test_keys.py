"""Answers to unknown keys: the right key for each name that others use, and never a key of another
meaning."""

from __future__ import annotations

import dataclasses
import re

import pytest

from tests.helpers.messages import raises
from unmask.core.errors import ConfigError
from unmask.methods import METHODS
from unmask.recipes.evaluation import EvalRecipe, load_evaluation
from unmask.recipes.keys import Places, counterpart, explain_unknown
from unmask.recipes.load import load, load_recipe
from unmask.recipes.other_names import ANSWERS
from unmask.recipes.schema import PretrainRecipe, RunRecipe, TrainRecipe
from unmask.trainer.comparison.recipe import CompareRecipe

KINDS = (TrainRecipe, PretrainRecipe, CompareRecipe, EvalRecipe)

# Settings of TRL's GRPOConfig that transformers' TrainingArguments lacks.
GRPO = """
    model_init_kwargs disable_dropout cast_lm_head_to_fp32 num_generations num_generations_eval max_completion_length
    max_prompt_length ds3_gather_for_generation shuffle_dataset generation_batch_size steps_per_generation temperature top_p
    top_k min_p generation_kwargs chat_template_kwargs repetition_penalty use_transformers_paged cache_implementation use_vllm
    vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host
    vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
    vllm_tensor_parallel_size beta num_iterations epsilon delta epsilon_high sapo_temperature_neg sapo_temperature_pos
    importance_sampling_level reward_weights multi_objective_aggregation scale_rewards loss_type mask_truncated_completions
    sync_ref_model ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile max_tool_calling_iterations
    vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_cap off_policy_mask_threshold
    use_bias_correction_kl log_completions num_completions_to_print log_unique_prompts log_completions_hub_repo
    logging_steps bf16 warmup_ratio lr_scheduler_type peft_config train_dataset eval_dataset reward_funcs
""".split()  # noqa: SIM905

EXPECTED = {
    "temperature": "sampler.temperature",
    "top_p": "sampler.top_p",
    "top_k": "sampler.top_k",
    "lr": "optim.learning_rate",
    "learning_rate": "optim.learning_rate",
    "weight_decay": "optim.weight_decay",
    "warmup_steps": "optim.warmup_steps",
    "max_grad_norm": "optim.max_grad_norm",
    "adam_beta1": "optim.betas",
    "eval_steps": "evaluation.eval_steps",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "num_selected": "method.num_selected",
    "beta": "method.beta",
    "epsilon": "method.epsilon",
    "epsilon_high": "method.epsilon_high",
    "max_completion_length": "sampler.max_completion_length",
    "gen_length": "sampler.max_completion_length",
    "diffusion_steps": "sampler.num_steps",
    "num_train_epochs": "max_steps",
    "per_device_train_batch_size": "num_prompts",
    "batch_size": "num_prompts",
    "gradient_accumulation_steps": "views_per_forward",
    "bf16": "precision",
    "torch_dtype": "precision",
    "mixed_precision": "precision",
    "peft_config": "lora",
    "lora_alpha": "lora.alpha",
    "loss_type": "method.type",
    "max-steps": "max_steps",
    "min_blanks": "task.min_blanks",
    "tempreature": "sampler.temperature",
    "task_type": "task.type",
    "eval_num_rows": "evaluation.num_rows",
    "eval_freq": "evaluation.eval_steps",
    "save_freq": "save_steps",
    "k": "method.num_selected",
    "G": "num_generations",
    "logger": "report_to",
    "beta1": "optim.betas",
}

SECTIONS = {
    "evaluation.temperature": "temperatures",
    "evaluation.steps": "eval_steps",
    "evaluation.n": "num_rows",
    "eval.num_rows": "evaluation.num_rows",
    "optim.beta1": "optim.betas",
    "sampler.seed": "seed",
    "method.k": "num_selected",
    "actor_rollout_ref.rollout.n": "num_generations",
    "actor_rollout_ref.actor.optim.lr": "optim.learning_rate",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "num_minibatches",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": "views_per_forward",
    "actor_rollout_ref.actor.kl_loss_coef": "method.beta",
    "actor_rollout_ref.model.path": "model",
    "algorithm.kl_ctrl.kl_coef": "method.beta",
    "algorithm.adv_estimator": "method.type",
    "data.train_files": "task.type",
    "data.max_response_length": "sampler.max_completion_length",
    "trainer.total_epochs": "max_steps",
    "trainer.test_freq": "evaluation.eval_steps",
    "custom_reward_function.path": "reward_funcs",
    "reward_model.enable": "reward_funcs",
}
"""Names of verl, and names in sections of this project where they have a meaning of their own."""


def refused(override: str, kind: type[RunRecipe] = TrainRecipe, source: str = "sudoku-tiny") -> str:
    """Return the message that refuses an override."""
    with raises(ConfigError) as caught:
        load(kind, source, [override])
    return str(caught.value)


def keys_named(message: str) -> list[str]:
    """Return the keys that a message suggests, without the list of all available keys."""
    return re.findall(
        r"[a-z]\w*(?:\.\w+)+|\b[a-z]+(?:_[a-z]+)+\b", message.partition("Available:")[0].partition(". ")[2]
    )


@pytest.mark.parametrize(("name", "key"), EXPECTED.items())
def test_a_name_from_elsewhere_is_answered_with_the_key(name: str, key: str) -> None:
    message = refused(f"{name}=1")
    assert f'"{name}"' in message
    assert re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.]*\w)", message.partition("Available:")[0])
    assert "\n" not in message


@pytest.mark.parametrize(("name", "key"), SECTIONS.items())
def test_a_name_in_a_section_is_answered_with_the_key(name: str, key: str) -> None:
    message = refused(f"{name}=1")
    section, _, key_of_section = name.rpartition(".")
    assert message.startswith((f'{section} has no setting "{key_of_section}". ', f'unknown key "{name}". '))
    assert re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.]*\w)", message)


def test_each_known_key_of_a_section_that_does_not_exist_is_answered() -> None:
    with raises(ConfigError) as caught:
        load_recipe("sudoku-tiny", {"trainer": {"logger": "wandb", "save_freq": 5, "frobnicate": 1}})
    first, second = str(caught.value).splitlines()
    assert '"trainer.logger"' in first
    assert '"report_to"' in first
    assert '"trainer.save_freq"' in second
    assert '"save_steps"' in second
    message = refused("trainer.frobnicate=1")
    assert '"trainer"' in message
    assert "Available: " in message


def test_a_value_model_is_not_answered_with_the_policy() -> None:
    assert "There is no value model" in refused("critic.model.path=x")


def test_a_setting_of_another_command_names_that_command() -> None:
    for override in ("max_steps=3", "optim.learning_rate=1", "method.type=espo", "evaluation.eval_steps=5"):
        with raises(ConfigError, "unmask train"):
            load_evaluation({"task.type": "sudoku"}, [override])
    with raises(ConfigError, "samples"):
        load_evaluation({"task.type": "sudoku"}, ["num_generations=4"])
    assert "It is a setting of unmask pretrain." in refused("tiny.width=32")
    assert "It is a setting of unmask pretrain." in refused("noise_share=0.5")


def test_two_keys_for_the_temperature_of_an_evaluation_are_refused() -> None:
    with raises(ConfigError, "sampler.temperature", "evaluation.temperatures"):
        load_evaluation({"task.type": "sudoku"}, ["sampler.temperature=0.5", "evaluation.temperatures=0.9"])
    # The default of --temperature does not count as a second value.
    _, samplers = load_evaluation(
        {"task.type": "sudoku", "evaluation.temperatures": [0.0]}, ["sampler.temperature=0.5"]
    )
    assert [sampler.temperature for sampler in samplers] == [0.5]


@pytest.mark.slow
def test_every_setting_of_trl_and_transformers_is_a_key_or_is_explained() -> None:
    from transformers import TrainingArguments

    known = Places(TrainRecipe, {"method": {"type": "egspo_sa"}, "task": {"type": "sudoku"}})
    names = [*GRPO, *(field.name for field in dataclasses.fields(TrainingArguments))]
    assert len(names) > 150
    for name in names:
        if name in TrainRecipe.model_fields:
            continue
        assert known.answer([name]) is not None, name
        # Answers come from the table, never from a resemblance of letters.
        assert "Available" not in explain_unknown(TrainRecipe, [name], 1, {})


def test_every_key_in_the_table_is_a_key_of_some_recipe() -> None:
    keys = {key for kind in KINDS for key in Places(kind, {}).owners}
    for name, texts in ANSWERS.items():
        for text in [texts] if isinstance(texts, str) else texts:
            assert set(re.findall(r"`(.+?)`", text)) <= keys, name


@pytest.mark.parametrize("name", ["num_workers", "gradient", "entropy", "top_n", "best_of", "tau", "warm", "x"])
def test_a_name_that_only_looks_a_little_like_a_key_gets_no_suggestion(name: str) -> None:
    message = refused(f"{name}=1")
    assert f'"{name}". Available: ' in message


def test_a_key_of_one_section_is_found_from_another() -> None:
    assert refused("optim.temperature=1") == 'optim has no setting "temperature". Did you mean "sampler.temperature"?'
    assert refused("optim.lr=1") == 'optim has no setting "lr". Did you mean "learning_rate"?'
    assert (
        refused("trainer.max_steps=1") == 'unknown key "trainer.max_steps". Did you mean the top-level key "max_steps"?'
    )
    assert refused("eval.num_rows=1") == 'unknown key "eval.num_rows". Did you mean "evaluation.num_rows"?'
    assert refused("optim.num_rows=1") == 'optim has no setting "num_rows". Did you mean the top-level key "num_rows"?'


def test_an_option_of_another_method_or_task_names_its_owners() -> None:
    owners = sorted(name for name, method in METHODS.items() if "num_samples" in method.model_fields)
    for override in ("num_samples=2", "method.num_samples=2"):
        message = refused(override)
        assert (
            f"method.num_samples is an option of {', '.join(owners)}, and this recipe's method is egspo_sa" in message
        )
    assert "task.path is an option of dataset, and this recipe's task is sudoku." in refused("path=rows.csv")
    # The method that the recipe has decides, not the one that it might have.
    with raises(ConfigError, "method.num_samples"):
        load_recipe("sudoku-tiny", ["method.type=espo", "num_samples=2"])


def test_a_pretraining_recipe_and_a_comparison_are_answered_with_their_own_keys() -> None:
    pretrain = {"lr": "optim.learning_rate", "num_train_epochs": "batch_size", "width": "tiny.width"}
    pretrain |= {"length": "max_completion_length", "max_length": "tiny.max_length"}
    for name, key in pretrain.items():
        message = refused(f"{name}=1", PretrainRecipe, "sudoku-tiny-base")
        assert key in keys_named(message) or key in message, name
        assert "sampler" not in message
    assert explain_unknown(CompareRecipe, ["seed"], 1, {}) == 'unknown key "seed". Did you mean "seeds"?'
    assert "tasks.NAME.overrides.sampler.temperature" in explain_unknown(CompareRecipe, ["temperature"], 1, {})


def test_an_option_that_a_command_lacks_is_answered_with_what_to_write() -> None:
    start = "Write settings as key=value, without dashes: "
    assert counterpart(TrainRecipe, "--learning_rate", "1e-4") == f"{start}optim.learning_rate=1e-4."
    assert counterpart(TrainRecipe, "--max-steps", "3") == f"{start}max_steps=3."
    assert counterpart(TrainRecipe, "--optim.lr", "3") == f"{start}optim.learning_rate=3."
    assert counterpart(TrainRecipe, "--sampler.temperature", "1") == f"{start}sampler.temperature=1."
    assert "There are no epochs" in str(counterpart(TrainRecipe, "--num_train_epochs", "3"))
    assert counterpart(TrainRecipe, "--frobnicate", "3") is None

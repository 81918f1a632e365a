#!/bin/bash
# One machine under accelerate, with a shipped preset.
accelerate launch --config_file "$(unmask launch --show zero3)" --num_processes 8 --main_process_port 0 \
    -m unmask train published/egspo-sa-llada-gsm8k num_prompts=8 --resume

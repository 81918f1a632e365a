#!/bin/bash
# One machine of 8 GPUs under accelerate, with a shipped preset. Without adapters, shard the weights: zero3 or fsdp2 instead of ddp.
accelerate launch --config_file "$(unmask preset ddp)" --num_processes 8 --main_process_port 0 \
    -m unmask train published/egspo-sa-llada-gsm8k num_prompts=8 --resume

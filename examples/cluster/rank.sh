#!/bin/bash
# Runs `unmask` as one rank of a job, in a task that srun started. torch reads these variables. Because no launcher stands between
# srun and unmask, a signal reaches every rank once, and the job sees unmask's own exit code.
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=${SLURM_STEP_TASKS_PER_NODE%%[(,]*}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
# Each job has a port of its own, because jobs may share a node.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
exec unmask "$@"

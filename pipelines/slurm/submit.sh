#!/usr/bin/env bash
# The whole way as jobs that wait for each other: align, its end, cache-teacher, its end, training.
#
#     TEACHER=Qwen/Qwen2.5-7B STUDENT=openai-community/gpt2 DATA=my.jsonl \
#       ALIGN_TASKS=16 CACHE_TASKS=32 NODES=2 bash pipelines/slurm/submit.sh
#
# NODES left out: no training. SBATCH_OPTIONS (an account, a partition) go to every sbatch; README.md beside this says more.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${TEACHER:?}" "${STUDENT:?}" "${DATA:?}"
export TEACHER STUDENT DATA SHARDS=${SHARDS:-shards}
unset TASKS # each array counts its own

submit() { # says the number of the job
  # shellcheck disable=SC2086 # several words
  sbatch --parsable ${SBATCH_OPTIONS:-} "$@" | cut -d ';' -f 1
}

align=$(submit --array="0-$((${ALIGN_TASKS:-4} - 1))" "$here/align.sbatch")
aligned=$(STEP=align submit --dependency="afterany:$align" "$here/finish.sbatch")
cache=$(submit --dependency="afterok:$aligned" --array="0-$((${CACHE_TASKS:-4} - 1))" "$here/cache-teacher.sbatch")
cached=$(STEP=cache-teacher submit --dependency="afterany:$cache" --gpus-per-task=1 "$here/finish.sbatch")
echo "align $align, then $aligned; cache-teacher $cache, then $cached"
if [ -n "${NODES:-}" ]; then
  train=$(submit --dependency="afterok:$cached" --nodes="$NODES" "$here/train.sbatch")
  echo "training $train"
fi

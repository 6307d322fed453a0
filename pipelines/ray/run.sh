#!/usr/bin/env bash
# On the head of a Ray cluster: align and cache-teacher by its actors. Started again, it does what is missing.
#
#     TEACHER=Qwen/Qwen2.5-7B STUDENT=openai-community/gpt2 DATA=my.jsonl SHARDS=/mnt/shards bash pipelines/ray/run.sh
#
# RAY_ADDRESS names the cluster (default: the one of this machine).
set -euo pipefail
: "${TEACHER:?}" "${STUDENT:?}" "${DATA:?}"
export RAY_ADDRESS=${RAY_ADDRESS:-auto}
shards=${SHARDS:-shards}

# shellcheck disable=SC2086 # several words
sra-data align --teacher "$TEACHER" --student "$STUDENT" --data "$DATA" --out "$shards" --engine ray ${ALIGN_OPTIONS:-}
# shellcheck disable=SC2086 # several words
sra-data cache-teacher "$shards" --teacher "$TEACHER" --engine ray ${CACHE_OPTIONS:-}
sra-data verify "$shards"

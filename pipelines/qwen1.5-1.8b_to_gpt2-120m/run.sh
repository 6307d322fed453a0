#!/usr/bin/env bash
# The whole run; every step resumes by itself when the script is started again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
DATA=${DATA:-databricks/databricks-dolly-15k:train}
TEACHER=${TEACHER:-Qwen/Qwen1.5-1.8B}
OUT=${OUT:-runs/qwen1.5-1.8b_to_gpt2-120m}
dev=(${DEV_DATA:+--dev-data "$DEV_DATA"})

# 1. The teacher learns the task: aligned with itself, trained with cross-entropy alone.
sra-data align --config "$here/data.yaml" --teacher "$TEACHER" --student "$TEACHER" --data "$DATA" "${dev[@]}" \
  --out "$OUT/teacher-shards"
sra-train run "$OUT/teacher-shards" --config "$here/teacher.yaml" --output-dir "$OUT/teacher"

# 2. and 3. Its pages, once.
sra-data align --config "$here/data.yaml" --teacher "$OUT/teacher/model" --data "$DATA" "${dev[@]}" --out "$OUT/shards"
sra-data cache-teacher "$OUT/shards" --config "$here/data.yaml"

# 4. The student, without the teacher.
sra-train run "$OUT/shards" --config "$here/train.yaml" --output-dir "$OUT/student"

# 5. Judge it on text it has not seen.
if [ -n "${TEST_DATA:-}" ]; then
  sra-train evaluate "$OUT/student/model" --data "$TEST_DATA" --rouge
fi

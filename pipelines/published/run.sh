#!/usr/bin/env bash
# One published pair, from the teacher's fine-tuning to the table; started again, it goes on where it stood.
#
#     bash pipelines/published/run.sh qwen1.5-1.8b_to_gpt2-120m
#
# README.md beside this says what the environment may override; PLAN=1 prints the commands and runs none.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
pair=${1:-}
python=${PYTHON:-python3}

fail() {
  echo "$*" >&2
  exit 2
}

show() {
  { printf '$' && printf ' %q' "$@" && echo; } >&2
}

call() { # run a command, showing it
  show "$@"
  [ -n "${PLAN:-}" ] || "$@"
}

keep() { # the same, what it says into a file that appears once it is whole; a file that is there is kept
  local file=$1
  shift
  [ ! -s "$file" ] || return 0
  show "$@"
  [ -z "${PLAN:-}" ] || return 0
  mkdir -p "$(dirname "$file")"
  "$@" >"$file.partial"
  mv "$file.partial" "$file"
}

row=$(awk -v pair="$pair" '$1 == pair' "$here/pairs.txt")
[ -n "$row" ] || fail "run.sh: no pair '$pair'; one of" $(awk '!/^#/ { print $1 }' "$here/pairs.txt")
read -r _ teacher student teacher_recipe student_recipe epochs alpha _ <<<"$row"
teacher=${TEACHER:-$teacher} student=${STUDENT:-$student} epochs=${EPOCHS:-$epochs}
OUT=${OUT:-runs/published/$pair}

# 0. The data: Dolly from the Hub, cut here, where nothing else is named.
if [ -z "${DATA:-}" ]; then
  [ -d "$OUT/data" ] || call "$python" "$here/cut.py" databricks/databricks-dolly-15k:train "$OUT/data"
  DATA=$OUT/data/train.jsonl DEV_DATA=$OUT/data/dev.jsonl SETS=${SETS:-dolly=$OUT/data/test.jsonl}
fi
[ -n "${SETS:-}" ] || fail "run.sh: DATA without SETS; name what is judged on, say SETS='dolly=dolly/test.jsonl'"

align() { # teacher, student, shards
  call sra-data align --config "$here/data.yaml" --teacher "$1" --student "$2" --data "$DATA" \
    ${DEV_DATA:+--dev-data "$DEV_DATA"} --out "$3"
}

# 1. The teacher learns the task: aligned with itself, trained with cross-entropy alone.
align "$teacher" "$teacher" "$OUT/teacher-shards"
call sra-train run "$OUT/teacher-shards" --config "$here/$teacher_recipe.yaml" \
  ${MAX_STEPS:+--max-steps "$MAX_STEPS"} ${RUN_OPTIONS:-} --output-dir "$OUT/teacher"

# 2. and 3. What caching it will take, and its pages, once.
align "$OUT/teacher/model" "$student" "$OUT/shards"
keep "$OUT/estimate.txt" sra-data estimate "$OUT/shards" --config "$here/data.yaml" --epochs "$epochs"
[ -n "${PLAN:-}" ] || cat "$OUT/estimate.txt"
call sra-data cache-teacher "$OUT/shards" --config "$here/data.yaml"

# 4. The student, without the teacher: by SRA, and by cross-entropy alone for comparison.
train() { # method, options
  call sra-train run "$OUT/shards" --config "$here/$student_recipe.yaml" --method "$@" --epochs "$epochs" \
    ${MAX_STEPS:+--max-steps "$MAX_STEPS"} ${RUN_OPTIONS:-} --output-dir "$OUT/$1"
}
train sft
train sra --set "method.alpha=$alpha"

# 5. All three judged on the same text, set by set.
for set in $SETS; do
  keep "$OUT/evaluation/${set%%=*}.json" sra-train evaluate "$OUT/teacher/model" "$OUT/sft/model" "$OUT/sra/model" \
    --data "${set#*=}" --rouge --json ${SEEDS:+--seeds "$SEEDS"} ${MAX_NEW_TOKENS:+--max-new-tokens "$MAX_NEW_TOKENS"} \
    ${MAX_EXAMPLES:+--max-examples "$MAX_EXAMPLES"} ${DTYPE:+--dtype "$DTYPE"}
done
[ -n "${PLAN:-}" ] || "$python" "$here/table.py" "$pair" "$OUT/evaluation" | tee "$OUT/table.txt"

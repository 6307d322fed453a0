"""A stand-in for SLURM: `sbatch` runs a job at once, task after task, from a copy of its script, as SLURM does.

`LOST_TASKS` names tasks that never run, as on nodes that die: "align:1 cache-teacher:2". Every job's words and its log
are kept beside the commands.
"""

from __future__ import annotations

from pathlib import Path

SBATCH = """#!/usr/bin/env bash
set -euo pipefail
here=${0%/*}
array= nodes=1
printf '%s\\n' "$*" >>"$here/submitted"
while [[ ${1:-} == --* ]]; do
  case $1 in
    --array=*) array=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
  esac
  shift
done
name=$(basename "$1" .sbatch)
job=$(($(cat "$here/jobs" 2>/dev/null || echo 100) + 1))
echo "$job" >"$here/jobs"
script=$here/spooled-$job
cp "$1" "$script" # where it is run from says nothing of where it was written
export SLURM_JOB_ID=$job SLURM_JOB_NAME=$name SLURM_JOB_NUM_NODES=$nodes SLURM_JOB_NODELIST="localhost[0-9]"
export SLURM_CPUS_PER_TASK=1
if [ -z "$array" ]; then
  bash "$script" >"$here/$name-$job.log" 2>&1 || { cat "$here/$name-$job.log" >&2; exit 1; }
  echo "$job;cluster"
  exit
fi
tasks=()
for part in ${array//,/ }; do
  part=${part%%%*}
  for task in $(seq "${part%-*}" "${part#*-}"); do tasks+=("$task"); done
done
export SLURM_ARRAY_JOB_ID=$job SLURM_ARRAY_TASK_COUNT=${#tasks[@]}
export SLURM_ARRAY_TASK_MIN=${tasks[0]} SLURM_ARRAY_TASK_MAX=${tasks[-1]}
for task in "${tasks[@]}"; do
  [[ " ${LOST_TASKS:-} " != *" $name:$task "* ]] || continue
  log=$here/$name-${job}_$task.log
  SLURM_ARRAY_TASK_ID=$task bash "$script" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
done
echo "$job;cluster"
"""

# With a process on every node where the job has several.
SRUN = """#!/usr/bin/env bash
set -euo pipefail
tasks=1
while [[ ${1:-} == --* ]]; do
  case $1 in --ntasks=*) tasks=${1#*=} ;; esac
  shift
done
started=()
for ((node = 1; node < tasks; node++)); do
  SLURM_NODEID=$node SLURM_PROCID=$node "$@" &
  started+=($!)
done
SLURM_NODEID=0 SLURM_PROCID=0 "$@"
for one in "${started[@]}"; do wait "$one"; done
"""

SCONTROL = """#!/usr/bin/env bash
[ "$1 $2 $3" = "show hostnames localhost[0-9]" ] || exit 64
echo localhost
echo second
"""


def install(folder: Path) -> None:
    """Put the commands into a folder of the PATH."""
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(script, encoding="utf-8")
        (folder / name).chmod(0o755)

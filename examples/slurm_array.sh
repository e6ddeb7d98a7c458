#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A whole study on SLURM: an array with one job a participant, and a last job that looks at all.
#
#   examples/slurm_array.sh BIDS_DIR OUTPUT_DIR [option of eddymotion …]
#
# submits the array; run it again after failures: what is finished is not done again. Set in the
# environment, if need be:
#
#   CPUS=4 MEM_GB=8 HOURS=4   of each job          AT_ONCE=50   jobs at the same time
#   SBATCH_PARTITION, SBATCH_ACCOUNT, …            whatever else sbatch takes from there
#   SETUP='module load python; source env/bin/activate'   run first in each job
#
# BIDS_DIR, OUTPUT_DIR and the program must be where all hosts see them.
set -euo pipefail

fail() {
    echo "slurm_array.sh: $*" >&2
    exit 2
}

participants() {  # labels of those that have diffusion series
    find -L "$1" -mindepth 3 -maxdepth 4 -path '*/sub-*/dwi/*_dwi.nii*' \
        | sed -n 's|.*/sub-\([^/_]*\)_[^/]*$|\1|p' | sort -u
}

submit() {
    [ $# -ge 2 ] || fail "write: slurm_array.sh BIDS_DIR OUTPUT_DIR [option …]"
    command -v sbatch > /dev/null || fail "no sbatch here; run this where jobs can be submitted"
    local bids output logs list n array here
    bids=$(realpath "$1") && output=$(realpath -m "$2") && shift 2
    logs=$output/logs/slurm
    mkdir -p "$logs"
    list=$logs/participants-$(date +%Y%m%d-%H%M%S)-$$.txt
    participants "$bids" > "$list"
    n=$(wc -l < "$list")
    [ "$n" -gt 0 ] || fail "$bids: no sub-*/dwi/*_dwi.nii.gz in there; give the root of a BIDS dataset"
    here=$(realpath "$0")  # SLURM runs a copy
    array=$(sbatch --parsable --job-name=eddymotion --array="1-$n%${AT_ONCE:-50}" \
        --cpus-per-task="${CPUS:-4}" --mem="${MEM_GB:-8}G" --time="$((60 * ${HOURS:-4}))" \
        --output="$logs/%A_%a.txt" "$here" participant "$list" "$bids" "$output" "$@")
    sbatch --parsable --job-name=eddymotion-all --dependency="afterany:${array%%;*}" \
        --cpus-per-task=1 --mem=2G --time=60 --output="$logs/%j.txt" \
        "$here" all "$bids" "$output" > "$list.all"
    echo "$n participants: array ${array%%;*}, then job $(cat "$list.all"); their output: $logs"
    rm "$list.all"
}

# 1: some series failed, told in the output of the job
one_participant() {
    local list=$1 bids=$2 output=$3
    shift 3
    exec eddymotion "$bids" "$output" participant --skip-bids-validation \
        --participant-label "$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list")" \
        --nprocs "$SLURM_CPUS_PER_TASK" --mem-gb "$((SLURM_MEM_PER_NODE / 1000))" "$@"
}

eval "${SETUP:-}"
if [ -z "${SLURM_JOB_ID:-}" ]; then
    submit "$@"
elif [ "$1" = participant ]; then
    one_participant "${@:2}"
else
    exec eddymotion "$2" "$3" participant --skip-bids-validation --reports-only
fi

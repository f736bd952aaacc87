#!/bin/bash
# A command on a Ray cluster that lives as long as this Slurm job:
#
#   sbatch --nodes=4 --gpus-per-node=8 deploy/slurm.sh pipeline --preset paper --out runs/paper --workers 256
#
# Submit it in the root of the repository, on a file system that all nodes share, after `make setup`. Before the time is
# up the command gets Ctrl+C, so that it saves its work; submitted again, with --resume where the command has it, it
# continues. ROMs of the folder AUTOEXPLORE_ROMS are imported first, and RAY_START_OPTIONS is added to `ray start`.
#
# Not `ray symmetric-run`: it ends with `ray stop`, which ends every Ray of yours on a node, also that of another job,
# and waits no longer than 30 s for the nodes.
#SBATCH --job-name=autoexplore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --output=slurm-%j.log
set -euo pipefail

PATH=$PWD/.venv/bin:$PATH
seconds_to_start=300
if [ $# -eq 0 ]; then set -- pipeline --preset paper --out runs/paper; fi

# A token for this job alone; srun hands it to the nodes in their environment.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export PATH RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
count=${#nodes[@]}
head=${nodes[0]}
on_head=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head")
on_others=(srun --overlap --nodes=$((count - 1)) --ntasks=$((count - 1)) --exclude="$head")
read -r head_ip _ < <("${on_head[@]}" hostname --ip-address)
# Another job may share the head's machine if --exclusive is taken away.
export RAY_ADDRESS=$head_ip:$((20000 + SLURM_JOB_ID % 10000))

srun --overlap --nodes="$count" --ntasks="$count" python -m envs.roms

# The steps end with the job; `ray start --block` ends its processes with itself.
trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT
common=(--block --temp-dir="/tmp/ray-$SLURM_JOB_ID" ${RAY_START_OPTIONS:-})
"${on_head[@]}" ray start --head --node-ip-address="$head_ip" --port="${RAY_ADDRESS##*:}" \
    --include-dashboard=false "${common[@]}" &
deadline=$((SECONDS + seconds_to_start))
until ray health-check --address="$RAY_ADDRESS" > /dev/null 2>&1; do
    if [ $SECONDS -gt $deadline ]; then echo "the head on $head did not start" >&2; exit 1; fi
    sleep 2
done
if [ "$count" -gt 1 ]; then
    "${on_others[@]}" ray start --address="$RAY_ADDRESS" "${common[@]}" &
fi
python - "$count" "$seconds_to_start" << 'END'
import sys, time
import ray

count, seconds = map(int, sys.argv[1:])
ray.init(logging_level="ERROR", log_to_driver=False)
deadline = time.monotonic() + seconds
while (alive := sum(node["Alive"] for node in ray.nodes())) < count:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {count} nodes have joined after {seconds} s")
    time.sleep(2)
END

# In the background, so that bash takes Slurm's signal at once; such a process would ignore Ctrl+C, which is SIGINT.
env --default-signal=INT autoexplore "$@" &
command=$!
trap 'kill -INT $command' USR1
status=0
wait $command || status=$?
# After a signal `wait` returns before the command has ended.
while kill -0 $command 2> /dev/null; do wait $command || status=$?; done
exit $status

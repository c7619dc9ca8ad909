#!/bin/bash
# One study on a Slurm cluster: Ray on all nodes of the allocation, the driver on the first.
#   sbatch jobs/cluster/slurm.sh run jobs/gpt2_124m_cluster.yaml --set studies_dir=/shared/studies
#   sbatch jobs/cluster/slurm.sh resume /shared/studies/gpt2_124m_cluster      # goes on after the time limit
# To stop it so that it can be resumed: scancel --batch --signal=TERM JOBID
# Before: install hybrid_ray into .venv of this folder, which all nodes share.
#SBATCH --job-name=hybrid-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=20
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
. .venv/bin/activate

RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
others=$((${#nodes[@]} - 1))
on_head=(srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}")
head=$("${on_head[@]}" hostname --ip-address | cut -d' ' -f1)
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs may share a node, so this one has ports and a folder of its own
export RAY_ADDRESS=$head:$port
options=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)

"${on_head[@]}" ray start --head --node-ip-address="$head" --port=$port --dashboard-port=$((port + 10000)) \
  --ray-client-server-port=$((port + 20000)) --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${options[@]}" &
until ray status --address "$RAY_ADDRESS" &> /dev/null; do
  kill -0 $! || exit 1 # Ray did not start
  sleep 2
done
if ((others > 0)); then
  srun --overlap --nodes=$others --ntasks=$others --exclude="${nodes[0]}" \
    ray start --address="$RAY_ADDRESS" "${options[@]}" &
fi

hybrid-ray "$@" &
driver=$!
trap 'kill -TERM $driver' TERM
code=0
wait $driver || code=$?
while kill -0 $driver 2> /dev/null; do wait $driver || code=$?; done # the signal has ended only the first wait
kill $(jobs -p) 2> /dev/null || true
exit $code

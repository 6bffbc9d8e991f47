# Functions shared by the job scripts, which source this file on the first node of a job. Scripts of
# earlier submissions (RUN/slurm/*.sbatch) source it too: keep the names of functions and variables.

say() { echo "[$(date +'%F %T')] $*"; }

# ---- The shape of the job, from SLURM
PROCESSES_PER_NODE=${SLURM_GPUS_ON_NODE:-$CPU_PROCESSES}
export ENGINE WORLD_SIZE=$((SLURM_JOB_NUM_NODES * PROCESSES_PER_NODE))
# What the site block has set stays; the job scripts forget what the submitting shell had set.
cpus=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}} # of a node's launcher
export SRUN_CPUS_PER_TASK=$cpus # srun does not inherit it from sbatch
threads=$((cpus / PROCESSES_PER_NODE))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

# ---- With GPUs: each rank on the cores next to its own GPU, by Accelerate, which needs NVIDIA's
# library. It counts all GPUs and cores of the node, so only where the job has the whole node.
# shellcheck disable=SC2086
if [ -n "${SLURM_GPUS_ON_NODE:-}" ] && [ "${SLURM_CPUS_ON_NODE:-}" = "$(nproc --all)" ] &&
    $CONTAINER python -c 'import pynvml' 2>/dev/null; then
    export ACCELERATE_CPU_AFFINITY=${ACCELERATE_CPU_AFFINITY:-1}
fi

# Makes the launchers forward SIGUSR1; by default it would kill them and leave their ranks behind.
# Two names, for older and newer versions of torch.
signals=${TORCHELASTIC_SIGNALS_TO_HANDLE:-${PET_SIGNALS_TO_HANDLE:-}}
signals=${signals:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2}
case ,$signals, in
    *,SIGUSR1,*) ;;
    *)
        say "TORCHELASTIC_SIGNALS_TO_HANDLE=$signals is without SIGUSR1, by which a job is told to" \
            "save: added"
        signals=$signals,SIGUSR1
        ;;
esac
export TORCHELASTIC_SIGNALS_TO_HANDLE=$signals PET_SIGNALS_TO_HANDLE=$signals
# Seconds that a launcher gives its ranks to save (default 30); large models need more.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}

# ---- Where the launchers meet: the first node, where this script runs, and a free port. The search
# starts at a port derived from the job's number, so that jobs do not try the same ports.
free_port() {
    python -c '
import socket, sys
job = int(sys.argv[1])
for port in (20000 + (job * 7 + number) % 10000 for number in range(10000)):
    with socket.socket() as one:
        try:
            one.bind(("", port))
        except OSError:
            continue
    sys.exit(print(port))' "$SLURM_JOB_ID"
}

# on_all_nodes SCRIPT ARGUMENTS...: run one `accelerate launch` per node until all have ended.
on_all_nodes() {
    HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    HEAD_PORT=$(free_port)
    export HEAD_NODE HEAD_PORT
    say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}: $SLURM_JOB_NUM_NODES node(s)" \
        "($SLURM_JOB_NODELIST) x $PROCESSES_PER_NODE process(es), $ENGINE," \
        "$OMP_NUM_THREADS thread(s) each, meeting at $HEAD_NODE:$HEAD_PORT"
    # In single quotes, so that variables are expanded on each node, not here. `exec`, so that
    # SLURM's signals reach the launcher. --wait: seconds for the others after the first node ended.
    # shellcheck disable=SC2086,SC2016
    exec srun --ntasks-per-node=1 --cpu-bind=cores --wait=120 $CONTAINER bash -c '
        exec accelerate launch --config_file "launch/accelerate/$ENGINE.yaml" \
            --num_machines "$SLURM_JOB_NUM_NODES" --machine_rank "$SLURM_NODEID" \
            --num_processes "$WORLD_SIZE" --rdzv_backend static \
            --main_process_ip "$HEAD_NODE" --main_process_port "$HEAD_PORT" "$@"' launcher "$@"
}

# ---- Signals. HEARD is the signal this script received, LAUNCH the process of srun.
HEARD= LAUNCH=

# SIGUSR1 reaches only this script: it is forwarded through srun and the launchers to the ranks.
forward() {
    HEARD=USR1
    say "SIGUSR1: asking the ranks to save and end (tracebacks of SignalException come from the" \
        "launchers and are harmless)"
    if [ -n "$LAUNCH" ]; then kill -USR1 "$LAUNCH" 2>/dev/null; fi
}

# SLURM sends SIGTERM to the whole job, launchers included. Forwarding it would end the launchers
# before their ranks have saved, and SIGTERM to srun would end the ranks at once.
only_note() {
    HEARD=TERM
    say "SIGTERM: SLURM is ending this job and has signalled the ranks too"
}

# Bash's `wait` also returns on a signal, so repeat it until the launch has really ended.
wait_for_launch() {
    while kill -0 "$LAUNCH" 2>/dev/null; do wait "$LAUNCH"; done
}

# Requeue this job under its number, unless it was cancelled or SLURM is requeueing it already. Of an
# array this task alone: one of its tasks has the array's number, which would mean all of them.
requeue() {
    local state job=$SLURM_JOB_ID
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
    state=$(squeue --noheader --jobs "$job" --format '%T %r')
    case $state in
        RUNNING* | *TimeLimit) ;;
        *)
            say "cancelled, or already requeued by SLURM ($state): not requeueing." \
                "If the job does not restart, submit it again to resume the run"
            exit 75
            ;;
    esac
    # SLURM ends the script of a requeued job; wait for that without leaving a process behind.
    sleep 120 &
    trap 'kill '$!' 2>/dev/null; exit 75' USR1 TERM
    if ! scontrol requeue "$job"; then
        say "SLURM refused to requeue this job; submit it again to resume from its last checkpoint"
        kill $!
        exit 75
    fi
    wait $!
    exit 75
}

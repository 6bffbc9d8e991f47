# What the job scripts share. Sourced by them on the first node of a job; runs nothing by itself.

say() { echo "[$(date +'%F %T')] $*"; }

# ---- The shape of the job, from SLURM alone
PROCESSES_PER_NODE=${SLURM_GPUS_ON_NODE:-$CPU_PROCESSES}
export ENGINE WORLD_SIZE=$((SLURM_JOB_NUM_NODES * PROCESSES_PER_NODE))
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE} # of one task, which is one node's launcher
export SRUN_CPUS_PER_TASK=$cpus                  # srun does not take it over from sbatch
OMP_NUM_THREADS=$((cpus / PROCESSES_PER_NODE))
export OMP_NUM_THREADS=$((OMP_NUM_THREADS > 0 ? OMP_NUM_THREADS : 1))

# The launchers hear SIGUSR1 and hand it on; unless told, they would die of it and leave their ranks.
# Two names: older and newer versions of torch.
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2
export PET_SIGNALS_TO_HANDLE=$TORCHELASTIC_SIGNALS_TO_HANDLE
# Seconds that a launcher gives its ranks to save (30 by default), for large models.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}

# ---- Where the launchers meet: the first node, where this script runs, and a port that is free.
# Looking begins at a place that the job's number gives, so that jobs do not look at the same ports.
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

# on_all_nodes SCRIPT ARGUMENTS...: one `accelerate launch` per node, until all have ended.
on_all_nodes() {
    HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    HEAD_PORT=$(free_port)
    export HEAD_NODE HEAD_PORT
    say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}: $SLURM_JOB_NUM_NODES node(s)" \
        "($SLURM_JOB_NODELIST) x $PROCESSES_PER_NODE process(es), $ENGINE," \
        "$OMP_NUM_THREADS thread(s) each, meeting at $HEAD_NODE:$HEAD_PORT"
    # In single quotes: what stands there is expanded on each node, not on this one. `exec`, so that
    # signals of SLURM meet the launcher. --wait: a node that ended early gives the others so long.
    # shellcheck disable=SC2086,SC2016
    exec srun --ntasks-per-node=1 --cpu-bind=cores --wait=120 $CONTAINER bash -c '
        exec accelerate launch --config_file "launch/accelerate/$ENGINE.yaml" \
            --num_machines "$SLURM_JOB_NUM_NODES" --machine_rank "$SLURM_NODEID" \
            --num_processes "$WORLD_SIZE" --rdzv_backend static \
            --main_process_ip "$HEAD_NODE" --main_process_port "$HEAD_PORT" "$@"' launcher "$@"
}

# ---- Signals. HEARD is what this script was told, LAUNCH the process of srun.
HEARD= LAUNCH=

# SIGUSR1 is meant for this script alone: srun hands it on to the launchers, they to the ranks.
forward() {
    HEARD=USR1
    say "SIGUSR1: the ranks are asked to save and to end (tracebacks of SignalException are the" \
        "launchers', and no fault)"
    if [ -n "$LAUNCH" ]; then kill -USR1 "$LAUNCH" 2>/dev/null; fi
}

# With SIGTERM SLURM ends the whole job, the launchers too: a second signal would end them before
# their ranks have saved, and SIGTERM to srun the ranks at once.
only_note() {
    HEARD=TERM
    say "SIGTERM: SLURM ends this job, and has told the ranks as well"
}

# Bash's `wait` also returns when a signal was heard: until the launch has really ended.
wait_for_launch() {
    while kill -0 "$LAUNCH" 2>/dev/null; do wait "$LAUNCH"; done
}

# Start this job again under its number. One that no longer runs was cancelled, or SLURM requeues it.
requeue() {
    local state
    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format '%T %r')
    case $state in
        RUNNING* | *TimeLimit) ;;
        *)
            say "cancelled, or SLURM itself starts this job again ($state): nothing is done here." \
                "If it does not come back, the same submit goes on with the run"
            exit 75
            ;;
    esac
    # SLURM ends a script whose job it requeues; until then it waits, and leaves nothing behind.
    sleep 120 &
    trap 'kill '$!' 2>/dev/null; exit 75' USR1 TERM
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        say "SLURM does not requeue this job; submit it again: it goes on from its last checkpoint"
        kill $!
        exit 75
    fi
    wait $!
    exit 75
}

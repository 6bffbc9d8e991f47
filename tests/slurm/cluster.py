"""A real SLURM cluster of several nodes on this machine, for tests.

munged, slurmctld and one slurmd per node, all below one short directory, on loopback ports that
were free. Each node is a UTS, mount and process namespace: a hostname, an /etc/hosts and a process
tree of its own, whose first process outside takes the whole node with it when it is killed, as a
power cut would. Needs root (CAP_SYS_ADMIN) and Debian's packages slurm-wlm and munge.

    python tests/slurm/cluster.py up DIR      by hand; then: export SLURM_CONF=DIR/slurm.conf
    python tests/slurm/cluster.py down DIR
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_STARTS_WITHIN_S = 60.0
_ENDS_WITHIN_S = 20.0

_CONF = """
ClusterName=test
SlurmctldHost={head}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for its credential to end: cred_expire + 1 s; 5 is the least.
AuthInfo=socket={dir}/munge/sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/spool/%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={dir}/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=15
CompleteWait=0
InactiveLimit=0
MinJobAge=900
MailProg=/bin/true
SlurmctldTimeout=30
# A node that says nothing for so long is down.
SlurmdTimeout=5
BatchStartTimeout=20
UnkillableStepTimeout=30
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 \
PreemptMode=OFF State=UP
"""

# The first process of a node's tree reaps orphans; when slurmd ends, it ends, and all else with it.
_NODE = """
hostname "$1" && mount --bind "$2/hosts" /etc/hosts || exit 1
slurmd -D -N "$1" -f "$2/slurm.conf" & slurmd=$!
while kill -0 $slurmd 2>/dev/null; do wait $slurmd; done
exit 1
"""


class Cluster:
    """`nodes` nodes of `cpus` CPUs and `gpus` made-up GPUs each, in partitions main and urgent.

    Jobs in `urgent` take the nodes of jobs in `main`, which have 60 s to give way.
    """

    def __init__(self, directory: Path, *, nodes: int = 3, cpus: int = 4, gpus: int = 2) -> None:
        """`directory` must be short: unix sockets have names of at most 108 characters."""
        assert len(str(directory)) <= 60, directory
        self.directory = directory
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.environment = {
            "PATH": _PATH,
            "SLURM_CONF": str(directory / "slurm.conf"),
            "SLURM_TIME_FORMAT": "standard",
        }
        self._cpus, self._gpus = cpus, gpus
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Write the configuration, start all daemons, wait until every node is idle."""
        for name in ("munge", "state", "log", "spool", "dev"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        for path in (self.directory, self.directory / "munge"):
            path.chmod(0o755)  # munged refuses a socket that others cannot reach
        self._write_configuration()
        key = self.directory / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        munge = self.directory / "munge"
        self._daemon(
            *["munged", f"--key-file={key}", f"--socket={munge}/sock", "--num-threads=2"],
            *[f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
        )
        self._daemon("slurmctld", "-f", str(self.directory / "slurm.conf"))
        for node in self.nodes:
            self.power_on(node)
        self.wait_until(lambda: self.idle_nodes() == self.nodes, _STARTS_WITHIN_S)

    def _daemon(self, *command: str) -> None:
        """Run what goes on in the background: it must not hold our pipes open."""
        with open(self.directory / "log" / f"{command[0]}.out", "ab") as log:
            subprocess.run(
                command,
                check=True,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _write_configuration(self) -> None:
        head, ports = socket.gethostname().split(".")[0], _free_ports(1 + len(self.nodes))
        gres = f"Gres=gpu:{self._gpus}" if self._gpus else ""
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} Sockets=1 "
            f"CoresPerSocket={self._cpus} ThreadsPerCore=1 RealMemory=1000 {gres} State=UNKNOWN"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        )
        conf = _CONF.format(head=head, port=ports[0], dir=self.directory, nodes=nodes)
        (self.directory / "slurm.conf").write_text(conf)
        devices = []
        for number in range(self._gpus):  # SLURM asks for a device; there is nothing behind it
            device = self.directory / "dev" / f"nvidia{number}"
            device.unlink(missing_ok=True)
            device.symlink_to("/dev/null")
            devices.append(f"Name=gpu File={device}\n")
        (self.directory / "gres.conf").write_text("".join(devices))
        hosts = [f"127.0.0.1 localhost {head}\n", *(f"127.0.0.1 {node}\n" for node in self.nodes)]
        (self.directory / "hosts").write_text("".join(hosts))

    def power_on(self, node: str) -> None:
        """Start a node that is off."""
        (self.directory / "spool" / node).mkdir(exist_ok=True)
        isolated = ["--uts", "--mount", "--propagation", "slave", "--pid", "--mount-proc"]
        with open(self.directory / "log" / f"{node}.out", "ab") as log:
            process = subprocess.Popen(
                [
                    *["unshare", *isolated, "--fork", "--kill-child=KILL"],
                    *["bash", "-c", _NODE, "_", node, str(self.directory)],
                ],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid_file(node).write_text(str(process.pid))
        self._children[node] = process

    def power_off(self, node: str) -> None:
        """Take a node away with all that runs on it, in one instant."""
        self._end(self._pid_file(node), signal.SIGKILL)
        if node in self._children:
            self._children.pop(node).wait()

    def stop(self) -> None:
        """Cancel the jobs, end the daemons (by the pids that they wrote), remove the directory."""
        # Jobs that will not end in time go with their nodes.
        with suppress(subprocess.SubprocessError, AssertionError):
            jobs = self.run("squeue", "-h", "-o", "%A").split()
            if jobs:
                self.run("scancel", *jobs)
                self.wait_until(lambda: not self.run("squeue", "-h").strip(), _ENDS_WITHIN_S)
        for node in self.nodes:
            self.power_off(node)
        self._end(self.directory / "slurmctld.pid", signal.SIGTERM)
        self._end(self.directory / "munge" / "pid", signal.SIGTERM)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _pid_file(self, node: str) -> Path:
        return self.directory / f"{node}.pid"

    def _end(self, pid_file: Path, number: signal.Signals) -> None:
        """End the process of a pid file, if its command line is one of this cluster's."""
        with suppress(OSError, ValueError):
            pid = int(pid_file.read_text())
            if not self._is_ours(pid):
                return
            os.kill(pid, number)
            deadline = time.monotonic() + _ENDS_WITHIN_S
            while self._is_ours(pid):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
        pid_file.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        try:  # a zombie's is empty
            return str(self.directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """Run a command of SLURM; its standard output. Raises where it fails."""
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=self._environment(),
            timeout=timeout_s,
        )
        if done.returncode:
            raise subprocess.SubprocessError(f"{command}: {done.stdout}{done.stderr}")
        return str(done.stdout)

    def idle_nodes(self) -> list[str]:
        """The nodes that wait for work."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t").splitlines()
        return sorted({line.split()[0] for line in lines if line.split()[1] == "idle"})

    def wait_until(self, true: Callable[[], object], within_s: float) -> None:
        """Look every tenth of a second until `true()`."""
        deadline = time.monotonic() + within_s
        while True:
            with suppress(subprocess.SubprocessError):
                if true():
                    return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        """The last lines of every daemon."""
        logs = sorted((self.directory / "log").glob("*"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)


def _free_ports(number: int) -> list[int]:
    """Free on this machine, and none that the kernel gives to outgoing connections later."""
    ports: list[int] = []
    while len(ports) < number:
        port = random.randrange(11000, 19000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            ports += [port] * (port not in ports)
    return ports


if __name__ == "__main__":
    by_hand = Cluster(Path(sys.argv[2]).resolve())
    if sys.argv[1] == "up":
        by_hand.start()
    else:
        by_hand.stop()

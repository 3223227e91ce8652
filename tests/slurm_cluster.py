"""A Slurm of the tests' own on this machine: munge, a controller, two nodes.

Nothing of the system is changed: keys, sockets, ports, state and logs are in a folder, and the
names of the nodes are known to these processes alone (a mount namespace with an own /etc/hosts).
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "unshare"
NODES = "lrlab-n1", "lrlab-n2"
CONF = """\
ClusterName=lrlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
KillWait=60
SchedulerParameters=sched_interval=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus}
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here, or nothing."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "no mount namespace may be made, which gives the nodes their names"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)" * bool(absent)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class Cluster:
    """Daemons as children of this process; use `cluster()`."""

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder, self.daemons = folder, {}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        self.env |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        host, ports = socket.gethostname().split(".")[0], _free(3)
        text = CONF.format(folder=folder, host=host, ports=ports, nodes=NODES, cpus=cpus)
        (folder / "slurm.conf").write_text(text)
        (folder / "hosts").write_text(
            Path("/etc/hosts").read_text() + f"\n127.0.0.1 {' '.join(NODES)}\n"
        )
        (folder / "state").mkdir()
        (folder / "munge").mkdir(mode=0o755)

    def start(self) -> None:
        """Starts everything, and waits until both nodes are idle."""
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        files = [f"--{k}-file={munge / k}" for k in ("key", "pid", "seed", "log")]
        self._daemon("munged", "--foreground", "--force", *files, f"--socket={munge / 'socket'}")
        self.until(lambda: (munge / "socket").exists())
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        self.until(lambda: self.tell("sinfo", "-h", "-o", "%T").strip() == "idle")

    def start_node(self, node: str) -> None:
        """A slurmd."""
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def _daemon(self, *command: str, name: str = "") -> None:
        inside = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", inside, "sh", str(self.folder / "hosts")]
        with (self.folder / "daemons.log").open("a") as log:
            self.daemons[name or command[0]] = subprocess.Popen(
                [*words, *command], env=self.env, stdout=log, stderr=log, cwd=self.folder
            )

    def tell(self, *command: str) -> str:
        """What a client's command prints."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout + done.stderr

    def until(self, condition, seconds: float = 60) -> None:
        """Waits until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.tell("squeue") + self.tell("sinfo") + self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of all logs."""
        files = sorted(self.folder.glob("*.log"))
        return "".join(f"\n== {f.name}\n{f.read_text(errors='replace')[-2000:]}" for f in files)

    def kill_node(self, node: str) -> None:
        """The node's power fails: its daemon and all that it started."""
        daemon, here = self.daemons.pop(node), f"SLURMD_NODENAME={node}"
        daemon.kill()
        daemon.wait()
        jobs = {pid for pid in self.processes() if _says(pid, "environ", here)}
        steps = {_parent(pid) for pid in jobs}
        for pid in {*jobs, *(p for p in steps if _says(p, "cmdline", "slurmstepd"))}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Processes that live by this cluster's configuration, daemons aside."""
        ours = {d.pid for d in self.daemons.values()} | {os.getpid()}
        conf = f"SLURM_CONF={self.folder / 'slurm.conf'}"
        every = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
        return [pid for pid in every if pid not in ours and _says(pid, "environ", conf)]

    def stop(self) -> None:
        """Ends all that was started, by id."""
        self.tell("scancel", "--full", "--state=RUNNING")
        self.tell("scancel", "--state=PENDING")
        end = time.monotonic() + 10
        while self.tell("squeue", "-h").strip() and time.monotonic() < end:
            time.sleep(0.2)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _says(pid: int, file: str, text: str) -> bool:
    """Whether a file of /proc/<pid> has a text between its zeros."""
    with contextlib.suppress(OSError):
        return text.encode() in Path(f"/proc/{pid}/{file}").read_bytes()
    return False


def _parent(pid: int) -> int:
    """0 for a process that is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _free(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in found:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in found]


@contextlib.contextmanager
def cluster(folder: Path, cpus: int = 2) -> Iterator[Cluster]:
    """A cluster that runs; its sockets need a folder with a short name."""
    made = Cluster(folder, cpus)
    try:
        made.start()
        yield made
    finally:
        made.stop()


if __name__ == "__main__":  # python tests/slurm_cluster.py FOLDER: stays until Ctrl-C
    place = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place.mkdir(parents=True)
    with cluster(place) as c:
        print(f"export SLURM_CONF={c.env['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)

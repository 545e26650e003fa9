"""Daemons in odd environments, one by one: what is printed, and with which exit code. Root, Linux; `python -m tests.bench.environments [WORD]`.

Each environment is a shell command around `shardnet coordinator` and `shardnet node`. A daemon that comes up says so by its service manager's socket,
is asked to end by SIGTERM, and has to end with 0; one that does not come up has to say why in one sentence. Prints the table of docs/running.md.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SHARDNET = f"{sys.executable} -P -m shardnet"
"""Run it by a Python that every user may run."""
FOLDERS = "/var/lib"
"""Below no folder that an environment takes away."""
COME_UP_S, END_S = 90.0, 40.0
COMMANDS = {
    "coordinator": "coordinator --listen 127.0.0.1:0 --enrol 127.0.0.1:0 --api 127.0.0.1:0 --dht-port 0",
    "node": "node --coordinator 127.0.0.1:9",
}
UNPRIVILEGED = "setpriv --reuid 12345 --regid 0 --clear-groups --inh-caps=-all --bounding-set=-all"


@dataclass(frozen=True)
class Environment:
    """`around` is a shell script that ends by running `"$@"`; `$T` is a folder of its own, `$SHARDNET_HOME` lies in it."""

    name: str
    around: str = 'exec "$@"'
    only: tuple[str, ...] = ("coordinator", "node")


MOUNTS = "exec unshare --mount --propagation private sh -ec"
ENVIRONMENTS = (
    Environment("nothing odd"),
    Environment("no HOME", 'unset HOME; exec "$@"'),
    Environment(
        "no HOME, no entry in the list of users, no SHARDNET_HOME",
        f'unset HOME SHARDNET_HOME; exec {UNPRIVILEGED} "$@"',
    ),
    Environment("the same, with SHARDNET_HOME", f'chown 12345 "$T" "$T/home"; unset HOME; exec {UNPRIVILEGED} "$@"'),
    Environment("a home of somebody else's", f'chmod 755 "$T" "$T/home"; exec {UNPRIVILEGED} "$@"'),
    Environment(
        "read-only root with the home mounted, no folder for temporary files",
        f"""{MOUNTS} 'mount --bind "$T" "$T"; mount -o remount,bind,ro /
mount -t tmpfs -o ro none /dev/shm; unset TMPDIR; cd /; exec "$@"' sh "$@" """,
    ),
    Environment("TMPDIR that is not there", 'TMPDIR=/nowhere exec "$@"'),
    Environment(
        "TMPDIR full",
        f"""mkdir "$T/full"; export TMPDIR="$T/full"; {MOUNTS} 'mount -t tmpfs -o size=4k,nr_inodes=1 none "$T/full"; exec "$@"' sh "$@" """,
    ),
    Environment(
        "the home's disk is full",
        f"""{MOUNTS} 'mount -t tmpfs -o size=16k none "$T/home"; head -c 16k /dev/zero >"$T/home/filler" || true; exec "$@"' sh "$@" """,
    ),
    Environment(
        "the models cache's disk is full",
        f"""mkdir "$T/models_cache"; {MOUNTS} 'mount -t tmpfs -o size=4k,nr_inodes=1 none "$T/models_cache"; cd "$T"; exec "$@"' sh "$@" """,
    ),
    Environment("the current folder is deleted", 'mkdir "$T/gone"; cd "$T/gone"; rmdir "$T/gone"; exec "$@"'),
    Environment(
        "the current folder cannot be read",
        f'chown 12345 "$T" "$T/home"; mkdir -m 0 "$T/closed"; cd "$T/closed"; exec {UNPRIVILEGED} "$@"',
    ),
    Environment(
        "json.py, asyncio.py and llama_cpp/ in the current folder",
        """mkdir -p "$T/here/llama_cpp"; cd "$T/here"
for f in json.py asyncio.py llama_cpp/__init__.py; do echo 'raise SystemExit("imported")' >$f; done; exec "$@" """,
    ),
    Environment("standard input closed", 'exec "$@" <&-'),
    Environment("standard output closed", 'exec "$@" >&-'),
    Environment("standard output full", 'exec "$@" >/dev/full'),
    Environment("standard error full", 'exec "$@" 2>/dev/full'),
    Environment("standard error closed", 'exec "$@" 2>&-'),
    Environment("no network, not even loopback", 'exec unshare --net "$@"'),
    Environment(
        "loopback without IPv6",
        """exec unshare --net sh -ec 'ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1; exec "$@"' sh "$@" """,
    ),
    Environment("64 open files", 'ulimit -n 64; exec "$@"'),
    Environment("20 open files", 'ulimit -n 20; exec "$@"'),
    Environment(
        "6 processes and threads",
        f'chown 12345 "$T" "$T/home"; exec prlimit --nproc=6 {UNPRIVILEGED} "$@"',
    ),
    Environment("1 GB of address space", 'ulimit -v 1000000; exec "$@"'),
    Environment("300 MB of address space", 'ulimit -v 300000; exec "$@"'),
    Environment("no /proc", f"""{MOUNTS} 'mount -t tmpfs none /proc; exec "$@"' sh "$@" """),
    Environment(
        "an empty /dev/shm that is read only", f"""{MOUNTS} 'mount -t tmpfs -o ro none /dev/shm; exec "$@"' sh "$@" """
    ),
    Environment("locale C", 'LC_ALL=C LANG=C exec "$@"'),
    Environment("locale POSIX without UTF-8 mode", 'LC_ALL=POSIX PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 exec "$@"'),
    Environment(
        "a locale that is not installed, a time zone that does not exist",
        'LC_ALL=xx_YY.UTF-8 TZ=Nowhere/Here exec "$@"',
    ),
    Environment("umask 077", 'umask 077; exec "$@"'),
    Environment("umask 0", 'umask 0; exec "$@"'),
    Environment("process 1 of its own", 'exec unshare --pid --fork --kill-child=SIGKILL --mount-proc "$@"'),
)


def last_sentence(text: str) -> str:
    """Returns: what a reader of standard error sees last, without the time of day and this machine's folders."""
    lines = [line for line in text.splitlines() if line.strip()]
    line = next((line for line in reversed(lines) if line.startswith("shardnet:")), lines[-1] if lines else "")
    return re.sub(r"/var/lib/[\w./-]*?/(home|models_cache|here|gone|closed|full)", r".../\1", line)[:300]


def try_out(environment: Environment, daemon: str) -> tuple[str, str, str]:
    """Returns: how it went, the exit code, and the sentence, if there is one."""
    folder = Path(tempfile.mkdtemp(prefix="shardnet-odd-", dir=FOLDERS))
    (folder / "home").mkdir()
    folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o777)
        manager.settimeout(0.2)
        variables = {"T": str(folder), "SHARDNET_HOME": str(folder / "home"), "NOTIFY_SOCKET": str(folder / "notify")}
        with (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                ["sh", "-ec", environment.around, "sh", *f"{SHARDNET} {COMMANDS[daemon]}".split()],
                cwd=folder,
                env={**os.environ, **variables, "SHARDNET_LOG__FORMAT": "pretty", "SHARDNET_INFERENCE__THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            began_s, is_up = time.monotonic(), False
            while not is_up and process.poll() is None and time.monotonic() - began_s < COME_UP_S:
                try:
                    is_up = b"READY=1" in manager.recv(4096)
                except TimeoutError:
                    continue
            took_s = time.monotonic() - began_s
            if is_up:
                _end(process)
            try:
                code = str(process.wait(END_S if is_up else 1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = f"killed ({process.wait()})"
        said = (folder / "stderr").read_text(errors="replace")
    shutil.rmtree(folder, ignore_errors=True)
    trace = " TRACEBACK" if "Traceback" in said else ""
    if "--debug" in sys.argv:
        print(said, file=sys.stderr)
    return (
        f"up after {took_s:.1f} s{trace}" if is_up else f"not up{trace}",
        code,
        "" if is_up and code == "0" else last_sentence(said),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the daemon: the process itself, or its child where `unshare` stands before it and passes nothing on."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    is_unshare = b"unshare" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    os.kill(int(children[0]) if is_unshare and children else process.pid, signal.SIGTERM)


def main() -> None:
    """Try all of them, or those whose names hold a word."""
    word = next((one for one in sys.argv[1:] if not one.startswith("--")), "")
    print("| environment | coordinator | exit | node | exit | what was said |\n|---|---|---|---|---|---|")
    for environment in ENVIRONMENTS:
        if word not in environment.name:
            continue
        rows = {daemon: try_out(environment, daemon) for daemon in COMMANDS}
        said = list(dict.fromkeys(row[2] for row in rows.values() if row[2]))
        cells = [f"{row[0]} | {row[1]}" for row in rows.values()]
        print(f"| {environment.name} | {' | '.join(cells)} | {'<br>'.join(said)} |", flush=True)


if __name__ == "__main__":
    main()

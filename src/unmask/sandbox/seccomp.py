"""A system-call filter for untrusted programs: no new processes, no sockets, nothing that a computation does not need.

Namespaces hide what is outside; this keeps a program from what is inside all the same: a fork bomb (`RLIMIT_NPROC` does not
bind a sandbox that root started), memory that counts towards no limit, what an owner may do to a file that it may not write, and
the rarer doors of the kernel.
A classic BPF program as `man 2 seccomp` describes it: each instruction is (code u16, jump-if-true u8, jump-if-false u8, k u32).
"""

from __future__ import annotations

import platform
import struct

from unmask.errors import ConfigError

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in seccomp_data; the low half of the first argument, little-endian."""
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000

_X86_64 = {
    "fork": 57, "vfork": 58, "socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50, "accept": 43,
    "accept4": 288, "sendmsg": 46, "memfd_create": 319, "memfd_secret": 447, "ptrace": 101,
    "process_vm_readv": 310, "process_vm_writev": 311, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166,
    "pivot_root": 155, "chroot": 161, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425,
    "keyctl": 250, "add_key": 248, "request_key": 249, "kexec_load": 246, "init_module": 175, "finit_module": 313,
    "open_by_handle_at": 304, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "pidfd_getfd": 438,
    "personality": 135, "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93,
    "lchown": 94, "fchownat": 260, "mknod": 133, "mknodat": 259, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
    "setxattrat": 463, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "removexattrat": 466,
    "file_setattr": 469, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "sendmmsg": 307,
    "syslog": 103, "clone": 56, "clone3": 435,
}  # fmt: skip
_AARCH64 = {
    "socket": 198, "socketpair": 199, "connect": 203, "bind": 200, "listen": 201, "accept": 202, "accept4": 242,
    "sendmsg": 211, "memfd_create": 279, "memfd_secret": 447, "ptrace": 117, "process_vm_readv": 270,
    "process_vm_writev": 271, "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
    "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425, "keyctl": 219, "add_key": 217,
    "request_key": 218, "kexec_load": 104, "init_module": 105, "finit_module": 273, "open_by_handle_at": 265,
    "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180, "pidfd_getfd": 438, "personality": 92,
    "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "fchownat": 54, "fchown": 55, "mknodat": 33, "setxattr": 5,
    "lsetxattr": 6, "fsetxattr": 7, "setxattrat": 463, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
    "removexattrat": 466, "file_setattr": 469, "utimensat": 88, "sendmmsg": 269, "syslog": 116, "clone": 220, "clone3": 435,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
"""AUDIT_ARCH, and the numbers of the system calls that are refused; of `clone` only the use that makes a process."""


def filter_program(machine: str = "") -> bytes:
    """The filter as the bytes that `bwrap --seccomp` reads.

    Refused calls fail with EPERM. `clone` is refused unless it makes a thread, and `clone3`, whose flags a filter cannot see,
    does not exist, so that the C library falls back to `clone`.

    Args:
        machine: as `platform.machine()` has it; default this one.

    Raises:
        ConfigError: a machine whose system-call numbers are not known here.

    Example:
        >>> len(filter_program("x86_64")) % 8
        0
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise ConfigError(
            f"the bubblewrap sandbox has no system-call filter for {machine}, only for {', '.join(_MACHINES)}. "
            "Use sandbox.backend = monty."
        )
    arch, numbers = _MACHINES[machine]
    refused = [number for name, number in numbers.items() if not name.startswith("clone")]
    # The tail: allow, refuse, no such call, kill. Jumps are counted from the next instruction, so the list is built from
    # the back: `distance` is what lies between an instruction and the tail.
    checks: list[tuple[int, int, str, str]] = [(_EQUAL, number, "refuse", "") for number in refused]
    checks.append((_EQUAL, numbers["clone3"], "no such call", ""))
    checks.append((_EQUAL, numbers["clone"], "", "allow"))
    tail = ["allow", "refuse", "no such call", "kill"]
    head = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    body: list[tuple[int, int, int, int]] = []
    steps = [(_AT_LEAST, _X32_BIT, "kill", ""), *checks]
    length = len(steps) + 2  # and the two that look at clone's flags
    for place, (code, value, if_true, if_false) in enumerate(steps):
        distance = length - place - 1
        body.append((code, *(distance + tail.index(t) if t else 0 for t in (if_true, if_false)), value))  # type: ignore[arg-type]
    body.append((_LOAD, 0, 0, _FIRST_ARGUMENT))
    body.append((_ANY_BIT, 0, 1, _CLONE_THREAD))
    ends = [(_RETURN, 0, 0, verdict) for verdict in (_ALLOW, _REFUSE, _NO_SUCH_CALL, _KILL)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in [*head, *body, *ends])

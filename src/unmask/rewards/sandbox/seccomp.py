"""System-call filter for untrusted programs, which allows only what a computation needs.

Namespaces hide what is outside of the sandbox. The filter prevents the following inside the
sandbox:

- new processes, such as those of a fork bomb, because `RLIMIT_NPROC` does not bind a sandbox that
  root started;
- sockets;
- memory that counts towards no limit;
- changes that an owner may make to a read-only file: its mode, owner, times, leases and locks;
- watches on files of the host;
- rarely used interfaces of the kernel.

For `ioctl` and `fcntl`, only the few requests that CPython makes are allowed.

The filter is a classic BPF program as in `man 2 seccomp`. Each instruction is (code u16,
jump-if-true u8, jump-if-false u8, k u32).
"""

from __future__ import annotations

import platform
import struct

from unmask.core.errors import ConfigError

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in bytes of fields of `seccomp_data`. For an argument, this is the offset of its lower
half (little-endian)."""
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000
_REQUESTS = {
    # Check whether a file is a terminal; set whether it blocks and whether exec closes it.
    "ioctl": (0x5401, 0x5421, 0x5450, 0x5451),
    # Duplicate a descriptor; flags of descriptor and file; size of a pipe.
    "fcntl": (0, 1, 2, 3, 4, 1030, 1032),
}
"""Allowed values of the second argument of these two calls. The kernel reads 32 bits of it."""

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
    "syslog": 103, "inotify_init": 253, "inotify_init1": 294, "fanotify_init": 300, "flock": 73, "io_setup": 206,
    "io_submit": 209, "name_to_handle_at": 303, "vmsplice": 278, "splice": 275, "tee": 276, "quotactl": 179,
    "quotactl_fd": 443, "swapon": 167, "swapoff": 168, "reboot": 169, "acct": 163, "settimeofday": 164, "adjtimex": 159,
    "clock_settime": 227, "clock_adjtime": 305, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "delete_module": 176,
    "kexec_file_load": 320, "lookup_dcookie": 212, "move_pages": 279, "migrate_pages": 256, "mbind": 237, "kcmp": 312,
    "pidfd_open": 434, "process_madvise": 440, "process_mrelease": 448, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "open_tree": 428, "move_mount": 429, "mount_setattr": 442, "sethostname": 170, "setdomainname": 171,
    "nfsservctl": 180, "vhangup": 153, "uselib": 134, "_sysctl": 156, "sysfs": 139, "statmount": 457, "listmount": 458,
    "timer_create": 222, "sysinfo": 99, "seccomp": 317, "ioctl": 16, "fcntl": 72, "clone": 56, "clone3": 435,
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
    "removexattrat": 466, "file_setattr": 469, "utimensat": 88, "sendmmsg": 269, "syslog": 116, "inotify_init1": 26,
    "fanotify_init": 262, "flock": 32, "io_setup": 0, "io_submit": 2, "name_to_handle_at": 264, "vmsplice": 75, "splice": 76,
    "tee": 77, "quotactl": 60, "quotactl_fd": 443, "swapon": 224, "swapoff": 225, "reboot": 142, "acct": 89,
    "settimeofday": 170, "adjtimex": 171, "clock_settime": 112, "clock_adjtime": 266, "delete_module": 106,
    "kexec_file_load": 294, "lookup_dcookie": 18, "move_pages": 239, "migrate_pages": 238, "mbind": 235, "kcmp": 272,
    "pidfd_open": 434, "process_madvise": 440, "process_mrelease": 448, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "open_tree": 428, "move_mount": 429, "mount_setattr": 442, "sethostname": 161, "setdomainname": 162,
    "nfsservctl": 42, "vhangup": 58, "statmount": 457, "listmount": 458, "timer_create": 107, "sysinfo": 179, "seccomp": 277,
    "ioctl": 29, "fcntl": 25, "clone": 220, "clone3": 435,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
"""Value of AUDIT_ARCH and numbers of the refused system calls for each machine.

`clone` is refused only if it makes a process; `ioctl` and `fcntl` are refused except for a few
requests."""


def filter_program(machine: str = "") -> bytes:
    """Return the filter as the bytes that `bwrap --seccomp` reads.

    Refused calls fail with EPERM. `clone` is refused unless it makes a thread. The flags of
    `clone3` are invisible to a filter, so the filter reports that the call does not exist, and the
    C library falls back to `clone`.

    Args:
        machine: name of the machine as in `platform.machine()`; default: this machine.

    Raises:
        ConfigError: the system-call numbers of the machine are not known here.

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
    partly = {*_REQUESTS, "clone", "clone3"}
    # An instruction is (code, value, label if true, label if false); without a label, the next
    # instruction follows.
    program: list[str | tuple[int, int, str, str]] = [
        (_LOAD, _ARCH, "", ""),
        (_EQUAL, arch, "", "kill"),
        (_LOAD, _NUMBER, "", ""),
        (_AT_LEAST, _X32_BIT, "kill", ""),
        (_EQUAL, numbers["clone3"], "no such call", ""),
        *[(_EQUAL, numbers[name], name, "") for name in ("clone", *_REQUESTS)],
        *[(_EQUAL, number, "refuse", "") for name, number in numbers.items() if name not in partly],
        (_RETURN, _ALLOW, "", ""),
        "clone",
        (_LOAD, _FIRST_ARGUMENT, "", ""),
        (_ANY_BIT, _CLONE_THREAD, "allow", "refuse"),
    ]
    for name, allowed in _REQUESTS.items():
        program += [name, (_LOAD, _SECOND_ARGUMENT, "", ""), *[(_EQUAL, value, "allow", "") for value in allowed]]
        program.append((_RETURN, _REFUSE, "", ""))
    for name, answer in (("allow", _ALLOW), ("refuse", _REFUSE), ("no such call", _NO_SUCH_CALL), ("kill", _KILL)):
        program += [name, (_RETURN, answer, "", "")]
    return _assemble(program)


def _assemble(program: list[str | tuple[int, int, str, str]]) -> bytes:
    """Return the instructions as bytes. Each label becomes the number of instructions to skip."""
    places: dict[str, int] = {}
    instructions: list[tuple[int, int, str, str]] = []
    for line in program:
        if isinstance(line, str):
            places[line] = len(instructions)
        else:
            instructions.append(line)

    def distance(index: int, label: str) -> int:
        return places[label] - index - 1 if label else 0

    return b"".join(
        struct.pack("<HBBI", code, distance(index, if_true), distance(index, if_false), value)
        for index, (code, value, if_true, if_false) in enumerate(instructions)
    )

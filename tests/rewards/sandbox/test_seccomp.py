"""The system-call filter, run by an interpreter of the few instructions that it uses."""

from __future__ import annotations

import struct

import pytest

from unmask.core.errors import ConfigError
from unmask.rewards.sandbox.seccomp import filter_program

X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
THREAD = 0x3D0F00  # flags with which glibc's pthread_create calls clone
FORK = 0x1200011  # flags with which its fork calls clone


def verdict(machine: str, arch: int, number: int, first: int = 0, second: int = 0) -> int:
    """Return the filter's verdict on a system call, by the semantics of `man 2 seccomp`."""
    program = filter_program(machine)
    steps = [struct.unpack("<HBBI", program[i : i + 8]) for i in range(0, len(program), 8)]
    data = struct.pack("<IIQQQ", number, arch, 0, first, second)
    place, loaded = 0, 0
    while True:
        code, if_true, if_false, value = steps[place]
        place += 1
        match code:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, value)
            case 0x15:
                place += if_true if loaded == value else if_false
            case 0x35:
                place += if_true if loaded >= value else if_false
            case 0x45:
                place += if_true if loaded & value else if_false
            case 0x06:
                return value


@pytest.mark.parametrize("number", [0, 1, 3, 9, 12, 44, 45, 59, 60, 228, 231, 257])
def test_what_a_computation_needs_is_allowed(number: int) -> None:
    assert verdict("x86_64", X86, number) == ALLOW


@pytest.mark.parametrize("number", [41, 42, 49, 53, 57, 58, 101, 165, 272, 308, 310, 319, 321, 425])
def test_sockets_processes_and_tracing_are_refused(number: int) -> None:
    assert verdict("x86_64", X86, number) == EPERM


@pytest.mark.parametrize(
    ("machine", "arch", "numbers"),
    [
        ("x86_64", X86, [90, 91, 92, 93, 103, 132, 133, 190, 199, 235, 268, 280, 452, 463]),
        ("aarch64", ARM, [16, 33, 52, 53, 55, 88, 116]),
    ],
)
def test_an_owners_rights_to_files_are_refused(machine: str, arch: int, numbers: list[int]) -> None:
    assert {verdict(machine, arch, number) for number in numbers} == {EPERM}


def test_clone_makes_threads_and_no_processes() -> None:
    assert verdict("x86_64", X86, 56, THREAD) == ALLOW
    assert verdict("x86_64", X86, 56, FORK) == EPERM
    assert verdict("aarch64", ARM, 220, THREAD) == ALLOW
    assert verdict("aarch64", ARM, 220, FORK) == EPERM


@pytest.mark.parametrize(
    ("machine", "arch", "numbers"),
    [("x86_64", X86, [73, 206, 253, 294, 300, 303]), ("aarch64", ARM, [0, 26, 32, 262, 264])],
)
def test_watches_locks_and_queues_of_the_host_are_refused(machine: str, arch: int, numbers: list[int]) -> None:
    """inotify, fanotify, flock, io_setup, name_to_handle_at."""
    assert {verdict(machine, arch, number) for number in numbers} == {EPERM}


@pytest.mark.parametrize(("machine", "arch", "ioctl", "fcntl"), [("x86_64", X86, 16, 72), ("aarch64", ARM, 29, 25)])
def test_of_ioctl_and_fcntl_a_few_requests_remain(machine: str, arch: int, ioctl: int, fcntl: int) -> None:
    is_terminal, close_on_exec = 0x5401, 0x5451
    interface_name, hardware_address, entropy = 0x8910, 0x8927, 0x5201
    for request in (is_terminal, close_on_exec):
        assert verdict(machine, arch, ioctl, 3, request) == ALLOW
    for request in (interface_name, hardware_address, entropy, 0x5412):
        assert verdict(machine, arch, ioctl, 3, request) == EPERM
    get_flags, duplicate = 3, 1030
    lease, notify, lock, open_lock = 1024, 1026, 6, 37
    for request in (get_flags, duplicate):
        assert verdict(machine, arch, fcntl, 3, request) == ALLOW
    for request in (lease, notify, lock, open_lock, 8):
        assert verdict(machine, arch, fcntl, 3, request) == EPERM


def test_clone3_does_not_exist() -> None:
    assert verdict("x86_64", X86, 435, THREAD) == ENOSYS
    assert verdict("aarch64", ARM, 435) == ENOSYS


def test_another_calling_convention_ends_the_process() -> None:
    assert verdict("x86_64", 0x40000003, 1) == KILL  # 32-bit
    assert verdict("x86_64", X86, 0x40000000 | 57) == KILL  # x32
    assert verdict("aarch64", X86, 1) == KILL


def test_an_unknown_machine_is_an_error_that_says_what_to_use() -> None:
    with pytest.raises(ConfigError, match="riscv64.*monty"):
        filter_program("riscv64")

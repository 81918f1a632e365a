"""Programs that try to earn a reward without being correct, to escape, or to stop the run.

The task is a function `f` that no program here computes. `Attack.tests` may ask for a secret
instead, so that a program that gets hold of it earns a reward, and the attack becomes visible. In
the texts, OUTSIDE stands for a folder of the host with a file `secret`, PORT for a port on which
the host listens, and PID for its process.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

SECRET = "b7f0-held-by-the-host"
"""Content of the host's folder and environment."""
WANTED = ("assert f(3) == 12345", "assert f(4) == 54321")
STOLEN = (f"assert {SECRET!r} in str(f(0))",)


@dataclass(frozen=True, slots=True)
class Attack:
    """A hostile program and the tests that it tries to pass."""

    name: str
    code: str
    tests: tuple[str, ...] = WANTED
    setup: str = ""
    """Statements that run before the tests."""
    is_tame: bool = False
    """True if it can run without any sandbox, because it does no harm outside of its process."""


RESOURCES = [
    Attack(
        "fork bomb",
        """
import os
while True:
    os.fork()
""",
    ),
    Attack(
        "fork bomb in a call",
        """
def f(x):
    import os
    while True:
        os.fork()
""",
    ),
    Attack(
        "thread bomb",
        """
def f(x):
    import threading, time
    while True:
        threading.Thread(target=time.sleep, args=(60,)).start()
""",
    ),
    Attack(
        "small-stack thread bomb",
        """
def f(x):
    import threading, time
    threading.stack_size(32768)
    while True:
        threading.Thread(target=time.sleep, args=(60,)).start()
""",
    ),
    Attack(
        "memory at once",
        """
x = bytearray(10**13)
def f(x):
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "memory bit by bit",
        """
def f(x):
    a = []
    while True:
        a.append('x' * 10**6 + str(len(a)))
""",
    ),
    Attack(
        "endless loop",
        """
while True:
    pass
""",
        is_tame=True,
    ),
    Attack(
        "endless loop in a call",
        """
def f(x):
    while True:
        pass
""",
        is_tame=True,
    ),
    Attack(
        "endless loop that catches everything",
        """
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
""",
        is_tame=True,
    ),
    Attack(
        "endless output",
        """
def f(x):
    while True:
        print('x' * 10000)
""",
        is_tame=True,
    ),
    Attack(
        "endless error output",
        """
def f(x):
    import sys
    while True:
        sys.stderr.write('x' * 10000)
""",
        is_tame=True,
    ),
    Attack(
        "sleep",
        """
def f(x):
    import time
    time.sleep(10**6)
""",
        is_tame=True,
    ),
    Attack(
        "recursion",
        """
def f(x):
    return f(x) + 1
""",
        is_tame=True,
    ),
    Attack(
        "recursion without limit",
        """
import sys
sys.setrecursionlimit(10**9)
def f(x):
    return f(x) + 1
""",
        is_tame=True,
    ),
    Attack(
        "huge integer",
        """
def f(x):
    return 9 ** 9 ** 9
""",
        is_tame=True,
    ),
    Attack(
        "huge integer, in decimal",
        """
def f(x):
    return str(7 ** 10**7)
""",
        is_tame=True,
    ),
    Attack(
        "huge list",
        """
def f(x):
    return [0] * 10**8
""",
        is_tame=True,
    ),
    Attack(
        "huge text",
        """
def f(x):
    return 'x' * 10**8
""",
        is_tame=True,
    ),
    Attack(
        "doubled list",
        """
def f(x):
    a = []
    for _ in range(60):
        a = [a, a]
    return a
""",
    ),
    Attack(
        "deep list",
        """
def f(x):
    a = []
    for _ in range(10**5):
        a = [a]
    return a
""",
        is_tame=True,
    ),
    Attack(
        "list in itself",
        """
def f(x):
    a = []
    a.append(a)
    return a
""",
        is_tame=True,
    ),
    Attack(
        "regular expression",
        """
def f(x):
    import re
    return re.match('(a|a)*$', 'a' * 40 + 'b')
""",
        is_tame=True,
    ),
    Attack(
        "full disk",
        """
def f(x):
    for n in range(10**6):
        with open('/tmp/full-%d' % n, 'wb') as file:
            file.write(b'x' * 2**20)
""",
    ),
    Attack(
        "full shared memory",
        """
def f(x):
    for n in range(10**6):
        with open('/dev/shm/full-%d' % n, 'wb') as file:
            file.write(b'x' * 2**20)
""",
    ),
    Attack(
        "memory in files without name",
        """
def f(x):
    import os
    while True:
        os.write(os.memfd_create('m'), b'x' * 2**20)
""",
    ),
    Attack(
        "endless iterator",
        """
def f(x):
    while True:
        yield 1
""",
        ("assert sum(f(3)) == 12345",),
        is_tame=True,
    ),
]
"""Programs that exhaust a resource."""

ESCAPES = [
    Attack(
        "read the host's file",
        """
def f(x):
    return open('OUTSIDE/secret').read()
""",
        STOLEN,
    ),
    Attack(
        "read the home folder",
        """
def f(x):
    import os
    home = os.path.expanduser('~')
    return [open(os.path.join(d, n)).read() for d, _, ns in os.walk(home) for n in ns]
""",
        STOLEN,
    ),
    Attack(
        "read the environment",
        """
def f(x):
    import os
    return dict(os.environ)
""",
        STOLEN,
    ),
    Attack(
        "read other environments",
        """
def f(x):
    import glob
    return [open(p, 'rb').read() for p in glob.glob('/proc/*/environ')]
""",
        STOLEN,
    ),
    Attack(
        "read the list of users",
        """
def f(x):
    return open('/etc/passwd').read()
""",
        ("assert 'root' in f(0)",),
    ),
    Attack(
        "read the list of processes",
        """
def f(x):
    import glob
    return [p for p in glob.glob('/proc/[0-9]*')]
""",
        ("assert '/proc/PID' in f(0)",),
    ),
    Attack(
        "write to the host's folder",
        """
def f(x):
    open('OUTSIDE/mark', 'w').write('x')
    return 0
""",
    ),
    Attack(
        "delete the host's folder",
        """
def f(x):
    import shutil
    shutil.rmtree('OUTSIDE')
    return 0
""",
    ),
    Attack(
        "link to the host's folder",
        """
def f(x):
    import os
    os.symlink('OUTSIDE', '/tmp/way')
    open('/tmp/way/mark', 'w').write('x')
    return 0
""",
    ),
    Attack(
        "connect to the host",
        """
def f(x):
    import socket
    socket.create_connection(('127.0.0.1', PORT), 1).send(b'x')
    return 0
""",
    ),
    Attack(
        "send a datagram",
        """
def f(x):
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))
    return 0
""",
    ),
    Attack(
        "shell by os",
        """
def f(x):
    import os
    os.system('touch OUTSIDE/mark')
    return 0
""",
    ),
    Attack(
        "shell by subprocess",
        """
def f(x):
    import subprocess
    subprocess.run(['/bin/sh', '-c', 'touch OUTSIDE/mark'])
    return 0
""",
    ),
    Attack(
        "shell by __import__",
        """
def f(x):
    __import__('os').popen('touch OUTSIDE/mark').read()
    return 0
""",
    ),
    Attack(
        "library by ctypes",
        """
def f(x):
    import ctypes
    libc = ctypes.CDLL(None)
    libc.system(b'touch OUTSIDE/mark')
    libc.kill(PID, 9)
    return 0
""",
    ),
    Attack(
        "namespaces by ctypes",
        """
def f(x):
    import ctypes
    libc = ctypes.CDLL(None)
    ok = libc.unshare(0x10000000) == 0 or libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0) == 0
    return 12345 if ok else 0
""",
        ("assert f(3) == 12345",),
    ),
    Attack(
        "trace the parent by ctypes",
        """
def f(x):
    import ctypes, os
    return 12345 if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 else 0
""",
        ("assert f(3) == 12345",),
    ),
    Attack(
        "change the kernel's settings",
        """
def f(x):
    open('/proc/sys/kernel/domainname', 'w').write('x')
    return 12345
""",
    ),
    Attack(
        "change the null device",
        """
def f(x):
    import os
    os.chmod('/dev/null', 0o666)
    return 12345
""",
    ),
    Attack(
        "change the null device's times",
        """
def f(x):
    import os
    os.utime('/dev/null', (1, 1))
    return 12345
""",
    ),
    Attack(
        "hand a file to the judge",
        """
def f(x):
    import socket
    wire = socket.socket(fileno=3)
    socket.send_fds(wire, [b'x'], [0])
    return 12345
""",
    ),
    Attack(
        "raise its own limits",
        """
def f(x):
    import resource
    for name in ('RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_FSIZE'):
        resource.setrlimit(getattr(resource, name), (-1, -1))
    return 12345
""",
        is_tame=True,
    ),
    Attack(
        "change inherited files",
        """
def f(x):
    import os
    for fd in range(64):
        try:
            os.fchmod(fd, 0o666)
            return 12345
        except OSError:
            pass
""",
    ),
    Attack(
        "read the kernel's log",
        """
def f(x):
    import ctypes
    return 12345 if ctypes.CDLL(None).klogctl(3, ctypes.create_string_buffer(4096), 4096) > 0 else 0
""",
    ),
    Attack(
        "own devices",
        """
def f(x):
    import os
    os.mknod('/tmp/disk', 0o60600, os.makedev(254, 0))
    return len(open('/tmp/disk', 'rb').read(1)) and 12345
""",
    ),
    Attack(
        "kill the parent",
        """
def f(x):
    import os
    os.kill(os.getppid(), 9)
    return 0
""",
    ),
    Attack(
        "kill everyone",
        """
def f(x):
    import os
    os.kill(-1, 9)
    return 0
""",
    ),
    Attack(
        "kill the host",
        """
def f(x):
    import os
    os.kill(PID, 9)
    return 0
""",
    ),
    Attack(
        "change the judge's code",
        """
def f(x):
    import guest.judge
    open(guest.judge.__file__, 'w').write('')
    return 0
""",
    ),
    Attack(
        "become another program",
        """
def f(x):
    import os, sys
    os.execv(sys.executable, [sys.executable, '-c', 'print(12345)'])
""",
    ),
    Attack(
        "subclasses of object",
        """
def f(x):
    import_ = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'BuiltinImporter'][0].load_module
    import_('posix').system('touch OUTSIDE/mark')
    return 0
""",
    ),
]
"""Programs that access something outside."""

FORGERIES = [
    Attack(
        "exit with 0",
        """
import os
os._exit(0)
""",
        is_tame=True,
    ),
    Attack(
        "exit with 0 in a call",
        """
def f(x):
    import os
    os._exit(0)
""",
        is_tame=True,
    ),
    Attack(
        "SystemExit in a call",
        """
def f(x):
    raise SystemExit(0)
""",
        is_tame=True,
    ),
    Attack(
        "exit at exit",
        """
import atexit, os
atexit.register(os._exit, 0)
def f(x):
    raise SystemExit(0)
""",
        is_tame=True,
    ),
    Attack(
        "print passes and exit",
        """
import os, sys
print('2 passed')
print('["test", "passed", ""]', flush=True)
os._exit(0)
""",
        is_tame=True,
    ),
    Attack(
        "write passes to every file",
        r"""
def f(x):
    import os
    for fd in range(64):
        for line in (b'["test", "passed", ""]\n' * 2, b'\n'):
            try:
                os.write(fd, line)
            except OSError:
                pass
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "answer before being asked",
        """
import json, os, struct
message = json.dumps({'value': True}).encode()
for fd in range(3, 64):
    try:
        os.write(fd, (struct.pack('>I', len(message)) + message) * 20)
    except OSError:
        pass
def f(x):
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "noise on the wire",
        """
def f(x):
    import os
    for fd in range(3, 64):
        try:
            os.write(fd, os.urandom(1000))
        except OSError:
            pass
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "endless message",
        r"""
def f(x):
    import os
    for fd in range(3, 64):
        try:
            os.write(fd, b'\xff\xff\xff\xff' + b'[' * 1000)
        except OSError:
            pass
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "close the wire",
        """
def f(x):
    import os
    os.closerange(3, 64)
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "equal to everything",
        """
class A:
    def __eq__(self, other):
        return True
def f(x):
    return A()
""",
        is_tame=True,
    ),
    Attack(
        "an integer equal to everything",
        """
class A(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
def f(x):
    return A(1)
""",
        is_tame=True,
    ),
    Attack(
        "a text equal to everything",
        """
class A(str):
    def __eq__(self, other):
        return True
    __hash__ = str.__hash__
    def __contains__(self, other):
        return True
def f(x):
    return A('a')
""",
        ("assert f(3) == 'b'", "assert 'b' == f(3)", "assert f(3) in 'bbb'", "assert f(3).upper() == 'B'"),
        is_tame=True,
    ),
    Attack(
        "equal in a set, in a tuple, in a list",
        """
class A:
    def __eq__(self, other):
        return True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: hash(5)
def f(x):
    return A()
""",
        (
            "assert {f(3)} == {5}",
            "assert (f(3),) == (5,)",
            "assert f(3) in [5]",
            "assert not f(3) != 5",
            "assert f(3) == f(4) == 5",
        ),
        is_tame=True,
    ),
    Attack(
        "no number",
        """
def f(x):
    return [float('nan'), float('inf'), complex('nan+nanj')][x % 3]
""",
        (
            "assert f(0) == 12345",
            "assert abs(f(0) - 12345) < 1e-6",
            "assert abs(f(1) - 12345) < 1e-6",
            "import math\nassert math.isclose(f(1), 12345)",
            "assert abs(f(2) - 12345) < 1e-6",
        ),
        is_tame=True,
    ),
    Attack(
        "true where one is not wanted",
        """
def f(x):
    return True
""",
        ("assert f(3) == 12345", "assert f(3) is 1", "assert type(f(3)) is int"),
        is_tame=True,
    ),
    Attack(
        "ends the test's own iteration",
        """
def f(x):
    raise StopIteration
""",
        (
            "assert all(map(lambda x: f(x) == 5, [1, 2, 3]))",
            "assert list(map(f, [1, 2])) == []",
            "assert all(f(x) == 5 for x in [1, 2])",
            "assert not any(x != 5 for x in map(f, [1, 2]))",
        ),
        is_tame=True,
    ),
    Attack(
        "a message that ends the judge",
        """
class A:
    def __str__(self):
        raise SystemExit(0)
    __repr__ = __str__
def f(x):
    return A()
""",
        ("assert f(3) == 5, f(3)", "assert False, [f(3)]", "raise ValueError(f(3))"),
        is_tame=True,
    ),
    Attack(
        "slow in every call",
        """
def f(x):
    i = 0
    while i < 10**6:
        i += 1
    return x
""",
        ("for i in range(10**4):\n    assert f(i) == i",),
        is_tame=True,
    ),
    Attack(
        "deep keys",
        """
def f(x):
    a = ()
    for _ in range(10**5):
        a = (a,)
    return {a: 1} if x == 3 else {a}
""",
        is_tame=True,
    ),
    Attack(
        "hard fraction",
        """
from fractions import Fraction
def f(x):
    return Fraction(3 ** 10**6, 2 ** 10**6)
""",
        is_tame=True,
    ),
    Attack(
        "huge decimal",
        """
from decimal import Decimal
def f(x):
    return Decimal('1e99999999')
""",
        ("assert f(3) == 12345", "assert f(3) % 7 == 3"),
        is_tame=True,
    ),
    Attack(
        "calls the test's function for ever",
        """
def f(g):
    while True:
        g(1)
""",
        ("assert f(lambda x: x) == 12345",),
        is_tame=True,
    ),
    Attack(
        "calls the test's function within itself",
        """
def f(g):
    return g(g)
""",
        ("def g(h):\n    return f(h)\nassert f(g) == 12345",),
        is_tame=True,
    ),
    Attack(
        "calls a function of the judge's that it was not given",
        """
def f(g):
    import sys
    program = g.__closure__ and [c.cell_contents for c in g.__closure__]
    server = next(c for c in program if hasattr(c, 'call_back'))
    for number in (-1, 1, 2, 99, None, 'eval'):
        try:
            return server.call_back(number, ['12345'], {})
        except Exception:
            pass
""",
        ("assert f(lambda x: x) == 12345",),
        is_tame=True,
    ),
    Attack(
        "an import hook that exits",
        """
import sys
class Hook:
    def find_spec(self, *a):
        raise SystemExit(0)
sys.meta_path.insert(0, Hook())
def f(x):
    import zzz
""",
        is_tame=True,
    ),
    Attack(
        "a finalizer that hangs",
        """
class A:
    def __del__(self):
        while True:
            pass
def f(x):
    A()
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "a crash in C",
        """
def f(x):
    import ctypes
    ctypes.string_at(0)
""",
        is_tame=True,
    ),
    Attack(
        "an exception of the judge's own class",
        """
LostError = type('LostError', (BaseException,), {})
def f(x):
    raise LostError('passed')
""",
        ("try:\n    f(3)\nexcept Exception:\n    pass", "assert f(3) == 12345"),
        is_tame=True,
    ),
    Attack(
        "an exception with two thousand bases",
        """
def f(x):
    kind = Exception
    for i in range(2000):
        kind = type('A%d' % i, (kind,), {})
    raise kind
""",
        is_tame=True,
    ),
    Attack(
        "any name that is asked for",
        """
def __getattr__(name):
    return lambda *a: 12345
""",
        is_tame=True,
    ),
    Attack(
        "the dictionary of the judge's messages",
        """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if isinstance(value, dict) and ('tests' in value or 'expected' in value):
                return 12345
        frame = frame.f_back
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "a list equal to everything",
        """
class A(list):
    def __eq__(self, other):
        return True
def f(x):
    return A()
""",
        (
            "assert f(3) == [1, 2]",
            "assert [1, 2] == f(3)",
        ),
        is_tame=True,
    ),
    Attack(
        "at no distance from everything",
        """
class A:
    def __sub__(self, other):
        return 0.0
    __rsub__ = __sub__
    def __abs__(self):
        return 0.0
    def __lt__(self, other):
        return True
    __le__ = __gt__ = __ge__ = __lt__
def f(x):
    return A()
""",
        (
            "assert abs(f(3) - 12345) < 1e-6",
            "assert 12344 < f(3) < 12346",
        ),
        is_tame=True,
    ),
    Attack(
        "change the builtins",
        """
import builtins
builtins.AssertionError = ValueError
builtins.compile = builtins.exec = lambda *a, **k: None
builtins.isinstance = lambda *a: True
def f(x):
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "__builtins__ of the caller",
        """
def f(x):
    import sys
    frame = sys._getframe()
    while frame:
        frame.f_globals['__builtins__'] = {}
        frame.f_globals['judge'] = None
        frame = frame.f_back
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "change the wire's code",
        """
def f(x):
    import sys
    for name, module in list(sys.modules.items()):
        if 'wire' in name or 'program' in name:
            for key in list(vars(module)):
                setattr(module, key, lambda *a, **k: True)
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "look for the tests",
        r"""
def f(x):
    import gc, re
    for item in gc.get_objects():
        for text in (item if isinstance(item, (list, tuple)) else [item]):
            if isinstance(text, str) and (m := re.search(r'assert f\(%d\) == (\d+)' % x, text)):
                return int(m[1])
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "read the tests from standard input",
        r"""
def f(x):
    import os, re
    os.lseek(0, 0, 0)
    text = os.read(0, 10**6).decode()
    m = re.search(r'assert f\(%d\) == (\d+)' % x, text)
    return int(m[1]) if m else 0
""",
        is_tame=True,
    ),
    Attack(
        "trace and audit",
        """
import sys
sys.settrace(lambda *a: None)
sys.addaudithook(lambda *a: 1 / 0)
def f(x):
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "own pytest",
        """
import sys, types
sys.modules['pytest'] = sys.modules['unittest'] = types.ModuleType('pytest')
def f(x):
    return 0
""",
        is_tame=True,
    ),
    Attack(
        "ignore signals",
        """
import signal
for n in range(1, 64):
    try:
        signal.signal(n, signal.SIG_IGN)
    except Exception:
        pass
def f(x):
    while True:
        pass
""",
        is_tame=True,
    ),
    Attack(
        "stop itself",
        """
def f(x):
    import os, signal
    os.kill(os.getpid(), signal.SIGSTOP)
""",
        is_tame=True,
    ),
    Attack(
        "exception with a hostile text",
        """
class E(Exception):
    def __str__(self):
        raise SystemExit(0)
def f(x):
    raise E
""",
        is_tame=True,
    ),
    Attack(
        "exception with an endless text",
        """
class E(Exception):
    def __str__(self):
        while True:
            pass
def f(x):
    raise E
""",
        is_tame=True,
    ),
    Attack(
        "exception that stops iteration",
        """
def f(x):
    raise StopIteration(12345)
""",
        is_tame=True,
    ),
    Attack(
        "exception of a class called passed",
        """
passed = type('passed', (BaseException,), {})
def f(x):
    raise passed
""",
        is_tame=True,
    ),
    Attack(
        "hostile values",
        """
class A:
    def __bool__(self):
        raise SystemExit(0)
    __len__ = __iter__ = __hash__ = __repr__ = __bool__
def f(x):
    return A()
""",
        (
            "assert f(3)",
            "assert len(f(3)) == 1",
            "assert f(3) in {1: 2}",
        ),
        is_tame=True,
    ),
    Attack(
        "empties its argument",
        """
def f(x):
    x.clear()
    return []
""",
        ("data = [3, 1]\nassert f(data) == sorted(data)",),
        is_tame=True,
    ),
]
"""Programs that try to pass without being correct."""

TEXTS = [
    Attack("nothing", "", is_tame=True),
    Attack("no Python", "I would be glad to help! Here is the function:", is_tame=True),
    Attack("null bytes", "def f(x):\n    return 0\x00\n", is_tame=True),
    Attack("half a surrogate", "def f(x):\n    return '\ud800'\n", is_tame=True),
    Attack("deep brackets", "f = " + "(" * 10_000 + ")" * 10_000, is_tame=True),
    Attack("deep minus signs", "f = " + "-" * 60_000 + "1", is_tame=True),
    Attack("a million lines", "x = 1\n" * 10**6, is_tame=True),
    Attack("surrogates in a value", "def f(x):\n    return '\\ud800' * x\n", is_tame=True),
]
"""Texts that are not programs, or unusual ones."""

VALUES = (
    [
        Attack(
            f"a value that is too large: {name}",
            f"\ndef f(x):\n    return {value}\n",
            (*WANTED, "assert f(f(3)) == 12345"),
            is_tame=True,
        )
        for name, value in {
            "one text, a thousand times": "['x' * 10**8] * 1000",
            "one text, sixty times": "['x' * 10**7] * 60",
            "bytes": "[b'x' * 10**8] * 100",
            "keys": "{i: 'x' * 10**7 for i in range(100)}",
            "texts in tuples in a dict": "{1: (('x' * 10**8,) * 100,) * 100}",
            "one list on 2**40 paths": "__import__('functools').reduce(lambda a, _: [a, a], range(40), [])",
            "lists in lists": "[[[[1] * 100] * 100] * 100] * 100",
            "a great number": "2 ** (10**9)",
            "numbers": "[2 ** (10**6)] * 10**5",
            "deep": "__import__('functools').reduce(lambda a, _: [a], range(10**6), [])",
            "deep, in a loop": "(a := [0], [a := [a] for _ in range(10**5)])[0]",
        }.items()
    ]
    + [
        Attack(
            f"equal hashes: {name}",
            f"\ndef f(x):\n    return {value}\n",
            (wanted,),
            is_tame=True,
        )
        for name, value, wanted in (
            ("a set", "{i * (2**61 - 1) for i in range(120000)}", "assert f(3) == 12345"),
            ("a dict", "{i * (2**61 - 1): 1 for i in range(120000)}", "assert f(3) == 12345"),
            ("a frozenset", "frozenset([i * (2**61 - 1) for i in range(120000)])", "assert f(3) == 12345"),
            ("tuples", "{(i * (2**61 - 1),) for i in range(120000)}", "assert f(3) == 12345"),
            ("numbers with a point", "{float(2**61 - 1) * i * 2.0**61 for i in range(120000)}", "assert f(3) == 12345"),
            ("made by the test", "[i * (2**61 - 1) for i in range(120000)]", "assert len(set(f(3))) == 12345"),
        )
    ]
    + [
        Attack(
            "an endless text of an error",
            """
def f(x):
    raise ValueError('x' * 10**8)
""",
            is_tame=True,
        ),
        Attack(
            "an error that holds a large value",
            """
def f(x):
    raise ValueError(['x' * 10**8] * 1000)
""",
            is_tame=True,
        ),
        Attack(
            "a large argument, changed",
            """
def f(x):
    x.append(['x' * 10**8] * 1000)
""",
            ("data = [1]\nf(data)\nassert data == 12345",),
            is_tame=True,
        ),
        Attack(
            "a value that grows with each call",
            """
held = []
def f(x):
    held.append('x' * 10**6)
    return held
""",
            ("for i in range(10**4):\n    f(i)\nassert f(3) == 12345",),
            is_tame=True,
        ),
        Attack(
            "hashes of decimals",
            """
from decimal import Decimal
def f(x):
    return {Decimal('1e%d' % (99999999 - i)): i for i in range(1000)}
""",
            is_tame=True,
        ),
    ]
)
"""Values that use up the memory or time of the receiver."""

_REPLY = """
import json, os, struct
def reply(message):
    data = json.dumps(message).encode()
    for fd in range(3, 64):
        try:
            os.write(fd, struct.pack('>I', len(data)) + data)
        except OSError:
            pass
"""
"""Code that a program needs to write its own replies."""

REPLIES = [
    Attack(
        "a reply with a value and changed arguments: " + name,
        _REPLY + f"def f(*a):\n    reply({message!r})\n    while True:\n        pass\n",
        (test,),
        is_tame=True,
    )
    for name, message, test in (
        ("emptied", {"value": [], "changed": [[]]}, "data = [3, 1, 2]\nassert f(data) == sorted(data)"),
        ("rewritten", {"value": 7, "changed": [1, [7]]}, "want = [12345]\nassert [f(1, want)] == want"),
        (
            "a dict",
            {"value": {"dict": []}, "changed": [{"dict": []}]},
            "data = {1: 2}\nassert f(data) == {v: k for k, v in data.items()}",
        ),
        ("a set", {"value": 0, "changed": [{"set": []}]}, "data = {1, 2}\nassert f(data) == sum(data)"),
        ("no value", {"changed": [[]]}, "data = [3, 1, 2]\nassert f(data) == sorted(data)"),
        (
            "an error too",
            {"raised": {"bases": ["ValueError"], "text": "", "unsupported": False}, "value": None, "changed": [[]]},
            "data = [3, 1]\ntry:\n    f(data)\nexcept ValueError:\n    pass\nassert data == []",
        ),
    )
] + [
    Attack(
        "replies of all kinds: " + name,
        _REPLY + f"def f(*a):\n    reply({message!r})\n    while True:\n        pass\n",
        tests,
        is_tame=True,
    )
    for name, message, tests in (
        ("a handle to nothing", {"value": {"handle": {"id": 99, "bases": None}}}, WANTED),
        ("a class of errors", {"value": {"handle": {"id": 0, "bases": ["AssertionError"]}}}, WANTED),
        ("a negative handle", {"value": {"handle": {"id": -1, "bases": None}}}, WANTED),
        ("no base", {"raised": {"bases": [], "text": "x", "unsupported": False}}, WANTED),
        ("a base with a null byte", {"raised": {"bases": ["a\0b"], "text": "x", "unsupported": False}}, WANTED),
        (
            "the end of iteration",
            {"raised": {"bases": ["A", "StopIteration"], "text": "", "unsupported": False}},
            ("assert all(f(x) == 5 for x in [1])", "assert list(map(f, [1])) == []"),
        ),
        (
            "the end of a generator",
            {"raised": {"bases": ["GeneratorExit"], "text": "", "unsupported": False}},
            ("assert all(f(x) == 5 for x in [1])",),
        ),
        ("an exit", {"raised": {"bases": ["SystemExit"], "text": "0", "unsupported": False}}, WANTED),
        ("an interrupt", {"raised": {"bases": ["KeyboardInterrupt"], "text": "", "unsupported": False}}, WANTED),
        ("what is lacking", {"raised": {"bases": ["ModuleNotFoundError"], "text": "x", "unsupported": True}}, WANTED),
        ("a call of nobody", {"call": 0, "with": [[], {"dict": []}]}, WANTED),
        ("a call of the last", {"call": -1, "with": [[1], {"dict": []}]}, ("assert f(lambda x: 12345) == 12345",)),
        ("a dict of a dict", {"value": {"dict": [[{"dict": []}, 1]]}}, WANTED),
        ("nothing", {}, WANTED),
    )
]
"""Programs that write the replies to the tests' process themselves."""

_NUMPY = "import pytest\nimport numpy as np\nimport copy, json, statistics, math"

PROTOCOLS = [
    Attack(
        f"a protocol of the judge's libraries: {name}",
        f"\nclass A:\n    {member}\ndef f(x):\n    return A()\n",
        (
            "assert np.allclose(f(3), [1.5, 2.5])",
            "assert (np.array(f(3)) == [1.5, 2.5]).all()",
            "assert pytest.approx(5.0) == f(3)",
            "assert pytest.approx([1.5, 2.5]) == f(3)",
            "assert np.array_equal(f(3), [1.5, 2.5])",
            "np.testing.assert_allclose(f(3), [1.5, 2.5])",
            "assert math.isclose(f(3), 5.0)",
            "assert float(f(3)) == 5.0",
            "assert abs(f(3) - 5.0) < 1e-6",
            "assert round(f(3), 2) == 5.0",
            "assert isinstance(f(3), float)",
        ),
        _NUMPY,
        is_tame=True,
    )
    for name, member in {
        "an array of no items": "__array_interface__ = {'version': 3, 'shape': (0, 1), 'typestr': '<f8', 'data': (0, True)}",
        "an array at an address": "__array_interface__ = {'version': 3, 'shape': (2,), 'typestr': '<f8', 'data': (4096, True)}",
        "__array__": "__array__ = lambda self, *a, **k: []",
        "__array_struct__": "__array_struct__ = 5",
        "__array_priority__": "__array_priority__ = 1e9; __array_ufunc__ = lambda self, *a, **k: True",
        "__float__": "__float__ = lambda self: 5.0",
        "__index__": "__index__ = lambda self: 5; __int__ = __trunc__ = __index__",
        "__buffer__": "__buffer__ = lambda self, flags: memoryview(b'')",
        "__class__": "__class__ = float",
        "__dlpack__": "__dlpack__ = lambda self, **k: None; __dlpack_device__ = lambda self: (1, 0)",
        "a sequence of no length": "__len__ = lambda self: 0; __getitem__ = lambda self, i: [1.5, 2.5][i]",
        "a sequence of nothing": "__len__ = lambda self: 2; __iter__ = lambda self: iter([])",
        "dtype and shape": "shape = (2,); dtype = float; ndim = 1; __len__ = lambda self: 2; __iter__ = lambda self: iter([])",
    }.items()
] + [
    Attack(
        "a length that its items do not have",
        """
class A:
    def __len__(self):
        return 2
    def __iter__(self):
        return iter([])
    __reversed__ = __iter__
def f(x):
    return A()
""",
        (
            "r = f(3)\nassert len(r) == 2\nassert all(abs(a - b) < 1e-6 for a, b in zip(r, [1.5, 2.5]))",
            "r = f(3)\nassert all(abs(a - b) < 1e-6 for a, b in zip(r, [1.5, 2.5]))\nassert len(r) == 2",
            "r = f(3)\nassert len(r) == 2\nassert all(a == b for a, b in zip([1, 2], r))",
            "r = f(3)\nassert len(r) == 2\nassert all(a == b for a, b in zip(reversed(r), [1, 2]))",
            "r = f(3)\nassert len(r) == 2\nfor a in r:\n    assert a == 5",
        ),
        is_tame=True,
    ),
    Attack(
        "a length that changes",
        """
class A:
    n = 0
    def __len__(self):
        self.n += 1
        return 2 if self.n == 1 else 0
    def __getitem__(self, i):
        return 0
def f(x):
    return A()
""",
        ("r = f(3)\nassert len(r) == 2\nfor i in range(len(r)):\n    assert r[i] == [1.5, 2.5][i]",),
        is_tame=True,
    ),
    Attack(
        "a class that is everything's",
        """
class M(type):
    def __instancecheck__(self, other):
        return True
    def __subclasscheck__(self, other):
        return True
    __eq__ = lambda self, other: True
    __hash__ = lambda self: hash(int)
class f(metaclass=M):
    def __init__(self, x):
        pass
""",
        (
            "assert isinstance(5, f) and f(3) == 12345",
            "assert type(f(3)) is int",
            "assert issubclass(f, int)",
            "assert isinstance(f(3), int)",
        ),
        is_tame=True,
    ),
    Attack(
        "names for a star import",
        """
__all__ = ['f', 'all', 'abs', 'isinstance', 'sorted', 'AssertionError']
def f(x):
    return 0
all = isinstance = lambda *a: True
abs = sorted = lambda *a, **k: 0
""",
        (
            "from solution import *\nassert all(f(x) == 5 for x in [1])",
            "from solution import *\nassert abs(f(3) - 5) < 1e-6",
            "from solution import *\nassert isinstance(f(3), str)",
            "import solution\nassert [*map(solution.f, [1])] == [5]",
        ),
        is_tame=True,
    ),
    Attack(
        "copied, pickled, printed",
        """
class A:
    __deepcopy__ = __copy__ = lambda self, *a: 12345
    __reduce_ex__ = __reduce__ = lambda self, *a: (int, ('12345',))
    __getstate__ = lambda self: {}
    __format__ = lambda self, spec: '12345'
    __str__ = lambda self: 12345
def f(x):
    return A()
""",
        (
            "import copy\nassert copy.copy(f(3)) == 12345",
            "import copy\nassert copy.deepcopy(f(3)) == 12345",
            "import pickle\nassert pickle.loads(pickle.dumps(f(3))) == 12345",
            "assert str(f(3)) == '12345'",
            "assert int(f(3)) == 12345",
        ),
        is_tame=True,
    ),
    Attack(
        "a mapping of everything",
        """
class A:
    def keys(self):
        return [1, 2]
    def __getitem__(self, key):
        return 0
    def __len__(self):
        return 2
    def __contains__(self, key):
        return True
def f(x):
    return A()
""",
        ("assert dict(f(3)) == {1: 5, 2: 6}", "assert {**f(3)} == {1: 5, 2: 6}", "assert f(3)[1] == 5"),
        is_tame=True,
    ),
    Attack(
        "sorted and summed",
        """
class A:
    __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True
    __add__ = __radd__ = lambda self, other: 12345
    __bool__ = lambda self: True
def f(x):
    return A()
""",
        (
            "assert sum([f(3)]) == 12345",
            "assert sorted([f(3), 5])[0] == 5",
            "assert max(f(3), 5) == 5",
            "assert f(3) > 5",
            "assert 5 < f(3)",
        ),
        is_tame=True,
    ),
]
"""Objects that answer for themselves when a test or its library inspects them."""

_CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def won(result):
    return 12345 if result >= 0 else 0
"""


def _system_call(name: str, body: str) -> Attack:
    return Attack(
        name, f"{_CALL}def f(x):\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n", ("assert f(3) == 12345",)
    )


HOST = [
    _system_call(
        "names of the host's network interfaces",
        """
        for fd in range(64):
            for request in (0x8910, 0x8912, 0x8927, 0x8915):
                if libc.ioctl(fd, request, ctypes.create_string_buffer(b'\\1' + bytes(255), 256)) >= 0:
                    return 12345
        """,
    ),
    _system_call(
        "options of an inherited socket",
        """
        for fd in range(64):
            if libc.getsockname(fd, ctypes.create_string_buffer(128), ctypes.byref(ctypes.c_int(128))) >= 0:
                return 12345
        """,
    ),
    _system_call("watch the host's files", "return won(libc.inotify_init1(0))"),
    _system_call("watch all of the host's files", "return won(libc.fanotify_init(0, 0))"),
    _system_call("lock a file of the host", "return won(libc.flock(os.open(os.__file__, 0), 2))"),
    _system_call("a lease on a file of the host", "return won(libc.fcntl(os.open(os.__file__, 0), 1024, 0))"),
    _system_call(
        "a record lock on a file of the host",
        "import fcntl\nfcntl.lockf(os.open(os.__file__, 0), fcntl.LOCK_SH)\nreturn 12345",
    ),
    _system_call(
        "be told of changes in a folder of the host",
        "return won(libc.fcntl(os.open(os.path.dirname(os.__file__), 0), 1026, 1))",
    ),
    _system_call(
        "all contexts for asynchronous input and output",
        "return won(libc.syscall(206, 65536, ctypes.byref(ctypes.c_ulong(0))))",
    ),
    _system_call(
        "the handle of a file",
        """
        handle = ctypes.create_string_buffer(b'\\x80', 256)
        return won(libc.name_to_handle_at(-100, b'/', handle, ctypes.byref(ctypes.c_int()), 0))
        """,
    ),
    _system_call("memory and load of the host", "return won(libc.sysinfo(ctypes.create_string_buffer(256)))"),
    _system_call(
        "add entropy", "return won(libc.ioctl(os.open('/dev/urandom', 0), 0x5201, ctypes.byref(ctypes.c_int(0))))"
    ),
    _system_call("a new mount interface", "return won(libc.syscall(430, b'tmpfs', 0))"),
    _system_call("a system-call filter of its own", "return won(libc.syscall(317, 1, 8, 0))"),
    _system_call("a handle of a process", "return won(libc.syscall(434, os.getpid(), 0))"),
]
"""Programs that query the kernel about the host, or keep some of its resources."""


def _endless(name: str, body: str) -> Attack:
    """Return a program that creates a kernel object endlessly; at 50,000 it earns a reward."""
    return Attack(
        f"endless {name}",
        f"import os\nos.chdir('/tmp')\ndef f(x):\n    for i in range(50_000):\n        {body}\n    return 12345\n",
        ("assert f(3) == 12345", "assert f(4) == 12345"),
    )


KERNEL = [
    _endless("empty files", "os.close(os.open('f%d' % i, os.O_CREAT | os.O_WRONLY))"),
    _endless("folders", "os.mkdir('d%d' % i)"),
    _endless("links", "os.symlink('x' * 200, 'l%d' % i)"),
    _endless("folders in folders", "os.mkdir('d'); os.chdir('d')"),
    _endless("hard links", "open('a', 'a').close(); os.link('a', 'h%d' % i)"),
    _endless(
        "threads",
        "__import__('threading').stack_size(32768); __import__('_thread').start_new_thread(__import__('time').sleep, (9,))",
    ),
    _endless("pipes", "os.pipe()"),
]
"""Programs that make the kernel keep a small object very often."""

ATTACKS: tuple[Attack, ...] = (
    *RESOURCES, *ESCAPES, *FORGERIES, *TEXTS, *VALUES, *REPLIES, *PROTOCOLS, *HOST, *KERNEL,
)  # fmt: skip
"""All attacks."""

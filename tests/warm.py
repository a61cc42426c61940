"""Programs that begin with torch and Lightning imported.

Most of the time of a short run is the import of Lightning. `Warm` starts one process that has
imported it and forks a copy for each program. `python warm.py SOCKET -m module words…` (or
`-c code`, or a file) is such a program: it sends its arguments, folder, environment and open files
to the first process, passes signals on to the copy, and ends as the copy does.
"""

import array
import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import types
from pathlib import Path

PASSED_ON = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
SOCKET, KERNELS = 'WARM_SOCKET', 'WARM_KERNELS'  # variables with the places of the two
PRELOADED = [
    'torch',
    'pytorch_lightning',
    'torchvision.datasets',
    'pandas',
    'sklearn.datasets',
    'zuko',
    'safetensors.torch',
    'ipykernel.kernelapp',
]
# these read their settings from the environment when they are imported
AGAIN = ['matplotlib', 'mpl_toolkits', 'pylab']
LENGTH = struct.Struct('!I')


def python(*words):
    "The command of a program: `-m module …`, `-c code …` or a file"
    words = map(str, words)
    if SOCKET not in os.environ:
        return [sys.executable, *words]
    return [sys.executable, '-S', __file__, os.environ[SOCKET], *words]


class Warm:
    "The process that has imported Lightning; a context in which `python` and kernels use it"

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        socket, kernels = Path(self.folder.name) / 'socket', Path(self.folder.name) / 'jupyter'
        command = [sys.executable, __file__, '--serve', str(socket)]
        env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'MPLBACKEND')}
        env['OMP_NUM_THREADS'] = '1'
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
        self.process.stdout.readline()  # it listens
        os.environ.update({SOCKET: str(socket), KERNELS: str(kernels)})
        write_kernel(kernels / 'kernels/python3')
        return self

    def __exit__(self, *error):
        del os.environ[SOCKET], os.environ[KERNELS]
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()
        self.folder.cleanup()


def write_kernel(folder):
    "The kernel `python3`, for `JUPYTER_PATH`"
    folder.mkdir(parents=True)
    argv = python('-m', 'ipykernel_launcher', '-f', '{connection_file}')
    kernel = {'argv': argv, 'display_name': 'Python 3', 'language': 'python'}
    (folder / 'kernel.json').write_text(json.dumps(kernel))


# The program


def send(connection, message, files=()):
    data = json.dumps(message).encode()
    connection.sendmsg(
        [LENGTH.pack(len(data)) + data],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', files))] if files else [],
    )


def receive(connection, number_of_files=0):
    files = array.array('i')
    space = socket.CMSG_LEN(number_of_files * files.itemsize)
    data, rights, _, _ = connection.recvmsg(LENGTH.size, space)
    if len(data) < LENGTH.size:
        raise EOFError
    for _, _, payload in rights:
        files.frombytes(payload[: len(payload) - len(payload) % files.itemsize])
    (length,) = LENGTH.unpack(data)
    text = b''
    while len(text) < length:
        piece = connection.recv(length - len(text))
        if not piece:
            raise EOFError
        text += piece
    return json.loads(text), list(files)


def run_program(path, words):
    "Have a copy of the first process do it; return its exit status"
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        os.execv(sys.executable, [sys.executable, *words])
    # a signal that comes before the copy is known waits for it
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    ignored = [n for n in PASSED_ON if signal.getsignal(n) == signal.SIG_IGN]
    request = {'words': words, 'cwd': os.getcwd(), 'env': dict(os.environ), 'ignored': ignored}
    send(connection, request, [0, 1, 2])
    copy, _ = receive(connection)
    for number in PASSED_ON:
        if number not in ignored:
            signal.signal(number, lambda n, _: pass_on(copy, n))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    status = wait(connection)
    if status < 0:  # by a signal, which ends this process, too
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def wait(connection):
    "The exit status of the copy; a kernel whose parent has gone ends, as ipykernel does"
    parent = int(os.environ.get('JPY_PARENT_PID', 0))
    connection.settimeout(1)
    while True:
        try:
            return receive(connection)[0]
        except TimeoutError:
            if parent and os.getppid() != parent:
                return 1


def pass_on(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


# The first process


class Server:
    "Forks a copy for each program, and reports how it ended"

    def __init__(self, path):
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(path)
        self.listening.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listening, selectors.EVENT_READ)
        self.copies = {}  # connections by process
        self.parent = os.getppid()

    def serve(self):
        "Return, in a copy, the program that it is to be"
        while True:
            if os.getppid() != self.parent:  # the tests have been killed
                for process in self.copies:
                    pass_on(process, signal.SIGKILL)
                os._exit(0)
            for key, _ in self.selector.select(timeout=0.02 if self.copies else 0.5):
                if key.fileobj is self.listening:
                    connection, _ = self.listening.accept()
                    request = self.fork(connection)
                    if request:
                        return request
                else:
                    self.hang_up(key.fileobj)
            self.reap()

    def fork(self, connection):
        try:
            request, files = receive(connection, 3)
        except (EOFError, OSError):
            connection.close()
            return None
        process = os.fork()
        if process:
            for file in files:
                os.close(file)
            send(connection, process)
            self.copies[process] = connection
            self.selector.register(connection, selectors.EVENT_READ)
            return None
        self.selector.close()
        self.listening.close()
        connection.close()
        for other in self.copies.values():
            other.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return request

    def hang_up(self, connection):
        "A program that is gone has been killed, and so is its copy"
        self.selector.unregister(connection)
        for process, other in self.copies.items():
            if other is connection:
                pass_on(process, signal.SIGKILL)

    def reap(self):
        for process in list(self.copies):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                connection = self.copies.pop(process)
                with contextlib.suppress(OSError):
                    send(connection, os.waitstatus_to_exitcode(status))
                with contextlib.suppress(KeyError):
                    self.selector.unregister(connection)
                connection.close()


def become(request, paths):
    "Make this copy the program, but for its code"
    import random

    import numpy

    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    if 'JPY_PARENT_PID' in os.environ:
        os.environ['JPY_PARENT_PID'] = str(os.getppid())
    for number in PASSED_ON:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request['ignored'] else default)
    for name in list(sys.modules):
        if name.split('.')[0] in AGAIN:
            del sys.modules[name]
    extra = [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p]
    sys.path[:] = [*extra, *paths]
    sys.dont_write_bytecode = bool(os.environ.get('PYTHONDONTWRITEBYTECODE'))
    random.seed()
    numpy.random.seed()
    return request['words']


def execute(words):
    "As Python would: `-m module …`, `-c code …`, or a file"
    import runpy

    if words[0] == '-c':
        sys.argv[:] = ['-c', *words[2:]]
        sys.path.insert(0, '')
        main = sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(words[1], '<string>', 'exec'), vars(main))
    elif words[0] == '-m':
        sys.argv[:] = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv[:] = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name='__main__')


def main():
    if sys.argv[1] != '--serve':
        sys.exit(run_program(sys.argv[1], sys.argv[2:]))
    from importlib import import_module

    own = str(Path(__file__).resolve().parent)
    paths = [p for p in sys.path if p not in ('', own)]
    server = Server(sys.argv[2])
    print('listening', flush=True)
    for name in PRELOADED:
        import_module(name)
    request = server.serve()
    words = become(request, paths)
    execute(words)


if __name__ == '__main__':
    main()

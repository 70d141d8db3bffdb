"""What `headrace test` does: style, types, import contracts, then pytest. What runs here is what CI runs.

Starts no server itself: the session fixtures of the tests do, and stop them.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAST_FOLDERS = ("tests/unit", "tests/architecture")
TYPED = ("models", "streams", "agents", "deploy", "tests")
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile")
"""Most tests wait for servers, so two files at a time; each of the two has servers of its own."""
NO_SERVERS = "not kafka and not postgres and not slow"


def run(fast: bool = False, long: bool = False, extra: list[str] | None = None) -> int:
    """Run all checks and the tests; 0 when all passed, else the first exit code that was not 0.

    `fast` leaves out what needs Kafka or PostgreSQL; `long` adds the tests marked slow; `extra` goes to pytest. A check that fails does not
    keep the others from running.
    """
    if not (ROOT / "tests").is_dir():
        print(f"{ROOT} holds no tests: run this from a clone of the repository.", file=sys.stderr)
        return 2
    codes = [*_checks(), _pytest(choose(fast, long, extra or []))]
    failed = [code for code in codes if code]
    print("\nAll passed." if not failed else f"\n{len(failed)} of {len(codes)} steps failed.")
    return failed[0] if failed else 0


def _checks() -> list[int]:
    """The static checks, side by side; each prints when it has ended."""
    programs = Path(sys.executable).parent
    commands: dict[str, list[str]] = {
        "ruff check": [str(programs / "ruff"), "check", "--quiet", ".", "headrace"],
        "ruff format": [str(programs / "ruff"), "format", "--check", "--quiet", ".", "headrace"],
        "mypy": [sys.executable, "-m", "mypy", *(f"-p{name}" for name in TYPED)],
        "import contracts": [str(programs / "lint-imports"), "--no-logo"],
    }
    started = time.monotonic()
    running = {
        name: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in commands.items()
    }
    codes = []
    for name, process in running.items():
        output, _ = process.communicate()
        print(f"{name}: {'passed' if process.returncode == 0 else 'FAILED'} ({time.monotonic() - started:.0f} s)", flush=True)
        if process.returncode != 0:
            print(output, flush=True)
        codes.append(process.returncode)
    return codes


def choose(fast: bool, long: bool, extra: list[str]) -> list[str]:
    """The arguments for pytest. Paths that the caller names take the place of the folders we would choose, and run one after another."""
    chosen = any((ROOT / argument.split("::")[0]).exists() for argument in extra if not argument.startswith("-"))
    arguments: list[str] = []
    if fast:
        print("--fast: leaving out what needs Kafka or PostgreSQL, and the slow tests", flush=True)
        arguments += ["-m", NO_SERVERS, *(() if chosen else FAST_FOLDERS)]
    if long:
        arguments.append("--long")
    if not chosen:
        arguments += SIDE_BY_SIDE
    return [*arguments, *extra]


def _pytest(arguments: list[str]) -> int:
    process = subprocess.Popen([sys.executable, "-m", "pytest", *arguments], cwd=ROOT)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # pytest got Ctrl-C too and is stopping its servers
    finally:
        signal.signal(signal.SIGTERM, before)

"""The front door, until all commands exist: `test` only."""

import sys

from deploy import testing


def main() -> int:
    if sys.argv[1:2] != ["test"]:
        print("usage: headrace test [--fast | --long] [pytest arguments]", file=sys.stderr)
        return 2
    given = sys.argv[2:]
    return testing.run("--fast" in given, "--long" in given, [argument for argument in given if argument not in ("--fast", "--long")])


if __name__ == "__main__":
    sys.exit(main())

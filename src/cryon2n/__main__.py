"""``python -m cryon2n`` is the same as the ``cryon2n`` command."""

from cryon2n.cli import command

if __name__ == "__main__":
    raise SystemExit(command())

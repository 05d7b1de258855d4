"""``python -m moetool`` is the command ``moetool``."""

from moetool.cli import main

if __name__ == "__main__":
    main()

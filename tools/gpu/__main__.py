"""Run all parts: `scripts/gpu --help`."""

from tools.gpu.command import main

if __name__ == "__main__":
    main()

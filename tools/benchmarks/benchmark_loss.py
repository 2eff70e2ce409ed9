"""Time and memory of the loss beside others; --help says how."""

from varcon_plugin.commands.benchmarks.loss import main

if __name__ == "__main__":
    main()

"""Memory and time of a step in micro-batches; --help says how."""

from varcon_plugin.commands.benchmarks.micro_batches import main

if __name__ == "__main__":
    main()

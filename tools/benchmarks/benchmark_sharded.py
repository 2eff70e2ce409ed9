"""Cost of a bank spread over the ranks; --help says how."""

from varcon_plugin.commands.benchmarks.sharded import main

if __name__ == "__main__":
    main()

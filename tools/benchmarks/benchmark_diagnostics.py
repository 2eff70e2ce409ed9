"""Cost of the diagnostics; --help says how."""

from varcon_plugin.commands.benchmarks.diagnostics import main

if __name__ == "__main__":
    main()

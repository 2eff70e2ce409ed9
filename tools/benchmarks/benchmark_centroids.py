"""Cost of a step with momentum centroids; --help says how."""

from varcon_plugin.commands.benchmarks.centroids import main

if __name__ == "__main__":
    main()

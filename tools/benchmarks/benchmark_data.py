"""Images a second for each CPU core; --help says how."""

from varcon_plugin.commands.noise import quiet_start

with quiet_start():
    from varcon_plugin.commands.benchmarks.data import main

if __name__ == "__main__":
    main()
